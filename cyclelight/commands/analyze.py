"""`lightning analyze`: what a pair of models does to images, step by step."""

from io import BytesIO
from itertools import chain as prepend
from math import log10
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from cyclelight.callbacks.plot import Curves, plot
from cyclelight.chains.analysis import analysed_steps
from cyclelight.chains.source import check_eta, source_chain
from cyclelight.commands.atlas import picture
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.domains.domain import Domain, check_pair
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.errors import at_least
from cyclelight.files import atomic, check_no_file, write_json
from datamodules.listing import Files, find_images
from datamodules.reading import read_square

DESCRIPTION = "Show what a pair of domains does to images, step by step, and what bounds it."
EPILOG = """\
analysis.json has, for each step, the mean over the images of K_t, S_t, the bound of Eq. 8 of
CycleDiffusion, the difference that was observed, and the mean square of the code's noise (1 where
it is Gaussian); analysis.png plots them. film.png and film.webp show both chains, the source's
above the target's. It takes three network calls a step and image."""
NUMBERS = ("K", "S", "difference", "bound", "sharp", "mean_square")
"""The fields of a PairStep that are averaged over the images."""
SMALLEST = 1e-12
"""Drawn in place of a difference of 0, of which there is no logarithm."""
Film = list[tuple[list[Tensor], list[Tensor]]]
"""The start and each step: the images of x_t, and those of y_t, uint8 (R, R, C) each."""
FRAME_MS, LAST_FRAME_MS = 80, 1500
"""How long the animation shows a frame, in milliseconds."""


def _parser() -> ArgumentParser:
    parser = make_parser("analyze", "SOURCE TARGET --images DIR --output DIR", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="The domain that the images belong to.")
    add("target", metavar="TARGET", help="The domain to translate into.")
    add("--images", type=str, required=True, help="The images, a folder or a pattern.")
    add("--output", type=str, required=True, help="The folder for the results.")
    add("--steps", type=int, default=50, help="Timesteps of the whole grid.")
    add("--eta", type=float, default=1.0, help="0 .. 1: how stochastic the chain is.")
    add("--strength", type=float, default=0.85, help="Share of the grid that is run.")
    add("--spacing", type=str, default="leading", help="Of timesteps: leading, quadratic, logsnr.")
    add("--seed", type=int, default=0, help="Of the noise.")
    add("--batch_size", type=int, default=16, help="Images in a batch.")
    add("--film", type=int, default=3, help="How many images the film shows, the first ones.")
    add("--columns", type=int, default=10, help="States in a row of film.png.")
    add("--scale", type=int, default=2, help="How many pixels a side of each pixel gets in it.")
    return parser


