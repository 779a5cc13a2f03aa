"""The figures: one entry each in `FIGURES`, which files, tables and pages are made from."""

import math
from collections.abc import Collection

from torch import Tensor

from cyclelight.errors import one_of
from cyclelight.metrics.edits import (
    clip_score,
    directional_clip_score,
    region_clip_score,
    source_match,
)
from cyclelight.metrics.faithfulness import Lpips, NearestIsTruth, l2, mse, psnr, ssim, whole_ssim
from cyclelight.metrics.figure_kinds import ImageFigure, Score, SetFigure, Sets
from cyclelight.metrics.realism import IMAGENET_CLASSES, Estimate, class_rate


def classes_of(name: str) -> Collection[int]:
    """ImageNet's classes of a domain.

    Raises:
        ValueError: the name is not one of `IMAGENET_CLASSES`.
    """
    one_of(IMAGENET_CLASSES, classes=name)
    return IMAGENET_CLASSES[name]


def _class_rate(sets: Sets) -> Score | None:
    name = sets.classes
    if name is None:
        return None

    def rate(labels: Tensor | None) -> Estimate | None:
        return None if labels is None else class_rate(labels, classes_of(name))

    mine, of_real = rate(sets.images.column("label")), rate(sets.reference.column("label"))
    untranslated = rate(sets.images.column("source label"))
    if mine is None:
        return None
    return Score(
        figure=f"{name} rate",
        value=mine.value,
        standard_error=mine.standard_error,
        real=of_real and of_real.value,
        untranslated=untranslated and untranslated.value,
        n=len(sets.images),
        n_reference=len(sets.reference) or None,
        protocol=f"{sets.protocol.network}, ImageNet's classes of {name}",
    )


def _kid(sets: Sets) -> Score | None:
    protocol, errors = sets.protocol, list[float]()

    def distance(x: Tensor, y: Tensor) -> float:
        value, error = protocol.kid(x, y)
        errors.append(error)
        return value

    value, real = sets.compare(distance, "row"), sets.reference.column("row")
    if value is None or real is None:
        return None
    return Score(
        figure="KID",
        value=value,
        standard_error=None if math.isnan(errors[0]) else errors[0],
        real=distance(real[::2], real[1::2]) if len(real) > 3 else None,
        untranslated=sets.compare(distance, "source row"),
        protocol=protocol.describe(),
        scale=protocol.kid_scale,
        higher_is_better=False,
        n=len(sets.images),
        n_reference=len(sets.reference),
    )


def _fid(sets: Sets) -> Score | None:
    value = sets.compare(sets.protocol.fid, "row")
    if value is None:
        return None
    # None of real images: of halves, FID would be far above that of all, as it depends on n.
    return Score(
        figure="FID",
        value=value,
        untranslated=sets.compare(sets.protocol.fid, "source row"),
        protocol=sets.protocol.describe(),
        higher_is_better=False,
        n=len(sets.images),
        n_reference=len(sets.reference),
    )


SSIM_PROTOCOL = "Gaussian 11 x 11, sigma 1.5, channels alone, 8-bit pixels"
PIE = "PIE-Bench's: both images black where the one is to change, 8-bit pixels"
FIGURES: dict[str, ImageFigure | SetFigure] = {
    figure.name: figure
    for figure in (
        SetFigure("class rate", _class_rate),
        SetFigure("KID", _kid),
        SetFigure("FID", _fid),
        ImageFigure(
            "nearest is truth",
            lambda: NearestIsTruth,
            "no candidate nearer than the truth, L2 of 8-bit pixels",
            better="the right one more often",
            against="candidates",
            of_sources=True,
        ),
        ImageFigure(
            "PSNR to truth",
            lambda: psnr,
            unit="dB",
            better="closer to the truth",
            against="truth",
            of_sources=True,
        ),
        ImageFigure(
            "SSIM to truth",
            lambda: ssim,
            SSIM_PROTOCOL,
            least_side=11,
            better="closer to the truth",
            against="truth",
            of_sources=True,
        ),
        ImageFigure(
            "S_CLIP",
            lambda: clip_score,
            better="closer to the target text",
            against="texts",
            of_sources=True,
        ),
        ImageFigure(
            "S_D-CLIP",
            lambda: directional_clip_score,
            better="changed more as the texts are",
            against="texts",
        ),
        ImageFigure(
            "S_CLIP of the region",
            lambda: region_clip_score,
            better="closer to the target text where it was to change",
            against="texts",
            where="region",
        ),
        ImageFigure(
            "source match",
            lambda: source_match,
            better="better described by the source text",
            against="texts",
        ),
        ImageFigure(
            "SSIM",
            lambda: ssim,
            SSIM_PROTOCOL,
            least_side=11,
        ),
        ImageFigure("PSNR", lambda: psnr, unit="dB"),
        ImageFigure(
            "L2",
            lambda: l2,
            "norm of the whole difference on [0, 1], 8-bit pixels",
            higher_is_better=False,
        ),
        ImageFigure(
            "background PSNR",
            lambda: psnr,
            PIE,
            unit="dB",
            better="closer to the source outside of the region",
            where="background",
        ),
        ImageFigure(
            "background SSIM",
            lambda: whole_ssim,
            f"{PIE}; whole frame",
            least_side=11,
            better="closer to the source outside of the region",
            where="background",
        ),
        ImageFigure(
            "background MSE",
            lambda: mse,
            PIE,
            higher_is_better=False,
            better="closer to the source outside of the region",
            where="background",
        ),
        ImageFigure(
            "background LPIPS",
            lambda: Lpips("squeeze"),
            f"{PIE}; version 0.1, SqueezeNet",
            higher_is_better=False,
            least_side=31,
            better="closer to the source outside of the region",
            where="background",
        ),
        ImageFigure(
            "structure distance",
            lambda: lambda dino: dino,
            "PIE-Bench's: cosines of all pairs of keys of the last layer",
            higher_is_better=False,
            better="laid out as the source",
            against="dino",
        ),
        ImageFigure(
            "LPIPS",
            Lpips,
            "version 0.1, AlexNet, 8-bit pixels",
            higher_is_better=False,
            least_side=31,
        ),
    )
}
"""By name, in the order in which they are told. A new figure is one more entry."""


def image_figures() -> dict[str, ImageFigure]:
    """Those of single images, the ones that any size has first."""
    found = [figure for figure in FIGURES.values() if isinstance(figure, ImageFigure)]
    return {figure.name: figure for figure in sorted(found, key=lambda f: f.least_side)}
