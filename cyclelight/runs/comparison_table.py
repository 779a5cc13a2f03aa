"""The table of a comparison: `table.csv`, `table.md` and `table.tex`."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from cyclelight.files import write_text
from cyclelight.metrics.figures import Score
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
        n: images.
        seeds: runs.
        calls: network calls for an image; None if not known.
        seconds: for an image; None if not known.
    """

    label: str
    setting: Setting | None
    figures: Mapping[str, Value]
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
        baseline: the label that differences are taken from, or None.
        title: what was compared, in a line.
        notes: what else there is to know.
    """

    columns: Sequence[Score]
    lines: Sequence[Line]
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
        lines = [_line(setting, some) for setting, some in results]
        return cls(
            list(columns.values()),
            [*_bounds(list(columns.values())), *lines],
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
        writer.writerow(
            [
                *("label", "row", "settings", "n", "seeds", "calls", "seconds"),
                *(part for name in names for part in (name, f"{name} spread")),
            ]
        )
        for line in self.lines:
            row = [line.label, *_told(line.setting), line.n or "", line.seeds or ""]
            row += _plain(line, "calls", "seconds")
            for name in names:
                value = line.figures.get(name)
                row += _plain(value, "mean", "spread")
            writer.writerow(row)
        return text.getvalue()

    def as_markdown(self) -> str:
        """The figures; below, the notes."""
        parts = [f"**{_cell(self.title)}**", self._tabulated(*self.figure_rows(), "pipe")]
        return "\n\n".join([*parts, *map(_cell, self.legend())]) + "\n"

    def as_latex(self) -> str:
        """The same for LaTeX, with the package booktabs; the notes as comments."""
        notes = "".join(f"% {note}\n" for note in (self.title, *self.legend()))
        return notes + self._tabulated(*self.figure_rows(), "latex_booktabs") + "\n"

    def legend(self) -> list[str]:
        """What the numbers are, and what is missing."""
        found = ["± is the standard deviation over seeds; n is the number of images of each."]
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

    def _tabulated(self, head: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
        if form == "pipe":
            head, rows = list(map(_cell, head)), [list(map(_cell, row)) for row in rows]
        align = ("left", *["right"] * (len(head) - 1))
        return tabulate(rows, head, tablefmt=form, disable_numparse=True, colalign=align)


def _line(setting: Setting, results: Sequence[Result]) -> Line:
    names = list(dict.fromkeys(name for result in results for name in result.scores))
    cost = sum((result.cost for result in results), Cost())
    return Line(
        label=setting.label,
        setting=setting,
        figures={
            name: Value.of([r.scores[name].value for r in results if name in r.scores])
            for name in names
        },
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


def _arrow(column: Score) -> str:
    return "↑" if column.higher_is_better else "↓"


def _plain(holder: object, *names: str) -> list[str]:
    """Numbers as they are; what is not known is empty."""
    numbers = (getattr(holder, name, None) for name in names)
    return ["" if number is None else repr(float(number)) for number in numbers]


def _cell(text: str) -> str:
    """Text that does not act in Markdown."""
    return "".join(f"\\{c}" if c in "|*_`<\\" else c for c in text)
