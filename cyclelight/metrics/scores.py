"""From images to figures: what is kept of each image, and the table that all of them give.

Images are judged one by one, wherever they are; only what `Judged` holds is kept and gathered. So
the figures depend neither on batches nor on processes.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cyclelight.metrics.faithfulness import Lpips, l2, psnr, ssim
from cyclelight.metrics.features import FeatureNetwork, feature_network
from cyclelight.metrics.protocol import Protocol
from cyclelight.metrics.realism import IMAGENET_CLASSES, class_rate, fid, kid


class Seen(NamedTuple):
    """What a feature network says about one image: its row (D,), and its class if it has any."""

    row: Tensor
    label: int | None


class Judged(NamedTuple):
    """What is kept of an image: `seen` and `source` (of its source) if there is a network, and how
    faithful it is to its source, by the figure's name."""

    seen: Seen | None
    source: Seen | None
    faithfulness: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure over all images.

    Args:
        figure: what is measured.
        value: of the images.
        standard_error: of the value, where it is known.
        floor: the same figure of real images of the target: for KID of its one half against the
            other, for a class rate of all. Nothing better can be expected.
        ceiling: the same figure of the untranslated sources.
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
    floor: float | None = None
    ceiling: float | None = None
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


class Judge(nn.Module):
    """Looks at images one by one.

    Args:
        protocol: whose feature network judges realism; None judges faithfulness only.
        weights: the network's weights, see `feature_network`.
        resolution: side of the images: too small ones have no SSIM (11) or LPIPS (31).
        sources: whether images have sources to be faithful to.

    Raises:
        FileNotFoundError, ValueError: the network cannot be had, see `feature_network`.
    """

    def __init__(
        self,
        protocol: Protocol | None,
        weights: str | None = None,
        *,
        resolution: int,
        sources: bool = True,
    ) -> None:
        super().__init__()
        self.network: FeatureNetwork | None = None
        if protocol is not None:
            self.network = feature_network(protocol.network, weights)
        self.lpips: Lpips | None = None
        self.notes: list[str] = []
        """Why a figure is missing."""
        self._resolution = resolution
        if sources and resolution < 11:
            self.notes.append("no SSIM: it needs images of 11 pixels or more")
        if sources and resolution >= 31:
            try:
                self.lpips = Lpips()
            except FileNotFoundError as error:
                self.notes.append(f"no LPIPS: {error}")

    def forward(self, images: Tensor, sources: Tensor | None = None) -> list[Judged]:
        """uint8 (B, H, W, 3) each => one `Judged` per image, on the CPU."""
        seen = self._see(images)
        source = self._see(sources) if sources is not None else [None] * len(images)
        figures = self._faithfulness(images, sources) if sources is not None else {}
        columns = {name: values.tolist() for name, values in figures.items()}
        return [
            Judged(seen[i], source[i], {name: column[i] for name, column in columns.items()})
            for i in range(len(images))
        ]

    def _see(self, images: Tensor) -> Sequence[Seen | None]:
        if self.network is None:
            return [None] * len(images)
        rows, logits = self.network(images)
        labels = logits.argmax(1).tolist() if logits is not None else [None] * len(images)
        return [Seen(row.clone(), label) for row, label in zip(rows.cpu(), labels, strict=True)]

    def _faithfulness(self, images: Tensor, sources: Tensor) -> dict[str, Tensor]:
        figures = {"PSNR": psnr(images, sources), "L2": l2(images, sources)}
        if self._resolution >= 11:
            figures["SSIM"] = ssim(images, sources)
        if self.lpips is not None:
            figures["LPIPS"] = self.lpips(images, sources)
        return figures


def classes_of(name: str) -> Collection[int]:
    """ImageNet's classes of a domain.

    Raises:
        ValueError: the name is not one of `IMAGENET_CLASSES`.
    """
    if name not in IMAGENET_CLASSES:
        raise ValueError(f"classes must be one of {', '.join(IMAGENET_CLASSES)}, got {name!r}")
    return IMAGENET_CLASSES[name]


