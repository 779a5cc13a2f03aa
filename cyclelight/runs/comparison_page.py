"""One page of a comparison, `report.html`: table, curves, and the images of all methods.

The page is one file that opens from a disk: images are data: addresses, style and script stand in
`comparison.html` beside this file, and its policy forbids the browser to fetch anything.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from string import Template

from PIL import Image

from cyclelight.files import write_text
from cyclelight.metrics.figure_kinds import Score
from cyclelight.runs.comparison_curves import curves_of, draw_curves
from cyclelight.runs.comparison_lines import Line
from cyclelight.runs.comparison_table import Table, by_group
from cyclelight.runs.markup import RIGHT, escaped, image_tag

MOST_BYTES, FEWEST = 16_000_000, 4
"""The page's images have about this many bytes; but as many sources are shown."""


@dataclass(frozen=True)
class Made:
    """A source and what each line of the table makes of it, with the figures of each.

    Args:
        key: of the source.
        source: as the methods see it.
        images: of the size of the source, one for each line.
        figures: by name, of each line's image.
        truth: the right result, where it is known: of all sources or of none.
    """

    key: str
    source: Image.Image
    images: Sequence[Image.Image]
    figures: Sequence[Mapping[str, float]]
    truth: Image.Image | None = None


def write_report(
    path: Path, table: Table, keys: Sequence[str], read: Callable[[str], Made]
) -> None:
    """Write the page, atomically.

    Args:
        path: the file, `report.html`.
        table: what was measured.
        keys: of all sources, from the worst to the best.
        read: gives what is shown of a source; called for those that are shown, which are as many
            of the worst as of the best.
    """
    lines = [line for line in table.lines if line.setting is not None]
    cards, size, ending = dict[str, str](), 0, ""
    # From both ends to the middle, as far as there is room.
    ends = [key for pair in zip(keys, reversed(keys), strict=True) for key in pair]
    for key in dict.fromkeys(ends):
        if len(cards) >= FEWEST and size * (1 + 1 / len(cards)) > MOST_BYTES:
            break
        made = read(key)
        cards[key] = _card(made, lines, table)
        ending = "" if made.truth is None else f" to the {RIGHT}"
        size += len(cards[key])
    shown = [key for key in keys if key in cards]
    few = f"{len(shown)} of {len(keys)} images, the worst and the best"
    measured = _measured(table)
    text = Template(files("cyclelight.runs").joinpath("comparison.html").read_text("utf-8"))
    page = text.substitute(
        title=escaped(table.title),
        legend="".join(f"<p>{escaped(note)}</p>" for note in table.legend()),
        figures=_table(*table.figure_rows()),
        differences=_differences(table),
        groups=_groups(table),
        curves=_curves(table),
        chips=_chips(table, lines),
        lines=_options([line.label for line in lines], table.baseline),
        sorters=_options([c.label for c in measured], _first(measured)),
        columns=escaped(json.dumps([[c.label, c.higher_is_better] for c in measured])),
        count=escaped(few if len(shown) < len(keys) else f"{len(shown)} images"),
        ending=ending,
        cards="\n".join(cards[key] for key in shown),
    )
    write_text(path, page)


def worst_first(
    results: Sequence[Mapping[str, Mapping[str, float]]], columns: Sequence[Score]
) -> list[str]:
    """The keys, from those that most methods fail at to those that they succeed with.

    Those come first whose mean over all results is the worst in the first figure that single images
    have, and where that is equal, in the next ones.

    Args:
        results: key => figure => value, of the same keys each.
        columns: the figures, in their order.
    """

    def place(key: str) -> list[float]:
        known = [c for c in columns if all(c.figure in result[key] for result in results)]
        return [
            sum(result[key][c.figure] for result in results) * (1 if c.higher_is_better else -1)
            for c in known
        ]

    return sorted(sorted(results[0]), key=place)


