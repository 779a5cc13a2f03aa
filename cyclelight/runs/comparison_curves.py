"""What was wanted against faithfulness: a curve for each row over its last setting, as SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cyclelight.metrics.figure_kinds import Score
from cyclelight.runs.comparison_lines import Line, Value
from cyclelight.runs.comparison_table import Table
from cyclelight.runs.markup import escaped

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3aa0d8", "#7b4fd0", "#a03030"),
    *("#4d7c0f", "#c2410c", "#0f766e", "#6b7280"),
)
MARKS = ("circle", "square", "triangle", "diamond")
WIDTH, HEIGHT = 560, 400
"""Of a panel, in which the axes leave room for numbers."""
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 34, 52
WANTED = ("KID", "FID", "S_CLIP", "S_D-CLIP", "PSNR to truth", "nearest is truth")
"""Figures, beside class rates, of what was to be reached."""
KEY, LETTER = 20, 7.2
"""Height of a line of the key, and width of a letter: of the wide fonts that a page may have."""


@dataclass(frozen=True)
class Curve:
    """The lines of a row that differ in one setting only, in its order.

    Args:
        name: of the row, with the settings that are the same.
        lines: of the table.
        values: of the setting that differs; empty texts where there is none.
    """

    name: str
    lines: Sequence[Line]
    values: Sequence[str]


def curves_of(table: Table) -> list[Curve]:
    """One for each row, or for each combination of all settings but the last of its `over`."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for line in table.lines:
        if line.setting is not None:
            point = line.setting.point
            same = [f"{name} {point[name]}" for name in list(point)[:-1]]
            found.setdefault((line.setting.row, *same), []).append(line)
    return [
        Curve(
            ", ".join([*same, _last_name(lines)] if _last_name(lines) else same),
            lines,
            [_last_value(line) for line in lines],
        )
        for same, lines in found.items()
    ]


