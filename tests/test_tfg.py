"""Training-free guidance, against closed forms on Gaussian pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import Gaussian, domain
from torch import Tensor

from cyclelight import NoiseSchedule
from cyclelight.diffusion.denoiser import mean_and_sigma
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.steps import Step
from cyclelight.guidance.energies import DistanceEnergy
from cyclelight.guidance.generators import DomainGenerator
from cyclelight.guidance.guided import guide
from cyclelight.guidance.tfg import TFG, Steered

SCHEDULE = NoiseSchedule.linear()


def quadratic(x: Tensor, step: int) -> Tensor:
    """|x - 1|^2 / 2."""
    return (x - 1).square().sum(dim=(1, 2, 3)) / 2


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_step_is_that_of_the_paper(eta: float) -> None:
    """x_s = Sample + Delta_t / sqrt(alpha_t) + sqrt(abar_s) Delta_0, with gradients by hand."""
    t, s, std, rho, mu = 600, 400, 0.5, 0.3, 0.2
    plain: Any = Gaussian(0.0, std)
    settings = TFG(rho, mu, 2)
    x_t = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    step = Step.between(SCHEDULE, t, s, eta)
    mean, _ = mean_and_sigma(step, x_t, plain(x_t, t))
    guided, _ = mean_and_sigma(
        step, x_t, Steered(plain, settings, quadratic, lambda _: None)(x_t, t)
    )
    a_t, a_s = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(s)
    strength = a_t / float(SCHEDULE.alphas_cumprod.mean())
    # x_0_hat = gain x_t, the mean of Gaussian pixels.
    gain = a_t**0.5 * std**2 / (a_t * std**2 + 1 - a_t)
    delta_t = -rho * strength * gain * (gain * x_t - 1)
    start = moved = gain * x_t + delta_t / a_t**0.5
    for _ in range(2):
        moved = moved - mu * strength * (moved - 1)
    wanted = mean + delta_t / (a_t / a_s) ** 0.5 + a_s**0.5 * (moved - start)
    torch.testing.assert_close(guided, wanted, rtol=1e-9, atol=1e-9)


def test_a_whole_chain_goes_where_it_is_sent(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "white.png")
    energy = DistanceEnergy(str(tmp_path / "white.png"))
    energy.load(8)
    generator = DomainGenerator(domain(Gaussian(0.0, 0.5), 8), 20, 1.0)
    noise = KeyedNoise(0, range(3))
    z = generator.sample_latent(noise, torch.empty(3, dtype=torch.float64))
    count: list[int] = []
    found = guide(
        generator, [energy], TFG(0.2, 0.1, 2), z, noise, way=2, on_step=lambda: count.append(1)
    )
    assert (found.after < 0.6 * found.before).all()
    assert len(count) == 20 == len(found.kept.values)
    assert found.way.shape == (2, 3, 3, 8, 8)
    torch.testing.assert_close(found.kept.z, z, rtol=0, atol=0)
    weaker = guide(generator, [energy], TFG(0.05, 0.0, 1), z, noise)
    assert (found.after < weaker.after).all() and (weaker.after < weaker.before).all()


def test_a_gradient_that_is_not_finite_is_told() -> None:
    plain: Any = Gaussian(0.0, 0.5)
    x_t = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def cliff(x: Tensor, step: int) -> Tensor:
        return quadratic(x, step) * torch.tensor([1.0, torch.nan])

    with pytest.raises(RuntimeError, match="not finite after 0 steps of the chain: a smaller rho"):
        Steered(plain, TFG(), cliff, lambda _: None)(x_t, 500)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="rho must be above 0 where mu or iterations is 0"):
        TFG(0.0, 0.0)
    with pytest.raises(ValueError, match="mu must be at least 0"):
        TFG(0.1, -1)
