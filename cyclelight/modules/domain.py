"""DomainModule: train the diffusion model of one domain (`lightning fit`)."""

import logging
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

import diffusers
import lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import ModuleDict
from torchmetrics import MeanMetric

from cyclelight.callbacks.ema import EMA
from cyclelight.callbacks.samples import SampleGrid
from cyclelight.denoiser import NetworkDenoiser, PredictionType, eps_from_output
from cyclelight.domain import Domain
from cyclelight.domain_folder import (
    CHECKPOINT_ENTRY,
    check_domain_path,
    load_domain,
    save_domain,
    unet_config,
)
from cyclelight.loss import Weighting, finite, loss_weight
from cyclelight.networks.unet import UNetSettings, build_unet, resize_unet
from cyclelight.noise import keyed_generator, step_generator
from cyclelight.schedule import NoiseSchedule
from cyclelight.steps import add_noise

log = logging.getLogger(__name__)

LEVELS = 5
"""Validation reports the loss in this many equal ranges of timesteps."""


class DomainModule(LightningModule):
    """A diffusion model of one image domain, trained on the noise-prediction loss.

    The fit ends by writing `domain/` into the output folder: a diffusers DDPMPipeline folder with
    the averaged weights, ready for `load_domain` and for the translation.

    Args:
        name: what the domain is called: cat, dog, ...
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the UNet.
        schedule: the noise schedule; domains translate into each other only if they share it.
        prediction_type: what the network outputs; the loss is on the noise that it implies.
        weighting: weight of the loss over noise levels: uniform, p2 or min_snr.
        init_from: start from another domain's network: a domain folder or a checkpoint. Its
            architecture, schedule and prediction type are taken over too, in place of `network`,
            `schedule` and `prediction_type`. Its resolution may differ: what was learned at 32
            pixels is a good start for 48 or 64.
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        lr_schedule: after the warm-up: constant, or a cosine down to 0 at the last step.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        flip: mirror training images left-right, each with probability 1/2.
        sample_every_n_epochs: how often a grid of samples goes to TensorBoard; 0 for never.
        data_licence: licence of the training images, for the card in `domain.json`.
        save_dtype: dtype of the weights in the domain folder.
        seed: seed of timesteps, noise and flips in training, and of validation and samples.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: `init_from` does not exist.
    """

    def __init__(
        self,
        name: str = "domain",
        resolution: int = 64,
        channels: int = 3,
        network: UNetSettings = UNetSettings(),  # noqa: B008 (frozen)
        schedule: NoiseSchedule = NoiseSchedule(),  # noqa: B008 (frozen)
        prediction_type: PredictionType = "epsilon",
        weighting: Weighting = "p2",
        init_from: str | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        warmup_steps: int = 500,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        ema_decay: float = 0.9999,
        flip: bool = True,
        sample_every_n_epochs: int = 10,
        data_licence: str = "not stated",
        save_dtype: Literal["float32", "float16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for argument, value, least in (
            ("resolution", resolution, 1),
            ("channels", channels, 1),
            ("warmup_steps", warmup_steps, 0),
            ("sample_every_n_epochs", sample_every_n_epochs, 0),
        ):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
        self.name, self.resolution, self.channels = name, resolution, channels
        self.weighting, self.flip, self.seed = weighting, flip, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.lr_schedule = warmup_steps, lr_schedule
        self.ema_decay = ema_decay
        self.sample_every_n_epochs = sample_every_n_epochs
        self.data_licence, self.save_dtype = data_licence, save_dtype
        self.ancestor: str | None = None
        if init_from is None:
            unet = build_unet(network, resolution=resolution, channels=channels)
            self.denoiser = NetworkDenoiser(unet, schedule, prediction_type=prediction_type)
        else:
            self.denoiser = self._start_from(init_from)
        # Convolutions are faster in this layout, on CPUs and GPUs alike.
        self.denoiser.network.to(memory_format=torch.channels_last)
        self.val_losses = ModuleDict({name: MeanMetric() for name in ("mean", *self._levels())})

    def _start_from(self, path: str) -> NetworkDenoiser:
        domain = load_domain(check_domain_path(path, "init_from"))
        if self.channels != domain.channels:
            raise ValueError(
                f"init_from: {path} has channels {domain.channels}, not {self.channels}"
            )
        denoiser = domain.denoiser
        assert isinstance(denoiser, NetworkDenoiser)
        resize_unet(denoiser.network, self.resolution)
        self.ancestor = domain.name
        log.info("Starting from %s; network, schedule and prediction type are its own.", path)
        denoiser.network.requires_grad_(True).train()
        return denoiser

    @property
    def domain(self) -> Domain:
        """The domain as it is now, sharing this module's network."""
        return Domain(
            self.denoiser, self.denoiser.schedule, self.resolution, self.channels, self.name
        )

    def configure_callbacks(self) -> list[Callback]:
        """The moving average, and the sample grids, which show the averaged weights."""
        callbacks: list[Callback] = [EMA(self.ema_decay)]
        if self.sample_every_n_epochs:
            callbacks.append(SampleGrid(self.sample_every_n_epochs))
        return callbacks

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up, then constant or a cosine to 0 at the last step."""
        optimizer = torch.optim.AdamW(
            self.denoiser.network.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        last = self.trainer.estimated_stepping_batches
        if self.lr_schedule == "cosine" and last == float("inf"):
            raise ValueError(
                "lr_schedule 'cosine' needs an end: set trainer.max_steps or max_epochs"
            )

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.lr_schedule == "constant":
                return 1.0
            done = (step - self.warmup_steps) / max(1, last - self.warmup_steps)
            return 0.5 * (1 + cos(pi * min(1.0, done)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def loss(self, x_0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The weighted squared error of the predicted noise, mean over pixels: (B,).

        Args:
            x_0: clean images (B, C, H, W) in [-1, 1].
            timesteps: (B,) integers in 0 .. T - 1.
            noise: N(0, I), same shape as x_0.
        """
        table = self.denoiser.schedule.alphas_cumprod.to(x_0.device)
        alpha_bar_t = table[timesteps].view(-1, 1, 1, 1)
        weight = loss_weight(alpha_bar_t, self.weighting).flatten().to(x_0.dtype)
        alpha_bar_t = alpha_bar_t.to(x_0.dtype)
        x_t = add_noise(x_0, noise, alpha_bar_t)
        out, _ = self.denoiser.output(x_t, timesteps)
        eps = eps_from_output(out, x_t, alpha_bar_t, self.denoiser.prediction_type)
        return weight * (eps - noise).square().mean(dim=(1, 2, 3))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One batch; what is random in it depends on (seed, step, batch, rank) alone."""
        x_0 = batch["image"]
        generator = step_generator(self.seed, self.global_step, batch_idx, self.global_rank)
        if self.flip:
            mirrored = torch.rand(len(x_0), generator=generator) < 0.5
            x_0 = torch.where(mirrored.view(-1, 1, 1, 1).to(x_0.device), x_0.flip(3), x_0)
        T = self.denoiser.schedule.timesteps
        timesteps = torch.randint(T, (len(x_0),), generator=generator).to(x_0.device)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0)
        loss = finite(self.loss(x_0, timesteps, noise).mean(), self.global_step)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _levels(self) -> list[str]:
        """Names of the ranges of timesteps in which the validation loss is reported."""
        T = self.denoiser.schedule.timesteps
        edges = [T * i // LEVELS for i in range(LEVELS + 1)]
        return [f"t{a:04d}-{b - 1:04d}" for a, b in pairwise(edges)]

    def _metrics(self) -> dict[str, MeanMetric]:
        metrics = dict(self.val_losses.items())
        return {name: metric for name, metric in metrics.items() if isinstance(metric, MeanMetric)}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Each image at one timestep of each range; timestep and noise depend on its key alone."""
        x_0, T, metrics = batch["image"], self.denoiser.schedule.timesteps, self._metrics()
        if not len(x_0):  # What a process without images gets.
            return
        for level, name in enumerate(self._levels()):
            low, high = T * level // LEVELS, T * (level + 1) // LEVELS
            generators = [keyed_generator(self.seed, key, "val", level) for key in batch["key"]]
            timesteps = [torch.randint(low, high, (), generator=g) for g in generators]
            noise = [torch.randn(x_0.shape[1:], generator=g) for g in generators]
            t = torch.stack(timesteps).to(x_0.device)
            losses = self.loss(x_0, t, torch.stack(noise).to(x_0))
            metrics[name].update(losses)
            metrics["mean"].update(losses)

    def _log_losses(self, stage: str) -> None:
        # Metric objects, since Lightning's own mean over batches ignores how many images each has.
        for name, metric in self._metrics().items():
            label = f"{stage}/loss" if name == "mean" else f"{stage}/loss_{name}"
            self.log(label, metric, prog_bar=name == "mean", metric_attribute=f"val_losses.{name}")

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss and that of each range of timesteps."""
        self._log_losses("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self._log_losses("test")

    def card(self) -> dict[str, Any]:
        """What `domain.json` says: name, resolution, data and licence, steps, versions."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        return {
            "name": self.name,
            "resolution": self.resolution,
            "channels": self.channels,
            "data": datamodule.summary() if hasattr(datamodule, "summary") else {},
            "data_licence": self.data_licence,
            "steps": self.trainer.global_step,
            "init_from": self.ancestor,
            "weighting": self.weighting,
            "ema_decay": self.ema_decay,
            "versions": {
                "torch": str(torch.__version__),
                "lightning": lightning.__version__,
                "diffusers": diffusers.__version__,
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `load_domain` needs to use a checkpoint as a domain."""
        checkpoint[CHECKPOINT_ENTRY] = {
            "unet": unet_config(self.denoiser.network),
            "scheduler": {
                **self.denoiser.schedule.to_diffusers(),
                "prediction_type": self.denoiser.prediction_type,
            },
            "card": self.card(),
        }

    def on_fit_end(self) -> None:
        """Write the domain folder; the weights are the averaged ones by now."""
        if not self.trainer.is_global_zero or self.trainer.interrupted:
            return
        folder = save_domain(
            Path(self.trainer.default_root_dir) / "domain",
            self.denoiser.network,
            self.denoiser.schedule,
            prediction_type=self.denoiser.prediction_type,
            card=self.card(),
            dtype=getattr(torch, self.save_dtype),
        )
        log.info("Wrote the domain to %s", folder)
