"""The images to translate: a file, a folder or a pattern."""

import glob
from pathlib import Path

from cyclelight.diffusion.pixels import FitMode
from cyclelight.errors import BadValue, MissingFile
from datamodules.predict_data import PredictData
from datamodules.reading import Files, OnError, check_loading, is_image_name, list_images
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

    Raises:
        FileNotFoundError: `source` or `reference` does not exist.
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
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers, fit_mode, on_error)
        self.files = find_images(source)
        if reference is not None and not Path(reference).is_dir():
            raise MissingFile("reference", f"reference: no such folder {reference}")
        self.reference_files = list_images(reference) if reference is not None else []
        if reference is not None and not self.reference_files:
            raise BadValue("reference", f"reference: no images in {reference}")
        self.source, self.reference = source, reference
        self.batch_size, self.num_workers = batch_size, num_workers
        self.fit_mode: FitMode = fit_mode
        self.on_error: OnError = on_error

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
        if isinstance(self.items, SquareImages) and self.items.resolution == resolution:
            return
        self.items = self._squares(self.files, resolution)
        if not len(self.items):
            raise ValueError(f"none of the {len(self.files)} images of {self.source} can be read")
        if self.reference_files:
            self.reference_images = self._squares(self.reference_files, resolution)

    def _squares(self, files: Files, resolution: int) -> SquareImages:
        return SquareImages(files, resolution, self.fit_mode, self.on_error, keep=False)


def find_images(source: str) -> Files:
    """(key, path) of the images that a file, folder or pattern means, sorted by key.

    Raises:
        FileNotFoundError: `source` is none of the three.
        ValueError: no images there.
    """
    path = Path(source)
    if path.is_file():  # Before the pattern: a real name may hold brackets.
        return [(path.name, path)]
    if path.is_dir():
        files = list_images(path)
    elif glob.has_magic(source):
        found = {Path(name) for name in glob.glob(source, recursive=True)}
        root = _fixed_part(path)
        files = sorted(
            (file.relative_to(root).as_posix(), file)
            for file in found
            if is_image_name(file) and file.is_file()
        )
    else:
        raise MissingFile("source", f"source: no such file or folder {source}")
    if not files:
        raise BadValue("source", f"source: no images found by {source}")
    return files


def _fixed_part(pattern: Path) -> Path:
    """The folders of `pattern` before the first one with a wildcard."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern
