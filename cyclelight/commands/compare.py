"""`lightning compare`: methods, settings and seeds under one protocol, in one table."""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from tabulate import tabulate

from cyclelight.callbacks.cost import CostMeter
from cyclelight.callbacks.scores import BATCH
from cyclelight.commands.comparison_plan import (
    SOURCES,
    Comparison,
    device_of,
    plan,
    theirs_of,
)
from cyclelight.commands.guard import UsageError
from cyclelight.commands.lightning_cli import build
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.commands.predict import Predict, make_images
from cyclelight.commands.recipes import with_recipes
from cyclelight.diffusion.pixels import FitMode, pil_image
from cyclelight.errors import printable
from cyclelight.files import locked, write_text
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.judge import Judge
from cyclelight.modules.translation import ready_domain
from cyclelight.runs.comparison_cell import Cell
from cyclelight.runs.comparison_curves import draw_curves
from cyclelight.runs.comparison_page import Made, worst_first, write_report
from cyclelight.runs.comparison_table import Table
from cyclelight.runs.folder import RunFolder
from cyclelight.runs.report import Report
from datamodules.listing import Files, list_images
from datamodules.order import groups_of
from datamodules.square_images import SquareImages

REPORT = "report.html"
BETWEEN_PAGES = 600.0
"""Seconds at least from one writing of the page to the next, but for the last one."""
ByKey = Mapping[str, Mapping[str, float]]
DESCRIPTION = "Compare methods of translation: settings and seeds under one protocol, in one table."
EPILOG = """\
Each setting with each seed is a run of `predict` in OUTPUT/cells; killed, the same command goes on.
OUTPUT/table.md, .csv and .tex grow meanwhile, and from time to time OUTPUT/report.html and
curves.svg. Rows are described in configs/compare."""


def _parser() -> ArgumentParser:
    parser = make_parser(
        "compare", "--config FILE --output DIR [--OPTION VALUE ...]", DESCRIPTION, EPILOG
    )
    add = parser.add_argument
    add("--config", action="config", metavar="FILE", help="A recipe, or a file with the options.")
    add("--output", type=str, required=True, help="Folder for all that is made.")
    add("--data.source", type=str, required=True, help="The sources: a folder or a pattern.")
    add("--data.reference", type=str | None, help="Folder of real images of the target.")
    add("--data.n", type=int | None, help="How many sources, in a seeded order of their names.")
    add("--data.skip", type=int, default=0, help="How many of that order come before.")
    add("--data.order_seed", type=int, default=0, help="Of that order.")
    add("--data.batch_size", type=int, default=8, help="Images that are translated together.")
    add("--data.fit_mode", type=FitMode, default="crop", help="How sources are made square.")
    add("--source", type=str | None, help="The domain of the sources.")
    add("--target", type=str | None, help="The domain to translate into.")
    add("--classifier", type=str | None, help="Folder of the classifier for EGSDE's rows.")
    add("--protocol", type=str, default="default", help="default, cyclediffusion or egsde.")
    add("--network", type=str | None, help="Feature network in place of the protocol's.")
    add("--weights", type=str | None, help="File of that network's weights.")
    add("--classes", type=str | None, help="Whose share is told; by default the target's.")
    add("--seeds", type=list[int], default=[0, 1], help="Seeds of the noise, such as [0,1].")
    add("--baseline", type=str | None, help="The line that the others are compared with.")
    add("--rows", type=dict[str, Any], required=True, help="Methods and settings, by name.")
    add("--precision", type=str | None, help="Of the networks; by default the fastest here.")
    add("--device", type=str, default="auto", help="cpu or cuda; auto takes a GPU if there is one.")
    return parser


def compare(args: list[str]) -> int:
    """`lightning compare`; the exit code."""
    parser = _parser()
    with ExitStack() as stack:
        with usage():
            options = parser.parse_args(with_recipes(args))
            comparison = plan(options)
            runs = Runs(comparison)
            stack.enter_context(locked(comparison.root))
            _link(comparison)
        kept = options.clone()
        del kept["config"]
        write_text(comparison.root / "config.yaml", parser.dump(kept))
        for note in comparison.notes:
            print(printable(note))
        runs.run()
    return 0


