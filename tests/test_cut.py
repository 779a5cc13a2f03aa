"""CUT and FastCUT: networks, losses, training, the folder, the method."""

import csv
import json
import math
import shutil
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from trainings import make_images

import cyclelight
from cyclelight.cli import main
from cyclelight.domains.translator import Translator, load_translator, save_translator
from cyclelight.methods.cut import CUT
from cyclelight.modules.cut import CUTModule, lsgan, patch_nce
from cyclelight.modules.editing import EditingModule
from cyclelight.networks.cut import (
    CUTGenerator,
    CUTSettings,
    Double,
    Halve,
    PatchDiscriminator,
    PatchSampleF,
    draw_positions,
)
from datamodules import UnpairedImages

ROOT = Path(__file__).parents[1]
EMOJI, BASELINES = str(ROOT / "checkpoints" / "emoji_text"), ROOT / "configs" / "baselines"
R = 16
TINY = CUTSettings(4, 1)
LAYERS = (0, 4, 8, 12)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Networks


def binomial(taps: int) -> NDArray[np.float64]:
    row = np.array([comb(taps - 1, k) for k in range(taps)], dtype=float)
    kernel = np.outer(row, row)
    return kernel / kernel.sum()


@pytest.mark.parametrize("sides", [(8, 8), (9, 6)])
def test_blurs_are_the_normalised_binomial(sides: tuple[int, int]) -> None:
    x = drawn(1, 1, *sides)
    padded = np.pad(x[0, 0].numpy(), 1, mode="reflect")
    kernel = binomial(3)
    wanted = [
        [(padded[i : i + 3, j : j + 3] * kernel).sum() for j in range(0, sides[1], 2)]
        for i in range(0, sides[0], 2)
    ]
    assert_close(Halve()(x)[0, 0], torch.tensor(wanted, dtype=torch.float64))
    # Twice the resolution: zeros between the values, then four times the filter.
    padded = np.pad(x[0, 0].numpy(), 1, mode="edge")
    spread = np.zeros([2 * side for side in padded.shape])
    spread[::2, ::2] = padded
    kernel = 4 * binomial(4)
    wanted = [
        [(spread[i : i + 4, j : j + 4] * kernel).sum() for j in range(2 * sides[1])]
        for i in range(2 * sides[0])
    ]
    assert_close(Double()(x)[0, 0], torch.tensor(wanted, dtype=torch.float64))


def test_published_shapes() -> None:
    """Numbers of parameters as the authors' program prints them, in millions."""
    with torch.device("meta"):
        generator = CUTSettings().build(resolution=256, channels=3)
        judge = PatchDiscriminator(3, 64, 3, 256)
        layers = (0, 4, 8, 12, 16)
        channels = generator.feature_channels(layers)
        x = torch.zeros(1, 3, 256, 256)
        maps = generator.features(x, layers)
        assert generator(x).shape == x.shape and judge(x).shape == (1, 1, 30, 30)
    assert channels == [3, 128, 256, 256, 256] == [features.shape[1] for features in maps]
    assert [features.shape[-1] for features in maps] == [262, 256, 128, 64, 64]
    for network, millions in ((generator, 11.378), (judge, 2.765), (PatchSampleF(channels), 0.560)):
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == millions
    # The numbers of the layers with weights, in the authors' generator.
    names = {name.split(".")[1] for name in generator.state_dict()}
    assert names == {str(n) for n in (1, 4, 8, *range(12, 21), 22, 26, 30)}


def test_generator() -> None:
    torch.manual_seed(0)
    generator = TINY.build(resolution=R, channels=3)
    x = drawn(2, 3, R, R).float()
    y = generator(x)
    assert y.shape == x.shape and y.abs().max() <= 1
    # Each image by itself, whatever it stands beside.
    assert_close(generator(x[1:]), y[1:], atol=1e-5, rtol=0)


