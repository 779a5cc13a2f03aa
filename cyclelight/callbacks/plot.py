"""A plot of curves, drawn without a plotting library."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 220, 76, 34, 30
INK, PALE, LINE = "#1a1a1a", "#d8d8d8", "#2563a8"


def plot(curves: Mapping[str, Sequence[float]]) -> Image.Image:
    """Each curve in a panel of its own, one below the other, its values against 0, 1, ..."""
    picture = Image.new("RGB", (WIDTH, HEIGHT * max(1, len(curves))), "white")
    for row, (name, values) in enumerate(curves.items()):
        _panel(ImageDraw.Draw(picture), row * HEIGHT, name, values)
    return picture


def _panel(pen: ImageDraw.ImageDraw, top: int, name: str, values: Sequence[float]) -> None:
    font = ImageFont.load_default(13)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high <= low:
        low, high = low - 0.5, low + 0.5
    bottom, right = top + HEIGHT - BOTTOM, WIDTH - 20

    def place(index: int, value: float) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * index / max(1, len(values) - 1)
        return x, bottom - (bottom - top - TOP) * (value - low) / (high - low)

    pen.text((LEFT, top + 8), name, INK, font)
    for value in (low, (low + high) / 2, high):
        _, y = place(0, value)
        pen.line((LEFT, y, right, y), PALE)
        pen.text((LEFT - 8, y), f"{value:.4g}", INK, font, anchor="rm")
    for index in (0, len(values) - 1):
        x, _ = place(index, low)
        pen.text((x, bottom + 6), str(index), INK, font, anchor="mt" if index == 0 else "rt")
    if len(values) > 1:
        pen.line([place(*point) for point in enumerate(values)], LINE, 2)
