"""In which order images come, and to which process: the same whatever was interrupted."""

from collections.abc import Iterator

from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler


class TrainingOrder(DistributedSampler[int]):
    """A shuffled order for each epoch that follows from (seed, epoch), dealt to the processes.

    A fit that is resumed within an epoch asks only for what is left of it. Being torch's own kind,
    Lightning calls its `set_epoch` and puts no sampler of its own in its place.

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
        self.begin(0, 0)

    def begin(self, epoch: int, done: int) -> None:
        """Begin with this epoch, of which this process has seen `done` images already."""
        self._first_epoch, self._done = epoch, done
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        return iter(order[self._done if self.epoch == self._first_epoch else 0 :])
