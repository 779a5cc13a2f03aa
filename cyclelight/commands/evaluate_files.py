"""What size all translations have that are to be judged."""

from pathlib import Path

from datamodules.reading import open_image

GREYS = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
"""Pillow's modes of images without colours."""


def common_shape(paths: list[Path]) -> tuple[int, int]:
    """(the side of square images of one size, in pixels; 1 if all files are grey, or else 3).

    Raises:
        ValueError: one is not square, of another size than the first, or unreadable.
    """
    sizes, grey = [], True
    for path in paths:
        try:
            with open_image(path) as image:
                sizes.append(image.size)
                grey = grey and image.mode in GREYS
        except OSError as error:
            raise ValueError(f"--translated: cannot read image {path}: {error}") from error
        (width, height), first = sizes[-1], sizes[0]
        if width != height or (width, height) != first:
            wanted = f"{first[0]} x {first[0]} pixels as {paths[0]}" if len(sizes) > 1 else "square"
            raise ValueError(f"--translated: {path} is {width} x {height} pixels, not {wanted}")
    return sizes[0][0], 1 if grey else 3
