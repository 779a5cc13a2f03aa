"""`cyclelight evaluate`: the figures of `predict` over folders made by any program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from tabulate import tabulate
from tqdm import tqdm

from cyclelight.commands.evaluate_files import common_shape
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.diffusion.pixels import FitMode, pil_image
from cyclelight.errors import first_line, one_of, printable
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.figures import classes_of
from cyclelight.metrics.judge import Judge
from cyclelight.metrics.protocol import protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES
from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_cell import Result
from cyclelight.runs.comparison_page import Made, worst_first, write_report
from cyclelight.runs.comparison_table import Table
from cyclelight.runs.page import Pair, write_page
from cyclelight.runs.report import Report
from datamodules.listing import Files, counterparts, find_images, list_images
from datamodules.matching import match
from datamodules.order import groups_of
from datamodules.square_images import SquareImages
from datamodules.translation_images import check_among

TABLES = ("text", "markdown", "latex")


def _parser() -> ArgumentParser:
    parser = make_parser(
        "evaluate",
        "--source DIR --translated DIR [--translated NAME=DIR] [--reference DIR] [--OPTION VALUE]",
        "Score translated images, made by any program, as `predict` scores its own.",
        epilog="Of several methods, `--translated ours=DIR --translated theirs=DIR`, the images "
        "that all of them have are judged, and differences of the same images are taken from the "
        "first, with 95 % intervals.",
    )
    add = parser.add_argument
    add("--source", type=str, required=True, help="The sources: a folder, a file or a pattern.")
    add(
        "--translated",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="Folder of the translations: square, all of one size, and named as their sources; "
        "suffixes may differ. Sources and reference are brought to their size, and made grey if "
        "all of them are grey files. Several times for several methods.",
    )
    add("--reference", type=str | None, help="Folder of real images of the target, for FID, KID.")
    add("--truth", type=str | None, help="Folder of the right results, named as their sources.")
    add("--candidates", type=str | None, help="Folder of images among which truths are looked for.")
    add("--output", type=str | None, help="Folder for the figures and a page of the images.")
    add("--table", type=str, default="text", help=f"What is printed: {', '.join(TABLES)}.")
    add("--protocol", type=str, default="default", help="default, cyclediffusion or egsde.")
    add("--network", type=str | None, help="Feature network in place of the protocol's.")
    add("--weights", type=str | None, help="File of the network's weights.")
    classes = ", ".join(IMAGENET_CLASSES)
    add("--classes", type=str | None, help=f"Whose share of the images is told: {classes}.")
    add("--fit_mode", type=FitMode, default="crop", help="How sources were made square.")
    add("--batch_size", type=int, default=32, help="Images that a network sees at a time.")
    add("--device", type=str, default="cpu", help="Where networks run: cpu, cuda, mps.")
    return parser


@dataclass(frozen=True)
class Judged:
    """One method's images, and what they are worth."""

    folder: Path
    images: SquareImages
    report: Report


def evaluate(args: list[str]) -> int:
    """`lightning evaluate`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
        folders = _folders(options.translated)
        _check(options, folders)
        protocol = protocol_of(options.protocol, options.network)
        found = find_images(options.source)
        triples = {name: match(list_images(folder), found) for name, folder in folders.items()}
        keys = sorted(set.intersection(*({key for key, _, _ in some} for some in triples.values())))
        if not keys:
            raise ValueError("--translated: there is no source that all of them have translated")
        kept = set(keys)
        chosen = {name: [t for t in some if t[0] in kept] for name, some in triples.items()}
        paths = [path for some in chosen.values() for _, path, _ in some]
        resolution, channels = common_shape(paths)

        def read(files: Files, fit_mode: FitMode) -> SquareImages:
            return SquareImages(files, resolution, fit_mode, hint="", channels=channels)

        truths, candidates = _truths(options, keys, read)
        judge = _judge(options, resolution, truths, candidates)
    judge.to(options.device)
    if len(folders) > 1:
        judge.remembered = {}  # All have the same sources.
    if untranslated := sorted({key for key, _ in found} - kept):
        told = f"{len(untranslated)} of {len(found)} sources, such as {untranslated[0]}"
        judge.notes.append(f"not judged, as there is no translation: {told}")

    some = next(iter(chosen.values()))
    sources = read([(key, path) for key, _, path in some], options.fit_mode)
    reference = Columns()
    if options.reference is not None:
        real = read(list_images(options.reference), options.fit_mode)
        reference = _look(judge, real, None, options, "reference")
    known = sources, truths
    methods = {}
    for name, files in chosen.items():
        images = read([(key, path) for key, path, _ in files], "crop")
        seen = _look(judge, images, known, options, name)
        report = Report.of(seen, reference, judge, protocol, options.classes, asked=True)
        methods[name] = Judged(folders[name], images, report)
    _tell(methods, sources, truths, options)
    return 0


def _folders(given: list[str]) -> dict[str, Path]:
    """The folder of each method; without a name of its own it has that of the folder."""
    folders: dict[str, Path] = {}
    for word in given:
        name, named, path = word.partition("=")
        if not named or "/" in name:
            name, path = Path(word).resolve().name, word
        if name in folders:
            raise ValueError(f"--translated: two methods are called {name}: use NAME=DIR")
        folders[name] = Path(path)
    return folders


def _check(options: Namespace, folders: Mapping[str, Path]) -> None:
    given = [("translated", folder) for folder in folders.values()]
    for name, folder in (*given, ("reference", options.reference), ("output", options.output)):
        if folder is None or Path(folder).is_dir():
            continue
        if name != "output":
            raise ValueError(f"--{name}: no such folder {folder}")
        if Path(folder).exists():
            raise ValueError(f"--output: {folder} is a file")
    if options.reference is not None and len(list_images(options.reference)) < 2:
        raise ValueError(f"--reference: at least 2 images are needed in {options.reference}")
    if options.classes is not None:
        classes_of(options.classes)
    if options.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {options.batch_size}")
    one_of(TABLES, table=options.table)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {first_line(error)}") from error


def _truths(
    options: Namespace, keys: list[str], read: Callable[[Files, FitMode], SquareImages]
) -> tuple[SquareImages | None, SquareImages | None]:
    """What each translation should be, and among what that is looked for, as far as it is known."""
    if options.truth is None:
        if options.candidates is not None:
            raise ValueError("--candidates: truths are looked for among them: give --truth, too")
        return None, None
    files = counterparts(keys, options.truth, "--truth")
    truths = read(list(files.items()), options.fit_mode)
    if options.candidates is None:
        return truths, None
    if not Path(options.candidates).is_dir():
        raise ValueError(f"--candidates: no such folder {options.candidates}")
    candidates = read(list_images(options.candidates), options.fit_mode)
    check_among(truths, candidates)
    return truths, candidates


def _judge(
    options: Namespace,
    resolution: int,
    truths: SquareImages | None,
    candidates: SquareImages | None,
) -> Judge:
    """Who judges: without the weights of the protocol's network, all but realism."""
    protocol = protocol_of(options.protocol, options.network)
    realism = options.reference is not None or options.classes is not None
    make = partial(
        Judge,
        resolution=resolution,
        truth=truths is not None,
        candidates=None if candidates is None else candidates.all_pixels(),
    )
    try:
        return make(protocol if realism else None, options.weights)
    except FileNotFoundError as error:
        if options.weights is not None:
            raise
        judge = make(None)
        judge.notes.append(f"no FID, no KID, no class rate: {error}")
        return judge


