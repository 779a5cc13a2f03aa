"""`lightning compare --guide`: generators, samplers and targets of guidance in one table."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from test_guide import figures, pictures, refused, words
from tiny import make_run

from cyclelight.cli import main
from cyclelight.commands.compare import _parser
from cyclelight.commands.comparison_guidance import plan_guidance

ROOT = Path(__file__).parents[1]
RED = [{"class_path": "CustomEnergy", "init_args": {"function": "judges:redness", "weight": 200}}]


def guided(root: Path, output: Path, *more: object, **parts: Any) -> list[str]:
    """Two generators by two samplers, towards red."""
    guide: dict[str, Any] = {
        "generators": {
            "DDPM": {"generator": str(root / "cat"), "steps": 3, "judge": "judges:Rows"},
            "none": {"generator": str(root / "no"), "optional": True},
        },
        "samplers": {
            "CN": {"sampler": {"class_path": "CrankNicolson", "init_args": {"steps": 6}}},
            "TFG": {"sampler": {"class_path": "TFG"}, "optional": True},
        },
        "targets": {"red": {"energies": RED}},
        **parts,
    }
    (root / "guide.yaml").write_text(yaml.safe_dump({"guide": guide}, sort_keys=False))
    given = ("--data.n", 4, "--data.batch_size", 2, "--seeds", "[0, 1]", "--device", "cpu")
    chosen = ("--config", root / "guide.yaml", "--output", output)
    return ["compare", *map(str, (*chosen, *given, *more))]


def table(output: Path) -> dict[str, dict[str, str]]:
    with open(output / "table.csv", encoding="utf-8", newline="") as file:
        return {row["label"]: row for row in csv.DictReader(file)}


def test_each_run_is_that_of_guide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, {})
    output = tmp_path / "out"
    assert main(guided(tmp_path, output)) == 0
    told = capsys.readouterr().out
    assert "none is left out: no such folder" in told and "4/4 DDPM, by TFG, seed 1" in told
    rows = table(output)
    assert set(rows) == {"DDPM, by CN", "DDPM, by TFG"}
    own = ["--model.way", 4, "--scores.judge", "judges:Rows"]
    assert main(words(tmp_path, tmp_path / "alone", *own)) == 0
    cell = output / "cells" / "DDPM_by_CN" / "seed_0"
    assert pictures(cell) == pictures(tmp_path / "alone")
    alone, other = figures(tmp_path / "alone"), figures(cell.parent / "seed_1")
    mean = (alone["redness energy after"] + other["redness energy after"]) / 2
    assert float(rows["DDPM, by CN"]["redness energy after"]) == pytest.approx(mean)
    assert float(rows["DDPM, by CN"]["calls"]) == alone["calls"]
    assert rows["DDPM, by TFG"]["seeds"] == "2"
    with Image.open(output / "ways.png") as image:
        assert image.height > 2 * 96

    # What is finished stays; what is missing is made, to the same bytes.
    before = {path: path.stat().st_mtime_ns for path in output.rglob("sample_*.png")}
    made = pictures(cell)
    shutil.rmtree(cell)
    assert main(guided(tmp_path, output)) == 0
    assert "3 of 4 runs are finished already" in capsys.readouterr().out
    assert pictures(cell) == made
    for path, when in before.items():
        assert cell in path.parents or path.stat().st_mtime_ns == when


def test_targets_are_lines(tmp_path: Path) -> None:
    make_run(tmp_path, {})
    other = json.loads(json.dumps(RED))
    other[0]["init_args"]["weight"] = 1
    targets = {"red": {"energies": RED}, "a little red": {"energies": other}}
    samplers = {"CN": {"sampler": {"class_path": "CrankNicolson", "init_args": {"steps": 2}}}}
    parts = {"targets": targets, "samplers": samplers}
    assert main(guided(tmp_path, tmp_path / "out", "--seeds", "[0]", **parts)) == 0
    rows = table(tmp_path / "out")
    assert set(rows) == {"DDPM, by CN, to red", "DDPM, by CN, to a little red"}
    after = [float(row["redness energy after"]) for row in rows.values()]
    assert after[0] < after[1]


def test_bad_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, {})
    cat = {"generator": str(tmp_path / "cat")}
    red = {"energies": RED}
    slip = {"sampler": {"class_path": "TFG", "init_args": {"rhoo": 1}}, "optional": True}
    for more, parts, told in (
        ([], {"targets": {}}, "guide.targets: give at least one"),
        ([], {"target": {"red": red}}, "guide.target is not an option; did you mean targets?"),
        ([], {"targets": {"red": {"energy": RED}}}, "did you mean energies?"),
        ([], {"targets": {"red": {}}}, "DDPM, CN, red has no energies"),
        ([], {"generators": {"DDPM": {**cat, "eta": 2}}}, "eta must be in [0, 1], got 2"),
        ([], {"generators": {"no": {"generator": "no"}}}, "no, by CN: --model.generator"),
        (["--data.source", tmp_path], {}, "guidance begins at noise"),
        (["--data.skip", 3], {}, "data.skip: guidance begins at noise"),
        (["--classes", "cat"], {}, "classes: `guide` names"),
        ([], {"targets": {"red": {**red, "optional": True}}}, "targets.red.optional is not an"),
        ([], {"samplers": {"CN": slip}}, "guide.samplers.CN: it fits no generator: DDPM, by CN: "),
        (["--clip", "clip"], {}, "clip: `guide` names"),
        (["--seeds", "[0, 0]"], {}, "seeds must be different"),
    ):
        message = refused(capsys, guided(tmp_path, tmp_path / "out", *more, **parts))
        assert told in message, message
        assert not (tmp_path / "out").exists()


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, {})
    samplers = {"TFG": {"sampler": {"class_path": "TFG"}}}
    output, seed = tmp_path / "out", ("--seeds", "[0]")
    assert main(guided(tmp_path, output, *seed, samplers=samplers)) == 0
    capsys.readouterr()
    samplers["TFG"]["sampler"]["init_args"] = {"rho": 0.5}  # type: ignore[assignment]
    message = refused(capsys, guided(tmp_path, output, *seed, samplers=samplers))
    assert "as it was before: sampler was" in message


def test_a_judge_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told as such, not as what follows from it."""
    make_run(tmp_path, {})
    more = ["--scores.judge", "efficientnet-lite2", "--scores.judge_weights", tmp_path / "no.pth"]
    assert main(words(tmp_path, tmp_path / "out", *more)) in (1, 2)
    message = capsys.readouterr().err.strip()
    assert "no.pth" in message and len(message.splitlines()) == 1


