"""The emoji benchmark's split: Google's drawings to Twitter's, unpaired in training.

    python benchmarks/emoji.py emoji_pairs64 emoji

writes folders of links, by the base of each emoji (without skin tones), so that variants of one
stay together:

    train/google    45 % of the bases
    train/twitter   another 45 %
    val/google      the last 10 %, in both styles: sources and their true counterparts
    val/twitter
"""

import argparse
import os
from hashlib import blake2b
from pathlib import Path

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
STYLES = ("google", "twitter")


def base(name: str) -> str:
    """The code points without skin tones and variation selectors."""
    return "-".join(part for part in name.split("-") if part not in SKIN_TONES | {"fe0f"})


def place(name: str, style: str) -> str | None:
    """The folder of that drawing; None for one that is left out."""
    digest = blake2b(base(name).encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < 0.1:
        return f"val/{style}"
    return f"train/{style}" if (share < 0.55) == (style == "google") else None


def main() -> None:
    """Parse the command line and link the drawings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    for style in STYLES:
        for path in sorted((args.pairs / style).iterdir()):
            folder = place(path.stem, style)
            if folder is not None:
                (args.output / folder).mkdir(parents=True, exist_ok=True)
                os.symlink(path.resolve(), args.output / folder / path.name)
    for folder in sorted(args.output.glob("*/*")):
        print(f"{folder}: {len(list(folder.iterdir()))} drawings")


if __name__ == "__main__":
    main()
