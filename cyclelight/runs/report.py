"""What was measured in a run, as files and as a table.

metrics.json   the figures over all images, each with its protocol, bounds and numbers of images
metrics.csv    the figures of each image
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tabulate import tabulate

from cyclelight.files import atomic, write_json
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.figure_kinds import Score
from cyclelight.metrics.judge import Judge, PerImage, score
from cyclelight.metrics.protocol import MetricProtocol


@dataclass(frozen=True)
class Summary:
    """A figure of the whole run, as text; what is empty or unknown stays blank."""

    figure: str
    value: str
    real: str = ""
    untranslated: str = ""
    n: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class Report:
    """The figures of a run.

    Args:
        scores: over all images.
        images: of each image: key => figure => value; the figures are the same of all.
        protocol: what FID, KID and class rates depend on, in one line; empty without them.
        notes: why a figure is missing.
        sources: of each image's source as it is, like `images`, the figures that it has.
    """

    scores: Sequence[Score]
    images: Mapping[str, Mapping[str, float]]
    protocol: str = ""
    notes: Sequence[str] = field(default_factory=list)
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        images: Columns,
        reference: Columns,
        judge: Judge,
        protocol: MetricProtocol,
        classes: str | None,
        *,
        asked: bool = False,
    ) -> "Report":
        """The figures of images that were judged, in the order of their keys.

        Args:
            images, reference, protocol, classes: as in `score`.
            judge: who judged them.
            asked: whether `classes` were asked for: then it is told if there is no rate.
        """
        return cls(
            score(images, reference, protocol, classes, judge.clip.name if judge.clip else ""),
            PerImage(images, classes),
            protocol.describe() if judge.network is not None else "",
            [*judge.notes, *_missing(images, reference, judge, classes if asked else None)],
            PerImage(images, of="source "),
        )

    def write(self, folder: Path) -> None:
        """Write both files, each atomically; they depend on the images alone, not on their order.

        Numbers are unrounded and unscaled: the scale is for printing.
        """
        write_json(
            folder / "metrics.json",
            {
                "protocol": self.protocol or None,
                "notes": list(self.notes),
                "figures": [asdict(score) for score in self.scores],
            },
        )
        names = next(iter(self.images.values()), {})
        path = folder / "metrics.csv"
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["key", *names], lineterminator="\n")
            writer.writeheader()
            for key in sorted(self.images):
                writer.writerow({"key": key, **self.images[key]})

    def summaries(self) -> list[Summary]:
        """The table's rows as text, scaled and rounded."""
        return [_summary(score) for score in self.scores]

    def __str__(self) -> str:
        """The table, what the figures depend on, and what is missing."""
        rows = [(s.figure, s.value, s.real, s.untranslated, s.n) for s in self.summaries()]
        table = tabulate(
            rows,
            ("", "value", "real", "untranslated", "n"),
            tablefmt="simple",
            disable_numparse=True,
            colalign=("left", "right", "right", "right", "right"),
        )
        protocol = [f"protocol {self.protocol}"] if self.protocol else []
        return "\n".join([table, *protocol, *self.notes])


def _missing(
    images: Columns, reference: Columns, judge: Judge, classes: str | None
) -> Iterator[str]:
    """Which figures of sets a judge with a network has not given, and why."""
    n, real = len(images), len(reference)
    if judge.network is None:
        return
    if real and min(n, real) < 2:
        yield f"no KID, no FID: they need 2 images or more on both sides, got {n} and {real} real"
    if classes is not None and n and "label" not in images.names:
        yield f"no {classes} rate: network {judge.network.name} is no classifier"


def _summary(score: Score) -> Summary:
    def text(value: float | None) -> str:
        return "" if value is None else f"{value * score.scale:.{digits}f}"

    digits = 3 if abs(score.value * score.scale) < 10 else 2
    error = text(score.standard_error)
    number = f"{score.n}" if score.n_reference is None else f"{score.n} / {score.n_reference}"
    return Summary(
        figure=score.label,
        value=text(score.value) + (f" ± {error}" if error else ""),
        real=text(score.real),
        untranslated=text(score.untranslated),
        n=number,
        protocol=score.protocol,
    )
