"""What `fit`, `validate` and `test` ask of the images of one domain, wherever these come from."""

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from datamodules.order import Batch, batch_loader, groups_of
from datamodules.square_images import SquareImages


class DomainData(LightningDataModule, ABC):
    """The images of one domain: how they are found and read is left to subclasses.

    A subclass sets `batch_size` and `num_workers`, and `load` sets `val_images`.

    Batches are dicts: `image`, (B, R, R, 3), uint8; `key` and `path`, B strings each.
    R is the `resolution` of the trainer's module.
    """

    batch_size: int
    """Images per step and process."""
    num_workers: int
    """Processes that decode images."""
    val_images: SquareImages | None = None
    """The images that judge; known after `setup`."""

    def setup(self, stage: str) -> None:
        """Read what `stage` needs at the resolution of the trainer's module."""
        assert self.trainer is not None
        resolution = self.trainer.lightning_module.resolution
        assert isinstance(resolution, int)
        self.load(resolution, train=stage == "fit")

    @abstractmethod
    def load(self, resolution: int, *, train: bool = True) -> None:
        """Read the val images into `val_images`, and with `train` what training needs.

        Args:
            resolution: side of the images, in pixels.
            train: whether there will be training.

        Raises:
            ValueError: an image cannot be read, or none can.
        """

    @abstractmethod
    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training images, those of this process, in the order of the epoch."""

    def val_dataloader(self) -> DataLoader[Batch]:
        assert self.val_images is not None, "setup comes first"
        groups = groups_of(len(self.val_images), self.batch_size)
        return batch_loader(self.val_images, groups, self.num_workers, self.trainer)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.val_dataloader()

    @abstractmethod
    def summary(self) -> dict[str, str | int]:
        """What a domain's card tells of its data: where they are from, and how many."""
