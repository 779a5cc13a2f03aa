"""Texts of edits, as a CLIP reads them before a run and judges them after it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from cyclelight.errors import BadValue, first_line, printable
from datamodules.items import Items

if TYPE_CHECKING:
    from cyclelight.metrics.structure import Dino
    from cyclelight.text.clip import Clip

TEXTS = ("source_text", "target_text")
"""The fields of an edit."""


def load_clip(path: str) -> Clip:
    """The CLIP of a folder or of the Hugging Face Hub; errors as `Clip`."""
    # Not at the top, since transformers' CLIP takes seconds that few runs need.
    clip: Clip = import_module("cyclelight.text.clip").Clip(path)
    return clip


def load_dino(path: str) -> Dino:
    """The DINO of a folder or of the Hugging Face Hub; errors as `Dino`."""
    dino: Dino = import_module("cyclelight.metrics.structure").Dino(path)
    return dino


def check_texts(clip: Clip, items: Items) -> None:
    """Raises ValueError unless each image has two texts that a CLIP can read."""
    for key in items.keys:
        for name in TEXTS:
            text = items.fields.get(key, {}).get(name)
            if text is None:
                raise BadValue("clip", f"clip judges edits by their texts, and {key} has no {name}")
            try:
                clip.check([text])
            except ValueError as error:
                told = f"clip: {name} of {key}: {first_line(error)}"
                raise BadValue("clip", told) from error


def warn_of_texts(images: Mapping[str, Mapping[str, float]], least: float) -> None:
    """Name images that their source text hardly fits: their edits go wrong."""
    unlike = sorted(
        (figures["source match"], key)
        for key, figures in images.items()
        if figures.get("source match", 1.0) < least
    )
    if unlike:
        match, key = unlike[0]
        rank_zero_warn(
            f"{len(unlike)} of {len(images)} images, such as {printable(key)} ({match:.2f}), are "
            f"hardly what their source text says (below {least}): edits start from that text"
        )
