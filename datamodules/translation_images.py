"""The images to translate: a file, a folder or a pattern."""

from collections.abc import Callable
from pathlib import Path

from cyclelight.diffusion.pixels import FitMode, digest
from cyclelight.errors import BadValue, MissingFile
from datamodules.listing import Files, counterparts, find_images, list_images
from datamodules.masks import MaskedImages
from datamodules.predict_data import PredictData
from datamodules.reading import OnError, check_loading
from datamodules.square_images import SquareImages


class TranslationImages(PredictData):
    """The images that `predict` translates, in the order of their keys.

    Keys are POSIX paths, suffix included, relative to the folder, to the fixed part of the pattern,
    or to the file's own folder. Batches are as in `PredictData`.

    Before the run starts, `setup` looks at the ends of all JPEG and PNG files and decodes what does
    not look whole, and all other files, by all processes together: an unreadable one stops the run.
    The rest is decoded when it is translated, where damage in the middle of a file is told, too;
    what was finished by then is kept. Images that an earlier run has finished are decoded in
    `setup`, to see whether they have changed; under `skip` all are, so that batches are the same
    whatever is skipped in others. So are references, masks and truths. None stays in memory.

    Args:
        source: an image file, a folder (searched recursively), or a pattern such as
            `cats/*.jpg` or `cats/**/*.png`, in quotes lest the shell expand it.
        reference: folder of real images of the target domain, which the results are measured
            against and shown beside; of several targets a list, in their order, with null for one
            that has none.
        batch_size: images per step and process.
        num_workers: processes that decode images; 0 does it between batches, which take far longer.
        fit_mode: `crop` to the largest centred square, or `letterbox` on white.
        on_error: what an unreadable file does: `raise` an error, or `skip` it with a warning.
        masks: folder of masks, each with the path of its image and any suffix: only where a mask is
            light may the image change. Batches then have `mask`, (B, R, R), bool.
        truth: folder of the right results, where they exist, each with the path of its image and
            any suffix: how near the images come to them is told.
        candidates: folder of images, the right results among them: it is told for how many images
            none of them is nearer than the truth.

    Raises:
        FileNotFoundError: a folder does not exist, or lacks a mask or a truth.
        ValueError: an argument is out of range, or there are no images.
    """

    def __init__(
        self,
        source: str,
        reference: list[str | None] | str | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        fit_mode: FitMode = "crop",
        on_error: OnError = "raise",
        masks: str | None = None,
        truth: str | None = None,
        candidates: str | None = None,
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers, fit_mode, on_error)
        self.files = self.find(source)
        given = reference if isinstance(reference, list) else [reference]
        self.reference_files = [_folder("reference", folder) for folder in given]
        self.source, self.reference, self.masks = source, reference, masks
        self.mask_files = {} if masks is None else counterparts(self.keys, masks, "masks")
        self.truth_files = self.find_truths(truth)
        if candidates is not None and not self.truth_files:
            told = "candidates: the truth is looked for among them: give `truth`, too"
            raise BadValue("candidates", told)
        self.candidate_files = _folder("candidates", candidates)
        self.read_candidates: Callable[[int], SquareImages] = self._read_candidates
        """Gives the candidates as squares of that side; several runs may share them."""
        self.batch_size, self.num_workers = batch_size, num_workers
        self.fit_mode: FitMode = fit_mode
        self.on_error: OnError = on_error

    def find(self, source: str) -> Files:
        """(key, path) of the images, sorted by key; errors as `find_images`."""
        return find_images(source)

    def find_truths(self, truth: str | None) -> dict[str, Path]:
        """The file of each image's truth, by key; none where nothing is known of it."""
        return {} if truth is None else counterparts(self.keys, truth, "truth")

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
        """Look at the images, as (resolution, resolution).

        Raises:
            ValueError: a file is unreadable under `raise`, or none is readable under `skip`.
        """
        self._check_parts()
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
        read = [
            self._references(files, resolution) if files else None for files in self.reference_files
        ]
        if "" in self.parts:
            self.reference_images = read[0]
        else:
            named = zip(self.parts, read, strict=False)
            self.part_references = {part: images for part, images in named if images is not None}
        if self.truth_files:
            self._load_truths(resolution)

    def _check_parts(self) -> None:
        """Raises ValueError unless references, and the truth, are those of so many targets."""
        targets = None if "" in self.parts else len(self.parts)
        given = len(self.reference) if isinstance(self.reference, list) else None
        if self.reference is not None and given != targets:
            told = "one folder" if given is None else f"a list of {given}"
            wanted = "one folder" if targets is None else f"a list of {targets}, one for each"
            raise BadValue("reference", f"reference: got {told}, and the targets need {wanted}")
        if targets is not None and self.truth_files:
            raise BadValue("truth", "truth: it is that of one target, not of a list of them")

    def _load_truths(self, resolution: int) -> None:
        files = [(key, self.truth_files[key]) for key in self.loaded.keys]
        self.truths = SquareImages(
            files, resolution, self.fit_mode, keep=False, hint="", channels=self.channels
        )
        if not self.candidate_files:
            return
        self.candidates = self.read_candidates(resolution)
        check_among(self.truths, self.candidates)

    def _read_candidates(self, resolution: int) -> SquareImages:
        return SquareImages(
            self.candidate_files, resolution, self.fit_mode, hint="", channels=self.channels
        )

    def _squares(self, files: Files, resolution: int) -> SquareImages:
        """Of the sources."""
        how = resolution, self.fit_mode, self.on_error
        return SquareImages(files, *how, keep=False, channels=self.channels, put_off=True)

    def _references(self, files: Files, resolution: int) -> SquareImages:
        """Which are used at the end, when it would be late to be told of a damaged one."""
        how = resolution, self.fit_mode, self.on_error
        return SquareImages(files, *how, keep=False, channels=self.channels)


def check_among(truths: SquareImages, candidates: SquareImages) -> None:
    """Raises ValueError unless each truth is one of the candidates, pixel by pixel."""
    known = {digest(candidates.pixels(index)) for index in range(len(candidates))}
    for index, (key, path) in enumerate(truths.files):
        if digest(truths.pixels(index)) not in known:
            told = f"candidates: the truth of {key}, {path}, is none of them"
            raise BadValue("candidates", told)


def _folder(argument: str, folder: str | None) -> Files:
    """The images of a folder; none of None."""
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise MissingFile(argument, f"{argument}: no such folder {folder}")
    files = list_images(folder)
    if not files:
        raise BadValue(argument, f"{argument}: no images in {folder}")
    return files
