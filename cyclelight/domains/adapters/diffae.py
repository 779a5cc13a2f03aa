"""diffae's checkpoints (Preechakul et al. 2022) -> `DiffusionAutoencoder`.

A Lightning checkpoint with the averaged weights as `ema_model.*`, and the statistics of the codes
in a file of their own, `latent.pkl`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclelight.domains.adapters.adm import State, compare, read_shape
from cyclelight.domains.model_files import read_tensors
from cyclelight.errors import at_least
from cyclelight.networks.diffae import DiffusionAutoencoder

PREFIX = "ema_model."


def is_diffae(checkpoint: Any) -> bool:
    """Whether this is what a checkpoint of diffae holds."""
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    return isinstance(state, dict) and f"{PREFIX}encoder.out.3.weight" in state


def load_diffae(
    path: str | Path,
    codes: str | Path | None = None,
    *,
    image_size: int,
    latent_beta_start: float = 1e-4,
    latent_beta_end: float = 0.02,
) -> tuple[DiffusionAutoencoder, bool]:
    """(the networks of a checkpoint of diffae, in evaluation mode, float32; has it a latent prior).

    Args:
        path: the `.ckpt` file.
        codes: the `latent.pkl`, without which there is no latent prior.
        image_size: height and width of the images in pixels.
        latent_beta_start: the latent prior's schedule is linear, from this variance
        latent_beta_end: to this one.

    Raises:
        ValueError: the file is no such checkpoint, or tensors are missing, unexpected or misshapen;
            they are listed by name.
    """
    at_least(1, image_size=image_size)
    checkpoint = read_tensors(Path(path), "import")
    if not is_diffae(checkpoint):
        raise ValueError(f"import: {path} is no checkpoint of diffae: it has no {PREFIX}encoder")
    found = checkpoint["state_dict"].items()
    old = {name.removeprefix(PREFIX): v.float() for name, v in found if name.startswith(PREFIX)}
    has_prior = any(name.startswith("latent_net.") for name in old)
    if has_prior and codes is None:
        raise ValueError("import: a latent prior needs the statistics of the codes: give --codes")
    state = {_renamed(name): value for name, value in old.items() if ".linear_emb." not in name}
    try:
        settings = _settings(old, state, image_size)
        settings |= {"latent_beta_start": latent_beta_start, "latent_beta_end": latent_beta_end}
        with torch.device("meta"):
            wanted = DiffusionAutoencoder(**settings).state_dict()
        network = DiffusionAutoencoder(**settings)
        own = network.state_dict()
        state |= _statistics(codes) if codes is not None else {n: own[n] for n in STATISTICS}
        if not has_prior:
            state |= {name: value for name, value in own.items() if name.startswith("prior.")}
        compare(wanted, state)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"import: {path}: {error}") from error
    network.load_state_dict(state)
    network.eval()
    return network, has_prior


STATISTICS = ("code_mean", "code_std")


def _statistics(path: str | Path) -> State:
    held = read_tensors(Path(path), "import")
    names = ("conds_mean", "conds_std")
    if not isinstance(held, dict) or not all(isinstance(held.get(n), Tensor) for n in names):
        raise ValueError(f"{path} must hold the tensors {' and '.join(names)}")
    return {ours: held[n].float().flatten() for ours, n in zip(STATISTICS, names, strict=True)}


def _renamed(name: str) -> str:
    if name.startswith("encoder."):
        return name
    if name.startswith("latent_net."):
        return f"prior.{name.removeprefix('latent_net.')}"
    return f"denoiser.{name.removeprefix('time_embed.')}"


def _settings(old: State, state: State, image_size: int) -> dict[str, Any]:
    """The arguments of `DiffusionAutoencoder` for these tensors."""
    unet = {n.removeprefix("denoiser."): v for n, v in state.items() if n.startswith("denoiser.")}
    shape, factors = read_shape(unet)
    n, width = shape["num_res_blocks"], len(old["input_blocks.0.0.weight"])
    blocks = len({name.split(".")[2] for name in old if name.startswith("encoder.input_blocks.")})
    first = [f"encoder.input_blocks.{1 + i * (n + 1)}.0" for i in range(blocks // (n + 1))]
    widths = [len(old[f"{name}.in_layers.2.weight"]) for name in first]
    layers = {name.split(".")[2] for name in old if name.startswith("latent_net.layers.")}
    prior = {}
    if layers:
        prior = {
            "latent_width": len(old["latent_net.layers.0.linear.weight"]),
            "latent_layers": len(layers),
            "latent_time": old["latent_net.time_embed.0.weight"].shape[1],
        }
    return {
        "sample_size": image_size,
        "in_channels": shape["in_channels"],
        "num_channels": width,
        "channel_mult": shape["channel_mult"],
        "encoder_mult": tuple(w // width for w in widths),
        "num_res_blocks": n,
        "attention_resolutions": tuple(image_size // factor for factor in factors),
        "code_size": len(old["encoder.out.3.weight"]),
        **prior,
    }
