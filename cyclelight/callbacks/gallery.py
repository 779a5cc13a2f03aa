"""What a run looks like, as a picture and as a page: sources beside their translations."""

from bisect import bisect
from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cyclelight.diffusion.pixels import pil_image
from cyclelight.errors import at_least, first_line, printable
from cyclelight.files import atomic
from cyclelight.runs.folder import Entry, RunFolder
from cyclelight.runs.markup import RIGHT
from cyclelight.runs.page import Pair, evenly, write_page
from cyclelight.runs.plan import Plan, plan_of
from cyclelight.runs.report import Summary
from cyclelight.runs.task import PartCallback
from datamodules.predict_data import predict_data

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST, LARGEST = 128, 256  # The side in which images are shown, in pixels.
MARGIN, GAP, SEAM = 28, 24, 4  # Around all, between pairs, within a pair.
NARROWEST = 640  # Room for the title.
TITLE, TEXT, SMALL = 20, 15, 13  # Sizes of letters.
LONGEST_TITLE = 600  # In letters.
MOST_LINES = 4  # Of all captions of a pair.
INK, PALE = "#1a1a1a", "#6b6b6b"


@runtime_checkable
class FigureSource(Protocol):
    """A callback that measures: the page shows the figures of every one that the trainer has.

    Both are asked for on the first process only, in `on_predict_end`, so that what knows its
    figures only there stands before the gallery; or when the run was interrupted, at any moment.
    """

    def per_image(self) -> Mapping[str, Mapping[str, float]]:
        """Figures by name of each image, by key; of any images, also of ones not shown."""

    def table(self) -> Sequence[Summary]:
        """Figures of the whole run."""


class Gallery(PartCallback):
    """Writes `gallery.png` and `gallery.html` to the run folder at the end of `predict`.

    When the run is interrupted, they show what was finished; that they cannot be written is a
    warning. The images are the very PNGs that `ImageWriter` wrote, beside the sources as the model
    saw them, and the right results if the data has `truths`; at the bottom are real images if it
    has a `reference`. The title is the module's `describe()`. The page lets one compare each pair
    in one frame, and sort by the figures of callbacks that are a `FigureSource`.

    Args:
        max_pairs: pairs in the picture at most; of more images, evenly spread ones are shown.
        page_pairs: the same for the page, which holds its images (about 20 kB a pair at 64 pixels,
            300 kB at 256).
        part: which part of the task, see `Task.parts`: each has a gallery of its own.

    Raises:
        ValueError: `max_pairs` or `page_pairs` is not positive.
    """

    def __init__(self, max_pairs: int = 16, page_pairs: int = 200, part: str = "") -> None:
        at_least(1, max_pairs=max_pairs, page_pairs=page_pairs)
        self.max_pairs, self.page_pairs, self.part = max_pairs, page_pairs, part
        self._plan: Plan | None = None
        self._references: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the real images: should that fail, then before the run rather than after it."""
        if stage != "predict":
            return
        if plan_of(trainer, self.part) is None:
            raise ValueError("the callback Gallery shows what ImageWriter writes: add it before")
        if trainer.is_global_zero:
            self._references = predict_data(trainer).reference_pixels(self.max_pairs, self.part)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An error before this has nothing to show."""
        self._plan = plan_of(trainer, self.part)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After that of `ImageWriter`, where all processes have written their last image."""
        # No meeting here: the scores of a million images take the first process longer than the
        # others can wait.
        if trainer.is_global_zero:
            self._try(trainer, pl_module, interrupted=False)
        self._plan = None  # Errors of a later stage are not this run's.

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Show what was finished before an error or Ctrl-C."""
        if self._plan is not None and trainer.is_global_zero:
            self._try(trainer, pl_module, interrupted=True)

    def _try(self, trainer: Trainer, pl_module: LightningModule, *, interrupted: bool) -> None:
        try:
            self._write(trainer, pl_module, interrupted=interrupted)
        except Exception as error:  # The images are there, and what went wrong first is worse.
            run = "the interrupted run" if interrupted else "this run, whose images are all there"
            rank_zero_warn(f"no gallery of {run}: {first_line(error)}")

    def _write(self, trainer: Trainer, pl_module: LightningModule, *, interrupted: bool) -> None:
        assert self._plan is not None
        data, folder = predict_data(trainer), self._plan.folder
        sources, truths = data.sources, data.truths
        readable = set(self._plan.keys)
        finished = {key: entry for key, entry in folder.finished().items() if key in readable}
        if not finished:
            return
        known = [c for c in trainer.callbacks if isinstance(c, FigureSource)]  # type: ignore[attr-defined]
        measures = [c for c in known if getattr(c, "part", self.part) == self.part]
        per_image = [measure.per_image() for measure in measures]

        def read(key: str) -> Pair:
            figures = {name: x for of in per_image for name, x in of.get(key, {}).items()}
            source = pil_image(sources.pixels_of(key)) if sources is not None else None
            truth = pil_image(truths.pixels_of(key)) if truths is not None else None
            made = _read(folder, finished[key])
            return Pair(source, made, key, figures, data.captions(key), truth)

        title = self.task(pl_module).describe()
        references = [pil_image(pixels) for pixels in self._references]
        cut_off = f"interrupted after {len(finished)} of {len(data.keys)} images"
        shown = evenly(list(finished), self.max_pairs)
        note = cut_off if interrupted else f"{len(shown)} of {len(finished)} images"
        picture = draw_gallery([read(key) for key in shown], title, note, references)
        with atomic(folder.root / "gallery.png") as temporary:
            picture.save(temporary, format="PNG")
        write_page(
            folder.root / "gallery.html",
            title,
            cut_off if interrupted else "",
            list(finished),
            read,
            table=[row for measure in measures for row in measure.table()],
            references=references,
            max_pairs=self.page_pairs,
        )


