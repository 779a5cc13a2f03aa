"""`lightning compare` of text edits: cells that are runs of `edit`, and one table of them."""

import csv
import json
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

import cyclelight
from cyclelight.callbacks.cost import CostMeter
from cyclelight.cli import main
from cyclelight.commands.compare import _parser
from cyclelight.commands.comparison_plan import plan
from cyclelight.commands.recipes import with_recipes
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.metrics.faithfulness import psnr
from cyclelight.modules import editing
from cyclelight.text.attention import AttentionControl
from datamodules.edit_rows import keyed, read_edits

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "checkpoints"
R = 32
# Lightning 2.6 with torch 2.15.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*hardly what their source text says"),
]
EDITS = [
    ("a", "red heart", "blue heart", "colour; seen"),
    ("b", "red heart", "green heart", "colour; held out"),
    ("c", "cat face", "dog face", "kind; seen"),
    ("d", "cat face", "cat face", "kind; seen"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four edits of squares with their truths, and what another program has made of them."""
    root, generator = tmp_path_factory.mktemp("edits"), np.random.default_rng(0)
    rows = []
    for name, source, target, group in EDITS:
        for folder in ("sources", "truths", "theirs"):
            (root / folder).mkdir(exist_ok=True)
            pixels = generator.integers(0, 256, (R, R, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
        rows.append({"image": f"sources/{name}.png", "truth": f"truths/{name}.png", "group": group})
        rows[-1] |= {"source_text": f"{source}, google", "target_text": f"{target}, google"}
    with (root / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def configured(here: Path, output: Path, **changes: Any) -> list[str]:
    """The words of a comparison of three methods and a folder."""
    method = {"class_path": "CycleDiffusion"}
    method["init_args"] = {"steps": 3, "strength": 0.8, "cleanup": 0}
    config = {
        "data": {
            **{"source": str(here / "table.csv"), "batch_size": 3},
            **{"candidates": str(here / "truths"), **changes.pop("data", {})},
        },
        "model": str(CHECKPOINTS / "emoji_text"),
        "clip": str(CHECKPOINTS / "emoji_clip"),
        **{"seeds": [0, 1], "baseline": "ours, scale 1.5", "precision": "32-true", "device": "cpu"},
        "rows": {
            "ours": {"method": method, "over": {"scale": [1.5, 3.0]}},
            "controlled": {
                **{"method": method, "scale": 2.0, "source_scale": 1.0},
                "control": {"cross": 0.9, "self_attention": 0.5},
            },
            "sampled": {
                "method": {"class_path": "SDEdit", "init_args": {"steps": 3, "strength": 1.0}}
            },
            "another": {"theirs": str(here / "theirs")},
        },
        **changes,
    }
    output.mkdir(exist_ok=True)
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return ["compare", "--config", str(path), "--output", str(output)]


@pytest.fixture(scope="module")
def compared(here: Path) -> Path:
    """A comparison that nothing disturbed."""
    assert main(configured(here, here / "compared")) == 0
    return here / "compared"


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "table.csv", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def lines(folder: Path, group: str = "") -> dict[str, dict[str, str]]:
    return {row["label"]: row for row in table(folder) if row["group"] == group}


def per_image(cell: Path) -> dict[str, dict[str, float]]:
    with open(cell / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("key"): {k: float(v) for k, v in row.items()} for row in rows}


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path, formats=["PNG"])))


LABELS = ["untranslated", "ours, scale 1.5", "ours, scale 3.0", "controlled", "sampled", "another"]


def test_the_images_are_those_of_the_model(here: Path, compared: Path) -> None:
    """As Python makes them: each row with its own scales and control."""
    model = cyclelight.load_text_model(CHECKPOINTS / "emoji_text")
    method = cyclelight.CycleDiffusion(steps=3, strength=0.8, cleanup=0)
    some = EDITS[:3]  # The first batch.
    keys = [f"{name}.png" for name, *_ in some]
    x = to_float(torch.stack([pixels(here / "sources" / key) for key in keys]))
    texts = [[f"{row[column]}, google" for row in some] for column in (1, 2)]
    control = AttentionControl(cross=0.9, self_attention=0.5)
    pairs = {
        "ours_scale_3.0": [model.prompted(each, scale=3.0) for each in texts],
        "controlled": model.controlled(
            *texts,
            control,
            method.grid(model.denoiser.schedule).timesteps,
            source_scale=1.0,
            scale=2.0,
        ),
    }
    for name, pair in pairs.items():
        y = to_uint8(cyclelight.translate(*pair, x, method=method, keys=keys, seed=1))
        for key, image in zip(keys, y, strict=True):
            cell = compared / "cells" / name / "seed_1"
            made = pixels(cell / "images" / key).float()
            # Rounded otherwise: memory of another layout.
            assert_close(made, image.float(), rtol=0, atol=1)


def test_the_table(here: Path, compared: Path) -> None:
    rows = lines(compared)
    assert list(rows) == LABELS
    for name in ("a", "b", "c", "d"):
        made = pixels(here / "theirs" / f"{name}.png")[None]
        truth = pixels(here / "truths" / f"{name}.png")[None]
        found = per_image(compared / "cells" / "another" / "theirs")[f"{name}.png"]
        assert found["PSNR to truth"] == pytest.approx(psnr(made, truth).item())
        assert found.keys() >= {"S_CLIP", "S_D-CLIP", "SSIM", "nearest is truth"}
    # 2 of 3 steps of a whole grid are run; guided, each asks source and target twice.
    for label, calls in (
        ("ours, scale 1.5", 8),
        ("controlled", 6),
        ("sampled", 6),
        ("another", ""),
    ):
        assert rows[label]["calls"] == (f"{calls:.1f}" if calls else ""), label
    assert rows["ours, scale 1.5"]["seeds"] == "2" and rows["another"]["seeds"] == "1"
    assert float(rows["sampled"]["SSIM difference"]) < 0
    # With equal texts and scales an edit gives the image back.
    cell = compared / "cells" / "ours_scale_3.0" / "seed_0"
    assert torch.equal(pixels(cell / "images" / "d.png"), pixels(here / "sources" / "d.png"))
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "S_D-CLIP" in page and "by scale" in page


def test_figures_by_group(compared: Path) -> None:
    """The means of those images, over seeds; and what the sources reach as they are."""
    groups = {"colour": "ab", "kind": "cd", "seen": "acd", "held out": "b"}
    cells = [per_image(compared / "cells" / "ours_scale_1.5" / f"seed_{seed}") for seed in (0, 1)]
    for group, names in groups.items():
        rows = lines(compared, group)
        assert list(rows) == LABELS and all(row["n"] == str(len(names)) for row in rows.values())
        for figure in ("PSNR to truth", "nearest is truth", "SSIM", "S_D-CLIP"):
            means = [np.mean([cell[f"{name}.png"][figure] for name in names]) for cell in cells]
            mine = rows["ours, scale 1.5"]
            assert float(mine[figure]) == pytest.approx(np.mean(means), abs=1e-9)
            spread = float(mine[f"{figure} spread"])
            assert spread == pytest.approx(np.std(means, ddof=1), abs=1e-9)
    sources, truths = (
        torch.stack([pixels(compared.parent / folder / f"{name}.png") for name in "cd"])
        for folder in ("sources", "truths")
    )
    untouched = lines(compared, "kind")["untranslated"]
    mean = float(psnr(sources, truths).mean())
    assert float(untouched["PSNR to truth"]) == pytest.approx(mean)
    assert untouched["SSIM"] == ""  # A source is like itself.
    # All of one group are none of another: means over both are those over all.
    halves = [float(lines(compared, group)["sampled"]["PSNR"]) for group in ("colour", "kind")]
    assert np.mean(halves) == pytest.approx(float(lines(compared)["sampled"]["PSNR"]))
    for text in ((compared / "table.md").read_text(), (compared / "report.html").read_text()):
        assert "PSNR to truth (dB) ↑, by group:" in text and "held out (n 1)" in text
    assert "by group" in (compared / "table.tex").read_text()


def test_a_cell_is_a_run_of_edit(compared: Path, tmp_path: Path) -> None:
    cell = compared / "cells" / "controlled" / "seed_1"
    assert main(["edit", "--config", str(cell / "config.yaml"), "--output", str(tmp_path)]) == 0
    for name in ("metrics.json", "metrics.csv"):
        assert (cell / name).read_text() == (tmp_path / name).read_text()
    assert json.loads((cell / "made_by.json").read_text()).keys() == {"model"}


def test_a_run_of_edit_tells_its_figures_by_group(
    here: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The comparison's, of the one seed; printed, too."""
    cell = compared / "cells" / "controlled" / "seed_1"
    words = ["--config", str(cell / "config.yaml"), "--data.source", str(here / "table.csv")]
    assert main(["edit", *words, "--output", str(tmp_path / "out")]) == 0
    told, mine = capsys.readouterr().out, per_image(cell)
    names = {"colour": "ab", "kind": "cd", "seen": "acd", "held out": "b"}
    assert "PSNR to truth (dB) ↑, by group:" in told and "held out (n 1)" in told
    for group, some in {"": "abcd", **names}.items():
        rows = lines(tmp_path / "out", group)
        assert list(rows) == ["untranslated", "edited"]
        theirs = lines(compared, group)["untranslated"]
        for figure in ("PSNR to truth", "nearest is truth", "SSIM", "S_CLIP", "S_D-CLIP"):
            mean = np.mean([mine[f"{name}.png"][figure] for name in some])
            assert float(rows["edited"][figure]) == pytest.approx(mean, abs=1e-9)
            found = [row[figure] and float(row[figure]) for row in (rows["untranslated"], theirs)]
            assert found[0] == pytest.approx(found[1], abs=1e-6)
    # Without groups nothing of it, and what is made anew leaves no old table.
    plain = tmp_path / "plain.json"
    rows_there = json.loads((compared / "edits.json").read_text())
    plain.write_text(json.dumps([{**row, "group": ""} for row in rows_there]))
    words[-1] = str(plain)
    assert main(["edit", *words, "--output", str(tmp_path / "out"), "--overwrite"]) == 0
    assert "by group" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "table.csv").exists()


def test_the_model_is_loaded_once(
    here: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all cells that run it alike, and they make what each makes alone."""
    loads = list[str]()

    def counted(path: str, **settings: Any) -> Any:
        loads.extend([path] * (settings.get("device") != "meta"))
        return cyclelight.load_text_model(path, **settings)

    monkeypatch.setattr(editing, "load_text_model", counted)
    method = {"class_path": "CycleDiffusion"}
    method["init_args"] = {"steps": 3, "strength": 0.8, "cleanup": 0}  # type: ignore[assignment]
    rows = {"ours": {"method": method, "over": {"scale": [1.5, 3.0]}}}
    words = configured(here, tmp_path / "out", rows=rows)
    assert main(words) == 0
    assert len(loads) == 1  # Of four cells.
    for cell in ("ours_scale_1.5", "ours_scale_3.0"):
        for seed in ("seed_0", "seed_1"):
            mine, alone = (root / "cells" / cell / seed for root in (tmp_path / "out", compared))
            for name in ("images/a.png", "images/d.png", "metrics.csv"):
                assert (mine / name).read_bytes() == (alone / name).read_bytes()


def test_finished_runs_are_not_run_again(
    here: Path, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table(compared)
    assert main(configured(here, compared)) == 0
    assert "9 of 9 runs are finished already" in capsys.readouterr().out
    assert table(compared) == before


def test_stopped_within_a_cell_it_goes_on(
    here: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, measured = [], CostMeter.on_predict_batch_end

    def stop(self: CostMeter, *args: Any, **named: Any) -> None:
        batches.append(args)
        if len(batches) == 4:
            raise SystemExit(143)
        measured(self, *args, **named)

    words = configured(here, tmp_path / "out")
    monkeypatch.setattr(CostMeter, "on_predict_batch_end", stop)
    assert main(words) == 143
    monkeypatch.undo()
    cells = tmp_path / "out" / "cells"
    kept = {path: path.stat().st_mtime_ns for path in cells.rglob("images/*")}
    assert len(kept) == 4 + 3  # The first cell's, and a batch of the second.
    assert main(words) == 0
    assert table(tmp_path / "out") == table(compared)
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in cells.rglob("images/*")}.items()


def test_fewer_edits_are_some_of_them_under_their_keys(here: Path, tmp_path: Path) -> None:
    """Of an image's edits the first may be left out: the second is called as before."""
    rows = [{"image": "sources/a.png", "source_text": "x", "target_text": f"{n}"} for n in range(9)]
    path = here / "many.json"
    path.write_text(json.dumps(rows))
    method = {"class_path": "SDEdit", "init_args": {"steps": 2, "strength": 0.5}}
    changes = {"rows": {"a": {"method": method}}, "baseline": None, "seeds": [0], "clip": None}
    data = {"source": str(path), "n": 3, "candidates": None}
    words = configured(here, tmp_path / "out", data=data, **changes)
    assert main(words) == 0
    chosen = json.loads((tmp_path / "out" / "edits.json").read_text())
    names = {f"a-{n + 1}.png" if n else "a.png": f"{n}" for n in range(9)}
    assert len(chosen) == 3 and all(names[row["key"]] == row["target_text"] for row in chosen)
    folder = tmp_path / "out" / "cells" / "a" / "seed_0" / "images"
    few = {path.name: pixels(path).float() for path in folder.iterdir()}
    assert main([*words, "--data.n", "5"]) == 0
    many = {path.name: pixels(path).float() for path in folder.iterdir()}
    assert len(few) == 3 and len(many) == 5
    for name, image in few.items():  # Rounded otherwise, in a batch of another size.
        assert_close(many[name], image, rtol=0, atol=1)


def emoji_edit() -> Any:
    """The file benchmarks/emoji_edit.py."""
    path = ROOT / "benchmarks" / "emoji_edit.py"
    spec = spec_from_file_location("emoji_edit", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emoji(folder: Path, held_out: int = 210, seen: int = 220) -> None:
    """What the table of EmojiEdit is made of: drawings, and pairs of them."""
    (folder / "google").mkdir(parents=True)
    names = ["source", "target", "source_caption", "target_caption", "attribute"]
    rows = [",".join([*names, "target_held_out"])]
    for kind, count in (("1", held_out), ("0", seen)):
        for n in range(count):
            pair = f"{kind}{n:03}-a", f"{kind}{n:03}-b"
            for k, name in enumerate(pair):
                colour = (int(kind) * 99, n, k * 99)
                Image.new("RGB", (4, 4), colour).save(folder / "google" / f"{name}.png")
            rows.append(",".join([*pair, "dog", "cat", "hair" if n % 2 else "hour", kind]))
    (folder / "edit_pairs.csv").write_text("\n".join(rows))


def test_the_table_of_emoji_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half are towards what was held out, fewer are among more; and the recipe takes it."""
    emoji(tmp_path / "pairs")
    keys = {}
    for pairs in (400, 6):
        path = tmp_path / "more" / f"{pairs}.csv"
        path.parent.mkdir(exist_ok=True)
        words = ["", str(tmp_path / "pairs"), str(path), "--pairs", str(pairs)]
        monkeypatch.setattr("sys.argv", words)
        emoji_edit().main()
        edits = keyed(read_edits(path))
        keys[pairs] = set(edits)
        groups = Counter(name for edit in edits.values() for name in edit.groups)
        assert len(edits) == pairs and groups["seen"] == groups["held out"] == pairs / 2
        assert groups["hair"] + groups["hour"] == pairs
        for key, edit in edits.items():
            assert edit.truth is not None and key == f"{edit.image.stem}_{edit.truth.name}"
            held_out = edit.truth.stem.startswith("1")
            assert ("held out" in edit.groups) == held_out
            assert (edit.source_text, edit.target_text) == ("dog, google", "cat, google")
    assert keys[6] < keys[400]
    with pytest.raises(ValueError, match="--pairs: 211 of 210 held out pairs are not there"):
        emoji_edit().choose(emoji_rows(tmp_path / "pairs"), 422, 0)
    monkeypatch.chdir(ROOT)
    given = ["--config", "emoji_edit", "--data.source", str(tmp_path / "more" / "6.csv")]
    given += ["--output", str(tmp_path / "out"), "--data.candidates", str(tmp_path / "pairs")]
    comparison = plan(_parser().parse_args(with_recipes(given)))
    rows = {setting.row for setting in comparison.settings}
    methods = {"CycleDiffusion", "EditFriendly", "DDCM", "DDIB", "SDEdit"}
    assert methods <= rows and "from the target caption alone" in rows
    for name in ("CycleDiffusion", "EditFriendly", "DDCM"):
        assert f"{name}, attention control" in rows
    assert comparison.resolution == R and len(comparison.truths) == 6
    assert set(comparison.groups) == {"seen", "held out", "hair", "hour"}


def emoji_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "edit_pairs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


CYCLE = {"class_path": "CycleDiffusion", "init_args": {"steps": 3}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "x"}, "source: edits by a model have none: give `model` or `source`"),
        ({"model": "nowhere"}, "model: nowhere does not exist"),
        (
            {"data": {"source": "{here}/sources"}},
            "data.source: edits by a model are compared: give",
        ),
        ({"data": {"truth": "{here}/truths"}}, "data.truth stands in each row of the table"),
        ({"rows": {"a": {"method": CYCLE, "scale": "x"}}}, "rows.a: scale must be a number, got"),
        ({"rows": {"a": {"method": CYCLE, "sclae": 2}}}, "rows.a.sclae is not an option; did you"),
        ({"rows": {"a": {"method": CYCLE, "control": {"x": 2}}}}, "rows.a: control must have sett"),
        (
            {"rows": {"a": {"method": "SDEdit", "control": {"cross": 0.5}}}},
            "rows.a: control: SDEdit does not run source and target step by step",
        ),
        (
            {"rows": {"a": {"method": CYCLE, "control": {"words": {"x": 0.5}}}}},
            "rows.a: control of a.png: words: 'x' is not among",
        ),
        (
            {"rows": {"a": {"method": CYCLE, "over": {"control": [1]}}}},
            "rows.a.over.control is not",
        ),
        ({"clip": "nowhere"}, "clip: nowhere is not a CLIP's folder"),
        ({"model": None}, "clip judges edits by their texts: give `model` and a table, too"),
    ],
)
def test_bad_configurations(
    here: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = json.loads(json.dumps(changes).replace("{here}", str(here)))
    rows = {"rows": {"a": {"method": CYCLE}}, "baseline": None}
    assert main(configured(here, tmp_path / "out", **{**rows, **filled})) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "cells").exists()