def test_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is planned as it stands; its runs take hours."""
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(ROOT)
    given = ["--config", "configs/compare/guidance.yaml", "--output", str(tmp_path / "out")]
    found = plan_guidance(_parser().parse_args(given))
    domains = [name for name in ("DDPM", "DDIM") for _ in range(16)]
    assert [s.row for s in found.settings if s.row in ("DDPM", "DDIM")] == domains
    assert len(found.keys) == 8


def test_the_recipe_of_emoji(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each of its patterns of code points fits one of these."""
    pytest.importorskip("efficientnet_lite_pytorch")
    recipe = yaml.safe_load((ROOT / "configs" / "compare" / "guidance_emoji.yaml").read_text())
    for name in ("checkpoints", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    names = "2764-fe0f 1f493 1f49a 1f5a4 1f90e 1f9e1 1fa77 1f600"
    (tmp_path / "emoji_pairs64" / "google").mkdir(parents=True)
    for person, tone, sign in (("1f469", "1f3ff", "2640"), ("1f468", "1f3fb", "2642")):
        own = f"{person}-{tone}"
        names += f" {own} {own}-200d-1f33e {own}-200d-1f9af {own}-200d-2695-fe0f"
        names += f" 1f3c3-{tone}-200d-{sign}-fe0f"
    for name in names.split():
        Image.new("RGB", (8, 8)).save(tmp_path / "emoji_pairs64" / "google" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    given = ["--config", "configs/compare/guidance_emoji.yaml", "--output", str(tmp_path / "out")]
    found = plan_guidance(_parser().parse_args(given))
    assert [s.point["to"] for s in found.settings] == [*recipe["guide"]["targets"]] * 2
