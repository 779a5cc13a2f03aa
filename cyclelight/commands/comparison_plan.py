"""What `lightning compare` is going to run, all of it checked before any network is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from cyclelight.chains.engine import best_precision, dtype_of
from cyclelight.commands.evaluate_files import common_shape
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import check_domain_path, fingerprint, load_domain
from cyclelight.errors import BadValue, MissingFile, at_least, one_of
from cyclelight.files import check_no_file, read_json
from cyclelight.methods.base import Role
from cyclelight.metrics.figures import classes_of
from cyclelight.metrics.protocol import MetricProtocol, protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES
from cyclelight.runs.comparison import Setting, settings_of
from cyclelight.runs.comparison_cell import CELL, Cell
from datamodules.listing import Files, find_images, list_images
from datamodules.matching import match

SOURCES, CELLS = "sources", "cells"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and by what.

    Args:
        root: the output folder.
        options: the settings of the command.
        files: the sources, chosen by their keys.
        reference: real images of the target; may be empty.
        protocol: how sets are compared.
        classes: whose share of the images is told, if any.
        resolution: side of all images in pixels.
        channels: as which all images are judged: 3, or 1 where they are grey.
        settings: the lines of the table.
        cells: all runs, those of one seed after those of the one before.
        precision: what networks run in.
        notes: which rows are left out, and why.
    """

    root: Path
    options: Namespace
    files: Files
    reference: Files
    protocol: MetricProtocol
    classes: str | None
    resolution: int
    channels: int
    settings: list[Setting]
    cells: list[Cell]
    precision: str
    notes: list[str]

    @property
    def keys(self) -> list[str]:
        """Of the sources."""
        return [key for key, _ in self.files]

    @property
    def title(self) -> str:
        """What is compared, in a line."""
        data = self.options.data
        total = f"{len(self.files)} images of {Path(data.source).name}"
        real = f", against {len(self.reference)} real ones" if self.reference else ""
        seeds = ", ".join(map(str, self.options.seeds))
        return f"{total}{real}; protocol {self.protocol.name}; seeds {seeds}"


def plan(options: Namespace) -> Comparison:
    """All cells of a comparison.

    Raises:
        ValueError, FileNotFoundError: something is missing, out of range, or does not fit; or the
            output holds cells of other settings.
    """
    data, root = options.data, Path(options.output)
    _check(options, root)
    files = choose(find_images(data.source), data.n, data.skip, data.order_seed)
    reference = _reference(data.reference)
    protocol = protocol_of(options.protocol, options.network)
    settings, missing = settings_of(options.rows, options.classifier)
    notes = [f"{name} is left out: {reason}" for name, reason in missing.items()]
    if not settings:
        raise BadValue("rows", "; ".join(["rows: there is nothing to compare", *notes]))
    baseline = options.baseline
    if baseline is not None and baseline.partition(", ")[0] not in missing:
        one_of([setting.label for setting in settings], baseline=baseline)
    (resolution, channels), names = _shape(settings, _domains(options), options, files)
    classes = options.classes
    if classes is None and reference and len(names) == 1:
        classes = next((name for name in names if name in IMAGENET_CLASSES), None)
    best = best_precision(device_of(options))
    precision = options.precision or _kept_precision(root) or best
    judged = (protocol, options.weights, classes, _stamps(files), _stamps(reference))
    cells = list(_cells(root, options, settings, precision, judged, [key for key, _ in files]))
    for cell in cells:
        cell.check()
    return Comparison(
        root=root,
        options=options,
        files=files,
        reference=reference,
        protocol=protocol,
        classes=classes,
        resolution=resolution,
        channels=channels,
        settings=settings,
        cells=cells,
        precision=precision,
        notes=notes,
    )


def choose(files: Files, n: int | None, skip: int = 0, seed: int = 0) -> Files:
    """Some of the files, by their keys: of a seeded order, `n` after the first `skip`.

    With the same seed, a larger `n` has all of a smaller one's, and what is skipped is what an `n`
    of that size has.

    Raises:
        ValueError: there are not as many.
    """
    at_least(0, **{"data.skip": skip})
    if n is not None:
        at_least(1, **{"data.n": n})
    wanted = len(files) - skip if n is None else n
    if not 0 < wanted <= len(files) - skip:
        told = f"{wanted} of {len(files)} images are not there" + f" after {skip}" * bool(skip)
        raise BadValue("data.n", f"data.n: {told}")

    def place(file: tuple[str, Path]) -> bytes:
        return blake2b(f"{seed} {file[0]}".encode(errors="surrogateescape")).digest()

    return sorted(sorted(files, key=place)[skip : skip + wanted])


