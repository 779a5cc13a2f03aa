"""Families of text models beside Stable Diffusion 1.x and 2.x, against diffusers' own pipelines."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from text_folders import MAKERS, edit_json, pipeline
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.engine import Engine
from cyclelight.cli import main
from cyclelight.text.model import TextModel

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        if not (root / family).is_dir():
            pipeline(family).save_pretrained(root / family)
        return root / family

    return folder


@pytest.fixture(params=sorted(MAKERS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def pictures(model: TextModel, count: int) -> Tensor:
    side = model.resolution
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_ldm_draws_as_the_pipeline(folders: Callable[[str], Path], scale: float) -> None:
    domain = cyclelight.load_text_model(folders("ldm")).prompted("a b cs", scale=scale)
    x_T = gaussian(1, *domain.shape)
    ours = cyclelight.sample(domain, x_T=x_T, steps=4, eta=0.0)
    there = pipeline("ldm")(
        ["a b cs"],
        num_inference_steps=4,
        guidance_scale=scale,
        latents=x_T,
        output_type="pt",
        return_dict=False,
    )
    assert ours.std() > 0.1
    assert_close((ours / 2 + 0.5).clamp(0, 1), there[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("negative", ["", "b c"])
def test_sdxl_draws_as_the_pipeline(
    folders: Callable[[str], Path], side: int, negative: str
) -> None:
    """The size of the images is told, too; no negative text is zeros, others are read."""
    model = cyclelight.load_text_model(folders("sdxl"), resolution=side)
    domain = model.prompted("a b cs", negative, scale=3.0)
    x_T = gaussian(1, *domain.shape)
    ours = cyclelight.sample(domain, x_T=x_T, steps=4, eta=0.0)
    there = pipeline("sdxl")(
        "a b cs",
        negative_prompt=negative or None,
        height=side,
        width=side,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=x_T,
        output_type="pt",
        return_dict=False,
    )
    assert ours.std() > 0.1
    assert_close((ours / 2 + 0.5).clamp(0, 1), there[0], rtol=0, atol=1e-5)


def test_sdxl_may_read_the_empty_text(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Where its index says so; all texts are padded to one length."""
    shutil.copytree(folders("sdxl"), tmp_path / "copy")
    zeros = cyclelight.load_text_model(tmp_path / "copy").reader(["", "a"])
    edit_json(tmp_path / "copy" / "model_index.json", force_zeros_for_empty_prompt=False)
    read = cyclelight.load_text_model(tmp_path / "copy").reader(["", "a"])
    made = pipeline("sdxl")
    there = made.encode_prompt(["", "a"], negative_prompt="")
    for ours, shown, empty in zip(read, there[::2], zeros, strict=True):
        assert_close(ours, shown, rtol=0, atol=1e-6)
        assert not empty[0].any() and torch.equal(empty[1], ours[1])


def test_a_batch_is_its_images(folders: Callable[[str], Path], family: str) -> None:
    model = cyclelight.load_text_model(folders(family))
    before, after, scales = ["a b", "c", ""], ["a d", "e f", "c"], [3.0, 1.0, 2.0]
    x, settings = pictures(model, 3), {"steps": 4, "strength": 0.5, "cleanup": 0}
    together = cyclelight.translate(
        model.prompted(before, scale=1.0),
        model.prompted(after, scale=scales),
        x,
        keys=list("abc"),
        **settings,
    )
    for i, key in enumerate("abc"):
        alone = cyclelight.translate(
            model.prompted(before[i], scale=1.0),
            model.prompted(after[i], scale=scales[i]),
            x[i : i + 1],
            keys=[key],
            **settings,
        )
        assert_close(together[i : i + 1], alone, rtol=0, atol=1e-3)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_equal_texts_and_scales_give_the_image_back(
    folders: Callable[[str], Path], family: str
) -> None:
    model = cyclelight.load_text_model(folders(family))
    source, target = (model.prompted(["a b", "c"], scale=[1.0, 4.0]) for _ in range(2))
    x = pictures(model, 2)
    with torch.no_grad():
        round_trip = source.to_images(source.to_states(x))
    for method in (
        cyclelight.CycleDiffusion(steps=5, cleanup=0, eta=0.1),
        cyclelight.EditFriendly(steps=5),
        cyclelight.DDCM(steps=5),
    ):
        assert torch.equal(cyclelight.translate(source, target, x, method=method), round_trip)


