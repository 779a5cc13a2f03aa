"""`lightning atlas`: the way between two images, as several domains see it, in one picture."""

from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from cyclelight.chains.decode import decode
from cyclelight.chains.encode import encode
from cyclelight.chains.interpolate import interpolate
from cyclelight.chains.latent_code import LatentCode
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.diffusion.pixels import pil_image, to_float, to_uint8
from cyclelight.domains.domain import Domain, check_pair
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.errors import at_least
from cyclelight.files import atomic
from datamodules.reading import read_square

DESCRIPTION = "Draw the codes between two images, decoded by several domains in aligned rows."
EPILOG = """\
Both images are encoded with the source; between them each noise of the code turns spherically. A
row is one domain, a column one code: one place of the latent space that all of them share. The
outermost images of the source's own row are the two given ones, exactly."""
GAP = 2
"""Pixels between two images."""


def _parser() -> ArgumentParser:
    parser = make_parser(
        "atlas", "IMAGE IMAGE --targets DIR [DIR ...] --output FILE", DESCRIPTION, EPILOG
    )
    add = parser.add_argument
    add("images", nargs=2, metavar="IMAGE", help="The two images.")
    add("--source", type=str, default="checkpoints/cat", help="The domain that they belong to.")
    add(
        "--targets",
        type=str,
        nargs="+",
        default=["checkpoints/dog", "checkpoints/wild"],
        help="The domains of the further rows.",
    )
    add("--output", type=str, default="atlas.png", help="The picture, a PNG file.")
    add("--columns", type=int, default=9, help="Images in a row, the two given ones among them.")
    add("--steps", type=int, default=100, help="Timesteps of the chain.")
    add("--eta", type=float, default=1.0, help="0 .. 1: how stochastic it is.")
    add("--strength", type=float, default=1.0, help="Share of the grid that is run.")
    add("--seed", type=int, default=0, help="Of the noise.")
    add("--scale", type=int, default=2, help="How many pixels a side of each pixel gets.")
    return parser


def atlas(args: list[str]) -> int:
    """`lightning atlas`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
        at_least(2, columns=options.columns)
        at_least(1, scale=options.scale)
        if not options.output.endswith(".png"):
            raise ValueError(f"--output: the picture is a .png file, got {options.output}")
        named = [("source", options.source), *(("targets", path) for path in options.targets)]
        paths = [check_domain_path(path, name) for name, path in named]
        bare = [load_domain(path, device="meta") for path in paths]
        for other in bare[1:]:
            check_pair(bare[0], other)
        side, channels = bare[0].resolution, bare[0].channels
        squares = [read_square(path, side, "crop", channels) for path in options.images]
        images = to_float(torch.stack(squares))
    source, *targets = (load_domain(path) for path in paths)
    code = encode(
        source,
        images,
        steps=options.steps,
        eta=options.eta,
        strength=options.strength,
        seed=options.seed,
        keys=options.images,
        progress=True,
    )
    between = interpolate(code, 0, 1, options.columns)
    rows = [row(domain, between) for domain in (source, *targets)]
    file = Path(options.output)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        picture(rows, options.scale).save(temporary, format="PNG")
    print(f"{file}: {', '.join(domain.name for domain in (source, *targets))}, from above")
    return 0


def row(domain: Domain, code: LatentCode) -> Tensor:
    """The decoded images of a domain, uint8 (n, R, R, C)."""
    return to_uint8(decode(domain, code, progress=True))


def picture(rows: list[Tensor], scale: int) -> Image.Image:
    """The rows under one another on white, each pixel `scale` x `scale`."""
    count, side = len(rows[0]), rows[0].shape[1] * scale + GAP
    canvas = Image.new("RGB", (count * side - GAP, len(rows) * side - GAP), (255, 255, 255))
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            tile = pil_image(image)
            size = (side - GAP, side - GAP)
            canvas.paste(tile.resize(size, Image.Resampling.NEAREST), (x * side, y * side))
    return canvas