def test_projections_are_unit_vectors_of_the_same_places() -> None:
    torch.manual_seed(0)
    maps = [drawn(2, 3, 4, 4).float(), drawn(2, 5, 2, 3).float()]
    positions = draw_positions(maps, 8, torch.Generator().manual_seed(0))
    assert [len(set(chosen.tolist())) for chosen in positions] == [8, 6]
    projections = PatchSampleF([3, 5], width=7)
    for vectors, features, chosen, mlp in zip(
        projections(maps, positions), maps, positions, projections.mlps, strict=True
    ):
        assert_close(vectors.norm(dim=2), torch.ones(2, len(chosen)))
        row, column = divmod(int(chosen[0]), features.shape[3])
        alone = mlp(features[1, :, row, column])
        assert_close(vectors[1, 0], alone / alone.norm(), atol=1e-4, rtol=1e-4)


def published(generator: CUTGenerator) -> dict[str, Tensor]:
    """The tensors of a generator with the filters that the authors' checkpoints have among them."""
    state = dict(generator.state_dict())
    blocks, width = generator.config.n_blocks, generator.config.ngf
    for number, taps, channels in (
        *((7, 3, 2 * width), (11, 3, 4 * width)),
        *((12 + blocks, 4, 4 * width), (16 + blocks, 4, 2 * width)),
    ):
        kernel = torch.tensor(binomial(taps)).float() * (4 if taps == 4 else 1)
        state[f"model.{number}.filt"] = kernel.repeat(channels, 1, 1, 1)
    return state