def test_networks_in_half_precision(folders: Callable[[str], Path], family: str) -> None:
    """States stay float32, and what is predicted is what the whole precision predicts."""
    model = cyclelight.load_text_model(folders(family))
    domain = model.prompted(["a b", "c"], scale=[1.0, 3.0])
    x = gaussian(2, *domain.shape)
    with torch.no_grad():
        exact = domain.denoiser(x, 500).eps
        Engine().speed_up_network(model.denoiser, "bf16-mixed")
        half = domain.denoiser(x, 500).eps
    assert next(model.denoiser.parameters()).dtype == torch.bfloat16
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    assert (half - exact).std() < 0.1 * exact.std()


def test_what_need_not_be_read_is_not(folders: Callable[[str], Path], family: str) -> None:
    whole = cyclelight.load_text_model(folders(family), tiled=True)
    bare = cyclelight.load_text_model(folders(family), device="meta")
    assert {p.device.type for p in bare.parameters()} == {"meta"}
    assert bare.prompted("a b", scale=1.0).shape == whole.prompted("a b", scale=1.0).shape
    assert bare.denoiser.schedule == whole.denoiser.schedule
    assert whole.autoencoder is not None and whole.autoencoder.network.use_tiling
    twice = cyclelight.load_text_model(
        folders(family), resolution=2 * whole.resolution, device="meta"
    )
    assert twice.resolution == 2 * whole.resolution
    with pytest.raises(ValueError, match=r"resolution must be a multiple of \d+ .*, got 31"):
        cyclelight.load_text_model(folders(family), resolution=31, device="meta")


def test_prompts_that_do_not_fit_are_refused(folders: Callable[[str], Path], family: str) -> None:
    model = cyclelight.load_text_model(folders(family), device="meta")
    long = "a " * model.reader.length
    for given in ({"text": long}, {"text": "a", "negative": long}):
        with pytest.raises(ValueError, match=r"a text may have \d+ tokens, this one has \d+: 'a a"):
            model.prompted(**given)


BROKEN = {
    "ldm": {
        "tokenizer": "it has no tokenizer/tokenizer.json (LDMTextToImagePipeline)",
        "bert": "it has no bert/config.json",
        "unet": "it has no unet/config.json",
        "vqvae": "it has no vqvae/config.json",
        "bert/model.safetensors": "bert holds no weights",
    },
    "sdxl": {
        "tokenizer_2": "it has no tokenizer_2/tokenizer.json (StableDiffusionXLPipeline)",
        "text_encoder_2": "it has no text_encoder_2/config.json",
        "text_encoder": "it has no text_encoder/config.json",  # As SDXL's refiner.
        "vae": "it has no vae/config.json",
        "text_encoder_2/model.safetensors": "text_encoder_2 holds no weights",
    },
}
"""What is said where a part is not there."""


@pytest.mark.parametrize(
    ("broken", "part"), [(name, part) for name in BROKEN for part in BROKEN[name]]
)
def test_what_is_not_there_is_named(
    folders: Callable[[str], Path], tmp_path: Path, broken: str, part: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders(broken), copy)
    gone = copy / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        cyclelight.load_text_model(copy)
    told = str(refused.value)
    assert BROKEN[broken][part] in told and told.startswith("model: ") and "\n" not in told


def test_the_command_edits(
    folders: Callable[[str], Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal texts give the round trip of the autoencoder; others something else."""
    monkeypatch.chdir(tmp_path)
    model = cyclelight.load_text_model(folders(family))
    side = model.resolution
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save("a.png")
    words = ["--model.model", str(folders(family)), "--model.method.steps", "3"]
    words += ["--trainer.precision", "32-true"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    for target, output in [("a b", "same"), ("c d", "other")]:
        assert main(["edit", "a.png", "a b", target, *words, "--output", output]) == 0
    same, other = (
        np.array(Image.open(Path(name) / "images" / "a.png", formats=["PNG"])).astype(int)
        for name in ("same", "other")
    )
    with torch.no_grad():
        domain = model.prompted("a b")
        x = torch.from_numpy(noise).permute(2, 0, 1)[None] / 127.5 - 1
        trip = domain.to_images(domain.to_states(x))[0].permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert np.abs(same - trip.clip(0, 255)).max() <= 1
    assert np.abs(other - same).max() > 3
