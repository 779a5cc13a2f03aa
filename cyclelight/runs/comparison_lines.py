"""Lines of a comparison's table: the figures of a setting over its seeds, of all images or some."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from cyclelight.metrics.figure_kinds import Score
from cyclelight.metrics.paired import Difference, paired_difference
from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_cell import Result
from cyclelight.runs.cost import Cost

ByKey = Mapping[str, Mapping[str, float]]
"""key => figure => value, of single images."""


@dataclass(frozen=True)
class Value:
    """A figure over the seeds of a line: its mean, and the standard deviation of more than one."""

    mean: float
    spread: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Value":
        """Of the value of each seed, at least one."""
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return cls(mean)
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(mean, math.sqrt(squares / (len(values) - 1)))


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Args:
        label: what it is called.
        setting: what was run; None for what bounds the figures.
        figures: by name.
        differences: of each image's figures from those of the baseline, by name; the mean, with a
            confidence interval.
        n: images.
        seeds: runs.
        calls: network calls for an image; None if not known.
        seconds: for an image; None if not known.
    """

    label: str
    setting: Setting | None
    figures: Mapping[str, Value]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    n: int = 0
    seeds: int = 0
    calls: float | None = None
    seconds: float | None = None


def per_image(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """figure => key => value of single images: the mean over the seeds of a line."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for key, figures in result.images.items():
            for name, value in figures.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
    return {
        name: {key: math.fsum(values) / len(values) for key, values in sorted(by_key.items())}
        for name, by_key in found.items()
    }


def within(result: Result, keys: Collection[str]) -> Result:
    """What a result says of some of its images: the figures that single ones have."""
    images = {key: figures for key, figures in result.images.items() if key in keys}
    scores = {}
    for name, score in result.scores.items():
        values = [figures[name] for figures in images.values() if name in figures]
        values = [value for value in values if not math.isnan(value)]
        if values:
            mean = math.fsum(values) / len(values)
            scores[name] = replace(
                score, value=mean, standard_error=None, untranslated=None, n=len(values)
            )
    return Result(scores, images, Cost(), ())


def line_of(
    setting: Setting, results: Sequence[Result], compared: Mapping[str, Mapping[str, float]]
) -> Line:
    """The line of a setting.

    Args:
        setting: what was run.
        results: of its seeds.
        compared: the figures of single images that differences are taken from, see `per_image`.
    """
    names = list(dict.fromkeys(name for result in results for name in result.scores))
    differences = {}
    for name, mine in per_image(results).items():
        base = compared.get(name, {})
        pairs = [(value, base[key]) for key, value in mine.items() if key in base]
        # Some images may have no such figure: no background, for one.
        pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
        finite = all(map(math.isfinite, chain(*pairs)))
        if base.keys() == mine.keys() and len(pairs) > 1 and finite:
            differences[name] = paired_difference(*zip(*pairs, strict=True))
    cost = sum((result.cost for result in results), Cost())
    return Line(
        label=setting.label,
        setting=setting,
        figures={
            name: Value.of([r.scores[name].value for r in results if name in r.scores])
            for name in names
        },
        differences=differences,
        n=max((score.n for result in results for score in result.scores.values()), default=0),
        seeds=len(results),
        calls=cost.calls_per_image,
        seconds=cost.seconds_per_image,
    )


def bounds_of(columns: Sequence[Score]) -> Iterator[Line]:
    """What real images reach, and what untranslated sources do."""
    for label, name, count in (
        ("real images", "real", "n_reference"),
        ("untranslated", "untranslated", "n"),
    ):
        found = [column for column in columns if getattr(column, name) is not None]
        if found:
            figures = {column.figure: Value(getattr(column, name)) for column in found}
            yield Line(label, None, figures, n=getattr(found[0], count) or 0)


def untouched_line(columns: Sequence[Score], untouched: ByKey, keys: Collection[str]) -> Line:
    """What the sources of some images reach as they are, in the figures that they have."""
    figures = {}
    for column in columns:
        found = [untouched[key].get(column.figure) for key in keys]
        values = [value for value in found if value is not None]
        if column.untranslated is not None and values:
            figures[column.figure] = Value(math.fsum(values) / len(values))
    return Line("untranslated", None, figures, n=len(keys))