def draw_curves(table: Table) -> str:
    """An SVG of panels by SSIM to the source, or else by PSNR; empty without any.

    There is one for each figure of realism, and of edits one for each that says whether they are
    what their texts, or the truth, say.

    The best is top right. Bars are standard deviations over seeds. Dashed lines are what real
    images reach, and what untranslated sources do.
    """
    columns = {column.figure: column for column in table.columns}
    across = columns.get("SSIM") or columns.get("PSNR")
    up = [c for c in table.columns if c.figure.endswith(" rate") or c.figure in WANTED]
    up = [c for c in up if c.figure != "FID" or "KID" not in columns]
    curves = curves_of(table)
    if across is None or not up or not curves:
        return ""
    apart = 36 + LETTER * max(len(curve.name) for curve in curves)
    width = max(WIDTH * len(up), math.ceil(LEFT + apart))
    in_row = int((width - LEFT) // apart)
    rows = math.ceil(len(curves) / in_row)
    height = HEIGHT + KEY * rows + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="12"'
        f' fill="currentColor" role="img" aria-label="What was wanted against faithfulness">'
    ]
    for index, column in enumerate(up):
        panel = _Panel(table, curves, across, column)
        parts.append(f'<g transform="translate({WIDTH * index} 0)">{"".join(panel.draw())}</g>')
    for index, curve in enumerate(curves):
        x, y = LEFT + apart * (index % in_row), HEIGHT + 12 + KEY * (index // in_row)
        parts.append(_mark(index, x, y) + _text(x + 12, y + 4, curve.name))
    return "".join([*parts, "</svg>"])


class _Panel:
    """One figure of what was wanted against one of faithfulness."""

    def __init__(self, table: Table, curves: Sequence[Curve], across: Score, up: Score) -> None:
        self.curves, self.across, self.up = curves, across, up
        self.bounds = [line for line in table.lines if line.setting is None]
        lines = [line for curve in curves for line in curve.lines]
        self.x = _Axis([_at(line, across) for line in lines], LEFT, WIDTH - RIGHT)
        values = [_at(line, up) for line in [*lines, *self.bounds]]
        # Better is higher up, whichever direction that is.
        ends = (HEIGHT - BOTTOM, TOP) if up.higher_is_better else (TOP, HEIGHT - BOTTOM)
        self.y = _Axis(values, *ends)

    def draw(self) -> Iterator[str]:
        """The elements."""
        yield from self._axes()
        for line in self.bounds:
            if (value := _at(line, self.up)) is not None:
                y = self.y.place(value.mean)
                yield _path(f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", "currentColor", "5 4", 0.45)
                yield _text(WIDTH - RIGHT - 4, y - 4, line.label, anchor="end", opacity=0.7)
        for index, curve in enumerate(self.curves):
            yield from self._curve(index, curve)

    def _axes(self) -> Iterator[str]:
        bottom = HEIGHT - BOTTOM
        for tick in self.x.ticks:
            x = self.x.place(tick)
            yield _path(f"M{x:.1f} {TOP}V{bottom}", "currentColor", "", 0.12)
            yield _text(x, bottom + 17, f"{tick:g}", anchor="middle", opacity=0.75)
        for tick in self.y.ticks:
            y = self.y.place(tick)
            yield _path(f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", "currentColor", "", 0.12)
            yield _text(LEFT - 8, y + 4, f"{tick:g}", anchor="end", opacity=0.75)
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield _text(middle, HEIGHT - 14, _title(self.across), anchor="middle")
        yield _text(LEFT, TOP - 14, _title(self.up), weight=600)

    def _curve(self, index: int, curve: Curve) -> Iterator[str]:
        colour, places = COLOURS[index % len(COLOURS)], list[str]()
        drawn = []
        for line, value in zip(curve.lines, curve.values, strict=True):
            across, up = _at(line, self.across), _at(line, self.up)
            if across is None or up is None:
                continue
            x, y = self.x.place(across.mean), self.y.place(up.mean)
            places.append(f"{x:.1f} {y:.1f}")
            low, high = (self.y.place(up.mean + s * (up.spread or 0)) for s in (-1, 1))
            left, right = (self.x.place(across.mean + s * (across.spread or 0)) for s in (-1, 1))
            drawn.append(_path(f"M{x:.1f} {low:.1f}V{high:.1f}", colour, "", 0.5))
            drawn.append(_path(f"M{left:.1f} {y:.1f}H{right:.1f}", colour, "", 0.5))
            told = f"{line.label}: {self.up.label} {up.mean:.3f}"
            drawn.append(_mark(index, x, y, f"{told}, {self.across.label} {across.mean:.3f}"))
            if value:
                drawn.append(_text(x + 7, y - 6, value, size=10, opacity=0.8))
        if len(places) > 1:
            yield _path("M" + "L".join(places), colour, "", 0.8)
        yield from drawn


class _Axis:
    """From values to places on the page; both ends have some room."""

    def __init__(self, values: Sequence[Value | None], start: float, end: float) -> None:
        known = [value for value in values if value is not None]
        low = min((v.mean - (v.spread or 0) for v in known), default=0.0)
        high = max((v.mean + (v.spread or 0) for v in known), default=1.0)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Some round numbers."""
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = math.ceil(self.low / step)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step) + 1)]


def _at(line: Line, column: Score) -> Value | None:
    """The line's figure as it is printed."""
    value = line.figures.get(column.figure)
    if value is None or not math.isfinite(value.mean):
        return None
    spread = None if value.spread is None else value.spread * column.scale
    return Value(value.mean * column.scale, spread)


def _last_name(lines: Sequence[Line]) -> str:
    point: Mapping[str, object] = lines[0].setting.point if lines[0].setting else {}
    return f"by {list(point)[-1]}" if point else ""


def _last_value(line: Line) -> str:
    values = list(line.setting.point.values()) if line.setting else []
    return str(values[-1]) if values else ""


def _title(column: Score) -> str:
    direction = "higher" if column.higher_is_better else "lower"
    return f"{column.label} ({direction} is better)"


def _path(way: str, colour: str, dashes: str, opacity: float) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<path d="{way}" fill="none" stroke="{colour}" stroke-width="1.6"'
        f' stroke-opacity="{opacity}"{dashed}/>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: int = 400,
    opacity: float = 1.0,
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
        f' font-weight="{weight}" fill-opacity="{opacity}">{escaped(text)}</text>'
    )


def _mark(index: int, x: float, y: float, title: str = "") -> str:
    """The mark of a curve: by colour and shape."""
    shapes = {
        "circle": f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
        "square": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "triangle": f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
        "diamond": f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    }
    colour = COLOURS[index % len(COLOURS)]
    told = f"<title>{escaped(title)}</title>" if title else ""
    # Where the colours begin anew, the marks go on by one.
    shape = shapes[MARKS[(index + index // len(COLOURS)) % len(MARKS)]]
    return f'<path class="mark" d="{shape}" fill="{colour}">{told}</path>'
