"""Distillation: the student, its data, its training, its folder, the method OneStep, ONNX."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from trainings import make_images

import cyclelight
from cyclelight.cli import main
from cyclelight.domains.translator import Translator, load_translator, save_translator
from cyclelight.methods.one_step import OneStep
from cyclelight.modules.distillation import DistillationModule, gradient_l1
from cyclelight.networks.cut import CUTSettings
from cyclelight.networks.one_step import OneStepSettings, OneStepUNet
from datamodules import PairedImages

ROOT = Path(__file__).parents[1]
R = 16
TINY = OneStepSettings((32,))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scrambled(directions: int = 1, settings: OneStepSettings = TINY) -> OneStepUNet:
    """A student whose weights are all drawn, so that it does not give images back."""
    network = settings.build(resolution=R, channels=3, directions=directions)
    for number, weight in enumerate(network.parameters()):
        weight.data = drawn(*weight.shape, seed=number) / max(1, weight[0].numel()) ** 0.5
    return network.eval().requires_grad_(False)


def folder(root: Path, directions: int = 1) -> Path:
    names = tuple("abcdef"[:directions])
    return save_translator(root, Translator(scrambled(directions), names, {"data_licence": "CC0"}))


# The network


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_new_student_gives_images_back(patch: int) -> None:
    network = OneStepSettings((16, 32), 1, (8 // patch,), patch).build(resolution=R, channels=1)
    x = drawn(2, 1, R, R)
    assert torch.equal(network(x), x)


def test_one_network_goes_several_ways() -> None:
    """Each image of a batch its own, as if it were alone."""
    network, x = scrambled(directions=3), drawn(3, 3, R, R)
    together = network(x, torch.tensor([0, 2, 1]))
    for image, way in ((0, 0), (1, 2), (2, 1)):
        alone = network(x[image : image + 1], way)
        assert_close(together[image : image + 1], alone, atol=1e-5, rtol=1e-5)
    assert (network(x, 0) - network(x, 1)).abs().max() > 0.1


def test_what_the_unet_sees() -> None:
    """A pixel of each square by itself is an image; what it says goes back to where that was."""
    network, x = scrambled(), drawn(1, 3, R, R)
    seen: dict[str, Tensor] = {}

    class Half(torch.nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            seen["sample"] = sample
            return type("Output", (), {"sample": sample / 2})

    network.unet = Half()
    assert_close(network(x), 1.5 * x)
    assert_close(seen["sample"][0, 0], x[0, 0, ::2, ::2])
    assert_close(seen["sample"][0, 5], x[0, 1, ::2, 1::2])


# The loss


def test_gradient_l1_by_hand() -> None:
    a: NDArray[Any] = drawn(2, 3, 4, 5).numpy()
    b: NDArray[Any] = drawn(2, 3, 4, 5, seed=1).numpy()
    wanted = []
    for y_hat, y in zip(a, b, strict=True):
        right = np.abs((y_hat[:, :, 1:] - y_hat[:, :, :-1]) - (y[:, :, 1:] - y[:, :, :-1]))
        down = np.abs((y_hat[:, 1:] - y_hat[:, :-1]) - (y[:, 1:] - y[:, :-1]))
        wanted.append((right.mean() + down.mean()) / 2)
    assert_close(gradient_l1(torch.tensor(a), torch.tensor(b)), torch.tensor(wanted))
    # A shift of all pixels is none of the differences.
    assert gradient_l1(torch.tensor(a) + 1, torch.tensor(a)).max() < 1e-6


def test_both_are_mirrored_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new student gives images back: where they are to stay as they are, it is without fault."""
    monkeypatch.setattr(DistillationModule, "log", lambda *_, **__: None)
    module = DistillationModule(resolution=R, network=TINY, flip=True)
    module._trainer = type("Trainer", (), {"global_step": 0, "global_rank": 0})()
    image = torch.randint(256, (16, R, R, 3), dtype=torch.uint8)
    ways = torch.zeros(16, dtype=torch.int64)
    batch = {"image": image, "target": image, "direction": ways}
    assert module.training_step(batch, 0) == 0
    mirrored = {**batch, "target": image.flip(2)}
    assert module.training_step(mirrored, 0) > 0.1


# The data


def negative(image: NDArray[Any]) -> NDArray[Any]:
    return 255 - image


