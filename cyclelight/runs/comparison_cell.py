"""A cell of a comparison: one line of its table with one seed, in a run folder of its own.

cell.json   what the cell is to be, and whether it is finished, beside what `predict` writes
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclelight.errors import BadValue
from cyclelight.files import read_json, write_json
from cyclelight.metrics.figure_kinds import Score
from cyclelight.runs.comparison import Setting
from cyclelight.runs.cost import Cost
from cyclelight.runs.folder import RunFolder
from cyclelight.runs.report import Report

CELL = "cell.json"


@dataclass(frozen=True)
class Result:
    """What a finished cell has given.

    Args:
        scores: over all images, by figure.
        images: key => figure => value, of each image.
        cost: of the images; of no image where another program has made them.
        notes: why a figure is missing.
    """

    scores: Mapping[str, Score]
    images: Mapping[str, Mapping[str, float]]
    cost: Cost
    notes: tuple[str, ...]

    @classmethod
    def of(cls, report: Report, rate: str | None) -> "Result":
        """What a report tells of images that another program has made."""
        images = {
            key: {_figure(name, rate): value for name, value in figures.items()}
            for key, figures in report.images.items()
        }
        return cls({s.figure: s for s in report.scores}, images, Cost(), tuple(report.notes))


def _figure(name: str, rate: str | None) -> str:
    """A figure of single images by the name that it has over all of them."""
    return f"{name} rate" if name == rate else name


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        setting: the line of the table.
        seed: of the noise; None where another program has made the images.
        root: its run folder.
        asked: the settings that decide what the images are.
        made_by: the SHA-256 of the weights, by what they are of.
        judged: what decides the figures, images and settings apart: changes with the files.
    """

    setting: Setting
    seed: int | None
    root: Path
    asked: Mapping[str, Any]
    made_by: Mapping[str, str]
    judged: str

    @property
    def label(self) -> str:
        """The line's, with the seed."""
        return self.setting.label + ("" if self.seed is None else f", seed {self.seed}")

    def check(self) -> None:
        """Raises ValueError if the folder holds a cell of other settings or weights."""
        kept = self._kept()
        if kept is None:
            return
        there, now = ({**k["asked"], **k["made_by"]} for k in (kept, self._told()))
        # A setting that the method did not have then: its default is what was done.
        there = {**{n: d for n, d in self.setting.defaults().items() if n in now}, **there}
        changed = [name for name in {**there, **now} if there.get(name) != now.get(name)]
        if not changed:
            return
        told = "; ".join(
            f"other weights of {name}"
            if name in self.made_by
            else f"{name} was {there.get(name)}, now {now.get(name)}"
            for name in changed
        )
        raise BadValue(
            "output",
            f"output: {self.root} holds {self.label} as it was before: {told}; call the row "
            f"otherwise, or delete that folder",
        )

    def is_finished(self, keys: list[str]) -> bool:
        """Whether all images are there, judged as they would be now."""
        kept = self._kept()
        if kept is None or kept["judged"] != self.judged:
            return False
        if not all((self.root / name).is_file() for name in ("metrics.json", "metrics.csv")):
            return False
        theirs = self.setting.theirs is not None
        return theirs or len(RunFolder(self.root, keys).finished()) == len(keys)

    def begin(self) -> None:
        """Note what the folder is for."""
        write_json(self.root / CELL, {**self._told(), "judged": None})

    def end(self) -> None:
        """Note that it is finished."""
        write_json(self.root / CELL, self._told())

    def result(self, rate: str | None) -> Result:
        """What it has given.

        Args:
            rate: the domain whose share of the images is told; of single images, whether it is one.
        """
        metrics = read_json(self.root / "metrics.json", "output")
        scores = [Score(**figure) for figure in metrics["figures"]]
        with open(self.root / "metrics.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        images = {
            row.pop("key"): {_figure(name, rate): float(value) for name, value in row.items()}
            for row in rows
        }
        return Result(
            {score.figure: score for score in scores},
            images,
            Cost.read(self.root),
            tuple(metrics["notes"]),
        )

    def _told(self) -> dict[str, Any]:
        return {
            "asked": dict(self.asked),
            "made_by": dict(self.made_by),
            "judged": self.judged,
        }

    def _kept(self) -> dict[str, Any] | None:
        """What `cell.json` holds, if it is there."""
        path = self.root / CELL
        if not path.exists():
            return None
        kept = read_json(path, "output")
        if not all(isinstance(kept.get(name), dict) for name in ("asked", "made_by")):
            raise BadValue("output", f"output: {path} is damaged: delete that folder")
        return {"judged": None, **kept}
