"""The figures: one entry each in `FIGURES`, which files, tables and pages are made from."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from cyclelight.errors import one_of
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.edits import Seen, clip_score, directional_clip_score, source_match
from cyclelight.metrics.faithfulness import Lpips, l2, psnr, ssim
from cyclelight.metrics.protocol import MetricProtocol
from cyclelight.metrics.realism import IMAGENET_CLASSES, Estimate, class_rate

Measure = Callable[[Tensor, Tensor], Tensor]
"""(images, sources), uint8 (B, H, W, C) each => a value of each image, (B,)."""
TextMeasure = Callable[[Seen], Tensor]
"""What a CLIP makes of images and texts => a value of each image, (B,)."""


@dataclass(frozen=True)
class ImageFigure:
    """What is measured of each image and its source; over a run, the mean and its standard error.

    Args:
        name: of the figure.
        make: gives the function that measures; asked for before a run.
        protocol: what the value depends on, in a few words.
        unit: of the value.
        higher_is_better: the direction.
        least_side: images below this side in pixels have no such figure.
        better: what an image is like whose value is better, in words.
        texts: whether it is measured of texts, too: `make` gives a `TextMeasure`.
        of_sources: whether it is measured of the untranslated sources, too; with `texts` alone.
    """

    name: str
    make: Callable[[], Any]
    protocol: str = "8-bit pixels"
    unit: str = ""
    higher_is_better: bool = True
    least_side: int = 1
    better: str = "closer to the source"
    texts: bool = False
    of_sources: bool = False

    @property
    def hint(self) -> str:
        """What its direction means, such as `higher is closer to the source`."""
        return f"{'higher' if self.higher_is_better else 'lower'} is {self.better}"

    def over(self, sets: "Sets") -> "Score | None":
        """The figure over all images; None if they have none."""
        column = sets.images.column(self.name)
        if column is None:
            return None
        values, before = column.tolist(), sets.images.column(f"source {self.name}")
        mean = math.fsum(values) / len(values)
        spread = math.fsum((value - mean) ** 2 for value in values)
        error = math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else None
        return Score(
            figure=self.name,
            value=mean,
            standard_error=error,
            untranslated=None if before is None else math.fsum(before.tolist()) / len(before),
            n=len(values),
            protocol=f"mean over images; {f'CLIP {sets.clip}' if self.texts else self.protocol}",
            unit=self.unit,
            higher_is_better=self.higher_is_better,
        )


@dataclass(frozen=True)
class SetFigure:
    """What is measured of all images together.

    Args:
        name: of the figure.
        over: gives it of the sets; None where they do not allow it.
    """

    name: str
    over: Callable[["Sets"], "Score | None"]


@dataclass(frozen=True)
class Sets:
    """What is known of a run's images, put in the order of their keys.

    Args:
        images: see `Judge`; of each its features as `row`, its class as `label`, those of its
            source, and its own figures by name.
        reference: `row` and `label` of each real image of the target; may be empty.
        protocol: how sets are compared.
        classes: the domain of `IMAGENET_CLASSES` whose share is told, if any.
        clip: the name of the CLIP that has seen the images, if one has.
    """

    images: Columns
    reference: Columns
    protocol: MetricProtocol
    classes: str | None = None
    clip: str = ""

    def compare(
        self, distance: Callable[[Tensor, Tensor], float], of: Literal["row", "source row"]
    ) -> float | None:
        """The distance of the images', or the sources', features from the reference's."""
        rows, real = self.images.column(of), self.reference.column("row")
        if rows is None or real is None or min(len(rows), len(real)) < 2:
            return None
        return distance(rows, real)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure over all images.

    Args:
        figure: what is measured.
        value: of the images.
        standard_error: of the value, where it is known.
        real: the same figure of real images of the target: for KID of its one half against the
            other, for a class rate of all. Nothing better can be expected.
        untranslated: the same figure of the untranslated sources.
        n: number of images.
        n_reference: number of reference images, where they matter.
        protocol: what it depends on, in a few words.
        unit: of the value.
        scale: what KID is multiplied by where it is printed; the numbers here are not.
        higher_is_better: the direction.
    """

    figure: str
    value: float
    standard_error: float | None = None
    real: float | None = None
    untranslated: float | None = None
    n: int
    n_reference: int | None = None
    protocol: str
    unit: str = ""
    scale: int = 1
    higher_is_better: bool = True

    @property
    def label(self) -> str:
        """The figure with its scale or unit: `KID x 100`, `PSNR (dB)`."""
        return (
            self.figure
            + (f" x {self.scale}" if self.scale != 1 else "")
            + (f" ({self.unit})" if self.unit else "")
        )


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


FIGURES: dict[str, ImageFigure | SetFigure] = {
    figure.name: figure
    for figure in (
        SetFigure("class rate", _class_rate),
        SetFigure("KID", _kid),
        SetFigure("FID", _fid),
        ImageFigure(
            "S_CLIP",
            lambda: clip_score,
            better="closer to the target text",
            texts=True,
            of_sources=True,
        ),
        ImageFigure(
            "S_D-CLIP",
            lambda: directional_clip_score,
            better="changed more as the texts are",
            texts=True,
        ),
        ImageFigure(
            "source match",
            lambda: source_match,
            better="better described by the source text",
            texts=True,
        ),
        ImageFigure(
            "SSIM",
            lambda: ssim,
            "Gaussian 11 x 11, sigma 1.5, channels alone, 8-bit pixels",
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
