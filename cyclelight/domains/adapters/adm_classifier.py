"""guided-diffusion's classifiers of noisy images, and EGSDE's, -> `ClassifierUNet`.

The shape of the network is read from the names and shapes of the tensors. guided-diffusion keeps
the head as `out.*`, EGSDE as `I2Iout.*`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cyclelight.domains.adapters.adm import SIZES, State, compare, read_state
from cyclelight.domains.adapters.adm import reordered as in_legacy_order
from cyclelight.domains.adapters.adm_flags import OF_CLASSIFIERS, ADMFlags, of_levels
from cyclelight.domains.classifier import DomainClassifier
from cyclelight.networks.classifier import ClassifierUNet

HEAD_CHANNELS = 64
"""Channels of a head in every classifier of guided-diffusion."""


def is_classifier(state: State) -> bool:
    """Whether tensors are those of a half UNet with a head for classes."""
    heads = ("I2Iout.0.weight", "out.2.positional_embedding", "out.3.weight")
    down_only = not any(name.startswith("output_blocks.") for name in state)
    return down_only and "input_blocks.0.0.weight" in state and any(n in state for n in heads)


def load_adm_classifier(
    path: str | Path, flags: ADMFlags, classes: tuple[str, ...] = ()
) -> DomainClassifier:
    """The classifier of a checkpoint, in evaluation mode, float32.

    Args:
        path: the file.
        flags: of the network; num_head_channels is 64 where it is not given.
        classes: the names of the classes, in the order of the logits; else their numbers.

    Raises:
        ValueError: the file is no such checkpoint, a flag is missing or contradicts the tensors, or
            tensors are missing, unexpected or misshapen; they are listed by name.
    """
    state = read_state(path)
    state = {re.sub(r"^I2Iout\.", "out.", name): value for name, value in state.items()}
    try:
        settings = settings_of(state, flags)
        with torch.device("meta"):
            shape = ClassifierUNet(**settings)
        compare(shape.state_dict(), state)
        count = settings["num_classes"]
        if classes and len(classes) != count:
            raise ValueError(f"the network has {count} classes, {len(classes)} names are given")
    except ValueError as error:
        raise ValueError(f"import: {path}: {error}") from error
    if flags.use_new_attention_order:
        state = in_legacy_order(shape, state)
    network = ClassifierUNet(**settings)
    network.load_state_dict(state)
    names = classes or tuple(map(str, range(count)))
    return DomainClassifier(network.eval(), flags.schedule, names)


def settings_of(state: State, flags: ADMFlags) -> dict[str, Any]:
    """The arguments of `ClassifierUNet` for these tensors.

    Raises:
        ValueError: the tensors are not those of such a network, or a flag is needed.
    """
    try:
        shapes = list(_shapes(state))
        table = state.get("out.2.positional_embedding")
        last = state["out.3.weight" if table is None else "out.2.c_proj.weight"]
        scale_shift = len(state["middle_block.0.emb_layers.1.weight"])
        in_channels = state["input_blocks.0.0.weight"].shape[1]
    except KeyError as error:
        raise ValueError(
            f"these are not the tensors of a classifier of guided-diffusion: {error.args[0]} is "
            f"not there"
        ) from error
    sized = []
    for mult, blocks, factors, updown in shapes:
        size = flags.image_size or SIZES.get(mult)
        if table is not None:
            # The table has one place for each position of the last level, and one for their mean.
            side = round((table.shape[1] - 1) ** 0.5)
            told = side * 2 ** (len(mult) - 1)
            size = told if flags.image_size in (None, told) else None
        if size is not None:
            sized.append((mult, blocks, factors, updown, size))
    if len(sized) > 1:
        sized = [found for found in sized if SIZES.get(found[0]) == found[-1]]
    if len(sized) != 1:
        raise ValueError("the image size cannot be told from the tensors: give --flags.image_size")
    mult, blocks, factors, updown, size = sized[0]
    channels = flags.num_head_channels or (-1 if flags.num_heads else HEAD_CHANNELS)
    if flags.timestep_scale != 1:
        raise ValueError("classifiers of rescaled timesteps are not known")
    settings = {
        "sample_size": size,
        "in_channels": in_channels,
        "num_classes": len(last),
        "num_channels": state["time_embed.0.weight"].shape[1],
        "channel_mult": mult,
        "num_res_blocks": blocks,
        "attention_resolutions": tuple(size // factor for factor in factors),
        "num_heads": flags.num_heads or 1,
        "num_head_channels": channels,
        "use_scale_shift_norm": scale_shift == 2 * len(state["out.0.weight"]),
        "resblock_updown": updown,
        "dropout": 0.0,
        "pool": "adaptive" if table is None else "attention",
    }
    read = {name: settings[name] for name in OF_CLASSIFIERS}
    if len(mult) == 1:
        read["resblock_updown"] = None
    of_levels(flags, size, len(mult), classifier=True).check(read, classifier=True)
    return settings


Shape = tuple[tuple[float, ...], int, list[int], bool]


def _shapes(state: State) -> Iterator[Shape]:
    """(channel_mult, blocks a level, downsampling factors with attention, updown), if it fits.

    Halving inside residual blocks leaves open how many of these make a level: all numbers are tried
    for which the levels are each of one width and attend throughout or not at all.
    """
    numbers = {int(name.split(".")[1]) for name in state if name.startswith("input_blocks.")}
    count = len(numbers)
    strided = [n for n in sorted(numbers) if f"input_blocks.{n}.0.op.weight" in state]
    base = state["time_embed.0.weight"].shape[1]
    for levels in range(1, count + 1):
        per_level, rest = divmod(count, levels)
        ends = [per_level * (level + 1) for level in range(levels - 1)]
        if rest or (strided and strided != ends):
            continue
        inner = [range(per_level * level + 1, per_level * (level + 1)) for level in range(levels)]
        widths = [
            {len(state[f"input_blocks.{n}.0.out_layers.3.weight"]) for n in blocks}
            for blocks in inner
        ]
        attend = [{f"input_blocks.{n}.1.qkv.weight" in state for n in blocks} for blocks in inner]
        if any(len(found) != 1 for found in widths) or any(len(found) != 1 for found in attend):
            continue
        # What halves the resolution keeps the width, and never attends.
        if not strided and any(
            f"input_blocks.{n}.1.qkv.weight" in state
            or {len(state[f"input_blocks.{n}.0.out_layers.3.weight"])} != widths[level]
            for level, n in enumerate(ends)
        ):
            continue
        mult = [width / base for found in widths for width in found]
        factors = [2**level for level, found in enumerate(attend) if True in found]
        whole = tuple(int(m) if m.is_integer() else m for m in mult)
        yield whole, per_level - 1, factors, not strided and levels > 1
