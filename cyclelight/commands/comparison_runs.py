"""The runs of a comparison, one after another, and what is written of them."""

import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from cyclelight.callbacks.cost import CostMeter
from cyclelight.callbacks.scores import BATCH
from cyclelight.callbacks.texts import check_texts, load_clip, load_dino
from cyclelight.commands.comparison_files import theirs_of
from cyclelight.commands.comparison_loop import run_cells
from cyclelight.commands.comparison_plan import Comparison, device_of
from cyclelight.commands.comparison_words import words_of
from cyclelight.commands.edit import Edit
from cyclelight.commands.guard import UsageError
from cyclelight.commands.lightning_cli import build
from cyclelight.commands.predict import Predict, make_images
from cyclelight.diffusion.pixels import FitMode, pil_image
from cyclelight.errors import one_of
from cyclelight.files import write_text
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.judge import Judge, PerImage
from cyclelight.modules.editing import ready_model
from cyclelight.modules.translation import ready_domain
from cyclelight.runs.comparison_best import best_of, check_best, ranked
from cyclelight.runs.comparison_cell import Cell
from cyclelight.runs.comparison_curves import draw_curves
from cyclelight.runs.comparison_lines import ByKey
from cyclelight.runs.comparison_page import Made, worst_first, write_report
from cyclelight.runs.comparison_table import Table
from cyclelight.runs.folder import RunFolder
from cyclelight.runs.report import Report
from datamodules.edit_images import regions_of
from datamodules.edit_rows import fields_of
from datamodules.items import Items
from datamodules.listing import Files
from datamodules.order import groups_of
from datamodules.square_images import SquareImages
from datamodules.translation_images import check_among

REPORT, BEST = "report.html", "best"
BETWEEN_PAGES = 600.0
"""Seconds at least from one writing of the page to the next, but for the last one."""


class Translation(Predict):
    """A cell of translations: `predict`, which tells what it costs."""

    def more_callbacks(self) -> list[Callback]:
        return [CostMeter()]


