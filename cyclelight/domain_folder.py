"""Domain folders: a diffusers DDPMPipeline folder plus `domain.json`, read and written.

    FOLDER/model_index.json  unet/  scheduler/  domain.json

Any DDPMPipeline folder loads, whoever made it; `domain.json` only adds the card. A Lightning
checkpoint written by `fit` loads too.
"""

import json
import pickle
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn

from cyclelight.denoiser import NetworkDenoiser, PredictionType
from cyclelight.domain import Domain
from cyclelight.hub import display_name, resolve
from cyclelight.networks import NETWORKS, Network, learns_variance
from cyclelight.schedule import NoiseSchedule

CHECKPOINT_ENTRY = "cyclelight_domain"
"""Where a Lightning checkpoint of `DomainModule` keeps what `load_domain` needs beside weights."""


def check_domain_path(path: str | Path, argument: str = "domain") -> Path:
    """The folder or file, downloaded first if it is a name on the Hugging Face Hub.

    Looks at names only; nothing is loaded.

    Raises:
        FileNotFoundError, ValueError: there is no domain; the message begins with `argument`.
    """
    path = resolve(path, argument)
    if not path.exists():
        raise FileNotFoundError(
            f"{argument}: {path} does not exist; give a domain folder, a .ckpt file, or the "
            "owner/name of a model on the Hugging Face Hub"
        )
    if path.is_file():
        if path.suffix != ".ckpt":
            raise ValueError(f"{argument}: {path} is neither a domain folder nor a .ckpt file")
        return path
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        if not (path / name).is_file():
            hint = f"; did you mean {path / 'domain'}?" if (path / "domain").is_dir() else ""
            raise ValueError(f"{argument}: {path} is not a domain folder: it has no {name}{hint}")
    return path


