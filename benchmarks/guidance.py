"""Guidance: peak memory of a gradient against the steps of a generator's chain.

    python benchmarks/guidance.py [--domain checkpoints/cat] [--batch 4]

Memory is measured in processes of their own: that of a gradient through the whole chain, with each
call of the network computed again in the backward pass, as `guide` does, and without.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Sequence

import torch
from tabulate import tabulate

from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.guidance import generators
from cyclelight.guidance.load import load_map


def peak(path: str, batch: int, steps: int, again: bool) -> tuple[float, float]:
    """(peak of this process's memory above that before the gradient, in MB; seconds)."""
    if not again:
        generators.recomputed = lambda call, *arguments: call(*arguments)
    generator = load_map(path, steps=steps)
    z = generator.sample_latent(KeyedNoise(0, range(batch)), torch.empty(batch))
    with torch.no_grad():
        generator(z[:1])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    z.requires_grad_(True)
    generator(z).square().sum().backward()  # type: ignore[no-untyped-call]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1e3, time.monotonic() - began


def measure(path: str, batch: int, counts: Sequence[int], most: int) -> None:
    """Print a table; without computing again, only up to `most` steps."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for steps in counts:
        row: list[object] = [steps]
        for again in (True, False):
            if not again and steps > most:
                row += ["", ""]
                continue
            with context.Pool(1) as pool:
                megabytes, seconds = pool.apply(peak, (path, batch, steps, again))
            row += [f"{megabytes:.0f}", f"{seconds:.1f}"]
        rows.append(row)
    names = ("steps", "MB", "seconds", "MB, all kept", "seconds, all kept")
    print(tabulate(rows, names, tablefmt="github"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--domain", default="checkpoints/cat")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--most", type=int, default=50, help="Steps of which all is kept, at most.")
    options = parser.parse_args()
    measure(options.domain, options.batch, options.steps, options.most)


if __name__ == "__main__":
    main()
