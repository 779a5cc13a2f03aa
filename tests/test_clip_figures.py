"""S_CLIP and S_D-CLIP: by hand, by transformers, and in the figures of a run."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from cyclelight.cli import main
from cyclelight.domains.model_files import without_bars
from cyclelight.guidance.clip import ClipEnergy
from cyclelight.metrics.edits import (
    Seen,
    clip_score,
    directional_clip_score,
    source_match,
)
from cyclelight.text.clip import Clip
from cyclelight.text.load import load_text_model

# Lightning 2.6 with torch 2.15.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    # Of Lightning; what is caught while a warning is awaited is raised again from elsewhere.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]

ROOT = Path(__file__).parents[1] / "checkpoints"
CLIP = ROOT / "emoji_clip"
TEXTS = ["red heart, google", "cat face, google"]


def test_figures_by_hand() -> None:
    """In the plane: unit vectors at given angles."""

    def at(*degrees: float) -> torch.Tensor:
        angles = np.deg2rad(degrees)
        return torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1)).float()

    seen = Seen(
        image=at(90, 0, 90), source=at(0, 0, 0), text=at(90, 90, 0), source_text=at(0, 30, 0)
    )
    assert_close(clip_score(seen), torch.tensor([1.0, 0.0, 0.0]).double(), atol=1e-7, rtol=0)
    match = torch.tensor([1.0, 3**0.5 / 2, 1.0]).double()
    assert_close(source_match(seen), match, atol=1e-7, rtol=0)
    # The change is the texts', there is none, and none was wanted.
    right = torch.tensor([1.0, 0.0, 0.0]).double()
    assert_close(directional_clip_score(seen), right, atol=1e-6, rtol=0)
    # Chords between 0 and 90, and 0 and 60 degrees: directions of 135 and 120.
    turned = Seen(image=at(90), source=at(0), text=at(60), source_text=at(0))
    expected = torch.tensor([np.cos(np.deg2rad(15))])
    assert_close(directional_clip_score(turned), expected, atol=1e-6, rtol=0)
    back = Seen(image=at(0), source=at(90), text=at(60), source_text=at(0))
    assert_close(directional_clip_score(back), -expected, atol=1e-6, rtol=0)


def test_vectors_are_those_of_transformers() -> None:
    ours = Clip(str(CLIP))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8))
    model = CLIPModel.from_pretrained(CLIP).float().eval()
    tokens = CLIPTokenizer.from_pretrained(CLIP)(TEXTS, padding=True, return_tensors="pt")
    processor: Any = CLIPImageProcessor.from_pretrained(CLIP)
    pixels = processor(images=list(images.numpy()), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = model(**tokens, pixel_values=pixels)
    assert_close(ours.see(images), theirs.image_embeds, rtol=0, atol=1e-5)
    # Padded to the longest by them, to the end by us.
    assert_close(ours.read(TEXTS), theirs.text_embeds, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours.read(TEXTS), Clip(str(CLIP)).read(TEXTS))
    with pytest.raises(ValueError, match="a text may have 22 tokens, this one has 30"):
        ours.read(["red " * 30])


@pytest.fixture()
def edits(tmp_path: Path) -> Path:
    """A red square, twice to be edited, and once as it is."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    rows = ["image,source_text,target_text", *(['a.png,"red square, google",b'] * 2)]
    rows[1] = 'a.png,"red square, google","blue circle, google"'
    rows[2] = 'a.png,"red square, google","red square, google"'
    (tmp_path / "edits.csv").write_text("\n".join(rows))
    return tmp_path / "edits.csv"


def edit(table: Path, output: Path, *more: str) -> int:
    options = {
        "model.model": ROOT / "emoji_text",
        "model.method.steps": 3,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.enable_progress_bar": "false",
        "scores.clip": CLIP,
        "output": output,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return main(["edit", str(table), *words, *more])


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path, formats=["PNG"])))[None]


def test_loading_draws_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    """Where transformers would draw one, which it does again for others."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    try:
        CLIPModel.from_pretrained(CLIP, local_files_only=True)
        assert "Loading weights" in capfd.readouterr().err
        Clip(str(CLIP))
        load_text_model(ROOT / "emoji_text")
        energy = ClipEnergy(str(CLIP), "a red apple")
        energy.load(32)
        assert not capfd.readouterr().err
        assert transformers_logging.is_progress_bar_enabled()
        with pytest.raises(KeyError), without_bars():
            assert not transformers_logging.is_progress_bar_enabled()
            raise KeyError
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        if not shown:
            transformers_logging.disable_progress_bar()


def test_figures_of_a_run(edits: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.warns(UserWarning, match=r"2 of 2 images, such as a-2.png .*below 1.0"):
        assert edit(edits, output, "--scores.least_match", "1") == 0
    figures = json.loads((output / "metrics.json").read_text())["figures"]
    found = {figure["figure"]: figure for figure in figures}
    with (output / "metrics.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    clip = Clip(str(CLIP))
    made = {key: pixels(output / "images" / key) for key in ("a.png", "a-2.png")}
    source, text, other = (
        clip.see(pixels(tmp_path / "a.png"))[0].double(),
        *clip.read(["red square, google", "blue circle, google"]).double(),
    )
    image = clip.see(made["a.png"])[0].double()
    assert float(rows["a.png"]["S_CLIP"]) == pytest.approx(float(image @ other), abs=1e-5)
    done, wanted = image - source, other - text
    expected = float(done @ wanted / done.norm() / wanted.norm())
    assert float(rows["a.png"]["S_D-CLIP"]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(made["a-2.png"], pixels(tmp_path / "a.png"))
    assert float(rows["a-2.png"]["S_D-CLIP"]) == 0
    assert float(rows["a-2.png"]["source match"]) == pytest.approx(float(source @ text), abs=1e-5)
    mean = (float(rows["a.png"]["S_CLIP"]) + float(rows["a-2.png"]["S_CLIP"])) / 2
    assert found["S_CLIP"]["value"] == pytest.approx(mean, abs=1e-9)
    before = float(source @ other + source @ text) / 2
    assert found["S_CLIP"]["untranslated"] == pytest.approx(before, abs=1e-5)
    assert found["S_CLIP"]["standard_error"] > 0
    assert found["S_CLIP"]["protocol"] == "mean over images; CLIP emoji_clip"
    # Going on where all is done reads the images back: the same figures.
    kept = (output / "metrics.csv").read_text()
    with pytest.warns(UserWarning, match="hardly what their source text says"):
        assert edit(edits, output, "--scores.least_match", "1") == 0
    assert (output / "metrics.csv").read_text() == kept


def test_what_a_clip_cannot_judge_is_refused(
    edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert edit(edits, output, "--scores.clip", "nowhere") == 2
    assert "clip: nowhere is not a CLIP's folder: it has no config.json" in capsys.readouterr().err
    cats = ["--source", ROOT / "cat", "--target", ROOT / "dog"]
    words = [
        *("predict", "--model.source", str(cats[1]), "--model.target", str(cats[3])),
        *("--data.source", str(tmp_path / "a.png"), "--output", str(output)),
        *("--trainer.accelerator", "cpu", "--scores.clip", str(CLIP)),
    ]
    assert main(words) != 0
    told = capsys.readouterr().err
    assert "clip judges edits by their texts, and a.png has no source_text" in told
    (edits.parent / "broken").mkdir()
    with pytest.raises(FileNotFoundError, match=r"clip: .*broken is not a CLIP's folder"):
        Clip(str(edits.parent / "broken"))
