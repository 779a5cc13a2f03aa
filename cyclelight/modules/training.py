"""What the trainings here share: AdamW with its learning rates, flips, versions for the card."""

from collections.abc import Mapping
from math import cos, pi
from typing import Any, Literal

import diffusers
import lightning
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from cyclelight.errors import about

LearningRates = Literal["constant", "cosine"]


def check_settings(learning_rate: float, ema_decay: float, **at_least: tuple[float, int]) -> None:
    """Raises ValueError, naming the argument, unless all are in range.

    `at_least` holds (value, least value) by name.
    """
    for argument, (value, least) in at_least.items():
        if not value >= least:
            raise about(argument, ValueError(f"{argument} must be at least {least}, got {value}"))
    if not learning_rate > 0:
        raise about(
            "learning_rate", ValueError(f"learning_rate must be above 0, got {learning_rate}")
        )
    if not 0 <= ema_decay < 1:
        raise about("ema_decay", ValueError(f"ema_decay must be in [0, 1), got {ema_decay}"))


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) flipped left-right with probability 1/2; `generator` is a CPU's."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)


def versions() -> dict[str, str]:
    """Versions of the libraries that a model was trained with."""
    return {
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "diffusers": diffusers.__version__,
    }


class Rates(LambdaLR):
    """The learning rates of `Trained`, by a name of their own to be told from a subclass's."""


class Trained(LightningModule):
    """A module that learns by AdamW: a linear warm-up, then constant or a cosine down to 0.

    A fit that goes on takes these settings as they are now, not as its checkpoint has them.
    """

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    lr_schedule: LearningRates

    def configure_optimizers(self) -> Any:
        """For all parameters; the learning rate changes with each step.

        Raises:
            ValueError: a cosine without an end.
        """
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        last = self._last_step() if self.lr_schedule == "cosine" else 0

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.lr_schedule == "constant":
                return 1.0
            done = (step - self.warmup_steps) / max(1, last - self.warmup_steps)
            return 0.5 * (1 + cos(pi * min(1.0, done)))

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": Rates(optimizer, factor), "interval": "step"},
        }

    def _last_step(self) -> float:
        """Raises ValueError if there is none."""
        loop = self.trainer.fit_loop
        loader = loop._combined_loader
        last = self.trainer.estimated_stepping_batches
        # It has made the loader, to count, before a checkpoint tells where in an epoch to begin.
        loop._combined_loader = loader
        if last == float("inf"):
            raise about(
                "lr_schedule",
                ValueError(
                    "lr_schedule 'cosine' needs an end: set trainer.max_steps or max_epochs"
                ),
            )
        return last

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's weights, in one line; torch has one for each of them.

        Raises:
            ValueError: names or shapes differ.
        """
        if not self.strict_loading:
            return
        there, here = shapes(checkpoint["state_dict"]), shapes(self.state_dict())
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"the checkpoint is of another network: {name} is {there.get(name, 'missing')} "
                    f"there, {here.get(name, 'missing')} here; take the settings of that fit, "
                    f"which its config.yaml has"
                )

    def on_train_start(self) -> None:
        """Put the present settings in place of those that a checkpoint has brought back."""
        scheduler = self.lr_schedulers()
        if not isinstance(scheduler, Rates):  # A subclass with an optimizer of its own.
            return
        scheduler.base_lrs = [self.learning_rate]
        (group,) = scheduler.optimizer.param_groups
        group["initial_lr"], group["weight_decay"] = self.learning_rate, self.weight_decay
        group["lr"] = self.learning_rate * scheduler.lr_lambdas[0](scheduler.last_epoch)


def shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
