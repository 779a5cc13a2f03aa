"""Shards as a stream of training batches, the same whatever was interrupted."""

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, islice

import torch
from torch.utils.data import Dataset

from cyclelight.diffusion.pixels import FitMode
from datamodules.order import Batch
from datamodules.reading import SKIP_HINT, OnError, read_square
from datamodules.tars import Sample, read_shard


@dataclass(frozen=True)
class ShardOrder:
    """Which images are read when: a function of seed, epoch, process and stream alone.

    A process reads `streams` streams side by side, one for each of its workers, and takes its
    batches from them in turn: batch n comes from stream n % streams. In each epoch the shards are
    put in another order, and the images of a stream are shuffled within its buffer.

    Where the images are counted, each stream has its part of the epoch, which may begin and end
    within a shard: each image comes once, but for less than one batch of each process, which are
    other ones each time. Else each stream has whole shards, and begins anew should they run out.

    Args:
        shards: what is read.
        counts: images of each shard, or None.
        images: of an epoch, in all processes.
        batch_size: of a process.
        processes, rank: how many share the images, and which of them this one is.
        streams: read at a time by this process.
        buffer: images of a stream that are shuffled at a time.
        seed: another one gives another order.
    """

    shards: Sequence[str]
    counts: Sequence[int] | None
    images: int
    batch_size: int
    processes: int
    rank: int
    streams: int
    buffer: int
    seed: int

    @property
    def size(self) -> int:
        """Images of a batch: fewer than asked for only if a process has no more in an epoch."""
        return min(self.batch_size, -(-self.images // self.processes))

    @property
    def batches(self) -> int:
        """Of this process, and of any other, in an epoch."""
        return max(1, self.images // (self.size * self.processes))

    def samples(self, epoch: int, stream: int) -> Iterator[Sample]:
        """The images of a stream in an epoch, encoded.

        Raises:
            ValueError: a shard cannot be read, or is not what it was when it was counted.
        """
        lengths = [len(range(s, self.batches, self.streams)) for s in range(self.streams)]
        ends = [batches * self.size for batches in accumulate(lengths, initial=0)]
        chance = random.Random(f"shards {self.seed} {epoch}")  # The same in all processes.
        order = chance.sample(range(len(self.shards)), len(self.shards))
        if self.counts is None:
            mine = order[self.rank * self.streams + stream :: self.processes * self.streams]
            found = self._whole(mine)
        else:
            start = chance.randrange(sum(self.counts)) + self.rank * ends[-1] + ends[stream]
            found = self._part(order, self.counts, start, ends[stream + 1] - ends[stream])
        chance = random.Random(f"images {self.seed} {epoch} {self.rank} {stream}")
        return shuffle(islice(found, ends[stream + 1] - ends[stream]), self.buffer, chance)

    def _whole(self, order: Sequence[int]) -> Iterator[Sample]:
        """The images of these shards, over and over."""
        while True:
            count = 0
            for shard in order:
                for sample in read_shard(self.shards[shard]):
                    count += 1
                    yield sample
            if not count:
                names = ", ".join(self.shards[shard] for shard in order)
                raise ValueError(f"no images in the shards {names}")

    def _part(
        self, order: Sequence[int], counts: Sequence[int], start: int, length: int
    ) -> Iterator[Sample]:
        """`length` images from number `start` on, of all shards in this order, over and over."""
        for shard in cycle(order):
            first = min(start, counts[shard])
            end = min(counts[shard], first + length)
            start -= first
            length -= end - first
            if first < end:
                read = 0
                for sample in islice(read_shard(self.shards[shard], first=first), first, end):
                    read += 1
                    yield sample
                if read < end - first:
                    raise ValueError(f"shard {self.shards[shard]} has lost images since the start")
            if not length:
                return


def shuffle(samples: Iterator[Sample], size: int, chance: random.Random) -> Iterator[Sample]:
    """All samples, each by chance one of up to `size` that are held meanwhile."""
    held: list[Sample] = []
    for sample in samples:
        if len(held) < size:
            held.append(sample)
            continue
        index = chance.randrange(size)
        sample, held[index] = held[index], sample
        yield sample
    chance.shuffle(held)
    yield from held


class ShardBatches(Dataset[Batch]):
    """The training batches of one process; an item is asked for by (epoch, number).

    The batch that comes next in the stream of the last one is read on from there: all that one
    worker is asked for. For any other, its stream is begun anew, and the images before it are
    passed over without being decoded.

    An unreadable image is an error, or under `skip` makes its batch smaller.
    """

    def __init__(
        self,
        order: ShardOrder,
        resolution: int,
        fit_mode: FitMode,
        on_error: OnError,
        channels: int = 3,
    ) -> None:
        self.order, self.resolution, self.channels = order, resolution, channels
        self.fit_mode: FitMode = fit_mode
        self.on_error: OnError = on_error
        self._samples: Iterator[Sample] = iter(())
        self._next: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.order.batches

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        epoch, number = index
        streams, size = self.order.streams, self.order.size
        if index != self._next:
            passed = number // streams * size
            self._samples = islice(self.order.samples(epoch, number % streams), passed, None)
        batch = self._decode(list(islice(self._samples, size)))
        self._next = epoch, number + streams
        return batch

    def _decode(self, samples: Sequence[Sample]) -> Batch:
        images, good = [], []
        for key, encoded in samples:
            try:
                square = read_square(encoded, self.resolution, self.fit_mode, self.channels)
            except ValueError as error:
                if self.on_error == "raise":
                    raise ValueError(f"{error} ({SKIP_HINT})") from error
                warnings.warn(f"skipped: {error}", stacklevel=1)
                continue
            images.append(square)
            good.append((key, str(encoded)))
        if not images:
            names = ", ".join(str(encoded) for _, encoded in samples)
            raise ValueError(f"none of the images of a batch can be read: {names}")
        keys, paths = zip(*good, strict=True)
        return {"image": torch.stack(images), "key": list(keys), "path": list(paths)}