def _link(comparison: Comparison) -> None:
    """Put links to the chosen sources into a folder of their own.

    Raises:
        ValueError: other images are there.
    """
    folder, wanted = comparison.root / SOURCES, dict(comparison.files)
    folder.mkdir(exist_ok=True)
    for path in [path for path in folder.rglob("*") if path.is_symlink()]:
        target = wanted.get(path.relative_to(folder).as_posix())
        if target is None or os.readlink(path) != os.path.realpath(target):
            path.unlink()
    for key, target in wanted.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(os.path.realpath(target))
    strange = [key for key, _ in list_images(folder) if key not in wanted]
    if strange:
        raise ValueError(f"output: {folder / strange[0]} is none of the chosen sources: remove it")


class Run(Predict):
    """A cell: `predict`, which tells what it costs."""

    def more_callbacks(self) -> list[Callback]:
        return [CostMeter()]


class Runs:
    """All cells, one after another, and the table of those that are finished.

    Networks and real images are read once, and shared by all.

    Args:
        comparison: what is to be run.

    Raises:
        ValueError, FileNotFoundError: the protocol's network cannot be had.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.load_domain = cache(ready_domain)
        self.make_judge = cache(Judge)
        self.device = device_of(comparison.options)
        realism = comparison.reference or comparison.classes is not None
        self.judge = self.make_judge(
            comparison.protocol if realism else None,
            comparison.options.weights,
            resolution=comparison.resolution,
            sources=True,
            clip=None,
        )
        self.judge.remembered = {}
        self.next_page = time.monotonic() + BETWEEN_PAGES

    def run(self) -> None:
        """Run what is not finished; the tables are written whenever a cell is."""
        cells, keys = self.comparison.cells, self.comparison.keys
        done = {cell.root for cell in cells if cell.is_finished(keys)}
        if done:
            print(f"{len(done)} of {len(cells)} runs are finished already")
        for number, cell in enumerate(cells, 1):
            if cell.root not in done:
                print(printable(f"{number}/{len(cells)} {cell.label}"), flush=True)
                cell.begin()
                if cell.setting.method is None:
                    self.judge_theirs(cell)
                else:
                    self.predict(cell)
                cell.end()
                done.add(cell.root)
                self.write(done)
        table = self.write(done)
        head, rows = table.figure_rows()
        print(printable(tabulate(rows, head, disable_numparse=True)))
        print(printable("\n".join([*table.legend(), f"Wrote {self.comparison.root}/{REPORT}"])))

    def write(self, done: set[Path]) -> Table:
        """The table of the finished cells, and the page, which takes longer, now and then."""
        comparison = self.comparison
        found: dict[str, list[Cell]] = {}
        for cell in comparison.cells:
            if cell.root in done:
                found.setdefault(cell.setting.label, []).append(cell)
        cells = [found[s.label] for s in comparison.settings if s.label in found]
        missing = len(comparison.cells) - len(done)
        unfinished = [f"{missing} of {len(comparison.cells)} runs are not finished"] * bool(missing)
        results = [[cell.result(comparison.classes) for cell in some] for some in cells]
        table = Table.of(
            [(some[0].setting, of) for some, of in zip(cells, results, strict=True)],
            baseline=comparison.options.baseline,
            title=comparison.title,
            notes=[*unfinished, *comparison.notes],
        )
        table.write(comparison.root)
        if not missing or time.monotonic() > self.next_page:
            first = [some[0] for some in cells]
            self.write_page(table, first, [some[0].images for some in results])
            self.next_page = time.monotonic() + BETWEEN_PAGES
        return table

    def write_page(self, table: Table, cells: list[Cell], figures: list[ByKey]) -> None:
        """The page, with the images of the first seed, and the curves alone."""
        comparison, sources = self.comparison, self._squares(self.comparison.files)
        images = [self._images(cell) for cell in cells]

        def read(key: str) -> Made:
            made = [pil_image(of.pixels_of(key)) for of in images]
            return Made(key, pil_image(sources.pixels_of(key)), made, [of[key] for of in figures])

        keys = worst_first(figures, table.columns)
        write_report(comparison.root / REPORT, table, keys, read)
        write_text(comparison.root / "curves.svg", draw_curves(table))

    def _images(self, cell: Cell) -> SquareImages:
        """What a finished cell has made."""
        comparison = self.comparison
        if cell.setting.theirs is not None:
            files = theirs_of(cell.setting, comparison.options.data.source, comparison.keys)
        else:
            folder = RunFolder(cell.root, comparison.keys)
            files = [(key, folder.image_path(key)) for key in comparison.keys]
        return self._squares(files, "crop")

    def predict(self, cell: Cell) -> None:
        """Translate, in a run folder of its own."""
        cli = build(Run, self._words(cell))
        cli.model.load_domain = self.load_domain
        cli.scores.make_judge = self.make_judge
        cli.scores.look_at_reference = self.look_at_reference
        try:
            make_images(cli)
        except UsageError as error:
            raise UsageError(f"{cell.label}: {error}") from error

    def _words(self, cell: Cell) -> list[str]:
        comparison, options = self.comparison, self.comparison.options
        method = {k: v for k, v in cell.setting.describe().items() if k != "method"}
        kind = {"class_path": cell.setting.describe()["method"], "init_args": method}
        given = {
            "model.source": options.source,
            "model.target": options.target,
            "model.method": json.dumps(kind),
            "model.seed": cell.seed,
            "data.source": comparison.root / SOURCES,
            "data.reference": options.data.reference,
            "data.batch_size": options.data.batch_size,
            "data.fit_mode": options.data.fit_mode,
            "scores.protocol": options.protocol,
            "scores.network": options.network,
            "scores.weights": options.weights,
            "scores.classes": comparison.classes,
            "trainer.accelerator": {"cuda": "gpu"}.get(self.device, self.device),
            "trainer.devices": 1,
            "trainer.precision": comparison.precision,
            "trainer.enable_progress_bar": str(sys.stderr.isatty()).lower(),
            "output": cell.root,
        }
        return [f"--{name}={value}" for name, value in given.items() if value is not None]

    def judge_theirs(self, cell: Cell) -> None:
        """Judge what another program has made, as if it were ours."""
        comparison, options = self.comparison, self.comparison.options
        translated, sources = self._images(cell), self._squares(comparison.files)
        self.judge.to(self.device)
        groups = groups_of(len(translated), options.data.batch_size)
        images = self.judge.look(
            groups, translated.keys, translated.pixels, sources.pixels, self.device
        )
        reference = self.reference() if comparison.reference else Columns()
        Report.of(images, reference, self.judge, comparison.protocol, comparison.classes).write(
            cell.root
        )

    def look_at_reference(
        self, judge: Judge, images: SquareImages | None, trainer: Trainer
    ) -> Columns:
        """The real images, judged: as a callback asks for them."""
        return Columns() if images is None else self.reference()

    @cache  # noqa: B019 (one object for the whole process)
    def reference(self) -> Columns:
        """The real images, judged once."""
        real = self._squares(self.comparison.reference)
        groups = groups_of(len(real), BATCH)
        return self.judge.look(groups, real.keys, real.pixels, device=self.device)

    def _squares(self, files: Files, fit_mode: FitMode | None = None) -> SquareImages:
        """As squares of the rows' size; sources and reference are made square as asked."""
        side, channels = self.comparison.resolution, self.comparison.channels
        mode = self.comparison.options.data.fit_mode if fit_mode is None else fit_mode
        return SquareImages(files, side, mode, keep=False, hint="", channels=channels)
