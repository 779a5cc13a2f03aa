"""The table of EmojiEdit: edits of emoji whose right result is a drawing that exists.

    python benchmarks/emoji_edit.py emoji_pairs64 emoji_edit.csv
    lightning compare --config configs/compare/emoji_edit.yaml --data.source emoji_edit.csv \
      --data.candidates emoji_pairs64/google --output compared

Of the 12,110 pairs of `edit_pairs.csv` some are chosen by a seed, half of them towards emoji that
the text model was not shown; up to the standard, 400 in Google's style, fewer are among more.
Groups are the attribute that changes, and whether the target was held out.
"""

import argparse
import csv
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

STANDARD = 400
GROUPS = {"0": "seen", "1": "held out"}
FIELDS = ("key", "image", "source_text", "target_text", "truth", "group")

Row = Mapping[str, str]


def choose(rows: Sequence[Row], pairs: int, seed: int) -> list[Row]:
    """Half of the pairs towards seen targets, half towards those held out.

    Raises:
        ValueError: there are not as many of one kind.
    """
    drawn, half, chosen = random.Random(seed), pairs // 2, []
    for held_out in GROUPS:
        some = [row for row in rows if row["target_held_out"] == held_out]
        if half > len(some):
            raise ValueError(
                f"--pairs: {half} of {len(some)} {GROUPS[held_out]} pairs are not there"
            )
        # Those of the standard in any case, so that fewer are the first of them.
        chosen += drawn.sample(some, min(len(some), max(half, STANDARD // 2)))[:half]
    return chosen


def edits(rows: Sequence[Row], folder: str, style: str) -> list[dict[str, str]]:
    """The rows of a table of edits.

    Args:
        rows: of `edit_pairs.csv`.
        folder: of all drawings of the style, as the table is to name it.
        style: the word that captions end in.
    """
    return [
        {
            "key": f"{row['source']}_{row['target']}.png",
            "image": f"{folder}/{row['source']}.png",
            "source_text": f"{row['source_caption']}, {style}",
            "target_text": f"{row['target_caption']}, {style}",
            "truth": f"{folder}/{row['target']}.png",
            "group": f"{GROUPS[row['target_held_out']]}; {row['attribute']}",
        }
        for row in rows
    ]


def main() -> None:
    """Parse the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--pairs", type=int, default=STANDARD)
    parser.add_argument("--style", default="google", choices=("google", "twitter"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with (args.data / "edit_pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder = os.path.relpath(args.data / args.style, args.table.parent)
    found = edits(choose(rows, args.pairs, args.seed), folder, args.style)
    with args.table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(found)
    print(f"{args.table}: {len(found)} edits of {args.style}'s drawings, seed {args.seed}")


if __name__ == "__main__":
    main()
