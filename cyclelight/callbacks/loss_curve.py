"""LossCurve: the losses of a fit, noted as it runs, in `loss.csv` and `loss.png`."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from cyclelight.errors import first_line
from cyclelight.runs.curve import Curve
from cyclelight.runs.fit_folder import CURVE, CURVE_PICTURE


@runtime_checkable
class HasCurves(Protocol):
    """A module that says which of its figures to watch."""

    curves: tuple[str, str]
    """What it logs as the loss of training, and of validation."""


def curves_of(module: LightningModule) -> tuple[str, str]:
    """The names of a module's losses; of one that does not say, those of most."""
    return module.curves if isinstance(module, HasCurves) else ("train/loss", "val/loss")


class LossCurve(Callback):
    """Writes the curves with each validation and at the end; a fit that goes on continues them."""

    def __init__(self) -> None:
        self.curve = Curve()
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count steps."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of a step."""
        before, self._step = self._step, trainer.global_step
        loss = trainer.callback_metrics.get(curves_of(pl_module)[0])
        if self._step > before and loss is not None:
            rate = trainer.callback_metrics.get("train/learning_rate", float("nan"))
            self.curve.add(self._step, float(loss), float(rate))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the loss of a validation."""
        loss = trainer.callback_metrics.get(curves_of(pl_module)[1])
        if loss is not None and not trainer.sanity_checking:
            self.curve.add_validation(trainer.global_step, float(loss))
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        root = Path(trainer.default_root_dir)
        try:
            self.curve.write(root / CURVE, root / CURVE_PICTURE, curves_of(module))
        except OSError as error:
            rank_zero_warn(f"the curves of the losses are not written: {first_line(error)}")

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep."""
        return self.curve.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.curve = Curve.of(state_dict)
