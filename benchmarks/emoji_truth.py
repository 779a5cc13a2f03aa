"""Score a comparison against true counterparts, which unpaired translation has nowhere else.

    python benchmarks/emoji_truth.py COMPARED TRUTH ALL

COMPARED is the output of `lightning compare`; TRUTH has the counterpart of each source by its name;
ALL has every drawing of the target's style. One line for each row: PSNR and SSIM to the truth, and
the share whose nearest drawing among ALL, by L2, is the truth; mean over seeds and images, and the
standard error over images.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from cyclelight.metrics.faithfulness import psnr, ssim
from datamodules.listing import list_images
from datamodules.reading import read_square

HEAD = ("", "PSNR (dB)", "SSIM", "nearest", "n", "seeds")


def figures(made: Tensor, truth: Tensor, places: Tensor, drawings: Tensor) -> Tensor:
    """(B, 3): PSNR, SSIM and whether the nearest of all drawings is the truth.

    Args:
        made, truth: uint8 (B, R, R, 3).
        places: of the truths among the drawings, (B,).
        drawings: of the whole style, uint8 (N, R, R, 3).
    """
    flat = (x.flatten(1).float() / 255 for x in (made, drawings))
    nearest = torch.cdist(*flat).argmin(1)
    hits = (nearest == places).double()
    return torch.stack([psnr(made, truth).double(), ssim(made, truth).double(), hits], 1)


def rows(compared: Path) -> Iterator[tuple[str, Path]]:
    """(label, folder of images) of each finished cell, and the sources as they are."""
    yield "untranslated", compared / "sources"
    for cell in sorted(compared.glob("cells/*/*/cell.json")):
        if json.loads(cell.read_text())["judged"]:
            yield cell.parent.parent.name.replace("_", " "), cell.parent / "images"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("compared", "truth", "all"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    first = next(path for label, folder in rows(args.compared) for _, path in list_images(folder))
    cells = [folder for _, folder in rows(args.compared)]
    side = read_side(cells[-1], first)
    names = {Path(key).stem: index for index, (key, _) in enumerate(list_images(args.all))}
    drawings = torch.stack([read_square(path, side, "crop") for _, path in list_images(args.all)])
    truths = {Path(key).stem: path for key, path in list_images(args.truth)}
    found = defaultdict(list)
    for label, folder in rows(args.compared):
        files = {Path(key).stem: path for key, path in list_images(folder)}
        made = torch.stack([read_square(path, side, "crop") for path in files.values()])
        truth = torch.stack([read_square(truths[stem], side, "crop") for stem in files])
        places = torch.tensor([names[stem] for stem in files])
        found[label].append(figures(made, truth, places, drawings))
    table = []
    for label, seeds in found.items():
        values = torch.stack(seeds).mean(0)
        error = values.std(0) / len(values) ** 0.5
        cells_ = [f"{m:.3f} ± {e:.3f}" for m, e in zip(values.mean(0), error, strict=True)]
        table.append((label, *cells_, len(values), len(seeds)))
    print(tabulate(table, HEAD, tablefmt="github"))


def read_side(folder: Path, fallback: Path) -> int:
    """The side of the images that were made."""
    from PIL import Image

    path = next((path for _, path in list_images(folder)), fallback)
    with Image.open(path, formats=["PNG"]) as image:
        return image.width


if __name__ == "__main__":
    main()
