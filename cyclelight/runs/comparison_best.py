"""Best of N: of each image the run of a row that a figure likes best.

So are the paper's figures of text edits made, the best of 6 strengths x 6 scales x 15 trials (Wu
and De la Torre 2023, sec. 4.2). What is chosen by a figure is flattered by it, and costs all runs;
beside it always stands what one setting reaches.

best/<row>/
  images/        the images that were chosen
  choice.csv     of which setting and seed each is, with its figures
  metrics.json   their figures, N, and those of each setting alone
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclelight.errors import BadValue, one_of
from cyclelight.files import write_text
from cyclelight.metrics.figure_kinds import Score
from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_cell import Cell, Result
from cyclelight.runs.comparison_lines import Line, Value
from cyclelight.runs.folder import RunFolder

METRICS = "metrics.json"


@dataclass(frozen=True)
class Best:
    """What was chosen of a row.

    Args:
        score: the figure by which, as some run has it.
        runs: of the row, all of them finished: each setting with each seed.
    """

    score: Score
    runs: Sequence[tuple[Cell, Result]]

    @property
    def label(self) -> str:
        """What its line is called."""
        row = self.runs[0][0].setting.row
        return f"{row}: best of {len(self.runs)} by {self.score.figure}"

    @property
    def chosen(self) -> dict[str, tuple[Cell, Mapping[str, float]]]:
        """key => the run that is best in the figure, the first of equal ones; and its figures."""
        sign, name = (1 if self.score.higher_is_better else -1), self.score.figure

        def worth(run: tuple[Cell, Mapping[str, float]]) -> float:
            value = run[1][name]
            return -math.inf if math.isnan(value) else sign * value

        return {
            key: max(((cell, result.images[key]) for cell, result in self.runs), key=worth)
            for key in sorted(self.runs[0][1].images)
        }

    @property
    def alone(self) -> dict[str, dict[str, float]]:
        """The figures of each setting alone, by its label: means over its seeds and images."""
        found: dict[str, list[Mapping[str, float]]] = {}
        for cell, result in self.runs:
            found.setdefault(cell.setting.label, []).extend(result.images.values())
        return {label: means(images) for label, images in found.items()}

    def line(self) -> Line:
        """Of the table; it costs what all runs cost."""
        costs = [result.cost for _, result in self.runs]
        calls = [cost.calls_per_image for cost in costs]
        seconds = [cost.seconds_per_image for cost in costs]
        chosen = self.chosen
        return Line(
            label=self.label,
            setting=None,
            figures={n: Value(v) for n, v in means([f for _, f in chosen.values()]).items()},
            n=len(chosen),
            seeds=len({cell.seed for cell, _ in self.runs}),
            calls=None if None in calls else sum(filter(None, calls)),
            seconds=None if None in seconds else sum(filter(None, seconds)),
        )

    def write(self, folder: Path) -> None:
        """Write what was chosen, in place of what was there, to the row's own part of a folder."""
        root = folder / Setting(self.runs[0][0].setting.row).folder
        chosen, alone = self.chosen, self.alone
        names = list(next(iter(chosen.values()))[1])
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["key", "setting", "seed", *names])
        for key, (cell, figures) in chosen.items():
            table.writerow([key, cell.setting.label, cell.seed, *(figures[n] for n in names)])
        if _read(root / "choice.csv") == text.getvalue() and (root / METRICS).is_file():
            return
        shutil.rmtree(root, ignore_errors=True)
        for key, (cell, _) in chosen.items():
            there = RunFolder(cell.root, list(chosen)).image_path(key)
            here = root / there.relative_to(cell.root)
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there, here)
        name, sign = self.score.figure, (1 if self.score.higher_is_better else -1)
        told = {
            "by": name,
            "n": len(self.runs),
            "images": len(chosen),
            "best of n": means([figures for _, figures in chosen.values()]),
            "best setting": max(alone, key=lambda label: sign * alone[label].get(name, -math.inf)),
            "settings": alone,
        }
        write_text(root / "choice.csv", text.getvalue())
        write_text(root / METRICS, json.dumps(told, indent=2) + "\n")


def ranked(
    by: str, cells: Sequence[Sequence[Cell]], results: Sequence[Sequence[Result]]
) -> list[tuple[Sequence[Cell], Sequence[Result]]]:
    """The runs of each line with their results, by the mean of a figure over them, the best first.

    Lines without that figure are the last ones.
    """

    def place(pair: tuple[Sequence[Cell], Sequence[Result]]) -> float:
        scores = [result.scores[by] for result in pair[1] if by in result.scores]
        if not scores:
            return math.inf
        mean = math.fsum(score.value for score in scores) / len(scores)
        return -mean if scores[0].higher_is_better else mean

    return sorted(zip(cells, results, strict=True), key=place)


def check_best(by: str | None, figures: Sequence[str], cells: Sequence[Cell]) -> None:
    """Raises ValueError if nothing can be chosen by a figure.

    Args:
        by: the figure; None for no choice.
        figures: those that images have.
        cells: all runs.
    """
    if by is None:
        return
    one_of(figures, best_by=by)
    rows = [cell.setting.row for cell in cells]
    if len(rows) == len(set(rows)):
        told = "best_by: each row has one run, among which there is nothing to choose"
        raise BadValue("best_by", f"{told}: give values in `over`, or more seeds")


def best_of(
    by: str | None,
    finished: Sequence[Sequence[Cell]],
    results: Sequence[Sequence[Result]],
    cells: Sequence[Cell],
) -> list[Best]:
    """What is chosen of each row that has several runs, all of them finished.

    Args:
        by: the figure; None for no choice.
        finished: runs of each line.
        results: what they gave.
        cells: all runs.
    """
    if by is None:
        return []
    rows: dict[str, list[tuple[Cell, Result]]] = {}
    for some, of in zip(finished, results, strict=True):
        for cell, result in zip(some, of, strict=True):
            rows.setdefault(cell.setting.row, []).append((cell, result))
    return [
        Best(runs[0][1].scores[by], runs)
        for row, runs in rows.items()
        if 1 < len(runs) == sum(cell.setting.row == row for cell in cells)
        and all(by in result.scores for _, result in runs)
    ]


def means(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over images; NaN, where a figure has no value, is left out."""
    found: dict[str, list[float]] = {}
    for figures in images:
        for name, value in figures.items():
            if not math.isnan(value):
                found.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
