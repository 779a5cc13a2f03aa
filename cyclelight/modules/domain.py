"""DomainModule: train the diffusion model of one domain (`lightning fit`)."""

import logging
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import ModuleDict
from torchmetrics import MeanMetric

from cyclelight.callbacks.samples import SampleGrid
from cyclelight.diffusion.denoiser import NetworkDenoiser, PredictionType
from cyclelight.diffusion.loss import Weighting, denoising_loss, finite
from cyclelight.diffusion.noise import gaussian_like, keyed_generator
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.autoencoder import state_shape, state_space
from cyclelight.domains.autoencoder_folder import autoencoder_state, load_autoencoder
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import (
    CHECKPOINT_ENTRY,
    MARK,
    check_domain_path,
    load_domain,
    network_config,
    save_domain,
)
from cyclelight.errors import BadValue, at_least
from cyclelight.modules.training import TrainingModule
from cyclelight.networks import NetworkSettings, arrange, blocks, resize
from cyclelight.networks.unet import UNetSettings
from cyclelight.runs.sharding import shard

log = logging.getLogger(__name__)

LEVELS = 5
"""Validation reports the loss in this many equal ranges of timesteps."""


class DomainModule(TrainingModule):
    """A diffusion model of one image domain, trained on the noise-prediction loss.

    The fit ends by writing `domain/` into the output folder: a diffusers DDPMPipeline folder with
    the averaged weights, ready for `load_domain` and for the translation.

    Args:
        name: what the domain is called: cat, dog, ...
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the network: the options of `UNetSettings`, or those of `ADMSettings`. In
            a latent space its resolutions are those of the latents.
        schedule: the noise schedule; domains translate into each other only if they share it.
        autoencoder: train in the latent space of an autoencoder: the folder of one, such as
            AutoencoderModule's `autoencoder/` or another domain's `vae/`. It stays as it is, and
            the domain folder holds a copy. Domains translate into each other only if they share it.
        prediction_type: what the network outputs; the loss is on the noise that it implies.
        weighting: weight of the loss over noise levels: uniform, p2 or min_snr.
        init_from: start from another domain's network: a domain folder, a checkpoint, or
            `owner/name` on the Hugging Face Hub. Its architecture, schedule and prediction type
            are taken over too, in place of `network`, `schedule` and `prediction_type`. Its
            resolution may differ: 32 pixels first is a good start for 48 or 64.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        sample_every_n_epochs: how often a grid of samples goes to TensorBoard; 0 for never.
        save_dtype: dtype of the weights in the domain folder.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: `init_from` does not exist.
    """

    product, mark = "domain", MARK

    def __init__(
        self,
        name: str = "domain",
        resolution: int = 64,
        channels: int = 3,
        network: NetworkSettings = UNetSettings(),  # noqa: B008 (frozen)
        schedule: NoiseSchedule = NoiseSchedule(),  # noqa: B008 (frozen)
        autoencoder: str | None = None,
        prediction_type: PredictionType = "epsilon",
        weighting: Weighting = "p2",
        init_from: str | None = None,
        ema_decay: float = 0.9999,
        sample_every_n_epochs: int = 10,
        save_dtype: Literal["float32", "float16"] = "float32",
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, **training)
        at_least(1, resolution=resolution, channels=channels)
        at_least(0, sample_every_n_epochs=sample_every_n_epochs)
        self.name, self.resolution, self.channels = name, resolution, channels
        self.weighting, self.save_dtype = weighting, save_dtype
        self.sample_every_n_epochs = sample_every_n_epochs
        self.ancestor: str | None = None
        # Not a module of torch: optimizer, weights of a checkpoint and average are without it.
        self.autoencoder = None if autoencoder is None else load_autoencoder(autoencoder)
        depth, side, _ = state_shape(channels, resolution, self.autoencoder)
        if init_from is None:
            unet = network.build(resolution=side, channels=depth)
            self.denoiser = NetworkDenoiser(unet, schedule, prediction_type=prediction_type)
        else:
            self.denoiser = self._start_from(init_from, side)
        arrange(self.denoiser.network)
        self.val_losses = ModuleDict({name: MeanMetric() for name in ("mean", *self._levels())})

    def _start_from(self, path: str, side: int) -> NetworkDenoiser:
        domain = load_domain(check_domain_path(path, "init_from"))
        if self.channels != domain.channels:
            raise BadValue(
                "init_from",
                f"init_from: {path} has channels {domain.channels}, not {self.channels}",
            )
        if domain.space != (space := state_space(self.autoencoder)):
            raise BadValue(
                "init_from", f"init_from: {path} works on {domain.space}, not on {space}"
            )
        denoiser = domain.denoiser
        assert isinstance(denoiser, NetworkDenoiser)
        resize(denoiser.network, side)
        self.ancestor = domain.name
        log.info("Starting from %s; network, schedule and prediction type are its own.", path)
        denoiser.network.requires_grad_(True).train()
        return denoiser

    @property
    def domain(self) -> Domain:
        """The domain as it is now, sharing this module's network."""
        return Domain(
            self.denoiser,
            self.resolution,
            self.channels,
            self.name,
            autoencoder=self.autoencoder,
        )

    @property
    def trained_network(self) -> nn.Module:
        return self.denoiser.network

    def configure_model(self) -> None:
        """Shard the network, under the strategy fsdp2."""
        network = self.denoiser.network
        shard([*blocks(network), network], self.device_mesh)

    def configure_callbacks(self) -> list[Callback]:
        """The moving average, and the sample grids, which show the averaged weights."""
        callbacks = super().configure_callbacks()
        if self.sample_every_n_epochs:
            callbacks.append(SampleGrid(self.sample_every_n_epochs))
        return callbacks

    def loss(self, x_0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """`denoising_loss` with the weighting of this module: (B,)."""
        return denoising_loss(self.denoiser, x_0, timesteps, noise, weighting=self.weighting)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        x_0, generator = self.training_images(batch, batch_idx)
        with torch.no_grad():
            x_0 = self.domain.to_states(x_0)
        T = self.denoiser.schedule.timesteps
        timesteps = torch.randint(T, (len(x_0),), generator=generator).to(x_0.device)
        noise = gaussian_like(x_0, generator)
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
        if not len(batch["image"]):  # What a process without images gets.
            return
        x_0 = self.domain.to_states(to_float(batch["image"]))
        T, metrics = self.denoiser.schedule.timesteps, self._metrics()
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
        """What `domain.json` says."""
        return {
            "name": self.name,
            "channels": self.channels,
            "space": self.domain.space,
            **super().card(),
            "init_from": self.ancestor,
            "weighting": self.weighting,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `load_domain` needs to use a checkpoint as a domain."""
        a = self.autoencoder
        checkpoint[CHECKPOINT_ENTRY] = {
            "unet": network_config(self.denoiser.network),
            "scheduler": {
                **self.denoiser.schedule.to_diffusers(),
                "prediction_type": self.denoiser.prediction_type,
            },
            "card": self.card(),
            "autoencoder": a and autoencoder_state(a.network, a.card),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what was trained in another space, too."""
        theirs = checkpoint.get(CHECKPOINT_ENTRY, {}).get("card", {}).get("space", "pixels")
        if theirs != self.domain.space:
            raise ValueError(f"the checkpoint works on {theirs}, not on {self.domain.space}")
        super().on_load_checkpoint(checkpoint)

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the domain folder."""
        return save_domain(
            folder,
            self.denoiser.network,
            self.denoiser.schedule,
            prediction_type=self.denoiser.prediction_type,
            card=self.card(),
            dtype=getattr(torch, self.save_dtype),
            autoencoder=self.autoencoder,
            weights=weights,
        )
