"""`lightning compare --guide`: generators, samplers and targets of guidance in one table."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from cyclelight.callbacks.guidance_scores import GuidanceScores
from cyclelight.callbacks.traces import TraceFolder
from cyclelight.commands.comparison_files import check_seeds, reference_of, stamps
from cyclelight.commands.comparison_loop import run_cells
from cyclelight.commands.guard import UsageError
from cyclelight.commands.guide import Guide
from cyclelight.commands.lightning_cli import build
from cyclelight.commands.predict import make_images
from cyclelight.diffusion.pixels import pil_image
from cyclelight.errors import BadValue
from cyclelight.files import atomic, check_no_file
from cyclelight.modules.guidance import GuidanceModule
from cyclelight.runs.comparison import Setting, check_names
from cyclelight.runs.comparison_cell import Cell, Result
from cyclelight.runs.comparison_table import Table
from cyclelight.runs.comparison_ways import draw_ways
from cyclelight.runs.cost import Cost
from cyclelight.runs.folder import RunFolder

PARTS = ("generators", "samplers", "targets")
MODEL = [name for name in signature(GuidanceModule).parameters if name != "seed"]
SCORES = [name for name in signature(GuidanceScores).parameters if name.startswith("judge")]
REFUSED = (
    *("model", "clip", "dino", "source", "target", "classifier", "rows"),
    *("baseline", "best_by", "rank_by", "classes"),
)
LEFT_OUT = ("generator", "optional")
CELLS, WAYS = "cells", "ways.png"
SHOWN = 6
"""Images of each line in the picture."""


@dataclass(frozen=True)
class Guidance:
    """What is compared.

    Args:
        root: the output folder.
        settings: the lines of the table.
        words: of `lightning guide`, without seed and output, by the label of a line.
        cells: all runs, those of one seed after those of the one before.
        keys: of the images of each run.
        notes: which generators are left out.
    """

    root: Path
    settings: list[Setting]
    words: Mapping[str, list[str]]
    cells: list[Cell]
    keys: list[str]
    notes: list[str]

    def run(self) -> None:
        """Run what is not finished; the table and the picture are written after each run."""
        run_cells(self.cells, self.keys, self._make, self._write, self.root / WAYS)

    def _make(self, cell: Cell) -> None:
        make_images(
            _built(self.words[cell.setting.label], cell.setting.label, cell.seed, cell.root)
        )

    def _write(self, done: set[Path]) -> Table:
        finished = [cell for cell in self.cells if cell.root in done]
        found: dict[str, list[Cell]] = {}
        for cell in finished:
            found.setdefault(cell.setting.label, []).append(cell)
        missing = len(self.cells) - len(finished)
        notes = [f"{missing} of {len(self.cells)} runs are not finished"] * bool(missing)
        table = Table.of(
            [(some[0].setting, [_result(cell) for cell in some]) for some in found.values()],
            baseline=None,
            title=f"Guidance of {len(self.keys)} images",
            notes=[*notes, *self.notes],
        )
        table.write(self.root)
        picture = draw_ways({label: list(self._ways(of[0])) for label, of in found.items()})
        with atomic(self.root / WAYS) as temporary:
            picture.save(temporary, format="PNG")
        return table

    def _ways(self, cell: Cell) -> Iterator[tuple[Any, Any]]:
        """(what an image began as, what it became) of the first ones of a run."""
        starts, folder = TraceFolder(cell.root, self.keys), RunFolder(cell.root, self.keys)
        for key in self.keys[:SHOWN]:
            start = starts.start(key)
            side, channels = start.shape[0], start.shape[2]
            yield pil_image(start), pil_image(folder.read_image(key, side, channels))


def plan_guidance(options: Namespace) -> Guidance:
    """All runs, checked before any network is loaded.

    Raises:
        ValueError, FileNotFoundError: something is missing, out of range, or does not fit; or the
            output holds runs of other settings.
    """
    root, data = Path(options.output), options.data
    check_no_file(root)
    for name in ("source", "truth", "candidates", "root", "skip", "order_seed"):
        if data[name]:
            raise BadValue(f"data.{name}", f"data.{name}: guidance begins at noise: leave it out")
    for name in REFUSED:
        if options[name] is not None:
            raise BadValue(name, f"{name}: `guide` names generators, samplers and targets instead")
    check_seeds(options.seeds)
    reference = reference_of(data.reference)
    settings, notes = _settings(options.guide)
    words, built = dict[str, list[str]](), dict[str, Guide]()
    for setting in list(settings):
        label, optional = setting.label, setting.edit.get("optional")
        words[label] = _words(options, setting)
        try:
            built[label] = _built(words[label], label, 0, root)
        except UsageError as error:
            if not optional:
                raise
            settings.remove(setting)
            notes.append(f"left out: {error}")
            # A slip in its settings would pass for what does not go together.
            by = setting.point["by"]
            if all(other.point["by"] != by for other in settings):
                told = f"guide.samplers.{by}: it fits no generator: {error}"
                raise BadValue("guide", told) from error
    if not settings:
        raise BadValue("guide", "; ".join(["guide: there is nothing to compare", *notes]))
    keys = next(iter(built.values())).datamodule.keys
    cells = []
    for seed in options.seeds:
        for setting in settings:
            given, task = dict(setting.edit), built[setting.label].model
            judged = {name: given.pop(name) for name in SCORES if name in given}
            # Where weights lie may change: it is known which they are.
            asked = {name: value for name, value in given.items() if name not in LEFT_OUT}
            asked |= {"precision": options.precision, "seed": seed}
            parts = (judged, options.protocol, options.network, data.fit_mode, stamps(reference))
            digest = blake2b(repr(parts).encode(), digest_size=16).hexdigest()
            folder = root / CELLS / setting.folder / f"seed_{seed}"
            cells.append(Cell(setting, seed, folder, asked, task.made_by(), digest))
    for cell in cells:
        cell.check()
    return Guidance(root, settings, words, cells, keys, notes)


def _settings(guide: Mapping[str, Any]) -> tuple[list[Setting], list[str]]:
    """(each generator with each sampler and each target, what is left out).

    A generator that is `optional` is left out if its folder is not there, a sampler where it does
    not go with a generator.

    Raises:
        ValueError: one is not described by settings of `lightning guide`.
    """
    check_names(guide, PARTS, "guide")
    parts: list[list[tuple[str, dict[str, Any]]]] = []
    notes: list[str] = []
    for part in PARTS:
        found = guide.get(part)
        if not isinstance(found, Mapping) or not found:
            raise BadValue("guide", f"guide.{part}: give at least one, by its name")
        for name, given in found.items():
            place = f"guide.{part}.{name}"
            if not isinstance(given, Mapping):
                raise BadValue("guide", f"{place}: it must be settings by name, got {given!r}")
            optional = ("optional",) if part != "targets" else ()
            check_names(given, (*MODEL, *SCORES, *optional), place)
        parts.append([(str(name), dict(given)) for name, given in found.items()])
    settings = []
    for (generator, g), (sampler, s), (target, t) in product(*parts):
        given = {**g, **s, **t, "optional": bool(s.get("optional"))}
        if g.get("optional") and not Path(str(given.get("generator"))).is_dir():
            notes.append(f"{generator} is left out: no such folder {given.get('generator')}")
            continue
        for name in ("generator", "energies"):
            if name not in given:
                raise BadValue("guide", f"guide: {generator}, {sampler}, {target} has no {name}")
        point = {"by": sampler} | ({"to": target} if len(parts[2]) > 1 else {})
        settings.append(Setting(generator, point, edit=given))
    return settings, list(dict.fromkeys(notes))


def _words(options: Namespace, setting: Setting) -> list[str]:
    """The words of `lightning guide` that run a line."""
    given = {
        **{f"model.{name}": setting.edit[name] for name in MODEL if name in setting.edit},
        **{f"scores.{name}": setting.edit[name] for name in SCORES if name in setting.edit},
        "data.count": options.data.n,
        "data.batch_size": options.data.batch_size,
        "data.reference": options.data.reference,
        "data.fit_mode": options.data.fit_mode,
        "scores.protocol": options.protocol,
        "scores.network": options.network,
        "scores.weights": options.weights,
        "trainer.accelerator": {"cuda": "gpu"}.get(options.device, options.device),
        "trainer.devices": 1,
        "trainer.precision": options.precision,
        "trainer.enable_progress_bar": sys.stderr.isatty(),
    }
    told = {name: value for name, value in given.items() if value is not None}
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in told.items()
    ]


def _built(words: list[str], label: str, seed: int | None, root: Path) -> Guide:
    try:
        return build(Guide, [*words, f"--model.seed={seed}", f"--output={root}"])
    except UsageError as error:
        raise UsageError(f"{label}: {error}") from error


def _result(cell: Cell) -> Result:
    """What a run has given, with its calls and seconds as all tables have them."""
    found = cell.result(None)
    scores = dict(found.scores)
    calls, seconds = scores.pop("calls"), scores.pop("seconds")
    cost = Cost(calls.n, round(calls.value * calls.n), seconds.value * calls.n)
    return replace(found, scores=scores, cost=cost)
