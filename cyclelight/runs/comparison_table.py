"""The table of a comparison: `table.csv`, `table.md` and `table.tex`."""

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tabulate import tabulate

from cyclelight.files import write_text
from cyclelight.metrics.figure_kinds import Score
from cyclelight.metrics.paired import Difference
from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_cell import Result
from cyclelight.runs.comparison_lines import (
    ByKey,
    Line,
    Value,
    bounds_of,
    line_of,
    per_image,
    untouched_line,
    within,
)


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
        groups: of each group of images, such as the kinds of edits, lines of its own.
        best: lines of what was chosen among several runs of a row.
    """

    columns: Sequence[Score]
    lines: Sequence[Line]
    of_images: Collection[str]
    baseline: str | None
    title: str
    notes: Sequence[str]
    groups: Mapping[str, Sequence[Line]] = field(default_factory=dict)
    best: Sequence[Line] = ()

    @classmethod
    def of(
        cls,
        results: Sequence[tuple[Setting, Sequence[Result]]],
        *,
        baseline: str | None,
        title: str,
        notes: Sequence[str] = (),
        groups: Mapping[str, Collection[str]] = MappingProxyType({}),
        untouched: ByKey = MappingProxyType({}),
        best: Sequence[Line] = (),
    ) -> "Table":
        """The table of what is finished: of each setting the results of its seeds, at least one.

        Args:
            results: in the order of the lines.
            baseline: the label of the line that differences are taken from.
            title: what was compared.
            notes: what else there is to know.
            groups: the keys of the images of each group.
            untouched: the figures of the sources as they are; of all keys, where there are groups.
            best: lines of what was chosen among several runs of a row.
        """
        columns: dict[str, Score] = {}
        for _, some in results:
            for result in some:
                columns = {**result.scores, **columns}
        told = dict.fromkeys(note for _, some in results for r in some for note in r.notes)
        of_baseline = next((some for s, some in results if s.label == baseline), [])
        compared = per_image(of_baseline)
        known = list(columns.values())

        def lines(keys: Collection[str] | None) -> list[Line]:
            return [
                line_of(
                    s,
                    some if keys is None else [within(result, keys) for result in some],
                    {} if s.label == baseline else _part(compared, keys),
                )
                for s, some in results
            ]

        return cls(
            known,
            [*bounds_of(known), *lines(None)],
            {name for _, some in results for r in some for of in r.images.values() for name in of},
            baseline,
            title,
            [*notes, *told],
            {
                name: [untouched_line(known, untouched, keys), *lines(keys)]
                for name, keys in groups.items()
            },
            best,
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
                *("label", "row", "settings", "group", "n", "seeds", "calls", "seconds"),
                *(part for name in names for part in (name, f"{name} spread")),
                *(f"{n} {part}" for n in compared for part in ("difference", "low", "high")),
            ]
        )
        for group, line in self._all_lines():
            row = [line.label, *_told(line.setting), group, line.n or "", line.seeds or ""]
            row += _plain(line, "calls", "seconds")
            for name in names:
                value = line.figures.get(name)
                row += _plain(value, "mean", "spread")
            for name in compared:
                row += _plain(line.differences.get(name), "mean", "low", "high")
            writer.writerow(row)
        return text.getvalue()

    def _all_lines(self) -> Iterator[tuple[str, Line]]:
        """(group, line); those of all images first, whose group is empty."""
        for group, lines in {"": [*self.lines, *self.best], **self.groups}.items():
            yield from ((group, line) for line in lines)

    def as_markdown(self) -> str:
        """The figures; below, differences from the baseline, figures by groups, and notes."""
        parts = [f"**{_cell(self.title)}**", self._tabulated(*self.figure_rows(), "pipe")]
        head, rows = self.difference_rows()
        if rows:
            title = f"Differences from {self.baseline}, of each image, and their 95 % intervals:"
            parts += [_cell(title), self._tabulated(head, rows, "pipe")]
        for column in self.grouped:
            parts += [_cell(by_group(column)), self._tabulated(*self.group_rows(column), "pipe")]
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
        for column in self.grouped:
            table = self._tabulated(*self.group_rows(column), "latex_booktabs")
            parts += [f"% {by_group(column)}", table]
        return "\n".join(parts) + "\n"

    def group_text(self) -> str:
        """A table of each figure by groups, to be printed."""
        return "\n\n".join(
            f"{by_group(column)}\n{self._tabulated(*self.group_rows(column), 'simple')}"
            for column in self.grouped
        )

    def legend(self) -> list[str]:
        """What the numbers are, and what is missing."""
        spread = any(v.spread is not None for line in self.lines for v in line.figures.values())
        found = ["± is the standard deviation over seeds."] * spread
        found.append("n is the number of images of each.")
        if any(line.calls is not None for line in self.lines):
            found.append("calls and seconds are for an image, of all networks together.")
        if self.best:
            found.append(
                "best of N: of each image the best run of a row by a figure, which flatters that "
                "figure; its calls and seconds are those of all N."
            )
        return [*found, *self.notes]

    def figure_rows(self) -> tuple[list[str], list[list[str]]]:
        """(head, cells) of the figures, as text."""
        head = ["", *(f"{c.label} {_arrow(c)}" for c in self.columns)]
        head += ["calls", "s / image", "n", "seeds"]
        rows = []
        for line in [*self.lines, *self.best]:
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

    def group_rows(self, column: Score) -> tuple[list[str], list[list[str]]]:
        """(head, cells) of one figure by groups, as text."""
        head = ["", *(f"{name} (n {lines[0].n})" for name, lines in self.groups.items())]
        every = zip(*self.groups.values(), strict=True)
        return head, [
            [lines[0].label, *(_value(line.figures.get(column.figure), column) for line in lines)]
            for lines in every
        ]

    @property
    def grouped(self) -> list[Score]:
        """The columns that groups have."""
        lines = [line for lines in self.groups.values() for line in lines]
        return [c for c in self.columns if any(c.figure in line.figures for line in lines)]

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


def by_group(column: Score) -> str:
    """What a table of one figure by groups is called."""
    return f"{column.label} {_arrow(column)}, by group:"


def _part(
    compared: Mapping[str, Mapping[str, float]], keys: Collection[str] | None
) -> Mapping[str, Mapping[str, float]]:
    """Those of some images; of all, if `keys` is None."""
    if keys is None:
        return compared
    return {
        name: {key: value for key, value in by_key.items() if key in keys}
        for name, by_key in compared.items()
    }


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
