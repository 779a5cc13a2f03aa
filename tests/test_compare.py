"""`lightning compare`: cells that are runs of `predict`, one table of them, and going on."""

import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from judges import Rows
from tiny import R, make_run

import cyclelight
from cyclelight.callbacks.cost import CostMeter, _entry
from cyclelight.cli import main
from cyclelight.commands.compare import _parser
from cyclelight.commands.comparison_files import choose
from cyclelight.commands.comparison_plan import plan
from cyclelight.commands.recipes import with_recipes
from cyclelight.diffusion.denoiser import Denoiser, Prediction
from cyclelight.networks.classifier import ClassifierUNet

ROOT = Path(__file__).parents[1]
# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

NAMES = [f"{index}.png" for index in range(6)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, sources, real images, and what another program has made."""
    root = tmp_path_factory.mktemp("compare")
    make_run(root, {"sources": NAMES, "real": NAMES, "theirs": NAMES})
    return root


def configured(here: Path, **changes: Any) -> Path:
    """A configuration file: two methods, and a folder."""
    config = {
        "data": {
            "source": str(here / "sources"),
            "reference": str(here / "real"),
            "n": 4,
            "batch_size": 3,
        },
        "source": str(here / "cat"),
        "target": str(here / "dog"),
        "network": "judges:Rows",
        "seeds": [0, 1],
        "baseline": "ours",
        "precision": "32-true",
        "device": "cpu",
        "rows": {
            "ours": {"method": {"class_path": "CycleDiffusion", "init_args": {"steps": 3}}},
            "SDEdit": {
                "method": {"class_path": "SDEdit", "init_args": {"steps": 3}},
                "over": {"strength": [0.7]},
            },
            "another": {"theirs": str(here / "theirs")},
        },
        **changes,
    }
    path = here / f"{len(list(here.glob('*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def words(config: Path, output: Path, *more: object) -> list[str]:
    return ["compare", "--config", str(config), "--output", str(output), *map(str, more)]


@pytest.fixture(scope="module")
def compared(here: Path) -> Path:
    """A comparison that nothing disturbed."""
    assert main(words(configured(here), here / "compared")) == 0
    return here / "compared"


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timeless(folder: Path) -> list[dict[str, str]]:
    """The table without the seconds."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table(folder)]


def metrics(cell: Path) -> dict[str, float]:
    found = json.loads((cell / "metrics.json").read_text())["figures"]
    return {figure["figure"]: figure["value"] for figure in found}


class Counted:
    """A denoiser that counts the states it is called with."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.calls = inner, 0

    @property
    def schedule(self) -> Any:
        return self.inner.schedule

    def __call__(self, x_t: torch.Tensor, t: int | torch.Tensor) -> Prediction:
        self.calls += len(x_t)
        return self.inner(x_t, t)


def test_a_line_is_the_mean_over_seeds(here: Path, compared: Path) -> None:
    lines = {row["label"]: row for row in table(compared)}
    names = ("real images", "untranslated", "ours", "SDEdit, strength 0.7", "another")
    assert tuple(lines) == names
    for label, folder in (("ours", "ours"), ("SDEdit, strength 0.7", "SDEdit_strength_0.7")):
        cells = [metrics(compared / "cells" / folder / f"seed_{seed}") for seed in (0, 1)]
        for name in ("KID", "FID", "SSIM", "PSNR", "L2"):
            values = [cell[name] for cell in cells]
            assert float(lines[label][name]) == pytest.approx(statistics.mean(values))
            assert float(lines[label][f"{name} spread"]) == pytest.approx(statistics.stdev(values))
        assert (lines[label]["n"], lines[label]["seeds"]) == ("4", "2")
    assert lines["another"]["SSIM spread"] == lines["another"]["calls"] == ""
    for label, method in (
        ("ours", cyclelight.CycleDiffusion(steps=3)),
        ("SDEdit, strength 0.7", cyclelight.SDEdit(steps=3, strength=0.7)),
    ):
        domains = [cyclelight.load_domain(here / name) for name in ("cat", "dog")]
        counted = [Counted(domain.denoiser) for domain in domains]
        pair = [
            cyclelight.Domain(denoiser, R)
            for domain, denoiser in zip(domains, counted, strict=True)
        ]
        cyclelight.translate(*pair, torch.zeros(1, 3, R, R), method=method)
        assert float(lines[label]["calls"]) == sum(one.calls for one in counted)
        assert float(lines[label]["seconds"]) > 0


def test_a_classifier_is_counted_by_its_features() -> None:
    network = ClassifierUNet(R, 3, 2, 32, (1, 1), 1, (8,), num_head_channels=16)
    seen = list[int]()
    _entry(network, domain=False).register_forward_pre_hook(lambda _, a: seen.append(len(a[0])))
    network.features(torch.zeros(5, 3, R, R), 3)
    network(torch.zeros(2, 3, R, R), 3)
    assert seen == [5, 2]


def test_networks_see_sources_and_real_images_once(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, look = list[int](), Rows.forward
    monkeypatch.setattr(Rows, "forward", lambda s, x: (seen.append(len(x)), look(s, x))[1])
    method = {"class_path": "SDEdit", "init_args": {"steps": 2}}
    rows = {"a": {"method": method}, "b": {"theirs": str(here / "theirs")}}
    config = configured(here, rows=rows, baseline="b", seeds=[0])
    assert main(words(config, tmp_path)) == 0
    # 4 images of each row in batches of 3 and 1; with the first row's, their sources; 6 real ones.
    assert seen == [3, 3, 1, 1, 6, 3, 1]


def test_a_cell_is_a_run_of_predict(
    here: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = compared / "cells" / "SDEdit_strength_0.7" / "seed_1"
    again = ["predict", "--config", str(cell / "config.yaml"), "--output", str(tmp_path)]
    assert main(again) == 0
    images = {path.name: path.read_bytes() for path in (cell / "images").iterdir()}
    assert len(images) == 4
    assert images == {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    for name in ("metrics.json", "metrics.csv"):
        assert (cell / name).read_text() == (tmp_path / name).read_text()


def test_a_folder_of_another_program_is_judged_alike(
    here: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [path.name for path in (compared / "sources").iterdir()]
    (tmp_path / "theirs").mkdir()
    for name in chosen:
        shutil.copy(here / "theirs" / name, tmp_path / "theirs")
    given = {"source": compared / "sources", "translated": tmp_path / "theirs"}
    given |= {"reference": here / "real", "network": "judges:Rows", "output": tmp_path / "out"}
    assert main(["evaluate", *(f"--{k}={v}" for k, v in given.items()), "--batch_size=3"]) == 0
    wanted = (tmp_path / "out" / "metrics.csv").read_text()
    assert (compared / "cells" / "another" / "theirs" / "metrics.csv").read_text() == wanted


def test_finished_runs_are_not_run_again(
    here: Path, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (compared / "cells").rglob("*")}
    tables = {name: (compared / name).read_bytes() for name in ("table.csv", "table.md")}
    assert main(["compare", "--config", str(compared / "config.yaml")]) == 0
    told = capsys.readouterr().out
    assert "5 of 5 runs are finished already" in told and "SDEdit, strength 0.7" in told
    assert before == {path: path.stat().st_mtime_ns for path in (compared / "cells").rglob("*")}
    assert tables == {name: (compared / name).read_bytes() for name in tables}


def test_stopped_within_a_cell_it_goes_on(
    here: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, measured = [], CostMeter.on_predict_batch_end

    def stop(self: CostMeter, *args: Any, **named: Any) -> None:
        batches.append(args)
        if len(batches) == 4:
            raise SystemExit(143)
        measured(self, *args, **named)

    config = configured(here)
    monkeypatch.setattr(CostMeter, "on_predict_batch_end", stop)
    assert main(words(config, tmp_path / "out")) == 143
    monkeypatch.undo()
    cells = tmp_path / "out" / "cells"
    kept = {path: path.stat().st_mtime_ns for path in cells.rglob("images/*")}
    assert len(kept) == 4 + 3  # The first cell's, and a batch of the second.
    assert [row["label"] for row in table(tmp_path / "out")][2:] == ["ours"]
    assert "runs are not finished" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert main(words(config, tmp_path / "out")) == 0
    assert timeless(tmp_path / "out") == timeless(compared)
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in cells.rglob("images/*")}.items()


def test_other_settings_are_refused_in_the_same_folder(
    here: Path, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = yaml.safe_load((compared / "config.yaml").read_text())["rows"]
    rows["SDEdit"]["method"]["init_args"]["steps"] = 4
    assert main(words(configured(here, rows=rows), compared)) == 2
    error = capsys.readouterr().err
    assert "SDEdit_strength_0.7/seed_0 holds SDEdit, strength 0.7, seed 0 as it was before" in error
    assert "steps was 3, now 4; call the row otherwise" in error and error.count("\n") == 1
    # Of a method that had no such setting then, what is its default now was done.
    path = compared / "cells" / "SDEdit_strength_0.7" / "seed_0" / "cell.json"
    kept = path.read_text()
    path.write_text(kept.replace('"eta": 1.0,', ""))
    assert main(["compare", "--config", str(compared / "config.yaml")]) == 0
    assert "5 of 5 runs are finished already" in capsys.readouterr().out
    path.write_text(kept)
    assert main(words(configured(here, source=str(here / "dog")), compared)) == 2
    assert "other weights of source" in capsys.readouterr().err


SDEDIT = {"class_path": "SDEdit", "init_args": {"steps": 3}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": {}}, "rows: there is nothing to compare"),
        ({"rows": {"a": {"method": "SDEdt"}}}, "rows.a.method: there is no method SDEdt; did you"),
        ({"rows": {"a": {"metod": SDEDIT}}}, "rows.a.metod is not an option; did you mean method?"),
        ({"rows": {"a": {}}}, "rows.a: it must have either a method or `theirs`"),
        (
            {"rows": {"a": {"method": {**SDEDIT, "init_args": {"step": 3}}}}},
            "rows.a.method.step is not an option; did you mean steps?",
        ),
        (
            {"rows": {"a": {"method": SDEDIT, "over": {"strength": [0.5, 2]}}}},
            "rows.a.method: strength must be in (0, 1], got 2",
        ),
        (
            {"rows": {"a": {"method": SDEDIT, "over": {"strength": 0.5}}}},
            "rows.a.over: it must be lists of values",
        ),
        ({"rows": {"a": {"theirs": "nowhere"}}}, "rows.a.theirs: no such folder nowhere"),
        ({"rows": {"a": {"theirs": "{here}/few"}}}, "has no translation of"),
        (
            {"rows": {"a": {"method": {"class_path": "EGSDE"}}}, "classifier": "nowhere"},
            "rows.a.method: classifier: nowhere does not exist",
        ),
        ({"rows": {"a b": {"method": SDEDIT}, "a/b": {"method": SDEDIT}}}, "would share a folder"),
        (
            {"baseline": "theirs"},
            "baseline must be one of ours, SDEdit, strength 0.7, another, got",
        ),
        ({"seeds": [1, 1]}, "seeds must be different integers"),
        ({"target": "nowhere"}, "target: nowhere does not exist"),
        ({"source": None}, "rows.ours: source: CycleDiffusion needs this domain"),
        ({"protocol": "mine"}, "protocol must be one of default"),
        ({"network": "resnet"}, "network must be one of"),
        ({"classes": "bird"}, "classes must be one of cat, dog, wild"),
        ({"data": {"source": "nowhere"}}, "source: no such file or folder nowhere"),
        ({"data": {"source": "{here}/sources", "n": 7}}, "data.n: 7 of 6 images are not there"),
        ({"data": {"source": "{here}/sources", "reference": "x"}}, "data.reference: no such"),
        ({"data": {"source": "{here}"}}, "output: {here}/out lies in the folder of the sources"),
        ({"row": 1}, "--row is not an option"),
    ],
)
def test_bad_configurations(
    here: Path, changes: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "few").mkdir(exist_ok=True)
    shutil.copy(here / "theirs" / NAMES[0], here / "few")
    filled = json.loads(json.dumps(changes).replace("{here}", str(here)))
    baseline = {"baseline": None} if "rows" in changes else {}
    assert main(words(configured(here, **baseline, **filled), here / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says.replace("{here}", str(here)) in error
    assert error.count("\n") == 1
    assert not (here / "out").exists()


def test_the_sources_are_the_first_of_a_seeded_order() -> None:
    files = [(f"{index:02}.png", Path(f"{index:02}.png")) for index in range(20)]
    few, more, rest = choose(files, 5), choose(files, 12), choose(files, 8, skip=12)
    assert set(few) < set(more) and sorted([*more, *rest]) == files and few == sorted(few)
    assert choose(list(reversed(files)), 5) == few and choose(files, 5, seed=1) != few
    assert choose(files, None) == files and choose(files, None, skip=12) == rest
    assert few != files[:5]


RECIPES = [
    p
    for p in sorted((ROOT / "configs" / "compare").glob("*.yaml"))
    if "edit" not in p.stem and "guidance" not in p.stem
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(here: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that they name is there, or optional."""
    monkeypatch.chdir(ROOT)
    given = ["--config", recipe.stem, "--output", str(tmp_path / "out"), "--data.n", "3"]
    given += ["--data.skip", "0"]
    side = 256 if recipe.stem.startswith("afhq") else 48
    if side == 256:  # Domains that are still to be trained.
        make_run(tmp_path, {}, side)
        given += ["--source", str(tmp_path / "cat"), "--target", str(tmp_path / "dog")]
    given += ["--data.source", str(here / "sources"), "--data.reference", str(here / "real")]
    comparison = plan(_parser().parse_args(with_recipes(given)))
    names = {setting.row for setting in comparison.settings}
    to_dogs = recipe.stem != "google2twitter"
    if recipe.stem != "search":
        assert {"CycleDiffusion", "SDEdit", "ILVR", "DDIB", "DDCM", "EditFriendly"} <= names
        assert ("CycleDiffusion, paper" in names) == to_dogs
    told = {re.split(r",| is left out", note)[0] for note in comparison.notes}
    assert told <= {"EGSDE", "EGSDE-dagger", "CUT", "FastCUT"}
    assert comparison.classes == ("dog" if to_dogs else None) and comparison.resolution == side
    seeds = comparison.options.seeds
    assert len(comparison.cells) == len(seeds) * len(comparison.settings)


@pytest.mark.slow
def test_killed_it_goes_on(here: Path, compared: Path, tmp_path: Path) -> None:
    config = configured(here)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-m", "cyclelight", *words(config, tmp_path / "out")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        while process.poll() is None and len(list(tmp_path.rglob("images/*.png"))) < 6:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert main(words(config, tmp_path / "out")) == 0
    assert timeless(tmp_path / "out") == timeless(compared)
