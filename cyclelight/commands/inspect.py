"""`cyclelight inspect`: what domain folders hold, and which translate into each other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from jsonargparse import ArgumentParser
from tabulate import tabulate

from cyclelight.commands.guard import UsageError, one_line
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.errors import printable

NAMES = ("domain", "disk", "weights")
"""What stands side by side above the path, which may be as wide as the three."""
HEAD = ("schedule", "pixels", "data", "licence")
WIDTHS = (None, None, 14, None, 20, 22)  # Beyond these, cells are wrapped.
LONGEST_CELL = 200
"""Letters of what a card says, which may be anything."""

DESCRIPTION = "Show what domain folders hold, and which translate into each other."
EPILOG = """\
Domains of one group, a letter in the first column, translate into each other. The exit code is 1 if
any of what was given is no domain. Of weights, only those of a vae/ are read: they tell which
domains share a latent space."""


@dataclass(frozen=True)
class Inspected:
    """A folder that was looked at: the domain without weights, or the reason why it is none."""

    path: Path
    size: int = 0
    domain: Any = None  # A Domain, whose import takes seconds.
    reason: str = ""


def _parser() -> ArgumentParser:
    parser = make_parser("inspect", "DIR [DIR ...]", DESCRIPTION, EPILOG)
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="DIR",
        help="A domain folder, a checkpoint (.ckpt) of `fit`, owner/name on the Hugging Face Hub, "
        "or a folder with domains in it, at any depth, such as checkpoints/ or runs/.",
    )
    return parser


def inspect(args: list[str]) -> int:
    """`lightning inspect`; the exit code."""
    with usage():
        folders = _parser().parse_args(args).folders
    if not folders:
        raise UsageError("a DIR is missing: a domain folder, or a folder with domains in it")
    # Each path once, however it was given.
    paths = {
        os.path.realpath(path): path for folder in folders for path in find_domains(Path(folder))
    }
    looked = [look(path) for path in paths.values()]
    groups = group([one for one in looked if one.domain is not None])
    told = filter(None, (table(looked, groups), pairs(groups)))
    print(printable("\n\n".join(told)))
    return int(any(one.reason for one in looked))


def find_domains(folder: Path) -> list[Path]:
    """The domain folders below `folder`, if there are any; else `folder` itself, domain or not."""
    if (folder / "model_index.json").is_file():
        return [folder]
    found = sorted(index.parent for index in folder.rglob("model_index.json"))
    visible = [path for path in found if not path.name.startswith(".")]
    # A text model is a domain only once it has a prompt.
    return [path for path in visible if not (path / "tokenizer").is_dir()] or [folder]


def look(path: Path) -> Inspected:
    """Read all but the weights of the network."""
    # Seconds, which `--help` does not need.
    from cyclelight.domains.folder import check_domain_path, load_domain

    try:
        domain = load_domain(path, device="meta")
        return Inspected(path, _size(check_domain_path(path)), domain)
    except Exception as error:  # One bad folder must not hide the others, whatever it does.
        # The path stands before the reason already.
        reason = one_line(error).removeprefix("domain: ").removeprefix(f"{path} ")
        return Inspected(path, reason=reason or type(error).__name__)


def group(looked: Sequence[Inspected]) -> list[list[Inspected]]:
    """Domains that translate into each other; in the order in which they were given."""
    groups: list[list[Inspected]] = []
    for one in looked:
        for members in groups:
            if not difference(members[0], one):
                members.append(one)
                break
        else:
            groups.append([one])
    return groups


def difference(a: Inspected, b: Inspected) -> str:
    """Why the two cannot be paired; empty if they can."""
    from cyclelight.domains.domain import check_pair

    try:
        check_pair(a.domain, b.domain)
    except ValueError as error:
        text = one_line(error)
        return text.partition("cannot be paired: ")[2] or text
    return ""


def letter(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    ahead, last = divmod(number, len(ascii_uppercase))
    return (letter(ahead - 1) if ahead else "") + ascii_uppercase[last]


def table(looked: Sequence[Inspected], groups: Sequence[Sequence[Inspected]]) -> str:
    """A row of each domain, by groups, and below them a line of each folder that is none."""
    members = [(letter(number), one) for number, some in enumerate(groups) for one in some]
    names = [NAMES, *(names_of(one) for _, one in members)]
    widths = [max(map(len, column)) for column in zip(*names, strict=True)]
    longest = max((len(str(one.path)) for _, one in members), default=0)
    widths[0] = max(widths[0], longest - sum(widths[1:]) - 4)  # Two spaces between each two.
    head, *firsts = [
        f"{name:<{widths[0]}}  {disk:>{widths[1]}}  {weights:>{widths[2]}}"
        for name, disk, weights in names
    ]
    rows = [
        (place, f"{first}\n{one.path}", *describe(one))
        for (place, one), first in zip(members, firsts, strict=True)
    ]
    lines = []
    if rows:
        # The head as a row, since tabulate pads a head more than what stands below it.
        text = tabulate(
            [("", head, *HEAD), *rows],
            tablefmt="plain",
            disable_numparse=True,
            maxcolwidths=WIDTHS,
            break_long_words=False,
            colalign=["left"] * 3 + ["right"] + ["left"] * 2,
        )
        first, *lines = [line.rstrip() for line in text.splitlines()]
        lines = [first, "-" * max(map(len, [first, *lines])), *lines]
    bad = [one for one in looked if one.reason]
    width = max((len(str(one.path)) for one in bad), default=0)
    lines += [f"-  {one.path!s:<{width}}  {one.reason}" for one in bad]
    return "\n".join(lines)


def names_of(one: Inspected) -> tuple[str, str, str]:
    """What stands under NAMES."""
    count = sum(p.numel() for p in one.domain.denoiser.parameters())
    size = _scaled(one.size, ("B", "KB", "MB", "GB"))
    return one.domain.name, size, _scaled(count, ("", "K", "M", "B"))


def describe(one: Inspected) -> tuple[str, ...]:
    """The other cells of a domain's row, two lines high, in the order of HEAD."""
    domain = one.domain
    card, schedule = domain.card, domain.schedule
    betas = f"\n{schedule.beta_start:g}..{schedule.beta_end:g}"
    kind = schedule.kind.replace("_", " ") + betas * schedule.kind.endswith("linear")
    kind += f"\nT = {schedule.timesteps}" * (schedule.timesteps != 1000)
    side = f"{domain.resolution}"
    data = card.get("data")  # Anyone's card may say anything.
    data = data if isinstance(data, dict) else {}
    count = data.get("train_images")
    counted = isinstance(count, int) and 0 <= count < 10**12
    told = (data.get("root"), f"{count:,} images" if counted else None)
    return (
        kind,
        side if domain.channels == 3 else f"{side} x {domain.channels}",
        "\n".join(printable(one, LONGEST_CELL) for one in told if one) or "not stated",
        printable(card.get("data_licence") or "not stated", LONGEST_CELL),
    )


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _scaled(number: float, units: Sequence[str]) -> str:
    """Three digits and a unit: 4.61 M."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    digits = 0 if number >= 99.95 or power == 0 else 1
    return f"{number:.{digits}f} {units[power]}".rstrip()


def pairs(groups: Sequence[Sequence[Inspected]]) -> str:
    """Which groups translate within themselves, and what keeps each two of them apart."""
    if sum(map(len, groups)) < 2:
        return ""
    lines = []
    for number, members in enumerate(groups):
        if len(members) > 1:
            who = f"the {len(members)} domains of {letter(number)}" if len(members) > 2 else ""
            who = who or f"both domains of {letter(number)}"
            lines.append(f"{who[0].upper()}{who[1:]} translate into each other.")
    for (a, first), (b, second) in combinations(enumerate(groups), 2):
        reason = difference(first[0], second[0])
        lines.append(f"{letter(a)} and {letter(b)} do not: {reason}.")
    return "\n".join(lines)