def test_import(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the names that the authors' checkpoints have (their issues 146 and 1474 list them)."""
    torch.manual_seed(0)
    generator = CUTSettings(4, 9).build(resolution=R, channels=3)
    state = published(generator)
    numbered = [f"model.{n}" for n in (1, 4, 8, 22, 26, 30)]
    numbered += [f"model.{n}.conv_block.{m}" for n in range(12, 21) for m in (1, 5)]
    names = [f"{name}.{kind}" for name in numbered for kind in ("weight", "bias")]
    assert set(state) == {*names, *(f"model.{n}.filt" for n in (7, 11, 21, 25))}
    torch.save(state, tmp_path / "latest_net_G.pth")
    words = ["import", str(tmp_path / "latest_net_G.pth"), "--flags.image_size", str(R)]
    assert main([*words, "--to", str(tmp_path / "dog")]) == 0
    found, x = load_translator(tmp_path / "dog"), drawn(1, 3, R, R).float()
    assert found.name == "dog" and found.card["imported_from"] == "latest_net_G.pth"
    assert_close(found.network(x), by_their_filters(state, x), atol=1e-5, rtol=0)
    capfd.readouterr()
    missing = {name: value for name, value in state.items() if name != "model.30.bias"}
    for name, damaged, told in (
        ("a", missing, "missing: model.30.bias"),
        ("b", {**state, "model.7.filt": state["model.7.filt"] * 2}, "model.7.filt is not the pub"),
    ):
        torch.save(damaged, tmp_path / f"{name}.pth")
        line = ["import", str(tmp_path / f"{name}.pth"), "--flags.image_size", str(R)]
        assert main([*line, "--to", str(tmp_path / name)]) == 2
        error = capfd.readouterr().err
        assert told in error and error.count("\n") == 1 and not (tmp_path / name).exists()
    for line, told in (
        (words[:2], "give --flags.image_size"),
        ([*words, "--flags.num_channels", "4"], "--flags.num_channels is not for"),
    ):
        assert main([*line, "--to", str(tmp_path / "c")]) == 2
        assert told in capfd.readouterr().err


def by_their_filters(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published generator, written out for its tensors: each blur is a convolution."""

    def conv(x: Tensor, name: str, border: int, mode: str = "reflect") -> Tensor:
        padded = F.pad(x, (border,) * 4, mode=mode)
        return F.conv2d(padded, state[f"{name}.weight"], state[f"{name}.bias"])

    def active(x: Tensor) -> Tensor:
        return F.instance_norm(x).relu()

    x = active(conv(x, "model.1", 3))
    for number in (4, 8):
        x = active(conv(x, f"model.{number}", 1, "constant"))
        kernel = state[f"model.{number + 3}.filt"]
        x = F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), kernel, stride=2, groups=len(kernel))
    for number in range(12, 21):
        name = f"model.{number}.conv_block"
        x = x + F.instance_norm(conv(active(conv(x, f"{name}.1", 1)), f"{name}.5", 1))
    for number in (21, 25):
        kernel = state[f"model.{number}.filt"]
        padded = F.pad(x, (1,) * 4, mode="replicate")
        x = F.conv_transpose2d(padded, kernel, stride=2, padding=2, groups=len(kernel))
        x = active(conv(x[:, :, 1:-1, 1:-1], f"model.{number + 1}", 1, "constant"))
    return conv(x, "model.30", 3).tanh()


# Losses


def test_patch_nce_of_identical_features() -> None:
    """All patches alike: log N; all at right angles: log(1 + (N - 1) e^(-1 / tau))."""
    alike = F.normalize(drawn(2, 1, 5), dim=2).expand(2, 6, 5).float()
    assert_close(patch_nce(alike, alike, 0.07), torch.full((2,), math.log(6)))
    apart = torch.eye(6)[None]
    for tau in (0.07, 1.0):
        wanted = math.log(1 + 5 * math.exp(-1 / tau))
        assert_close(patch_nce(apart, apart, tau), torch.tensor([wanted]))


def test_patch_nce_by_hand() -> None:
    q = F.normalize(drawn(2, 4, 3), dim=2).requires_grad_()
    k = F.normalize(drawn(2, 4, 3, seed=1), dim=2).requires_grad_()
    wanted = []
    for queries, keys in zip(q.tolist(), k.tolist(), strict=True):
        losses = []
        for s, query in enumerate(queries):
            alike = [
                math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / 0.5) for key in keys
            ]
            losses.append(-math.log(alike[s] / sum(alike)))
        wanted.append(sum(losses) / len(losses))
    loss = patch_nce(q, k, 0.5)
    assert_close(loss, torch.tensor(wanted))
    loss.sum().backward()
    assert q.grad is not None and q.grad.abs().sum() > 0 and k.grad is None


def test_lsgan_by_hand() -> None:
    judged = torch.tensor([[[[0.5, 2.0]]], [[[-1.0, 0.0]]]])
    assert lsgan(judged, False).item() == pytest.approx((0.25 + 4 + 1 + 0) / 4)
    assert lsgan(judged, True).item() == pytest.approx((0.25 + 1 + 4 + 1) / 4)


def module(**settings: Any) -> CUTModule:
    torch.manual_seed(0)
    given = {"discriminator_width": 4, "discriminator_layers": 2, "nce_layers": LAYERS, "seed": 1}
    return CUTModule("dog", R, network=TINY, **{**given, **settings})


def test_mirrored_images_are_compared_where_they_were() -> None:
    """Of the image itself, layer 0, the mirrored features are those of the mirrored image."""
    made, x = module(nce_layers=(0,)), drawn(2, 3, R, R).float()
    straight, mirrored, wrong = (
        made.nce(x, y, flipped, torch.Generator().manual_seed(3))
        for y, flipped in ((x, False), (x.flip(3), True), (x.flip(3), False))
    )
    assert_close(mirrored, straight)
    assert not torch.allclose(wrong, straight, atol=1e-2)


# Data


def test_unpaired_images(tmp_path: Path) -> None:
    """An epoch shows each image at least once, pairs change, and follow from the seed."""
    make_images(tmp_path / "a", 9), make_images(tmp_path / "b", 5)

    def epochs(**settings: Any) -> list[list[tuple[str, int]]]:
        data = UnpairedImages(
            str(tmp_path / "a"), str(tmp_path / "b"), batch_size=2, num_workers=0, **settings
        )
        data.load(8)
        assert data.val_images is not None and data.target_images is not None
        known = {data.target_images.pixels(i).numpy().tobytes(): i for i in range(5)}
        loader = data.train_dataloader()
        found = []
        for _ in range(2):
            pairs = []
            for batch in loader:
                assert batch["image"].shape == batch["target"].shape == (2, 8, 8, 3)
                targets = [known[target.numpy().tobytes()] for target in batch["target"]]
                pairs += list(zip(batch["key"], targets, strict=True))
            found.append(pairs)
        assert not {key for key, _ in found[0]} & set(data.val_images.keys)
        return found

    one, two = epochs()
    assert (one, two) == tuple(epochs()) and set(one) != set(two) and one != epochs(seed=1)[0]
    assert len(one) == 8 == len({key for key, _ in one}) and {target for _, target in one} == set(
        range(5)
    )


# The program


def fit_words(root: Path, output: Path, steps: int, *more: object) -> list[str]:
    given = {
        "model": "CUTModule",
        "model.resolution": R,
        "model.network.ngf": 4,
        "model.network.n_blocks": 1,
        "model.discriminator_width": 4,
        "model.discriminator_layers": 2,
        "model.nce_layers": "[0, 4, 8, 12]",
        "model.flip_equivariance": "true",
        "model.lr_schedule": "linear",
        "data": "UnpairedImages",
        "data.source": root / "cats",
        "data.target": root / "dogs",
        "data.batch_size": 4,
        "data.num_workers": 0,
        "output": output,
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["fit", *pairs, *map(str, more)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: a fit of five batches; `rest`: the last two, from a checkpoint amid an epoch."""
    root = tmp_path_factory.mktemp("cut")
    make_images(root / "cats", 9), make_images(root / "dogs", 5)
    often = ("--checkpoint.every_n_train_steps", 3, "--checkpoint.save_top_k", -1)
    assert main(fit_words(root, root / "whole", 10, *often)) == 0
    third = root / "whole" / "checkpoints" / "epoch=1-step=6.ckpt"
    assert main(fit_words(root, root / "rest", 10, "--ckpt_path", third)) == 0
    return root


def test_fit(runs: Path) -> None:
    whole = runs / "whole"
    assert (whole / "checkpoints" / "last.ckpt").is_file()
    rows = list(csv.DictReader((whole / "loss.csv").read_text().splitlines()))
    # Of ten steps, the first five at the peak, then in a line to 0; a batch begins at each second.
    rates = {int(row["step"]): float(row["learning_rate"]) for row in rows}
    assert rates == pytest.approx({2: 2e-4, 4: 2e-4, 6: 2e-4, 8: 1.6e-4, 10: 0.8e-4})
    assert (whole / "samples" / "step_000010.png").is_file()
    made = load_translator(whole / "generator")
    assert (made.name, made.resolution, made.card["steps"]) == ("dogs", R, 10)
    data = made.card["data"]
    assert (data["source"], data["target"]) == ("cats", "dogs")
    state = torch.load(runs / "rest" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    untrained = module(flip_equivariance=True).state_dict()
    for part in ("generator", "projections", "discriminator"):
        names = [name for name in state if name.startswith(f"{part}.") and "weight" in name]
        assert names and all(not torch.equal(state[name], untrained[name]) for name in names)
    for name, weight in made.network.state_dict().items():
        assert_close(weight, state[f"generator.{name}"], rtol=0, atol=0)


def test_a_fit_goes_on_exactly(runs: Path) -> None:
    whole, rest = (load_translator(runs / name / "generator") for name in ("whole", "rest"))
    for name, weight in whole.network.state_dict().items():
        assert_close(rest.network.state_dict()[name], weight, rtol=0, atol=0)


def predict_words(runs: Path, output: Path, *more: object) -> list[str]:
    words = ["predict", "--model.method", "CUT", "--model.method.generator"]
    words += [str(runs / "whole" / "generator"), "--data.source", str(runs / "cats")]
    words += ["--output", str(output), "--trainer.accelerator", "cpu", "--data.batch_size", "3"]
    words += ["--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
    return [*words, *map(str, more)]


def test_predict(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the network makes of each image; a run that was stopped goes on, of these weights."""
    generator, out = runs / "whole" / "generator", tmp_path / "out"
    assert main(predict_words(runs, out)) == 0, capfd.readouterr()
    pictures = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    assert len(pictures) == 9
    made_by = json.loads((out / "made_by.json").read_text())
    assert made_by.keys() == {"method.generator"}
    pixels = np.asarray(Image.open(runs / "cats" / "04.png"))
    x = torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        y = load_translator(generator).network(x)
    assert_close(cyclelight.translate(None, None, x, method=CUT(str(generator))), y)
    wanted = ((y[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
    found = torch.tensor(np.asarray(Image.open(out / "images" / "04.png"))).float()
    assert (found - wanted).abs().max() <= 1
    (out / "images" / "04.png").unlink()
    assert main(predict_words(runs, out)) == 0
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == pictures
    other = load_translator(generator)
    other.network.model[1].bias.data += 1
    save_translator(tmp_path / "other", other)
    capfd.readouterr()
    assert main(predict_words(runs, out, "--model.method.generator", tmp_path / "other")) == 2
    assert "made by other weights than those of --model.method.generator" in capfd.readouterr().err


def test_bad_inputs(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line each, and nothing is left behind."""
    generator = runs / "whole" / "generator"
    broken = shutil.copytree(generator, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "ngf": 4096}))
    capfd.readouterr()
    lone = tmp_path / "lone"
    make_images(lone, 1)
    for words, told in (
        (predict_words(runs, tmp_path / "out", "--model.method.generator", ""), "must name"),
        (predict_words(runs, tmp_path / "out", "--model.method.generator", "no"), "no does not"),
        (
            predict_words(runs, tmp_path / "out", "--model.method.generator", runs / "whole"),
            f"it has no config.json; did you mean {generator}?",
        ),
        (predict_words(runs, tmp_path / "out", "--model.method.generator", broken), "ask for"),
        (predict_words(runs, tmp_path / "out", "--data.masks", runs / "cats"), "takes no masks"),
        (fit_words(runs, tmp_path / "fit", 2, "--data.target", "no"), "no such folder no"),
        (fit_words(runs, tmp_path / "fit", 2, "--data.source", lone), "at least 2 images"),
        (fit_words(runs, tmp_path / "fit", 2, "--data.val", runs / "cats"), "in one another"),
        (fit_words(runs, tmp_path / "fit", 2, "--model.nce_layers", "[0, 13]"), "layers in 0..12"),
        (fit_words(runs, tmp_path / "fit", 2, "--model.discriminator_layers", 3), "take fewer"),
        (fit_words(runs, tmp_path / "fit", 2, "--model.resolution", 18), "a multiple of 4"),
        (fit_words(runs, tmp_path / "fit", 2, "--model.nce_temperature", 0), "must be above 0"),
    ):
        assert main(words) in (1, 2), words
        error = capfd.readouterr().err
        assert told in error and error.count("\n") == 1, error
        assert not list(tmp_path.glob("out/images/*")) and not (tmp_path / "fit").exists()
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 16, 16\) for the gen"):
        cyclelight.translate(None, None, drawn(1, 3, 8, 8), method=CUT(str(generator)))
    with pytest.raises(ValueError, match="method: CUT heeds no texts"):
        EditingModule(EMOJI, method=CUT(str(generator)))
    with pytest.raises(ValueError, match="exists and is not a folder of a CUT generator"):
        save_translator(lone, Translator(TINY.build(resolution=R, channels=3)))


def test_other_data_are_refused(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = fit_words(runs, tmp_path / "fit", 2)
    at = words.index("--data")
    words[at + 1] = "DomainImages"
    words[words.index("--data.source")] = "--data.root"
    del words[words.index("--data.target") :][:2]
    at = words.index("--data.target")
    del words[at : at + 2]
    assert main(words) == 1
    error = capfd.readouterr().err
    assert "CUTModule takes images of two domains (UnpairedImages), got DomainImages" in error
    assert not (tmp_path / "fit" / "generator").exists()


@pytest.mark.parametrize("recipe", sorted(BASELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_fit(recipe: Path, runs: Path, tmp_path: Path) -> None:
    """At their own size, of fewer channels."""
    words = ["fit", "--config", str(recipe), "--output", str(tmp_path / "run")]
    words += ["--data.source", str(runs / "cats"), "--data.target", str(runs / "dogs")]
    words += ["--model.network.ngf", "4", "--model.discriminator_width", "4"]
    words += ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
    assert main([*words, "--trainer.accelerator", "cpu"]) == 0
    made = load_translator(tmp_path / "run" / "generator")
    size = 256 if "256" in recipe.stem else 48
    assert made.resolution == size and made.card["steps"] == 2
    assert made.card["flip_equivariance"] == ("fastcut" in recipe.stem)
