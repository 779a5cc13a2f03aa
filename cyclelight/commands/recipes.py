"""Recipes by name: `--config cat32` in any folder."""

import sys
from pathlib import Path

from cyclelight.commands.guard import UsageError, closest

PLACES = (
    Path(__file__).parents[2] / "configs",  # A clone, and an editable install of one.
    Path(sys.prefix) / "share" / "cyclelight" / "configs",  # What a wheel brings.
)


def recipes() -> dict[str, Path]:
    """The shipped recipes by their names, such as `cat32` or `cat2dog`."""
    folder = next((place for place in PLACES if place.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def with_recipes(args: list[str]) -> list[str]:
    """The words of a command line, where a recipe's name after `--config` is its path.

    A file of that name comes first.

    Raises:
        UsageError: there is neither such a file nor such a recipe.
    """
    words = list(args)
    for index, word in enumerate(words):
        option, given, value = word.partition("=")
        if option != "--config":
            continue
        place = index if given else index + 1
        name = value if given else (words[place] if place < len(words) else "")
        if not name or Path(name).exists():
            continue
        known = recipes()
        if name not in known:
            if Path(name).suffix or "/" in name:
                continue  # A path: the parser says that there is none.
            hint = closest(name, known) or f"recipes are {', '.join(known)}"
            raise UsageError(f"--config: there is no file and no recipe {name}; {hint}")
        words[place] = f"--config={known[name]}" if given else str(known[name])
    return words
