"""DenoiserModule: what the trainings of a domain's networks share, whatever their loss."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import ModuleDict
from torchmetrics import MeanMetric

from cyclelight.chains.sample import sample
from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import gaussian_like
from cyclelight.diffusion.pixels import to_float
from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.autoencoder_folder import autoencoder_state
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import CHECKPOINT_ENTRY, MARK, save_domain
from cyclelight.modules.training import TrainingModule, judged_at, timestep_ranges
from cyclelight.networks import arrange, blocks, network_config
from cyclelight.runs.sharding import shard

SAMPLE_STEPS = 25
"""Timesteps of the samples that are shown while it trains."""


class DenoiserModule(TrainingModule):
    """A module that trains the network of a domain, by a loss at random timesteps.

    The fit ends by writing `domain/` into the output folder.

    Args:
        denoiser: what trains.
        name: what the domain is called; None: what the data says, or `domain`.
        resolution: height and width of the images in pixels.
        channels: channels of the images.
        autoencoder: what makes the latents that the denoiser is of, if it is.
        save_dtype: dtype of the weights in the domain folder.
        ema_decay: decay of the weights' moving average, in [0, 1).
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = "domain", MARK

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        name: str | None,
        resolution: int,
        channels: int,
        autoencoder: Autoencoder | None,
        save_dtype: Literal["float32", "float16"],
        ema_decay: float,
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, **training)
        self.called, self.resolution, self.channels = name, resolution, channels
        # Not a module of torch: optimizer, weights of a checkpoint and average are without it.
        self.autoencoder = autoencoder
        self.denoiser = denoiser
        self.save_dtype = save_dtype
        arrange(denoiser.network)
        ranges = timestep_ranges(denoiser.schedule)
        self.val_losses = ModuleDict({name: MeanMetric() for name in ("mean", *ranges)})

    @property
    def name(self) -> str:
        """What the domain is called."""
        return self.called or "domain"

    def setup(self, stage: str) -> None:
        """Without a name of its own the domain is called what its data is."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        self.called = self.called or getattr(data, "name", None)

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

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """Samples by 25 steps of DDIM (eta 0), the i-th always from the same noise."""
        domain, keys = self.domain, range(first, first + len(real))
        steps = min(SAMPLE_STEPS, domain.schedule.timesteps)
        return sample(domain, len(real), steps=steps, eta=0.0, seed=self.seed, keys=keys)

    @abstractmethod
    def loss(self, x_0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """What is minimised: (B,).

        Args:
            x_0: clean states (B, C, H, W).
            timesteps: (B,) integers.
            noise: N(0, I), same shape as x_0.
        """

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

    def _metrics(self) -> dict[str, MeanMetric]:
        metrics = dict(self.val_losses.items())
        return {name: metric for name, metric in metrics.items() if isinstance(metric, MeanMetric)}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Each image at one timestep of each range; timestep and noise depend on its key alone."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        x_0 = self.domain.to_states(to_float(batch["image"]))
        metrics = self._metrics()
        for level, (name, timesteps) in enumerate(timestep_ranges(self.denoiser.schedule).items()):
            t, noise = judged_at(x_0, batch["key"], timesteps, level, self.seed)
            losses = self.loss(x_0, t, noise)
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
        card = checkpoint.get(CHECKPOINT_ENTRY, {}).get("card", {})
        self.called = self.called or card.get("name")
        theirs = card.get("space", "pixels")
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
