"""AutoencoderModule: train the autoencoder of a latent space (`lightning fit`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import gaussian_like
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.autoencoder_folder import MARK, autoencoder_state, rebuild, save_autoencoder
from cyclelight.errors import at_least
from cyclelight.metrics.faithfulness import psnr
from cyclelight.modules.training import TrainingModule
from cyclelight.networks import arrange
from cyclelight.networks.autoencoder import AutoencoderSettings, build_autoencoder
from cyclelight.runs.sharding import shard

MEASURED = 1024
"""Training images from which the scaling factor is measured."""


class AutoencoderModule(TrainingModule):
    """An autoencoder of images, in whose latent space domains are trained afterwards.

    Domains translate into each other only if they share it: train it on the images of all of
    them. The fit ends by writing `autoencoder/` into the output folder: a diffusers AutoencoderKL
    folder with the averaged weights, whose `scaling_factor` brings the latents of the training
    images to unit variance. `DomainModule` takes it as `autoencoder`.

    Args:
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the autoencoder.
        kl_weight: weight of the Kullback-Leibler divergence of the posterior from N(0, I); the
            loss is (sum |x - x_hat| + kl_weight KL) / values of the image.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = "autoencoder", MARK
    curves = ("train/l1", "val/l1")

    def __init__(
        self,
        resolution: int = 64,
        channels: int = 3,
        network: AutoencoderSettings = AutoencoderSettings(),  # noqa: B008 (frozen)
        kl_weight: float = 1e-6,
        ema_decay: float = 0.999,
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, **training)
        at_least(1, resolution=resolution, channels=channels)
        at_least(0, kl_weight=kl_weight)
        self.resolution, self.channels, self.kl_weight = resolution, channels, kl_weight
        self.network = build_autoencoder(network, resolution=resolution, channels=channels)
        arrange(self.network)
        self.val_l1, self.val_psnr = MeanMetric(), MeanMetric()

    @property
    def trained_network(self) -> nn.Module:
        network: nn.Module = self.network
        return network

    def configure_model(self) -> None:
        """Shard the autoencoder, under the strategy fsdp2."""
        shard(self.network.children(), self.device_mesh)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        x, generator = self.training_images(batch, batch_idx)
        posterior = self.network.encode(x).latent_dist
        noise = gaussian_like(posterior.mean, generator)
        x_hat = self.network.decode(posterior.mean + posterior.std * noise).sample
        l1 = (x - x_hat).abs().mean()
        kl = posterior.kl().mean()  # summed over an image's latents
        self.log("train/l1", l1, prog_bar=True)
        self.log("train/kl", kl)
        return finite(l1 + self.kl_weight * kl / x[0].numel(), self.global_step)

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """The reconstructions of the real images."""
        made: Tensor = self.network.decode(self.network.encode(real).latent_dist.mode()).sample
        return made

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Reconstructions from the posterior's mean, as a domain will make them."""
        x = to_float(batch["image"])
        if not len(x):  # What a process without images gets.
            return
        x_hat = self.pictures(x, 0)
        pixels = to_uint8(x_hat)
        self.val_l1.update((x - x_hat).abs().mean(dim=(1, 2, 3)))
        self.val_psnr.update(psnr(pixels, batch["image"]))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over images of the absolute error and of the PSNR."""
        self.log("val/l1", self.val_l1)
        self.log("val/psnr", self.val_psnr, prog_bar=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self.log("test/l1", self.val_l1)
        self.log("test/psnr", self.val_psnr)

    @torch.no_grad()
    def finished(self, weights: Mapping[str, Tensor] | None = None) -> Autoencoder:
        """A copy of the autoencoder, its scaling factor set to 1 / std of training latents.

        Args:
            weights: those of the network, where it holds only a part of them.
        """
        state = autoencoder_state(self.network, self.card())
        if weights is not None:
            state["state_dict"] = weights
        copy, latents, seen = rebuild(state), [], 0
        for batch in self.trainer.train_dataloader or ():
            latents.append(copy.encode(to_float(batch["image"]).cpu()))
            seen += len(latents[-1])
            if seen >= MEASURED:
                break
        state["config"]["scaling_factor"] = 1 / float(torch.cat(latents).std())
        return rebuild(state)

    def card(self) -> dict[str, Any]:
        """What `autoencoder.json` says."""
        return {**super().card(), "kl_weight": self.kl_weight}

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the autoencoder folder."""
        return save_autoencoder(folder, self.finished(weights))
