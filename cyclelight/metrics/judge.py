"""From images to figures: what is kept of each image, and the table that all of them give.

Images are judged one by one, wherever they are; only what `Judged` holds is kept and gathered. So
the figures depend neither on batches nor on processes.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cyclelight.metrics.columns import Judged
from cyclelight.metrics.faithfulness import Lpips, l2, psnr, ssim
from cyclelight.metrics.features import FeatureNetwork, feature_network
from cyclelight.metrics.protocol import Protocol
from cyclelight.metrics.realism import IMAGENET_CLASSES, class_rate, fid, kid


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

    def forward(self, images: Tensor, sources: Tensor | None = None) -> dict[str, Tensor]:
        """uint8 (B, H, W, 3) each => what `Judged` keeps, one entry per image, on the CPU.

        With a network: `row` (B, D), `label` (B,) if it classifies, and both of the sources, as
        `source row` and `source label`. Of sources, faithfulness by the figure's name, (B,).
        """
        columns = self._see(images)
        if sources is not None:
            columns |= {f"source {name}": values for name, values in self._see(sources).items()}
            columns |= self._faithfulness(images, sources)
        return {name: values.cpu() for name, values in columns.items()}

    def _see(self, images: Tensor) -> dict[str, Tensor]:
        if self.network is None:
            return {}
        rows, logits = self.network(images)
        # NumPy, which keeps them, knows no bfloat16.
        seen = {"row": rows if rows.element_size() >= 4 else rows.float()}
        return seen if logits is None else seen | {"label": logits.argmax(1)}

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
    images: Judged, reference: Judged, protocol: Protocol, classes: str | None = None
) -> list[Score]:
    """The figures over all images, in the order of their keys, whatever order they came in.

    Args:
        images: what was kept of each; they are put in order.
        reference: of each real image of the target; may be empty: then no FID and KID.
        protocol: how FID and KID are taken.
        classes: the domain of `IMAGENET_CLASSES` whose share is told, if the network classifies.
    """
    images.sort()
    reference.sort()
    scores = _class_rate(images, reference, classes, protocol) if classes is not None else []
    rows, real = images.column("row"), reference.column("row")
    if rows is not None and real is not None and min(len(rows), len(real)) > 1:
        scores += _distances(rows, images.column("source row"), real, protocol)
    return scores + _faithfulness(images)


class PerImage(Mapping[str, Mapping[str, float]]):
    """The figures of each image by its key, looked up when they are asked for.

    They are its faithfulness, and whether it is of the class (1 or 0).
    """

    def __init__(self, judged: Judged, classes: str | None = None) -> None:
        self._judged, self._classes = judged, classes

    def __getitem__(self, key: str) -> dict[str, float]:
        if key not in self._judged:
            raise KeyError(key)
        names = self._judged.names
        figures = {n: self._judged.value(key, n) for n in names if n in FAITHFULNESS}
        if self._classes is not None and "label" in names:
            of_class = self._judged.value(key, "label") in classes_of(self._classes)
            figures = {self._classes: float(of_class), **figures}
        return figures

    def __iter__(self) -> Iterator[str]:
        return iter(self._judged)

    def __len__(self) -> int:
        return len(self._judged)


def _class_rate(images: Judged, reference: Judged, classes: str, protocol: Protocol) -> list[Score]:
    def rate(labels: Tensor | None) -> tuple[float, float] | None:
        return class_rate(labels, classes_of(classes)) if labels is not None else None

    mine, floor = rate(images.column("label")), rate(reference.column("label"))
    ceiling = rate(images.column("source label"))
    if mine is None:
        return []
    return [
        Score(
            figure=f"{classes} rate",
            value=mine[0],
            standard_error=mine[1],
            floor=floor and floor[0],
            ceiling=ceiling and ceiling[0],
            n=len(images),
            n_reference=len(reference) or None,
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


def _faithfulness(images: Judged) -> list[Score]:
    scores = []
    for name, protocol in FAITHFULNESS.items():
        column = images.column(name)
        if column is None:
            continue
        values = column.tolist()
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
