"""Each method against what its paper says, computed by other code."""

import inspect
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from oracles import SCHEDULE, Gaussian, Recorded, Table, domain, vectors
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.source import Draw, source_chain
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.steps import Eta
from cyclelight.methods.base import Method
from cyclelight.methods.cut import CUT
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.ddcm import DDCM
from cyclelight.methods.ddib import DDIB
from cyclelight.methods.edit_friendly import EditFriendly
from cyclelight.methods.egsde import EGSDE
from cyclelight.methods.flowedit import FlowEdit
from cyclelight.methods.ilvr import ILVR
from cyclelight.methods.sdedit import SDEdit
from cyclelight.modules.translation import TranslationModule
from cyclelight.runs.comparison import as_json

ROOT = Path(__file__).parents[1]
SOURCE, TARGET = domain(Gaussian(-0.3, 0.2), 8, "source"), domain(Gaussian(0.4, 0.35), 8, "target")
TIGHT = {"rtol": 0, "atol": 1e-12}


def images(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return -0.3 + 0.2 * torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)


class Spy:
    """Keyed noise that remembers what it was asked for, and can be asked again."""

    def __init__(self, keys: int = 2) -> None:
        self.noise = cyclelight.KeyedNoise(0, range(keys))
        self.drawn: dict[tuple[str, int], Tensor] = {}

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        assert (purpose, timestep) not in self.drawn, "a noise that is drawn twice"
        self.drawn[purpose, timestep] = self.noise(purpose, timestep, like)
        return self.drawn[purpose, timestep]

    @property
    def purposes(self) -> set[str]:
        return {purpose for purpose, _ in self.drawn}


def diffusers_scheduler(steps: int) -> DDIMScheduler:
    """That of the linear schedule in float64, ending at the clean image."""
    scheduler = DDIMScheduler(
        1000, trained_betas=SCHEDULE.betas.numpy(), clip_sample=False, set_alpha_to_one=True
    )
    scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_sdedit_is_the_loop_of_diffusers(eta: float) -> None:
    x, noise = images(), Spy()
    method = SDEdit(steps=20, eta=eta, strength=0.5)
    y = cyclelight.translate(None, TARGET, x, method=method, noise=noise)
    scheduler = diffusers_scheduler(20)
    timesteps = scheduler.timesteps[10:].tolist()
    a = SCHEDULE.alphas_cumprod[timesteps[0]]
    state = a.sqrt() * x + (1 - a).sqrt() * noise.drawn["sdedit start", timesteps[0]]
    for t in timesteps:
        drawn = noise.drawn.get(("sdedit", t), torch.zeros_like(x))
        eps = TARGET.denoiser(state, t).eps
        state = scheduler.step(eps, t, state, eta=eta, variance_noise=drawn).prev_sample
    assert_close(y, state, **TIGHT)
    assert method.length(SCHEDULE) == len(timesteps) == 10


def test_sdedit_decodes_fresh_noise() -> None:
    """It is a code of the image's own x_T and of nobody's noises, decoded by the target."""
    x, noise = images(), Spy()
    y = cyclelight.translate(None, TARGET, x, method=SDEdit(20, 0.7, 0.5), noise=noise)
    grid = TimeGrid.truncated(SCHEDULE, 20, 0.5)
    a = SCHEDULE.alphas_cumprod[grid.start]
    x_T = a.sqrt() * x + (1 - a).sqrt() * noise.drawn["sdedit start", grid.start]
    noises = torch.stack([noise.drawn["sdedit", t] for t in grid.timesteps[:-1]])
    code = cyclelight.LatentCode(x_T, noises, None, grid, 0.7, SCHEDULE)
    assert_close(cyclelight.decode(TARGET, code), y, **TIGHT)


def test_sdedit_is_the_recorded_refinement() -> None:
    """Of the recorded decoding the states before and after are known, and all noises."""
    v = {k: x.double() for k, x in vectors("encdec_c1000_es10_ddpm_refine4x1").items()}
    target = domain(Table(v["a_B"], v["b_B"]), 4)
    states = v["decode_x_B_f64"]  # 10 of the decoder, then 4 of the refinement.
    noise = Recorded(v["decode_noise_B"][1:])
    y = cyclelight.translate(
        None, target, states[9:10], method=SDEdit(1000, 1.0, 0.004), noise=noise
    )
    assert_close(y[0], states[13], rtol=0, atol=1e-9)