def score(
    images: Mapping[str, Judged],
    reference: Mapping[str, Judged],
    protocol: Protocol,
    classes: str | None = None,
) -> list[Score]:
    """The figures over all images, in the order of their keys, whatever order they came in.

    Args:
        images: what was kept of each, by key.
        reference: of each real image of the target; may be empty: then no FID and KID.
        protocol: how FID and KID are taken.
        classes: the domain of `IMAGENET_CLASSES` whose share is told, if the network classifies.
    """
    judged = [images[key] for key in sorted(images)]
    real = [reference[key].seen for key in sorted(reference)]
    seen, sources = [j.seen for j in judged], [j.source for j in judged]
    scores = []
    if classes is not None:
        scores += _class_rate(seen, sources, real, classes, protocol)
    rows, real_rows = _rows(seen), _rows(real)
    if rows is not None and real_rows is not None and min(len(rows), len(real_rows)) > 1:
        scores += _distances(rows, _rows(sources), real_rows, protocol)
    return scores + _faithfulness(judged)


def per_image(judged: Judged, classes: str | None = None) -> dict[str, float]:
    """The figures of one image: its faithfulness, and whether it is of the class (1 or 0)."""
    figures = dict(judged.faithfulness)
    if classes is not None and judged.seen is not None and judged.seen.label is not None:
        figures = {classes: float(judged.seen.label in classes_of(classes)), **figures}
    return figures


def _class_rate(
    seen: Sequence[Seen | None],
    sources: Sequence[Seen | None],
    real: Sequence[Seen | None],
    classes: str,
    protocol: Protocol,
) -> list[Score]:
    def rate(them: Sequence[Seen | None]) -> tuple[float, float] | None:
        labels = [s.label for s in them if s is not None and s.label is not None]
        return class_rate(torch.tensor(labels), classes_of(classes)) if labels else None

    mine, floor, ceiling = rate(seen), rate(real), rate(sources)
    if mine is None:
        return []
    return [
        Score(
            figure=f"{classes} rate",
            value=mine[0],
            standard_error=mine[1],
            floor=floor and floor[0],
            ceiling=ceiling and ceiling[0],
            n=len(seen),
            n_reference=len(real) or None,
            protocol=f"{protocol.network}, ImageNet's classes of {classes}",
        )
    ]


def _distances(
    rows: Tensor, sources: Tensor | None, real: Tensor, protocol: Protocol
) -> list[Score]:
    def distance(x: Tensor, y: Tensor) -> tuple[float, float]:
        return kid(x, y, subset_size=protocol.kid_subset_size, subsets=protocol.kid_subsets)

    value, error = distance(rows, real)
    kid_score = Score(
        figure="KID",
        value=value,
        standard_error=None if math.isnan(error) else error,
        floor=distance(real[::2], real[1::2])[0] if len(real) > 3 else None,
        ceiling=distance(sources, real)[0] if sources is not None else None,
        protocol=protocol.describe(),
        scale=protocol.kid_scale,
        higher_is_better=False,
        n=len(rows),
        n_reference=len(real),
    )
    # No floor: of halves, FID would be far above that of all, since it depends on the number.
    fid_score = Score(
        figure="FID",
        value=fid(rows, real),
        ceiling=fid(sources, real) if sources is not None else None,
        protocol=protocol.describe(),
        higher_is_better=False,
        n=len(rows),
        n_reference=len(real),
    )
    return [kid_score, fid_score]


FAITHFULNESS = {
    "SSIM": "mean over images; Gaussian 11 x 11, sigma 1.5, channels alone, 8-bit pixels",
    "PSNR": "mean over images; 8-bit pixels",
    "L2": "mean over images; norm of the whole difference on [0, 1], 8-bit pixels",
    "LPIPS": "mean over images; version 0.1, AlexNet, 8-bit pixels",
}


def _faithfulness(judged: Sequence[Judged]) -> list[Score]:
    scores = []
    for name, protocol in FAITHFULNESS.items():
        values = [j.faithfulness[name] for j in judged if name in j.faithfulness]
        if not values:
            continue
        mean = math.fsum(values) / len(values)
        spread = math.fsum((value - mean) ** 2 for value in values)
        error = math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else None
        scores.append(
            Score(
                figure=name,
                value=mean,
                standard_error=error,
                n=len(values),
                protocol=protocol,
                unit="dB" if name == "PSNR" else "",
                higher_is_better=name in ("SSIM", "PSNR"),
            )
        )
    return scores


def _rows(seen: Iterable[Seen | None]) -> Tensor | None:
    rows = [s.row for s in seen if s is not None]
    return torch.stack(rows).double() if rows else None
