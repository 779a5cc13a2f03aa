"""Images and their translations, for a student that learns to make the ones of the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from cyclelight.errors import BadValue, MissingFile
from cyclelight.runs.folder import IMAGES, MANIFEST
from datamodules.domain_data import DomainData
from datamodules.domain_images import check_val_fraction, domain_name, split_by_key
from datamodules.items import Item
from datamodules.listing import Files, list_images
from datamodules.matching import match
from datamodules.order import training_loader
from datamodules.square_images import SquareImages


class PairedSquares(SquareImages):
    """`SquareImages` with the pixels of each one's translation, `target`, (R, R, C), uint8.

    Args:
        files: as of `SquareImages`.
        targets: the translations, by the keys of their sources; a source without is left out.
        directions: which way each one goes; `direction` of the items.
        options: of `SquareImages`.
    """

    def __init__(
        self,
        files: Files,
        targets: SquareImages,
        directions: Mapping[str, int],
        *args: Any,
        **options: Any,
    ) -> None:
        self.targets = targets
        fields = {key: {"direction": way} for key, way in directions.items()}
        files = [file for file in files if file[0] in targets.index]
        super().__init__(files, *args, fields=fields, **options)

    @property
    def in_memory(self) -> bool:
        return super().in_memory and self.targets.in_memory

    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        return {**item, "target": self.targets.pixels_of(item["key"])}


class PairedImages(DomainData):
    """Images and the translations that a teacher has made of them, for `DistillationModule`.

    Batches are as in `DomainData`, of sources, with `target` too, (B, R, R, C), uint8: the
    translations; and `direction`, B integers: of several pairs of folders, the number of the pair.
    Keys begin with that number: `0/cats/a.jpg`. Sources without a translation are left out.

    Args:
        source: folder of the images, searched recursively; or a list of folders, one for each way
            that the student is to learn, such as from A to B and back.
        target: folder of their translations, named as `predict` names them or as their sources, or
            an output folder of `predict`; as many as of `source`. True counterparts do as well.
        val_fraction: share of the pairs that judge, in (0, 1), by a hash of each key.
        loading: see `DomainData`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an argument is out of range, a translation has no source, or there are too few.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        val_fraction: float = 0.05,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_val_fraction(val_fraction)
        sources, targets = ([a] if isinstance(a, str) else list(a) for a in (source, target))
        if len(sources) != len(targets) or not sources:
            raise BadValue(
                "target",
                f"target: of each folder of source there must be one of translations, got "
                f"{len(targets)} for {len(sources)}",
            )
        self.sources = [_folder("source", path) for path in sources]
        self.targets = [_translations(_folder("target", path)) for path in targets]
        self.target_files: Files = []
        self.directions: dict[str, int] = {}
        files: Files = []
        for way, (folder, made) in enumerate(zip(self.sources, self.targets, strict=True)):
            for key, translation, path in match(list_images(made), list_images(folder), "target"):
                name = f"{way}/{key}"
                files.append((name, path))
                self.target_files.append((name, translation))
                self.directions[name] = way
        self.train_files, self.val_files = split_by_key(files, val_fraction)
        if not self.train_files:
            told = f"val_fraction {val_fraction} leaves no training pairs of {len(files)}"
            raise BadValue("val_fraction", told)
        self.train_images: PairedSquares | None = None

    @property
    def names(self) -> list[str]:
        """What each way makes, by the folders of the translations."""
        return [domain_name(folder) for folder in self.targets]

    def load(self, resolution: int, *, train: bool = True) -> None:
        """Decode the val pairs, and with `train` the training pairs too.

        Raises:
            ValueError: a file is unreadable under `raise`, or none is readable under `skip`.
        """
        if train:
            self.train_images = self._squares(self.train_files, resolution)
        self.val_images = self._squares(self.val_files, resolution)

    def _squares(self, files: Files, resolution: int) -> PairedSquares:
        keys = {key for key, _ in files}
        targets = self.squares([f for f in self.target_files if f[0] in keys], resolution)
        how = resolution, self.fit_mode, self.on_error
        options = {"channels": self.channels, "memory": self.memory}
        images = PairedSquares(files, targets, self.directions, *how, **options)
        if not len(images):
            raise BadValue("source", f"source: none of the {len(files)} pairs can be read")
        return images

    def train_dataloader(self) -> DataLoader[Item]:
        assert self.train_images is not None, "setup comes first"
        how = self.batch_size, self.num_workers, self.seed
        return training_loader(self.train_images, *how, self.trainer)

    def summary(self) -> dict[str, str | int]:
        """What a card tells of the data: the folders' names and the numbers of pairs."""
        return {
            "source": _named(self.sources),
            "target": ", ".join(self.names),
            "train_images": len(self.train_images or self.train_files),
            "val_images": len(self.val_images or self.val_files),
        }


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(domain_name(folder) for folder in folders)


def _folder(argument: str, path: str) -> Path:
    if not Path(path).is_dir():
        raise MissingFile(argument, f"{argument}: no such folder {path}")
    return Path(path)


def _translations(folder: Path) -> Path:
    """Where a folder's images are: of a run, those that it has made, and not its gallery."""
    return folder / IMAGES if (folder / MANIFEST).is_file() else folder
