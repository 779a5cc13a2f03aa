"""The callbacks of `predict`: the files that a run leaves, the picture and the page of it."""

import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from cyclelight.callbacks import gallery
from cyclelight.callbacks.gallery import FigureSource, Gallery, _fit, _font, draw_gallery
from cyclelight.callbacks.writer import ImageWriter
from cyclelight.diffusion.pixels import to_float
from cyclelight.runs.page import Pair, evenly
from cyclelight.runs.report import Summary
from cyclelight.runs.task import Task
from datamodules import DomainImages, TranslationImages

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

R = 64
SIDE = 128  # In which 64 pixels are shown.
RED, GREEN, BLUE, YELLOW = (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)


class Negative(Task):
    """Turns each colour into its negative; may fail at an image."""

    resolution, steps, seed = R, 1, 7

    def __init__(self, fails_at: str = "", error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.fails_at, self.error = fails_at, error

    def describe(self) -> str:
        return "the negative"

    def made_by(self) -> dict[str, str]:
        return {}

    def make(self, batch: Mapping[str, Any]) -> Tensor:
        if self.fails_at in batch["key"]:
            raise self.error("stopped")
        return -to_float(batch["image"])


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    (tmp_path / "cats" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/c.png"):
        Image.new("RGB", (80, 70), RED).save(tmp_path / "cats" / name)
    return tmp_path / "cats"


def predict(output: Path, data: Any, module: LightningModule, *callbacks: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=output,
        callbacks=list(callbacks) or [ImageWriter(), Gallery()],
    )
    trainer.predict(module, datamodule=data, return_predictions=False)


def cards(run: Path, attribute: str = "data-key") -> list[str]:
    """That attribute of each pair of the run's page."""
    text = (run / "gallery.html").read_text(encoding="utf-8")
    return [
        (re.findall(f' {attribute}="(.*?)"', card) or [""])[0]
        for card in re.findall("<article .*?>", text)
    ]


def boxes(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pixels are of that colour, in units of a shown image."""
    near = (abs(np.asarray(picture).astype(int) - colour) <= 3).all(-1)
    return round(float(near.sum()) / SIDE**2)


def test_a_run_leaves_images_manifest_and_gallery(cats: Path, tmp_path: Path) -> None:
    (tmp_path / "dogs").mkdir()
    Image.new("RGB", (9, 9), BLUE).save(tmp_path / "dogs" / "rex.png")
    data = TranslationImages(str(cats), str(tmp_path / "dogs"), batch_size=2)
    predict(tmp_path / "run", data, Negative())
    with Image.open(tmp_path / "run" / "images" / "sub" / "c.png") as image:
        np.testing.assert_array_equal(image, np.full((R, R, 3), (55, 255, 255)))
    lines = (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == [
        *("images/a.png", "images/b.png", "images/sub/c.png")
    ]
    assert json.loads(lines[1]) == {
        "key": "b.jpg",
        "source": str(cats / "b.jpg"),
        "digest": blake2b(bytes(RED) * R * R, digest_size=8).hexdigest(),
        "output": "images/b.png",
        "seed": 7,
    }
    with Image.open(tmp_path / "run" / "gallery.png") as picture:
        assert [boxes(picture, c) for c in (RED, (55, 255, 255), BLUE)] == [3, 3, 1]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"images", "manifest.jsonl", "gallery.png", "gallery.html"}
    assert cards(tmp_path / "run") == ["a.png", "b.jpg", "sub/c.png"]
    page = (tmp_path / "run" / "gallery.html").read_text(encoding="utf-8")
    assert "<h1>the negative</h1>" in page and "real images of the target" in page
    assert [page.count(f'<img class="{kind}"') for kind in ("source", "translated", "real")] == [
        *(3, 3, 1)
    ]


class Redness(Callback):
    """Measures something; may know nothing yet."""

    def __init__(self, name: str, values: dict[str, float]) -> None:
        self.name, self.values = name, values

    def per_image(self) -> dict[str, dict[str, float]]:
        return {key: {self.name: value} for key, value in self.values.items()}

    def table(self) -> list[Summary]:
        return [Summary(f"mean {self.name}", "0.78")] if self.values else []


def test_the_page_has_the_figures_of_other_callbacks(cats: Path, tmp_path: Path) -> None:
    red, late = Redness("red", {"a.png": 0.5, "sub/c.png": 1.0, "gone.png": 2.0}), Redness("x", {})
    assert isinstance(red, FigureSource) and not isinstance(Gallery(), FigureSource)
    callbacks = (ImageWriter(), Redness("PSNR", {"b.jpg": 20.0}), red, late)
    predict(tmp_path, TranslationImages(str(cats)), Negative(), *callbacks, Gallery())
    assert cards(tmp_path, "data-f0") == ["", "20.0", ""]
    assert cards(tmp_path, "data-f1") == ["0.5", "", "1.0"]
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert re.findall('data-sort="(.*?)"', page) == ["name", "PSNR", "red"]
    assert re.findall('<th scope="row">(.*?)</th>', page) == ["mean PSNR", "mean red"]


def test_picture_and_page_show_as_many_as_they_may(cats: Path, tmp_path: Path) -> None:
    gallery = Gallery(max_pairs=1, page_pairs=2)
    predict(tmp_path, TranslationImages(str(cats)), Negative(), ImageWriter(), gallery)
    with Image.open(tmp_path / "gallery.png") as picture:
        assert boxes(picture, RED) == 1
    assert cards(tmp_path) == ["a.png", "b.jpg"]
    assert "2 of 3 images" in (tmp_path / "gallery.html").read_text(encoding="utf-8")


@pytest.fixture
def keep_sigint() -> Iterator[None]:
    """Lightning ignores Ctrl-C once it has seen one: that must not outlive the test."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keep_sigint")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_finished_before_an_interruption_is_shown(
    cats: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    data = TranslationImages(str(cats), batch_size=2)
    with pytest.raises((SystemExit, RuntimeError)):
        predict(tmp_path / "run", data, Negative("sub/c.png", error))
    with Image.open(tmp_path / "run" / "gallery.png") as picture:
        assert [boxes(picture, c) for c in (RED, (55, 255, 255))] == [2, 2]
    assert cards(tmp_path / "run") == ["a.png", "b.jpg"]
    page = (tmp_path / "run" / "gallery.html").read_text(encoding="utf-8")
    assert "interrupted after 2 of 3 images" in page
    assert len((tmp_path / "run" / "manifest.jsonl").read_text().splitlines()) == 2


def test_an_interruption_before_the_first_image_leaves_no_gallery(
    cats: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        predict(tmp_path, TranslationImages(str(cats)), Negative("a.png", RuntimeError))
    assert not list(tmp_path.glob("gallery.*"))


def test_a_run_into_the_folder_of_another_tells(cats: Path, tmp_path: Path) -> None:
    predict(tmp_path / "run", TranslationImages(str(cats)), Negative())
    with pytest.warns(UserWarning, match="holds 2 images of an earlier run"):
        predict(tmp_path / "run", TranslationImages(str(cats / "a.png")), Negative())
    assert len((tmp_path / "run" / "manifest.jsonl").read_text().splitlines()) == 3
    with Image.open(tmp_path / "run" / "gallery.png") as picture:
        assert boxes(picture, RED) == 1  # Only its own.
    assert cards(tmp_path / "run") == ["a.png"]


def test_what_cannot_work_is_told_before_the_run(cats: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_pairs.*0"):
        Gallery(max_pairs=0)
    with pytest.raises(ValueError, match=r"page_pairs.*0"):
        Gallery(page_pairs=0)
    data = TranslationImages(str(cats))
    with pytest.raises(ValueError, match="add it before"):
        predict(tmp_path, data, Negative(), Gallery())
    with pytest.raises(ValueError, match="TranslationImages, got DomainImages"):
        predict(tmp_path, DomainImages(str(cats)), Negative())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        predict(tmp_path / "file", data, Negative())


def pair(resolution: int, label: str = "x") -> Pair:
    size = (resolution, resolution)
    return Pair(Image.new("RGB", size, RED), Image.new("RGB", size, GREEN), label)


@pytest.mark.parametrize(("resolution", "side"), [(32, 128), (48, 144), (200, 200), (512, 256)])
def test_images_are_shown_at_a_size_to_be_seen(resolution: int, side: int) -> None:
    picture = np.asarray(draw_gallery([pair(resolution)], "title", "note"))
    rows, columns = np.nonzero((picture == GREEN).all(-1))
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == side
    assert len(rows) == side**2


def test_captions_make_room_for_themselves() -> None:
    """Up to four lines of them, and each row as high as its highest."""
    image, line = Image.new("RGB", (64, 64), GREEN), 18
    bare, *told = (
        draw_gallery([Pair(image, image, "x", {}, captions), pair(64)], "title", "note")
        for captions in ((), ["a"], ["a", "b"], ["word " * 20], ["word " * 20_000])
    )
    assert [picture.height - bare.height for picture in told] == [n * line for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_all_pairs_and_whole_references_fit(count: int, known: bool) -> None:
    references = [Image.new("RGB", (64, 64), BLUE)] * 16
    long = "a rather long name of a folder/" * 3
    truth = Image.new("RGB", (64, 64), YELLOW) if known else None
    pairs = [replace(pair(64, long), truth=truth)] * count
    picture = draw_gallery(pairs, "word " * 60, "note", references)
    pixels = np.asarray(picture)
    for colour, number in ((RED, count), (GREEN, count), (YELLOW, count * known)):
        assert (pixels == colour).all(-1).sum() == number * SIDE**2
    shown = (pixels == BLUE).all(-1).sum() / SIDE**2
    assert shown >= 4 and shown == int(shown)
    edges = [pixels[:, :20], pixels[:, -20:], pixels[:20], pixels[-10:]]
    assert all((edge == 255).all() for edge in edges)


def test_right_results_stand_right_of_the_results() -> None:
    truth = Image.new("RGB", (64, 64), YELLOW)
    pixels = np.asarray(draw_gallery([replace(pair(64), truth=truth)] * 3, "title", "note"))
    corners = [np.argwhere((pixels == colour).all(-1)).min(0) for colour in (RED, GREEN, YELLOW)]
    step = [0, SIDE + gallery.SEAM]
    assert (np.diff(corners, axis=0) == [step, step]).all()


def test_evenly() -> None:
    assert evenly([1, 2, 3], 5) == [1, 2, 3]
    assert evenly(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert evenly([], 5) == []


def test_names_of_any_length_are_fitted_at_once() -> None:
    font, began = _font(13), time.process_time()
    for text in ("W" * 20_000, "i" * 20_000, "e\u0301" * 10_000, "\u202e\x1b[31m" * 4_000):
        shown = _fit(text, font, 256)
        assert shown.startswith("...") and font.getlength(shown) <= 256
        assert font.getlength("." + shown) > 240  # As much as there is room for.
        assert shown.isprintable()
    assert time.process_time() - began < 5  # It took a minute each.
    draw_gallery([pair(64, "a" * 20_000)] * 2, "word " * 20_000, "note", ())
    for short, width in (("short", 256), ("any", 2)):
        assert _fit(short, font, width) == (short if width > 2 else "")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("no room")])
def test_a_gallery_that_fails_fails_no_run(
    cats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(gallery, "write_page", fail)
    told = f"no gallery of this run, whose images are all there: .*{error.args[-1]}"
    with pytest.warns(UserWarning, match=told):
        predict(tmp_path / "run", TranslationImages(str(cats)), Negative())
    assert len(list((tmp_path / "run" / "images").rglob("*.png"))) == 3
