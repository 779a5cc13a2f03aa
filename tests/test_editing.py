"""`lightning edit`: images and texts, tables of them, and what is refused."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.engine import Engine
from cyclelight.cli import main
from cyclelight.commands.edit import with_options
from cyclelight.commands.guard import UsageError
from cyclelight.diffusion.pixels import to_float, to_uint8
from datamodules.edit_images import EditImages
from datamodules.edit_rows import keyed, read_edits

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

ROOT = Path(__file__).parents[1]
EMOJI = ROOT / "checkpoints" / "emoji_text"
R = 32
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
EXACT = ["--trainer.precision", "32-true", "--model.method.steps", "3"]


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    """Three pictures of noise."""
    folder = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png", "more/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (R, R, 3), dtype=np.uint8)).save(folder / name)
    return folder


def edit(*words: object) -> int:
    return main(["edit", *map(str, words), *QUIET, "--model.model", str(EMOJI)])


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path, formats=["PNG"])))


def manifest(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def test_one_image(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `translate` between the two prompts, and into `edited` where nothing else is said."""
    monkeypatch.chdir(tmp_path)
    assert edit(photos / "a.png", "red heart, google", "blue heart, google", *EXACT) == 0
    model = cyclelight.load_text_model(EMOJI)
    Engine().speed_up_network(model.denoiser)  # Laid out as in a run, for equal bits.
    source, target = (
        model.prompted([f"{colour} heart, google"], scale=2.0) for colour in ("red", "blue")
    )
    x = to_float(pixels(photos / "a.png")[None])
    method = cyclelight.CycleDiffusion(steps=3, eta=1.0, strength=0.8, cleanup=0)
    y = to_uint8(cyclelight.translate(source, target, x, method=method, keys=["a.png"]))
    assert torch.equal(pixels(tmp_path / "edited" / "images" / "a.png"), y[0])
    (entry,) = manifest(tmp_path / "edited")
    assert entry["source_text"] == "red heart, google"
    assert entry["target_text"] == "blue heart, google"
    assert set(json.loads((tmp_path / "edited" / "made_by.json").read_text())) == {"model"}
    # Once more there is nothing to do; other texts are another run.
    again = (photos / "a.png", "red heart, google", "green heart, google", *EXACT)
    assert edit(*again) == 2
    assert edit(*again, "--overwrite") == 0


def test_a_table(photos: Path, tmp_path: Path) -> None:
    """Rows with texts and scales of their own, in batches; equal ones give the image back."""
    rows = [
        {"image": "a.png", "source_text": "cat, google", "target_text": "cat, google"},
        {"image": "a.png", "source_text": "cat, google", "target_text": "dog, google"},
        {"image": "more/c.png", "source_text": "", "target_text": "dog, google", "scale": 4},
    ]
    table = photos / "edits.json"
    table.write_text(json.dumps(rows))
    output = tmp_path / "out"
    assert edit(table, "--output", output, *EXACT) == 0
    assert torch.equal(pixels(output / "images" / "a.png"), pixels(photos / "a.png"))
    model = cyclelight.load_text_model(EMOJI)
    x = to_float(pixels(photos / "more" / "c.png")[None])
    source, target = (model.prompted(text, scale=4.0) for text in ("", "dog, google"))
    method = cyclelight.CycleDiffusion(steps=3, eta=1.0, strength=0.8, cleanup=0)
    y = cyclelight.translate(source, target, x, method=method, keys=["more/c.png"])
    made = pixels(output / "images" / "more" / "c.png").float()
    assert_close(made, to_uint8(y)[0].float(), rtol=0, atol=1)  # Of another batch size.
    scales = {entry["key"]: entry["scale"] for entry in manifest(output)}
    assert scales == {"a.png": None, "a-2.png": None, "more/c.png": 4.0}


