"""The figures of runs: against other libraries, across processes, and by `evaluate`."""

import csv
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tiny import R, make_run, predict_words

from cyclelight.cli import main
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.figure_kinds import ImageFigure
from cyclelight.metrics.figures import FIGURES
from cyclelight.metrics.judge import score
from cyclelight.metrics.protocol import protocol_of
from datamodules.matching import match

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

NETWORK = """
import torch

class Corners(torch.nn.Module):
    dim = 12
    def forward(self, images):
        return images[:, ::15, ::15].flatten(1) / 255.0
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two domains, 7 sources and 9 reference images, and a feature network of one's own."""
    root = tmp_path_factory.mktemp("scores")
    names = [f"{index}.png" for index in range(9)]
    make_run(root, {"sources": names[:7], "real": names})
    (root / "my_networks.py").write_text(NETWORK)
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


def options(here: Path, output: Path, *more: object) -> list[str]:
    return predict_words(here, output, "--scores.network", "my_networks:Corners", *more)


@pytest.fixture(scope="module")
def run(here: Path) -> Path:
    """A run of predict."""
    assert main(options(here, here / "run", "--data.batch_size", 7)) == 0
    return here / "run"


def figures(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {figure["figure"]: figure for figure in metrics["figures"]}


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


def test_figures_are_those_of_the_saved_pixels(here: Path, run: Path) -> None:
    saved, sources, real = (
        pixels(folder) for folder in (run / "images", here / "sources", here / "real")
    )
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [f"{index}.png" for index in range(7)]
    for row, a, b in zip(rows, saved, sources, strict=True):
        psnr = peak_signal_noise_ratio(b, a, data_range=255)
        ssim = structural_similarity(
            a, b, data_range=255, channel_axis=2,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(row["PSNR"]) == pytest.approx(psnr, abs=1e-9)
        assert float(row["SSIM"]) == pytest.approx(ssim, abs=1e-9)
    means = figures(run)
    assert means["PSNR"]["value"] == pytest.approx(np.mean([float(r["PSNR"]) for r in rows]))

    def mmd(x: list[np.ndarray], y: list[np.ndarray]) -> float:
        """The double sums of Binkowski et al. 2018, sec. 4, one pair of images after the other."""
        x, y = ([image[::15, ::15].ravel() / 255.0 for image in images] for images in (x, y))

        def mean(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
            return float(np.mean([(a @ b / 12 + 1) ** 3 for a, b in pairs]))

        return mean(permutations(x, 2)) + mean(permutations(y, 2)) - 2 * mean(product(x, y))

    kid = means["KID"]
    assert kid["value"] == pytest.approx(mmd(saved, real), abs=1e-6)
    assert kid["untranslated"] == pytest.approx(mmd(sources, real), abs=1e-6)
    assert kid["real"] == pytest.approx(mmd(real[::2], real[1::2]), abs=1e-6)
    assert (kid["n"], kid["n_reference"]) == (7, 9)
    assert "my_networks:Corners" in kid["protocol"]


def test_evaluate_gives_the_same_figures(
    here: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"source": here / "sources", "reference": here / "real"}
    args = [f"--{name}={folder}" for name, folder in folders.items()]
    args += ["--network=my_networks:Corners", f"--translated={run / 'images'}"]
    assert main(["evaluate", *args, "--batch_size=7", f"--output={tmp_path}"]) == 0
    for name in ("metrics.json", "metrics.csv"):
        assert (tmp_path / name).read_text() == (run / name).read_text()
    table = capsys.readouterr().out
    assert "KID x 100" in table and "SSIM" in table and "7 / 9" in table


def test_a_new_figure_is_one_entry(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mae(images: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        return (images.double() - sources.double()).abs().mean((1, 2, 3))

    figure = ImageFigure(
        "MAE", lambda: mae, "levels", unit="of 255", higher_is_better=False, better="much the same"
    )
    monkeypatch.setitem(FIGURES, "MAE", figure)

    assert main(options(here, tmp_path)) == 0
    errors = [
        float(np.abs(a.astype(float) - b.astype(float)).mean())
        for a, b in zip(pixels(tmp_path / "images"), pixels(here / "sources"), strict=True)
    ]
    with open(tmp_path / "metrics.csv") as file:
        assert [float(row["MAE"]) for row in csv.DictReader(file)] == pytest.approx(errors)
    found = figures(tmp_path)["MAE"]
    assert found["value"] == pytest.approx(np.mean(errors)) and not found["higher_is_better"]
    assert "MAE (of 255)" in capsys.readouterr().out
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert 'data-sort="MAE" data-first="lowest"' in page and page.count("<dt>MAE") == 7
    assert page.count('title="lower is much the same"') == 8  # Its button, and at each image.


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--translated", "{here}/nothing"], "--translated: no such folder"),
        (["--translated", "{here}/cat"], "--translated: no images"),
        (["--translated", "{here}/real"], "--translated: 7.png has no source"),
        (["--source", "{here}/nothing"], "source: no such file or folder"),
        (["--reference", "{here}/cat"], "--reference: at least 2 images"),
        (["--protocol", "mine"], "protocol must be one of default, cyclediffusion, egsde"),
        (["--network", "resnet"], "network must be one of"),
        (["--classes", "bird"], "classes must be one of cat, dog, wild"),
        (["--device", "abacus"], "--device: "),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--stray", "1"], "--stray is not an option"),
    ],
)
def test_evaluate_refuses(
    here: Path, run: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [arg.format(here=here) for arg in args]
    folders = ["--source", here / "sources", "--translated", run / "images"]
    assert main(["evaluate", *map(str, folders), "--reference", str(here / "real"), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_evaluate_pairs_by_name_whatever_the_suffix(
    here: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("sources", "translated"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    image = Image.open(run / "images" / "0.png")
    image.resize((40, 30)).save(tmp_path / "sources" / "sub" / "a.bmp")
    image.save(tmp_path / "translated" / "sub" / "a.png")
    folders = ["--source", tmp_path / "sources", "--translated", tmp_path / "translated"]
    assert main(["evaluate", *map(str, folders), "--output", str(tmp_path / "out")]) == 0
    assert figures(tmp_path / "out")["PSNR"]["n"] == 1
    assert "no translation" not in capsys.readouterr().out
    image.save(tmp_path / "sources" / "b.png")
    assert main(["evaluate", *map(str, folders)]) == 0
    assert "there is no translation: 1 of 2 sources, such as b.png" in capsys.readouterr().out
    (tmp_path / "sources" / "sub" / "a.bmp").write_bytes(b"broken")
    assert main(["evaluate", *map(str, folders)]) == 1
    assert "on_error" not in capsys.readouterr().err  # Which evaluate does not have.
    image.save(tmp_path / "sources" / "sub" / "a.bmp")
    image.resize((8, 9)).save(tmp_path / "translated" / "sub" / "a.png")
    assert main(["evaluate", *map(str, folders)]) == 2


NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("sources", "translated", "pairs"),
    [
        (["a.png", "a.bmp"], ["a.png", "a.bmp"], {"a.png": "a.png", "a.bmp": "a.bmp"}),
        (  # As `predict` names them.
            ["a.png", "a.bmp"],
            ["a.png.png", "a.bmp.png"],
            {"a.png": "a.png.png", "a.bmp": "a.bmp.png"},
        ),
        (["a.png", "a.bmp"], ["a.bmp"], {"a.bmp": "a.bmp"}),
        ([f"{NFD}.jpg"], [f"{NFC}.png"], {f"{NFD}.jpg": f"{NFC}.png"}),
        ([f"{NFC}/{NFC}.png"], [f"{NFD}/{NFD}.png"], {f"{NFC}/{NFC}.png": f"{NFD}/{NFD}.png"}),
        (  # Two files where a file system keeps both; each its own.
            [f"{NFC}.png", f"{NFD}.png"],
            [f"{NFD}.png", f"{NFC}.png"],
            {f"{NFC}.png": f"{NFC}.png", f"{NFD}.png": f"{NFD}.png"},
        ),
        (["a.png", "a.bmp"], ["a.webp"], "a.webp has several sources: a.png, a.bmp"),
        ([f"{NFC}.png", f"{NFD}.jpg"], [f"{NFD}.bmp"], {f"{NFD}.jpg": f"{NFD}.bmp"}),
        (["a.png"], ["a.png", "a.bmp"], "a.png and .*a.bmp have the same source"),
    ],
)
def test_a_translation_finds_its_source(
    sources: list[str], translated: list[str], pairs: dict[str, str] | str
) -> None:
    given = [(name, Path("translated", name)) for name in translated]
    files = [(name, Path("sources", name)) for name in sources]
    if isinstance(pairs, str):
        with pytest.raises(ValueError, match=pairs):
            match(given, files)
        return
    found = {key: (path, source) for key, path, source in match(given, files)}
    assert found == {k: (Path("translated", n), Path("sources", k)) for k, n in pairs.items()}


@pytest.mark.parametrize(("images", "real"), [(1, 9), (2, 9)])
def test_figures_that_one_image_cannot_have_are_told(
    here: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: int,
    real: int,
) -> None:
    for index in range(images):
        shutil.copy(run / "images" / f"{index}.png", tmp_path)
    args = [f"--source={here / 'sources'}", f"--reference={here / 'real'}"]
    args += ["--network=my_networks:Corners", f"--translated={tmp_path}", "--classes=cat"]
    assert main(["evaluate", *args, f"--output={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    few = f"no KID, no FID: they need 2 images or more on both sides, got {images} and {real} real"
    assert (few in out) == (images < 2) and ("\nKID x 100" in out) == (images > 1)
    assert "no cat rate: network my_networks:Corners is no classifier" in out
    assert (few in (tmp_path / "out" / "metrics.json").read_text()) == (images < 2)


def test_names_do_nothing_to_a_terminal(
    here: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, name = Image.open(run / "images" / "0.png"), "a\x1b]0;title\x07\u202eb"
    for folder, names in (("sources", [f"{name}.png", f"{name}2.png"]), ("made", [f"{name}.png"])):
        (tmp_path / folder).mkdir()
        for file in names:
            image.save(tmp_path / folder / file)
    args = ["evaluate", f"--source={tmp_path / 'sources'}", f"--translated={tmp_path / 'made'}"]
    assert main(args) == 0
    told = capsys.readouterr().out
    assert r"1 of 2 sources, such as a\x1b]0;title\x07\u202eb2.png" in told
    (tmp_path / "sources" / f"{name}.png").write_bytes(b"broken")
    assert main(args) == 1
    told += (error := capsys.readouterr().err)
    assert r"cannot read image" in error and r"a\x1b]0;title\x07\u202eb.png" in error
    assert not {"\x1b", "\x07", "\u202e"} & set(told)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "batch_size"), [(2, 7), (3, 1)])
def test_processes_do_not_change_the_figures(
    here: Path, run: Path, tmp_path: Path, processes: int, batch_size: int
) -> None:
    """7 images: the shards are uneven, and Lightning's own padding would count some twice."""
    command = options(
        *(here, tmp_path, "--data.batch_size", batch_size),
        *("--trainer.devices", processes, "--trainer.strategy", "ddp"),
    )
    assert ranks.run(command, processes, here)[0] == 0
    mine, theirs = figures(tmp_path), figures(run)
    assert mine.keys() == theirs.keys()
    # Batches of other sizes round otherwise, so that a pixel may differ by one level.
    for name, figure in theirs.items():
        assert mine[name]["value"] == pytest.approx(figure["value"], rel=1e-3, abs=1e-4), name
        assert (mine[name]["n"], mine[name]["untranslated"]) == (
            figure["n"],
            figure["untranslated"],
        )
    keys = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in keys] == [f"{index}.png" for index in range(7)]


def test_samples_of_a_domain_are_scored(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def test(output: Path, batch_size: int) -> dict[str, Any]:
        given = {
            "model.init_from": here / "cat",
            "model.resolution": R,
            "data.root": here / "real",
            "data.val_fraction": 0.9,
            "data.num_workers": 0,
            "scores.samples": 5,
            "scores.steps": 3,
            "scores.batch_size": batch_size,
            "scores.network": "my_networks:Corners",
            "output": output,
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
        }
        assert main(["test", *(f"--{name}={value}" for name, value in given.items())]) == 0
        return figures(output)

    whole, parts = test(tmp_path / "whole", 5), test(tmp_path / "parts", 2)
    assert whole["KID"]["n"] == 5 and whole["KID"]["untranslated"] is None
    assert "PSNR" not in whole
    assert parts["KID"]["value"] == pytest.approx(whole["KID"]["value"], abs=1e-4)
    assert len(list((tmp_path / "parts" / "images").glob("*.png"))) == 5
    assert "KID x 100" in capsys.readouterr().out


def test_classes_are_counted(here: Path) -> None:
    def judged(*labels: int) -> Columns:
        rows, kept = torch.randn(len(labels), 4), Columns()
        cat = torch.full((len(labels),), 281)
        kept.add(
            [str(index) for index in range(len(labels))],
            {"row": rows, "label": torch.tensor(labels), "source row": rows, "source label": cat},
        )
        return kept

    images, reference = judged(151, 268, 281, 0), judged(160, 160, 160, 160)
    rate, *_ = score(images, reference, protocol_of("default"), "dog")
    assert (rate.figure, rate.value, rate.real, rate.untranslated) == ("dog rate", 0.5, 1.0, 0.0)
    assert rate.standard_error == 0.25
    # Without a reference, or with one image, there is nothing to compare sets of.
    alone = score(images, Columns(), protocol_of("default"), "dog")
    assert [s.figure for s in alone] == ["dog rate"]
    assert score(judged(1), reference, protocol_of("default")) == []


def test_a_missing_network_stops_the_run_before_it_starts(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = options(here, tmp_path / "out", "--scores.network", "clean-fid")
    assert main([*missing, "--scores.weights", "nowhere.pt"]) == 1
    assert "there is no file nowhere.pt" in capsys.readouterr().err
    assert not (tmp_path / "out" / "images").exists()
    assert main(options(here, tmp_path / "out", "--scores.protocol", "mine")) == 2
    assert "error: --scores.protocol must be one of" in capsys.readouterr().err
