"""Guidance of Gaussian generators: whole runs of chains, against the tilted distribution."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import Gaussian, domain
from PIL import Image
from test_covariance import SCHEDULE, Exact
from torch import Tensor

from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.guidance.energies import DistanceEnergy
from cyclelight.guidance.generators import DomainGenerator
from cyclelight.guidance.guided import guide
from cyclelight.guidance.langevin import CrankNicolson, Langevin, Sampler

MEAN, STD, SIDE, COUNT = 0.2, 0.5, 2, 4000


def exact() -> Any:
    return NetworkDenoiser(Exact(STD), SCHEDULE, variance="learned", second_head="sn")


GENERATORS = {
    "DDPM": lambda: DomainGenerator(domain(Gaussian(MEAN, STD), SIDE), 4, 1.0),
    "DDIM": lambda: DomainGenerator(domain(Gaussian(MEAN, STD), SIDE), 4, 0.0),
    "SN-DDPM": lambda: DomainGenerator(domain(exact(), SIDE), 4, 1.0),
}


def draw(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda purpose, step, like: torch.randn(
        like.shape, generator=generator, dtype=like.dtype
    )


def spread(generator: DomainGenerator) -> tuple[float, float]:
    """(mean, variance) of each pixel, which is an affine map of its own numbers of z."""
    d = generator.latent_size
    with torch.no_grad():
        centre, *lines = generator(torch.cat([torch.zeros(1, d), torch.eye(d)]).double())
    mean = float(centre.flatten()[0])
    torch.testing.assert_close(centre, torch.full_like(centre, mean))
    slopes = torch.stack(lines).flatten(1)[:, 0] - mean
    return mean, float(slopes.square().sum())


def guided(generator: DomainGenerator, sampler: Sampler, weight: float, folder: Path) -> Tensor:
    """Images of many chains towards a grey of 0.6, under weight |x - 0.6|^2 / 2."""
    Image.new("RGB", (SIDE, SIDE), (204, 204, 204)).save(folder / "grey.png")
    energy = DistanceEnergy(str(folder / "grey.png"), weight)
    energy.load(SIDE)
    z = generator.sample_latent(draw(0), torch.empty(COUNT, dtype=torch.float64))
    return guide(generator, [energy], sampler, z, draw(1)).end


# Of 48,000 pixels: standard errors of 0.0018 of the mean, and of 0.65 % of the variance.
@pytest.mark.parametrize("kind", [Langevin, CrankNicolson])
@pytest.mark.parametrize("name", GENERATORS)
def test_chains_come_to_the_tilted_distribution(name: str, kind: Any, tmp_path: Path) -> None:
    """Mean exact, variance with the bias of the step that both forms have in closed form."""
    generator, weight, s = GENERATORS[name](), 4.0, 0.2
    mean, variance = spread(generator)
    images = guided(generator, kind(60, s), weight, tmp_path)
    precision = 1 / variance + weight
    assert float(images.mean()) == pytest.approx(
        (mean / variance + weight * 0.6) / precision, abs=0.008
    )
    # Along the one direction of z that the energy sees; the others stay N(0, I).
    if kind is Langevin:
        kept, noise = 1 - s / 2 * (1 + weight * variance), s
    else:
        kept = (1 - s / 4 - s / 2 * weight * variance) / (1 + s / 4)
        noise = s / (1 + s / 4) ** 2
    found = float(images.var())
    assert found == pytest.approx(variance * noise / (1 - kept**2), rel=0.026)
    if kind is Langevin:  # Its bias is more than the error of this test.
        assert found * precision > 1.026


@pytest.mark.parametrize("name", GENERATORS)
def test_without_weight_crank_nicolson_leaves_the_generator_as_it_is(
    name: str, tmp_path: Path
) -> None:
    generator = GENERATORS[name]()
    mean, variance = spread(generator)
    images = guided(generator, CrankNicolson(20, 3.0), 0.0, tmp_path)
    assert float(images.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 48000))
    assert float(images.var()) == pytest.approx(variance, rel=0.026)