def _look(
    judge: Judge,
    images: SquareImages,
    known: tuple[SquareImages, SquareImages | None] | None,
    options: Namespace,
    label: str,
) -> Columns:
    """The images judged; `known` are their sources and truths, if they have any."""
    if known is None and judge.network is None:
        return Columns()
    groups = groups_of(len(images), options.batch_size)
    bar = tqdm(groups, label, unit="batch", leave=False)
    sources, truths = (None if of is None else of.pixels for of in known or (None, None))
    return judge.look(bar, images.keys, images.pixels, sources, options.device, truths=truths)


def _tell(
    methods: Mapping[str, Judged],
    sources: SquareImages,
    truths: SquareImages | None,
    options: Namespace,
) -> None:
    """Print the table, then write the files."""
    settings = {name: Setting(name, theirs=judged.folder) for name, judged in methods.items()}
    results = {name: Result.of(j.report, options.classes) for name, j in methods.items()}
    first, several = next(iter(methods)), len(methods) > 1
    names = ", ".join(methods)
    table = Table.of(
        [(settings[name], [result]) for name, result in results.items()],
        baseline=first if several else None,
        title=f"{names} from {options.source}",
        notes=[note for note in [methods[first].report.protocol] if note],
    )
    # Printed first, lest a folder that cannot be written to lose it.
    match options.table:
        case "markdown":
            print(printable(table.as_markdown()))
        case "latex":
            print(printable(table.as_latex()))
        case _ if several:
            for head, rows in (table.figure_rows(), table.difference_rows()):
                if rows:
                    print(printable(tabulate(rows, head, disable_numparse=True)) + "\n")
            print(printable("\n".join(table.legend())))
        case _:
            print(printable(methods[first].report))
    if options.output is None:
        return
    output = Path(options.output)
    table.write(output)
    if not several:
        methods[first].report.write(output)
        _write_gallery(output / "gallery.html", methods[first], sources, truths, table.title)
        return
    for name, judged in methods.items():
        judged.report.write(output / settings[name].folder)
    figures = [result.images for result in results.values()]

    def read(key: str) -> Made:
        made = [pil_image(judged.images.pixels_of(key)) for judged in methods.values()]
        source = pil_image(sources.pixels_of(key))
        truth = None if truths is None else pil_image(truths.pixels_of(key))
        return Made(key, source, made, [of[key] for of in figures], truth)

    write_report(output / "report.html", table, worst_first(figures, table.columns), read)


def _write_gallery(
    path: Path, judged: Judged, sources: SquareImages, truths: SquareImages | None, title: str
) -> None:
    """A page of one method: sources beside their translations, and right results."""

    def read(key: str) -> Pair:
        source, made = (pil_image(of.pixels_of(key)) for of in (sources, judged.images))
        truth = None if truths is None else pil_image(truths.pixels_of(key))
        return Pair(source, made, key, judged.report.images[key], truth=truth)

    keys = sorted(judged.report.images)
    write_page(path, title, "", keys, read, table=judged.report.summaries())