def analyze(args: list[str]) -> int:
    """`lightning analyze`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
        at_least(1, batch_size=options.batch_size, film=options.film, scale=options.scale)
        at_least(2, columns=options.columns)
        check_eta("eta", options.eta)
        check_no_file(Path(options.output))
        named = {name: getattr(options, name) for name in ("source", "target")}
        paths = [check_domain_path(path, name) for name, path in named.items()]
        bare = [load_domain(path, device="meta") for path in paths]
        check_pair(*bare)
        grid = TimeGrid.spaced(bare[0].schedule, options.steps, options.strength, options.spacing)
        found = _images(options.images)
        side, channels = bare[0].resolution, bare[0].channels
        squares = [read_square(path, side, "crop", channels) for _, path in found]
    source, target = (load_domain(path) for path in paths)
    steps, film = run(
        source, target, torch.stack(squares), [key for key, _ in found], grid, options
    )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        name: getattr(options, name) for name in ("steps", "eta", "strength", "spacing", "seed")
    }
    numbers = {"source": source.name, "target": target.name, "n": len(found), **told}
    last = steps[-1]
    loose = {
        name: last[field] / last["difference"] if last["difference"] else None
        for name, field in (("eq_8", "bound"), ("sharp", "sharp"))
    }
    for name, drawn in (
        ("analysis.png", plot(curves(steps))),
        ("film.png", strip(film, options.columns, options.scale)),
    ):
        with atomic(folder / name) as temporary:
            drawn.save(temporary, format="PNG")
    with atomic(folder / "film.webp") as temporary:
        temporary.write_bytes(animation(film, options.scale))
    write_json(folder / "analysis.json", {**numbers, "looseness": loose, "chain": steps})
    print(f"{folder}: {summary(steps, loose)}")
    return 0


def _images(given: str) -> Files:
    try:
        return find_images(given)
    except (ValueError, OSError) as error:  # It calls them a source, which is a domain here.
        raise ValueError(f"--images: {str(error).removeprefix('source: ')}") from error


@torch.no_grad()
def run(
    source: Domain, target: Domain, images: Tensor, keys: list[str], grid: TimeGrid, options: Any
) -> tuple[list[dict[str, float]], Film]:
    """The numbers of each step, means over the images; and the film.

    Args:
        source, target: a pair of domains.
        images: uint8 (n, R, R, C).
        keys: of each image's noise.
        grid: the timesteps to visit.
        options: eta, seed, batch_size, and how many images the film has.
    """
    numbers: list[list[dict[str, list[float]]]] = [[] for _ in grid.pairs]
    film: Film = [([], []) for _ in range(len(grid) + 1)]
    starts = range(0, len(images), options.batch_size)
    with tqdm(total=len(starts) * len(grid), desc="analyze", unit="step") as bar:
        for start in starts:
            part = slice(start, start + options.batch_size)
            noise = KeyedNoise(options.seed, keys[part])
            x_0 = source.to_states(to_float(images[part]))
            chain = source_chain(source.denoiser, x_0, grid=grid, eta=options.eta, noise=noise)
            first = next(chain)
            shown = max(0, options.film - start)
            _keep(film[0], source, target, first.x_t[:shown], first.x_t[:shown])
            steps = analysed_steps(target.denoiser, prepend([first], chain))
            for i, step in enumerate(steps):
                numbers[i].append({name: getattr(step, name).tolist() for name in NUMBERS})
                _keep(film[i + 1], source, target, step.x_s[:shown], step.y_s[:shown])
                bar.update()
    means = [
        {name: fmean(value for batch in batches for value in batch[name]) for name in NUMBERS}
        for batches in numbers
    ]
    pairs = zip(grid.pairs, means, strict=True)
    return [{"t": t, "s": s, **each} for (t, s), each in pairs], film


def _keep(
    frame: tuple[list[Tensor], list[Tensor]], source: Domain, target: Domain, x: Tensor, y: Tensor
) -> None:
    """Both chains' states as images; there may be none."""
    for images, domain, states in zip(frame, (source, target), (x, y), strict=True):
        if len(states):
            images.extend(to_uint8(domain.to_images(states)))


def curves(steps: list[dict[str, float]]) -> dict[str, Curves]:
    """What is plotted against the number of the step, from noise to clean."""
    of = {name: [step[name] for step in steps] for name in NUMBERS}
    distances = {
        "observed": of["difference"],
        "(K + 1) B + S, Eq. 8": of["bound"],
        "K B + S": of["sharp"],
    }
    return {
        "log10 of the difference": {
            name: [log10(max(value, SMALLEST)) for value in values]
            for name, values in distances.items()
        },
        "K, from the second step on": of["K"][1:] or of["K"],
        "S": of["S"],
        "mean square of the code's noise": {
            "code": of["mean_square"][:-1] or of["mean_square"],
            "Gaussian": [1.0] * max(1, len(steps) - 1),
        },
    }


def strip(film: Film, columns: int, scale: int) -> Image.Image:
    """States from noise to clean, x_t above y_t for each image, the start and the end among them.

    They lie closer together near the clean end, since there is little to see in noise.
    """
    columns, last = min(columns, len(film)), len(film) - 1
    # Counted from the end; squares that round to one state move apart.
    back = [max(i, round(last * (i / (columns - 1)) ** 2)) for i in range(columns)]
    chosen = [film[last - i] for i in reversed(back)]
    count = len(film[0][0])
    return picture(
        [
            torch.stack([frame[side][i] for frame in chosen])
            for i in range(count)
            for side in (0, 1)
        ],
        scale,
    )


def animation(film: Film, scale: int) -> bytes:
    """A WebP film of the images side by side, x_t above y_t; it repeats."""
    frames = [picture([torch.stack(x), torch.stack(y)], scale) for x, y in film]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    buffer = BytesIO()
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def summary(steps: list[dict[str, float]], loose: dict[str, float | None]) -> str:
    """The answer in two lines."""
    squares = [step["mean_square"] for step in steps[:-1]]
    told = f"difference {steps[-1]['difference']:.3g} rms"
    if loose["eq_8"] is not None:
        told += f"; the bound of Eq. 8 is {loose['eq_8']:.3g} times that, without its 1 "
        told += f"{loose['sharp']:.3g} times"
    if squares:
        told += f"\ncode's mean squares {min(squares):.3g} .. {max(squares):.3g}, 1 if Gaussian"
    return told
