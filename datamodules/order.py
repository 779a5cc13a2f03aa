"""In which order images come, and to which process: the same whatever was interrupted."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count, repeat
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from cyclelight.diffusion.pixels import digest
from datamodules.items import Item, Items
from datamodules.loading import make_loader

T = TypeVar("T")


Batch = dict[str, Any]
"""image: (B, R, R, C), uint8; mask: (B, R, R), bool, if there are masks; target: as image, if there
are translations; lists of B: key, path and further fields, see `Item`."""


class Epochs(DistributedSampler[T]):
    """Knows at the beginning of each turn which epoch it is, and how much of it is done.

    `place` tells (epoch, this process's items that are done). It counts from (0, 0) on, unless a
    trainer is followed, which may begin an epoch twice where a fit goes on.
    """

    def __init__(self, items: Dataset[Any], processes: int, rank: int, **options: Any) -> None:
        super().__init__(items, processes, rank, **options)
        self.place: Callable[[], tuple[int, int]] = zip(count(), repeat(0)).__next__

    def follow(self, trainer: Trainer, batches: int, batch_size: int = 1) -> None:
        """Begin where `trainer` has come to.

        Args:
            trainer: whose fit it is.
            batches: in an epoch of this process, before the trainer's limit.
            batch_size: items in a batch.
        """
        # Lightning knows only one kind of loader that can resume, and this is not it. It takes its
        # place for `overfit_batches`, and cannot resume then.
        if not trainer.overfit_batches:  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", ".*ended before the epoch ended and your dataloader")
        limit = trainer.limit_train_batches
        whole = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        # Lightning's number of the epoch depends on when it was saved.
        total: Any = trainer.fit_loop.epoch_loop.batch_progress.total

        def place() -> tuple[int, int]:
            epoch, done = divmod(total.processed, max(1, whole))
            return epoch, done * batch_size

        self.place = place

    def set_epoch(self, epoch: int) -> None:
        """Nothing: after a checkpoint of an epoch's end, Lightning's count is one ahead."""


class TrainingOrder(Epochs[int]):
    """A shuffled order for each epoch that follows from (seed, epoch), dealt to the processes.

    A fit that is resumed within an epoch asks only for what is left of it. Being torch's own kind,
    Lightning puts no sampler of its own in its place.

    Args:
        images: what is ordered.
        processes: how many share it; each gets as many images.
        rank: which of them this one is.
        seed: another one gives another order.
        drop_last: leave out what cannot be dealt evenly, rather than deal some twice.
    """

    def __init__(
        self,
        images: Dataset[object],
        processes: int,
        rank: int,
        *,
        seed: int,
        drop_last: bool,
    ) -> None:
        super().__init__(images, processes, rank, shuffle=True, seed=seed, drop_last=drop_last)

    def __iter__(self) -> Iterator[int]:
        self.epoch, done = self.place()
        yield from list(super().__iter__())[done:]


def training_loader(
    images: Items, batch_size: int, num_workers: int, seed: int, trainer: Trainer | None
) -> DataLoader[Item]:
    """This process's share of training images, in `TrainingOrder`.

    Args:
        images: what is trained on.
        batch_size: items of a batch of one process.
        num_workers: processes that decode images.
        seed: of the order.
        trainer: whose processes share the images, and whose fit may go on; None for one process.
    """
    processes, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    # A last, smaller batch would weigh its images more; but never drop the only batch.
    drop_last = len(images) >= batch_size * processes
    order = TrainingOrder(images, processes, rank, seed=seed, drop_last=drop_last)
    loader = make_loader(
        images,
        num_workers,
        in_memory=images.in_memory,
        batch_size=batch_size,
        sampler=order,
        drop_last=drop_last,
    )
    if trainer:
        order.follow(trainer, len(loader), batch_size)
    return loader


class BatchOrder(Epochs[tuple[int, int]]):
    """(epoch, number) of each of this process's batches in turn, for what knows its own order.

    A fit that is resumed within an epoch asks only for what is left of it. Being torch's own kind,
    Lightning puts no sampler of its own in its place.

    Args:
        batches: whose items they are, and as many as an epoch has.
    """

    def __init__(self, batches: Dataset[Batch]) -> None:
        super().__init__(batches, 1, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, done = self.place()
        yield from [(epoch, number) for number in range(done, len(self))]


class Batches(Dataset[Batch]):
    """The batches themselves as items, so that each image keeps its neighbours.

    Beside the items' own fields they have `digest`: that of the very pixels in `image`, or nothing.

    The last bits of a result depend on the shape of its batch. With batches that do not depend on
    the number of processes, nor on what an earlier run has finished, the results do not either.

    Args:
        items: what they are made of.
        groups: the indices of each batch; an empty one gives an empty batch.
    """

    def __init__(self, items: Items, groups: Sequence[Sequence[int]]) -> None:
        self.items, self.groups = items, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        items = [self.items[i] for i in self.groups[index]]
        if not items:
            return {"key": [], "image": torch.empty((0, 0, 0, 3), dtype=torch.uint8)}
        batch: Batch = {name: [item[name] for item in items] for name in items[0]}
        if "image" not in batch:
            return {**batch, "digest": [""] * len(items)}
        for name in ("mask", "target"):
            if name in batch:
                batch[name] = torch.stack(batch[name])
        digests = [digest(image) for image in batch["image"]]
        return {**batch, "image": torch.stack(batch["image"]), "digest": digests}


class ShareSampler(DistributedSampler[int]):
    """Items 0, 1, 2, ... dealt to the processes in turn, none of them twice; some may get one more.

    Being torch's own kind, Lightning puts no sampler in its place, which would deal some twice.
    """

    def __init__(self, items: Dataset[Batch], processes: int, rank: int) -> None:
        super().__init__(items, processes, rank, shuffle=False)
        self._mine = range(rank, len(items), processes)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)

    def __len__(self) -> int:
        return len(self._mine)


def groups_of(count: int, size: int) -> list[range]:
    """0 .. count - 1 in runs of `size`; the last may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def batch_loader(
    items: Items,
    groups: Sequence[Sequence[int]],
    num_workers: int,
    trainer: Trainer | None,
) -> DataLoader[Batch]:
    """This process's share of some batches.

    A process that would get none gets an empty one: Lightning skips a loop over nothing, at the end
    of which processes meet.

    Args:
        items: what the batches are made of.
        groups: the indices of each batch, of all processes.
        num_workers: processes that decode images.
        trainer: whose processes share the batches; None for one process.
    """
    processes, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    batches = Batches(items, [*groups, *[()] * max(0, processes - len(groups))])
    sampler = ShareSampler(batches, processes, rank)
    # By name, and without a batch size: the items are batches.
    return make_loader(
        batches, num_workers, in_memory=items.in_memory, batch_size=None, sampler=sampler
    )
