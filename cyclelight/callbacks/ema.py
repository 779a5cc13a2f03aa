"""EMA: Lightning's weight averaging with a decay that ramps up, and with sharded modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cyclelight.runs.sharding import assemble, is_sharded, load_whole, scatter, whole


class EMA(WeightAveraging):
    """Exponential moving average of the weights.

    After the n-th update the decay is min(decay, (1 + n) / (10 + n)), so that short runs are not
    ruled by their first steps. Validation, samples and the end of the fit see the averaged weights;
    a checkpoint's `state_dict` holds them, `current_model_state` the raw ones.

    Of a sharded module the average is sharded alike, and updated shard by shard.

    Args:
        decay: the final decay, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
            n = float(updates)
            ramped = min(decay, (1 + n) / (10 + n))
            move = get_ema_multi_avg_fn(ramped)  # type: ignore[no-untyped-call]
            move(tuple(averaged), tuple(current), updates)

        # Averaging buffers would average integer counters too. All weights at once, since a GPU
        # would have to be waited for at each.
        super().__init__(use_buffers=False, multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module before it is sharded, since afterwards it cannot be; shard the copy."""
        if stage == "fit":
            # The module is on the CPU still. Were the average to stay there, each step would wait
            # for all weights to be sent to it; what is sharded moves when it is.
            mesh, there = pl_module.device_mesh, trainer.strategy.root_device
            device = there if mesh is None else pl_module.device
            self._average_model = AveragedModel(
                pl_module, device, use_buffers=self._use_buffers, **self._kwargs
            )
            copy: Any = self._average_model.module
            copy.configure_model()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the averages stand in; whole, as processes may validate different numbers of times.

        Samples are drawn by the first process alone, even.
        """
        super().on_validation_epoch_start(trainer, pl_module)
        assemble(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the weights, sharded first: those that were assembled are copies."""
        scatter(pl_module)
        super().on_validation_epoch_end(trainer, pl_module)

    @contextmanager
    def averaged(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """The averages stand in meanwhile, whole, as in validation."""
        self.on_validation_epoch_start(trainer, pl_module)
        try:
            yield
        finally:
            self.on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not yet: a checkpoint of this moment has the weights as they were trained, too."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The averages take the place of the weights, even if a resumed fit had no step to do."""
        self._copy_average_to_current(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the averages beside the weights, which the strategy has put together already."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = whole(checkpoint["state_dict"])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Averages and weights to where they belong."""
        if not is_sharded(pl_module):
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
            return
        assert self._average_model is not None
        load_whole(self._average_model.module, checkpoint["state_dict"])
        load_whole(pl_module, checkpoint["current_model_state"])
        self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
