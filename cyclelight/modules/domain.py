"""DomainModule: train the diffusion model of one domain (`lightning fit`)."""

import logging
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cyclelight.diffusion.denoiser import NetworkDenoiser, PredictionType
from cyclelight.diffusion.loss import Weighting, denoising_loss
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.autoencoder import Autoencoder, state_shape, state_space
from cyclelight.domains.autoencoder_folder import load_autoencoder
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.errors import BadValue, MissingFile, at_least
from cyclelight.modules.denoiser import DenoiserModule
from cyclelight.networks import NetworkSettings, resize
from cyclelight.networks.sn import CovarianceNetwork
from cyclelight.networks.unet import UNetSettings

log = logging.getLogger(__name__)


class DomainModule(DenoiserModule):
    """A diffusion model of one image domain, trained on the noise-prediction loss.

    The fit ends by writing `domain/` into the output folder: a diffusers DDPMPipeline folder with
    the averaged weights, ready for `load_domain` and for the translation.

    Args:
        name: what the domain is called: cat, dog, ...; by default as the folder of its training
            images.
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the network: the options of `UNetSettings`, or those of `ADMSettings`. In
            a latent space its resolutions are those of the latents.
        schedule: the noise schedule; domains translate into each other only if they share it.
        autoencoder: train in the latent space of an autoencoder: the folder of one, such as
            AutoencoderModule's `autoencoder/` or another domain's `vae/`, or a checkpoint of a fit
            in its latent space. It stays as it is, and the domain folder holds a copy. Domains
            translate into each other only if they share it.
        prediction_type: what the network outputs; the loss is on the noise that it implies.
        weighting: weight of the loss over noise levels: uniform, p2 or min_snr.
        init_from: start from another domain's network: a domain folder, a checkpoint, or
            `owner/name` on the Hugging Face Hub. Its architecture, schedule and prediction type
            are taken over too, in place of `network`, `schedule` and `prediction_type`. Its
            resolution may differ: 32 pixels first is a good start for 48 or 64.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        save_dtype: dtype of the weights in the domain folder.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: `init_from` does not exist.
    """

    def __init__(
        self,
        name: str | None = None,
        resolution: int = 64,
        channels: int = 3,
        network: NetworkSettings = UNetSettings(),  # noqa: B008 (frozen)
        schedule: NoiseSchedule = NoiseSchedule(),  # noqa: B008 (frozen)
        autoencoder: str | None = None,
        prediction_type: PredictionType = "epsilon",
        weighting: Weighting = "p2",
        init_from: str | None = None,
        ema_decay: float = 0.9999,
        save_dtype: Literal["float32", "float16"] = "float32",
        **training: Any,
    ) -> None:
        at_least(1, resolution=resolution, channels=channels)
        space = None if autoencoder is None else _space(autoencoder)
        depth, side, _ = state_shape(channels, resolution, space)
        ancestor: str | None = None
        if init_from is None:
            unet = network.build(resolution=side, channels=depth)
            denoiser = NetworkDenoiser(unet, schedule, prediction_type=prediction_type)
        else:
            denoiser, ancestor = _start_from(init_from, side, channels, space)
        super().__init__(
            denoiser,
            name,
            resolution,
            channels,
            space,
            save_dtype,
            ema_decay,
            **training,
        )
        self.weighting, self.ancestor = weighting, ancestor

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **settings: Any
    ) -> "DomainModule":
        """The module of a checkpoint of `fit`: with its averaged weights, ready to train or sample.

        Network, schedule, prediction type, autoencoder, name, weighting and `ema_decay` are those
        of the checkpoint. It does not hold the other settings of its fit, such as the learning
        rate: they are given here, or have their defaults. To go on with the fit itself, give the
        file as `ckpt_path` to the trainer.

        Args:
            checkpoint_path: the `.ckpt` file.
            map_location: the device that the module goes to; None for the CPU.
            settings: those of the constructor, in place of the checkpoint's.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint of this module, or a setting is out of range.
        """
        path = Path(checkpoint_path)
        if not path.exists():
            raise MissingFile("checkpoint_path", f"checkpoint_path: there is no file {path}")
        if path.suffix != ".ckpt" or not path.is_file():
            raise BadValue("checkpoint_path", f"checkpoint_path: {path} is no .ckpt file")
        domain = load_domain(path, device="meta")
        known = {name: domain.card.get(name) for name in ("weighting", "ema_decay")}
        given = {
            "name": domain.name,
            "resolution": domain.resolution,
            "channels": domain.channels,
            "autoencoder": None if domain.autoencoder is None else str(path),
            **{name: value for name, value in known.items() if value is not None},
            **settings,
        }
        module = cls(**given, init_from=str(path))
        module.ancestor = domain.card.get("init_from")
        return module if map_location is None else module.to(map_location)

    def loss(self, x_0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """`denoising_loss` with the weighting of this module: (B,)."""
        return denoising_loss(self.denoiser, x_0, timesteps, noise, weighting=self.weighting)

    def card(self) -> dict[str, Any]:
        """What `domain.json` says."""
        return {**super().card(), "init_from": self.ancestor, "weighting": self.weighting}


def _space(path: str) -> Autoencoder:
    """The autoencoder of a folder, or of a checkpoint of a fit in its latent space."""
    if Path(path).suffix != ".ckpt":
        return load_autoencoder(path)
    found = load_domain(check_domain_path(path, "autoencoder"), device="meta").autoencoder
    if found is None:
        raise BadValue("autoencoder", f"autoencoder: {path} works on pixels, it has none")
    return found


def _start_from(
    path: str, side: int, channels: int, autoencoder: Autoencoder | None
) -> tuple[NetworkDenoiser, str]:
    """(the denoiser of another domain, ready to train; that domain's name)."""
    domain = load_domain(check_domain_path(path, "init_from"))
    if channels != domain.channels:
        raise BadValue(
            "init_from",
            f"init_from: {path} has channels {domain.channels}, not {channels}",
        )
    if domain.space != (space := state_space(autoencoder)):
        raise BadValue("init_from", f"init_from: {path} works on {domain.space}, not on {space}")
    denoiser = domain.denoiser
    assert isinstance(denoiser, NetworkDenoiser)
    if isinstance(denoiser.network, CovarianceNetwork):
        raise BadValue(
            "init_from",
            f"init_from: {path} has a covariance head, whose body does not train; start from "
            f"the domain that the head was put on",
        )
    resize(denoiser.network, side)
    log.info("Starting from %s; network, schedule and prediction type are its own.", path)
    denoiser.network.requires_grad_(True).train()
    return denoiser, domain.name
