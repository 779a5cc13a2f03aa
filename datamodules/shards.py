"""The images of one domain in shards (tar files), streamed, for data too large for a folder."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from cyclelight.errors import BadValue, at_least
from datamodules.domain_data import DomainData
from datamodules.loading import make_loader, useful_workers
from datamodules.order import Batch, BatchOrder
from datamodules.streaming import ShardBatches, ShardOrder
from datamodules.tars import (
    Sample,
    count_images,
    find_shards,
    is_url,
    read_shard,
    require_webdataset,
)


class ShardImages(DomainData):
    """The images of one domain in shards, for `fit`, `validate` and `test`, by webdataset.

    A shard is a tar file of images of any size, as `tar --sort=name -cf train-000000.tar -C cats .`
    makes; beside an image there may be other files of its name, which are passed over. Shuffle
    large data before: neighbours in a shard come close to one another.

    Training images are streamed: nothing is held but, in each worker, `shuffle_buffer` encoded
    images and the batches. An epoch has every image once, but for less than a batch of each process
    (where there are too few for one batch of each, some come twice), however many shards, processes
    and workers there are; its order follows from the seed and its number. A fit that is resumed
    within an epoch, with as many processes and workers, gets the batches that it would have got;
    what came before is passed over undecoded.

    Validation images are read at once, in each process. Batches are as those of `DomainImages`;
    `key` is the name in the shard, `path` the shard and that. Nothing is flipped here.

    Args:
        train: shards of the training images, such as 'shards/train-{000000..000099}.tar' or
            'shards/train-*.tar', in quotes lest the shell expand it; or URLs, or with
            `allow_commands` `pipe:` commands.
        val: shards of the validation images.
        epoch_images: images of an epoch, in all processes together. By default as many as there
            are: their headers are read first, which takes some seconds for each 100,000. Given,
            nothing is counted, and processes and workers get whole shards, repeated or left out
            as need be. URLs are not counted: for them it must be given.
        shuffle_buffer: images among which one is drawn, in each worker.
        num_workers: processes that read and decode images; no more than a process has shards
            where these are not counted.
        allow_commands: whether `pipe:COMMAND` among the shards is given to a shell.
        loading: see `DomainData`. A batch in which an unreadable image is skipped is smaller, and
            an unreadable shard is always an error.

    Raises:
        FileNotFoundError: a shard is missing, or a pattern finds none.
        ValueError: an argument is out of range, or webdataset is not installed.
    """

    def __init__(
        self,
        train: str,
        val: str,
        epoch_images: int | None = None,
        shuffle_buffer: int = 1000,
        num_workers: int = 2,
        allow_commands: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **loading)
        if epoch_images is not None:
            at_least(1, epoch_images=epoch_images)
        at_least(1, shuffle_buffer=shuffle_buffer)
        require_webdataset()
        self.train_shards = find_shards("train", train, allow_commands=allow_commands)
        self.val_shards = find_shards("val", val, allow_commands=allow_commands)
        self.allow_commands = allow_commands
        if both := set(self.train_shards) & set(self.val_shards):
            raise BadValue("val", f"val and train must not share shards, got {min(both)} in both")
        if epoch_images is None and any(map(is_url, self.train_shards)):
            raise BadValue("epoch_images", "epoch_images must be given, since train has URLs")
        self.train, self.val = train, val
        self.epoch_images, self.shuffle_buffer = epoch_images, shuffle_buffer
        self.counts: list[int] | None = None
        """Images of each training shard, if they are counted; known after `setup`."""
        self.resolution: int | None = None

    def load(self, resolution: int, *, train: bool = True) -> None:
        """Decode the val images, and with `train` count the training images.

        Raises:
            ValueError: a shard cannot be read or has no images, or a val image is unreadable
                under `raise`, or none is readable under `skip`.
        """
        if train and self.counts is None and self.epoch_images is None:
            with ThreadPoolExecutor(8) as pool:  # Threads wait for the disk, not for one another.
                self.counts = list(pool.map(count_images, self.train_shards))
            if not any(self.counts):
                raise BadValue("train", f"train: no images in {self.train}")
        if not self.fits(self.val_images, resolution):
            files = self._val_files()
            self.val_images = self.squares(files, resolution)
            if not len(self.val_images):
                raise ValueError(f"none of the {len(files)} images of {self.val} can be read")
        self.resolution = resolution

    def _val_files(self) -> list[Sample]:
        files: dict[str, Sample] = {}
        for shard in self.val_shards:
            for key, encoded in read_shard(shard):
                if key in files:  # Noise and figures go by the key.
                    raise BadValue("val", f"val: {files[key][1]} and {encoded} have the same key")
                files[key] = key, encoded
        if not files:
            raise BadValue("val", f"val: no images in {self.val}")
        return [files[key] for key in sorted(files)]

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.resolution is not None, "setup comes first"
        processes, rank = 1, 0
        if self.trainer:
            processes, rank = self.trainer.world_size, self.trainer.global_rank
        workers = self.num_workers
        if self.counts is None:
            each = len(self.train_shards) // processes
            if not each:
                raise BadValue(
                    "train",
                    f"train has {len(self.train_shards)} shards, fewer than the {processes} "
                    f"processes: make more, or leave out epoch_images",
                )
            workers = min(workers, each)
        shard_order = ShardOrder(
            self.train_shards,
            self.counts,
            self.epoch_images or sum(self.counts or ()),
            self.batch_size,
            processes,
            rank,
            1,
            self.shuffle_buffer,
            self.seed,
        )
        workers = useful_workers(workers, shard_order.batches)
        shard_order = replace(shard_order, streams=max(1, workers))  # One for each of them.
        batches = ShardBatches(
            shard_order, self.resolution, self.fit_mode, self.on_error, self.channels
        )
        order = BatchOrder(batches)
        if self.trainer:
            order.follow(self.trainer, len(batches))
        # By name, and without a batch size: the items are batches.
        return make_loader(batches, workers, in_memory=False, batch_size=None, sampler=order)

    def summary(self) -> dict[str, str | int]:
        """What a domain's card tells of its data: the shards' folder and the numbers of images."""
        first = self.train_shards[0]
        told = {"root": "shards" if is_url(first) else Path(first).resolve().parent.name}
        counted = {"train_images": sum(self.counts)} if self.counts else {}
        return {**told, **counted, "val_images": len(self.val_images or ())}