def _measured(table: Table) -> list[Score]:
    """The figures that single images have: those that are compared image by image."""
    return [c for c in table.columns if c.figure in table.of_images]


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[Sequence[str]] = ()
) -> str:
    """A table; `classes` are those of the cells after the first of each row."""
    kinds = [[f' class="{kind}"' for kind in some] for some in classes] or [[] for _ in rows]
    cells = "".join(f'<th scope="col">{escaped(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(
            f"<td{kind}>{escaped(c)}</td>" for c, kind in zip_longest(row[1:], some, fillvalue="")
        )
        + "</tr>"
        for row, some in zip(rows, kinds, strict=True)
    )
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _differences(table: Table) -> str:
    """The differences from the baseline; those that are certain of their sign stand out."""
    head, rows = table.difference_rows()
    if not rows:
        return ""
    shown = _table(
        head, rows, [[_judged(line, c) for c in table.compared] for line in table.against]
    )
    return (
        f"<section><h2>Differences from {escaped(str(table.baseline))}</h2>{shown}"
        "<p>Of the same images, with 95 % confidence intervals; coloured where the interval "
        "leaves out 0.</p></section>"
    )


def _groups(table: Table) -> str:
    """A table of each figure by groups."""
    shown = [
        f"<h3>{escaped(by_group(column))}</h3>{_table(*table.group_rows(column))}"
        for column in table.grouped
    ]
    return f"<section><h2>By group</h2>{''.join(shown)}</section>" if shown else ""


def _judged(line: Line, column: Score) -> str:
    """Whether a line is better or worse than the baseline; empty where it is not certain."""
    difference = line.differences.get(column.figure)
    if difference is None or difference.low <= 0 <= difference.high:
        return ""
    return "better" if (difference.mean > 0) == column.higher_is_better else "worse"


def _curves(table: Table) -> str:
    drawn = draw_curves(table)
    if not drawn:
        return ""
    realism = any(c.figure in ("KID", "FID") for c in table.columns)
    heading = f"{'Realism' if realism else 'What was wanted'} against faithfulness"
    return (
        f'<section><h2>{escaped(heading)}</h2><div class="wide">{drawn}</div>'
        "<p>The best is top right. Bars are standard deviations over seeds; numbers at the marks "
        "are the setting's.</p>"
        "</section>"
    )


def _chips(table: Table, lines: Sequence[Line]) -> str:
    """A switch for each line; on is one of each row: the baseline, or else the middle one."""
    on = set[str]()
    for curve in curves_of(table):
        labels = [line.label for line in curve.lines]
        on.add(next((name for name in labels if name == table.baseline), labels[len(labels) // 2]))
    return "".join(
        f'<label><input type="checkbox" data-line="{index}"{" checked" * (line.label in on)}>'
        f"{escaped(line.label)}</label>"
        for index, line in enumerate(lines)
    )


def _first(columns: Sequence[Score]) -> str | None:
    return next((column.label for column in columns if column.figure == "SSIM"), None)


def _options(names: Sequence[str], chosen: str | None) -> str:
    return "".join(
        f'<option value="{index}"{" selected" * (name == chosen)}>{escaped(name)}</option>'
        for index, name in enumerate(names)
    )


def _card(made: Made, lines: Sequence[Line], table: Table) -> str:
    values = [
        [_finite(figures.get(column.figure)) for column in _measured(table)]
        for figures in made.figures
    ]
    labels = ["source", *(line.label for line in lines)]
    images = [made.source, *made.images]
    if made.truth is not None:
        labels, images = [*labels, RIGHT], [*images, made.truth]
    layers = "".join(
        f'<figure data-layer="{index}">{image_tag(image, "layer")}'
        f"<figcaption>{escaped(label)}</figcaption></figure>"
        for index, (label, image) in enumerate(zip(labels, images, strict=True))
    )
    name = escaped(f"From the source of {made.key} to what each method makes of it")
    return (
        f'<article class="card" data-key="{escaped(made.key)}"'
        f' data-figures="{escaped(json.dumps(values))}"><div class="frame">{layers}'
        f'<input type="range" min="0" max="100" value="50" aria-label="{name}">'
        f'<i class="seam"></i></div><h3>{escaped(made.key)}</h3><p class="told"></p></article>'
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