def _check(options: Namespace, root: Path) -> None:
    check_no_file(root)
    data = options.data
    if Path(data.source).is_dir() and root.resolve().is_relative_to(Path(data.source).resolve()):
        raise BadValue("output", f"output: {root} lies in the folder of the sources {data.source}")
    at_least(1, **{"data.batch_size": data.batch_size})
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise BadValue("seeds", f"seeds must be different integers, at least one: {options.seeds}")
    if options.precision is not None:
        dtype_of(options.precision)
    if options.classes is not None:
        classes_of(options.classes)
    one_of(("auto", "cpu", "cuda"), device=options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BadValue("device", "device: there is no GPU that torch can use; take cpu")


def device_of(options: Namespace) -> str:
    """Where networks run."""
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def _reference(folder: str | None) -> Files:
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise MissingFile("data.reference", f"data.reference: no such folder {folder}")
    files = list_images(folder)
    if len(files) < 2:
        raise BadValue("data.reference", f"data.reference: 2 images are needed in {folder}")
    return files


def _domains(options: Namespace) -> dict[Role, Domain | None]:
    """Both domains without weights, or what there is of them."""
    paths: dict[Role, str | None] = {"source": options.source, "target": options.target}
    return {
        role: None if path is None else load_domain(check_domain_path(path, role), device="meta")
        for role, path in paths.items()
    }


def _shape(
    settings: list[Setting], domains: Mapping[Role, Domain | None], options: Namespace, files: Files
) -> tuple[tuple[int, int], set[str]]:
    """((the side of all images in pixels, their channels), the names of what methods make).

    Those of other programs are judged in the channels of the methods, if there are any.

    Raises:
        ValueError: rows are of different sizes, or one does not fit the domains or sources.
    """
    sides, names = dict[str, int](), set[str]()
    ours, theirs = dict[str, int](), set[int]()
    for setting in settings:
        try:
            if setting.method is not None:
                ends = setting.method.ends(setting.method.choose(domains))
                sides[setting.label] = ends[0].resolution
                ours[setting.label] = ends[0].channels
                names.add(ends[-1].name)
            else:
                pairs = theirs_of(setting, options.data.source, [key for key, _ in files])
                side, channels = common_shape([path for _, path in pairs])
                sides[setting.label] = side
                theirs.add(channels)
        except ValueError as error:
            reason = str(error).removeprefix("--translated: ")
            raise BadValue("rows", f"rows.{setting.row}: {reason}") from error
    first = settings[0].label
    for label, side in sides.items():
        if side != sides[first]:
            raise BadValue(
                "rows",
                f"rows: the images of {first} have {sides[first]} pixels a side, those of {label} "
                f"{side}: rows are compared at one size",
            )
    if len(set(ours.values())) > 1:
        told = ", ".join(f"{label} {channels}" for label, channels in ours.items())
        raise BadValue("rows", f"rows: they are of different channels: {told}")
    return (sides[first], max(ours.values() or theirs)), names


def theirs_of(setting: Setting, source: str, keys: Sequence[str]) -> Files:
    """(key of the source, translation) of what another program has made of these sources.

    Raises:
        ValueError: one is missing, or a translation has no source or several.
    """
    assert setting.theirs is not None
    made = {key: path for key, path, _ in match(list_images(setting.theirs), find_images(source))}
    missing = [key for key in keys if key not in made]
    if missing:
        raise ValueError(f"{setting.theirs} has no translation of {missing[0]}")
    return [(key, made[key]) for key in keys]


def _kept_precision(root: Path) -> str | None:
    """The precision of cells that are there."""
    for path in sorted((root / CELLS).glob(f"*/*/{CELL}")):
        asked = read_json(path, "output").get("asked")
        if isinstance(asked, dict) and isinstance(asked.get("precision"), str):
            return str(asked["precision"])
    return None


def _cells(
    comparison_root: Path,
    options: Namespace,
    settings: list[Setting],
    precision: str,
    judged: tuple[Any, ...],
    keys: Sequence[str],
) -> Iterator[Cell]:
    """Of all lines with the first seed, then with the next one."""
    weights = cache(fingerprint)
    for seed in options.seeds:
        for setting in settings:
            folder = comparison_root / CELLS / setting.folder
            asked = {**setting.describe(), "fit_mode": options.data.fit_mode}
            if setting.method is None:
                if seed == options.seeds[0]:
                    stamps = _stamps(theirs_of(setting, options.data.source, keys))
                    yield Cell(setting, None, folder / "theirs", asked, {}, _digest(judged, stamps))
                continue
            made_by = dict(setting.method.made_by())
            for role in setting.method.needs:
                made_by[role] = weights(check_domain_path(options[role], role))
            # Where weights lie may change: it is known which they are.
            asked = {name: value for name, value in asked.items() if name not in made_by}
            asked |= {"seed": seed, "precision": precision}
            yield Cell(setting, seed, folder / f"seed_{seed}", asked, made_by, _digest(judged))


def _stamps(files: Files) -> list[tuple[str, int, int]]:
    """What tells whether files have changed."""
    stats = [(key, path.stat()) for key, path in files]
    return [(key, stat.st_size, stat.st_mtime_ns) for key, stat in stats]


def _digest(*parts: Any) -> str:
    return blake2b(repr(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()
