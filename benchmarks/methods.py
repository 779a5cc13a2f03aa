"""The demo's cats by every method with its default settings, as one picture: docs/img/methods.jpg.

    python benchmarks/methods.py

A row a method, below the sources; about two minutes on two cores.
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import cyclelight
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.methods.base import Method
from datamodules.listing import list_images
from datamodules.reading import read_square

ROOT = Path(__file__).parents[1]
METHODS: list[Method] = [
    cyclelight.CycleDiffusion(),
    cyclelight.EditFriendly(),
    cyclelight.DDCM(),
    cyclelight.SDEdit(),
]
SIDE, LABEL = 120, 150


def main() -> None:
    """Translate and draw."""
    cat, dog = (cyclelight.load_domain(ROOT / "checkpoints" / name) for name in ("cat", "dog"))
    files = list_images(ROOT / "docs" / "demo" / "cats")
    pixels = torch.stack([read_square(path, cat.resolution, "crop") for _, path in files])
    rows, keys = {"source": pixels}, [key for key, _ in files]
    for method in METHODS:
        made = cyclelight.translate(
            cat, dog, to_float(pixels), method=method, keys=keys, progress=True
        )
        rows[type(method).__name__] = to_uint8(made)
    picture = Image.new("RGB", (LABEL + SIDE * len(files), SIDE * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (name, images) in enumerate(rows.items()):
        middle = SIDE * row + SIDE // 2
        draw.text((10, middle), name, "#1a1a1a", ImageFont.load_default(16), anchor="lm")
        for column, image in enumerate(images):
            shown = Image.fromarray(image.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.paste(shown, (LABEL + SIDE * column, SIDE * row))
    picture.save(ROOT / "docs" / "img" / "methods.jpg", quality=92)


if __name__ == "__main__":
    main()
