"""denoising-diffusion-gan's checkpoints (Xiao, Kreis and Vahdat 2022) -> `DDGANGenerator`.

The shape is read from the tensors; not to be told from them are the image size and the number of
steps. The filters of the resampling are no tensors there; they are those of the published models.
"""

from pathlib import Path
from typing import Any

import torch

from cyclelight.domains.adapters.adm import State, compare, read_state
from cyclelight.errors import at_least
from cyclelight.networks.ddgan import DDGANGenerator


def is_ddgan(state: State) -> bool:
    """Whether these are the tensors of such a generator."""
    return any(name.startswith("all_modules.") for name in state)


def load_ddgan(path: str | Path, *, image_size: int, timesteps: int = 4) -> DDGANGenerator:
    """The generator of a checkpoint of denoising-diffusion-gan, in evaluation mode, float32.

    Args:
        path: the `.pth` or `.pt` file of the generator: a plain dictionary of tensors.
        image_size: height and width of the images in pixels.
        timesteps: steps from noise to image that it was trained for.

    Raises:
        ValueError: the file is no such checkpoint, or tensors are missing, unexpected or misshapen;
            they are listed by name.
    """
    at_least(1, image_size=image_size, timesteps=timesteps)
    state = read_state(path)
    try:
        settings = {**_settings(state, image_size), "timesteps": timesteps}
        with torch.device("meta"):
            wanted = DDGANGenerator(**settings).state_dict()
        compare(wanted, state)
    except ValueError as error:
        raise ValueError(f"import: {path}: {error}") from error
    network = DDGANGenerator(**settings)
    network.load_state_dict(state)
    network.eval()
    return network


def _settings(state: State, image_size: int) -> dict[str, Any]:
    """The arguments of `DDGANGenerator` for these tensors."""
    parts: dict[int, set[str]] = {}
    for name in state:
        if name.startswith("all_modules."):
            _, number, rest = name.split(".", 2)
            parts.setdefault(int(number), set()).add(rest)
    kinds = "".join(_kind(parts.get(number, set())) for number in range(max(parts, default=0) + 1))
    # linear, linear, convolution; the levels on the way down, each but the last ending with a block
    # and a convolution of the image pyramid; the middle; ...
    levels = kinds.count("P") + 1
    n = kinds[: kinds.index("P")].count("R") - 1 if levels > 1 else (kinds.count("R") - 3) // 2
    try:
        num_channels, in_channels = state["all_modules.2.weight"].shape[:2]
        starts, at = [], 3
        for _ in range(levels):
            starts.append(at)
            at = kinds.find("P", at) + 1
        widths = [len(state[f"all_modules.{start}.Conv_0.weight"]) for start in starts]
        embedding_size, latent_size = state["z_transform.1.weight"].shape
    except (KeyError, ValueError) as error:
        raise ValueError(f"these are not the tensors of a DDGAN generator: {error}") from error
    attends = [kinds[start + 1 : start + 2] == "A" for start in starts]
    mapping = sum(name.startswith("z_transform.") and name.endswith("weight") for name in state)
    return {
        "sample_size": image_size,
        "in_channels": in_channels,
        "num_channels": num_channels,
        "channel_mult": tuple(width // num_channels for width in widths),
        "num_res_blocks": n,
        "attention_resolutions": tuple(image_size >> i for i, a in enumerate(attends) if a),
        "latent_size": latent_size,
        "embedding_size": embedding_size,
        "mapping_layers": mapping - 1,
        "dropout": 0.0,
    }


def _kind(names: set[str]) -> str:
    """R residual block, A attention, P convolution of the pyramid, - anything else."""
    marks = {"Conv_0.weight": "R", "NIN_0.W": "A", "Conv2d_0.weight": "P"}
    return next((kind for mark, kind in marks.items() if mark in names), "-")
