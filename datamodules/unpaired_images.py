"""Images of two domains, for a network that learns to make the one of the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from cyclelight.diffusion.noise import keyed_generator
from cyclelight.errors import BadValue, MissingFile
from datamodules.domain_data import DomainData
from datamodules.domain_images import check_apart, check_val_fraction, domain_name, split_by_key
from datamodules.items import Item
from datamodules.listing import Files, list_images
from datamodules.loading import make_loader
from datamodules.order import Epochs
from datamodules.square_images import SquareImages


class Pairs(Dataset[Item]):
    """Items of the sources, each with the pixels of a target, `target`, by a pair of indices."""

    def __init__(self, sources: SquareImages, targets: SquareImages) -> None:
        self.sources, self.targets = sources, targets

    def __len__(self) -> int:
        """As many as the larger of the two has: an epoch shows each image at least once."""
        return max(len(self.sources), len(self.targets))

    def __getitem__(self, pair: tuple[int, int]) -> Item:
        source, target = pair
        return {**self.sources[source], "target": self.targets.pixels(target)}


class PairOrder(Epochs[tuple[int, int]]):
    """Pairs of a source and a target by chance, which follow from (seed, epoch).

    A fit that is resumed within an epoch asks only for what is left of it.

    Args:
        pairs: what is ordered.
        processes: how many share it; each gets as many pairs.
        rank: which of them this one is.
        seed: another one gives other pairs.
        drop_last: leave out what cannot be dealt evenly, rather than deal some twice.
    """

    def __init__(
        self, pairs: Pairs, processes: int, rank: int, *, seed: int, drop_last: bool
    ) -> None:
        super().__init__(pairs, processes, rank, shuffle=True, seed=seed, drop_last=drop_last)
        self.sizes = len(pairs.sources), len(pairs.targets)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.epoch, done = self.place()
        sources, targets = self.sizes
        # Were the targets not shuffled by themselves, pairs would be the same in each epoch.
        partners = torch.randperm(targets, generator=keyed_generator(self.seed, "pair", self.epoch))
        numbers: list[Any] = list(super().__iter__())
        for number in numbers[done:]:
            yield number % sources, int(partners[number % targets])


class UnpairedImages(DomainData):
    """The images of a source domain, and beside them those of a target domain, for `CUTModule`.

    Batches are as in `DomainData`, of sources: `image`, `key`, `path`; those for training have
    `target` too, as many images of the target domain, (B, R, R, C), uint8. Which is beside which is
    drawn for each epoch anew. Validation has sources only.

    Args:
        source: folder of the images to translate, searched recursively.
        target: folder of images of the domain to translate into, searched recursively.
        val: folder of images to translate that judge; without it, they are split off `source` by a
            hash of each image's key.
        val_fraction: share of sources split off, in (0, 1); used only without `val`.
        loading: see `DomainData`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an argument is out of range, or a folder has too few images.
    """

    def __init__(
        self,
        source: str,
        target: str,
        val: str | None = None,
        val_fraction: float = 0.05,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_val_fraction(val_fraction)
        self.folders = {"source": Path(source), "target": Path(target)}
        folders = {**self.folders, **({"val": Path(val)} if val else {})}
        for name, folder in folders.items():
            if not folder.is_dir():
                raise MissingFile(name, f"{name}: no such folder {folder}")
        self.train_files, self.target_files = map(list_images, self.folders.values())
        for name, files in (("source", self.train_files), ("target", self.target_files)):
            if len(files) < 2:
                raise BadValue(
                    name,
                    f"{name}: at least 2 images are needed, got {len(files)} in {folders[name]}",
                )
        if val:
            self.val_files = list_images(folders["val"])
            check_apart(folders["source"], folders["val"], self.val_files, "source")
        else:
            self.train_files, self.val_files = split_by_key(self.train_files, val_fraction)
            if not self.train_files:
                raise BadValue(
                    "val_fraction", f"val_fraction {val_fraction} leaves no training images"
                )
        self.name = domain_name(self.folders["target"])
        self.train_images: SquareImages | None = None
        self.target_images: SquareImages | None = None

    def load(self, resolution: int, *, train: bool = True) -> None:
        """Decode the val images, and with `train` the training images of both domains too.

        Raises:
            ValueError: a file is unreadable under `raise`, or none is readable under `skip`.
        """
        if train:
            self.train_images = self._squares("source", self.train_files, resolution)
            self.target_images = self._squares("target", self.target_files, resolution)
        self.val_images = self._squares("val", self.val_files, resolution)

    def _squares(self, name: str, files: Files, resolution: int) -> SquareImages:
        images = self.squares(files, resolution)
        if not len(images):
            raise BadValue(name, f"{name}: none of the {len(files)} images can be read")
        return images

    def train_dataloader(self) -> DataLoader[Item]:
        assert self.train_images is not None and self.target_images is not None, "setup comes first"
        pairs = Pairs(self.train_images, self.target_images)
        processes, rank = 1, 0
        if self.trainer:
            processes, rank = self.trainer.world_size, self.trainer.global_rank
        drop_last = len(pairs) >= self.batch_size * processes
        order = PairOrder(pairs, processes, rank, seed=self.seed, drop_last=drop_last)
        loader = make_loader(
            pairs,
            self.num_workers,
            in_memory=self.train_images.in_memory and self.target_images.in_memory,
            batch_size=self.batch_size,
            sampler=order,
            drop_last=drop_last,
        )
        if self.trainer:
            order.follow(self.trainer, len(loader), self.batch_size)
        return loader

    def summary(self) -> dict[str, str | int]:
        """What a card tells of the data: the folders' names and the numbers of images."""
        names = {name: folder.resolve().name for name, folder in self.folders.items()}
        return {
            **names,
            "train_images": len(self.train_images or self.train_files),
            "target_images": len(self.target_images or self.target_files),
            "val_images": len(self.val_images or self.val_files),
        }
