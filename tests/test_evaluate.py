"""`lightning evaluate`: several methods, tables, pages, and what is left without Inception."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from cyclelight.cli import main

R = 16


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources, what two methods make of them, and real images; of one image `theirs` has none."""
    root, generator = tmp_path_factory.mktemp("evaluate"), np.random.default_rng(0)
    for index in range(6):
        source = generator.integers(0, 256, (R, R, 3))
        near = np.clip(source + generator.integers(-9, 10, source.shape), 0, 255)
        far = np.clip(source + generator.integers(-60, 61, source.shape), 0, 255)
        made = {"sources": source, "near": near, "far": far, "real": source[::-1]}
        for folder, pixels in made.items():
            (root / folder).mkdir(exist_ok=True)
            if folder != "far" or index != 3:
                Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{index}.png")
    return root


def words(here: Path, *more: object) -> list[str]:
    return ["evaluate", "--source", str(here / "sources"), *map(str, more)]


def psnr(here: Path, folder: str) -> dict[str, float]:
    """By NumPy, of each image."""
    found = {}
    for path in sorted((here / folder).iterdir()):
        a, b = (
            np.asarray(Image.open(f, formats=["PNG"]), np.float64)
            for f in (path, here / "sources" / path.name)
        )
        found[path.name] = float(10 * np.log10(255**2 / ((a - b) ** 2).mean()))
    return found


def test_two_methods(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("--translated", f"near={here / 'near'}", "--translated", here / "far")
    assert main(words(here, *methods, "--output", tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "not judged, as there is no translation: 1 of 6 sources, such as 3.png" in shown
    near, far = psnr(here, "near"), psnr(here, "far")
    differences = [far[key] - near[key] for key in far]
    with open(tmp_path / "table.csv") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert float(rows["far"]["PSNR"]) == pytest.approx(np.mean(list(far.values())))
    assert float(rows["near"]["PSNR"]) == pytest.approx(np.mean([near[key] for key in far]))
    assert float(rows["far"]["PSNR difference"]) == pytest.approx(np.mean(differences))
    low, high = (float(rows["far"][f"PSNR {end}"]) for end in ("low", "high"))
    wanted = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((wanted.low, wanted.high), rel=1e-5)
    assert rows["near"]["PSNR difference"] == "" and rows["far"]["n"] == "5"
    for name in ("near", "far"):
        assert json.loads((tmp_path / name / "metrics.json").read_text())["figures"]
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png") >= 15 and "95 %" in report


def test_one_method_has_a_page(here: Path, tmp_path: Path) -> None:
    assert main(words(here, "--translated", here / "near", "--output", tmp_path)) == 0
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 12 and "<dt>PSNR" in page
    assert (tmp_path / "metrics.csv").is_file() and (tmp_path / "table.tex").is_file()


@pytest.mark.parametrize(
    ("form", "begins", "has"),
    [("markdown", "**near from ", "| near"), ("latex", "% near from ", "\\bottomrule")],
)
def test_tables_for_papers(
    here: Path, form: str, begins: str, has: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(here, "--translated", here / "near", "--table", form)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(begins) and has in shown
    assert f"{np.mean(list(psnr(here, 'near').values())):.2f}" in shown


@pytest.mark.parametrize("protocol", ["cyclediffusion", "egsde"])
def test_without_inception_the_rest_is_told(
    here: Path,
    tmp_path: Path,
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    given = ("--translated", here / "near", "--reference", here / "real", "--protocol", protocol)
    assert main(words(here, *given)) == 0
    shown = capsys.readouterr().out
    assert (
        "SSIM" in shown and "PSNR" in shown and "no FID, no KID, no class rate: network " in shown
    )
    assert "`lightning weights --fetch` does" in shown
    assert main(words(here, *given, "--weights", tmp_path / "none.pt")) == 2


def test_what_cannot_be_told_apart(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ("--translated", here / "near", "--translated", here / "near")
    for more, says in (
        (twice, "two methods are called near: use NAME=DIR"),
        (("--translated", "a=nowhere"), "--translated: no such folder nowhere"),
        (("--translated", here / "near", "--table", "html"), "table must be one of text, markdown"),
    ):
        assert main(words(here, *more)) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
