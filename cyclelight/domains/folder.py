"""Domain folders: a diffusers DDPMPipeline folder plus `domain.json`, read and written.

    FOLDER/model_index.json  unet/  scheduler/  domain.json  and, of a latent space, vae/

A DDPMPipeline folder loads, whoever made it, if its network is one of `NETWORKS`, as
`check_network` wants it, of images with 1 or 3 channels, and its scheduler one of `BETA_FAMILY`;
`domain.json` only adds the card. So does an LDMPipeline folder, whose autoencoder is in `vqvae/`. A
Lightning checkpoint written by `fit` loads too.

A DDPMPipeline knows no autoencoder: diffusers' pipeline of a folder with `vae/` samples latents,
and `AutoencoderKL.from_pretrained(FOLDER, subfolder="vae")` decodes them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import NetworkDenoiser, PredictionType, Variance
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.autoencoder_folder import load_autoencoder, rebuild, save_autoencoder
from cyclelight.domains.domain import Domain
from cyclelight.domains.hub import display_name, resolve
from cyclelight.domains.model_files import (
    build,
    check_kind,
    check_size,
    check_weights,
    file_digest,
    held,
    judged,
    load_model,
    read_tensors,
)
from cyclelight.domains.schedulers import schedule_of
from cyclelight.errors import BadValue, MissingFile, printable
from cyclelight.files import read_json, whole_folder
from cyclelight.networks import NETWORKS, Network, check_network, learns_variance
from cyclelight.networks.sn import CovarianceNetwork

MARK = ("a domain folder", "model_index.json")
"""What a domain folder is called, and the file by which it is known."""
_MODEL = ("config.json", *(f"diffusion_pytorch_model*.{s}" for s in ("json", "safetensors", "bin")))
FILES = [
    *("model_index.json", "domain.json", "scheduler/*.json", "scheduler_config.json"),
    "vae/autoencoder.json",
    *(f"{part}{name}" for part in ("unet/", "vae/", "vqvae/", "") for name in _MODEL),
]
"""What a domain folder consists of; nothing else is downloaded or uploaded."""
LONGEST_NAME = 100
"""Letters of a domain's name; of longer ones beginning and end are kept."""
CHECKPOINT_ENTRY = "cyclelight_domain"
"""Where a Lightning checkpoint of `DomainModule` keeps what `load_domain` needs beside weights."""


def check_domain_path(path: str | Path, argument: str = "domain") -> Path:
    """The folder or file, downloaded first if it is a name on the Hugging Face Hub.

    Looks at names only; nothing is loaded.

    Raises:
        FileNotFoundError, ValueError: there is no domain; the message begins with `argument`.
    """
    path = resolve(path, FILES, argument)
    if not path.exists():
        raise MissingFile(
            argument,
            f"{argument}: {path} does not exist; give a domain folder, a .ckpt file, or the "
            "owner/name of a model on the Hugging Face Hub",
        )
    if path.is_file():
        if path.suffix != ".ckpt":
            raise BadValue(
                argument, f"{argument}: {path} is neither a domain folder nor a .ckpt file"
            )
        return path
    files = [path / "model_index.json", part(path, "unet") / "config.json"]
    for file in (*files, part(path, "scheduler") / "scheduler_config.json"):
        if not file.is_file():
            hint = f"; did you mean {path / 'domain'}?" if (path / "domain").is_dir() else ""
            missing = file.relative_to(path)
            raise BadValue(
                argument, f"{argument}: {path} is not a domain folder: it has no {missing}{hint}"
            )
    return path


