"""The curves of a fit's losses: what was noted at which step, as a table and as a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cyclelight.files import atomic, write_text

MOST = 1000
"""Rows of training steps, even: of more steps, each row is the mean of several."""
SIZE, MARGINS = (900, 520), (90, 44, 24, 56)
"""Width and height of the picture, and what is left around the axes: left, top, right, bottom."""
COLOURS, INK, PALE = ("#1f6fb4", "#d2691e"), "#1a1a1a", "#d8d8d8"
SMOOTHED = 0.05
"""Share of the rows that each point of the training curve is the mean of."""

Point = tuple[float, float]


@dataclass
class Curve:
    """Losses by step; of any number of steps, it keeps a thousand rows at most.

    Args:
        train: (step, mean loss, learning rate) of so many steps each as `stride` says.
        val: (step, loss) of each validation.
    """

    train: list[tuple[float, float, float]] = field(default_factory=list)
    val: list[Point] = field(default_factory=list)
    stride: int = 1
    _open: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, rate: float) -> None:
        """Note the training loss of a step."""
        self._open.append(loss)
        if len(self._open) >= self.stride:
            self.train.append((step, sum(self._open) / len(self._open), rate))
            self._open = []
        if len(self.train) == MOST:
            pairs = zip(self.train[::2], self.train[1::2], strict=True)
            self.train = [(late[0], (early[1] + late[1]) / 2, late[2]) for early, late in pairs]
            self.stride *= 2

    def add_validation(self, step: int, loss: float) -> None:
        """Note the loss of a validation."""
        self.val.append((step, loss))

    def state(self) -> dict[str, Any]:
        """All of it, as plain values."""
        rows = {"train": [list(row) for row in self.train], "val": [list(row) for row in self.val]}
        return {**rows, "stride": self.stride, "open": list(self._open)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Curve":
        """The curve whose `state` this was."""
        train = [(float(a), float(b), float(c)) for a, b, c in state["train"]]
        val = [(float(a), float(b)) for a, b in state["val"]]
        return cls(train, val, int(state["stride"]), [float(loss) for loss in state["open"]])

    def write(self, table: Path, picture: Path, names: tuple[str, str]) -> None:
        """Write it as CSV, one row per step that something is known of, and as PNG.

        Args:
            table, picture: the files.
            names: what the losses of training and validation are called.
        """
        rows: dict[float, list[str]] = {}
        for step, loss, rate in self.train:
            rows[step] = [f"{loss:.6g}", f"{rate:.6g}", ""]
        for step, loss in self.val:
            rows.setdefault(step, ["", "", ""])[2] = f"{loss:.6g}"
        lines = [f"{step:.0f},{','.join(rows[step])}" for step in sorted(rows)]
        head = f"step,{names[0]},learning_rate,{names[1]}"
        write_text(table, "\n".join([head, *lines]) + "\n")
        with atomic(picture) as temporary:
            self.draw(names).save(temporary, format="PNG")

    def draw(self, names: tuple[str, str]) -> Image.Image:
        """The picture: training pale, its running mean and the validation in full colour."""
        raw = _finite((step, loss) for step, loss, _ in self.train)
        val = _finite(self.val)
        mean = _running_mean(raw, max(1, round(SMOOTHED * len(raw))))
        axes = _Axes([*raw, *val])
        axes.line(raw, _paler(COLOURS[0]), 2)
        axes.line(mean, COLOURS[0], 5)
        axes.line(val, COLOURS[1], 5, dots=True)
        shown = zip(names, COLOURS, (raw, val), strict=True)
        axes.legend([(name, colour) for name, colour, points in shown if points])
        return axes.picture()


def _finite(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if isfinite(point[1])]


def _running_mean(points: Sequence[Point], width: int) -> list[Point]:
    """Each point's mean with those beside it, `width` in all; at the ends fewer."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    found = []
    for i, (x, _) in enumerate(points):
        reach = min(width // 2, i, len(points) - 1 - i)
        first, end = i - reach, i + reach + 1
        found.append((x, (sums[end] - sums[first]) / (end - first)))
    return found


def _paler(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{(c + 2 * 255) // 3:02x}" for c in (red, green, blue))


class _Axes:
    """A frame for points; y is logarithmic where the values are of different orders."""

    def __init__(self, points: Sequence[Point]) -> None:
        xs, ys = [x for x, _ in points] or [0.0, 1.0], [y for _, y in points] or [0.0, 1.0]
        self.log = min(ys) > 0 and max(ys) / min(ys) > 4
        self.x, self.y = (0.0, max(xs) or 1.0), (min(ys), max(ys))
        if not self.log:
            room = 0.05 * ((self.y[1] - self.y[0]) or abs(self.y[1]) or 1.0)
            self.y = (self.y[0] - room, self.y[1] + room)
        # Twice the size, to be halved at the end: Pillow's lines are jagged.
        self.image = Image.new("RGB", (2 * SIZE[0], 2 * SIZE[1]), "white")
        self.pen, self.font = ImageDraw.Draw(self.image), ImageFont.load_default(26)
        self._frame()

    def _place(self, point: Point) -> Point:
        left, top, right, bottom = MARGINS
        scale = log10 if self.log else float
        low, high, y = (scale(value) for value in (*self.y, point[1]))
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - low) / (high - low)
        width, height = SIZE[0] - left - right, SIZE[1] - top - bottom
        return 2 * (left + across * width), 2 * (top + (1 - up) * height)

    def _frame(self) -> None:
        (left, bottom), (right, top) = (self._place((self.x[i], self.y[i])) for i in (0, 1))
        for tick in _ticks(*self.y, log=self.log):
            _, y = self._place((0, tick))
            self.pen.line([(left, y), (right, y)], PALE, 2)
            self.pen.text((left - 14, y), f"{tick:.4g}", INK, self.font, "rm")
        for tick in _ticks(*self.x):
            x, _ = self._place((tick, self.y[0]))
            self.pen.line([(x, bottom), (x, bottom + 10)], INK, 2)
            self.pen.text((x, bottom + 16), f"{tick:g}", INK, self.font, "mt")
        self.pen.text(((left + right) / 2, bottom + 60), "step", INK, self.font, "mt")
        self.pen.rectangle([(left, top), (right, bottom)], outline=INK, width=2)

    def line(self, points: Sequence[Point], colour: str, width: int, *, dots: bool = False) -> None:
        """Join points; with `dots`, or if there is only one, mark each."""
        places = [self._place(point) for point in points]
        for pair in pairwise(places):
            self.pen.line(pair, colour, width)
        for x, y in places if dots or len(places) == 1 else ():
            self.pen.ellipse([(x - 7, y - 7), (x + 7, y + 7)], colour)

    def legend(self, entries: Iterable[tuple[str, str]]) -> None:
        """Names in their colours, above the frame."""
        x = 2.0 * MARGINS[0]
        for name, colour in entries:
            self.pen.line([(x, 44), (x + 50, 44)], colour, 8)
            self.pen.text((x + 64, 44), name, INK, self.font, "lm")
            x += 64 + self.pen.textlength(name, self.font) + 60

    def picture(self) -> Image.Image:
        """In its size."""
        return self.image.resize(SIZE, Image.Resampling.LANCZOS)


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round values between two, about five."""
    if log:
        powers = range(floor(log10(low)), ceil(log10(high)) + 1)
        factors = (1, 2, 5) if len(powers) < 4 else (1,)
        found = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in found if low <= value <= high]
    rough = (high - low) / 5
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [round(i * step, 12) for i in range(ceil(low / step), floor(high / step) + 1)]
