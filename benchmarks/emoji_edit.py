"""Edits of emoji whose right result is a picture that exists (EmojiEdit, n pairs by a seed).

    python benchmarks/emoji_edit.py emoji_pairs64 --model checkpoints/emoji_text --pairs 400

CycleDiffusion from the source caption to the target caption, both guided by one scale. Told apart
for targets that the model was trained on and for those that were held out: how often the true
target is the nearest of all drawings of its style (hit), and the PSNR to it; beside both those of
the untouched source.
"""

import argparse
import csv
import random
from pathlib import Path

import numpy as np
import torch

import cyclelight
from cyclelight.chains.engine import Engine, best_precision
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.methods.translate import translate
from cyclelight.metrics.faithfulness import psnr
from cyclelight.text.attention import AttentionControl
from datamodules.reading import read_square

BATCH = 40


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("checkpoints/emoji_text"))
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--style", default="google")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.8)
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cross", type=float, default=0.0, help="of an AttentionControl")
    parser.add_argument("--self_attention", type=float, default=0.0, help="of the same")
    args = parser.parse_args()
    model = cyclelight.load_text_model(args.model)
    Engine().speed_up_network(model.denoiser, best_precision("cpu"))
    side, schedule = model.resolution, model.denoiser.schedule
    control = AttentionControl(cross=args.cross, self_attention=args.self_attention)
    with (args.data / "edit_pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder = args.data / args.style
    names = sorted(path.stem for path in folder.iterdir())
    drawn = {name: read_square(folder / f"{name}.png", side, "crop") for name in names}
    bank = torch.stack([drawn[name] for name in names]).flatten(1).float()
    chosen = random.Random(args.seed)
    for held_out in ("0", "1"):
        some = [row for row in rows if row["target_held_out"] == held_out]
        some = chosen.sample(some, args.pairs // 2)
        hits, nearness, untouched = [], [], []
        for start in range(0, len(some), BATCH):
            batch = some[start : start + BATCH]
            x = torch.stack([drawn[row["source"]] for row in batch])
            true = torch.stack([drawn[row["target"]] for row in batch])
            texts = [
                [f"{row[c]}, {args.style}" for row in batch]
                for c in ("source_caption", "target_caption")
            ]
            if args.cross or args.self_attention:
                timesteps = TimeGrid.truncated(schedule, args.steps, args.strength).timesteps
                scales = {"source_scale": args.scale, "scale": args.scale}
                pair = model.controlled(*texts, control, timesteps, **scales)
            else:
                pair = tuple(model.prompted(some, scale=args.scale) for some in texts)
            y = translate(
                *pair,
                to_float(x),
                steps=args.steps,
                strength=args.strength,
                eta=args.eta,
                cleanup=0,
                seed=args.seed,
                keys=[f"{row['source']} {row['target']}" for row in batch],
            )
            made = to_uint8(y)
            near = torch.cdist(made.flatten(1).float(), bank).argmin(dim=1)
            hits += [names[i] == row["target"] for i, row in zip(near, batch, strict=True)]
            nearness += psnr(made, true).tolist()
            untouched += psnr(x, true).tolist()
        rate = np.mean(hits)
        print(
            f"{'held out' if held_out == '1' else 'seen':8} n {len(some)}: hit {rate:.3f} +- "
            f"{(rate * (1 - rate) / len(some)) ** 0.5:.3f}, PSNR {np.mean(nearness):.2f} dB "
            f"(untouched source {np.mean(untouched):.2f})"
        )


if __name__ == "__main__":
    main()
