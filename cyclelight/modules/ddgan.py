"""DDGANModule: train a denoising diffusion GAN (`lightning fit`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from cyclelight.chains.ddgan import generate
from cyclelight.diffusion.ddgan import DDGANSchedule
from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import KeyedNoise, gaussian_like
from cyclelight.diffusion.pixels import to_float
from cyclelight.domains.generator_folder import MARK, save_generator
from cyclelight.errors import at_least
from cyclelight.modules.training import TrainingModule
from cyclelight.networks import arrange
from cyclelight.networks.ddgan import DDGANSettings
from cyclelight.networks.discriminator import Discriminator

BETAS = (0.5, 0.9)
"""Of Adam, as published."""


class DDGANModule(TrainingModule):
    """A denoising diffusion GAN of one kind of image (Xiao, Kreis and Vahdat 2022).

    The fit ends by writing `generator/` into the output folder, the generator's averaged weights.

    Generator and discriminator learn in turns: a batch is two optimizer steps, and so they are
    counted by `trainer.max_steps` and `warmup_steps`. Several processes take the strategy
    `ddp_find_unused_parameters_true`.

    Args:
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the generator.
        discriminator_width: channels of the discriminator at the finest resolution.
        discriminator_rate: peak learning rate of the discriminator.
        r1_weight: weight of the penalty on the discriminator's gradient at real images (Mescheder
            et al. 2018).
        r1_every: batches from one penalty to the next; it weighs so many times more.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        learning_rate: peak learning rate of the generator.
        save_dtype: dtype of the weights in the generator folder.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = "generator", MARK
    curves = ("train/generator", "val/x_0_error")
    automatic_optimization = False

    def __init__(
        self,
        resolution: int = 32,
        channels: int = 3,
        network: DDGANSettings = DDGANSettings(),  # noqa: B008 (frozen)
        discriminator_width: int = 64,
        discriminator_rate: float = 1.25e-4,
        r1_weight: float = 0.02,
        r1_every: int = 15,
        ema_decay: float = 0.999,
        learning_rate: float = 1.6e-4,
        save_dtype: Literal["float32", "float16"] = "float32",
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, learning_rate, **training)
        at_least(1, resolution=resolution, channels=channels, r1_every=r1_every)
        at_least(0, r1_weight=r1_weight)
        at_least(1e-12, discriminator_rate=discriminator_rate)
        self.resolution, self.channels = resolution, channels
        self.discriminator_rate = discriminator_rate
        self.r1_weight, self.r1_every = r1_weight, r1_every
        self.save_dtype = save_dtype
        self.schedule = DDGANSchedule(network.timesteps, network.beta_min, network.beta_max)
        self.latent_size = network.latent_size
        self.generator = network.build(resolution=resolution, channels=channels)
        self.discriminator = Discriminator(channels, discriminator_width)
        arrange(self.generator)
        arrange(self.discriminator)
        self.val_error = MeanMetric()

    @property
    def trained_network(self) -> nn.Module:
        return self.generator

    def configure_optimizers(self) -> Any:
        """AdamW for the generator and for the discriminator, in this order."""
        kinds = (
            (self.generator, self.learning_rate),
            (self.discriminator, self.discriminator_rate),
        )
        return [
            torch.optim.AdamW(part.parameters(), rate, BETAS, weight_decay=self.weight_decay)
            for part, rate in kinds
        ]

    def on_train_start(self) -> None:
        """The learning rates are set at each step, from the present settings."""
        self.factor = self.rate_factor()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One step of the discriminator, then one of the generator."""
        x_0, random = self.training_images(batch, batch_idx)
        optimizers: Any = self.optimizers()
        by_generator, by_discriminator = optimizers
        factor = self.factor(self.global_step)
        for optimizer, rate in (
            (by_generator, self.learning_rate),
            (by_discriminator, self.discriminator_rate),
        ):
            (group,) = optimizer.optimizer.param_groups
            group["lr"], group["weight_decay"] = rate * factor, self.weight_decay

        t, x_t, x_next = self._pair(x_0, random)
        real = self.discriminator(x_t, t, x_next)
        with torch.no_grad():
            fake_x_t = self._fake(x_next, t, random)
        fake = self.discriminator(fake_x_t, t, x_next)
        loss = F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()
        if self.r1_weight and self.global_step // 2 % self.r1_every == 0:
            penalty = self._gradient_penalty(x_t, t, x_next)
            loss = loss + self.r1_weight / 2 * self.r1_every * penalty
            self.log("train/r1", penalty)
        self._learn(by_discriminator, loss)
        self.log("train/discriminator", loss)

        t, _, x_next = self._pair(x_0, random)
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(self._fake(x_next, t, random), t, x_next)
        loss = F.softplus(-logits.float()).mean()
        self._learn(by_generator, loss)
        self.discriminator.requires_grad_(True)
        self.log("train/generator", loss, prog_bar=True)

    def _learn(self, optimizer: Any, loss: Tensor) -> None:
        finite(loss, self.global_step)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def _pair(self, x_0: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(t, x_t, x_{t+1}) of images at random timesteps."""
        t = torch.randint(self.schedule.timesteps, (len(x_0),), generator=random).to(x_0.device)
        x_t = self.schedule.add_noise(x_0, t, gaussian_like(x_0, random))
        return t, x_t, self.schedule.forward_step(x_t, t, gaussian_like(x_0, random))

    def _fake(self, x_next: Tensor, t: Tensor, random: torch.Generator) -> Tensor:
        z = gaussian_like(x_next.new_empty(len(x_next), self.latent_size), random)
        x_0 = self.generator(x_next, t, z).float()
        return self.schedule.posterior(x_0, x_next, t, gaussian_like(x_next, random))

    def _gradient_penalty(self, x_t: Tensor, t: Tensor, x_next: Tensor) -> Tensor:
        """Mean of |dD/dx_t|^2 at real images, in float32 whatever the trainer's precision."""
        with torch.autocast(x_t.device.type, enabled=False):
            x_t = x_t.detach().requires_grad_(True)
            logits = self.discriminator(x_t, t, x_next).sum()
            (gradient,) = torch.autograd.grad(logits, x_t, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """Samples (B, C, R, R) in [-1, 1]; the i-th has always the same noise."""
        count = len(real)
        schedule, noise = self.schedule, KeyedNoise(self.seed, range(first, first + count))
        x_T = torch.zeros(count, self.channels, self.resolution, self.resolution)
        x_T = x_T.to(self.device)
        steps = range(schedule.timesteps)
        latents = [noise("latent", i, x_T.new_empty(count, self.latent_size)) for i in steps]
        noises = [noise("noise", i, x_T) for i in steps[1:]]
        states = generate(
            self.generator,
            schedule,
            noise("start", schedule.timesteps, x_T),
            torch.stack(latents),
            torch.stack(noises) if noises else x_T[None],
        )
        return list(states)[-1][1]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """How far x_0 is from the image itself, from the first noise level."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        x_0, noise = to_float(batch["image"]), KeyedNoise(self.seed, batch["key"])
        t = torch.zeros(len(x_0), dtype=torch.long, device=x_0.device)
        x_next = self.schedule.add_noise(x_0, t + 1, noise("validation", 0, x_0))
        z = noise("latent", 0, x_0.new_empty(len(x_0), self.latent_size))
        error = self.generator(x_next, t, z) - x_0
        self.val_error.update(error.square().mean(dim=(1, 2, 3)))

    def on_validation_epoch_end(self) -> None:
        """Log that error, mean over images."""
        self.log("val/x_0_error", self.val_error, prog_bar=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self.log("test/x_0_error", self.val_error)

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the generator folder."""
        dtype = getattr(torch, self.save_dtype)
        return save_generator(folder, self.generator, self.card(), dtype=dtype, weights=weights)
