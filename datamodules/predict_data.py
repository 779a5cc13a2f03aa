"""What `predict` asks of its data, wherever that comes from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cyclelight.runs.plan import plan_of
from cyclelight.runs.task import task_of
from datamodules.items import Items
from datamodules.order import Batch, batch_loader, groups_of
from datamodules.square_images import SquareImages


class PredictData(LightningDataModule, ABC):
    """The images that a `Task` is to make, by their keys, and what it makes them of.

    A subclass sets `batch_size` and `num_workers`, and `load` sets `items`.

    Batches are dicts: `key`, which names the image in the run (its noise, its output); where there
    are sources, `image`, (B, R, R, C), uint8; `path` and `digest` of the source, or nothing;
    further fields stand in the manifest. R is the `resolution` of the task,
    C its `channels`.
    """

    batch_size: int
    """Images per step and process."""
    num_workers: int
    """Processes that decode images."""
    items: Items | None = None
    """What can be made: `SquareImages` where there are sources; known after `setup`."""
    reference_images: SquareImages | None = None
    """Real images of what is made, to judge it by, if there are any; known after `setup`."""
    part_references: Mapping[str, SquareImages] = MappingProxyType({})
    """The same of each part of the task that has them, where it has several, see `Task.parts`."""
    parts: Sequence[str] = ("",)
    """The names of the task's parts; `setup` sets them before `load`."""
    truths: SquareImages | None = None
    """What each image should be, by its key, if that is known; after `setup`."""
    candidates: SquareImages | None = None
    """The images among which the truth of each is looked for, if any; known after `setup`."""
    regions: Mapping[str, Tensor] | None = None
    """Where each image is to change, (R, R), bool, by key, if that is known; after `setup`."""
    channels: int = 3
    """C, as which images are read: 3 for RGB, or 1 for grey; `setup` sets it before `load`."""

    @property
    @abstractmethod
    def keys(self) -> list[str]:
        """The keys of all images, sorted; those of unreadable sources included."""

    @property
    def searched(self) -> Path | None:
        """The folder below which sources are looked for, if any: results may not lie there."""
        return None

    @property
    def source_folders(self) -> set[Path]:
        """The folders that sources lie in."""
        return set()

    @abstractmethod
    def load(self, resolution: int) -> None:
        """Look at the sources, as squares of this side in pixels, for `items`.

        Raises:
            ValueError: a source cannot be read, or none can.
        """

    def setup(self, stage: str) -> None:
        """Look at the sources at the resolution of the trainer's task, in its channels."""
        assert self.trainer is not None
        task = task_of(self.trainer.lightning_module)
        self.channels, self.parts = task.channels, list(task.parts)
        self.load(task.resolution)

    @property
    def loaded(self) -> Items:
        """`items`, after `setup`."""
        assert self.items is not None, "setup comes first"
        return self.items

    @property
    def sources(self) -> SquareImages | None:
        """`items`, after `setup`, if they are images."""
        return self.loaded if isinstance(self.loaded, SquareImages) else None

    def captions(self, key: str) -> Sequence[str]:
        """What is to be said of an image beside its name where it is shown; nothing by default."""
        return ()

    def groups(self) -> list[range]:
        """The batches as indices of `items`."""
        return groups_of(len(self.loaded), self.batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The batches that are not done, dealt to the processes; of none to do, an empty one."""
        plan = plan_of(self.trainer) if self.trainer is not None else None
        groups = self.groups() if plan is None else plan.batches(done=False)
        return batch_loader(self.loaded, groups, self.num_workers, self.trainer)

    def reference_of(self, part: str) -> SquareImages | None:
        """The real images that a part is judged by, if there are any; after `setup`."""
        return self.part_references.get(part) if part else self.reference_images

    def reference_pixels(self, count: int, part: str = "") -> list[Tensor]:
        """Up to `count` real images of a part, evenly spread: (R, R, C), uint8 each."""
        images = self.reference_of(part)
        total = len(images) if images is not None else 0
        count = min(count, total)
        return [images.pixels(index * total // count) for index in range(count)] if images else []


def predict_data(trainer: Trainer) -> PredictData:
    """The datamodule of a `predict` run.

    Raises:
        ValueError: it is of another kind.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, PredictData):
        name = type(data).__name__
        raise ValueError(f"predict takes a PredictData, such as TranslationImages, got {name}")
    return data
