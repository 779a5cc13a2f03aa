"""AutoencoderModule: train the autoencoder of a latent space (`lightning fit`)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import MeanMetric

from cyclelight.callbacks.ema import EMA
from cyclelight.callbacks.samples import log_images
from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import step_generator
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.autoencoder_folder import MARK, autoencoder_state, rebuild, save_autoencoder
from cyclelight.files import check_place
from cyclelight.metrics.faithfulness import psnr
from cyclelight.modules.training import LearningRates, Trained, check_settings, mirror, versions
from cyclelight.networks.autoencoder import AutoencoderSettings, build_autoencoder
from cyclelight.runs.sharding import shard, whole

log = logging.getLogger(__name__)

MEASURED = 1024
"""Training images from which the scaling factor is measured."""
SHOWN = 8


class AutoencoderModule(Trained):
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
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        lr_schedule: after the warm-up: constant, or a cosine down to 0 at the last step.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        flip: mirror training images left-right, each with probability 1/2.
        data_licence: licence of the training images, for the card.
        seed: seed of the posterior's draws and flips.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        resolution: int = 64,
        channels: int = 3,
        network: AutoencoderSettings = AutoencoderSettings(),  # noqa: B008 (frozen)
        kl_weight: float = 1e-6,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        warmup_steps: int = 500,
        lr_schedule: LearningRates = "constant",
        ema_decay: float = 0.999,
        flip: bool = True,
        data_licence: str = "not stated",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_settings(
            learning_rate,
            ema_decay,
            resolution=(resolution, 1),
            channels=(channels, 1),
            warmup_steps=(warmup_steps, 0),
            kl_weight=(kl_weight, 0),
        )
        self.resolution, self.kl_weight = resolution, kl_weight
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.lr_schedule = warmup_steps, lr_schedule
        self.ema_decay, self.flip, self.seed = ema_decay, flip, seed
        self.data_licence = data_licence
        self.network = build_autoencoder(network, resolution=resolution, channels=channels)
        # Convolutions are faster in this layout, on CPUs and GPUs alike.
        self.network.to(memory_format=torch.channels_last)
        self.val_l1, self.val_psnr = MeanMetric(), MeanMetric()

    def configure_model(self) -> None:
        """Shard the autoencoder, under the strategy fsdp2."""
        shard(self.network.children(), self.device_mesh)

    def configure_callbacks(self) -> list[Callback]:
        """The moving average."""
        return [EMA(self.ema_decay)]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One batch; what is random in it depends on (seed, step, batch, rank) alone."""
        x = to_float(batch["image"])
        generator = step_generator(self.seed, self.global_step, batch_idx, self.global_rank)
        if self.flip:
            x = mirror(x, generator)
        posterior = self.network.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        x_hat = self.network.decode(posterior.mean + posterior.std * noise).sample
        l1 = (x - x_hat).abs().mean()
        kl = posterior.kl().mean()  # summed over an image's latents
        self.log("train/l1", l1, prog_bar=True)
        self.log("train/kl", kl)
        return finite(l1 + self.kl_weight * kl / x[0].numel(), self.global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Reconstructions from the posterior's mean, as a domain will make them."""
        x = to_float(batch["image"])
        if not len(x):  # What a process without images gets.
            return
        x_hat = self.network.decode(self.network.encode(x).latent_dist.mode()).sample
        pixels = to_uint8(x_hat)
        self.val_l1.update((x - x_hat).abs().mean(dim=(1, 2, 3)))
        self.val_psnr.update(psnr(pixels, batch["image"]))
        if batch_idx == 0 and not self.trainer.sanity_checking:
            shown = torch.cat([x[:SHOWN], x_hat[:SHOWN].to(x)])
            log_images(self.trainer, "reconstructions", shown, columns=min(SHOWN, len(x)))

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
        """What `autoencoder.json` says: resolution, data and licence, steps, versions."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        return {
            "resolution": self.resolution,
            "data": datamodule.summary() if hasattr(datamodule, "summary") else {},
            "data_licence": self.data_licence,
            "steps": self.trainer.global_step,
            "kl_weight": self.kl_weight,
            "ema_decay": self.ema_decay,
            "versions": versions(),
        }

    def on_fit_start(self) -> None:
        """Refuse now, rather than at the end, to put it in the place of something else."""
        check_place(self._folder, *MARK)

    def on_fit_end(self) -> None:
        """Write the autoencoder folder; the weights are the averaged ones by now."""
        if self.trainer.interrupted:
            return
        weights = whole(self.network.state_dict())
        if not self.trainer.is_global_zero:
            return
        made = save_autoencoder(self._folder, self.finished(weights))
        log.info("Wrote the autoencoder to %s", made)

    @property
    def _folder(self) -> Path:
        """Where the autoencoder is written to."""
        return Path(self.trainer.default_root_dir) / "autoencoder"