def test_edit_friendly_is_the_published_inversion_and_decoding() -> None:
    """x_t independent for each t, z_t what then leads from one to the next, decoded by the target.

    Huberman-Spiegelglas et al. 2024, sec. 3, written down for exact denoisers of N(m, s^2).
    """
    x, noise, steps = images(), Spy(), 10
    y = cyclelight.translate(SOURCE, TARGET, x, method=EditFriendly(steps, 1.0, 0.8), noise=noise)
    ts = list(range(700, -1, -100))
    abar = [float(SCHEDULE.alphas_cumprod[t]) for t in ts] + [1.0]

    def mean_std(state: Tensor, i: int, m: float, s: float) -> tuple[Tensor, float]:
        """The ancestral step of DDPM, from its posterior (Ho et al. 2020, Eq. 7)."""
        a, b = abar[i], abar[i + 1]
        x_0 = m + a**0.5 * s**2 / (a * s**2 + 1 - a) * (state - a**0.5 * m)
        mean = b**0.5 * (1 - a / b) / (1 - a) * x_0
        mean = mean + (a / b) ** 0.5 * (1 - b) / (1 - a) * state
        return mean, ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5

    chain = [
        a**0.5 * x + (1 - a) ** 0.5 * noise.drawn["independent", t]
        for a, t in zip(abar, ts, strict=False)
    ]
    chain.append(x)
    state = chain[0]
    for i in range(len(ts)):
        mean, std = mean_std(chain[i], i, -0.3, 0.2)
        residual = chain[i + 1] - mean  # z_t times its standard deviation, 0 at the end
        mean, std_target = mean_std(state, i, 0.4, 0.35)
        assert std == std_target
        state = mean + residual
    assert_close(y, state, **TIGHT)


def test_ddcm_is_the_published_step() -> None:
    x, noise = images(), Spy()
    y = cyclelight.translate(SOURCE, TARGET, x, method=DDCM(10, 0.7), noise=noise)
    ts = list(range(600, -1, -100))
    state: Tensor | None = None
    for t, s in zip(ts, [*ts[1:], None], strict=True):
        a = SCHEDULE.alphas_cumprod[t]
        fresh = a.sqrt() * x + (1 - a).sqrt() * noise.drawn["independent", t]
        state = fresh if state is None else state

        def x_0_hat(known: Any, at: Tensor, a: Tensor = a, t: int = t) -> Tensor:
            return (at - (1 - a).sqrt() * known.denoiser(at, t).eps) / a.sqrt()

        x_0 = x_0_hat(TARGET, state) + x - x_0_hat(SOURCE, fresh)
        if s is None:
            state = x_0
        else:
            b = SCHEDULE.alphas_cumprod[s]
            state = b.sqrt() * x_0 + (1 - b).sqrt() * noise.drawn["independent", s]
    assert_close(y, state, **TIGHT)


def test_independent_draws_without_sigma_are_flowedit() -> None:
    """D_s = D_t + (r_s - r_t)(eps_target - eps_source), D = (y - x) / sqrt(abar), r noise to image.

    The update of FlowEdit (Kulikov et al. 2025), by the change of variables that makes a rectified
    flow of a variance-preserving chain.
    """
    x, noise, grid = images(), Spy(), TimeGrid.whole(SCHEDULE, 20)
    chain = list(
        source_chain(SOURCE.denoiser, x, grid=grid, eta=0.0, noise=noise, draw="independent")
    )
    states = list(lockstep(TARGET.denoiser, chain))
    D = torch.zeros_like(x)
    for step, y in zip(chain, states, strict=True):
        a, b = (SCHEDULE.alpha_bar(t) for t in (step.t, step.s))
        eps = TARGET.denoiser(step.x_t + a**0.5 * D, step.t).eps
        eps = eps - SOURCE.denoiser(step.x_t, step.t).eps
        D = D + (((1 - b) / b) ** 0.5 - ((1 - a) / a) ** 0.5) * eps
        assert_close(y, step.x_s + b**0.5 * D, rtol=0, atol=1e-9)


@pytest.mark.parametrize("draw", ["chain", "independent", "one"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, "maximum"])
def test_source_chains_have_the_marginals_of_q(draw: Draw, eta: Eta) -> None:
    x = torch.full((1, 3, 128, 128), 0.5, dtype=torch.float64)
    grid = TimeGrid.whole(SCHEDULE, 5)
    steps = list(source_chain(SOURCE.denoiser, x, grid=grid, eta=eta, noise=Spy(1), draw=draw))
    assert [step.t for step in steps] == list(grid.timesteps) and torch.equal(steps[-1].x_s, x)
    for step in steps:
        a = SCHEDULE.alpha_bar(step.t)
        moments = torch.stack([step.x_t.mean(), step.x_t.std()])
        expected = torch.tensor([a**0.5 * 0.5, (1 - a) ** 0.5], dtype=torch.float64)
        # 49,152 pixels: four standard errors are at most 0.018.
        assert_close(moments, expected, rtol=0, atol=0.018)
    noises = torch.stack(
        [(s.x_t - SCHEDULE.alpha_bar(s.t) ** 0.5 * 0.5).flatten() for s in steps[:-1]]
    )
    correlation = torch.corrcoef(noises)[0, 1]
    if draw == "one" or (draw == "chain" and eta == 0):
        assert correlation > 0.999999
    elif draw == "independent" or eta == "maximum":
        assert abs(correlation) < 0.02
    else:
        assert 0.02 < correlation < 0.999


