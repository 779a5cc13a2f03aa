"""Extended-Analytic-DPM's checkpoints (Bao et al. 2022) -> `CovarianceNetwork`.

There are two families: networks of pytorch_diffusion, whose second head is `norm_out2` and
`conv_out2`, and networks of improved-diffusion, whose second head is `out2`. The shape is read from
the tensors; not to be told from them are the image size, the heads of improved-diffusion's
attention, and which of the two covariances it is.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cyclelight.domains.adapters.adm import State, compare, read_state, settings_of
from cyclelight.domains.adapters.adm_flags import ADMFlags
from cyclelight.networks.adm import ADMUNet
from cyclelight.networks.sn import Covariance, CovarianceNetwork, HeadKind

NAMES = (
    (r"temb\.dense\.0\.", "time_embedding.linear_1."),
    (r"temb\.dense\.1\.", "time_embedding.linear_2."),
    (r"down\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"down\.(\d+)\.attn\.", r"down_blocks.\1.attentions."),
    (r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"up\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"up\.(\d+)\.attn\.", r"up_blocks.\1.attentions."),
    (r"up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"\.temb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
"""pytorch_diffusion's names and diffusers', whose `up_blocks` begin at the coarsest level."""
LAST = {
    "norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "norm_out2.": "out2.0.",
    "conv_out2.": "out2.2.",
}


def has_covariance(state: State) -> bool:
    """Whether these are the tensors of one of the two families."""
    return any(name.startswith(("conv_out2.", "out2.", "before_out.")) for name in state)


def load_sn_ddpm(path: str | Path, flags: ADMFlags, covariance: Covariance) -> CovarianceNetwork:
    """The network of a checkpoint of Extended-Analytic-DPM, in evaluation mode, float32.

    A variance that the body learned itself is left out, as that program does.

    Args:
        path: the `.pt` file: a plain dictionary of tensors.
        flags: `image_size`, and for improved-diffusion's networks the heads of the attention.
        covariance: which of the two the head was trained for.

    Raises:
        ValueError: the file is no such checkpoint, a flag is missing, or tensors are missing,
            unexpected or misshapen; they are listed by name.
    """
    state = read_state(path)
    try:
        body, state, head = (_improved if "input_blocks.0.0.weight" in state else _plain)(
            state, flags
        )
        shape = {name: body[name] for name in ("sample_size", "in_channels")}
        arguments: Any = {"body": body, **shape, "covariance": covariance, "head": head}
        with torch.device("meta"):
            wanted = CovarianceNetwork(**arguments).state_dict()
        compare(wanted, state)
    except ValueError as error:
        raise ValueError(f"import: {path}: {error}") from error
    network = CovarianceNetwork(**arguments)
    network.load_state_dict(state)
    nn.Module.eval(network)
    return network


def _improved(state: State, flags: ADMFlags) -> tuple[dict[str, Any], State, HeadKind]:
    """(settings of the body, the tensors by our names, the kind of head) of improved-diffusion."""
    head = {name: value for name, value in state.items() if name.startswith("out2.")}
    rest = {name: value for name, value in state.items() if name not in head}
    if flags.image_size is None:
        raise ValueError("the image size cannot be told from the tensors: give --flags.image_size")
    settings = settings_of(rest, replace(flags, num_heads=flags.num_heads or 4))
    channels = settings["in_channels"]
    if settings["learn_sigma"]:
        rest |= {f"out.2.{kind}": rest[f"out.2.{kind}"][:channels] for kind in ("weight", "bias")}
    body = {**settings, "learn_sigma": False, "_class_name": ADMUNet.__name__}
    inner = ((name if name.startswith("out.") else f"trunk.{name}", v) for name, v in rest.items())
    return body, {**dict(inner), **head}, "complex" if "out2.3.weight" in head else "simple"


def _plain(state: State, flags: ADMFlags) -> tuple[dict[str, Any], State, HeadKind]:
    """(settings of the body, the tensors by our names, the kind of head) of pytorch_diffusion."""
    if flags.timestep_scale != 1:
        raise ValueError("networks of pytorch_diffusion are fed t itself, whatever T is")
    if any(name.startswith("before_out.") for name in state):
        raise ValueError("complex heads are read of improved-diffusion's networks alone")
    if flags.image_size is None:
        raise ValueError("the image size cannot be told from the tensors: give --flags.image_size")
    levels = len({name.split(".")[1] for name in state if name.startswith("down.")})
    try:
        widths = [len(state[f"down.{level}.block.0.conv1.weight"]) for level in range(levels)]
        in_channels = state["conv_in.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"these are not the tensors of such a UNet: no {error.args[0]}") from error
    attends = [f"down.{level}.attn.0.norm.weight" in state for level in range(levels)]
    first = re.compile(r"down\.0\.block\.\d+\.conv1\.weight")
    body = {
        "_class_name": "UNet2DModel",
        "sample_size": flags.image_size,
        "in_channels": in_channels,
        "out_channels": in_channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": sum(bool(first.fullmatch(name)) for name in state),
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        "attention_head_dim": None,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    }
    found: State = {}
    for name, value in state.items():
        found[_renamed(name, levels)] = (
            value[:, :, 0, 0] if ".attn" in name and value.ndim == 4 else value
        )
    return body, found, "simple"


def _renamed(name: str, levels: int) -> str:
    for old, new in LAST.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name)
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
    return f"trunk.{name}"
