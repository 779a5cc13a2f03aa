"""DiffAELatentModule: train the latent prior of a diffusion autoencoder (`lightning fit`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cyclelight.chains.diffae import code_denoiser, make_codes, make_images
from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import KeyedNoise, gaussian_like, keyed_generator
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.steps import add_noise
from cyclelight.domains.generator_folder import MARK, load_generator, save_generator
from cyclelight.errors import BadValue
from cyclelight.modules.training import TrainingModule
from cyclelight.networks.diffae import DiffusionAutoencoder

MEASURED = 8192
"""Training images from which mean and standard deviation of the codes are measured, at the most."""
STEPS = 20


class DiffAELatentModule(TrainingModule):
    """A denoiser of a diffusion autoencoder's codes (Preechakul et al. 2022, sec. 4).

    The fit ends by writing `generator/` into the output folder: the autoencoder as it was, with the
    prior, which makes codes of noise.

    Args:
        generator: the folder of the autoencoder, such as DiffAEModule's `generator/`.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        save_dtype: dtype of the weights in the generator folder.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range, or the generator is no diffusion autoencoder.
        FileNotFoundError: `generator` does not exist.
    """

    product, mark = "generator", MARK

    def __init__(
        self,
        generator: str,
        ema_decay: float = 0.999,
        save_dtype: Literal["float32", "float16"] = "float32",
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, **training)
        network, self.given_card = load_generator(generator)
        if not isinstance(network, DiffusionAutoencoder):
            raise BadValue(
                "generator",
                f"generator: {generator} must hold a diffusion autoencoder, "
                f"not a {type(network).__name__}",
            )
        self.network = network
        # All in training mode, or Lightning warns; what is used of the others has no dropout.
        self.network.train()
        self.network.prior.requires_grad_(True)
        self.resolution = network.config.sample_size
        self.channels = network.config.in_channels
        self.save_dtype = save_dtype
        self.schedule = code_denoiser(network).schedule
        self.statistics: tuple[Tensor, Tensor] | None = None
        self.val_loss = MeanMetric()

    @property
    def trained_network(self) -> nn.Module:
        network: nn.Module = self.network
        return network

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Measure mean and standard deviation of the training images' codes."""
        super().on_train_start()
        codes: list[Tensor] = []
        for batch in self.trainer.train_dataloader or ():
            codes.append(self.network.encoder(to_float(batch["image"]).to(self.device)))
            if sum(map(len, codes)) >= MEASURED:
                break
        code = torch.cat(codes).double()
        self.statistics = code.mean(dim=0).float(), code.std(dim=0).clamp(min=1e-6).float()

    def loss(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The absolute error of the noise in the images' normalised codes (Eq. 9): (B,).

        Args:
            x_0: images (B, C, R, R) in [-1, 1].
            t: (B,) integers.
            noise: N(0, I), (B, code_size).
        """
        assert self.statistics is not None
        mean, std = self.statistics
        with torch.no_grad():
            z_0 = (self.network.encoder(x_0).float() - mean) / std
        z_t = add_noise(z_0, noise, self.schedule.alpha_bars(t)[:, :, 0, 0].to(z_0))
        return (self.network.prior(z_t, t).float() - noise).abs().mean(dim=1)

    def _noise_shape(self, count: int) -> Tensor:
        return torch.zeros(count, self.network.config.code_size, device=self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        x_0, random = self.training_images(batch, batch_idx)
        t = torch.randint(self.schedule.timesteps, (len(x_0),), generator=random).to(x_0.device)
        loss = self.loss(x_0, t, gaussian_like(self._noise_shape(len(x_0)), random)).mean()
        self.log("train/loss", loss, prog_bar=True)
        return finite(loss, self.global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Each image at one timestep, which depends on its key alone."""
        if not len(batch["image"]) or self.statistics is None:
            return  # What a process without images gets; before the training nothing is measured.
        x_0, noise = to_float(batch["image"]), KeyedNoise(self.seed, batch["key"])
        T = self.schedule.timesteps
        t = [
            torch.randint(T, (), generator=keyed_generator(self.seed, key, "val", 0))
            for key in batch["key"]
        ]
        z = noise("val", 1, self._noise_shape(len(x_0)))
        self.val_loss.update(self.loss(x_0, torch.stack(t).to(x_0.device), z))

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss."""
        if self.statistics is None:
            return
        self.log("val/loss", self.val_loss, prog_bar=True)

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """Samples (B, C, R, R) near [-1, 1]; the i-th has always the same noise."""
        assert self.statistics is not None
        count = len(real)
        noise, config = KeyedNoise(self.seed, range(first, first + count)), self.network.config
        z = make_codes(self.network, noise("latent", 0, self._noise_shape(count)), STEPS)
        shape = (count, config.in_channels, self.resolution, self.resolution)
        x_T = noise("start", 0, torch.zeros(shape, device=self.device))
        mean, std = self.statistics
        # The network's own statistics are those of an earlier fit, until it is written.
        z = (z - self.network.code_mean) / self.network.code_std * std + mean
        return make_images(self.network, x_T, z, STEPS)

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the generator folder."""
        dtype = getattr(torch, self.save_dtype)
        card = {**self.card(), "latent_prior": True, "autoencoder": self.given_card}
        if self.statistics is not None:
            weights = {**weights, "code_mean": self.statistics[0], "code_std": self.statistics[1]}
        return save_generator(folder, self.network, card, dtype=dtype, weights=weights)
