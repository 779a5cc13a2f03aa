"""guided-diffusion's checkpoints -> `ADMUNet`, and back.

The shape of the network is read from the names and shapes of the tensors. Not to be told from them:
the image size, the heads of the attention, and the order of queries, keys and values.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cyclelight.domains.adapters.adm_flags import ADMFlags, of_levels
from cyclelight.domains.model_files import read_tensors
from cyclelight.errors import first_line
from cyclelight.networks.adm import ADMSettings, ADMUNet
from cyclelight.networks.adm_parts import AttentionBlock

State = dict[str, Tensor]

SIZES = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
    (1, 2, 2, 2): 32,
}
"""The image sizes for which guided-diffusion has these channel_mult by default; the last one is
improved-diffusion's."""


def read_state(path: str | Path) -> State:
    """The tensors of a `.pt` or `.safetensors` file by name, without the prefix `module.`.

    Only tensors are read: a pickle that would run code is refused.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if safe else read_tensors(path, "import")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"import: {path} cannot be read: {first_line(error)}") from error
    if not isinstance(state, dict) or not state:
        raise ValueError(f"import: {path} holds no tensors by name, but a {type(state).__name__}")
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"import: {path} must hold tensors by name, as guided-diffusion's files do; "
            f"{others[0]} is no tensor"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value.float() for name, value in state.items()}


def load_adm(path: str | Path, flags: ADMFlags) -> ADMUNet:
    """The network of a checkpoint of guided-diffusion, in evaluation mode, float32.

    Raises:
        ValueError: the file is no such checkpoint, a flag is missing or contradicts the tensors, or
            tensors are missing, unexpected or misshapen; they are listed by name.
    """
    state = read_state(path)
    try:
        settings = settings_of(state, flags)
        state = _with_label(state, flags.class_label)
        with torch.device("meta"):
            shape = ADMUNet(**settings)
        compare(shape.state_dict(), state)
    except ValueError as error:
        raise ValueError(f"import: {path}: {error}") from error
    if flags.use_new_attention_order:
        state = reordered(shape, state)
    network = ADMUNet(**settings)
    network.load_state_dict(state)
    return network.eval()


def reordered(network: nn.Module, state: State) -> State:
    """The tensors of `network` with q, k and v within the heads, where they came before these."""
    state = dict(state)
    for name, layer in network.named_modules():
        if isinstance(layer, AttentionBlock):
            for kind in ("weight", "bias"):
                rows = state[f"{name}.qkv.{kind}"]
                ordered = rows.view(3, layer.heads, -1, *rows.shape[1:]).transpose(0, 1)
                state[f"{name}.qkv.{kind}"] = ordered.reshape(rows.shape)
    return state


def save_adm(network: ADMUNet, path: str | Path) -> None:
    """Write the tensors as guided-diffusion does, in the legacy order; whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        torch.save(network.state_dict(), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def flags_of(network: ADMUNet) -> dict[str, str]:
    """The flags with which guided-diffusion's programs load what `save_adm` wrote."""
    flags = {name: str(value) for name, value in network.config.items() if name[0] != "_"}
    flags["image_size"] = flags.pop("sample_size")
    for name in ("attention_resolutions", "channel_mult"):
        flags[name] = ",".join(f"{value:g}" for value in network.config[name])
    del flags["in_channels"]
    flags["rescale_timesteps"] = str(float(flags.pop("timestep_scale")) != 1)
    if network.config.num_head_channels != -1:
        del flags["num_heads"], flags["num_heads_upsample"]  # not used then
    return {**flags, "class_cond": "False", "use_new_attention_order": "False"}


def settings_of(state: State, flags: ADMFlags) -> dict[str, Any]:
    """The arguments of `ADMUNet` for these tensors.

    Raises:
        ValueError: the tensors are not those of an ADM UNet, or a flag is needed.
    """
    try:
        settings, factors = read_shape(state)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"these are not the tensors of a UNet of guided-diffusion: {error.args[0]} is not there"
        ) from error
    mult = settings["channel_mult"]
    size = flags.image_size or SIZES.get(mult)
    if size is None:
        raise ValueError(
            f"the image size cannot be told from channel_mult {','.join(map(str, mult))}: "
            "give --flags.image_size"
        )
    settings |= {
        "sample_size": size,
        "attention_resolutions": tuple(size // factor for factor in factors),
        "num_heads": flags.num_heads or 4,
        "num_head_channels": flags.num_head_channels or -1,
        "num_heads_upsample": flags.num_heads_upsample or -1,
    }
    if flags.num_heads is None and flags.num_head_channels is None:
        afhq = {"sample_size": 256, "in_channels": 3, **asdict(ADMSettings())}
        if {**settings, "num_head_channels": 64} != afhq:
            raise ValueError(
                "the heads of the attention cannot be told from the tensors: give "
                "--flags.num_head_channels (64 in most published models) or --flags.num_heads"
            )
        settings["num_head_channels"] = 64
    levels = len(mult)
    read = {
        **{name: settings[name] for name in ("num_channels", "num_res_blocks", "channel_mult")},
        **{name: settings[name] for name in ("attention_resolutions", "use_scale_shift_norm")},
        "resblock_updown": settings["resblock_updown"] if levels > 1 else None,
        "learn_sigma": settings["learn_sigma"],
        "class_cond": "label_emb.weight" in state,
    }
    of_levels(flags, size, levels).check(read)
    return {**settings, "dropout": flags.dropout or 0.0, "timestep_scale": flags.timestep_scale}


def read_shape(state: State) -> tuple[dict[str, Any], list[int]]:
    """(settings, downsampling factors of the levels with attention)."""
    blocks = len({name.split(".")[1] for name in state if name.startswith("output_blocks.")})
    # What follows the residual block and the attention doubles the resolution: once a level.
    up = re.compile(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers)\.")
    ends = sorted({int(found[1]) for name in state if (found := up.match(name))})
    levels = len(ends) + 1
    per_level, rest = divmod(blocks, levels)
    if not blocks or rest or ends != [(k + 1) * per_level - 1 for k in range(levels - 1)]:
        raise ValueError("these are not the tensors of a UNet of guided-diffusion: output_blocks")
    num_channels = state["time_embed.0.weight"].shape[1]
    first = [f"output_blocks.{(levels - 1 - level) * per_level}" for level in range(levels)]
    widths = [state[f"{name}.0.out_layers.3.weight"].shape[0] for name in first]
    mult = [width / num_channels for width in widths]
    in_channels = state["input_blocks.0.0.weight"].shape[1]
    settings = {
        "in_channels": in_channels,
        "num_channels": num_channels,
        "channel_mult": tuple(int(m) if m.is_integer() else m for m in mult),
        "num_res_blocks": per_level - 1,
        "use_scale_shift_norm": len(state[f"{first[0]}.0.emb_layers.1.weight"]) == 2 * widths[0],
        "resblock_updown": any(found[2] == "in_layers" for found in map(up.match, state) if found),
        "dropout": 0.0,
        "learn_sigma": len(state["out.2.weight"]) == 2 * in_channels,
    }
    attended = [f"{name}.1.qkv.weight" in state for name in first]
    return settings, [2**level for level in range(levels) if attended[level]]


def _with_label(state: State, label: int | None) -> State:
    """Without classes: the embedding of one is added to what the timestep's ends with."""
    table = state.get("label_emb.weight")
    if table is None:
        if label is not None:
            raise ValueError("--flags.class_label is given, but this network has no classes")
        return state
    if label is None or not 0 <= label < len(table):
        raise ValueError(
            f"this network has {len(table)} classes: give --flags.class_label, 0 to "
            f"{len(table) - 1}, the one that becomes the domain"
        )
    state = {name: value for name, value in state.items() if name != "label_emb.weight"}
    return {**state, "time_embed.2.bias": state["time_embed.2.bias"] + table[label]}


def compare(wanted: Mapping[str, Tensor], state: State) -> None:
    """Raises ValueError with the names of tensors that are missing, unexpected or misshapen."""
    shapes = {name: "x".join(map(str, value.shape)) for name, value in wanted.items()}
    misshapen = [
        f"{name} ({'x'.join(map(str, value.shape))} instead of {shapes[name]})"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "misshapen": misshapen,
    }
    told = []
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            told.append(f"{kind}: {', '.join(names[:5])}{more}")
    if told:
        raise ValueError(f"the tensors do not fit: {'; '.join(told)}")