METHODS: list[Method] = [
    CycleDiffusion(10, 0.5, 0.8, cleanup=0),
    EditFriendly(10, 1.0, 0.8),
    EditFriendly(10, 0.0, 0.8),
    DDCM(10, 0.8),
    FlowEdit(10, 0.8, n_avg=2),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_lockstep_methods_give_the_image_back(method: Method) -> None:
    x = images().float()
    assert torch.equal(cyclelight.translate(SOURCE, SOURCE, x, method=method), x)
    assert (cyclelight.translate(SOURCE, TARGET, x, method=method) - x).abs().max() > 0.1


@pytest.mark.parametrize(
    "method", [*METHODS, SDEdit(10), CycleDiffusion(10), ILVR(10, range_t=2)], ids=repr
)
def test_length_keys_and_callback(method: Method) -> None:
    x, states = images(3), list[Tensor]()
    y = cyclelight.translate(
        SOURCE, TARGET, x, method=method, keys=["a", "b", "c"], on_step=states.append
    )
    assert len(states) == method.length(SCHEDULE) and torch.equal(states[-1], y)
    alone = cyclelight.translate(SOURCE, TARGET, x[1:2], method=method, keys=["b"])
    assert_close(alone, y[1:2], **TIGHT)
    other = cyclelight.translate(SOURCE, TARGET, x, method=method, keys=["a", "b", "c"], seed=1)
    assert (other - y).abs().max() > 1e-3


def test_no_two_purposes_share_a_name() -> None:
    """What is drawn for one thing must not return in another, such as a sample's code in itself."""
    x = images()
    purposes: dict[str, set[str]] = {}
    for name, method in {
        "cyclediffusion": CycleDiffusion(10, cleanup=0),
        "edit-friendly": EditFriendly(10),
        "sdedit": SDEdit(10),
        "ilvr": ILVR(10, range_t=2),
    }.items():
        noise = Spy()
        cyclelight.translate(SOURCE, TARGET, x, method=method, noise=noise)
        purposes[name] = noise.purposes
    noise = Spy()
    cyclelight.translate(SOURCE, TARGET, x, method=CycleDiffusion(10, cleanup=300), noise=noise)
    purposes["cleanup"] = noise.purposes - purposes["cyclediffusion"]
    noise = Spy()
    cyclelight.sample(TARGET, 2, steps=10, noise=noise)
    purposes["sample"] = noise.purposes
    chain = source_chain(
        SOURCE.denoiser,
        x,
        grid=TimeGrid.whole(SCHEDULE, 2),
        eta=0,
        noise=(noise := Spy()),
        draw="one",
    )
    assert len(list(chain)) == 2
    purposes["one noise"] = noise.purposes
    everything = [purpose for names in purposes.values() for purpose in names]
    assert all(purposes.values()) and len(everything) == len(set(everything)) == 13


def test_a_samples_code_is_not_the_noise_that_it_was_made_of() -> None:
    """With one name for both, encoding a sample by its own seed and key found exactly its x_T."""
    made = Spy(4)
    x = cyclelight.sample(SOURCE, 4, steps=50, noise=made)
    code = cyclelight.encode(SOURCE, x, steps=50, strength=1.0, seed=0)
    x_T = made.drawn["sample start", 980]
    correlation = torch.corrcoef(torch.stack([code.x_T.flatten(), x_T.flatten()]))[0, 1]
    assert abs(correlation) < 0.15  # 768 numbers: four standard errors.


def test_one_set_of_defaults() -> None:
    settings = as_json(asdict(CycleDiffusion()))
    encode = {n: p.default for n, p in inspect.signature(cyclelight.encode).parameters.items()}
    shared = settings.keys() & encode.keys()
    assert shared == {"steps", "eta", "strength", "last_residual"}
    assert {name: encode[name] for name in shared} == {name: settings[name] for name in shared}
    method = inspect.signature(TranslationModule).parameters["method"].default
    assert method == CycleDiffusion()
    recipe = yaml.safe_load((ROOT / "configs" / "translate" / "cat2dog.yaml").read_text())
    assert recipe["model"]["init_args"]["method"]["init_args"] == settings


@pytest.mark.parametrize("animal", ["cat", "wild"])
@pytest.mark.parametrize("kind", ["", "_released"])
def test_published_settings_by_name_are_those_of_the_recipes(animal: str, kind: str) -> None:
    recipe = yaml.safe_load(
        (ROOT / "configs" / "translate" / f"{animal}2dog256{kind}.yaml").read_text()
    )
    cleanup = {"cat": (100, 100), "wild": (125, 150)}[animal][bool(kind)]
    named = CycleDiffusion.released(cleanup) if kind else CycleDiffusion.paper(cleanup)
    assert recipe["model"]["init_args"]["method"]["init_args"] == asdict(named)


def test_the_fast_setting_by_name_is_that_of_the_recipes() -> None:
    for recipe in (ROOT / "configs" / "translate").glob("*_fast.yaml"):
        settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]["method"]["init_args"]
        named = asdict(CycleDiffusion.fast())
        if "256" in recipe.stem:  # The paper's cleanup there: 125 for wild animals.
            named["cleanup"] = settings["cleanup"]
        assert settings == {**named, "eta": list(named["eta"])}, recipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CycleDiffusion(eta=2), r"eta must be in \[0, 1\], got 2"),
        (lambda: CycleDiffusion(cleanup_eta=2), r"cleanup_eta must be in \[0, 1\], got 2"),
        (lambda: CycleDiffusion(eta=(1.0, 1.2)), r"eta must be in \[0, 1\], got 1\.2"),
        (
            lambda: CycleDiffusion(eta=(1.0, 0.5, 0.0)),  # type: ignore[arg-type]
            r"a number, got \(1\.0, 0\.5, 0\.0\); two are those of the clean and noisy end",
        ),
        (lambda: CycleDiffusion(cleanup=1001), r"cleanup must be in 0\.\.1000, got 1001"),
        (lambda: CycleDiffusion(last_residual="no"), "must be 'keep' or 'drop', got 'no'"),
        (lambda: SDEdit(strength=0), r"strength must be in \(0, 1\], got 0"),
        (lambda: DDCM(strength=2), r"strength must be in \(0, 1\], got 2"),
        (lambda: cyclelight.translate(None, TARGET, images()), "source: CycleDiffusion needs"),
        (lambda: cyclelight.translate(SOURCE, None, images(), method=SDEdit()), "target: SDEdit"),
        (
            lambda: cyclelight.translate(SOURCE, TARGET, images(), method=SDEdit(), steps=3),
            r"steps must be given to the method, SDEdit\(\.\.\.\)",
        ),
        (
            lambda: cyclelight.translate(SOURCE, TARGET, images(), steps=1001),
            r"must be in 1\.\.1000",
        ),
    ],
)
def test_what_does_not_fit_is_told(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_gradients_reach_the_image_through_whole_chains() -> None:
    """Of linear chains the derivative is known: a difference quotient gives it exactly."""

    class Differentiable(CycleDiffusion):
        gradients = True

    x = images().requires_grad_()
    method = Differentiable(10, 0.5, 0.8, cleanup=300)
    y = cyclelight.translate(SOURCE, TARGET, x, method=method)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    direction = torch.randn(x.shape, dtype=x.dtype)
    with torch.no_grad():
        moved = cyclelight.translate(SOURCE, TARGET, x + direction, method=method)
    assert_close((gradient * direction).sum(), (moved - y).sum(), rtol=1e-9, atol=1e-9)
    assert not cyclelight.translate(SOURCE, TARGET, x, steps=5).requires_grad


def test_a_denoiser_takes_a_timestep_for_each_image() -> None:
    unet = cyclelight.load_domain(ROOT / "checkpoints" / "cat", clip_x_0=True)
    x = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    ts = [0, 500, 999]
    with torch.no_grad():
        together = unet.denoiser(x, torch.tensor(ts)).eps
        alone = [unet.denoiser(x[i : i + 1], t).eps for i, t in enumerate(ts)]
    assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_every_setting_is_documented() -> None:
    """They are options of the command line, whose help is the docstring."""
    for method in (CycleDiffusion, SDEdit, EditFriendly, DDCM, FlowEdit, ILVR, DDIB, EGSDE, CUT):
        for field in fields(method):
            assert f"{field.name}: " in (method.__doc__ or ""), (method, field.name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
