"""ILVR, EGSDE and DDIB against recorded runs, closed forms and what their papers say."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracles import SCHEDULE, Gaussian, Table, domain, formula_tensor
from safetensors.torch import load_file
from tiny import R, make_run, predict_words
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.invert import inversion_chain
from cyclelight.chains.sample import reverse_chain
from cyclelight.cli import main
from cyclelight.diffusion.denoiser import Prediction
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.lowpass import Kernel, low_pass, resize_matrix
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.classifier import DomainClassifier, save_classifier
from cyclelight.domains.translator import Translator, save_translator
from cyclelight.methods.ddib import DDIB
from cyclelight.methods.egsde import EGSDE, likeness
from cyclelight.methods.ilvr import ILVR
from cyclelight.methods.sdedit import SDEdit
from cyclelight.networks.classifier import ClassifierUNet
from cyclelight.networks.cut import CUTSettings
from cyclelight.networks.one_step import OneStepSettings

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "tests" / "vectors"
SOURCE, TARGET = domain(Gaussian(-0.3, 0.2), 8, "source"), domain(Gaussian(0.4, 0.35), 8, "target")
T12 = NoiseSchedule.linear(1e-3, 0.25, 12)


def images(count: int = 2, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return -0.3 + 0.2 * torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)


# Low-pass filters


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_low_pass_is_the_recorded_one(factor: int, kernel: Kernel) -> None:
    v = load_file(VECTORS / "lowpass" / "size64.safetensors")
    phi = low_pass(v["x"], factor, kernel)
    assert phi.dtype == torch.float32
    assert_close(phi, v[f"lowpass_{kernel}_N{factor}"], rtol=0, atol=1e-5)
    down = resize_matrix(64, factor, kernel, enlarge=False).float()
    assert_close(down @ v["x"] @ down.T, v[f"down_{kernel}_N{factor}"], rtol=0, atol=1e-5)


def test_low_pass_at_256_pixels() -> None:
    v = load_file(VECTORS / "lowpass" / "size256.safetensors")
    x = v["x_u8"] / 127.5 - 1
    assert_close(low_pass(x, 32, "linear"), v["lowpass_linear_N32"], rtol=0, atol=1e-5)
    every4 = low_pass(x, 32, "cubic")[:, :, ::4, ::4]
    assert_close(every4, v["lowpass_cubic_N32_every4"], rtol=0, atol=1e-5)


def test_the_energy_of_reduced_images_and_its_gradient() -> None:
    v = load_file(VECTORS / "lowpass" / "size64.safetensors")
    y = v["energy_y"].clone().requires_grad_()
    energy = -likeness(low_pass(y, 4, "linear"), low_pass(v["x"], 4, "linear"), "neg_l2")
    (gradient,) = torch.autograd.grad(energy.sum(), y)
    assert_close(energy, v["energy_N4_linear"], rtol=1e-5, atol=0)
    assert_close(gradient, v["energy_grad_N4_linear"], rtol=0, atol=1e-5)


# ILVR


class Spy:
    """Keyed noise that remembers what it was asked for."""

    def __init__(self) -> None:
        self.noise = cyclelight.KeyedNoise(0, range(2))
        self.drawn: dict[tuple[str, int], Tensor] = {}

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        assert (purpose, timestep) not in self.drawn, "a noise that is drawn twice"
        self.drawn[purpose, timestep] = self.noise(purpose, timestep, like)
        return self.drawn[purpose, timestep]


def test_each_step_of_ilvr_replaces_the_low_frequencies() -> None:
    x, noise, states = images(), Spy(), list[Tensor]()
    method = ILVR(steps=10, down_N=4, range_t=3)
    cyclelight.translate(None, TARGET, x, method=method, noise=noise, on_step=states.append)
    assert len(states) == method.length(SCHEDULE) == 10
    state = noise.drawn["ilvr start", 900]
    for t, after in zip(range(900, -1, -100), states, strict=True):
        # The target's own step, DDPM's posterior (Ho et al. 2020, Eq. 7).
        a = float(SCHEDULE.alphas_cumprod[t])
        b = float(SCHEDULE.alphas_cumprod[t - 100]) if t else 1.0
        x_0 = 0.4 + a**0.5 * 0.35**2 / (a * 0.35**2 + 1 - a) * (state - a**0.5 * 0.4)
        own = b**0.5 * (1 - a / b) / (1 - a) * x_0 + (a / b) ** 0.5 * (1 - b) / (1 - a) * state
        if t:
            own = own + ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5 * noise.drawn["ilvr", t]
        increment = after - own
        if t > 300:
            q = b**0.5 * x + (1 - b) ** 0.5 * noise.drawn["ilvr reference", t - 100]
            wanted = low_pass(q, 4, "cubic") - low_pass(own, 4, "cubic")
        else:
            wanted = torch.zeros_like(x)
        assert_close(increment, wanted, rtol=0, atol=1e-12)
        state = after
    assert {t for purpose, t in noise.drawn if purpose == "ilvr reference"} == {
        *range(300, 900, 100)
    }


# DDIB


def recorded_ddib() -> tuple[dict[str, Tensor], Any, Any]:
    v = load_file(VECTORS / "ddib" / "vectors_f64.safetensors")
    stds = json.loads((VECTORS / "ddib" / "config.json").read_text())

    def of(name: str) -> Any:
        mean: Any = v[f"mean_{name}"].view(3, 1, 1)
        return domain(Gaussian(mean, stds[f"std_{name}"]), 4, name)

    return v, of("A"), of("B")


@pytest.mark.parametrize("case", ["full1000", "r10", "ddim20"])
def test_the_program_of_ddibs_authors(case: str) -> None:
    v, source, target = recorded_ddib()
    grid = TimeGrid(tuple(v[f"ddib.{case}.timestep_map"].flip(0).tolist()))
    up = list(inversion_chain(source.denoiser, v["x"], grid=grid, inversion="released"))
    kept = [up[-1]] if case == "full1000" else up
    assert_close(torch.stack(kept), v[f"ddib.{case}.inversion"][1:], rtol=0, atol=1e-10)
    for name, into in (("A", source), ("B", target)):
        options: Any = {"grid": grid, "eta": 0.0, "noise": None, "purpose": ""}
        *_, last = reverse_chain(into.denoiser, up[-1], **options)
        assert_close(last, v[f"ddib.{case}.decode_{name}"][-1], rtol=0, atol=1e-10)
    if case != "r10":  # Whose timesteps are rounded.
        method = DDIB(len(grid), inversion="released")
        y = cyclelight.translate(source, target, v["x"], method=method)
        assert_close(y, v[f"ddib.{case}.decode_B"][-1], rtol=0, atol=1e-10)


def test_the_inverse_scheduler_of_diffusers() -> None:
    v, source, target = recorded_ddib()
    states = list[Tensor]()
    method = DDIB(10, inversion="reached")
    y = cyclelight.translate(source, target, v["x"], method=method, on_step=states.append)
    assert_close(torch.stack(states[:10]), v["diffusers.lin10.inversion"][1:], rtol=0, atol=1e-10)
    assert_close(torch.stack(states[10:]), v["diffusers.lin10.decode_B"][1:], rtol=0, atol=1e-10)
    assert torch.equal(y, states[-1])
    assert len(states) == method.length(SCHEDULE)


def test_ddib_returns_to_the_image_as_steps_grow() -> None:
    """In a Gaussian domain; the error falls in proportion to 1 / steps."""
    x = images()
    errors = [
        float((cyclelight.translate(SOURCE, SOURCE, x, method=DDIB(steps)) - x).abs().max())
        for steps in (125, 250, 500, 1000)
    ]
    assert errors[-1] <= 3e-2
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3, errors


def test_ddib_is_the_transport_between_gaussians() -> None:
    """That of optimal transport, x -> m' + s'/s (x - m) (Su et al. 2023, sec. 3.3)."""
    x = images()
    y = cyclelight.translate(SOURCE, TARGET, x, method=DDIB(1000))
    assert_close(y, 0.4 + 0.35 / 0.2 * (x + 0.3), rtol=0, atol=0.04)


# EGSDE


def extractor(folder: Path, schedule: NoiseSchedule = SCHEDULE, side: int = 16) -> Path:
    network = ClassifierUNet(
        side, 3, 2, 8, (4, 4), 1, (side // 2,), num_head_channels=16, pool="attention"
    )
    for n, (name, value) in enumerate(network.state_dict().items()):
        value.copy_(formula_tensor(n, name, value.shape, 21))
    return save_classifier(folder, DomainClassifier(network, schedule, ("source", "target")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("file", "settings"),
    [
        (
            "update_T1000_ls500_li2_cosine_negl2_N4",
            {"lambda_s": 500.0, "lambda_i": 2.0, "down_N": 4},
        ),
        (
            "update_T1000_ls0.5_li30_negl2_cosine_N2",
            {
                "lambda_s": 0.5,
                "lambda_i": 30.0,
                "down_N": 2,
                "realism": "neg_l2",
                "faithfulness": "cosine",
            },
        ),
    ],
)
def test_recorded_gradients(
    file: str, settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    v = load_file(VECTORS / "egsde" / f"{file}.safetensors")
    classifier = str(extractor(tmp_path / "classifier"))
    weights = {"s": settings["lambda_s"], "i": settings["lambda_i"]}
    relative = 1e-9 if dtype == torch.float64 else 1e-5
    for energy, weight in weights.items():
        off = {"lambda_i" if energy == "s" else "lambda_s": 0.0}
        method = EGSDE(classifier=classifier, **{**settings, **off})
        torch.nn.Module.to(method.extractor.network, dtype)
        for i, t in enumerate(v["t"].tolist()):
            made = method.gradient(v["y"][i].to(dtype), v["x_t"][i].to(dtype), t)
            assert made is not None
            wanted = v[f"grad_{energy}_f64"][i]
            worst = (made / weight - wanted).abs().max() / wanted.abs().max()
            assert worst < relative, (energy, t)


class Ordered:
    """Noises in the order in which a recorded run drew them, but for those it then masked."""

    def __init__(self, starts: Tensor, steps: Tensor) -> None:
        self.starts, self.steps = iter(starts), [iter(turn) for turn in steps]
        self.turn = -1

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        if purpose.endswith("start"):
            self.turn += 1
            return next(self.starts).to(like)
        return next(self.steps[self.turn]).to(like)


class LargeTable(Table):
    """A recorded network whose steps have the variance beta, the upper end of the learned range."""

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        return Prediction(super().__call__(x_t, t).eps, torch.ones_like(x_t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("file", "chain", "down_N"),
    [
        ("run_T1000_M3_K1_ls500_li2_N4", (1000, 3, 1), 4),
        ("run_T12_M3_K1_ls500_li2_N8_ddpm_fixedlarge", (12, 3, 1), 8),
        ("run_T12_M4_K2_ls500_li2_N4", (12, 4, 2), 4),
    ],
)
def test_recorded_runs(
    file: str, chain: Sequence[int], down_N: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    v = load_file(VECTORS / "egsde" / f"{file}.safetensors")
    T, M, K = chain
    schedule = T12 if T == 12 else SCHEDULE
    table = (LargeTable if "fixedlarge" in file else Table)(v["net_a"], v["net_b"])
    table.schedule = schedule
    method = EGSDE(
        classifier=str(extractor(tmp_path / "classifier", schedule)),
        steps=T,
        strength=M / T,
        down_N=down_N,
        repeats=K,
    )
    torch.nn.Module.to(method.extractor.network, dtype)
    states = list[Tensor]()
    x = 2 * v["source"].to(dtype) - 1
    noise = Ordered(v["e"], v["step_noise"])
    target = domain(table, 16)
    cyclelight.translate(None, target, x, method=method, noise=noise, on_step=states.append)
    assert len(states) == method.length(schedule) == K * M
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    wanted = v["y_after_f64"].to(dtype)
    assert_close(torch.stack(states), wanted, rtol=0, atol=tolerance)
    results = torch.stack([(states[(k + 1) * M - 1] + 1) / 2 for k in range(K)]).clamp(0, 1)
    assert_close(results, v["result_f64"].to(dtype), rtol=0, atol=tolerance)


def test_without_weights_egsde_is_sdedit(tmp_path: Path) -> None:
    classifier = str(extractor(tmp_path / "classifier", side=8))
    x = images()
    method = EGSDE(classifier=classifier, steps=20, lambda_s=0.0, lambda_i=0.0)
    y = cyclelight.translate(None, TARGET, x, method=method)
    sdedit = cyclelight.translate(None, TARGET, x, method=SDEdit(steps=20, strength=0.5))
    assert torch.equal(y, sdedit)
    guided = EGSDE(classifier=classifier, steps=20, lambda_s=0.0, lambda_i=2.0, down_N=4)
    nearer = cyclelight.translate(None, TARGET, x, method=guided)
    away = [(low_pass(z, 4, "linear") - low_pass(x, 4, "linear")).norm() for z in (nearer, y)]
    assert away[0] < 0.8 * away[1]
    assert not nearer.requires_grad


# Settings


def test_settings_that_are_refused(tmp_path: Path) -> None:
    classifier = str(extractor(tmp_path / "c", side=8))
    cosine = str(extractor(tmp_path / "d", NoiseSchedule.cosine(), side=8))
    made = partial(EGSDE, classifier=classifier)
    cases: list[tuple[Any, str]] = [
        (lambda: ILVR(range_t=-1), "range_t must be at least 0, got -1"),
        (lambda: ILVR(down_N=0), "down_N must be at least 1, got 0"),
        (lambda: ILVR(eta=2), r"eta must be in \[0, 1\], got 2"),
        (lambda: ILVR(steps=10, range_t=10), "range_t must be below steps = 10, got 10"),
        (lambda: ILVR(steps=30, down_N=5), "down_N 5 does not divide 8, their side"),
        (lambda: ILVR(steps=2000), r"steps must be in 1\.\.1000"),
        (lambda: DDIB(inversion="right"), "inversion must be one of left, reached, released"),  # type: ignore[arg-type]
        (lambda: EGSDE(), "classifier must name a classifier folder, got none"),
        (lambda: EGSDE(classifier="nowhere"), "classifier: nowhere does not exist"),
        (lambda: made(lambda_s=-1), "lambda_s must be at least 0, got -1"),
        (lambda: made(repeats=0), "repeats must be at least 1, got 0"),
        (lambda: made(realism="l2"), "realism must be one of cosine, neg_l2"),
        (lambda: made(down_N=3), "down_N 3 does not divide 8, their side"),
        (lambda: EGSDE(classifier=cosine), "the noise schedules of target 'target' and of"),
    ]
    for make, says in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            cyclelight.translate(SOURCE, TARGET, images(), method=make())


def test_published_settings(tmp_path: Path) -> None:
    classifier = str(extractor(tmp_path / "c"))
    paper, dagger = EGSDE.paper(classifier), EGSDE.dagger(classifier)
    for method, count in ((paper, 500), (dagger, 600)):
        assert method.length(SCHEDULE) == count
        assert (method.lambda_s, method.lambda_i, method.down_N) == (500, 2, 32)


def test_predict_resumes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a run that was stopped, the rest is made; another classifier is another run."""
    make_run(tmp_path, {"sources": ["a.png", "b.png", "c.png"], "real": ["r.png", "s.png"]})
    classifier, other = extractor(tmp_path / "c"), extractor(tmp_path / "d", side=R)
    words = predict_words(
        *(tmp_path, tmp_path / "out", "--model.method", "EGSDE", "--model.method.steps", 4),
        *("--model.method.classifier", classifier, "--data.batch_size", 1),
    )
    words = [w for w in words if w != str(tmp_path / "cat") and w != "--model.source"]
    assert main(words) == 0, capfd.readouterr()
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert set(pictures) == {"a.png", "b.png", "c.png"}
    made_by = json.loads((tmp_path / "out" / "made_by.json").read_text())
    assert made_by.keys() == {"target", "method.classifier"}
    (tmp_path / "out" / "images" / "b.png").unlink()
    assert main(words) == 0
    again = {path.name: path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert again == pictures
    # The same weights elsewhere are the same run.
    moved = [str(other) if w == str(classifier) else w for w in words]
    assert main(moved) == 0
    weights = ClassifierUNet.from_pretrained(other)
    weights.time_embed[0].bias.data += 1
    save_classifier(other, DomainClassifier(weights, SCHEDULE, ("source", "target")))
    capfd.readouterr()
    assert main(moved) == 2
    assert "made by other weights than those of --model.method.classifier" in capfd.readouterr().err


TRANSLATIONS = [
    recipe
    for recipe in sorted((ROOT / "configs" / "methods").glob("*.yaml"))
    if "TranslationModule" in recipe.read_text()  # Those of edits have tests of their own.
]


@pytest.mark.parametrize("recipe", TRANSLATIONS, ids=lambda path: path.stem)
def test_recipes_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    extractor(tmp_path / "c", side=48)
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]["method"]["init_args"]
    words = ["--config", str(recipe), "--output", str(tmp_path / "out")]
    words += ["--data.source", "docs/demo/cats/sample_1.png"]
    words += ["--model.method.steps", "5"] * ("steps" in settings)
    words += ["--model.method.range_t", "2"] * ("range_t" in settings)
    words += ["--model.method.classifier", str(tmp_path / "c")] * ("classifier" in settings)
    if "generator" in settings:
        student = "direction" in settings
        shape: Any = OneStepSettings((32,)) if student else CUTSettings(4, 1)
        translator = Translator(shape.build(resolution=48, channels=3))
        words += ["--model.method.generator", str(save_translator(tmp_path / "g", translator))]
    assert main(["predict", *words, "--trainer.enable_progress_bar", "false"]) == 0
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["sample_1.png"]
