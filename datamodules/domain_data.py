"""What `fit`, `validate` and `test` ask of the images of one domain, wherever these come from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from cyclelight.diffusion.pixels import FitMode
from cyclelight.errors import at_least
from datamodules.order import Batch, batch_loader, groups_of
from datamodules.reading import FileContent, OnError, check_loading
from datamodules.square_images import SquareImages


@runtime_checkable
class HasResolution(Protocol):
    """A module that works on square images of one size."""

    @property
    def resolution(self) -> int:
        """Their side in pixels."""


def resolution_of(module: object) -> int:
    """The side of a module's images in pixels.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(module, HasResolution):
        raise ValueError(f"{type(module).__name__} has no resolution for the images to be read at")
    return module.resolution


def channels_of(module: object) -> int:
    """The channels of a module's images: its `channels`, or 3 where it says nothing of them."""
    return int(getattr(module, "channels", 3))


class DomainData(LightningDataModule, ABC):
    """The images of one domain: how they are found and read is left to subclasses.

    `load` sets `val_images`.

    Batches are dicts: `image`, (B, R, R, C), uint8; `key` and `path`, B strings each.
    R is the `resolution` of the trainer's module, C its `channels`.

    Args:
        batch_size: images per step and process.
        num_workers: processes that decode images; none are started if the images are in memory.
        fit_mode: `crop` to the largest centred square, or `letterbox` on white.
        on_error: what an unreadable file does: `raise` an error, or `skip` it with a warning.
        seed: of the order of the training images; each epoch's follows from this and its number,
            so that a resumed fit goes on in the same one.
        memory: GiB of decoded pixels up to which those of a split stay in memory, in each process,
            2 by default (10,900 colour images of 256 pixels). A larger split is decoded anew in
            each epoch, by `num_workers` processes. Results are the same.

    Raises:
        ValueError: an argument is out of range.
    """

    val_images: SquareImages | None = None
    """The images that judge; known after `setup`."""
    channels: int = 3
    """C, as which images are read: 3 for RGB, or 1 for grey; `setup` sets it before `load`."""

    def __init__(
        self,
        batch_size: int = 16,
        num_workers: int = 2,
        fit_mode: FitMode = "crop",
        on_error: OnError = "raise",
        seed: int = 0,
        memory: float | None = None,
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers, fit_mode, on_error)
        if memory is not None:
            at_least(0, memory=memory)
        self.memory = memory
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.fit_mode: FitMode = fit_mode
        self.on_error: OnError = on_error

    def setup(self, stage: str) -> None:
        """Read what `stage` needs at the resolution of the trainer's module, in its channels."""
        assert self.trainer is not None
        module = self.trainer.lightning_module
        self.channels = channels_of(module)
        self.load(resolution_of(module), train=stage == "fit")

    @abstractmethod
    def load(self, resolution: int, *, train: bool = True) -> None:
        """Read the val images into `val_images`, and with `train` what training needs.

        Args:
            resolution: side of the images, in pixels.
            train: whether there will be training.

        Raises:
            ValueError: an image cannot be read, or none can.
        """

    def squares(
        self, files: Sequence[tuple[str, Path | FileContent]], resolution: int
    ) -> SquareImages:
        """Image files, or contents of such, as this data reads them.

        Raises:
            ValueError: a file is unreadable under `raise`.
        """
        how = resolution, self.fit_mode, self.on_error
        return SquareImages(files, *how, channels=self.channels, memory=self.memory)

    def fits(self, images: SquareImages | None, resolution: int) -> bool:
        """Whether images were read as they are to be read now."""
        return images is not None and (images.resolution, images.channels) == (
            resolution,
            self.channels,
        )

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
