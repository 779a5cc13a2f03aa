"""Realism against faithfulness of the translation, over its settings: a table and a plot.

    python benchmarks/sweep.py cat ../shared/data/animal_faces64/val --images 80

runs `predict` once for each setting on evenly spread images of VAL/DOMAIN, measures them against
VAL/dog, and writes docs/sweep_DOMAIN.csv and docs/img/sweep_DOMAIN.png. What the table holds
already is not run again: an interrupted sweep goes on where it stopped. Delete the table to start
afresh.
"""

import argparse
import csv
import json
import tempfile
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from cyclelight.cli import main as lightning
from cyclelight.files import write_text
from cyclelight.runs.page import evenly
from datamodules.listing import list_images

ROOT = Path(__file__).parents[1]
SETTINGS = ("steps", "eta", "strength", "cleanup")
FIGURES = ("dog rate", "KID", "SSIM", "PSNR")

# steps, eta, strength, cleanup: one thing changed at a time, then what promised more.
GRID = [
    *product((50,), (0.1,), (0.85,), (100, 0, 200, 300)),
    *product((50,), (0.1,), (0.7, 1.0), (200,)),
    *product((50,), (0.5, 1.0), (0.85,), (100,)),
    *product((50,), (1.0,), (0.7,), (100, 200)),
    *product((25, 100), (0.1,), (0.85,), (200,)),
]

Row = dict[str, float]


def measure(domain: str, sources: Path, reference: Path, setting: tuple[float, ...]) -> Row:
    """The figures of one setting."""
    with tempfile.TemporaryDirectory() as output:
        given = {
            "config": ROOT / f"configs/translate/{domain}2dog.yaml",
            "model.source": ROOT / f"checkpoints/{domain}",
            "model.target": ROOT / "checkpoints/dog",
            **{f"model.{name}": value for name, value in zip(SETTINGS, setting, strict=True)},
            "data.source": sources,
            "data.reference": reference,
            "trainer.enable_progress_bar": "false",
            "output": output,
        }
        if lightning(["predict", *(f"--{name}={value}" for name, value in given.items())]):
            raise SystemExit("predict failed")
        metrics = json.loads(Path(output, "metrics.json").read_text())
    values = {figure["figure"]: figure for figure in metrics["figures"]}
    errors = {"KID error": values["KID"]["standard_error"], "n": values["KID"]["n"]}
    row = dict(zip(SETTINGS, setting, strict=True))
    return {**row, **{name: values[name]["value"] for name in FIGURES}, **errors}


def read_table(path: Path) -> list[Row]:
    """The rows that were measured already."""
    if not path.exists():
        return []
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def write_table(path: Path, rows: list[Row]) -> None:
    """All rows, atomically."""
    names = list(rows[0])
    lines = [",".join(names), *(",".join(f"{row[name]:.5g}" for name in names) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def draw(path: Path, domain: str, rows: list[Row]) -> None:
    """Both measures of realism against SSIM; a line for each eta and strength, along cleanup."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    lines: dict[tuple[float, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["cleanup"]):
        lines.setdefault((row["eta"], row["strength"], row["steps"]), []).append(row)
    markers = {steps: marker for steps, marker in zip((25, 50, 100), "^os", strict=True)}
    for number, (eta, strength, steps) in enumerate(sorted(lines)):
        line = lines[eta, strength, steps]
        label = f"eta {eta:g}, strength {strength:g}, {steps:g} steps"
        for axis, name, scale in zip(axes, ("dog rate", "KID"), (1, 100), strict=True):
            axis.plot(
                [row["SSIM"] for row in line],
                [row[name] * scale for row in line],
                marker=markers.get(int(steps), "o"),
                color=plt.get_cmap("tab20")(number % 20),
                label=label,
            )
            for row in line:
                where = (row["SSIM"], row[name] * scale)
                axis.annotate(f"{row['cleanup']:g}", where, fontsize=7, alpha=0.7)
    for axis, name in zip(axes, ("dog rate", "KID x 100 (lower is better)"), strict=True):
        axis.set(xlabel="SSIM to the source", ylabel=name)
        axis.grid(alpha=0.3)
    count = f"{rows[0]['n']:g}"
    figure.suptitle(f"{domain} to dog, {count} validation images; numbers at points: cleanup")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("domain", choices=("cat", "wild"))
    parser.add_argument("val", type=Path, help="folder with the validation images of the domains")
    parser.add_argument("--images", type=int, default=80)
    args = parser.parse_args()
    table, picture = (
        ROOT / f"docs/sweep_{args.domain}.csv",
        ROOT / f"docs/img/sweep_{args.domain}.png",
    )
    rows = read_table(table)
    done = {tuple(row[name] for name in SETTINGS) for row in rows}
    with tempfile.TemporaryDirectory() as sources:
        for _, path in evenly(list_images(args.val / args.domain), args.images):
            Path(sources, path.name).symlink_to(path.resolve())
        for setting in GRID:
            if setting in done:
                continue
            rows.append(measure(args.domain, Path(sources), args.val / "dog", setting))
            write_table(table, rows)
            draw(picture, args.domain, rows)
    print(f"Wrote {table} and {picture}")


if __name__ == "__main__":
    main()
