"""The best of all runs of a row, image by image: `lightning compare --best_by FIGURE`."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.testing import assert_close

import cyclelight
from cyclelight.cli import main
from cyclelight.commands.compare import _parser
from cyclelight.commands.comparison_plan import plan
from cyclelight.commands.recipes import with_recipes
from cyclelight.metrics.figures import Score
from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_best import Best
from cyclelight.runs.comparison_cell import Cell, Result
from cyclelight.runs.cost import Cost

ROOT = Path(__file__).parents[1]
EDITS = ROOT / "docs" / "demo" / "edits" / "edits.csv"
KEYS = ["man_bald.png", "man_pilot.png", "orange_circle.png"]
# Lightning 2.6 with torch 2.15.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*hardly what their source text says"),
]


def words(output: Path, **changes: Any) -> list[str]:
    method = {"class_path": "CycleDiffusion"}
    method["init_args"] = {"steps": 2, "strength": 0.8, "cleanup": 0}
    table = output.with_suffix(".json")
    with EDITS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] in KEYS]
    table.write_text(json.dumps(rows))
    config = {
        "data": {"source": str(table), "root": str(EDITS.parent)},
        **{"model": str(ROOT / "checkpoints/emoji_text"), "best_by": "S_D-CLIP"},
        **{"clip": str(ROOT / "checkpoints/emoji_clip"), "precision": "32-true", "device": "cpu"},
        "rows": {
            "ours": {"method": method, "over": {"scale": [1.0, 3.0]}},
            "once": {"method": {"class_path": "SDEdit", "init_args": {"steps": 2}}},
        },
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return ["compare", "--config", str(path), "--output", str(output)]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("best") / "out"
    assert main(words(output)) == 0
    return output


def test_each_image_is_the_best_of_its_row(searched: Path) -> None:
    cells = {
        (f"ours, scale {scale}", seed): searched / "cells" / f"ours_scale_{scale}" / f"seed_{seed}"
        for scale in ("1.0", "3.0")
        for seed in "01"
    }
    figures = {
        run: {row["key"]: row for row in read(cell / "metrics.csv")} for run, cell in cells.items()
    }
    choice = {row["key"]: row for row in read(searched / "best" / "ours" / "choice.csv")}
    assert sorted(choice) == KEYS
    values = []
    for key in KEYS:
        best = max(cells, key=lambda run: float(figures[run][key]["S_D-CLIP"]))
        assert (choice[key]["setting"], choice[key]["seed"]) == best
        values.append(float(figures[best][key]["S_D-CLIP"]))
        assert float(choice[key]["S_CLIP"]) == float(figures[best][key]["S_CLIP"])
        made = [folder / "images" / key for folder in (searched / "best" / "ours", cells[best])]
        assert made[0].read_bytes() == made[1].read_bytes()
    told = json.loads((searched / "best" / "ours" / "metrics.json").read_text())
    assert (told["by"], told["n"], told["images"]) == ("S_D-CLIP", 4, 3)
    assert_close(told["best of n"]["S_D-CLIP"], sum(values) / 3)
    # One setting alone stands beside it, and is never better.
    lines = {row["label"]: row for row in read(searched / "table.csv")}
    for label, alone in told["settings"].items():
        assert_close(alone["S_D-CLIP"], float(lines[label]["S_D-CLIP"]))
        assert alone["S_D-CLIP"] <= told["settings"][told["best setting"]]["S_D-CLIP"]
    assert told["settings"][told["best setting"]]["S_D-CLIP"] <= told["best of n"]["S_D-CLIP"]
    line = lines["ours: best of 4 by S_D-CLIP"]
    assert_close(float(line["S_D-CLIP"]), sum(values) / 3)
    calls = {scale: float(lines[f"ours, scale {scale}"]["calls"]) for scale in ("1.0", "3.0")}
    assert_close(float(line["calls"]), 2 * sum(calls.values()))
    assert "once: best of 2 by S_D-CLIP" in lines  # Of two seeds.
    assert "best of N: of each image the best run" in (searched / "table.md").read_text()
    assert "ours: best of 4 by S_D-CLIP" in (searched / "report.html").read_text()


def test_it_is_written_once_and_follows_the_figure(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run again, whatever the choice is by."""
    stamp = (searched / "best" / "ours" / "choice.csv").stat().st_mtime_ns
    assert main(words(searched)) == 0
    assert (searched / "best" / "ours" / "choice.csv").stat().st_mtime_ns == stamp
    assert main(words(searched, best_by="L2")) == 0
    assert "6 of 6 runs are finished already" in capsys.readouterr().out
    told = json.loads((searched / "best" / "ours" / "metrics.json").read_text())
    assert told["by"] == "L2"
    best = min(of["L2"] for of in told["settings"].values())
    assert told["best of n"]["L2"] <= best == told["settings"][told["best setting"]]["L2"]


@pytest.mark.parametrize("by", ["L2", "S_D-CLIP"])
def test_lines_are_ranked(searched: Path, by: str) -> None:
    assert main(words(searched, rank_by=by)) == 0
    with open(searched / "table.csv", encoding="utf-8", newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["settings"]]
    values = [float(row[by]) for row in lines]
    assert values == sorted(values, reverse=by != "L2") and len(set(values)) > 1


def test_what_has_no_value_is_not_chosen(tmp_path: Path) -> None:
    score = Score(figure="L2", value=0.0, n=2, protocol="", higher_is_better=False)
    runs = [
        (
            Cell(Setting("row", {"scale": scale}), 0, tmp_path, {}, {}, ""),
            Result({"L2": score}, {"a": {"L2": a}, "b": {"L2": b}}, Cost(), ()),
        )
        for scale, a, b in ((1, math.nan, 2.0), (2, 5.0, 1.0), (3, 4.0, 1.0))
    ]
    best = Best(score, runs)
    assert {key: cell.setting.point["scale"] for key, (cell, _) in best.chosen.items()} == {
        "a": 3,
        "b": 2,
    }
    assert best.line().figures["L2"].mean == 2.5
    assert best.alone["row, scale 1"] == {"L2": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_by": "beauty"}, "best_by must be one of .*S_D-CLIP.*, got 'beauty'"),
        ({"clip": None}, "best_by must be one of .*, got 'S_D-CLIP'"),
        ({"rank_by": "FID"}, "rank_by must be one of .*, got 'FID'"),
        ({"seeds": [0], "rows": {"once": {"method": "SDEdit"}}}, "best_by: each row has one run"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "out", **changes)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, told[-1]), told
    assert not (tmp_path / "out" / "cells").exists()


def test_the_papers_search_is_a_recipe(tmp_path: Path) -> None:
    given = ["--config", "edit_search", "--output", str(tmp_path / "out")]
    given += ["--data.source", str(EDITS), "--model", str(ROOT / "checkpoints/emoji_text")]
    comparison = plan(_parser().parse_args(with_recipes(given)))
    assert len(comparison.cells) == 6 * 6 * 15 and comparison.options.best_by == "S_D-CLIP"
    points = {tuple(cell.setting.point.items()) for cell in comparison.cells}
    assert (("strength", 0.5), ("scale", 5.0)) in points and len(points) == 36
    schedule = cyclelight.NoiseSchedule()
    lengths = {cell.setting.method.length(schedule) for cell in comparison.cells}  # type: ignore[union-attr]
    assert lengths == {85, 80, 75, 70, 60, 50}  # T_es, of 100.
