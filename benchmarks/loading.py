"""How fast images come to a fit, at several sizes: from memory, and decoded anew in each epoch.

    python benchmarks/loading.py IMAGES --sides 64 128 256

Medians of images per second over epochs of `DomainImages`, and the processor's milliseconds for an
image, of all processes together, which a busy machine does not change.
"""

import argparse
import resource
import time
import warnings
from statistics import median

from tabulate import tabulate

from datamodules import DomainImages

WAYS = ((None, 0), (0.0, 0), (0.0, 2))
"""data.memory and data.num_workers."""


def spent() -> float:
    """Seconds of the processor that this process and its ended children have taken."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(
    root: str, side: int, memory: float | None, workers: int, epochs: int
) -> tuple[float, float]:
    """(images per second, milliseconds of the processor per image); without the first look."""
    data = DomainImages(root, batch_size=32, num_workers=workers, memory=memory)
    data.load(side)
    rates, count, begin = [], 0, spent()
    loader = data.train_dataloader()
    for _ in range(epochs):
        start, images = time.perf_counter(), 0
        for batch in loader:
            images += len(batch["image"])
        rates.append(images / (time.perf_counter() - start))
        count += images
    del loader  # Its processes end, and count.
    return median(rates), 1e3 * (spent() - begin) / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="folder of images")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for side in args.sides:
        for memory, workers in WAYS:
            rate, cost = measure(args.images, side, memory, workers, args.epochs)
            rows.append((side, "memory" if memory is None else "files", workers, rate, cost))
    headers = ["side", "from", "num_workers", "images/s", "ms of processor"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", "", ".0f", ".3f")))


if __name__ == "__main__":
    main()
