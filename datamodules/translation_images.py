"""The images to translate: a file, a folder or a pattern."""

from pathlib import Path

from cyclelight.diffusion.pixels import FitMode
from cyclelight.errors import BadValue, MissingFile
from datamodules.listing import Files, find_images, list_images
from datamodules.masks import MaskedImages, masks_of
from datamodules.predict_data import PredictData
from datamodules.reading import OnError, check_loading
from datamodules.square_images import SquareImages


class TranslationImages(PredictData):
    """The images that `predict` translates, in the order of their keys.

    Keys are POSIX paths, suffix included, relative to the folder, to the fixed part of the pattern,
    or to the file's own folder. Batches are as in `PredictData`.

    All images are decoded once in `setup`, by all processes together: translating one takes far
    longer, an unreadable file then stops the run before it starts, and batches are the same
    whatever is skipped in others. None stays in memory.

    Args:
        source: an image file, a folder (searched recursively), or a pattern such as
            `cats/*.jpg` or `cats/**/*.png`, in quotes lest the shell expand it.
        reference: folder of real images of the target domain, which the results are measured
            against and shown beside.
        batch_size: images per step and process.
        num_workers: processes that decode images; 0 does it between batches, which take far longer.
        fit_mode: `crop` to the largest centred square, or `letterbox` on white.
        on_error: what an unreadable file does: `raise` an error, or `skip` it with a warning.
        masks: folder of masks, each with the path of its image and any suffix: only where a mask is
            light may the image change. Batches then have `mask`, (B, R, R), bool.

    Raises:
        FileNotFoundError: `source`, `reference` or `masks` does not exist, or lacks a mask.
        ValueError: an argument is out of range, or there are no images.
    """

    def __init__(
        self,
        source: str,
        reference: str | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        fit_mode: FitMode = "crop",
        on_error: OnError = "raise",
        masks: str | None = None,
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers, fit_mode, on_error)
        self.files = self.find(source)
        if reference is not None and not Path(reference).is_dir():
            raise MissingFile("reference", f"reference: no such folder {reference}")
        self.reference_files = list_images(reference) if reference is not None else []
        if reference is not None and not self.reference_files:
            raise BadValue("reference", f"reference: no images in {reference}")
        self.source, self.reference, self.masks = source, reference, masks
        self.mask_files = {} if masks is None else masks_of(self.keys, masks)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.fit_mode: FitMode = fit_mode
        self.on_error: OnError = on_error

    def find(self, source: str) -> Files:
        """(key, path) of the images, sorted by key; errors as `find_images`."""
        return find_images(source)

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.files]

    @property
    def searched(self) -> Path | None:
        folder = Path(self.source.partition("**")[0])
        return folder if folder.is_dir() else None

    @property
    def source_folders(self) -> set[Path]:
        return {path.parent for _, path in self.files}

    def load(self, resolution: int) -> None:
        """Decode the images to (resolution, resolution).

        Raises:
            ValueError: a file is unreadable under `raise`, or none is readable under `skip`.
        """
        made = self.items
        wanted = (resolution, self.channels)
        if isinstance(made, SquareImages) and (made.resolution, made.channels) == wanted:
            return
        if self.masks is None:
            self.items = self._squares(self.files, resolution)
        else:
            self.items = MaskedImages(
                self.files,
                resolution,
                self.fit_mode,
                self.on_error,
                self.mask_files,
                self.channels,
            )
        if not len(self.items):
            raise ValueError(f"none of the {len(self.files)} images of {self.source} can be read")
        if self.reference_files:
            self.reference_images = self._squares(self.reference_files, resolution)

    def _squares(self, files: Files, resolution: int) -> SquareImages:
        return SquareImages(
            files,
            resolution,
            self.fit_mode,
            self.on_error,
            keep=False,
            channels=self.channels,
        )
