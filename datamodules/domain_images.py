"""The images of one domain, for training and judging its model."""

import hashlib
import os
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from cyclelight.errors import BadValue, MissingFile
from datamodules.domain_data import DomainData
from datamodules.items import Item
from datamodules.listing import Files, list_images
from datamodules.order import training_loader
from datamodules.square_images import SquareImages


def check_val_fraction(val_fraction: float) -> None:
    """Raises ValueError unless it is in (0, 1)."""
    if not 0 < val_fraction < 1:
        raise BadValue("val_fraction", f"val_fraction must lie between 0 and 1, got {val_fraction}")


NO_NAMES = ("", "train", "training", "images")
"""Folders that say nothing of what is in them."""


def split_by_key(files: Files, val_fraction: float) -> tuple[Files, Files]:
    """(train, val): an image is for validation if the hash of its key falls below `val_fraction`.

    So the split depends on no order, and a new file moves no other. Should none fall below, the
    one with the least hash is taken.
    """

    def position(file: tuple[str, Path]) -> float:
        # fsencode, since a file's name need not be valid Unicode.
        digest = hashlib.blake2b(os.fsencode(file[0]), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    val = [file for file in files if position(file) < val_fraction] or [min(files, key=position)]
    chosen = {key for key, _ in val}
    return [file for file in files if file[0] not in chosen], val


def domain_name(folder: Path) -> str:
    """What the domain is called whose training images are in `folder`: `cat` for `afhq/train/cat`
    and for `cat/train`."""
    whole = folder.resolve()
    return next((p.name for p in (whole, *whole.parents) if p.name not in NO_NAMES), "domain")


class DomainImages(DomainData):
    """The images of one domain for `fit`, `validate` and `test` (which uses the val images).

    Items and batches are dicts: `image`, (R, R, C), uint8; `key`, the path relative to
    its folder; `path`. R is the module's `resolution`, C its `channels`. Up to `memory` the
    pixels of a split (C R^2 bytes per image) are decoded once and stay in memory, in each process.
    Nothing is flipped here: the training module does that.

    Args:
        root: folder of the images, searched recursively.
        train: sub-folder of `root` with the training images; without it, `root` itself.
        val: sub-folder of `root` with the validation images, such as AFHQ's `val/cat` beside
            `train/cat`; without it, they are split off by a hash of each image's key.
        val_fraction: share of images split off, in (0, 1); used only without `val`.
        loading: see `DomainData`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an argument is out of range, or a folder has too few images.
    """

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        val_fraction: float = 0.05,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_val_fraction(val_fraction)
        if val and not train:
            raise BadValue("val", f"val {val!r} needs train, the sub-folder of the training images")
        self.root, self.train, self.val = Path(root), train, val
        self.val_fraction = val_fraction
        self.train_files: Files = []
        self.val_files: Files = []
        self.train_images: SquareImages | None = None
        self.name = domain_name(self.root / train if train else self.root)
        self.find()

    def find(self) -> None:
        """List the images, as the constructor does.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: a folder has too few images.
        """
        folders = {"root": self.root}
        subs = (("train", self.train), ("val", self.val))
        folders |= {name: self.root / sub for name, sub in subs if sub}
        for name, folder in folders.items():
            if not folder.is_dir():
                raise MissingFile(name, f"{name}: no such folder {folder}")
        train_name = "train" if self.train else "root"
        self.train_files = list_images(folders[train_name])
        if len(self.train_files) < 2:
            raise BadValue(
                train_name,
                f"{train_name}: at least 2 images are needed, "
                f"got {len(self.train_files)} in {folders[train_name]}",
            )
        if not self.val:
            self.train_files, self.val_files = split_by_key(self.train_files, self.val_fraction)
            if not self.train_files:
                raise BadValue(
                    "val_fraction", f"val_fraction {self.val_fraction} leaves no training images"
                )
        else:
            self.val_files = list_images(folders["val"])
            check_apart(folders["train"], folders["val"], self.val_files)

    def load(self, resolution: int, *, train: bool = True) -> None:
        """Decode the val images, and with `train` the training images too.

        Raises:
            ValueError: a file is unreadable under `raise`, or none is readable under `skip`.
        """
        if train:
            self.train_images = self._squares(self.train_images, self.train_files, resolution)
        self.val_images = self._squares(self.val_images, self.val_files, resolution)

    def _squares(self, made: SquareImages | None, files: Files, resolution: int) -> SquareImages:
        if made is not None and self.fits(made, resolution):
            return made
        images = self.squares(files, resolution)
        if not len(images):
            raise ValueError(f"none of the {len(files)} images below {self.root} can be read")
        return images

    def train_dataloader(self) -> DataLoader[Item]:
        assert self.train_images is not None, "setup comes first"
        how = self.batch_size, self.num_workers, self.seed
        return training_loader(self.train_images, *how, self.trainer)

    def summary(self) -> dict[str, str | int]:
        """What a domain's card tells of its data: the folder's name and the numbers of images."""
        return {
            "root": self.root.resolve().name,
            "train_images": len(self.train_images or self.train_files),
            "val_images": len(self.val_images or self.val_files),
        }


def check_apart(train: Path, val: Path, files: Files, what: str = "train") -> None:
    """Raises ValueError if `val` has no files, or shares some with the training images, `what`."""
    if not files:
        raise BadValue("val", f"val: no images in {val}")
    inner, outer = val.resolve(), train.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise BadValue("val", f"val and {what} must not lie in one another, got {val} and {train}")
