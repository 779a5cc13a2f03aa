"""Right results that are known: figures by hand and by NumPy, in every command that tells them."""

import base64
import csv
import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tiny import R, make_run, predict_words

from cyclelight.cli import main
from cyclelight.metrics import faithfulness
from cyclelight.metrics.faithfulness import NearestIsTruth
from datamodules.edit_images import EditImages

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

NAMES = [f"{index}.png" for index in range(5)]
FIGURES = ("PSNR to truth", "SSIM to truth", "nearest is truth")


def pixel(*levels: int) -> torch.Tensor:
    """Images of a pixel each: (B, 1, 1, 3)."""
    return torch.tensor([[[[level, 0, 0]]] for level in levels], dtype=torch.uint8)


@pytest.mark.parametrize("at_once", [1, 2, 512])
def test_nearest_by_hand(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faithfulness, "CANDIDATES", at_once)
    judge = NearestIsTruth(pixel(0, 100, 200))
    # 49 is nearer to 0, 51 to 100, 50 to neither: a truth as near as another one is the nearest.
    found = judge(pixel(49, 51, 50, 50, 255), pixel(0, 0, 0, 100, 100))
    assert found.tolist() == [1, 0, 1, 1, 0]
    # Two that look alike are one, and a truth that is no candidate counts as one.
    assert NearestIsTruth(pixel(7, 7))(pixel(7, 9), pixel(7, 10)).tolist() == [1, 1]


def test_distances_are_exact() -> None:
    """Of many pixels, where float32 could not tell two candidates apart."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 96, 96, 3), generator=generator, dtype=torch.uint8)
    far = 255 - image  # About 2e8 away, of which float32 knows multiples of 16.
    nearer, farther = far.clone(), far.clone()
    place = (0, 0, 0, 0)
    nearer[place], farther[place] = image[place], 255 - image[place]
    assert not torch.equal(nearer, farther)
    judge = NearestIsTruth(torch.cat([nearer, farther]))
    assert judge(image, nearer).tolist() == [1] and judge(image, farther).tolist() == [0]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, sources, their truths under other suffixes, and truths among candidates."""
    root = tmp_path_factory.mktemp("truth")
    make_run(
        root, {"sources": NAMES, "real": NAMES, "all": [f"x{index}.png" for index in range(4)]}
    )
    # Two are their sources, so that the source is the nearest of all: of them, and of them alone.
    (root / "truth").mkdir()
    for index, name in enumerate(NAMES):
        folder = root / ("sources" if index < 2 else "real")
        shutil.copy(folder / name, root / "all" / name)
        Image.open(folder / name).save(root / "truth" / name.replace("png", "bmp"))
    return root


def options(here: Path, output: Path, *more: object) -> list[str]:
    known = ("--data.truth", here / "truth", "--data.candidates", here / "all")
    return predict_words(here, output, *known, "--scores.network", "judges:Rows", *more)


@pytest.fixture(scope="module")
def run(here: Path) -> Path:
    assert main(options(here, here / "run", "--data.batch_size", 2)) == 0
    return here / "run"


def figures(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "metrics.json").read_text())["figures"]
    return {figure["figure"]: figure for figure in found}


def per_image(folder: Path) -> dict[str, dict[str, float]]:
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("key"): {k: float(v) for k, v in row.items()} for row in rows}


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path, formats=["PNG", "BMP"]))


def shown(page: str, kind: str) -> list[Any]:
    """The pixels of the page's images of a class."""
    data = re.findall(f'<img class="{kind}"[^>]*base64,([^"]*)"', page)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(each)))).tolist() for each in data]


def sorted_truths(here: Path) -> list[Path]:
    return [here / "truth" / name.replace("png", "bmp") for name in NAMES]


def expected(here: Path, made: Path, name: str) -> dict[str, float]:
    """The three figures of one image, by other libraries."""
    a, truth = pixels(made / name), pixels(here / "truth" / name.replace("png", "bmp"))
    bank = [pixels(path).astype(float) for path in sorted((here / "all").iterdir())]
    nearest = min(bank, key=lambda b: float(((a - b) ** 2).sum()))
    same = bool((a == truth).all())
    return {
        "PSNR to truth": 100.0 if same else peak_signal_noise_ratio(truth, a, data_range=255),
        "SSIM to truth": structural_similarity(
            a, truth, data_range=255, channel_axis=2,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        ),
        "nearest is truth": float((nearest == truth).all()),
    }  # fmt: skip