def test_oblong_images_are_cropped_or_laid_on_white(tmp_path: Path) -> None:
    """Equal texts give back what the model saw of them."""
    ramp = np.linspace(0, 240, 2 * R)[None, :, None] * np.array([1.0, 0.5, 0.2])
    colours = np.broadcast_to(ramp, (R, 2 * R, 3)).round().astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "wide.png")
    words = (tmp_path / "wide.png", "cat, google", "cat, google", *EXACT)
    assert edit(*words, "--output", tmp_path / "crop") == 0
    made = pixels(tmp_path / "crop" / "images" / "wide.png").numpy()
    np.testing.assert_array_equal(made, colours[:, R // 2 : -R // 2])
    assert edit(*words, "--output", tmp_path / "box", "--data.fit_mode", "letterbox") == 0
    made = pixels(tmp_path / "box" / "images" / "wide.png").numpy()
    assert (made[: R // 4] == 255).all() and (made[-R // 4 :] == 255).all()
    inner = made[R // 4 : -R // 4].astype(float)
    shrunk = colours.reshape(R // 2, 2, R, 2, 3).mean((1, 3))
    np.testing.assert_allclose(inner[:, 2:-2], shrunk[:, 2:-2], rtol=0, atol=2)


def test_a_mask_keeps_the_outside(photos: Path, tmp_path: Path) -> None:
    """Each edit has its own; texts and masks go together."""
    table = photos / "t.csv"
    rows = ["image,source_text,target_text", 'a.png,"cat, google","red heart, google"']
    table.write_text("\n".join([*rows, rows[1]]))
    inside = np.zeros((R, R), np.uint8)
    inside[8:24, 8:24] = 255
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(inside).save(masks / "a.png")
    Image.fromarray(255 - inside).save(masks / "a-2.png")
    output = tmp_path / "out"
    assert edit(table, "--output", output, "--data.masks", masks, *EXACT) == 0
    x = pixels(photos / "a.png")
    for name, may_change in (("a.png", inside > 0), ("a-2.png", inside == 0)):
        changed = (pixels(output / "images" / name) != x).any(-1).numpy()
        assert not changed[~may_change].any() and changed[may_change].mean() > 0.5
    assert {"mask_digest", "target_text"} <= set(manifest(output)[0])


def test_a_method_without_masks_refuses_them(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (photos / "a.png", "cat", "dog", "--output", tmp_path / "out")
    more = ("--data.masks", photos, "--model.method", "DDIB", "--model.method.steps", "3")
    assert edit(*words, *more) != 0
    assert "DDIB takes no masks" in capsys.readouterr().err


def test_attention_is_controlled(photos: Path, tmp_path: Path) -> None:
    """By options, as in Python."""
    words = (photos / "a.png", "red heart, google", "blue heart, google", *EXACT)
    blend = {"threshold": 0.5, "source_words": ["heart,"]}
    more = ("--model.control.cross", "0.9", "--model.control.reweight", '{"blue": 1.5}')
    more += ("--model.control.blend", json.dumps(blend))
    assert edit(*words, "--output", tmp_path / "out", *more) == 0
    model = cyclelight.load_text_model(EMOJI)
    method = cyclelight.CycleDiffusion(steps=3, eta=1.0, strength=0.8, cleanup=0)
    control = cyclelight.AttentionControl(
        cross=0.9,
        reweight={"blue": 1.5},
        blend=cyclelight.LocalBlend(threshold=0.5, source_words=["heart,"]),
    )
    timesteps = method.grid(cyclelight.NoiseSchedule()).timesteps
    source, target = model.controlled(
        *(["red heart, google"], ["blue heart, google"], control, timesteps),
        **{"source_scale": 2.0, "scale": 2.0},
    )
    x = to_float(pixels(photos / "a.png")[None])
    y = to_uint8(cyclelight.translate(source, target, x, method=method, keys=["a.png"]))
    assert torch.equal(pixels(tmp_path / "out" / "images" / "a.png"), y[0])
    assert "cross: 0.9" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.method", "SDEdit"], "control: SDEdit does not run source and target step by"),
        (["--model.method.parallel", "8"], "control takes one timestep at a time"),
        (["--model.engine.compile", "true"], "control does not go with a compiled network"),
        (["--model.control.cross", "2"], "cross must be in"),
        (
            ["--model.control.kind", "replace"],
            "control of a.png: kind: 'replace' takes texts of as",
        ),
        (["--model.control.words", '{"x": 0.5}'], "control of a.png: words: 'x' is not among"),
        (
            ["--model.control.blend.target_words", "[cow]"],
            "control of a.png: target_words: 'cow' is not among the words of 'a big dog'",
        ),
        (["--model.control.blend.threshold", "1"], "threshold must be at least 0 and below 1"),
        (
            ["--model.control.blend.start", "0", "--model.method.cleanup", "100"],
            "cleanup must be 0 with a blend",
        ),
    ],
)
def test_what_cannot_be_controlled_is_refused(
    photos: Path, tmp_path: Path, words: list[str], message: str, capsys: Any
) -> None:
    given = (photos / "a.png", "a cat", "a big dog", "--output", tmp_path / "out")
    assert edit(*given, "--model.control.cross", "0.5", *words) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "images").exists()


def test_other_methods_and_scales(photos: Path, tmp_path: Path) -> None:
    words = (photos / "a.png", "cat", "dog")
    for name, more in {
        "SDEdit": ["--model.method", "SDEdit"],
        "EditFriendly": ["--model.method", "EditFriendly", "--model.source_scale", "1"],
    }.items():
        output = tmp_path / name
        assert edit(*words, "--output", output, *more, *EXACT) == 0
    kept = (tmp_path / "EditFriendly" / "config.yaml").read_text()
    assert "source_scale: 1.0" in kept
    one, other = (pixels(tmp_path / n / "images" / "a.png") for n in ("SDEdit", "EditFriendly"))
    assert not torch.equal(one, other)


def test_the_fastest_precision_gives_the_image_back_too(photos: Path, tmp_path: Path) -> None:
    """What a run takes where none is named; states are float32 in each."""
    words = (photos, "cat, google", "cat, google")
    output = tmp_path / "out"
    more = ("--trainer.precision", "bf16-mixed", "--model.method.steps", "3")
    assert edit(*words, "--output", output, *more) == 0
    for name in ("a.png", "b.png", "more/c.png"):
        assert torch.equal(pixels(output / "images" / name), pixels(photos / name))


def test_published_tables_are_read(photos: Path) -> None:
    published = photos / "published.json"
    row = {"encode_text": "a cat", "decode_text": "a dog", "img_path": "a.png"}
    published.write_text(json.dumps([row]))
    (one,) = read_edits(published)
    assert (one.image, one.source_text, one.target_text) == (photos / "a.png", "a cat", "a dog")
    table = photos / "table.csv"
    table.write_text(
        'image,source_text,target_text,scale\na.png,"a cat, red",a dog,2\nb.png,x,y,\n'
    )
    first, second = read_edits(table)
    assert (first.source_text, first.scale, second.scale) == ("a cat, red", 2.0, None)
    assert read_edits(table, photos)[1].image == photos / "b.png"


def test_the_committed_edits_of_photographs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the files that the script writes, and by any tokenizer of CLIP's kind."""
    photographs = ROOT / "docs" / "demo" / "photographs"
    monkeypatch.setattr(sys, "argv", ["photographs.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "benchmarks" / "photographs.py"), run_name="__main__")
    data = EditImages(str(photographs / "edits.csv"), root=str(tmp_path))
    assert len(data.keys) == 24
    data.load(64)
    assert len(data.loaded) == 24  # Each is decoded.
    known = re.findall(r"^\| (\w+) \| \d+ x \d+", (photographs / "README.md").read_text(), re.M)
    assert {path.stem for _, path in data.files} == set(known)
    for texts in data.texts.values():
        source, target = texts["source_text"], texts["target_text"]
        assert source != target
        # A letter is at most a token, and a space none.
        assert max(len(text.replace(" ", "")) for text in (source, target)) <= 75


def test_pie_bench_is_read(tmp_path: Path) -> None:
    """Its folder, as its makers describe it."""
    images = tmp_path / "annotation_images" / "0_random_140"
    images.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "000000000000.jpg")
    entry = {
        "image_path": "0_random_140/000000000000.jpg",
        "original_prompt": "a [round] cake with orange frosting",
        "editing_prompt": "a [square] cake with orange frosting",
        "editing_type_id": "0",
        "blended_word": "cake cake",
        "mask": [0, 262144],
    }
    (tmp_path / "mapping_file.json").write_text(json.dumps({"000000000000": entry}))
    data = EditImages(str(tmp_path))
    assert data.texts[data.keys[0]] == {
        "source_text": "a round cake with orange frosting",
        "target_text": "a square cake with orange frosting",
    }
    (tmp_path / "mapping_file.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"half a PIE-Bench: it has no mapping_file.json"):
        EditImages(str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mapping_file.json").write_text(json.dumps({"0": entry}))
    with pytest.raises(FileNotFoundError, match="half a PIE-Bench: it has no folder annotation"):
        EditImages(str(other))


def test_edits_of_one_image_have_keys_of_their_own(photos: Path) -> None:
    rows = [("a.png", "x"), ("b.png", "x"), ("a.png", "y"), ("a.png", "z")]
    table = photos / "t.csv"
    lines = [f"{image},s,{target}" for image, target in rows]
    table.write_text("\n".join(["image,source_text,target_text", *lines]))
    edits = keyed(read_edits(table))
    assert list(edits) == ["a-2.png", "a-3.png", "a.png", "b.png"]
    assert edits["a-3.png"].target_text == "z"
    Image.new("RGB", (4, 4)).save(photos / "a-2.png")
    table.write_text(table.read_text() + "\na-2.png,s,t")
    with pytest.raises(ValueError, match=r"two edits would be called a-2.png"):
        keyed(read_edits(table))


GOOD = {"image": "a.png", "source_text": "x", "target_text": "y"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", "[", "t.json cannot be read as JSON"),
        ("t.json", "3", "must hold a list of objects"),
        ("t.json", "[]", "has no rows"),
        ("t.csv", "image,source_text,target_text\n", "has no rows"),
        ("t.json", json.dumps([GOOD, 3]), "1 bad rows: row 2: not an object, but int"),
        (
            "t.json",
            json.dumps([{**GOOD, "target_text": " "}, GOOD, {**GOOD, "image": "no.png"}]),
            "2 bad rows: row 1: no target_text .*; row 3: no such image .*no.png",
        ),
        ("t.json", json.dumps([{**GOOD, "scale": "big"}]), "row 1: scale must be a number, got 'b"),
        ("t.csv", "image,source_text\na.png,x\n", "row 1: no target_text"),
        ("t.json", json.dumps([{}] * 9), "has 9 bad rows: row 1: .*row 3: .*; and 6 more"),
    ],
)
def test_bad_rows_are_named(photos: Path, name: str, content: str, message: str) -> None:
    (photos / name).write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        EditImages(str(photos / name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "cat"], "takes an image and two texts, or a table, .* got 2 words"),
        (["a.png"], "--data.target_text: say what the images are to show"),
        (["no.png", "cat", "dog"], "--data.source: no such file or folder no.png"),
        (["no.json"], "--data.source: no such file no.json"),
        (["a.png", "cat", "dog", "--model.scale", "nan"], "--model.scale: expected float, got nan"),
        (["a.png", "cat", "dog", "--model.resolution", "30"], "--model.resolution must be a mult"),
        (["a.png", "cat", "dog", "--model.model", "nowhere"], "--model.model: nowhere does not"),
        (["a.png", "cat", "dog", "--model.negative", "no " * 40], "--model.negative: a text may h"),
        (["a.png", "cat", "dog", "--model.method.steps", "0"], "--model.method.steps must be in"),
        (["a.png", "cat", "dog", "--data.root", "."], "--data.root is for the images of a table"),
    ],
)
def test_what_cannot_be_is_refused(
    photos: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos)
    given = words if "--model.model" in words else [*words, "--model.model", str(EMOJI)]
    assert main(["edit", *given, *QUIET]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, told[-1]), told
    assert not (photos / "edited").exists()


def test_a_text_that_is_too_long_is_told_before_anything_is_made(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = photos / "t.json"
    table.write_text(json.dumps([GOOD, {**GOOD, "image": "b.png", "target_text": "z " * 30}]))
    assert edit(table, "--output", tmp_path / "out") != 0
    told = capsys.readouterr().err
    assert "target_text of b.png: a text may have 22 tokens, this one has 30" in told
    assert not (tmp_path / "out" / "images").exists()


def test_words_become_options() -> None:
    assert with_options(["p.png", "a", "b", "--x", "1"]) == [
        *("--x", "1", "--data.source=p.png", "--data.source_text=a", "--data.target_text=b"),
        *("--output", "edited"),
    ]
    assert with_options(["--config", "c.yaml"]) == ["--config", "c.yaml"]
    with pytest.raises(UsageError):
        with_options(["a", "b", "c", "d"])
