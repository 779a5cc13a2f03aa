"""The kinds of figures, what they are made of, and what they give."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from cyclelight.metrics.columns import Columns
from cyclelight.metrics.edits import Seen
from cyclelight.metrics.protocol import MetricProtocol

Against = Literal["source", "truth", "candidates", "texts", "dino"]
"""What images are measured against: see `ImageFigure`."""
Measure = Callable[[Tensor, Tensor], Tensor]
"""(images, sources or truths), uint8 (B, H, W, C) each => a value of each image, (B,)."""
TextMeasure = Callable[[Seen], Tensor]
"""What a CLIP makes of images and texts => a value of each image, (B,)."""


@dataclass(frozen=True)
class ImageFigure:
    """What is measured of each image; over a run, the mean and its standard error.

    Args:
        name: of the figure.
        make: gives the function that measures, a `Measure`; asked for before a run.
        protocol: what the value depends on, in a few words.
        unit: of the value.
        higher_is_better: the direction.
        least_side: images below this side in pixels have no such figure.
        better: what an image is like whose value is better, in words.
        against: what it is measured against: each image's source; its truth, the right result
            where one exists; its truth among candidates, all images that might be the right one,
            uint8 (N, H, W, C), which what `make` gives is called with first; texts, where `make`
            gives a `TextMeasure`; or its source as a DINO sees it, which `make` is given likewise.
        where: of what part: of the whole image; of the background, both images being black where
            the one is to change; or of that region. Where there is no such part, NaN, which counts
            for nothing.
        of_sources: whether it is measured of the untranslated sources, too.
    """

    name: str
    make: Callable[[], Any]
    protocol: str = "8-bit pixels"
    unit: str = ""
    higher_is_better: bool = True
    least_side: int = 1
    better: str = "closer to the source"
    against: Against = "source"
    of_sources: bool = False
    where: Literal["whole", "background", "region"] = "whole"

    @property
    def hint(self) -> str:
        """What its direction means, such as `higher is closer to the source`."""
        return f"{'higher' if self.higher_is_better else 'lower'} is {self.better}"

    def over(self, sets: "Sets") -> "Score | None":
        """The figure over all images; None if they have none."""
        column = sets.images.column(self.name)
        if column is None:
            return None
        values, before = _known(column), sets.images.column(f"source {self.name}")
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        spread = math.fsum((value - mean) ** 2 for value in values)
        error = math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else None
        return Score(
            figure=self.name,
            value=mean,
            standard_error=error,
            untranslated=None if before is None else math.fsum(_known(before)) / len(values),
            n=len(values),
            protocol=f"mean over images; {self._protocol(sets)}",
            unit=self.unit,
            higher_is_better=self.higher_is_better,
        )

    def _protocol(self, sets: "Sets") -> str:
        return f"CLIP {sets.clip}" if self.against == "texts" else self.protocol


def _known(column: Tensor) -> list[float]:
    return [value for value in column.tolist() if not math.isnan(value)]


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
