"""Guidance: peak memory against the steps of a generator, and runs of `lightning guide` in a table.

    python benchmarks/guidance.py memory [--domain checkpoints/cat] [--batch 4]
    python benchmarks/guidance.py table runs/guide_*

Memory is measured in processes of their own: that of a gradient through the whole chain, with each
call of the network computed again in the backward pass, as `guide` does, and without.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.guidance import generators
from cyclelight.guidance.load import load_map

COLUMNS = ("energy before", "energy after", "success before", "success after", "diversity before")
COLUMNS += ("diversity after", "KID", "restarts", "calls", "seconds")


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


def figures(run: Path) -> dict[str, Any]:
    """The figures of a run by the names of `COLUMNS`."""
    found: dict[str, Any] = {}
    for score in json.loads((run / "metrics.json").read_text())["figures"]:
        name = score["figure"]
        # Of several energies the first one's.
        short = " ".join(name.split(" ")[-2:]) if " energy " in name else name
        found.setdefault(short, score)
    return found


def table(runs: Sequence[Path]) -> None:
    """Print a row for each run."""
    rows = []
    for run in runs:
        found = figures(run)
        n = max(score["n"] for score in found.values())
        row: list[object] = [run.name, n]
        for name in COLUMNS:
            score = found.get(name)
            if score is None:
                row.append("")
                continue
            error, scale = score.get("standard_error"), score.get("scale", 1)
            text = f"{score['value'] * scale:.3g}"
            row.append(text + (f" ± {error * scale:.2g}" if error else ""))
        rows.append(row)
    print(tabulate(rows, ("run", "n", *COLUMNS), tablefmt="github", disable_numparse=True))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parsers = parser.add_subparsers(dest="what", required=True)
    one = parsers.add_parser("memory")
    one.add_argument("--domain", default="checkpoints/cat")
    one.add_argument("--batch", type=int, default=4)
    one.add_argument("--steps", type=int, nargs="+", default=[10, 50, 200])
    one.add_argument("--most", type=int, default=50, help="Steps of which all is kept, at most.")
    two = parsers.add_parser("table")
    two.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    if options.what == "memory":
        measure(options.domain, options.batch, options.steps, options.most)
    else:
        table(options.runs)


if __name__ == "__main__":
    main()
