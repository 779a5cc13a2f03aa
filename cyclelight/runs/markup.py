"""Pieces of pages: text, numbers and images as HTML that opens from a disk."""

import base64
import io
import math
from html import escape

from PIL import Image

MISSING = "–"
RIGHT = "right result"
"""What stands beside a truth."""


def escaped(text: str) -> str:
    """Any text as text of HTML, also in attributes.

    Names of files may hold bytes that are no UTF-8; Python keeps them as lone surrogates.
    """
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


def short_number(value: float) -> str:
    """At most seven characters: three or four digits that count."""
    if not math.isfinite(value):
        return MISSING
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.{4 if abs(value) < 1 else 2 if abs(value) < 1000 else 0}f}"


def image_tag(image: Image.Image, kind: str) -> str:
    """An image within the page, as PNG, of the class `kind`."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    # With its size, so that nothing moves when it is decoded.
    return (
        f'<img class="{kind}" alt="{kind}" width="{image.width}" height="{image.height}"'
        f' loading="lazy" decoding="async" src="data:image/png;base64,{data}">'
    )