def load_domain(
    path: str | Path,
    *,
    variance: Variance = "fixed",
    clip_x_0: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Domain:
    """A domain from a DDPMPipeline folder (anyone's) or from a Lightning checkpoint of `fit`.

    Args:
        path: the folder or `.ckpt` file, or `owner/name` or `owner/name@revision` on the Hugging
            Face Hub. Of a checkpoint, the averaged (EMA) weights are taken.
        variance: `learned` uses a network's learned variance, a range or that of a covariance head;
            `fixed` ignores it.
        clip_x_0: clamp predicted clean images to [-1, 1], and a head's variances to [0, 1].
        dtype: dtype of the network; images keep theirs.
        device: where the network goes; on `meta` its weights are not read, and everything but
            calling the denoiser works. Those of an autoencoder always are: they tell which domains
            can be paired.

    Returns:
        The domain, its network in evaluation mode and without gradients.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is not a domain; the message says which part is wrong.
    """
    given, path = path, check_domain_path(path)
    stored = _open_checkpoint(path) if path.is_file() else _open_folder(path)
    autoencoder = stored.autoencoder
    prediction_type = stored.scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in get_args(PredictionType):
        raise ValueError(f"domain: {path}: prediction_type {prediction_type!r} is not supported")
    with judged("domain", part(path, "scheduler")):
        schedule = schedule_of(stored.scheduler_config)
    place = part(path, "unet")
    with judged("domain", place):
        kind = NETWORKS[check_kind(stored.network_config, NETWORKS, place, "domain")]
        unet: Network = build(stored.network_config, kind)
        check_size(unet, stored.held)
        resolution = check_network(unet)
    channels = unet.config.in_channels
    if autoencoder is not None and clip_x_0:
        raise BadValue(
            "clip_x_0", f"clip_x_0 needs pixels: {path} works on latents, which have no range"
        )
    resolution, channels = _images_of(path, resolution, channels, autoencoder)
    if autoencoder is not None:
        autoencoder.to(dtype)
    if torch.device(device).type != "meta":
        unet = stored.load_network(kind)
    denoiser = NetworkDenoiser(
        # diffusers' own `to` warns about layers to be kept in float32, even where there are none.
        nn.Module.to(unet.requires_grad_(False).eval(), device=device, dtype=dtype),
        schedule,
        prediction_type=cast(PredictionType, prediction_type),
        variance=variance,
        clip_x_0=clip_x_0,
        second_head=unet.config.covariance if isinstance(unet, CovarianceNetwork) else "range",
        # As published; latents have no pixels.
        last_pixels=2.0 if autoencoder is None else None,
    )
    name = stored.card.get("name", path.stem if path.is_file() else display_name(given))
    # Anyone's card may name it, and every table, title and message does.
    name = printable(name, LONGEST_NAME)
    return Domain(denoiser, resolution, channels, name, stored.card, autoencoder)


def _images_of(
    path: Path, side: int, depth: int, autoencoder: Autoencoder | None
) -> tuple[int, int]:
    """(side, channels) of the images of a network whose states are `side` wide, `depth` deep.

    Raises:
        ValueError: they are no images, or not this autoencoder's latents.
    """
    if autoencoder is None:
        if depth not in (1, 3):
            raise ValueError(f"domain: {path}: images have 1 or 3 channels, its network {depth}")
        return side, depth
    if depth != autoencoder.latent_channels:
        raise ValueError(
            f"domain: {path}: its network has {depth} channels, "
            f"the latents of its autoencoder {autoencoder.latent_channels}"
        )
    return side * autoencoder.factor, autoencoder.channels


def save_domain(
    folder: str | Path,
    unet: Network,
    schedule: NoiseSchedule,
    *,
    prediction_type: PredictionType = "epsilon",
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    autoencoder: Autoencoder | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a domain folder; it appears whole or not at all, and takes the place of an older one.

    Args:
        folder: where to write.
        unet: the network; it is not changed.
        schedule: the schedule it was trained under.
        prediction_type: what its output means.
        card: contents of `domain.json`; `name` is used by `load_domain`.
        dtype: dtype of the network's weights on disk.
        autoencoder: what makes the latents that the network was trained on; written unchanged.
        weights: those of `unet`, where it holds only a part of them.

    Raises:
        ValueError: `folder` exists and is something else.
    """
    folder = Path(folder)
    # What diffusers notes of its own, such as the path that a network came from, is left out.
    copy = type(unet).from_config({k: v for k, v in unet.config.items() if k[0] != "_"})
    copy.load_state_dict(unet.state_dict() if weights is None else weights)
    # diffusers' own `to` warns about layers to be kept in float32, even where there are none.
    nn.Module.to(copy, dtype)
    scheduler = DDPMScheduler(
        **schedule.to_diffusers(),
        prediction_type=prediction_type,
        variance_type="learned_range" if learns_variance(unet) else "fixed_small",
        clip_sample=autoencoder is None,  # latents have no range
    )
    with whole_folder(folder, *MARK) as made:
        DDPMPipeline(copy, scheduler).save_pretrained(made, safe_serialization=True)
        if autoencoder is not None:
            save_autoencoder(made / "vae", autoencoder)
        (made / "domain.json").write_text(json.dumps(dict(card), indent=2) + "\n")
    return folder


def fingerprint(path: Path) -> str:
    """The SHA-256 of a domain's weights and settings, in hexadecimal; its card may change.

    Args:
        path: what `check_domain_path` gave.
    """
    names = [pattern for pattern in FILES if pattern != "domain.json"]
    files = [path] if path.is_file() else [f for pattern in names for f in path.glob(pattern)]
    return file_digest(files, path)


Config = Mapping[str, Any]


@dataclass(frozen=True)
class StoredDomain:
    """What a folder or checkpoint has of a domain, before its network is loaded."""

    network_config: Config
    scheduler_config: Config
    card: Config
    held: int
    """How many numbers its network can have at most."""
    load_network: Callable[[type[Network]], Network]
    """Called with its class."""
    autoencoder: Autoencoder | None
    """Always loaded, as its weights tell which domains can be paired."""


def _open_folder(path: Path) -> StoredDomain:
    unet = part(path, "unet")
    config = read_json(unet / "config.json", "domain")
    scheduler = part(path, "scheduler") / "scheduler_config.json"
    scheduler_config = read_json(scheduler, "domain")
    check_weights(unet, "domain")
    card_file = path / "domain.json"
    card = read_json(card_file, "domain") if card_file.is_file() else {}
    folders = [path / name for name in ("vae", "vqvae") if (path / name).is_dir()]
    autoencoder = load_autoencoder(folders[0], "domain") if folders else None
    load_network = partial(load_model, path=unet, what="domain")
    return StoredDomain(config, scheduler_config, card, held(unet), load_network, autoencoder)


def part(folder: Path, name: str) -> Path:
    """Where a pipeline's `unet` or `scheduler` is: in the oldest ones, in the folder itself."""
    return folder / name if (folder / name).is_dir() else folder


def _open_checkpoint(path: Path) -> StoredDomain:
    checkpoint = read_tensors(path, "domain")
    if not isinstance(checkpoint, dict) or CHECKPOINT_ENTRY not in checkpoint:
        raise ValueError(f"domain: {path} is not a checkpoint of cyclelight's DomainModule")
    entry = checkpoint[CHECKPOINT_ENTRY]
    prefix = "denoiser.network."
    with judged("domain", path):
        found = checkpoint["state_dict"].items()
        state = {n.removeprefix(prefix): v for n, v in found if n.startswith(prefix)}
        numbers = sum(value.numel() for value in state.values())

    def load_network(kind: type[Network]) -> Network:
        with judged("domain", path):
            unet: Network = kind.from_config(entry["unet"])
            unet.load_state_dict(state)
        return unet

    with judged("domain", path):
        autoencoder = rebuild(entry["autoencoder"]) if entry.get("autoencoder") else None
        # Of its scheduler it keeps the settings alone.
        scheduler = {"_class_name": "DDPMScheduler", **entry["scheduler"]}
        card = {**json.loads(json.dumps(entry["card"]))}
        return StoredDomain(entry["unet"], scheduler, card, numbers, load_network, autoencoder)
