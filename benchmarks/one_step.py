"""How many times faster a student is than its teacher, and how near it comes to it.

    python benchmarks/one_step.py checkpoints/emoji_google checkpoints/emoji_twitter \
      runs/student/generator --sources emoji/val/google --teacher runs/teacher/images --steps 20

Times are those of this process's processor, one thread, so that others on the machine disturb
little: medians over repeats in turns, the teacher's networks in the precision that `predict` takes
here, the student in float32. The PSNR is of 8-bit images to the teacher's, beside that of the
sources themselves.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, stdev

import torch
from torch import Tensor

import cyclelight
from cyclelight.chains.engine import Engine, best_precision
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.metrics.faithfulness import psnr
from datamodules.listing import list_images
from datamodules.matching import match
from datamodules.square_images import SquareImages


def seconds(call: Callable[[], object]) -> float:
    """Of this process's processor."""
    began = time.process_time()
    call()
    return time.process_time() - began


def mean(values: Tensor) -> str:
    """With its standard error."""
    return f"{values.mean():.2f} +- {stdev(values.tolist()) / len(values) ** 0.5:.2f}"


def pixels(sources: Path, translated: Path, side: int) -> tuple[Tensor, Tensor]:
    """(sources, translations), (B, side, side, 3), uint8, of the images that have both."""
    pairs = match(list_images(translated), list_images(sources))
    found = [SquareImages([(key, files[i]) for key, *files in pairs], side) for i in (1, 0)]
    x, y = (torch.stack([some.pixels(i) for i in range(len(pairs))]) for some in found)
    return x, y


def main() -> None:
    """Parse the command line, translate, print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("source", "target", "student"):
        parser.add_argument(name)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine, precision = Engine(), best_precision("cpu")
    paths = (args.source, args.target)
    domains = [engine.speed_up(cyclelight.load_domain(path), precision) for path in paths]
    student = cyclelight.OneStep(args.student)
    x, y = pixels(args.sources, args.teacher, domains[0].resolution)
    images = to_float(x)

    def by_student() -> Tensor:
        parts = images.split(args.batch)
        return torch.cat([cyclelight.translate(None, None, p, method=student) for p in parts])

    made = to_uint8(by_student())
    print(f"{len(x)} images, PSNR to the teacher's: {mean(psnr(made, y))} dB")
    print(f"of the sources themselves: {mean(psnr(x, y))} dB")
    some, method = images[: args.batch], cyclelight.CycleDiffusion(steps=args.steps)
    times: dict[str, list[float]] = {"teacher": [], "student": []}
    for _ in range(args.repeats):
        times["teacher"].append(
            seconds(lambda: cyclelight.translate(*domains, some, method=method))
        )
        times["student"].append(
            seconds(lambda: cyclelight.translate(None, None, some, method=student))
        )
    each = {name: 1000 * median(found) / len(some) for name, found in times.items()}
    for name, found in times.items():
        spread = ", ".join(f"{1000 * t / len(some):.1f}" for t in sorted(found))
        print(f"{name}: {each[name]:.1f} ms an image ({spread})")
    print(f"{each['teacher'] / each['student']:.0f} times")


if __name__ == "__main__":
    main()
