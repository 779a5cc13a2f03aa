"""The settings of a stored network, judged before anything is built of them.

Whoever made a `config.json` says how large a network is: ten million layers would be built for
hours, and text in the place of a number would fail in the first step.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from cyclelight.errors import printable
from cyclelight.networks.sn import BODIES

LARGEST = 2**16
"""Of any number: channels, pixels, groups, heads."""
MOST_LEVELS = 16
"""Of a list, such as that of the channels of each level."""
MOST_LAYERS = 64
"""Of what is repeated, at each level or in a row."""
LAYERS = (
    *("layers_per_block", "num_res_blocks", "n_blocks", "mapping_layers", "latent_layers"),
    *("transformer_layers_per_block", "reverse_transformer_layers_per_block", "num_hidden_layers"),
    *("encoder_layers", "num_layers", "num_single_layers"),
)
DEEPEST = 3
"""Lists and settings within one another."""


def check_config(config: Mapping[str, Any], kind: type | None, depth: int = 0) -> None:
    """Raises ValueError, naming the setting, unless a network can be built of these settings.

    Args:
        config: what a `config.json` holds, or a part of it.
        kind: the class that is built of it; None for a part, whose class is not known.
        depth: how deep that part lies.
    """
    parameters = inspect.signature(kind).parameters if kind else {}
    for key, value in config.items():
        told = printable(key, 80)
        if key == "body" and isinstance(value, Mapping):
            name = value.get("_class_name")
            if not isinstance(name, str) or name not in BODIES:
                raise ValueError(f"body must be one of {', '.join(BODIES)}")
            check_config(value, BODIES[name], depth + 1)
        elif isinstance(value, Mapping) and key not in parameters and not key.startswith("_"):
            if depth >= DEEPEST:
                raise ValueError(f"{told} must not hold settings at such a depth")
            check_config(value, None, depth + 1)
        elif not key.startswith("_"):  # What diffusers notes of its own.
            known = parameters.get(key)
            kinds = str(known.annotation) if known else "None | float | tuple"
            reason = _fault(value, known.default if known else None, kinds)
            if reason is None and isinstance(value, int | float) and value < 0:
                # Which stands for a default of the heads alone.
                reason = None if key.startswith("num_head") and value == -1 else "not be below 0"
            if reason is None and key in LAYERS:
                counts = value if isinstance(value, list | tuple) else [value]
                if not all(c is None or 0 <= c <= MOST_LAYERS for c in counts):
                    reason = f"be in 0..{MOST_LAYERS}"
            if reason is not None:
                raise ValueError(f"{told} must {reason}, got {printable(repr(value), 80)}")


def _fault(value: Any, default: Any, kinds: str, depth: int = 0) -> str | None:
    """What a setting must be and is not; None if it is well. `kinds` is its annotation."""
    truth = isinstance(default, bool)
    number = isinstance(default, int | float) and not truth
    if value is None:
        return "be a number" if number and "None" not in kinds and "Optional" not in kinds else None
    if truth and not isinstance(value, bool):
        return "be true or false"
    if number and (isinstance(value, bool | str) or not isinstance(value, int | float | list)):
        return "be a number"
    if isinstance(value, int | float):
        if isinstance(default, str):
            return "be text"
        if isinstance(value, float) and isinstance(default, int) and "float" not in kinds:
            return "be an integer"
        within = math.isfinite(value) and abs(value) <= LARGEST
        return None if within else f"be a number of at most {LARGEST}"
    if isinstance(value, str):
        return None if len(value) <= 200 else "be a short text"
    if not isinstance(value, list | tuple):
        return "not hold settings of its own"
    if number and not any(word in kinds for word in ("tuple", "list", "Tuple", "List")):
        return "be a number"
    if depth >= DEEPEST or len(value) > MOST_LEVELS:
        return f"be a number, text, or a list of at most {MOST_LEVELS} of them"
    if any(isinstance(inner, int | float) and inner < 0 for inner in value):
        return "not hold numbers below 0"
    faults = (_fault(inner, None, "float", depth + 1) for inner in value)
    return next((fault for fault in faults if fault is not None), None)
