"""One picture of a run: sources beside their translations, and real images to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import PurePosixPath
from typing import TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cyclelight.callbacks.writer import ImageWriter, run_folder, translation_data
from cyclelight.outputs import Entry, RunFolder, atomic

T = TypeVar("T")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST, LARGEST = 128, 256  # The side in which images are shown, in pixels.
MARGIN, GAP, SEAM = 28, 24, 4  # Around all, between pairs, within a pair.
NARROWEST = 640  # Room for the title.
TITLE, TEXT, SMALL = 20, 15, 13  # Sizes of letters.
INK, PALE = "#1a1a1a", "#6b6b6b"


@dataclass(frozen=True)
class Pair:
    """A source and its translation, of equal size, with the text below them."""

    source: Image.Image
    translated: Image.Image
    label: str


class Gallery(Callback):
    """Writes `gallery.png` to the run folder at the end of `predict`, or when it is interrupted.

    It shows the very PNGs that `ImageWriter` wrote, beside the sources as the model saw them, and
    at the bottom real images if the data has a `reference`. The title is the module's `describe()`.

    Args:
        max_pairs: pairs at most; of more images, evenly spread ones are shown.

    Raises:
        ValueError: `max_pairs` is not positive.
    """

    def __init__(self, max_pairs: int = 16) -> None:
        if max_pairs < 1:
            raise ValueError(f"max_pairs must be at least 1, got {max_pairs}")
        self.max_pairs = max_pairs
        self._folder: RunFolder | None = None
        self._references: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the real images: should that fail, then before the run rather than after it."""
        if stage != "predict":
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, ImageWriter) for callback in callbacks):
            raise ValueError("the callback Gallery shows what ImageWriter writes: add that one too")
        self._folder = run_folder(trainer)
        if trainer.is_global_zero:
            self._references = translation_data(trainer).reference_pixels(self.max_pairs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._write(trainer, pl_module, interrupted=False)
        self._folder = None  # Errors of a later stage are not this run's.

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Show what was finished before an error or Ctrl-C."""
        if self._folder is None or not trainer.is_global_zero:
            return
        try:
            self._write(trainer, pl_module, interrupted=True)
        except Exception as error:  # It must not hide what went wrong first.
            rank_zero_warn(f"no gallery of the interrupted run: {error}")

    def _write(self, trainer: Trainer, pl_module: LightningModule, *, interrupted: bool) -> None:
        assert self._folder is not None
        data, finished = translation_data(trainer), self._folder.finished()
        shown = evenly(list(finished.values()), self.max_pairs)
        if not shown:
            return
        pairs = [
            Pair(_image(data.source_pixels(e["key"])), _read(self._folder, e), _short(e["key"]))
            for e in shown
        ]
        note = f"{len(shown)} of {len(finished)} images"
        if interrupted:
            note = f"interrupted after {len(finished)} of {len(data.keys)} images"
        describe = pl_module.describe
        assert callable(describe)
        picture = draw_gallery(pairs, describe(), note, [_image(r) for r in self._references])
        with atomic(self._folder.root / "gallery.png") as temporary:
            picture.save(temporary, format="PNG")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spread, in order."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def draw_gallery(
    pairs: Sequence[Pair], title: str, note: str, references: Sequence[Image.Image] = ()
) -> Image.Image:
    """The pairs in as many columns as make a landscape, a title above, real images below.

    Small images are magnified by a whole factor to 128 pixels or more, large ones shrunk to 256.
    At least one pair; the real images are as many as fit in one row.
    """
    side = _shown_side(pairs[0].source.width)
    columns = ceil(sqrt(len(pairs)))
    width = max(_left(2 * columns - 1, side) + side + MARGIN, NARROWEST)
    blocks = [_head(title, note, width), _pairs(pairs, columns, side, width)]
    if references:
        blocks.append(_references(references, side, width))
    picture = _blank(width, sum(block.height for block in blocks) + MARGIN // 2)
    top = 0
    for block in blocks:
        picture.paste(block, (0, top))
        top += block.height
    return picture


def _head(title: str, note: str, width: int) -> Image.Image:
    lines = _wrap(title, _font(TITLE), width - 2 * MARGIN)
    line_height = TITLE + 8
    block = _blank(width, MARGIN + len(lines) * line_height + TEXT + 12)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * line_height), line, INK, _font(TITLE), anchor="la")
    bottom = (MARGIN, MARGIN + len(lines) * line_height)
    draw.text(bottom, note, PALE, _font(TEXT), anchor="la")
    return block


def _pairs(pairs: Sequence[Pair], columns: int, side: int, width: int) -> Image.Image:
    header, row_height = TEXT + 14, side + SMALL + 24
    block = _blank(width, header + ceil(len(pairs) / columns) * row_height)
    draw = ImageDraw.Draw(block)
    for index in range(2 * columns):
        name = ("source", "translated")[index % 2]
        middle = _left(index, side) + side / 2
        draw.text((middle, header - 6), name, INK, _font(TEXT), anchor="md")
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        left, top = _left(2 * column, side), header + row * row_height
        block.paste(_show(pair.source, side), (left, top))
        block.paste(_show(pair.translated, side), (left + side + SEAM, top))
        label = _fit(pair.label, _font(SMALL), 2 * side + SEAM)
        below = (left + side + SEAM / 2, top + side + 5)
        draw.text(below, label, PALE, _font(SMALL), anchor="ma")
    return block


def _references(references: Sequence[Image.Image], side: int, width: int) -> Image.Image:
    header = TEXT + 26
    block = _blank(width, header + side + MARGIN // 2)
    draw = ImageDraw.Draw(block)
    draw.line((MARGIN, 4, width - MARGIN, 4), "#d8d8d8")
    draw.text((MARGIN, header - 8), "real images of the target", INK, _font(TEXT), anchor="ld")
    slots = 0
    while _left(slots, side) + side <= width - MARGIN:
        slots += 1
    for index, image in enumerate(evenly(references, slots)):
        block.paste(_show(image, side), (_left(index, side), header))
    return block


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "#ffffff")


def _left(index: int, side: int) -> int:
    """Where the image `index` of a row begins: they stand in pairs."""
    pair, half = divmod(index, 2)
    return MARGIN + pair * (2 * side + SEAM + GAP) + half * (side + SEAM)


def _shown_side(resolution: int) -> int:
    if resolution < SMALLEST:
        return resolution * ceil(SMALLEST / resolution)
    return min(resolution, LARGEST)


def _show(image: Image.Image, side: int) -> Image.Image:
    return image if image.width == side else image.resize((side, side), Image.Resampling.BICUBIC)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """The words of `text` in lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fit(line, font, width) for line in lines]


def _fit(text: str, font: Font, width: int) -> str:
    """`text` in `width` pixels: of a longer one its end, since names differ there."""
    cut = text
    while cut and font.getlength(cut if cut is text else f"...{cut}") > width:
        cut = cut[1:]
    return cut if cut is text else f"...{cut}"


def _short(key: str) -> str:
    return key.removesuffix(PurePosixPath(key).suffix)


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.numpy())


def _read(folder: RunFolder, entry: Entry) -> Image.Image:
    with Image.open(folder.root / entry["output"]) as image:
        return image.convert("RGB")