def rolled(image: NDArray[Any]) -> NDArray[Any]:
    """Red becomes green, green blue, blue red."""
    return np.roll(image, 1, axis=2)


def teach(source: Path, target: Path, teacher: Any, of: str = "*.png") -> None:
    target.mkdir(parents=True)
    for path in sorted(source.glob(of)):
        made = teacher(np.asarray(Image.open(path)))
        Image.fromarray(made).save(target / f"{path.stem}.png")


def smooth_images(root: Path, count: int) -> None:
    """Of few colours and soft edges, all different."""
    root.mkdir(parents=True)
    random = np.random.default_rng(len(str(root.name)))
    for number in range(count):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((R, R), Image.Resampling.BICUBIC)
        image.save(root / f"{number:03d}.png")


def test_paired_images(tmp_path: Path) -> None:
    """Each with its own translation, from a folder or a run; those without are left out."""
    make_images(tmp_path / "a", 9), make_images(tmp_path / "b", 8)
    teach(tmp_path / "a", tmp_path / "run" / "images", negative, "0[0-6].png")
    (tmp_path / "run" / "manifest.jsonl").touch()
    make_images(tmp_path / "run", 1)  # The gallery.
    teach(tmp_path / "b", tmp_path / "b2a", rolled)
    (tmp_path / "a" / "02.png").rename(tmp_path / "a" / "02.PNG")
    sources, targets = [
        [str(tmp_path / n) for n in names] for names in (("a", "b"), ("run", "b2a"))
    ]
    data = PairedImages(sources, targets, 0.2, batch_size=4, num_workers=0)
    data.load(8)
    assert data.val_images is not None and data.names == ["run", "b2a"]
    seen = {}
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        fields = (batch[name] for name in ("key", "image", "target", "direction"))
        for key, image, target, way in zip(*fields, strict=True):
            assert key.startswith(f"{way}/")
            teacher = rolled if way else negative
            # What is shrunk before is within rounding of what is shrunk after.
            difference = teacher(image.numpy()).astype(int) - target.numpy()
            assert np.abs(difference).max() <= 1
            seen[key] = way
    kept = {key for key, _ in data.train_files} | set(data.val_images.keys)
    assert kept == {f"0/0{n}.png" for n in (0, 1, 3, 4, 5, 6)} | {"0/02.PNG"} | {
        f"1/0{n}.png" for n in range(8)
    }
    # Of the training pairs the last batch is dropped, as it is not full.
    assert len(seen) == len(data.val_images) + len(data.train_files) // 4 * 4


def test_unreadable_pairs_are_left_out(tmp_path: Path) -> None:
    make_images(tmp_path / "a", 9)
    teach(tmp_path / "a", tmp_path / "b", negative)
    for name in ("a/03.png", "b/05.png"):
        (tmp_path / name).write_bytes(b"no image")
    folders = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.warns(UserWarning, match="skipped 1 of"):
        data = PairedImages(*folders, num_workers=0, batch_size=1, on_error="skip")
        data.load(8)
    assert data.train_images is not None and data.val_images is not None
    assert {*data.train_images.keys, *data.val_images.keys} == {
        f"0/0{n}.png" for n in (0, 1, 2, 4, 6, 7, 8)
    }
    with pytest.raises(ValueError, match="cannot read image"):
        PairedImages(*folders, num_workers=0).load(8)


# The program


