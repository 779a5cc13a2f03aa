"""Text models: Stable Diffusion's folders, guidance, and what recorded programs made of them."""

import json
import shutil
import string
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from oracles import Recorded
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import cyclelight
from cyclelight.chains.decode import decode
from cyclelight.chains.encode import encode
from cyclelight.chains.engine import Engine
from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.source import source_chain
from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.latent_schedule import LatentDiffusionSchedule
from cyclelight.diffusion.schedule import CLEAN
from cyclelight.diffusion.steps import Step, eps_from_x_0
from cyclelight.domains.domain import Domain
from cyclelight.text.guided import Guided
from cyclelight.text.model import TextModel

VECTORS = Path(__file__).parent / "vectors" / "sdcycle"
CONFIG = json.loads((VECTORS / "config.json").read_text())
RUNS = {run["case"]: run for run in CONFIG["runs"]}
WORDS = [*string.ascii_lowercase, *string.digits, "+", "="]
"""The words with the ids 0 to 37; 38 begins a text, 39 ends it."""
SCHEDULE = LatentDiffusionSchedule.scaled_linear()


def text_of(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids[1:-1])


def parts() -> dict[str, Any]:
    """The networks of the recorded runs."""
    weights = load_file(VECTORS / "weights.safetensors")
    found: dict[str, Any] = {
        "unet": UNet2DConditionModel(**CONFIG["unet"]),
        "vae": AutoencoderKL(**CONFIG["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**CONFIG["text_encoder"])),
    }
    for name, network in found.items():
        start = f"{name}."
        own = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
        network.load_state_dict(own)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These networks as Stable Diffusion's folder, written by diffusers and transformers."""
    root = tmp_path_factory.mktemp("sd")
    for name, network in parts().items():
        network.save_pretrained(root / name)
    DDIMScheduler(**CONFIG["scheduler"]).save_pretrained(root / "scheduler")
    vocabulary = {f"{word}</w>": i for i, word in enumerate(WORDS)}
    vocabulary |= {"<|startoftext|>": 38, "<|endoftext|>": 39}
    CLIPTokenizer(vocabulary, [], model_max_length=12).save_pretrained(root / "tokenizer")  # type: ignore[arg-type]
    (root / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    return cyclelight.load_text_model(folder)


def pair(model: TextModel, run: dict[str, Any]) -> tuple[Domain, Domain]:
    """Source and target; without guidance of the target the program has none for the source."""
    scale = run["guidance_scale"]
    source_scale = run["source_guidance_scale"] if scale > 1 else 1.0
    source = model.prompted(text_of(run["source_token_ids"]), scale=source_scale)
    return source, model.prompted(text_of(run["target_token_ids"]), scale=scale)


@pytest.mark.parametrize("case", sorted(RUNS))
def test_the_pipeline_of_diffusers_is_met(model: TextModel, case: str) -> None:
    run, there = RUNS[case], load_file(VECTORS / f"{case}.safetensors")
    for role in ("source", "target"):
        (read,) = model.reader([text_of(run[f"{role}_token_ids"])])
        assert_close(read, there[f"embeds_{role}"], rtol=0, atol=1e-5)
    source, target = pair(model, run)
    assert source.shape == (4, 8, 8) and source.resolution == 16
    grid = TimeGrid.truncated(source.schedule, run["num_inference_steps"], run["strength"])
    assert list(grid.timesteps) == run["timesteps"] == there["timesteps"].tolist()

    image = there["image_u8"].permute(2, 0, 1)[None] / 127.5 - 1
    assert_close(source.to_states(image), 0.18215 * there["vae_mean"], rtol=0, atol=1e-5)
    noise = Recorded([there["noise_init"], *there["noise_posterior"]])
    with torch.no_grad():
        x_0 = there["clean_latents"]
        chain = list(source_chain(source.denoiser, x_0, grid=grid, eta=run["eta"], noise=noise))
        y = list(lockstep(target.denoiser, chain))
    states = torch.stack([chain[0].x_t, *(step.x_s for step in chain)])
    assert_close(states, there["source_latents"], rtol=0, atol=1e-4)
    assert_close(torch.stack(y), there["target_latents"][1:], rtol=0, atol=5e-4)
    recovered = torch.stack([step.noise for step in chain])
    largest = there["recovered_noise"].abs().max().item()
    assert_close(recovered, there["recovered_noise"], rtol=0, atol=1e-4 * largest)
    with torch.no_grad():
        assert_close(target.to_images(y[-1]), there["output_decoded"], rtol=0, atol=5e-4)
    if case == "run_d":  # Equal texts and scales.
        assert torch.equal(y[-1], x_0)


@pytest.mark.parametrize("case", ["c", "a"])
def test_a_batch_is_its_images(model: TextModel, case: str) -> None:
    """Which the pipeline of diffusers gets wrong: it takes two rows of the guidance for all."""
    runs = [RUNS[f"run_{letter}"] for letter in "abc"]
    texts = {
        role: [text_of(run[f"{role}_token_ids"]) for run in runs] for role in ("source", "target")
    }
    scales = [3.0, 1.0, 2.0]
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = {"steps": 10, "strength": 0.5, "eta": RUNS[f"run_{case}"]["eta"], "cleanup": 0}
    together = cyclelight.translate(
        model.prompted(texts["source"], scale=1.0),
        model.prompted(texts["target"], scale=scales),
        x,
        keys=list("abc"),
        **settings,
    )
    for i, key in enumerate("abc"):
        alone = cyclelight.translate(
            model.prompted(texts["source"][i], scale=1.0),
            model.prompted(texts["target"][i], scale=scales[i]),
            x[i : i + 1],
            keys=[key],
            **settings,
        )
        assert_close(together[i : i + 1], alone, rtol=0, atol=2e-5)
    assert (together[0] - x[0]).abs().max() > 0.1


def test_equal_texts_and_scales_give_the_image_back(model: TextModel) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    source, target = (model.prompted(["a b", "c"], scale=[1.0, 4.0]) for _ in range(2))
    with torch.no_grad():
        round_trip = source.to_images(source.to_states(x))
    for method in (
        cyclelight.CycleDiffusion(steps=5, cleanup=0, eta=0.1),
        cyclelight.EditFriendly(steps=5),
        cyclelight.DDCM(steps=5),
    ):
        assert torch.equal(cyclelight.translate(source, target, x, method=method), round_trip)
    ahead = cyclelight.CycleDiffusion(steps=5, cleanup=0, parallel=64)
    # In float64, as how far the last bits of float32 are off depends on the machine.
    exact = deepcopy(model).double()
    source, target = (exact.prompted(["a b", "c"], scale=[1.0, 4.0]) for _ in range(2))
    y = cyclelight.translate(source, target, x.double(), method=ahead)
    assert_close(y.float(), round_trip, rtol=0, atol=1e-4)


class Told(nn.Module):
    """eps = what it was told, and how many images it was asked of at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.asked = nn.Parameter(torch.ones(())), list[int]()

    def forward(self, x_t: Tensor, timesteps: Tensor, told: Tensor) -> Tensor:
        self.asked.append(len(x_t))
        return self.scale * told.view(-1, 1, 1, 1).expand_as(x_t)


def test_guidance() -> None:
    network = Told()
    texts, negatives = (torch.tensor([5.0, 7.0, 9.0]),), (torch.tensor([1.0, 2.0, 3.0]),)
    x = torch.zeros(3, 1, 2, 2)
    denoiser = NetworkDenoiser(network, SCHEDULE)

    def said(scales: list[float], x_t: Tensor = x) -> list[float]:
        guided = Guided(denoiser, texts, negatives, scales)
        return [round(image.mean().item(), 4) for image in guided(x_t, 3).eps]

    # e_u + w (e_c - e_u), by hand.
    assert said([1, 1, 1]) == [5, 7, 9]
    assert said([3, 1, 0]) == [13, 7, 3]
    assert said([2, 2, 0.5]) == [9, 12, 6]
    assert said([3, 1, 0], torch.zeros(6, 1, 2, 2)) == [13, 7, 3, 13, 7, 3]
    assert network.asked == [3, 5, 6, 10]
    with pytest.raises(ValueError, match="a text for each image: got 3 texts, 4 images"):
        said([1, 1, 1], torch.zeros(4, 1, 2, 2))


@pytest.mark.parametrize("suffix", ["", "_f64"])
def test_the_steps_are_those_of_diffusers(suffix: str) -> None:
    cases = json.loads((VECTORS / "functions.json").read_text())
    there = load_file(VECTORS / f"functions{suffix}.safetensors")
    most = 1e-10 if suffix else 1e-5
    for number, case in enumerate(cases):
        given = {name: there[f"c{number}.{name}"] for name in ("clean", "x_t", "eps", "noise")}
        a, p, sigma = there[f"c{number}.scalars"].tolist()
        step = Step(a, p, case["eta"])
        assert step.sigma == pytest.approx(sigma, abs=most)
        mean = step.mean(given["x_t"], given["eps"])
        x_s = there[f"c{number}.posterior"]
        true = step.mean(given["x_t"], eps_from_x_0(given["x_t"], given["clean"], a))
        if not torch.equal(x_s, given["clean"]):  # As the last step has it.
            assert_close(true + step.sigma * given["noise"], x_s, rtol=0, atol=10 * most)
        recovered = there[f"c{number}.recovered_noise"]
        largest = recovered.abs().max().item()
        ours = (x_s - mean) / step.sigma
        assert_close(ours, recovered, rtol=0, atol=(1e-10 if suffix else 1e-4) * largest)


class Analytic(nn.Module):
    """The exact noise prediction for Gaussian data of a mean for each channel, with std 0.7."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x_t: Tensor, timesteps: Tensor, mean: Tensor) -> Tensor:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        a_t = torch.from_numpy(np.cumprod(1 - betas)).to(x_t)[timesteps].view(-1, 1, 1, 1)
        centred = x_t - a_t.sqrt() * mean[:, :, None, None]
        return self.one * (1 - a_t).sqrt() * centred / (a_t * 0.49 + 1 - a_t)


@pytest.mark.parametrize("suffix", ["", "_f64"])
@pytest.mark.parametrize("case", json.loads((VECTORS / "original.json").read_text()))
def test_the_sampler_of_the_authors_is_met(case: dict[str, Any], suffix: str) -> None:
    there = load_file(VECTORS / f"{case['case']}{suffix}.safetensors")
    x_0 = there["x_0"]
    denoiser = NetworkDenoiser(Analytic(x_0.dtype), SCHEDULE)

    def guided(role: str, scale: float) -> Domain:
        means = (there[f"cond_{role}"],), (there["cond_uncond"],)
        return Domain(Guided(denoiser, *means, [scale] * len(x_0)), 2, channels=4)

    source = guided("source", case["encoder_scale"])
    target = guided("target", case["decoder_scale"])
    steps = case["custom_steps"]
    whole = TimeGrid.whole(SCHEDULE, steps)
    assert list(reversed(whole.timesteps)) == there["ddim_timesteps"].tolist()
    noises = there["noise_posterior"]
    noise = Recorded([there["noise_start"], *noises])
    strength = (steps - case["skip_steps"]) / steps
    code = encode(source, x_0, steps=steps, eta=case["eta"], strength=strength, noise=noise)
    assert code.grid.start == case["start_timestep"]
    assert code.last_residual is not None
    z = torch.stack([code.x_T, *code.noises, code.last_residual], dim=1)
    atol = 1e-4 if suffix else 1e-4 * there["z"].abs().max().item()
    assert_close(z, there["z"], rtol=0, atol=atol)
    atol = 1e-6 if suffix else 1e-4
    assert_close(decode(target, code), there["decoded_target"], rtol=0, atol=atol)
    assert_close(decode(source, code), there["decoded_source"], rtol=0, atol=atol)
    assert_close(decode(source, code), x_0, rtol=0, atol=atol)


@pytest.mark.parametrize("steps", [1, 7, 15, 50, 99, 500])
@pytest.mark.parametrize("to_one", [False, True])
def test_the_grid_is_that_of_diffusers(steps: int, to_one: bool) -> None:
    scheduler = DDIMScheduler(**{**CONFIG["scheduler"], "set_alpha_to_one": to_one})
    scheduler.set_timesteps(steps)
    ours = LatentDiffusionSchedule.from_diffusers(scheduler.config)
    assert list(TimeGrid.whole(ours, steps).timesteps) == scheduler.timesteps.tolist()
    assert ours.alpha_bar(CLEAN) == pytest.approx(float(scheduler.final_alpha_cumprod), rel=1e-6)


def test_schedules_that_differ_in_their_ends_are_told() -> None:
    plain = cyclelight.NoiseSchedule.scaled_linear()
    assert "clean_alpha_bar 0.99915 and 1.0" in str(SCHEDULE.difference(plain))
    shifted = LatentDiffusionSchedule.scaled_linear()
    assert shifted == SCHEDULE and shifted != plain and plain != shifted
    with pytest.raises(ValueError, match="steps 1000 with an offset of 1 lead above timestep 999"):
        TimeGrid.whole(SCHEDULE, 1000)
    assert TimeGrid.whole(SCHEDULE, 50).below(1) == TimeGrid((1,))


def test_codes_know_their_schedule(model: TextModel, tmp_path: Path) -> None:
    domain = model.prompted("a b c")
    code = encode(domain, torch.zeros(1, 3, 16, 16), steps=4)
    code.save(tmp_path / "code.safetensors")
    again = cyclelight.LatentCode.load(tmp_path / "code.safetensors")
    assert again.schedule == domain.schedule and again.source == "a b c"
    assert torch.equal(decode(domain, again), decode(domain, code))


def test_published_names_of_tensors_are_read(folder: Path, tmp_path: Path) -> None:
    """Published text encoders have the prefix `text_model.`, and a table of positions."""
    shutil.copytree(folder, tmp_path / "old")
    file = tmp_path / "old" / "text_encoder" / "model.safetensors"
    state = {f"text_model.{n.removeprefix('text_model.')}": w for n, w in load_file(file).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(state, file, {"format": "pt"})
    old, new = cyclelight.load_text_model(tmp_path / "old"), cyclelight.load_text_model(folder)
    assert torch.equal(old.reader(["a b"])[0], new.reader(["a b"])[0])


def test_the_engine_runs_a_text_model(folder: Path) -> None:
    """As diffusers' own network in bfloat16, guided by hand in float32."""
    model = cyclelight.load_text_model(folder)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    domain = model.prompted(["a b", "c"], scale=[1.0, 3.0])
    unet: Any = parts()["unet"].to(torch.bfloat16).to(memory_format=torch.channels_last)
    told = torch.cat([*model.reader(["a b"]), *model.reader(["c"]), *model.reader([""])])
    asked = torch.stack([x[0], x[1], x[1]]).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        first, text, empty = unet(asked.bfloat16(), 501, told.bfloat16()).sample.float()
        Engine().speed_up_network(model.denoiser, "bf16-mixed")
        eps = domain.denoiser(x, 501).eps
    assert_close(eps, torch.stack([first, empty + 3 * (text - empty)]), rtol=0, atol=1e-6)


def test_texts_are_read_in_their_own_precision(model: TextModel) -> None:
    """Even where a trainer has the networks in half precision."""
    plain: Any = model.prompted("a b").denoiser
    with torch.autocast("cpu", torch.bfloat16):
        half: Any = model.prompted("a b").denoiser
    assert torch.equal(half.texts[0], plain.texts[0]) and half.texts[0].dtype == torch.float32


def test_what_need_not_be_read_is_not(folder: Path) -> None:
    bare = cyclelight.load_text_model(folder, device="meta")
    assert bare.prompted("a b", scale=1.0).shape == (4, 8, 8)
    assert bare.resolution == 16 and {p.device.type for p in bare.parameters()} == {"meta"}
    assert cyclelight.load_text_model(folder, resolution=32, device="meta").resolution == 32
    tiled = cyclelight.load_text_model(folder, tiled=True)
    assert tiled.autoencoder is not None and tiled.autoencoder.network.use_tiling


def test_our_own_model_is_read_by_the_same_code() -> None:
    model = cyclelight.load_text_model(Path(__file__).parents[1] / "checkpoints" / "emoji_text")
    domain = model.prompted("red heart, google", scale=3.0)
    (image,) = cyclelight.sample(domain, 1, steps=12, eta=0.0).clamp(-1, 1)
    red, green, blue = image[:, 12:20, 12:20].mean(dim=(1, 2)).tolist()
    assert red > 0.5 and green < 0 and blue < 0  # Red in the middle, and
    assert image[:, :3, :3].mean() > 0.8  # white in a corner.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "model: .* does not exist; give a text model's folder"),
        (lambda f: (f / "model_index.json").unlink(), "is no text model: no model_index.json"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "it has no tokenizer/tokenizer.json"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "it has no text_encoder/config.json"),
        (lambda f: shutil.rmtree(f / "unet"), "it has no unet/config.json"),
        (lambda f: shutil.rmtree(f / "vae"), "unet takes 4 channels and gives 4, where pixels"),
        (
            lambda f: (f / "text_encoder" / "model.safetensors").unlink(),
            "text_encoder holds no weights",
        ),
        (
            lambda f: (f / "tokenizer" / "tokenizer.json").write_text("{"),
            "model: .*tokenizer cannot be read",
        ),
        (lambda f: edit(f / "unet", "config", in_channels=9), "takes 9 channels and gives 4"),
        (lambda f: edit(f / "unet", "config", cross_attention_dim=8), "unet reads texts of 8"),
        (
            lambda f: edit(f / "unet", "config", addition_embed_type="text_time"),
            "addition_embed_type text_time, not None: it is told more",
        ),
        (
            lambda f: edit(f / "scheduler", "scheduler_config", _class_name="FlowMatchEuler"),
            "its scheduler is FlowMatchEuler: only models trained with betas",
        ),
        (
            lambda f: edit(f, "model_index", _class_name="DDPMPipeline"),
            "is a DDPMPipeline: a domain, which reads no text",
        ),
        (
            lambda f: edit(f / "text_encoder", "config", architectures=["LDMBertModel"]),
            "text_encoder is a LDMBertModel, not a CLIPTextModel",
        ),
        (
            lambda f: edit(f / "text_encoder", "config", num_hidden_layers=3),
            "text_encoder: missing keys: .*layers.2",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_no_text_model_is_refused(
    folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        cyclelight.load_text_model(copy)
    assert "\n" not in str(refused.value)


def edit(folder: Path, name: str, **fields: object) -> None:
    """Change fields of a JSON file."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_prompts_that_do_not_fit_are_refused(model: TextModel, folder: Path) -> None:
    for given, message in [
        ({"text": ["a", "b"], "scale": [1.0, 2.0, 3.0]}, "text must be one, or one for each of 3"),
        ({"text": []}, "text must be one, or one for each image, got none"),
        ({"text": "a", "scale": float("nan")}, "scale must be a number, got nan"),
        ({"text": "a " * 11}, "a text may have 10 tokens, this one has 11: 'a a"),
        ({"text": "a", "negative": "b " * 11}, "this one has 11: 'b b"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.prompted(**given)  # type: ignore[arg-type]
    two = model.prompted(["a", "b"])
    with pytest.raises(ValueError, match="a text for each image: got 2 texts, 3 images"):
        cyclelight.sample(two, 3, steps=2)
    with pytest.raises(ValueError, match=r"resolution must be a multiple of 4 .*, got 18"):
        cyclelight.load_text_model(folder, resolution=18)
