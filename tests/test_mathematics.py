"""Schedule, grid, step, encoder and decoder against recorded runs, diffusers and closed forms."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from oracles import SCHEDULE, Gaussian, Recorded, Table, domain, vectors
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight import Domain, NoiseSchedule, TimeGrid
from cyclelight.diffusion.steps import Step, add_noise, x_0_from_eps
from cyclelight.networks.unet import UNetSettings

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
ETAS = [("ddim_eta0.1", 0.1), ("ddim_eta0.5", 0.5), ("ddim_eta1", 1.0)]


def test_linear_schedule_is_the_recorded_one() -> None:
    recorded = vectors("schedule")
    assert_close(SCHEDULE.betas, recorded["betas_f64"], rtol=1e-12, atol=0)
    assert_close(SCHEDULE.alphas_cumprod, recorded["alphas_cumprod_f64"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "schedule", [SCHEDULE, NoiseSchedule.scaled_linear(), NoiseSchedule.cosine()]
)
def test_schedules_are_those_of_diffusers(schedule: NoiseSchedule) -> None:
    theirs = DDPMScheduler(**schedule.to_diffusers()).alphas_cumprod.double()
    assert_close(schedule.alphas_cumprod, theirs, rtol=1e-3, atol=1e-6)  # theirs is float32
    assert NoiseSchedule.from_diffusers(schedule.to_diffusers()) == schedule


def test_grids_are_the_recorded_ones() -> None:
    recorded = vectors("timesteps")
    checked = 0
    for name, t in recorded.items():
        if not name.startswith("t.") or not name.endswith("_t0999"):
            continue
        custom, es = (int(re.sub(r"\D", "", part)) for part in name[2:].split("_")[:2])
        grid = TimeGrid.truncated(SCHEDULE, custom, es / custom)
        assert list(grid.timesteps) == t.tolist(), name
        t_next = recorded[name.replace("t.", "t_next.", 1)].tolist()
        assert [s for _, s in grid.pairs] == t_next, name
        checked += 1
    assert checked >= 12


@pytest.mark.parametrize("file", ["single_custom10_es10", "single_custom1000_es850"])
@pytest.mark.parametrize(("name", "eta"), [("ddim_eta0", 0.0), *ETAS, ("ddpm", 1.0)])
def test_step_is_the_recorded_one(file: str, name: str, eta: float) -> None:
    if name == "ddpm" and file != "single_custom1000_es850":
        pytest.skip("the recorded DDPM step ignores the grid: right only at stride 1")
    v = {k: x.double() for k, x in vectors(file).items()}
    for i, (t, s) in enumerate(zip(v["t"].int().tolist(), v["t_next"].int().tolist(), strict=True)):
        step = Step.between(SCHEDULE, t, s, eta)
        x_t, eps, noise = v["x_t"][i], v["eps_pred"][i], v["noise"][i]
        x_s = step.mean(x_t, eps) + step.sigma * noise
        assert_close(x_s, v[f"x_next.{name}_f64"][i], **TIGHT)
        assert_close(x_0_from_eps(x_t, eps, step.alpha_bar_t), v["x_0_pred_f64"][i], **TIGHT)
        assert_close(
            add_noise(v["x_0"][i], noise, step.alpha_bar_t), v["x_t_from_x_0_f64"][i], **TIGHT
        )
        if i < 3 and eta > 0:
            posterior = step.posterior(x_t, v["x_0"][i], noise)
            recorded = v[f"x_next_posterior.{name}_f64"][i]
            assert_close(posterior, recorded, **TIGHT)
            recovered = (recorded - step.mean(x_t, eps)) / step.sigma
            assert_close(recovered, v[f"eps_recovered.{name}_f64"][i], rtol=1e-7, atol=1e-7)
        if i < 3 and eta == 0:
            up = Step.between(SCHEDULE, s, t, 0.0).mean(x_t, eps)
            assert_close(up, v["x_inverted.ddim_eta0_f64"][i], **TIGHT)


def test_learned_sigma_is_the_recorded_one() -> None:
    v = {k: x.double() for k, x in vectors("single_custom1000_es850").items()}
    for i in range(3):
        t, s = int(v["t"][i]), int(v["t_next"][i])
        step = Step.between(SCHEDULE, t, s, 1.0)
        x_s = step.mean(v["x_t"][i], v["eps_pred"][i])
        x_s = x_s + step.learned_sigma(v["var_values"][i]) * v["noise"][i]
        assert_close(x_s, v["x_next.ddpm_learned_f64"][i], **TIGHT)


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.5, 1.0])
def test_step_is_that_of_diffusers(eta: float) -> None:
    scheduler = DDIMScheduler(
        1000, trained_betas=SCHEDULE.betas.numpy(), clip_sample=False, set_alpha_to_one=True
    )
    scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(50)
    x, eps, noise = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)
    grid = TimeGrid.whole(SCHEDULE, 50)
    assert list(grid.timesteps) == scheduler.timesteps.tolist()
    for t, s in grid.pairs:
        theirs = scheduler.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
        step = Step.between(SCHEDULE, t, s, eta)
        assert_close(step.mean(x, eps) + step.sigma * noise, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("file", "steps", "strength", "eta"),
    [
        *((f"encdec_c1000_es10_{name}", 1000, 0.01, eta) for name, eta in ETAS),
        ("encdec_c1000_es10_ddpm", 1000, 0.01, 1.0),
        ("encdec_c10_es10_ddim_eta0.1_jumpT", 10, 1.0, 0.1),
        ("encdec_c10_es10_ddim_eta1_jumpT", 10, 1.0, 1.0),
        ("encdec_c10_es7_ddim_eta0.5_jumpT", 10, 0.7, 0.5),
    ],
)
def test_encoder_and_decoder_are_the_recorded_ones(
    file: str, steps: int, strength: float, eta: float
) -> None:
    v = {k: x.double() for k, x in vectors(file).items()}
    a, b = (domain(Table(v[f"a_{n}"], v[f"b_{n}"]), 4, n) for n in "AB")
    image = v["image"] * 2 - 1
    code = cyclelight.encode(
        a,
        image,
        steps=steps,
        strength=strength,
        eta=eta,
        last_residual="drop",
        noise=Recorded(v["encode_noise"]),
    )
    assert_close(code.x_T[0], v["z_f64"][0], **TIGHT)
    assert_close(code.noises[:, 0], v["z_f64"][1:], rtol=1e-6, atol=1e-6)
    for name, target in (("A", a), ("B", b)):
        image = (cyclelight.decode(target, code) + 1) / 2
        assert_close(image, v[f"image_{name}_f64"], **TIGHT)


def test_cleanup_is_the_recorded_refinement() -> None:
    v = {k: x.double() for k, x in vectors("encdec_c1000_es10_ddpm_refine4x1").items()}
    a, b = (domain(Table(v[f"a_{n}"], v[f"b_{n}"]), 4, n) for n in "AB")
    # The recorded decoder also drew a noise that it then multiplied by 0, before the refinement.
    noises = [*v["encode_noise"], *v["decode_noise_B"][1:]]
    result = cyclelight.translate(
        a,
        b,
        v["image"] * 2 - 1,
        steps=1000,
        strength=0.01,
        eta=1.0,
        cleanup=4,
        last_residual="drop",
        noise=Recorded(noises),
    )
    assert_close((result + 1) / 2, v["image_B_f64"], **TIGHT)


ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def even(steps: int, strength: float) -> list[int]:
    return [int(t) for t in np.arange(0, 1000, 1000 // steps)[: round(strength * steps)][::-1]]


def recursion(
    source: Gaussian,
    target: Gaussian,
    ts: Sequence[int],
    eta: Callable[[int], float],
    independent: bool = False,
) -> Tensor:
    """(mean, std, correlation) of the translation y of x ~ source, by the exact linear recursion.

    Everything is linear in (x_0, x_t, y_t) and the noises: their joint mean and covariance are
    carried down the grid, with no code in common with the library.
    """
    abar = ABAR
    a = abar[ts[0]]
    mean = np.array([source.mean, np.sqrt(a) * source.mean, np.sqrt(a) * source.mean])
    v0 = source.std**2
    vt = a * v0 + 1 - a
    c = np.sqrt(a) * v0
    cov = np.array([[v0, c, c], [c, vt, vt], [c, vt, vt]])
    for t, s in zip(ts, [*ts[1:], None], strict=True):
        a, b = abar[t], 1.0 if s is None else abar[s]
        sigma = eta(t) * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        direction = np.sqrt(max(0.0, 1 - b - sigma**2))
        rows = []
        for g in (source, target):  # mu(x) = gain x + shift for the exact denoiser
            k = np.sqrt(1 - a) / (a * g.std**2 + 1 - a)
            gain = np.sqrt(b / a) + (direction - np.sqrt(b / a) * np.sqrt(1 - a)) * k
            shift = -(direction - np.sqrt(b / a) * np.sqrt(1 - a)) * k * np.sqrt(a) * g.mean
            rows.append((gain, shift))
        (gs, hs), (gt, ht) = rows
        # x_s = p x_0 + q x_t + sigma n;  y_s = x_s + mu_target(y_t) - mu_source(x_t)
        q = direction / np.sqrt(1 - a)
        p = np.sqrt(b) - q * np.sqrt(a)
        spread = sigma
        if independent:  # Of x_t nothing is kept.
            q, p, spread = 0.0, np.sqrt(b), np.sqrt(1 - b)
        M = np.array([[1, 0, 0], [p, q, 0], [p, q - gs, gt]])
        noise = np.array([0, spread, spread])
        mean = M @ mean + np.array([0, 0, ht - hs])
        cov = M @ cov @ M.T + np.outer(noise, noise)
    std = np.sqrt(np.diag(cov))
    return torch.tensor([mean[2], std[2], cov[0, 2] / (std[0] * std[2])])


@pytest.mark.parametrize(
    ("eta", "strength", "known"),
    [
        (1.0, 1.0, (0.398, 0.347, 0.949)),
        (0.5, 1.0, (0.398, 0.318, 0.932)),
        (0.1, 1.0, (0.397, 0.307, 0.926)),
        (0.1, 0.5, (0.328, None, None)),
    ],
)
def test_gaussian_domains_translate_as_the_recursion_says(
    eta: float, strength: float, known: tuple[float | None, ...]
) -> None:
    """For eta < 1 the result is *not* distributed as the target, N(0.4, 0.35^2)."""
    source, target = Gaussian(-0.3, 0.2), Gaussian(0.4, 0.35)
    expected = recursion(source, target, even(250, strength), lambda t: eta)
    for value, figure in zip(expected, known, strict=True):
        assert figure is None or abs(float(value) - figure) < 4e-3  # seen in a finite sample
    generator = torch.Generator().manual_seed(1)
    x = -0.3 + 0.2 * torch.randn(8, 3, 64, 64, generator=generator, dtype=torch.float64)
    y = cyclelight.translate(
        domain(source, 64),
        domain(target, 64),
        x,
        steps=250,
        eta=eta,
        strength=strength,
        cleanup=0,
    )
    correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
    # 98,304 pixels: three standard errors of the mean are 0.0034, of the others less.
    assert_close(
        torch.stack([y.mean(), y.std(), correlation]), expected.double(), rtol=0, atol=4e-3
    )


def uniform_in_logsnr(start: int, count: int) -> list[int]:
    """The timesteps nearest to equal distances in log SNR, found by search."""
    snr = np.log(ABAR / (1 - ABAR))[: start + 1]
    wanted = np.linspace(snr[0], snr[-1], count)
    return [int(np.argmin(np.abs(snr - value))) for value in wanted]


@pytest.mark.parametrize(
    ("settings", "ts", "eta", "independent"),
    [
        ({"spacing": "quadratic"}, [round(849 * (i / 33) ** 2) for i in range(34)], 1.0, False),
        ({"spacing": "logsnr"}, None, 1.0, False),
        ({"eta": (0.2, 0.9)}, even(40, 0.85)[::-1], (0.2, 0.9), False),
        ({"eta": (1.0, 0.0)}, even(40, 0.85)[::-1], (1.0, 0.0), False),
        ({"draw": "independent"}, even(40, 0.85)[::-1], 1.0, True),
        ({"draw": "independent", "eta": 0.0}, even(40, 0.85)[::-1], 0.0, True),
    ],
)
def test_grids_etas_and_draws_do_as_the_recursion_says(
    settings: dict[str, Any], ts: list[int] | None, eta: Any, independent: bool
) -> None:
    source, target = Gaussian(-0.3, 0.2), Gaussian(0.4, 0.35)
    clean, noisy = eta if isinstance(eta, tuple) else (eta, eta)
    if ts is None:
        ts = uniform_in_logsnr(849, 34)
        ts = [t + max(0, i - t) for i, t in enumerate(ts)]  # Each timestep once: 0, 1, 2, ...
    settings = {"eta": 1.0, **settings}
    method = cyclelight.CycleDiffusion(steps=40, strength=0.85, cleanup=0, **settings)
    grid = method.grid(SCHEDULE).timesteps[::-1]
    # Where two are as near in log SNR as in t, either may be taken.
    assert max(abs(own - other) for own, other in zip(grid, ts, strict=True)) <= 1
    expected = recursion(
        source, target, grid[::-1], lambda t: clean + (noisy - clean) * t / 1000, independent
    )
    generator = torch.Generator().manual_seed(1)
    x = -0.3 + 0.2 * torch.randn(8, 3, 64, 64, generator=generator, dtype=torch.float64)
    y = cyclelight.translate(domain(source, 64), domain(target, 64), x, method=method)
    correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
    found = torch.stack([y.mean(), y.std(), correlation])
    assert_close(found, expected.double(), rtol=0, atol=4e-3)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 500, 1000])
@pytest.mark.parametrize("strength", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["quadratic", "logsnr"])
def test_a_spaced_grid_has_its_ends_and_each_timestep_once(
    steps: int, strength: float, spacing: Any
) -> None:
    grid = TimeGrid.spaced(SCHEDULE, steps, strength, spacing)
    count = max(1, round(strength * steps))
    assert len(grid) == len(set(grid.timesteps)) == count
    assert grid.timesteps[-1] == 0
    if count > 1:
        assert grid.start == max(count, round(strength * 1000)) - 1
    with pytest.raises(ValueError, match="spacing must be one of leading, quadratic, logsnr"):
        TimeGrid.spaced(SCHEDULE, steps, strength, "even")  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", ["quadratic", "logsnr"])
@pytest.mark.parametrize("eta", [(0.0, 1.0), (1.0, 0.0), 0.5])
@pytest.mark.parametrize("draw", ["chain", "independent", "one"])
def test_equal_models_give_the_image_back_with_every_setting(
    folders: dict[str, Path], spacing: Any, eta: Any, draw: Any
) -> None:
    source = cyclelight.load_domain(folders["epsilon"])
    method = cyclelight.CycleDiffusion(6, eta, 0.85, spacing, cleanup=0, draw=draw)
    x = images()
    assert torch.equal(cyclelight.translate(source, source, x, method=method), x)


def test_codes_are_gaussian_only_at_eta_1() -> None:
    data = domain(Gaussian(-0.3, 0.2), 32)
    x = -0.3 + 0.2 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gaussian = cyclelight.encode(data, x.double(), steps=1000, eta=1.0).mean_squares().mean(1)
    # At the lowest t the posterior's variance leaves out what the model does not know of x_0.
    assert_close(gaussian[:-5].mean(), torch.tensor(1.0).double(), rtol=0, atol=0.02)
    assert cyclelight.encode(data, x, steps=1000, eta=0.1).mean_squares()[-50:].mean() > 2


def test_inversion_error_falls_like_one_over_steps() -> None:
    data = domain(Gaussian(0.4, 0.35), 8)
    x = 0.4 + 0.35 * torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def error(steps: int) -> float:
        x_T = cyclelight.invert(data, x, steps=steps)
        back = cyclelight.sample(data, x_T=x_T, steps=steps, eta=0.0)
        return float((back - x).abs().max())

    assert 1.5 < error(50) / error(100) < 3
    assert 1.5 < error(100) / error(200) < 3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Domain folders of tiny random networks, one for each prediction type and one perturbed."""
    root, made = tmp_path_factory.mktemp("domains"), {}
    for name in ("epsilon", "v_prediction", "sample", "other"):
        torch.manual_seed(0)
        settings = UNetSettings((16, 16), 1, (8,), head_channels=8, norm_groups=8)
        unet = settings.build(resolution=16, channels=3)
        kind = name if name != "other" else "epsilon"
        if name == "other":
            with torch.no_grad():
                for p in unet.parameters():
                    p.add_(1e-3)
        made[name] = cyclelight.save_domain(
            root / name, unet, SCHEDULE, prediction_type=kind, card={"name": name}
        )
    return made


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def counting(loaded: Domain) -> list[int]:
    calls: list[int] = []
    loaded.denoiser.network.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    return calls


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize(
    "steps",
    [10, pytest.param(100, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_equal_models_give_the_image_back(
    folders: dict[str, Path], kind: str, eta: float, steps: int, strength: float
) -> None:
    """Bit for bit in lockstep, with both networks called at every step; to rounding from a code."""
    source, target = cyclelight.load_domain(folders[kind]), cyclelight.load_domain(folders[kind])
    calls = counting(source), counting(target)
    settings = {"steps": steps, "eta": eta, "strength": strength}
    x = images()
    assert torch.equal(cyclelight.translate(source, target, x, cleanup=0, **settings), x)
    assert len(calls[0]) == len(calls[1]) == round(strength * steps)
    if kind != "epsilon":  # Whose rounding errors grow, see below.
        code = cyclelight.encode(source, x, **settings)
        assert_close(cyclelight.decode(target, code), x, rtol=0, atol=1e-5)
    if kind == "epsilon" or steps == 10:
        source, target = source.to(dtype=torch.float64), target.to(dtype=torch.float64)
        code = cyclelight.encode(source, x.double(), **settings)
        assert_close(cyclelight.decode(target, code), x.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("steps", [10, 100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_rounding_errors_of_random_eps_networks_scale_with_the_precision(
    folders: dict[str, Path], eta: float, steps: int, strength: float
) -> None:
    """To first order, what rounding does to a chain is the unit u times a number of that chain.

    So the error in float64 tells that in float32, up to chance. No absolute bound can be given, as
    an untrained network does not answer to x_t as a trained one does.
    """
    errors = []
    for dtype in (torch.float64, torch.float32):
        source = cyclelight.load_domain(folders["epsilon"], dtype=dtype)
        x = images(torch.float64).to(dtype)
        code = cyclelight.encode(source, x, steps=steps, eta=eta, strength=strength)
        error = (cyclelight.decode(source, code) - x).abs().max()
        errors.append(float(error) / torch.finfo(dtype).eps)
    assert errors[1] < 4 * errors[0]


@pytest.mark.parametrize("strength", [1.0, 0.85])
@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_a_perfect_eps_model_gives_the_image_back_from_a_stored_code(
    eta: float, steps: int, strength: float
) -> None:
    data, x = domain(Gaussian(0.0, 0.5), 16), images()
    settings = {"steps": steps, "eta": eta, "strength": strength}
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        code = cyclelight.encode(data, x.to(dtype), **settings)
        assert_close(cyclelight.decode(data, code), x.to(dtype), rtol=0, atol=atol)
        same = cyclelight.translate(data, data, x.to(dtype), cleanup=0, **settings)
        assert torch.equal(same, x.to(dtype))


def test_another_target_changes_the_image(folders: dict[str, Path]) -> None:
    source, target = (cyclelight.load_domain(folders[n]) for n in ("epsilon", "other"))
    x = images(torch.float64)
    y = cyclelight.translate(source, target, x, steps=10, cleanup=0)
    assert (y - x).abs().max() > 1e-3
    decoded = cyclelight.decode(target, cyclelight.encode(source, x, steps=10))
    assert_close(decoded, y, rtol=0, atol=1e-5)  # the networks are float32


def test_an_image_does_not_depend_on_its_batch(folders: dict[str, Path]) -> None:
    source, target = (cyclelight.load_domain(folders[n]) for n in ("epsilon", "other"))
    x = images()
    both = cyclelight.translate(
        source, target, x, steps=10, strength=0.5, cleanup=300, keys=["a", "b"]
    )
    alone = cyclelight.translate(
        source, target, x[1:], steps=10, strength=0.5, cleanup=300, keys=["b"]
    )
    assert_close(both[1:], alone, rtol=0, atol=2e-5)


def test_code_survives_the_disk(folders: dict[str, Path], tmp_path: Path) -> None:
    source = cyclelight.load_domain(folders["epsilon"])
    code = cyclelight.encode(source, images(), steps=10)
    code.save(tmp_path / "code.safetensors")
    loaded = cyclelight.LatentCode.load(tmp_path / "code.safetensors")
    assert torch.equal(cyclelight.decode(source, loaded), cyclelight.decode(source, code))
    (tmp_path / "text").write_text("no code")
    with pytest.raises(ValueError, match="is not a latent code"):
        cyclelight.LatentCode.load(tmp_path / "text")


def test_a_code_at_eta_0_holds_the_residuals_of_one_noise() -> None:
    """The chain keeps its first noise, so that all is known in closed form from x_T alone."""
    source, x = Gaussian(-0.3, 0.2), images(torch.float64)
    code = cyclelight.encode(domain(source, 16), x, steps=10, strength=1.0, eta=0.0)
    a = SCHEDULE.alphas_cumprod[list(code.grid.timesteps)].tolist()
    noise = (code.x_T - a[0] ** 0.5 * x) / (1 - a[0]) ** 0.5
    for i, (t, _, residual) in enumerate(code.steps()):
        b = a[i + 1] if i + 1 < len(a) else 1.0
        x_t = a[i] ** 0.5 * x + (1 - a[i]) ** 0.5 * noise
        eps = source(x_t, t).eps
        x_0_hat = (x_t - (1 - a[i]) ** 0.5 * eps) / a[i] ** 0.5
        mean = b**0.5 * x_0_hat + (1 - b) ** 0.5 * eps
        assert residual is not None
        assert_close(residual, b**0.5 * x + (1 - b) ** 0.5 * noise - mean, rtol=0, atol=1e-12)
    assert_close(cyclelight.decode(domain(source, 16), code), x, rtol=0, atol=1e-12)
    target = domain(Gaussian(0.4, 0.35), 16)
    settings: dict[str, Any] = {"steps": 10, "strength": 1.0, "eta": 0.0, "cleanup": 0}
    y = cyclelight.translate(domain(source, 16), target, x, **settings)
    assert_close(cyclelight.decode(target, code), y, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="eta 0 has no noises"):
        code.mean_squares()


def test_a_part_of_a_code_decodes_to_that_part(folders: dict[str, Path]) -> None:
    source, target = (cyclelight.load_domain(folders[name]) for name in ("epsilon", "other"))
    x = torch.rand(3, *source.shape) * 2 - 1
    code = cyclelight.encode(source, x, steps=4)
    assert len(code) == 3 and len(list(code)) == 3
    whole = cyclelight.decode(target, code)
    for part, rows in ((code[1], whole[1:2]), (code[-1], whole[2:]), (code[:2], whole[:2])):
        torch.testing.assert_close(cyclelight.decode(target, part), rows, atol=1e-5, rtol=0)
    with pytest.raises(IndexError):
        code[3]
    for told in (repr(code), repr(code[0]), repr(source)):
        assert len(told) < 120 and "\n" not in told
    assert repr(code).startswith("LatentCode(3 images of ")


@pytest.mark.parametrize("last_residual", ["keep", "drop"])
def test_a_code_moves_as_a_whole(last_residual: Any) -> None:
    data = domain(Gaussian(-0.3, 0.2), 16)
    code = cyclelight.encode(data, images(), steps=5, last_residual=last_residual)
    moved, there = code.to(dtype=torch.float64), code.to("meta")
    for name in ("x_T", "noises", "last_residual"):
        before, after, away = (getattr(c, name) for c in (code, moved, there))
        if name == "last_residual" and last_residual == "drop":
            assert before is after is away is None
            continue
        assert torch.equal(after, before.double()) and away.device.type == "meta"
    assert (moved.grid, moved.eta, moved.source) == (code.grid, code.eta, code.source)
    assert_close(cyclelight.decode(data, moved).float(), cyclelight.decode(data, code))


def test_diffusers_loads_what_we_save(folders: dict[str, Path]) -> None:
    pipeline = DDPMPipeline.from_pretrained(folders["epsilon"], low_cpu_mem_usage=False)
    ours = cyclelight.load_domain(folders["epsilon"])
    theirs = pipeline.unet(images(), 500).sample
    assert_close(ours.denoiser(images(), 500).eps, theirs.detach())


def test_pairs_that_do_not_fit_are_refused() -> None:
    a, b = domain(Gaussian(0, 1), 8, "a"), domain(Gaussian(0, 1), 16, "b")
    with pytest.raises(ValueError, match="they differ in resolution: 8 and 16"):
        cyclelight.translate(a, b, torch.zeros(1, 3, 8, 8))
    c = domain(Gaussian(0, 1, NoiseSchedule.linear(1e-4, 0.03)), 8, "c")
    with pytest.raises(ValueError, match=r"schedules differ in beta_end 0\.02 and 0\.03"):
        cyclelight.translate(a, c, torch.zeros(1, 3, 8, 8))


def test_noise_belongs_to_the_image() -> None:
    like = torch.zeros(3, 3, 8, 8)
    noise = cyclelight.KeyedNoise(0, ["a", "b", "c"])("posterior", 10, like)
    other = cyclelight.KeyedNoise(0, ["c", "a"])("posterior", 10, like[:2].double())
    assert torch.equal(other.float(), noise[[2, 0]])
    assert not torch.equal(cyclelight.KeyedNoise(1, ["a"])("posterior", 10, like[:1]), noise[:1])
    with pytest.raises(ValueError, match="one key per image"):
        cyclelight.KeyedNoise(0, ["a"])("posterior", 10, like)
