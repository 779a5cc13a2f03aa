"""What guidance makes of images, as a picture: a row for each line of a comparison."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from cyclelight.errors import printable

SIDE, LABEL, GAP, SEAM, MARGIN = 96, 330, 14, 3, 16


def draw_ways(rows: Mapping[str, Sequence[tuple[Image.Image, Image.Image]]]) -> Image.Image:
    """Pairs of what images began as and became, side by side, under the name of each line.

    Args:
        rows: by their names; each as many pairs of square images, shown at one size.
    """
    count = max(map(len, rows.values()))
    width = MARGIN + LABEL + count * (2 * SIDE + SEAM + GAP)
    whole = Image.new("RGB", (width, 2 * MARGIN + 16 + len(rows) * (SIDE + GAP)), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(15)
    pen.text((MARGIN + LABEL, MARGIN), "before | after", fill="#6b6b6b", font=font)
    for number, (name, pairs) in enumerate(rows.items()):
        top = MARGIN + 22 + number * (SIDE + GAP)
        pen.text((MARGIN, top + SIDE // 2), printable(name, 44), "#1a1a1a", font, anchor="lm")
        for index, pair in enumerate(pairs):
            left = MARGIN + LABEL + index * (2 * SIDE + SEAM + GAP)
            for place, image in enumerate(pair):
                shown = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                whole.paste(shown, (left + place * (SIDE + SEAM), top))
    return whole