class Editing(Edit):
    """A cell of edits: `edit`, which tells what it costs."""

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
        # Of the last kind of engine alone: two text models may be more than the memory holds.
        self.load_model = lru_cache(maxsize=1)(ready_model)
        self.truths = self._squares(comparison.truths) if comparison.truths else None
        self.candidates = self._candidates() if comparison.candidates else None
        self.regions = regions_of(comparison.edits, comparison.resolution)
        self.device, options = device_of(comparison.options), comparison.options
        realism = comparison.reference or comparison.classes is not None
        self.judge = Judge(
            comparison.protocol if realism else None,
            comparison.options.weights,
            resolution=comparison.resolution,
            sources=True,
            clip=None if options.clip is None else load_clip(options.clip),
            truth=self.truths is not None,
            candidates=None if self.candidates is None else self.candidates.all_pixels(),
            regions=self.regions is not None,
            dino=None if options.dino is None else load_dino(options.dino),
        )
        if self.judge.clip is not None:
            items = Items(comparison.keys, fields_of(comparison.edits))
            check_texts(self.judge.clip, items)
        self.best_by = comparison.options.best_by
        check_best(
            self.best_by, [*self.judge.measures, *self.judge.text_measures], comparison.cells
        )
        self.rank_by = comparison.options.rank_by
        if self.rank_by is not None:
            of_sets = ["KID", "FID"] if comparison.reference else []
            of_sets += [f"{comparison.classes} rate"] if comparison.classes is not None else []
            known = [*self.judge.measures, *self.judge.text_measures, *of_sets]
            one_of(known, rank_by=self.rank_by)
        self.judge.remembered = {}
        self.next_page = time.monotonic() + BETWEEN_PAGES

    def run(self) -> None:
        """Run what is not finished; the tables are written whenever a cell is."""
        comparison = self.comparison
        shown = comparison.root / REPORT
        run_cells(comparison.cells, comparison.keys, self.make, self.write, shown)

    def make(self, cell: Cell) -> None:
        """Run a cell, or judge what another program has made."""
        if cell.setting.method is None:
            self.judge_theirs(cell)
        else:
            self.predict(cell)

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
        if self.rank_by is not None and cells:
            cells, results = map(list, zip(*ranked(self.rank_by, cells, results), strict=True))
        best = best_of(self.best_by, cells, results, comparison.cells)
        for each in best:
            each.write(comparison.root / BEST)
        table = Table.of(
            [(some[0].setting, of) for some, of in zip(cells, results, strict=True)],
            baseline=comparison.options.baseline,
            title=comparison.title,
            notes=[*unfinished, *comparison.notes],
            groups=comparison.groups,
            untouched=self.untouched() if comparison.groups else {},
            best=[each.line() for each in best],
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
            source = pil_image(sources.pixels_of(key))
            truth = None if self.truths is None else pil_image(self.truths.pixels_of(key))
            return Made(key, source, made, [of[key] for of in figures], truth)

        keys = worst_first(figures, table.columns)
        write_report(comparison.root / REPORT, table, keys, read)
        write_text(comparison.root / "curves.svg", draw_curves(table))

    def _images(self, cell: Cell) -> SquareImages:
        """What a finished cell has made."""
        comparison = self.comparison
        if cell.setting.theirs is not None:
            files = theirs_of(cell.setting, comparison.found, comparison.keys)
        else:
            folder = RunFolder(cell.root, comparison.keys)
            files = [(key, folder.image_path(key)) for key in comparison.keys]
        return self._squares(files, "crop")

    def predict(self, cell: Cell) -> None:
        """Translate, or edit, in a run folder of its own."""
        cli = build(
            Editing if self.comparison.edits else Translation, words_of(self.comparison, cell)
        )
        if self.comparison.edits:
            cli.model.load_model = self.load_model
        else:
            cli.model.load_domain = self.load_domain
        cli.datamodule.read_candidates = lambda side: self.candidates
        for scores in cli.scores:
            scores.make_judge = lambda *args, **settings: self.judge
            scores.look_at_reference = self.look_at_reference
        try:
            make_images(cli)
        except UsageError as error:
            raise UsageError(f"{cell.label}: {error}") from error

    def judge_theirs(self, cell: Cell) -> None:
        """Judge what another program has made, as if it were ours."""
        comparison = self.comparison
        images = self._judged(self._images(cell))
        reference = self.reference() if comparison.reference else Columns()
        Report.of(images, reference, self.judge, comparison.protocol, comparison.classes).write(
            cell.root
        )

    def _texts(self, keys: Sequence[str]) -> Callable[[int], tuple[str, str]] | None:
        """Gives both texts of an edit by its index, if a CLIP reads them."""
        if self.judge.clip is None:
            return None
        edits = [self.comparison.edits[key] for key in keys]
        return lambda index: (edits[index].source_text, edits[index].target_text)

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

    def _judged(self, images: SquareImages) -> Columns:
        """Images of the sources' keys, with all that is known of the sources beside them."""
        sources, keys, regions = self._squares(self.comparison.files), images.keys, self.regions
        self.judge.to(self.device)
        return self.judge.look(
            groups_of(len(images), self.comparison.options.data.batch_size),
            keys,
            images.pixels,
            sources.pixels,
            self.device,
            self._texts(keys),
            None if self.truths is None else self.truths.pixels,
            None if regions is None else lambda index: regions[keys[index]],
        )

    @cache  # noqa: B019 (one object for the whole process)
    def untouched(self) -> ByKey:
        """The figures of the sources as they are, judged as if they were results."""
        images = self._judged(self._squares(self.comparison.files))
        return PerImage(images, self.comparison.classes)

    def _candidates(self) -> SquareImages:
        """Kept in memory, as all cells look among them.

        Raises:
            ValueError: a truth is none of them.
        """
        comparison = self.comparison
        candidates = SquareImages(
            comparison.candidates,
            comparison.resolution,
            comparison.options.data.fit_mode,
            hint="",
            channels=comparison.channels,
        )
        assert self.truths is not None
        check_among(self.truths, candidates)
        return candidates

    def _squares(self, files: Files, fit_mode: FitMode | None = None) -> SquareImages:
        """As squares of the rows' size; sources and reference are made square as asked."""
        side, channels = self.comparison.resolution, self.comparison.channels
        mode = self.comparison.options.data.fit_mode if fit_mode is None else fit_mode
        return SquareImages(files, side, mode, keep=False, hint="", channels=channels)
