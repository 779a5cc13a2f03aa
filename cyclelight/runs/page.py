"""One page of a run, `gallery.html`: pairs in frames with a slider, their figures, to be sorted.

The page is one file that opens from a disk: images are data: addresses, style and script stand in
`page.html` beside this file, and its policy forbids the browser to fetch anything.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TypeVar

from PIL import Image

from cyclelight.errors import at_least
from cyclelight.files import write_text
from cyclelight.metrics.figures import image_figures
from cyclelight.runs.markup import RIGHT, escaped, image_tag, short_number
from cyclelight.runs.report import Summary

T = TypeVar("T")

SMALLEST, LARGEST = 200, 320  # The least side in which images are shown, of many and of few.
BOUNDS = "Real: what real images reach. Untranslated: what the sources reach as they are."


@dataclass(frozen=True)
class Pair:
    """A source and its translation, RGB and of equal size, with the figures of this one image.

    Without a source, `translated` is whatever was made. `captions` are shown below the name,
    `truth`, the right result where it is known, beside both.
    """

    source: Image.Image | None
    translated: Image.Image
    key: str
    figures: Mapping[str, float] = field(default_factory=dict)
    captions: Sequence[str] = ()
    truth: Image.Image | None = None


@dataclass(frozen=True)
class Column:
    """What is known of a figure: its name and unit, what it means, which end is shown first."""

    name: str
    unit: str = ""
    hint: str = ""
    highest_first: bool = True


def known_columns() -> list[Column]:
    """What is known of the figures of single images, those first of which more is better."""
    found = sorted(image_figures().values(), key=lambda figure: not figure.higher_is_better)
    return [Column(f.name, f.unit, f.hint, f.higher_is_better) for f in found]


def write_page(
    path: Path,
    title: str,
    note: str,
    keys: Sequence[str],
    read: Callable[[str], Pair],
    *,
    columns: Sequence[Column] | None = None,
    table: Sequence[Summary] = (),
    references: Sequence[Image.Image] = (),
    max_pairs: int = 200,
) -> None:
    """Write the page of some images, atomically.

    Args:
        path: the file, `gallery.html`.
        title: what was run, in a line.
        note: whatever else there is to say about the run, or empty.
        keys: all images of the run, in the order in which they are shown first.
        read: gives the pair of a key; called once for each pair that is shown, one after another.
        columns: what is known of figures, by default all of the table's. Those that no pair has are
            left out; figures not listed
            here follow, without unit and hint. Missing, NaN and infinite values are shown as a
            dash and sorted last.
        table: the figures of the whole run, shown above the pairs.
        references: real images of the target, shown at the bottom.
        max_pairs: pairs at most, since each adds its PNGs to the file (about 20 kB at 64
            pixels, 300 kB at 256); of more, evenly spread ones are shown, and the page says so.

    Raises:
        ValueError: `max_pairs` is not positive.
    """
    at_least(1, max_pairs=max_pairs)
    shown = evenly(keys, max_pairs)
    cards: list[tuple[str, Mapping[str, float], str]] = []  # Images as text, which is smaller.
    alone = known = False
    for key in shown:
        pair = read(key)
        alone, known = pair.source is None, pair.truth is not None
        told = "".join(f"<p>{escaped(caption)}</p>" for caption in pair.captions)
        cards.append((_shown(pair), pair.figures, told))
    listed = known_columns() if columns is None else columns
    present = _present(listed, (figures for _, figures, _ in cards))
    text = Template(files("cyclelight.runs").joinpath("page.html").read_text(encoding="utf-8"))
    page = text.substitute(
        title=escaped(title),
        note=f'<p class="note">{escaped(note)}</p>' if note else "",
        summary=_summary(table),
        hide=' style="display: none"' if alone else "",
        legend="" if alone else " Source left, translation right.",
        sorters="".join(_sorter(column) for column in present),
        total=_count(len(shown), len(keys)),
        side=SMALLEST if len(shown) > 4 else LARGEST,
        wide=" wide" if known else "",
        pairs="\n".join(
            _card(key, frame, figures, told, present)
            for key, (frame, figures, told) in zip(shown, cards, strict=True)
        ),
        references=_references(references),
    )
    write_text(path, page)


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spread, in order."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _present(columns: Sequence[Column], pairs: Iterable[Mapping[str, float]]) -> list[Column]:
    names = list(dict.fromkeys(name for figures in pairs for name in figures))
    known = [column for column in columns if column.name in names]
    listed = {column.name for column in known}
    return known + [Column(name) for name in names if name not in listed]


def _card(
    key: str, frame: str, figures: Mapping[str, float], told: str, columns: Sequence[Column]
) -> str:
    values = [float(figures.get(column.name, math.nan)) for column in columns]
    # By position: a figure's name may hold what an attribute's name may not.
    data = "".join(f' data-f{i}="{v!r}"' for i, v in enumerate(values) if math.isfinite(v))
    cells = "".join(_cell(column, value) for column, value in zip(columns, values, strict=True))
    name = escaped(key).replace("/", "/<wbr>")  # Where a long one may be broken.
    return (
        f'<article class="pair" data-key="{escaped(key)}"{data}>{frame}'
        f"<h2>{name}</h2>{told}{f'<dl>{cells}</dl>' if cells else ''}</article>"
    )


def _cell(column: Column, value: float) -> str:
    unit = f" <small>{escaped(column.unit)}</small>" if column.unit else ""
    name = f"{escaped(column.name)}{unit}"
    return f"<div{_hint(column)}><dt>{name}</dt><dd>{short_number(value)}</dd></div>"


def _shown(pair: Pair) -> str:
    """The frame, and beside it the right result."""
    if pair.truth is None:
        return _frame(pair)
    right = f"{image_tag(pair.truth, 'truth')}<figcaption>{RIGHT}</figcaption>"
    return f'<div class="known">{_frame(pair)}<figure>{right}</figure></div>'


def _frame(pair: Pair) -> str:
    if pair.source is None:
        # The page's script moves the slider of every frame.
        whole, slider = 'style="--cut: 0%; display: block"', '<input type="range" hidden>'
        image = image_tag(pair.translated, "translated")
        return f'<div class="frame" {whole}>{image}{slider}</div>'
    name = escaped(f"How much of {pair.key} is its source")
    return (
        f'<div class="frame">{image_tag(pair.source, "source")}'
        f"{image_tag(pair.translated, 'translated')}"
        f'<input type="range" min="0" max="100" value="50" aria-label="{name}">'
        '<i class="seam"></i></div>'
    )


def _sorter(column: Column) -> str:
    first = "highest" if column.highest_first else "lowest"
    return (
        f'<button type="button" data-sort="{escaped(column.name)}" data-first="{first}"'
        f' aria-pressed="false"{_hint(column)}>{escaped(column.name)}<b></b></button>'
    )


def _summary(table: Sequence[Summary]) -> str:
    if not table:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escaped(row.figure)}</th><td>{escaped(row.value)}</td>'
        f"<td>{escaped(row.real)}</td><td>{escaped(row.untranslated)}</td><td>{escaped(row.n)}</td>"
        f"<td>{escaped(row.protocol)}</td></tr>"
        for row in table
    )
    names = ("figure", "value", "real", "untranslated", "n", "protocol")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    bounds = any(row.real or row.untranslated for row in table)
    return (
        f'<div class="summary"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"{f'<p>{BOUNDS}</p>' if bounds else ''}</div>"
    )


def _references(references: Sequence[Image.Image]) -> str:
    if not references:
        return ""
    images = "".join(image_tag(image, "real") for image in references)
    return (
        '<section class="references"><h2>real images of the target</h2>'
        f"<div>{images}</div></section>"
    )


def _count(shown: int, total: int) -> str:
    noun = "image" if total == 1 else "images"
    return f"{total} {noun}" if shown == total else f"{shown} of {total} {noun}, evenly spread"


def _hint(column: Column) -> str:
    return f' title="{escaped(column.hint)}"' if column.hint else ""
