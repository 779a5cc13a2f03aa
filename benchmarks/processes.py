"""Throughput of `lightning predict` and `lightning fit` with several processes against one.

    .venv/bin/python benchmarks/processes.py --sources cats/ --train train/cat

Each row is two runs, a short one and a long one: what the long one takes more is without the start
(imports, and with several processes a second round of them). A fit sees as many images a step
whatever the number of processes. The machine should have nothing else to do.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
BATCH = 16


def seconds(command: str, processes: int, threads: int, output: Path, words: list[str]) -> float:
    """The time that one run takes."""
    ddp = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    line = [sys.executable, "-m", "cyclelight", command, *words, *quiet, *ddp, f"--output={output}"]
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(line, check=True, cwd=ROOT, env=environment, capture_output=True)
    return time.perf_counter() - begun


def predict(sources: Path, count: int) -> list[str]:
    """The words that translate `count` cats by the demo's recipe."""
    folder = Path(tempfile.mkdtemp())
    for path in sorted(sources.iterdir())[:count]:
        (folder / path.name).symlink_to(path.resolve())
    return [
        "--config=configs/translate/cat2dog.yaml",
        "--model.source=checkpoints/cat",
        "--model.target=checkpoints/dog",
        f"--data.source={folder}",
    ]


def fit(root: Path, steps: int, processes: int) -> list[str]:
    """The words that train for so many steps."""
    return [
        "--config=configs/domains/animals32.yaml",
        f"--data.root={root}",
        f"--data.batch_size={BATCH // processes}",
        f"--trainer.max_steps={steps}",
        "--trainer.limit_val_batches=0",
        "--model.sample_every_n_steps=0",
    ]


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder of images to translate")
    parser.add_argument("--train", type=Path, required=True, help="folder of images to train on")
    parser.add_argument("--images", type=int, nargs=2, default=(8, 72), help="short and long")
    parser.add_argument("--steps", type=int, nargs=2, default=(20, 220), help="short and long")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for processes, threads in ((1, 1), (1, 2), (2, 1)):
            runs = {
                "predict": [(n, predict(options.sources, n)) for n in options.images],
                "fit": [(n * BATCH, fit(options.train, n, processes)) for n in options.steps],
            }
            for command, ((few, short), (many, long)) in runs.items():
                outputs = [Path(tempfile.mkdtemp(dir=temporary)) / "out" for _ in range(2)]
                first = seconds(command, processes, threads, outputs[0], short)
                taken = seconds(command, processes, threads, outputs[1], long)
                rate = (many - few) / (taken - first)
                rows.append((command, processes, threads, first, taken, rate))
                print(*rows[-1], file=sys.stderr)
    head = ("command", "processes", "threads each", "short, s", "long, s", "images/s")
    rows.sort(key=lambda row: row[0])
    print(tabulate(rows, head, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
