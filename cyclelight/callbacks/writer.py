"""Images that a run makes to files."""

from collections.abc import Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cyclelight.runs.folder import RunFolder
from cyclelight.runs.plan import Plan, Planner
from datamodules.predict_data import PredictData, predict_data

PIXELS = ("image", "mask")
"""What a batch has and a manifest has not."""


class ImageWriter(Planner):
    """Writes each image of a `Task` to the run folder, while the next batch is being made.

    The folder is the trainer's `default_root_dir`, or one below. With several processes each writes
    its own images. What an earlier run has finished in the same folder is not made again.

    Args:
        overwrite: begin anew: remove what an earlier run left, and make everything.
        part: which part of the task, see `Task.parts`: each has a writer of its own.
    """

    def __init__(self, overwrite: bool = False, part: str = "") -> None:
        self.overwrite, self.part = overwrite, part
        self._threads = ThreadPoolExecutor(thread_name_prefix="writer")
        self._writing: list[Future[None]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Here rather than later, so that a bad output folder stops the run before models load."""
        if stage != "predict":
            return
        data = predict_data(trainer)
        folder = RunFolder(self.root(trainer), data.keys)
        done = frozenset() if self.overwrite else self._done(trainer, data, folder)
        self.plan = Plan(folder, data.loaded.keys, data.groups(), done)

    def _done(self, trainer: Trainer, data: PredictData, folder: RunFolder) -> Set[str]:
        """What an earlier run has finished, but for images whose sources have changed."""
        if trainer.is_global_zero:
            others = folder.open_manifest()
            if others:
                rank_zero_warn(
                    f"{folder.root} holds {others} images of an earlier run that this one does not "
                    f"make; they stay there and in its manifest"
                )
        trainer.strategy.barrier()
        # No process begins before all are past the next barrier, when the loaders are made. That
        # the images are there was seen to already, by one process for all.
        known = {entry["key"] for entry in folder.entries()}
        changed = data.loaded.changed(folder.entries())
        if changed:
            rank_zero_warn(
                f"{len(changed)} images, such as {min(changed)}, are other ones than those that "
                f"{folder.root} has results of: these are made again"
            )
        if changed and trainer.is_global_zero:  # The others have read it: `changed` is of them all.
            folder.forget(changed)
        return known - changed

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is to be overwritten only now, when all that may fail is loaded."""
        if self.overwrite:
            if trainer.is_global_zero:
                self._folder.clear()
            trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin to write the images of a batch, when those of the last one are written."""
        images = self.share(pl_module, outputs)
        assert len(images) == len(batch["key"])
        self._finish()
        seed = self.task(pl_module).seed
        fields = {name: values for name, values in batch.items() if name not in PIXELS}
        for index, image in enumerate(images.cpu()):
            entry = {name: values[index] for name, values in fields.items()}
            self._writing.append(self._threads.submit(self._write, image, entry, seed))

    def _write(self, image: Tensor, entry: dict[str, Any], seed: int) -> None:
        self._folder.write_image(entry["key"], image)
        # After the image, so that what the manifest lists is there.
        self._folder.add_to_manifest(
            entry.pop("key"), entry.pop("path"), entry.pop("digest"), seed, entry
        )

    def _finish(self) -> None:
        """Wait until all is written; what failed in writing is raised."""
        writing, self._writing = self._writing, []
        for image in writing:
            image.result()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """What was made is kept."""
        with suppress(Exception):  # The first reason is the one to tell.
            self._finish()

    @property
    def _folder(self) -> RunFolder:
        assert self.plan is not None, "setup comes first"
        return self.plan.folder

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the manifest, when all processes have written their last image."""
        self._finish()
        self._threads.shutdown()  # Before others start processes, who would inherit them.
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._folder.close_manifest()
            lost = self._folder.unlisted()
            if lost:
                raise RuntimeError(
                    f"the manifest lacks {len(lost)} images that were written, such as {lost[0]}: "
                    f"the file system loses lines of several machines; run again"
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell what a limit of the trainer has left out: else half a run would look whole."""
        if self.plan is None or not trainer.is_global_zero:
            return
        made = {entry["key"] for entry in self._folder.entries()}
        left = len(set(self.plan.keys) - made)
        if left:
            rank_zero_warn(
                f"{left} of {len(self.plan.keys)} images were not made: "
                f"trainer.limit_predict_batches ({trainer.limit_predict_batches}) left them out; "
                f"the same command without it makes them"
            )
