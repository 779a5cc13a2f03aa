"""What `lightning compare` is going to run, all of it checked before any network is loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from cyclelight.chains.engine import best_precision, dtype_of
from cyclelight.commands.comparison_files import (
    check_seeds,
    choose,
    edits_of,
    reference_of,
    stamps,
    theirs_of,
    truths_of,
)
from cyclelight.commands.comparison_shape import edit_ends, shape_of, translation_ends
from cyclelight.domains.folder import check_domain_path, fingerprint
from cyclelight.errors import BadValue, at_least, one_of
from cyclelight.files import check_no_file, read_json
from cyclelight.metrics.figures import classes_of
from cyclelight.metrics.protocol import MetricProtocol, protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES
from cyclelight.runs.comparison import Setting, settings_of
from cyclelight.runs.comparison_cell import CELL, Cell
from cyclelight.text.load import check_model_path, fingerprint_of
from datamodules.edit_rows import Edit, fields_of, groups_of
from datamodules.listing import Files, find_images

SOURCES, EDITS, CELLS = "sources", "edits.json", "cells"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and by what.

    Args:
        root: the output folder.
        options: the settings of the command.
        found: all sources.
        files: those of them that are chosen by their keys.
        edits: the rows of the table, by those keys; none where domains are translated.
        reference: real images of the target; may be empty.
        truths: the right result of each source, in their order; empty where they are not known.
        candidates: among what those are looked for; may be empty.
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
    found: Files
    files: Files
    edits: Mapping[str, Edit]
    reference: Files
    truths: Files
    candidates: Files
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
    def groups(self) -> dict[str, set[str]]:
        """The keys of the edits of each group, by its name; none where the table has none."""
        return groups_of(self.edits)

    @property
    def title(self) -> str:
        """What is compared, in a line."""
        data = self.options.data
        kind = "edits" if self.edits else "images"
        total = f"{len(self.files)} {kind} of {Path(data.source).name}"
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
    table = edits_of(data) if options.model is not None else {}
    found = [(key, edit.image) for key, edit in table.items()] or find_images(data.source)
    files = choose(found, data.n, data.skip, data.order_seed)
    edits = {key: table[key] for key, _ in files if key in table}
    reference, (truths, candidates) = reference_of(data.reference), truths_of(data, files, edits)
    protocol = protocol_of(options.protocol, options.network)
    settings, missing = settings_of(options.rows, options.classifier, edits=bool(edits))
    notes = [f"{name} is left out: {reason}" for name, reason in missing.items()]
    if not settings:
        raise BadValue("rows", "; ".join(["rows: there is nothing to compare", *notes]))
    baseline = options.baseline
    if baseline is not None and baseline.partition(", ")[0] not in missing:
        one_of([setting.label for setting in settings], baseline=baseline)
    ends = edit_ends(options, edits) if edits else translation_ends(options)
    keys = [key for key, _ in files]
    (resolution, channels), names = shape_of(settings, ends, found, keys)
    classes = options.classes
    if classes is None and reference and len(names) == 1:
        classes = next((name for name in names if name in IMAGENET_CLASSES), None)
    best = best_precision(device_of(options))
    precision = options.precision or _kept_precision(root) or best
    known = [stamps(some) for some in (files, reference, truths, candidates) if some]
    judged = (protocol, options.weights, classes, *known)
    if edits:
        regions = {key: edit.region for key, edit in edits.items()}
        judged = (*judged, options.clip, fields_of(edits), regions)
    if options.dino is not None:
        judged = (*judged, options.dino)
    made = {s.label: stamps(theirs_of(s, found, keys)) for s in settings if s.theirs is not None}
    cells = list(_cells(root, options, settings, precision, judged, made))
    for cell in cells:
        cell.check()
    return Comparison(
        root=root,
        options=options,
        found=found,
        files=files,
        edits=edits,
        reference=reference,
        truths=truths,
        candidates=candidates,
        protocol=protocol,
        classes=classes,
        resolution=resolution,
        channels=channels,
        settings=settings,
        cells=cells,
        precision=precision,
        notes=notes,
    )


def _check(options: Namespace, root: Path) -> None:
    check_no_file(root)
    data = options.data
    for name, given in (("rows", options.rows), ("data.source", data.source)):
        if given is None:
            raise BadValue(name, f"{name} is missing; only with `guide` there is none")
    if Path(data.source).is_dir() and root.resolve().is_relative_to(Path(data.source).resolve()):
        raise BadValue("output", f"output: {root} lies in the folder of the sources {data.source}")
    at_least(1, **{"data.batch_size": data.batch_size})
    for name in ("source", "target", "classifier") if options.model is not None else ():
        if options[name] is not None:
            raise BadValue(name, f"{name}: edits by a model have none: give `model` or `{name}`")
    if options.model is None and options.clip is not None:
        raise BadValue("clip", "clip judges edits by their texts: give `model` and a table, too")
    check_seeds(options.seeds)
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
    made: Mapping[str, Any],
) -> Iterator[Cell]:
    """Of all lines with the first seed, then with the next one.

    Args:
        made: by the label, the stamps of what other programs have made.
    """
    weights, of_model = cache(fingerprint), cache(fingerprint_of)
    for seed in options.seeds:
        for setting in settings:
            folder = comparison_root / CELLS / setting.folder
            asked = {**setting.describe(), "fit_mode": options.data.fit_mode}
            if setting.method is None:
                if seed == options.seeds[0]:
                    digest = _digest(judged, made[setting.label])
                    yield Cell(setting, None, folder / "theirs", asked, {}, digest)
                continue
            made_by = dict(setting.method.made_by())
            if options.model is not None:
                made_by["model"] = of_model(check_model_path(options.model))
            for role in () if options.model is not None else setting.method.needs:
                made_by[role] = weights(check_domain_path(options[role], role))
            # Where weights lie may change: it is known which they are.
            asked = {name: value for name, value in asked.items() if name not in made_by}
            asked |= {"seed": seed, "precision": precision}
            yield Cell(setting, seed, folder / f"seed_{seed}", asked, made_by, _digest(judged))


def _digest(*parts: Any) -> str:
    return blake2b(repr(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()