def load_domain(
    path: str | Path,
    *,
    variance: Literal["fixed", "learned"] = "fixed",
    clip_x_0: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Domain:
    """A domain from a DDPMPipeline folder (anyone's) or from a Lightning checkpoint of `fit`.

    Args:
        path: the folder or `.ckpt` file, or `owner/name` or `owner/name@revision` on the Hugging
            Face Hub. Of a checkpoint, the averaged (EMA) weights are taken.
        variance: `learned` uses a network's learned range of the variance; `fixed` ignores it.
        clip_x_0: clamp predicted clean images to [-1, 1].
        dtype: dtype of the network; images keep theirs.
        device: where the network goes; on `meta` no weights are read, and everything but calling
            the denoiser works.

    Returns:
        The domain, its network in evaluation mode and without gradients.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is not a domain; the message says which part is wrong.
    """
    given, path = path, check_domain_path(path)
    on_disk = _open_checkpoint(path) if path.is_file() else _open_folder(path)
    config, scheduler_config, card, load_network = on_disk
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in get_args(PredictionType):
        raise ValueError(f"domain: {path}: prediction_type {prediction_type!r} is not supported")
    schedule = NoiseSchedule.from_diffusers(scheduler_config)
    with torch.device("meta"):
        unet = _build(config)
    resolution, channels = unet.config.sample_size, unet.config.in_channels
    if not isinstance(resolution, int):
        raise ValueError(f"domain: {path}: sample_size must be one integer, got {resolution}")
    try:
        learns_variance(unet)
    except ValueError as error:
        raise ValueError(f"domain: {path}: {error}") from error
    if torch.device(device).type != "meta":
        unet = load_network()
    denoiser = NetworkDenoiser(
        # diffusers' own `to` warns about layers to be kept in float32, even where there are none.
        nn.Module.to(unet.requires_grad_(False).eval(), device=device, dtype=dtype),
        schedule,
        prediction_type=cast(PredictionType, prediction_type),
        variance=variance,
        clip_x_0=clip_x_0,
    )
    name = str(card.get("name", path.stem if path.is_file() else display_name(given)))
    return Domain(denoiser, schedule, resolution, channels, name, card)


def save_domain(
    folder: str | Path,
    unet: Network,
    schedule: NoiseSchedule,
    *,
    prediction_type: PredictionType = "epsilon",
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a domain folder; it appears whole or not at all, and takes the place of an older one.

    Args:
        folder: where to write.
        unet: the network; it is not changed.
        schedule: the schedule it was trained under.
        prediction_type: what its output means.
        card: contents of `domain.json`; `name` is used by `load_domain`.
        dtype: dtype of the weights on disk.

    Raises:
        ValueError: `folder` exists and is something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} exists and is not a domain folder; it is left as it is")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What diffusers notes of its own, such as the path that a network came from, is left out.
    copy = type(unet).from_config({k: v for k, v in unet.config.items() if k[0] != "_"})
    copy.load_state_dict(unet.state_dict())
    # diffusers' own `to` warns about layers to be kept in float32, even where there are none.
    nn.Module.to(copy, dtype)
    scheduler = DDPMScheduler(
        **schedule.to_diffusers(),
        prediction_type=prediction_type,
        variance_type="learned_range" if learns_variance(unet) else "fixed_small",
        clip_sample=True,
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "domain"
        DDPMPipeline(copy, scheduler).save_pretrained(made, safe_serialization=True)
        (made / "domain.json").write_text(json.dumps(dict(card), indent=2) + "\n")
        for file in made.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes its files private
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        made.rename(folder)
    return folder


def network_config(network: Network) -> dict[str, Any]:
    """The settings that rebuild a network of the class they name, as plain JSON values."""
    config: dict[str, Any] = json.loads(network.to_json_string())
    return config


Config = Mapping[str, Any]
OnDisk = tuple[Config, Config, Config, Callable[[], Network]]
"""Configurations of network and scheduler, the card, and a function to load the network."""


def _open_folder(path: Path) -> OnDisk:
    config = _read_json(path / "unet" / "config.json")
    class_name = config.get("_class_name")
    if class_name not in NETWORKS:
        raise ValueError(
            f"domain: {path / 'unet'} holds a {class_name}, not one of {', '.join(NETWORKS)}"
        )
    scheduler_config = _read_json(path / "scheduler" / "scheduler_config.json")
    _check_weights(path / "unet")
    card_file = path / "domain.json"
    card = _read_json(card_file) if card_file.is_file() else {}
    load = partial(_load_folder, path / "unet", NETWORKS[class_name])
    return config, scheduler_config, card, load


def _check_weights(path: Path) -> None:
    """The weights are there and, in safetensors, whole: their header tells the file's size."""
    files = list(path.glob("*.safetensors"))
    if not files and not list(path.glob("*.bin")):
        raise ValueError(f"domain: {path} holds no weights (*.safetensors or *.bin)")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"domain: {file} cannot be read: {_first_line(error)}") from error


def _load_folder(path: Path, network_class: type[Network]) -> Network:
    """diffusers' own loading, which also reads old tensor names and sharded files, made strict."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        unet, report = network_class.from_pretrained(
            path, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers and safetensors raise a dozen kinds for a bad file
        raise ValueError(f"domain: {path} cannot be read: {_first_line(error)}") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            names = [str(name) for name in report[kind]]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"domain: {path}: {kind.replace('_', ' ')}: {', '.join(names[:3])}{more}"
            )
    assert isinstance(unet, network_class)
    return unet


def _open_checkpoint(path: Path) -> OnDisk:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"domain: {path} cannot be read: {_first_line(error)}") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_ENTRY not in checkpoint:
        raise ValueError(f"domain: {path} is not a checkpoint of cyclelight's DomainModule")
    entry = checkpoint[CHECKPOINT_ENTRY]

    def load_network() -> Network:
        prefix = "denoiser.network."
        state = checkpoint["state_dict"].items()
        unet = _build(entry["unet"])
        unet.load_state_dict({n.removeprefix(prefix): v for n, v in state if n.startswith(prefix)})
        return unet

    return entry["unet"], entry["scheduler"], entry["card"], load_network


def _build(config: Config) -> Network:
    return NETWORKS[config["_class_name"]].from_config(config)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"domain: {path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"domain: {path} must hold a JSON object")
    return value
