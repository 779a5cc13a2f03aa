"""SampleGrid: a picture of what the domain looks like so far, in TensorBoard."""

from typing import Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

from cyclelight.chains.sample import sample
from cyclelight.diffusion.pixels import to_uint8
from cyclelight.domains.domain import Domain

COUNT, STEPS = 16, 50


@runtime_checkable
class HasDomain(Protocol):
    """A module that trains a domain."""

    @property
    def domain(self) -> Domain:
        """As it is now."""


def domain_of(module: LightningModule) -> Domain:
    """The domain that a module trains.

    Raises:
        ValueError: it trains none.
    """
    if not isinstance(module, HasDomain):
        name = type(module).__name__
        raise ValueError(f"{name} has no domain to sample: set scores.samples to 0")
    return module.domain


class SampleGrid(Callback):
    """Log 16 samples (50 steps, eta 1, always the same noise) with every n-th validation.

    Args:
        every_n_epochs: how many epochs apart.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample here, where the moving average stands in for the weights."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if trainer.sanity_checking or not due or not trainer.is_global_zero:
            return
        domain = domain_of(pl_module)
        images = sample(domain, COUNT, steps=min(STEPS, domain.schedule.timesteps))
        log_images(trainer, "samples", images, columns=4)


def log_images(trainer: Trainer, name: str, images: Tensor, *, columns: int) -> None:
    """A grid of images (B, C, H, W) in [-1, 1] in every TensorBoard log of the trainer."""
    grid = make_grid(torch.as_tensor(to_uint8(images)).permute(0, 3, 1, 2), nrow=columns)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, grid, trainer.global_step)
