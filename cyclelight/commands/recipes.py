"""Recipes: by name (`--config animals32` in any folder), and with values that refer to others."""

import sys
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyclelight.commands.guard import UsageError, closest
from cyclelight.errors import first_line

PLACES = (
    Path(__file__).parents[2] / "configs",  # A clone, and an editable install of one.
    Path(sys.prefix) / "share" / "cyclelight" / "configs",  # What a wheel brings.
)


def recipes() -> dict[str, Path]:
    """The shipped recipes by their names, such as `animals32` or `cat2dog`."""
    folder = next((place for place in PLACES if place.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def with_recipes(args: list[str]) -> list[str]:
    """The words of a command line, with the files that its `--config` options mean.

    A recipe's name stands for its path, but a file of that name comes first. A file with
    references (`${...}`) is put in its place as it reads when they are resolved.

    Raises:
        UsageError: there is neither such a file nor such a recipe, or a reference leads nowhere.
    """
    words = list(args)
    for index, word in enumerate(words):
        option, given, value = word.partition("=")
        if option != "--config" or (not given and index + 1 == len(words)):
            continue
        place = index if given else index + 1
        found = resolved(find(value if given else words[place]), last(words, "--output"))
        words[place] = f"--config={found}" if given else found
    return words


def find(name: str) -> str:
    """The path that the value of `--config` means; itself if it is none of ours."""
    if "://" in name:
        raise UsageError(
            f"--config: recipes are not fetched, since they are programs: download {name}, look "
            f"into it, and name the file"
        )
    known = recipes()
    if Path(name).exists() or Path(name).suffix or "/" in name:
        return name  # Of a path that leads nowhere, the parser says so.
    if name in known:
        return str(known[name])
    hint = closest(name, known) or f"recipes are {', '.join(known)}"
    raise UsageError(f"--config: there is no file and no recipe {name}; {hint}")


def resolved(path: str, output: str | None) -> str:
    """The text of a recipe that has references, as omegaconf resolves them; else its path.

    Args:
        output: what `${output}` means: the command line's, which comes before the recipe's own.
    """
    if not Path(path).is_file():
        return path
    try:
        text = Path(path).read_text(encoding="utf-8")
        if "${" not in text:
            return path
        recipe = OmegaConf.create(text)
        if output is not None:
            OmegaConf.update(recipe, "output", output)
        values = OmegaConf.to_container(recipe, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"--config: {path}: {first_line(error)}") from error
    return yaml.safe_dump(values, sort_keys=False)


def last(words: list[str], option: str) -> str | None:
    """The value that an option has last on a command line; None if it is not there."""
    found = None
    for index, word in enumerate(words):
        name, given, value = word.partition("=")
        if name == option:
            found = value if given else next(iter(words[index + 1 : index + 2]), None)
    return found
