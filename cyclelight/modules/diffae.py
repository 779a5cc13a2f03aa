"""DiffAEModule: train a diffusion autoencoder (`lightning fit`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cyclelight.chains.diffae import SCHEDULE, make_images
from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import KeyedNoise, gaussian_like, keyed_generator
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.steps import add_noise
from cyclelight.domains.generator_folder import MARK, save_generator
from cyclelight.errors import BadValue, at_least
from cyclelight.modules.training import TrainingModule
from cyclelight.networks import arrange
from cyclelight.networks.diffae import DiffAESettings

STEPS = 20
"""Timesteps of the reconstructions that are shown while it trains."""


class DiffAEModule(TrainingModule):
    """Encoder and denoiser of a diffusion autoencoder (Preechakul et al. 2022).

    The fit ends by writing `generator/` into the output folder. It can reconstruct; to make images
    from noise it needs the latent prior, which `DiffAELatentModule` trains afterwards.

    Args:
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the networks.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        save_dtype: dtype of the weights in the generator folder.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = "generator", MARK

    def __init__(
        self,
        resolution: int = 32,
        channels: int = 3,
        network: DiffAESettings = DiffAESettings(),  # noqa: B008 (frozen)
        ema_decay: float = 0.999,
        save_dtype: Literal["float32", "float16"] = "float32",
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, **training)
        at_least(1, resolution=resolution, channels=channels)
        groups, width = network.norm_groups, network.num_channels
        if width <= groups:
            raise BadValue(
                "norm_groups",
                f"norm_groups must be below num_channels = {width}, got {groups}: norms of one "
                f"channel each take away what an image's colours are; try {max(1, width // 4)}",
            )
        self.resolution, self.channels, self.save_dtype = resolution, channels, save_dtype
        self.network = network.build(resolution=resolution, channels=channels)
        self.network.prior.requires_grad_(False)
        arrange(self.network)
        self.val_loss = MeanMetric()

    @property
    def trained_network(self) -> nn.Module:
        network: nn.Module = self.network
        return network

    def loss(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The squared error of the noise, given the image's own code (Eq. 3): (B,).

        Args:
            x_0: images (B, C, R, R) in [-1, 1].
            t: (B,) integers.
            noise: N(0, I), same shape as x_0.
        """
        x_t = add_noise(x_0, noise, SCHEDULE.alpha_bars(t).to(x_0))
        eps = self.network(x_t, t, self.network.encoder(x_0))
        return (eps.float() - noise).square().mean(dim=(1, 2, 3))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        x_0, random = self.training_images(batch, batch_idx)
        t = torch.randint(SCHEDULE.timesteps, (len(x_0),), generator=random).to(x_0.device)
        loss = self.loss(x_0, t, gaussian_like(x_0, random)).mean()
        self.log("train/loss", loss, prog_bar=True)
        return finite(loss, self.global_step)

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """The real images from their codes; the i-th always from the same noise."""
        x_T = KeyedNoise(self.seed, range(first, first + len(real)))("start", 0, real)
        return make_images(self.network, x_T, self.network.encoder(real), STEPS)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Each image at one timestep, which depends on its key alone."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        x_0, noise = to_float(batch["image"]), KeyedNoise(self.seed, batch["key"])
        t = [
            torch.randint(
                SCHEDULE.timesteps, (), generator=keyed_generator(self.seed, key, "val", 0)
            )
            for key in batch["key"]
        ]
        self.val_loss.update(self.loss(x_0, torch.stack(t).to(x_0.device), noise("val", 1, x_0)))

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss."""
        self.log("val/loss", self.val_loss, prog_bar=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self.log("test/loss", self.val_loss)

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the generator folder."""
        dtype = getattr(torch, self.save_dtype)
        card = {**self.card(), "latent_prior": False}
        return save_generator(folder, self.network, card, dtype=dtype, weights=weights)
