"""The table of a comparison: `table.csv`, `table.md` and `table.tex`."""

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from cyclelight.files import write_text
from cyclelight.metrics.figures import Score
from cyclelight.metrics.paired import Difference, paired_difference
from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_cell import Result
from cyclelight.runs.cost import Cost


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


@dataclass(frozen=True)
class Table:
    """All lines.

    Args:
        columns: the figures, each as some run has it: by it they are named, scaled and directed.
        lines: the first ones are what bounds the figures.
        of_images: the figures that single images have, by name.
        baseline: the label that differences are taken from, or None.
        title: what was compared, in a line.
        notes: what else there is to know.
    """

    columns: Sequence[Score]
    lines: Sequence[Line]
    of_images: Collection[str]
    baseline: str | None
    title: str
    notes: Sequence[str]

    @classmethod
    def of(
        cls,
        results: Sequence[tuple[Setting, Sequence[Result]]],
        *,
        baseline: str | None,
        title: str,
        notes: Sequence[str] = (),
    ) -> "Table":
        """The table of what is finished: of each setting the results of its seeds, at least one."""
        columns: dict[str, Score] = {}
        for _, some in results:
            for result in some:
                columns = {**result.scores, **columns}
        told = dict.fromkeys(note for _, some in results for r in some for note in r.notes)
        of_baseline = next((some for s, some in results if s.label == baseline), [])
        compared = per_image(of_baseline)
        lines = [_line(s, some, {} if s.label == baseline else compared) for s, some in results]
        return cls(
            list(columns.values()),
            [*_bounds(list(columns.values())), *lines],
            {name for _, some in results for r in some for of in r.images.values() for name in of},
            baseline,
            title,
            [*notes, *told],
        )

    def write(self, folder: Path) -> None:
        """Write the three files, each atomically."""
        write_text(folder / "table.csv", self.as_csv())
        write_text(folder / "table.md", self.as_markdown())
        write_text(folder / "table.tex", self.as_latex())

    def as_csv(self) -> str:
        """Numbers unrounded and unscaled; what is not known is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [column.figure for column in self.columns]
        compared = [column.figure for column in self.compared]
        writer.writerow(
            [
                *("label", "row", "settings", "n", "seeds", "calls", "seconds"),
                *(part for name in names for part in (name, f"{name} spread")),
                *(f"{n} {part}" for n in compared for part in ("difference", "low", "high")),
            ]
        )
        for line in self.lines:
            row = [line.label, *_told(line.setting), line.n or "", line.seeds or ""]
            row += _plain(line, "calls", "seconds")
            for name in names:
                value = line.figures.get(name)
                row += _plain(value, "mean", "spread")
            for name in compared:
                row += _plain(line.differences.get(name), "mean", "low", "high")
            writer.writerow(row)
        return text.getvalue()

    def as_markdown(self) -> str:
        """The figures; below, the differences from the baseline; below that, the notes."""
        parts = [f"**{_cell(self.title)}**", self._tabulated(*self.figure_rows(), "pipe")]
        head, rows = self.difference_rows()
        if rows:
            title = f"Differences from {self.baseline}, of each image, and their 95 % intervals:"
            parts += [_cell(title), self._tabulated(head, rows, "pipe")]
        return "\n\n".join([*parts, *map(_cell, self.legend())]) + "\n"

    def as_latex(self) -> str:
        """The same tables for LaTeX, with the package booktabs; the notes as comments."""
        head, rows = self.difference_rows()
        parts = [f"% {note}" for note in (self.title, *self.legend())]
        parts.append(self._tabulated(*self.figure_rows(), "latex_booktabs"))
        if rows:
            parts += [
                f"% Differences from {self.baseline}, with 95 % intervals",
                self._tabulated(head, rows, "latex_booktabs"),
            ]
        return "\n".join(parts) + "\n"

    def legend(self) -> list[str]:
        """What the numbers are, and what is missing."""
        spread = any(v.spread is not None for line in self.lines for v in line.figures.values())
        found = ["± is the standard deviation over seeds."] * spread
        found.append("n is the number of images of each.")
        if any(line.calls is not None for line in self.lines):
            found.append("calls and seconds are for an image, of all networks together.")
        return [*found, *self.notes]

    def figure_rows(self) -> tuple[list[str], list[list[str]]]:
        """(head, cells) of the figures, as text."""
        head = ["", *(f"{c.label} {_arrow(c)}" for c in self.columns)]
        head += ["calls", "s / image", "n", "seeds"]
        rows = []
        for line in self.lines:
            cells = [_value(line.figures.get(c.figure), c) for c in self.columns]
            calls = "" if line.calls is None else f"{line.calls:.0f}"
            seconds = "" if line.seconds is None else f"{line.seconds:.3g}"
            counts = [f"{count}" if count else "" for count in (line.n, line.seeds)]
            rows.append([line.label, *cells, calls, seconds, *counts])
        return head, rows

    def difference_rows(self) -> tuple[list[str], list[list[str]]]:
        """(head, cells) of the differences from the baseline, as text; no rows without any."""
        head = ["", *(f"{c.label} {_arrow(c)}" for c in self.compared), "n"]
        rows = []
        for line in self.against:
            cells = [_difference(line.differences.get(c.figure), c) for c in self.compared]
            rows.append([line.label, *cells, f"{line.n}"])
        return head, rows

    @property
    def compared(self) -> list[Score]:
        """The columns of the differences."""
        return [c for c in self.columns if any(c.figure in x.differences for x in self.lines)]

    @property
    def against(self) -> list[Line]:
        """The lines that are compared with the baseline."""
        return [line for line in self.lines if line.differences]

    def _tabulated(self, head: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
        if form == "pipe":
            head, rows = list(map(_cell, head)), [list(map(_cell, row)) for row in rows]
        align = ("left", *["right"] * (len(head) - 1))
        return tabulate(rows, head, tablefmt=form, disable_numparse=True, colalign=align)


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


def _line(
    setting: Setting, results: Sequence[Result], compared: Mapping[str, Mapping[str, float]]
) -> Line:
    names = list(dict.fromkeys(name for result in results for name in result.scores))
    differences = {}
    for name, mine in per_image(results).items():
        base = compared.get(name, {})
        known = all(map(math.isfinite, [*mine.values(), *base.values()]))
        if base.keys() == mine.keys() and len(mine) > 1 and known:
            differences[name] = paired_difference(list(mine.values()), [base[key] for key in mine])
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


def _bounds(columns: Sequence[Score]) -> Iterator[Line]:
    """What real images reach, and what untranslated sources do."""
    for label, name, count in (
        ("real images", "real", "n_reference"),
        ("untranslated", "untranslated", "n"),
    ):
        found = [column for column in columns if getattr(column, name) is not None]
        if found:
            figures = {column.figure: Value(getattr(column, name)) for column in found}
            yield Line(label, None, figures, n=getattr(found[0], count) or 0)


def _told(setting: Setting | None) -> tuple[str, str]:
    """(row, settings)."""
    if setting is None:
        return "", ""
    settings = setting.describe()
    return setting.row, "; ".join(f"{name} {value}" for name, value in settings.items())


def _value(value: Value | None, column: Score) -> str:
    if value is None:
        return ""
    digits = 3 if abs(value.mean * column.scale) < 10 else 2
    spread = "" if value.spread is None else f" ± {value.spread * column.scale:.{digits}f}"
    return f"{value.mean * column.scale:.{digits}f}{spread}"


def _difference(difference: Difference | None, column: Score) -> str:
    if difference is None:
        return ""
    mean, low, high = (x * column.scale for x in (difference.mean, difference.low, difference.high))
    digits = 3 if abs(mean) < 10 else 2
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _arrow(column: Score) -> str:
    return "↑" if column.higher_is_better else "↓"


def _plain(holder: object, *names: str) -> list[str]:
    """Numbers as they are; what is not known is empty."""
    numbers = (getattr(holder, name, None) for name in names)
    return ["" if number is None else repr(float(number)) for number in numbers]


def _cell(text: str) -> str:
    """Text that does not act in Markdown."""
    return "".join(f"\\{c}" if c in "|*_`<\\" else c for c in text)
