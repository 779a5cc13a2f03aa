"""The samplers of guidance: the recorded chains, closed forms, divergence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.guidance.langevin import Adam, CrankNicolson, Langevin, Sampler, keep

VECTORS = Path(__file__).parent / "vectors" / "langevin"
CASES = {case["case"]: case for case in json.loads((VECTORS / "cases.json").read_text())}
ENERGIES = ("QuadEnergy", "ClassEnergy")


class Recorded:
    """The generator and the energies of the recorded runs, and their noises."""

    def __init__(self, name: str, double: bool) -> None:
        self.case = CASES[name]
        self.v = load_file(VECTORS / f"{name}{'_f64' if double else ''}.safetensors")
        self.weights = torch.tensor([self.case["weights"][e] for e in ENERGIES]).to(self.v["z"])
        weights = self.case["weights"]
        self.sampler = Langevin(
            self.case["n_steps"], self.case["step_size"], weights["PriorZEnergy"]
        )

    def __call__(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_(True)
        image = torch.tanh(z @ self.v["W"].T + self.v["b"])
        quad = 0.5 * (image - self.v["target"]).square().sum(dim=1)
        logit = image @ self.v["class_w"] + self.case["class_c"]
        values = torch.stack([quad, -torch.log(torch.sigmoid(logit) + 1e-8)])
        (gradient,) = torch.autograd.grad((self.weights[:, None] * values).sum(), z)
        return values.detach(), gradient

    def noise(self, purpose: str, step: int, like: Tensor) -> Tensor:
        assert purpose == "langevin"
        return self.v["noise"][step]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_published_chain(name: str, double: bool) -> None:
    run = Recorded(name, double)
    close = {"rtol": 0, "atol": 1e-12 if double else 1e-5}
    visits = list(run.sampler.chain(run, run.v["z"][0], run.noise))
    torch.testing.assert_close(torch.stack([visit.z for visit in visits]), run.v["z"], **close)
    for visit, energies in zip(visits, run.v["energies"], strict=False):
        assert visit.values is not None
        torch.testing.assert_close(visit.values, energies[:2], **close)
    weights = None
    if run.case["metric"] is not None:
        weights = torch.tensor([float(e == run.case["metric"]) for e in ENERGIES]).to(visits[0].z)
    kept = keep(iter(visits), weights)
    torch.testing.assert_close(kept.z, run.v["returned_z"], **close)
    if weights is not None:  # Which one: the best, not another one near it.
        found = [torch.allclose(kept.z, visit.z, rtol=0, atol=1e-9) for visit in visits]
        best = int(run.v["energies"][:, 1, 0].argmin())
        assert found == [i == best for i in range(len(visits))]


class Quadratic:
    """E(z) = precision |z - centre|^2 / 2, whose tilted distribution is Gaussian."""

    def __init__(self, precision: float, centre: float) -> None:
        self.precision, self.centre = precision, centre

    def __call__(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        gap = z - self.centre
        return (self.precision * gap.square().sum(dim=1) / 2)[None], self.precision * gap


def stationary(sampler: Sampler, precision: float, centre: float) -> tuple[float, float]:
    """(mean, variance) of many chains at their end, from N(0, I)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 50, generator=generator, dtype=torch.float64)

    def noise(purpose: str, step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    *_, last = sampler.chain(Quadratic(precision, centre), z, noise)
    return float(last.z.mean()), float(last.z.var())


# Of 100,000 numbers: a standard error of 0.0032 / sqrt(precision) and 0.0045 of the variance.
@pytest.mark.parametrize("step_size", [0.05, 0.5])
@pytest.mark.parametrize(("precision", "centre"), [(0.0, 0.0), (3.0, 1.0)])
def test_langevin_has_its_known_bias(step_size: float, precision: float, centre: float) -> None:
    """z <- (1 - a) z + b + sqrt(s) omega has variance s / (1 - (1 - a)^2), a = s (1 + p) / 2."""
    mean, variance = stationary(Langevin(200, step_size), precision, centre)
    a = step_size * (1 + precision) / 2
    assert mean == pytest.approx(precision * centre / (1 + precision), abs=0.013)
    assert variance == pytest.approx(step_size / (1 - (1 - a) ** 2), rel=0.018)
    if precision == 0:
        assert step_size / (1 - (1 - a) ** 2) == pytest.approx(1 / (1 - step_size / 4))


@pytest.mark.parametrize("step_size", [0.05, 0.5, 3.0])
def test_crank_nicolson_keeps_the_prior(step_size: float) -> None:
    """Exactly N(0, I) without an energy, whatever the step; the unadjusted chain's 4 at 3.0."""
    mean, variance = stationary(CrankNicolson(60, step_size), 0.0, 0.0)
    assert mean == pytest.approx(0, abs=0.013)
    assert variance == pytest.approx(1, rel=0.018)
    # In closed form: (1 - s / 4)^2 + s = (1 + s / 4)^2.
    s = step_size
    assert ((1 - s / 4) ** 2 + s) / (1 + s / 4) ** 2 == pytest.approx(1, rel=1e-12)


def test_crank_nicolson_is_nearer_to_the_tilted_distribution() -> None:
    precision, centre, step = 1.0, 1.0, 0.4
    true_mean, true_variance = precision * centre / (1 + precision), 1 / (1 + precision)
    explicit, implicit = (
        stationary(kind(300, step), precision, centre) for kind in (Langevin, CrankNicolson)
    )
    for mean, _ in (explicit, implicit):
        assert mean == pytest.approx(true_mean, abs=0.013)
    assert abs(implicit[1] - true_variance) < 0.6 * abs(explicit[1] - true_variance)


def test_adam_agrees_with_torch() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 5, dtype=torch.float64)
    problem = Quadratic(4.0, 2.0)
    visits = list(Adam(30, 0.1, prior=0.5).chain(problem, z, KeyedNoise(0, range(3))))
    parameter = torch.nn.Parameter(z.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for visit in visits[1:]:
        loss = (problem(parameter, 0)[0].sum() + 0.25 * parameter.square().sum()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(visit.z, parameter.detach(), rtol=1e-9, atol=1e-9)


class Cliff(Quadratic):
    """Not finite for one chain at one step, or for all from `always` on."""

    def __init__(self, at: int, always: bool = False) -> None:
        super().__init__(1.0, 0.0)
        self.at, self.always = at, always

    def __call__(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        values, gradient = super().__call__(z, step)
        if step == self.at or (self.always and step > self.at):
            gradient = gradient.clone()
            gradient[1] = torch.nan
        return values, gradient


@pytest.mark.parametrize("sampler", [Langevin(8), CrankNicolson(8), Adam(8)])
def test_a_diverged_chain_begins_anew(sampler: Sampler, caplog: pytest.LogCaptureFixture) -> None:
    noise, z = (
        KeyedNoise(0, range(3)),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
    )
    calm = list(sampler.chain(Cliff(99), z, noise))
    visits = list(sampler.chain(Cliff(3), z, noise))
    assert "1 chains diverged at step 3" in caplog.text
    assert visits[-1].restarts.tolist() == [0, 1, 0]
    for a, b in zip(calm, visits, strict=True):  # The others are left alone.
        torch.testing.assert_close(a.z[::2], b.z[::2], rtol=0, atol=0)
    torch.testing.assert_close(visits[3].z[1], z[1], rtol=0, atol=0)
    assert all(visit.z.isfinite().all() for visit in visits)


def test_a_chain_that_cannot_go_on_is_told() -> None:
    z, noise = torch.randn(3, 4), KeyedNoise(0, range(3))
    with pytest.raises(RuntimeError, match="not finite where the chain begins"):
        list(Langevin(8).chain(Cliff(0), z, noise))
    with pytest.raises(RuntimeError, match=r"not finite after 5 steps: a smaller step or weight"):
        list(Langevin(8).chain(Cliff(2, always=True), z, noise))


def test_bad_settings() -> None:
    for kind, settings, told in (
        (Langevin, {"steps": 0}, "steps must be at least 1"),
        (Langevin, {"step_size": 4.0}, r"step_size must be in \(0, 4\), got 4.0"),
        (CrankNicolson, {"step_size": 0}, r"step_size must be in \(0, 4\), got 0"),
        (Adam, {"learning_rate": 0}, "learning_rate must be above 0"),
        (Adam, {"prior": -1}, "prior must be at least 0"),
    ):
        with pytest.raises(ValueError, match=told):
            kind(**settings)  # type: ignore[arg-type]