def fit_words(root: Path, output: Path, steps: int, *more: object) -> list[str]:
    given = {
        "model": "DistillationModule",
        "model.names": "[negative, rolled]",
        "model.resolution": R,
        "model.network.block_out_channels": "[32]",
        "model.gradient_weight": 0.5,
        "model.learning_rate": 3e-3,
        "model.warmup_steps": 10,
        "model.lr_schedule": "cosine",
        "model.ema_decay": 0.9,
        "data": "PairedImages",
        "data.source": f"[{root / 'a'}, {root / 'b'}]",
        "data.target": f"[{root / 'a2n'}, {root / 'b2r'}]",
        "data.num_workers": 0,
        "output": output,
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.check_val_every_n_epoch": 20,
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["fit", *pairs, *map(str, more)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images `a`, `b` and `new`, two linear teachers, and `whole`, a fit to both of them."""
    root = tmp_path_factory.mktemp("distillation")
    for name, count in (("a", 64), ("b", 64), ("new", 8)):
        smooth_images(root / name, count)
    teach(root / "a", root / "a2n", negative)
    teach(root / "b", root / "b2r", rolled)
    assert main(fit_words(root, root / "whole", 300)) == 0
    return root


def predict_words(runs: Path, output: Path, *more: object) -> list[str]:
    words = ["predict", "--model.method", "OneStep", "--model.method.generator"]
    words += [str(runs / "whole" / "generator"), "--data.source", str(runs / "new")]
    words += ["--output", str(output), "--trainer.accelerator", "cpu"]
    words += ["--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
    return [*words, *map(str, more)]


@pytest.mark.parametrize(("way", "teacher"), [(0, negative), (1, rolled)])
def test_a_student_becomes_its_teachers(
    runs: Path, tmp_path: Path, way: int, teacher: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Linear ones, on images that it has not seen: far nearer than the images themselves."""
    assert main(predict_words(runs, tmp_path, "--model.method.direction", way)) == 0
    generator = runs / "whole" / "generator"
    method = OneStep(str(generator), direction=way)
    errors, before = [], []
    for path in sorted((runs / "new").glob("*.png")):
        source = np.asarray(Image.open(path))
        made = np.asarray(Image.open(tmp_path / "images" / path.name)).astype(int)
        errors.append(np.abs(made - teacher(source)).mean())
        before.append(np.abs(source.astype(int) - teacher(source)).mean())
        x = torch.tensor(source).permute(2, 0, 1)[None] / 127.5 - 1
        y = load_translator(generator, direction=way).network(x, way)
        assert_close(cyclelight.translate(None, None, x, method=method), y)
        wanted = ((y[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
        assert np.abs(made - wanted.numpy()).max() <= 1
    assert np.mean(errors) < 12 < 60 < np.mean(before)
    assert json.loads((tmp_path / "made_by.json").read_text()).keys() == {"method.generator"}
    assert (
        "OneStep to " + ("negative", "rolled")[way]
        in capfd.readouterr().out + (tmp_path / "gallery.html").read_text()
    )


def test_what_a_fit_leaves(runs: Path) -> None:
    whole = runs / "whole"
    assert (whole / "samples" / "step_000300.png").is_file()
    made = load_translator(whole / "generator", direction=1)
    assert (made.names, made.name, made.resolution) == (("negative", "rolled"), "rolled", R)
    assert made.card["steps"] == 300 and made.card["gradient_weight"] == 0.5
    assert made.card["data"]["source"] == "a, b" and made.card["data"]["target"] == "a2n, b2r"
    heading, *rows = (whole / "loss.csv").read_text().splitlines()
    assert "train_loss" in heading or "l1" in heading, heading
    assert len(rows) > 2


def test_bad_inputs(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line each, and nothing is left behind."""
    generator = runs / "whole" / "generator"
    cut = save_translator(
        tmp_path / "cut", Translator(CUTSettings(4, 1).build(resolution=R, channels=3))
    )
    broken = shutil.copytree(generator, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "patch": 4}))
    out, fit = tmp_path / "out", tmp_path / "fit"
    lone = tmp_path / "lone"
    make_images(lone, 1)
    capfd.readouterr()

    def predicts(name: str, value: object) -> list[str]:
        return predict_words(runs, out, f"--model.method.{name}", value)

    def fits(name: str, value: object) -> list[str]:
        return fit_words(runs, fit, 2, f"--{name}", value)

    for words, told in (
        (predicts("generator", ""), "must name a folder of a student"),
        (predicts("generator", cut), "has no student.json"),
        (predicts("generator", runs / "whole"), f"did you mean {generator}?"),
        (predicts("generator", broken), "body must take and give 48 channels"),
        (predicts("direction", 2), "0 (negative), 1 (rolled); got 2"),
        (fits("data.target", runs / "a2n"), "of each folder of source there must be one"),
        (fits("data.target", f"[{runs / 'a2n'}, {tmp_path / 'no'}]"), "no such folder"),
        (fits("data.target", f"[{lone}, {runs / 'b2r'}]"), "00.png has no source"),
        (fits("model.names", "[a]"), "the data go 2 ways (to a2n, b2r), and there are 1 names"),
        (fits("model.names", "[]"), "give one for each way"),
        (fits("model.network.patch", 3), "a multiple of patch 3"),
        (fits("model.gradient_weight", -1), "gradient_weight must be at least 0"),
    ):
        assert main(words) in (1, 2), words
        error = capfd.readouterr().err
        assert told in error and error.count("\n") == 1, error
        assert not list(out.glob("images/*")) and not (fit / "generator").exists()
    with pytest.raises(ValueError, match=r"has no cut\.json"):
        cyclelight.CUT(str(generator))


def test_other_data_are_refused(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = fit_words(runs, tmp_path, 2)
    pairs = zip(words[1::2], words[2::2], strict=True)
    kept = [word for pair in pairs if not pair[0].startswith("--data") for word in pair]
    data = ["--data", "DomainImages", "--data.root", str(runs / "a"), "--data.num_workers", "0"]
    assert main(["fit", *kept, *data]) == 1
    error = capfd.readouterr().err
    assert "takes images and translations (PairedImages), got DomainImages" in error
    assert not (tmp_path / "generator").exists()


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "configs" / "distillation").glob("*.yaml")), ids=lambda p: p.stem
)
def test_recipes_fit(recipe: Path, runs: Path, tmp_path: Path) -> None:
    words = ["fit", "--config", str(recipe), "--output", str(tmp_path / "run")]
    words += ["--data.source", str(runs / "a"), "--data.target", str(runs / "a2n")]
    words += ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
    assert main([*words, "--trainer.accelerator", "cpu"]) == 0
    made = load_translator(tmp_path / "run" / "generator")
    assert made.resolution == 48 and made.card["steps"] == 2


# ONNX


def run_onnx(file: Path, x: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (made,) = session.run(["translations"], {"images": x.numpy()})
    return torch.tensor(made)


@pytest.mark.parametrize("way", [0, 1])
def test_onnx_runs_as_torch_does(way: int, tmp_path: Path) -> None:
    """Any batch, either way, and in one file."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    student, file = folder(tmp_path / "student", 2), tmp_path / "student.onnx"
    words = ["export", str(student), "--to", str(file), "--direction", str(way)]
    assert main(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"student", "student.onnx"}
    network = load_translator(student).network
    for size in (1, 2, 5):
        x = drawn(size, 3, R, R, seed=size)
        assert_close(run_onnx(file, x), network(x, way), atol=1e-4, rtol=0)
    import onnx

    told = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert told["name"] == "ab"[way] and told["data_licence"] == "CC0"
    assert told["resolution"] == str(R)


def test_cut_as_onnx(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    torch.manual_seed(0)
    translator = Translator(CUTSettings(8, 1).build(resolution=R, channels=3), ("dog",))
    save_translator(tmp_path / "cut", translator)
    assert main(["export", str(tmp_path / "cut"), "--to", str(tmp_path / "cut.onnx")]) == 0
    x = drawn(3, 3, R, R)
    with torch.no_grad():
        assert_close(run_onnx(tmp_path / "cut.onnx", x), translator(x), atol=1e-4, rtol=0)


def test_exports_that_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, there = folder(tmp_path / "student"), tmp_path / "there.onnx"
    there.touch()
    for words, told in (
        ((student, "--to", tmp_path / "a.bin"), "must end in .pt or .onnx"),
        ((student, "--to", there), "exists already"),
        ((student, "--to", tmp_path / "no" / "a.onnx"), "there is no folder"),
        ((student, "--to", tmp_path / "a.onnx", "--direction", 1), "0 (a); got 1"),
        ((tmp_path / "no", "--to", tmp_path / "a.onnx"), "no does not exist"),
        ((ROOT / "checkpoints/cat", "--to", tmp_path / "a.onnx"), "is not a folder of a student"),
        ((ROOT / "checkpoints/cat", "--to", tmp_path / "a.pt", "--direction", 1), "--direction is"),
    ):
        assert main(["export", *map(str, words)]) == 2
        error = capfd.readouterr().err
        assert told in error and error.count("\n") == 1, error
    monkeypatch.setattr("cyclelight.domains.adapters.onnx.find_spec", lambda name: None)
    assert main(["export", str(student), "--to", str(tmp_path / "a.onnx")]) == 2
    assert "pip install 'cyclelight[onnx]'" in capfd.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
