"""`cyclelight evaluate`: the figures of `predict` over folders made by any program."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from cyclelight.commands.parsing import make_parser, usage
from cyclelight.diffusion.pixels import FitMode
from cyclelight.errors import first_line, printable
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.figures import classes_of
from cyclelight.metrics.judge import Judge
from cyclelight.metrics.protocol import protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES
from cyclelight.runs.folder import output_names
from cyclelight.runs.report import Report
from datamodules.listing import Files, find_images, list_images
from datamodules.order import groups_of
from datamodules.reading import open_image
from datamodules.square_images import SquareImages

GREYS = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
"""Pillow's modes of images without colours."""


def _parser() -> ArgumentParser:
    parser = make_parser(
        "evaluate",
        "--source DIR --translated DIR [--reference DIR] [--OPTION VALUE]",
        "Score translated images, made by any program, as `predict` scores its own.",
    )
    add = parser.add_argument
    add("--source", type=str, required=True, help="The sources: a folder, a file or a pattern.")
    add(
        "--translated",
        type=str,
        required=True,
        help="Folder of the translations: square, all of one size, and named as their sources; "
        "suffixes may differ. Sources and reference are brought to their size, and made grey if "
        "all of them are grey files.",
    )
    add("--reference", type=str | None, help="Folder of real images of the target, for FID, KID.")
    add("--output", type=str | None, help="Folder for metrics.json and metrics.csv.")
    add("--protocol", type=str, default="default", help="default, cyclediffusion or egsde.")
    add("--network", type=str | None, help="Feature network in place of the protocol's.")
    add("--weights", type=str | None, help="File of the network's weights.")
    classes = ", ".join(IMAGENET_CLASSES)
    add("--classes", type=str | None, help=f"Whose share of the images is told: {classes}.")
    add("--fit_mode", type=FitMode, default="crop", help="How sources were made square.")
    add("--batch_size", type=int, default=32, help="Images that a network sees at a time.")
    add("--device", type=str, default="cpu", help="Where networks run: cpu, cuda, mps.")
    return parser


def evaluate(args: list[str]) -> int:
    """`lightning evaluate`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
        _check(options)
        protocol = protocol_of(options.protocol, options.network)
        found = find_images(options.source)
        triples = match(list_images(options.translated), found)
        resolution, channels = common_shape([path for _, path, _ in triples])
        realism = options.reference is not None or options.classes is not None
        judge = Judge(protocol if realism else None, options.weights, resolution=resolution)
    judge.to(options.device)
    untranslated = sorted({key for key, _ in found} - {key for key, _, _ in triples})
    if untranslated:
        told = f"{len(untranslated)} of {len(found)} sources, such as {untranslated[0]}"
        judge.notes.append(f"not judged, as there is no translation: {told}")
    mode = options.fit_mode

    def read(files: Files, fit_mode: FitMode) -> SquareImages:
        return SquareImages(files, resolution, fit_mode, hint="", channels=channels)

    translated = read([(key, path) for key, path, _ in triples], "crop")
    sources = read([(key, path) for key, _, path in triples], mode)
    images = _look(judge, translated, sources, options, "images")
    reference = Columns()
    if options.reference is not None:
        real = read(list_images(options.reference), mode)
        reference = _look(judge, real, None, options, "reference")
    report = Report.of(images, reference, judge, protocol, options.classes, asked=True)
    print(printable(report))  # First, lest a folder that cannot be written to lose it.
    if options.output is not None:
        report.write(Path(options.output))
    return 0


def _check(options: Namespace) -> None:
    for name in ("translated", "reference", "output"):
        folder = options[name]
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
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {first_line(error)}") from error


def match(translated: Files, sources: Files) -> list[tuple[str, Path, Path]]:
    """(key of the source, translation, source) of each translation.

    The source is the one whose translation `predict` would give that name, or else the one of the
    very same name, or else the only one with the same path but for the suffix. If there is none,
    Unicode's two forms of a letter are one: programs and file systems differ in which they keep.

    Raises:
        ValueError: no images, a translation without a source or with several, or two of one source.
    """
    if not translated:
        raise ValueError("--translated: no images there")
    paths = dict(sources)
    names = {name: [key] for key, name in output_names(list(paths)).items()}
    ways: list[Callable[[str], str]] = [str, _stem, _composed, lambda key: _stem(_composed(key))]
    known = [names, *(_by(way, paths) for way in ways)]
    found: dict[str, tuple[str, Path, Path]] = {}
    for name, path in translated:
        sought = [name, *(way(name) for way in ways)]
        matches = (keys.get(wanted) for keys, wanted in zip(known, sought, strict=True))
        keys = next(filter(None, matches), [])
        if len(keys) != 1:
            several = f"has several sources: {', '.join(keys)}"
            raise ValueError(f"--translated: {name} {several if keys else 'has no source'}")
        if keys[0] in found:
            raise ValueError(f"--translated: {found[keys[0]][1]} and {path} have the same source")
        found[keys[0]] = (keys[0], path, paths[keys[0]])
    return [found[key] for key in sorted(found)]


def _by(way: Callable[[str], str], keys: Iterable[str]) -> Mapping[str, list[str]]:
    found = defaultdict(list)
    for key in keys:
        found[way(key)].append(key)
    return dict(found)


def _stem(key: str) -> str:
    return key.removesuffix(PurePosixPath(key).suffix)


def _composed(key: str) -> str:
    return unicodedata.normalize("NFC", key)


def common_shape(paths: list[Path]) -> tuple[int, int]:
    """(the side of square images of one size, in pixels; 1 if all files are grey, or else 3).

    Raises:
        ValueError: one is not square, of another size than the first, or unreadable.
    """
    sizes, grey = [], True
    for path in paths:
        try:
            with open_image(path) as image:
                sizes.append(image.size)
                grey = grey and image.mode in GREYS
        except OSError as error:
            raise ValueError(f"--translated: cannot read image {path}: {error}") from error
        (width, height), first = sizes[-1], sizes[0]
        if width != height or (width, height) != first:
            wanted = f"{first[0]} x {first[0]} pixels as {paths[0]}" if len(sizes) > 1 else "square"
            raise ValueError(f"--translated: {path} is {width} x {height} pixels, not {wanted}")
    return sizes[0][0], 1 if grey else 3


def _look(
    judge: Judge, images: SquareImages, sources: SquareImages | None, options: Namespace, label: str
) -> Columns:
    groups = groups_of(len(images), options.batch_size)
    bar = tqdm(groups, label, unit="batch", leave=False)
    of_sources = sources.pixels if sources is not None else None
    return judge.look(bar, images.keys, images.pixels, of_sources, options.device)
