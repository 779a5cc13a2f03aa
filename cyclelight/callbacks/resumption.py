"""Resumption: a fit goes on exactly where its checkpoint was saved."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class Resumption(Callback):
    """Puts right what Lightning 2.6 restores wrongly of the place where a checkpoint was saved.

    - After a batch that a validation follows, it leaves that validation out, and after an epoch's
      last batch the hooks of the epoch's end: here both are made up for.
    - After the hooks of an epoch's end, it calls them again, or, if there was no validation, takes
      the next epoch's first batch for one more of this epoch: here the next epoch begins.
    - It forgets the metrics that checkpoints are chosen by, and which `ModelCheckpoint` waits for
      them: here they are kept with the checkpoint.
    - It leaves out what a `ReduceLROnPlateau` would have done at that epoch's end: here it does it.
    - It goes on though an `EarlyStopping` has run out of patience: here it ends.

    Not restored: gradients, if a checkpoint was saved amid the batches of one step, of which a
    warning tells; an epoch's mean of a training metric, which is that of the batches since. A fit
    that has done its last step (`max_steps`) is over, whatever was still due.

    `lightning fit` has it; a Trainer of one's own takes it as the first of its callbacks.
    """

    _after_batch = _last_batch = _after_epoch = False

    def __init__(self) -> None:
        self._metrics: dict[str, Tensor] = {}
        self._batches: float | None = None
        self._waiting: dict[str, bool] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what was measured last, the length of an epoch, and who waits for a validation."""
        found = trainer.callback_metrics.items()
        checkpoint["callback_metrics"] = {name: value.cpu() for name, value in found}
        checkpoint["num_training_batches"] = trainer.num_training_batches
        checkpoint["waiting"] = {
            callback.state_key: callback._defer_save_until_validation
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint)
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Know the place by the counters, before the loops take them over."""
        self._metrics = checkpoint.get("callback_metrics", {})
        self._batches = checkpoint.get("num_training_batches")
        self._waiting = checkpoint.get("waiting", {})
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
        self._warn(trainer)
        trainer.callback_metrics.update(self._metrics)
        # Only its resetting, which is over, should have asked; the epoch's end asks, too.
        trainer.fit_loop._restarting = False
        for stopping in trainer.early_stopping_callbacks:
            if isinstance(stopping, EarlyStopping) and stopping.wait_count >= stopping.patience:
                trainer.should_stop = True
        if self._after_batch or self._after_epoch:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    waits = self._waiting.get(callback.state_key, False)
                    callback._defer_save_until_validation = waits
        if self._after_batch:
            self._make_up_for_validation(trainer)
        elif self._after_epoch:
            self._begin_epoch(trainer)
        self._after_batch = self._after_epoch = False

    def _warn(self, trainer: Trainer) -> None:
        """Of what cannot be restored."""
        progress, now = trainer.fit_loop.epoch_loop.batch_progress, trainer.num_training_batches
        if self._batches not in (None, now):
            rank_zero_warn(
                f"an epoch has {now} batches here, and {self._batches} in the checkpoint: with "
                f"other images, batch size or processes a fit goes on, but not exactly, and a "
                f"validation may be left out"
            )
        last = progress.is_last_batch or self._last_batch
        if progress.current.ready % trainer.accumulate_grad_batches and not last:
            rank_zero_warn(
                "the checkpoint was saved amid the batches of one step, whose gradients are lost: "
                "the fit goes on, but not exactly"
            )

    def _make_up_for_validation(self, trainer: Trainer) -> None:
        """Or for the end of the epoch, if one of them follows the batch that was done."""
        loop = trainer.fit_loop.epoch_loop
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

    def _begin_epoch(self, trainer: Trainer) -> None:
        """The next one, after what was left to do at the end of the last one."""
        loop, epoch = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
        loop.restarting = False
        if loop._num_ready_batches_reached():
            epoch.completed -= 1  # As it is at this place without a restart.
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            epoch.completed += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After an epoch without a batch, Lightning would take the next one for restarted too."""
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting:
            loop.restarting = loop.val_loop._has_run = False