def draw_gallery(
    pairs: Sequence[Pair], title: str, note: str, references: Sequence[Image.Image] = ()
) -> Image.Image:
    """The pairs in as many columns as make a landscape, a title above, real images below.

    Small images are magnified by a whole factor to 128 pixels or more, large ones shrunk to 256.
    At least one pair; the real images are as many as fit in one row.
    """
    side, names = _shown_side(pairs[0].translated.width), _names(pairs)
    together = max(len(names), 2)
    columns = ceil(sqrt(2 * len(pairs) * len(names)) / together)
    width = max(_left(together * columns - 1, side, together) + side + MARGIN, NARROWEST)
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
    lines = _wrap(printable(title, LONGEST_TITLE), _font(TITLE), width - 2 * MARGIN)
    line_height = TITLE + 8
    block = _blank(width, MARGIN + len(lines) * line_height + TEXT + 12)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * line_height), line, INK, _font(TITLE), anchor="la")
    bottom = (MARGIN, MARGIN + len(lines) * line_height)
    draw.text(bottom, note, PALE, _font(TEXT), anchor="la")
    return block


def _names(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """What stands above the images of a pair."""
    names = ("source", "translated") if pairs[0].source is not None else ("made",)
    return names if pairs[0].truth is None else (*names, RIGHT)


def _pairs(pairs: Sequence[Pair], columns: int, side: int, width: int) -> Image.Image:
    header, names, line = TEXT + 14, _names(pairs), SMALL + 5
    together = max(len(names), 2)
    in_row = together * columns // len(names)
    span = _left(len(names) - 1, side, together) + side - MARGIN
    below = [_below(pair, span) for pair in pairs]
    row_height = side + line * max(map(len, below)) + 19
    block = _blank(width, header + ceil(len(pairs) / in_row) * row_height)
    draw = ImageDraw.Draw(block)
    for index in range(together * columns):
        middle = _left(index, side, together) + side / 2
        name = names[index % len(names)]
        draw.text((middle, header - 6), name, INK, _font(TEXT), anchor="md")
    for index, pair in enumerate(pairs):
        row, column = divmod(index, in_row)
        top = header + row * row_height
        images = (pair.source, pair.translated, pair.truth)
        shown = [image for image in images if image is not None]
        places = range(column * len(names), (column + 1) * len(names))
        lefts = [_left(place, side, together) for place in places]
        for left, image in zip(lefts, shown, strict=True):
            block.paste(_show(image, side), (left, top))
        for number, text in enumerate(below[index]):
            place = (lefts[0] + span / 2, top + side + 5 + number * line)
            draw.text(place, text, INK if number else PALE, _font(SMALL), anchor="ma")
    return block


def _below(pair: Pair, span: int) -> list[str]:
    """The lines below a pair: its name, and its captions."""
    font = _font(SMALL)
    told = (printable(caption, LONGEST_TITLE) for caption in pair.captions)
    lines = [line for caption in told for line in _wrap(caption, font, span)]
    return [_fit(_short(pair.key), font, span), *lines[:MOST_LINES]]


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


def _left(index: int, side: int, together: int = 2) -> int:
    """Where the image `index` of a row begins: they stand together in twos or threes."""
    block, place = divmod(index, together)
    return MARGIN + block * (together * (side + SEAM) - SEAM + GAP) + place * (side + SEAM)


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
    text = printable(text)
    if len(text) <= width and font.getlength(text) <= width:
        return text
    # Of so many letters at most, so that what is measured is short, however long the text.
    tails = range(min(width, len(text)), -1, -1)
    cut = bisect(tails, False, key=lambda n: font.getlength(f"...{text[len(text) - n :]}") <= width)
    return f"...{text[len(text) - tails[cut] :]}" if cut < len(tails) else ""


def _short(key: str) -> str:
    return key.removesuffix(PurePosixPath(key).suffix)


def _read(folder: RunFolder, entry: Entry) -> Image.Image:
    with Image.open(folder.root / entry["output"], formats=("PNG",)) as image:
        return image.convert("RGB")
