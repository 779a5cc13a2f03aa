"""Families of text models beside Stable Diffusion 1.x and 2.x, against diffusers' own pipelines."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from text_folders import MAKERS, edit_json, pipeline
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.engine import Engine
from cyclelight.cli import main
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.steps import Step
from cyclelight.domains.adapters import flux
from cyclelight.modules.editing import EditingModule
from cyclelight.text.load import family_of
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


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX's settings tell no size; in tests it is 16 pixels."""
    monkeypatch.setattr(flux, "SIDE", 8)


@pytest.fixture(params=sorted(set(MAKERS) - {"schnell"}))
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


@pytest.mark.parametrize("third", ["t5", "none"])
@pytest.mark.parametrize("shifting", ["static", "dynamic"])
def test_flow_draws_as_the_pipeline(
    folders: Callable[[str], Path], tmp_path: Path, third: str, shifting: str
) -> None:
    """At the levels of the same grid; and without T5, as the pipeline goes without."""
    shutil.copytree(folders("flow"), tmp_path / "copy")
    made = pipeline("flow")
    if third == "none":
        made.text_encoder_3 = made.tokenizer_3 = None
        shutil.rmtree(tmp_path / "copy" / "text_encoder_3")
        edit_json(tmp_path / "copy" / "model_index.json", text_encoder_3=[None, None])
    if shifting == "dynamic":
        config = {"base_image_seq_len": 4, "max_image_seq_len": 64, "use_dynamic_shifting": True}
        made.scheduler.register_to_config(**config)
        edit_json(tmp_path / "copy" / "scheduler" / "scheduler_config.json", **config)
    domain = cyclelight.load_text_model(tmp_path / "copy").prompted("a b cs", "d", scale=3.0)
    grid = TimeGrid.whole(domain.schedule, 5).timesteps
    assert (grid[0], grid[-1], len(grid)) == (998, 0, 5)
    x_T, a = gaussian(1, *domain.shape), domain.schedule.alpha_bar(grid[0])
    ours = cyclelight.sample(domain, x_T=x_T, steps=5, eta=0.0)
    there = made(
        "a b cs",
        negative_prompt="d",
        sigmas=[(t + 1) / 1000 for t in grid],
        guidance_scale=3.0,
        latents=x_T / (a**0.5 + (1 - a) ** 0.5),
        output_type="pt",
        return_dict=False,
    )
    assert ours.std() > 0.1
    # The topmost x_0 is one of 1 / sqrt(abar) in what float32 rounds.
    assert_close((ours / 2 + 0.5).clamp(0, 1), there[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("kind", ["flux", "schnell"])
def test_flux_draws_as_the_pipeline(folders: Callable[[str], Path], kind: str, side: int) -> None:
    """Learnt guidance (dev) is told by the scale; else (schnell) it leads away from a text."""
    given: dict[str, Any] = {"guidance_scale": 3.0, "max_sequence_length": 512}
    if kind == "schnell":
        given = {"true_cfg_scale": 3.0, "negative_prompt": "d", "max_sequence_length": 256}
    model = cyclelight.load_text_model(folders(kind), resolution=side)
    domain = model.prompted("a b cs", given.get("negative_prompt", ""), scale=3.0)
    grid = TimeGrid.whole(domain.schedule, 5).timesteps
    x_T, a = gaussian(1, *domain.shape), domain.schedule.alpha_bar(grid[0])
    ours = cyclelight.sample(domain, x_T=x_T, steps=5, eta=0.0)
    made = pipeline(kind)
    there = made(
        "a b cs",
        sigmas=[(t + 1) / 1000 for t in grid],
        height=side,
        width=side,
        latents=made._pack_latents(x_T / (a**0.5 + (1 - a) ** 0.5), *x_T.shape),
        output_type="pt",
        return_dict=False,
        **given,
    )
    assert ours.std() > 0.1
    # The topmost x_0 is one of 1 / sqrt(abar) in what float32 rounds.
    assert_close((ours / 2 + 0.5).clamp(0, 1), there[0], rtol=0, atol=2e-4)


def test_networks_in_several_files_are_read_without_bars(
    folders: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As large models are published; the libraries draw bars again for others."""
    made = pipeline("schnell")
    made.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    for part in ("transformer", "text_encoder_2"):
        assert len(list((tmp_path / "parts" / part).glob("*-of-*.safetensors"))) > 1
    diffusers_logging.enable_progress_bar()
    type(made.transformer).from_pretrained(tmp_path / "parts" / "transformer")
    assert "Loading checkpoint shards" in capfd.readouterr().err
    model = cyclelight.load_text_model(tmp_path / "parts")
    assert not capfd.readouterr().err and diffusers_logging.is_progress_bar_enabled()
    whole = cyclelight.load_text_model(folders("schnell")).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_what_flux_is_told(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text has its own scale, in one call; the lengths of texts are the published ones."""
    dev, schnell = (cyclelight.load_text_model(folders(kind)) for kind in ("flux", "schnell"))
    lengths = [model.reader(["a"])[0].shape[1] for model in (dev, schnell)]
    assert lengths == [512, 256]
    x = gaussian(2, 4, 8, 8)
    calls = list[int]()
    dev.denoiser.network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    both = dev.prompted("a", scale=[1.5, 5.5]).denoiser(x, 500).eps
    assert calls == [2]
    for row, scale in enumerate((1.5, 5.5)):
        alone = dev.prompted("a", scale=scale).denoiser(x[row : row + 1], 500).eps
        assert_close(both[row : row + 1], alone, rtol=0, atol=1e-5)
    other = dev.prompted("a", scale=5.5).denoiser(x, 500).eps
    assert (other[0] - both[0]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="negative: this model's guidance is learnt"):
        dev.prompted("a", "b")
    with pytest.raises(ValueError, match="negative: this model's guidance is learnt"):
        EditingModule(str(folders("flux")), negative="b")
    schnell.prompted("a", "b")


def test_flux_has_the_size_of_the_pipeline(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    made = pipeline("schnell")
    model = cyclelight.load_text_model(folders("schnell"), device="meta")
    assert model.resolution == made.default_sample_size * made.vae_scale_factor == 256
    # At a size that dev was by far not trained for, nothing would be left of an image.
    with pytest.raises(ValueError, match=r"model: .*: given_betas must be"):
        cyclelight.load_text_model(folders("flux"), device="meta")


@pytest.mark.parametrize(("kind", "factor"), [("flow", 1000), ("schnell", 1)])
def test_flow_in_float64(folders: Callable[[str], Path], kind: str, factor: int) -> None:
    """Each step of eta 0 is Euler's of the flow; its level is one of the scheduler's own."""
    model = cyclelight.load_text_model(folders(kind))
    model.denoiser.double()
    scheduler = pipeline(kind).scheduler
    levels = scheduler.sigmas.flip(0).double()  # Ascending, u = 1 last.
    domain = model.prompted("a b", scale=1.0)
    network: Any = model.denoiser.network
    told = [each.double() for each in model.reader(["a b"])]
    z = gaussian(1, *domain.shape).double()
    with torch.no_grad():
        for t, s in [(990, 700), (700, 20), (20, -1)]:
            u, lower = levels[t].item(), 0.0 if s < 0 else levels[s].item()
            root = ((1 - u) ** 2 + u**2) ** 0.5
            after = ((1 - lower) ** 2 + lower**2) ** 0.5
            v = network(z, torch.tensor([factor * u]).double(), *told)
            euler = z + (lower - u) * v
            step = Step.between(domain.schedule, t, s, 0.0)
            ours = step.mean(z / root, domain.denoiser(z / root, t).eps) * after
            # The scheduler's levels are float32.
            assert_close(ours, euler, rtol=0, atol=1e-5 if s >= 0 else 1e-6)
            z = euler
    assert z.std() > 0.1


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
    "flow": {
        "tokenizer_3": "has no tokenizer_3; where model_index.json has null in the place of",
        "text_encoder_3": "has no text_encoder_3/config.json; where model_index.json has null",
        "text_encoder_2": "it has no text_encoder_2/config.json",
        "transformer": "it has no transformer/config.json (StableDiffusion3Pipeline)",
        "vae/diffusion_pytorch_model.safetensors": "vae holds no weights",
    },
    "flux": {
        "tokenizer_2": "it has no tokenizer_2/tokenizer.json (FluxPipeline)",
        "text_encoder_2": "it has no text_encoder_2/config.json",
        "transformer/diffusion_pytorch_model.safetensors": "transformer holds no weights",
    },
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


WRONG: list[tuple[str, str, dict[str, object], str]] = [
    ("flow", "scheduler/scheduler_config", {"_class_name": "DDIMScheduler"}, "not FlowMatchEuler"),
    ("flow", "scheduler/scheduler_config", {"invert_sigmas": True}, "invert_sigmas of its"),
    ("flow", "scheduler/scheduler_config", {"shift": 0}, "shift must be above 0"),
    ("flow", "transformer/config", {"in_channels": 8}, "transformer takes 8 channels and gives 4"),
    ("flow", "transformer/config", {"joint_attention_dim": 64}, "text_encoder_3 writes 48"),
    ("flow", "transformer/config", {"pooled_projection_dim": 8}, "pooled texts of 8 channels"),
    ("flow", "transformer/config", {"num_layers": 1000}, "num_layers must be in 0..64"),
    ("flow", "text_encoder/config", {"architectures": ["CLIPTextModel"]}, "not a CLIPTextModelW"),
    ("flux", "transformer/config", {"in_channels": 96}, "transformer takes 96 channels and gives"),
    ("flux", "transformer/config", {"joint_attention_dim": 64}, "text_encoder_2 writes 48"),
    ("flux", "transformer/config", {"pooled_projection_dim": 8}, "pooled texts of 8 channels"),
    ("flux", "transformer/config", {"num_single_layers": 1000}, "num_single_layers must be in 0"),
    ("flux", "transformer/config", {"guidance_embeds": False}, "unexpected keys: time_text_embed"),
    ("schnell", "transformer/config", {"guidance_embeds": True}, "missing keys: time_text_embed"),
    ("flux", "scheduler/scheduler_config", {"use_beta_sigmas": True}, "use_beta_sigmas of its"),
    ("flux", "model_index", {"_class_name": "FluxFillPipeline"}, "is a FluxFillPipeline, not one"),
    ("ldm", "bert/config", {"architectures": ["BertModel"]}, "is a BertModel, not a LDMBertModel"),
    ("ldm", "bert/config", {"encoder_layers": 1000}, "encoder_layers must be in 0..64"),
    ("ldm", "bert/config", {"encoder_layers": 3}, "bert: missing keys: model.layers.2"),
    ("ldm", "unet/config", {"cross_attention_dim": 8}, "texts of 8 channels, bert writes 16"),
    ("ldm", "unet/config", {"addition_embed_type": "text"}, "addition_embed_type text, not None"),
    ("sdxl", "unet/config", {"addition_embed_type": None}, "addition_embed_type None, not text_t"),
    ("sdxl", "unet/config", {"addition_time_embed_dim": 9}, "a pooled text of 14 channels"),
    ("sdxl", "model_index", {"force_zeros_for_empty_prompt": 1}, "must be true or false"),
    ("sdxl", "model_index", {"_class_name": "PixArtPipeline"}, "is a PixArtPipeline, not one of L"),
]
"""Family, JSON file, what is changed in it, what is said."""


@pytest.mark.parametrize(("wrong", "file", "fields", "message"), WRONG)
def test_what_does_not_fit_is_named(
    folders: Callable[[str], Path],
    tmp_path: Path,
    wrong: str,
    file: str,
    fields: dict[str, object],
    message: str,
) -> None:
    shutil.copytree(folders(wrong), tmp_path / "copy")
    edit_json(tmp_path / "copy" / f"{file}.json", **fields)
    with pytest.raises(ValueError) as refused:
        cyclelight.load_text_model(tmp_path / "copy")
    told = str(refused.value)
    assert message in told and told.startswith("model: ") and "\n" not in told


def test_flow_has_a_largest_size(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="resolution must be at most 48 for this model, got 64"):
        cyclelight.load_text_model(folders("flow"), resolution=64, device="meta")


def test_the_command_edits(
    folders: Callable[[str], Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal texts give the round trip of the autoencoder; others something else."""
    monkeypatch.chdir(tmp_path)
    model = cyclelight.load_text_model(folders(family))
    side = model.resolution
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save("a.png")
    rows = ["image,source_text,target_text", "a.png,a b,a b", "a.png,a b,c d"]
    Path("edits.csv").write_text("\n".join(rows))
    words = ["--model.model", str(folders(family)), "--model.method.steps", "3"]
    words += ["--trainer.precision", "32-true"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["edit", "edits.csv", *words, "--output", "out"]) == 0
    same, other = (
        np.array(Image.open(Path("out", "images", name), formats=["PNG"])).astype(int)
        for name in ("a.png", "a-2.png")
    )
    with torch.no_grad():
        domain = model.prompted("a b")
        x = torch.from_numpy(noise).permute(2, 0, 1)[None] / 127.5 - 1
        trip = domain.to_images(domain.to_states(x))[0].permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert np.abs(same - trip.clip(0, 255)).max() <= 1
    assert np.abs(other - same).max() > 3


def test_attention_of_sdxl_is_controlled(folders: Callable[[str], Path]) -> None:
    """Its maps are the source's in all steps: then a target of other texts goes another way."""
    model = cyclelight.load_text_model(folders("sdxl"))
    x, method = pictures(model, 1), cyclelight.CycleDiffusion(steps=4, eta=0.1, cleanup=0)
    timesteps = method.grid(model.denoiser.schedule).timesteps
    made = []
    for share in (0.0, 1.0):
        control = cyclelight.AttentionControl(cross=share, self_attention=share)
        domains = model.controlled(["a b"], ["a c"], control, timesteps, scale=2.0)
        made.append(cyclelight.translate(*domains, x, method=method))
    plain = model.prompted("a b", scale=1.0), model.prompted("a c", scale=2.0)
    assert_close(made[0], cyclelight.translate(*plain, x, method=method), rtol=0, atol=1e-3)
    assert (made[1] - made[0]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["flow", "flux"])
def test_attention_of_a_flow_is_not(folders: Callable[[str], Path], kind: str) -> None:
    """Which is said before anything is loaded."""
    control = cyclelight.AttentionControl()
    with pytest.raises(ValueError, match="control: this network has no attention that can be"):
        EditingModule(str(folders(kind)), control=control)


def test_all_of_a_folder_is_downloaded(folders: Callable[[str], Path], family: str) -> None:
    """Of the Hub's model of the same names; not what is there beside."""
    folder = folders(family)
    patterns = family_of(folder).files
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    assert len(names) > 8
    for name in names:
        assert any(fnmatch(name, pattern) for pattern in patterns), name
    for name in ("README.md", "unet/diffusion_pytorch_model.fp16.safetensors", "a.safetensors"):
        assert not any(fnmatch(name, pattern) for pattern in patterns), name
    pickles = any(fnmatch("bert/pytorch_model.bin", pattern) for pattern in patterns)
    assert pickles == (family == "ldm")
