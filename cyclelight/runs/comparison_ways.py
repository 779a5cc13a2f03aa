"""What guidance makes of images, as a picture: a row for each line of a comparison."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from cyclelight.errors import printable

SIDE, GAP, SEAM, MARGIN = 96, 14, 3, 16


def draw_ways(rows: Mapping[str, Sequence[tuple[Image.Image, Image.Image]]]) -> Image.Image:
    """Pairs of what images began as and became, side by side, under the name of each line.

    Args:
        rows: by their names; each as many pairs of square images, shown at one size.
    """
    font, count = ImageFont.load_default(15), max(map(len, rows.values()))
    names = [printable(name, 60) for name in rows]
    first = 2 * MARGIN + round(max(map(font.getlength, names)))
    size = (first + count * (2 * SIDE + SEAM + GAP), 2 * MARGIN + 16 + len(rows) * (SIDE + GAP))
    whole = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(whole)
    pen.text((first, MARGIN), "before | after", "#6b6b6b", font)
    for number, (name, pairs) in enumerate(zip(names, rows.values(), strict=True)):
        top = MARGIN + 22 + number * (SIDE + GAP)
        pen.text((MARGIN, top + SIDE // 2), name, "#1a1a1a", font, anchor="lm")
        for index, pair in enumerate(pairs):
            left = first + index * (2 * SIDE + SEAM + GAP)
            for place, image in enumerate(pair):
                shown = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                whole.paste(shown, (left + place * (SIDE + SEAM), top))
    return whole
