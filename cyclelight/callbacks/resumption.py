"""Resumption: a fit goes on exactly where its checkpoint was saved."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class Resumption(Callback):
    """Puts right what Lightning 2.6 restores wrongly of the place where a checkpoint was saved.

    - After a batch that a validation follows, it leaves that validation out, and after an epoch's
      last batch the hooks of the epoch's end: here both are made up for.
    - After the hooks of an epoch's end, it calls them again, or, if there was no validation, takes
      the next epoch's first batch for one more of this epoch: here the next epoch begins.
    - It forgets the metrics that checkpoints are chosen by: here they are kept with the checkpoint.

    Other places, within an epoch or after a validation, it restores as they were. A fit whose last
    step is done is over for it, whatever was still due.
    """

    _after_batch = _last_batch = _after_epoch = False

    def __init__(self) -> None:
        self._metrics: dict[str, Tensor] = {}
        self._batches: float | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what was measured last, and the length of an epoch."""
        found = trainer.callback_metrics.items()
        checkpoint["callback_metrics"] = {name: value.cpu() for name, value in found}
        checkpoint["num_training_batches"] = trainer.num_training_batches

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Know the place by the counters, before the loops take them over."""
        self._metrics = checkpoint.get("callback_metrics", {})
        self._batches = checkpoint.get("num_training_batches")
        if "loops" not in checkpoint:
            return  # Weights alone, which Lightning refuses.
        progress = checkpoint["loops"]["fit_loop"]
        batches, epochs = progress["epoch_loop.batch_progress"], progress["epoch_progress"]
        self._after_batch = batches["total"]["completed"] < batches["total"]["processed"]
        self._after_epoch = epochs["total"]["completed"] < epochs["total"]["processed"]
        if self._after_batch:
            # Lightning would count the epoch as over.
            self._last_batch, batches["is_last_batch"] = batches["is_last_batch"], False
        if self._after_epoch:
            for counted in (epochs["total"], epochs["current"]):
                counted["completed"] = counted["processed"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now is it known what is due."""
        now = trainer.num_training_batches
        if self._batches not in (None, now):
            rank_zero_warn(
                f"an epoch has {now} batches here, and {self._batches} in the checkpoint: with "
                f"other images, batch size or processes a fit goes on, but not exactly"
            )
        loop = trainer.fit_loop.epoch_loop
        trainer.callback_metrics.update(self._metrics)
        if self._after_epoch:
            loop.restarting = False
        if self._after_batch:
            loop.batch_progress.is_last_batch = self._last_batch
            assert trainer.fit_loop._data_fetcher is not None
            if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
                loop.batch_progress.increment_completed()
                loop.update_restart_stage()
                loop.val_loop.batch_progress.current.reset()
                loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            elif self._last_batch:
                loop.batch_progress.increment_completed()
                loop.update_restart_stage()
                loop.val_loop._has_run = True
                loop._batches_that_stepped += 1
        self._after_batch = self._after_epoch = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After an epoch without a batch, Lightning would take the next one for restarted too."""
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting:
            loop.restarting = loop.val_loop._has_run = False