def test_figures_are_those_of_the_saved_pixels(here: Path, run: Path) -> None:
    rows, means = per_image(run), figures(run)
    mine = [expected(here, run / "images", name) for name in NAMES]
    theirs = [expected(here, here / "sources", name) for name in NAMES]
    for figure in FIGURES:
        values = [of[figure] for of in mine]
        assert [rows[name][figure] for name in NAMES] == pytest.approx(values, abs=1e-9)
        assert means[figure]["value"] == pytest.approx(np.mean(values))
        error = np.std(values, ddof=1) / len(values) ** 0.5
        assert means[figure]["standard_error"] == pytest.approx(error)
        assert means[figure]["untranslated"] == pytest.approx(np.mean([t[figure] for t in theirs]))
    # Those two whose truth is their source, and of the others, noise, some.
    assert 0.4 <= means["nearest is truth"]["untranslated"] < 1
    page = (run / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<dt>PSNR to truth") == len(NAMES)
    assert shown(page, "truth") == [pixels(path).tolist() for path in sorted_truths(here)]


def test_evaluate_and_going_on_give_the_same(here: Path, run: Path, tmp_path: Path) -> None:
    folders = {"source": here / "sources", "reference": here / "real", "truth": here / "truth"}
    folders |= {"candidates": here / "all", "translated": run / "images", "output": tmp_path}
    words = [f"--{name}={folder}" for name, folder in folders.items()]
    assert main(["evaluate", *words, "--network=judges:Rows", "--batch_size=2"]) == 0
    kept = {name: (run / name).read_text() for name in ("metrics.json", "metrics.csv")}
    assert kept == {name: (tmp_path / name).read_text() for name in kept}
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert shown(page, "truth") == [pixels(path).tolist() for path in sorted_truths(here)]
    # All is done: images are read back, and judged alike.
    assert main(options(here, run, "--data.batch_size", 2)) == 0
    assert kept == {name: (run / name).read_text() for name in kept}


def test_no_candidates_no_nearest(here: Path, run: Path, tmp_path: Path) -> None:
    words = [f"--{n}={here / n}" for n in ("truth",)]
    words += [f"--source={here / 'sources'}", f"--translated={run / 'images'}"]
    assert main(["evaluate", *words, f"--output={tmp_path}"]) == 0
    found = figures(tmp_path)
    assert "nearest is truth" not in found
    assert found["PSNR to truth"]["value"] == figures(run)["PSNR to truth"]["value"]


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("predict", ["--data.truth", "{here}/none"], "--data.truth: no such folder"),
        ("predict", ["--data.truth", "{here}/all"], "candidates: the truth of 2.png, "),
        ("predict", ["--data.candidates", "{here}/none"], "--data.candidates: no such folder"),
        ("predict", ["--data.candidates", "{here}/cat"], "--data.candidates: no images in"),
        ("evaluate", ["--truth", "{here}/none"], "--truth: no such folder"),
        ("evaluate", ["--truth", "{here}/real", "--candidates", "{here}/sources"], "the truth of"),
        ("evaluate", ["--candidates", "{here}/all"], "give --truth, too"),
        ("compare", ["--data.truth", "{here}/cat"], "data.truth: {here}/cat has none for 0.png"),
        ("compare", ["--data.candidates", "{here}/none"], "data.candidates: no such folder"),
    ],
)
def test_bad_truths(
    here: Path,
    tmp_path: Path,
    command: str,
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [word.format(here=here) for word in words]
    if command == "predict":
        if "{here}/all" in words:
            given[1] = str(tmp_path / "wrong")
            shutil.copytree(here / "sources", tmp_path / "wrong")
        line = options(here, tmp_path / "out", *given)
    elif command == "evaluate":
        line = ["evaluate", f"--source={here / 'sources'}", f"--translated={here / 'real'}", *given]
    else:
        line = ["compare", "--config", str(compared(here, tmp_path)), *given]
    assert main(line) != 0
    told = capsys.readouterr().err
    assert says.format(here=here) in told and told.count("\n") == 1
    assert not (tmp_path / "out" / "images").exists()


def compared(here: Path, tmp_path: Path) -> Path:
    """A configuration of one method and one folder."""
    config = {
        "data": {
            **{"source": str(here / "sources"), "batch_size": 2},
            **{"truth": str(here / "truth"), "candidates": str(here / "all")},
        },
        "output": str(tmp_path / "out"),
        **{"source": str(here / "cat"), "target": str(here / "dog")},
        **{"seeds": [0], "baseline": "perfect", "precision": "32-true", "device": "cpu"},
        "rows": {
            "ours": {"method": {"class_path": "CycleDiffusion", "init_args": {"steps": 4}}},
            "perfect": {"theirs": str(here / "truth")},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def test_compare_tells_them_too(here: Path, run: Path, tmp_path: Path) -> None:
    assert main(["compare", "--config", str(compared(here, tmp_path))]) == 0
    with open(tmp_path / "out" / "table.csv") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    for figure in FIGURES:
        mine = figures(tmp_path / "out" / "cells" / "ours" / "seed_0")[figure]
        assert float(rows["ours"][figure]) == mine["value"]
        assert float(rows["untranslated"][figure]) == mine["untranslated"]
        assert float(rows["perfect"][figure]) == {"PSNR to truth": 100}.get(figure, 1)
        difference = mine["value"] - float(rows["perfect"][figure])
        assert float(rows["ours"][f"{figure} difference"]) == pytest.approx(difference)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    layers = shown(page, "layer")  # Of a card: source, ours, perfect, right result.
    assert len(layers) == 4 * len(NAMES) and page.count("<figcaption>right result</") == len(NAMES)
    truths = [pixels(path).tolist() for path in sorted_truths(here)]
    assert sorted(layers[3::4]) == sorted(layers[2::4]) == sorted(truths)
    # A cell is a run of predict: the configuration that it leaves gives its figures.
    cell = tmp_path / "out" / "cells" / "ours" / "seed_0"
    again = ["predict", "--config", str(cell / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again" / "metrics.csv").read_text() == (cell / "metrics.csv").read_text()
    # Other truths are other figures, of the same images.
    made = (cell / "images" / "0.png").stat().st_mtime_ns
    changed = tmp_path / "truth"
    shutil.copytree(here / "truth", changed)
    shutil.copy(here / "truth" / "1.bmp", changed / "0.bmp")
    words = ["compare", "--config", str(tmp_path / "config.yaml"), "--data.truth", str(changed)]
    assert main(words) == 0
    assert per_image(cell)["0.png"]["nearest is truth"] == 0
    assert (cell / "images" / "0.png").stat().st_mtime_ns == made


def test_a_table_of_edits_has_truths(here: Path, tmp_path: Path) -> None:
    rows = ["image,source_text,target_text,truth", "0.png,a,b,1.png", "0.png,a,c,2.png"]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(rows))
    data = EditImages(str(table), root=str(here / "sources"))
    data.load(R)
    assert data.truths is not None and data.keys == ["0-2.png", "0.png"]
    for key, truth in (("0.png", "1.png"), ("0-2.png", "2.png")):
        assert (data.truths.pixels_of(key).numpy() == pixels(here / "sources" / truth)).all()
    assert "truth" not in data.loaded[0]
    with pytest.raises(ValueError, match="truth stands in each row of"):
        EditImages(str(table), root=str(here / "sources"), truth=str(here / "truth"))
    table.write_text("\n".join([*rows, "0.png,a,c,"]))
    with pytest.raises(ValueError, match=r"has truths, but row 3 has none"):
        EditImages(str(table), root=str(here / "sources"))
    table.write_text("\n".join([*rows, "0.png,a,c,no.png"]))
    with pytest.raises(ValueError, match=r"row 3: no such image .*no.png"):
        EditImages(str(table), root=str(here / "sources"))


def test_an_edit_may_have_a_key_and_groups(here: Path, tmp_path: Path) -> None:
    row = {"image": "0.png", "source_text": "a", "target_text": "b"}
    table = tmp_path / "t.json"
    rows = [{**row, "key": "z/first.png", "group": "hair; held out"}, row]
    table.write_text(json.dumps(rows))
    data = EditImages(str(table), root=str(here / "sources"))
    assert data.keys == ["0.png", "z/first.png"]
    assert data.edits["z/first.png"].groups == ["hair", "held out"]
    assert data.edits["0.png"].groups == []
    table.write_text(json.dumps([{**row, "key": 3}]))
    with pytest.raises(ValueError, match=r"row 1: key must be a text, got 3"):
        EditImages(str(table), root=str(here / "sources"))
