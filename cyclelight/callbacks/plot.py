"""A plot of curves, drawn without a plotting library."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 220, 76, 34, 30
INK, PALE = "#1a1a1a", "#d8d8d8"
LINES = ("#2563a8", "#c2410c", "#4d7c0f", "#7e22ce")
"""The colours of a panel's curves, in this order."""

Curves = Sequence[float] | Mapping[str, Sequence[float]]
"""One curve, or several in one panel by their names."""


def plot(curves: Mapping[str, Curves]) -> Image.Image:
    """A panel for each name, one below the other: its curves' values against 0, 1, ..."""
    picture = Image.new("RGB", (WIDTH, HEIGHT * max(1, len(curves))), "white")
    for row, (name, panel) in enumerate(curves.items()):
        lines = panel if isinstance(panel, Mapping) else {name: panel}
        _panel(ImageDraw.Draw(picture), row * HEIGHT, name, lines)
    return picture


def _panel(
    pen: ImageDraw.ImageDraw, top: int, name: str, lines: Mapping[str, Sequence[float]]
) -> None:
    font = ImageFont.load_default(13)
    values = [value for line in lines.values() for value in line]
    last = max((len(line) for line in lines.values()), default=1) - 1
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high <= low:
        low, high = low - 0.5, low + 0.5
    bottom, right = top + HEIGHT - BOTTOM, WIDTH - 20

    def place(index: int, value: float) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * index / max(1, last)
        return x, bottom - (bottom - top - TOP) * (value - low) / (high - low)

    pen.text((LEFT, top + 8), name, INK, font)
    for value in (low, (low + high) / 2, high):
        _, y = place(0, value)
        pen.line((LEFT, y, right, y), PALE)
        pen.text((LEFT - 8, y), f"{value:.4g}", INK, font, anchor="rm")
    for index in (0, last):
        x, _ = place(index, low)
        pen.text((x, bottom + 6), str(index), INK, font, anchor="mt" if index == 0 else "rt")
    legend: float = right
    coloured = list(zip(lines.items(), cycle(LINES), strict=False))
    for (label, line), colour in reversed(coloured):  # So that the first lies on top.
        if len(line) > 1:
            pen.line([place(*point) for point in enumerate(line)], colour, 2)
        if len(lines) > 1:
            pen.text((legend, top + 8), label, colour, font, anchor="ra")
            legend -= pen.textlength(label, font) + 16
