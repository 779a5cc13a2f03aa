"""What the trainings here share: AdamW with its learning rates, flips, versions for the card."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any, Literal

import diffusers
import lightning
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import Parameter

LearningRates = Literal["constant", "cosine"]


def check_settings(learning_rate: float, ema_decay: float, **at_least: tuple[float, int]) -> None:
    """Raises ValueError, naming the argument, unless all are in range.

    `at_least` holds (value, least value) by name.
    """
    for argument, (value, least) in at_least.items():
        if not value >= least:
            raise ValueError(f"{argument} must be at least {least}, got {value}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")


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


def adamw(
    parameters: Iterable[Parameter],
    trainer: Trainer,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    lr_schedule: LearningRates,
) -> Any:
    """What `configure_optimizers` returns: a linear warm-up, then constant or a cosine down to 0.

    Raises:
        ValueError: a cosine without an end.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    last = trainer.estimated_stepping_batches
    if lr_schedule == "cosine" and last == float("inf"):
        raise ValueError("lr_schedule 'cosine' needs an end: set trainer.max_steps or max_epochs")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if lr_schedule == "constant":
            return 1.0
        done = (step - warmup_steps) / max(1, last - warmup_steps)
        return 0.5 * (1 + cos(pi * min(1.0, done)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }
