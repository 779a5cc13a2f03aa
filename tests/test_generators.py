"""Generators as maps z -> x: what z is, gradients, memory, encoding."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import Gaussian, domain, tiny_autoencoder
from safetensors.torch import load_file
from test_covariance import Exact
from tiny import TINY
from torch import Tensor, nn

from cyclelight import Domain, NoiseSchedule, sample
from cyclelight.chains.source import source_chain
from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.domains.adapters.ddgan import load_ddgan
from cyclelight.domains.adapters.diffae import load_diffae
from cyclelight.guidance.generators import DDGANMap, DiffAEMap, DomainGenerator, Generator
from cyclelight.networks.ddgan import DDGANSettings
from cyclelight.networks.diffae import DiffAESettings
from cyclelight.networks.sn import CovarianceNetwork

VECTORS = Path(__file__).parent / "vectors"
SCHEDULE = NoiseSchedule.linear()


def unet_domain(resolution: int = 8, variance: Any = "fixed", head: Any = "sn") -> Domain:
    torch.manual_seed(0)
    unet: Any = TINY.build(resolution=resolution, channels=3)
    if variance == "learned":
        unet = CovarianceNetwork.around(unet)
    network = unet.double().eval().requires_grad_(False)
    denoiser = NetworkDenoiser(network, SCHEDULE, variance=variance, second_head=head)
    return Domain(denoiser, resolution)


def latent_domain() -> Domain:
    torch.manual_seed(0)
    autoencoder = tiny_autoencoder()
    autoencoder.to(torch.float64)
    unet: Any = TINY.build(resolution=4, channels=4)
    denoiser = NetworkDenoiser(unet.double().eval().requires_grad_(False), SCHEDULE)
    return Domain(denoiser, 8, autoencoder=autoencoder)


def ddgan() -> Generator:
    torch.manual_seed(0)
    network = DDGANSettings(8, (1, 2), 1, (4,), 4, 8, 1, timesteps=3)
    built = network.build(resolution=8, channels=3)
    scale(built)
    return DDGANMap(built.double().eval().requires_grad_(False))


def diffae() -> Generator:
    torch.manual_seed(0)
    built = DiffAESettings(8, (1, 2), (1, 2), 1, (), 1, 6, 16, 3, 8, norm_groups=4)
    network = built.build(resolution=8, channels=3)
    scale(network)
    return DiffAEMap(network.double().eval().requires_grad_(False), 3, 3)


def scale(network: nn.Module) -> None:
    """Weights that begin at zero would hide what stands behind them."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)


MAPS: dict[str, Callable[[], Generator]] = {
    "ddpm": lambda: DomainGenerator(unet_domain(), 4, 1.0),
    "ddim": lambda: DomainGenerator(unet_domain(), 4, 0.0),
    "sn-ddpm": lambda: DomainGenerator(unet_domain(variance="learned"), 4, 1.0),
    "npr-ddpm": lambda: DomainGenerator(unet_domain(variance="learned", head="npr"), 4, 1.0),
    "sn-ddim": lambda: DomainGenerator(unet_domain(variance="learned"), 4, 0.0),
    "ldm-ddim": lambda: DomainGenerator(latent_domain(), 4, 0.0),
    "ddgan": ddgan,
    "diffae": diffae,
}


def latent(generator: Generator, batch: int = 2) -> Tensor:
    like = torch.empty(batch, dtype=torch.float64)
    return generator.sample_latent(KeyedNoise(3, range(batch)), like)


@pytest.mark.parametrize("name", MAPS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    generator = MAPS[name]()
    z = latent(generator).requires_grad_(True)
    torch.manual_seed(1)
    direction, weights = torch.randn_like(z), torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def value(z: Tensor) -> Tensor:
        return (weights * generator(z)).sum()

    (gradient,) = torch.autograd.grad(value(z), z)
    h = 1e-7  # Where a learned sigma is near 0 it is steep.
    with torch.no_grad():
        difference = (value(z + h * direction) - value(z - h * direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-7)
    # Every part of z matters.
    for part_name, part in generator.split(gradient).items():
        assert part.abs().max() > 0, part_name


@pytest.mark.parametrize("name", MAPS)
def test_images_depend_on_their_own_z_alone(name: str) -> None:
    generator = MAPS[name]()
    z = latent(generator, 3)
    with torch.no_grad():
        images = generator(z)
        torch.testing.assert_close(generator(z[1:2]), images[1:2], rtol=1e-9, atol=1e-9)
    assert images.shape == (3, 3, 8, 8)
    assert z.shape == (3, generator.latent_size)
    torch.testing.assert_close(latent(generator, 2), z[:2], rtol=0, atol=0)
    joined = generator.join(list(generator.split(z).values()))
    torch.testing.assert_close(joined, z, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"z must have shape \\(B, {generator.latent_size}\\)"):
        generator(z[:, 1:])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_domain_is_sampled_as_by_sample(eta: float) -> None:
    """The same chain from the same numbers."""
    given = unet_domain()
    generator = DomainGenerator(given, 5, eta)
    z = latent(generator)
    x_T, *noises = generator.split(z).values()
    drawn = iter(noises)
    images = sample(given, x_T=x_T, steps=5, eta=eta, noise=lambda *_: next(drawn))
    with torch.no_grad():
        torch.testing.assert_close(generator(z), images, rtol=1e-12, atol=1e-12)


def test_published_maps() -> None:
    """DDGAN's and DiffAE's recorded images, from z put together in the published order."""
    case = load_file(VECTORS / "ddgan" / "biggan_residual.safetensors")
    network = load_ddgan(VECTORS / "ddgan" / "biggan_residual.pt", image_size=16)
    generator: Generator = DDGANMap(network)
    parts = [case["chain_xT"]]
    for i in range(4):
        parts += [case["chain_z"][i]] + ([case["chain_noise"][i]] if i < 3 else [])
    with torch.no_grad():
        images = generator(generator.join(parts))
    torch.testing.assert_close(images, case["chain_x"][-1], atol=1e-4, rtol=0)
    case = load_file(VECTORS / "diffae" / "vectors.safetensors")
    root = VECTORS / "diffae"
    autoencoder, _ = load_diffae(root / "last.ckpt", root / "latent.pkl", image_size=16)
    generator = DiffAEMap(autoencoder, 5, 5)
    with torch.no_grad():
        images = generator(generator.join([case["lat_x"], case["rand_x_T"]]))
    torch.testing.assert_close(images, case["uncond_image"], atol=1e-3, rtol=0)


def test_encoding_comes_back() -> None:
    """But for what the last step leaves, which has no noise to be in."""
    given = unet_domain()
    generator, noise = DomainGenerator(given, 40, 1.0), KeyedNoise(0, range(2))
    with torch.no_grad():
        images = generator(latent(generator)).clamp(-1, 1)
        back = generator(generator.encode(images, noise))
        chain = source_chain(given.denoiser, images, grid=generator.grid, eta=1.0, noise=noise)
        *_, last = chain
    torch.testing.assert_close(back, last.mean, rtol=0, atol=1e-6)
    assert float((back - images).abs().max()) < 0.05


class Erratic(Exact):
    """As a perfect network, but at each timestep half of the pixels are said to be known."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        out = super().forward(x_t, t)
        out[:, 3:, :, int(t[0]) // 25 % 2 :: 2] = -1e9
        return out


def test_what_a_step_without_variance_cannot_hold_is_left_to_those_that_follow() -> None:
    network = NetworkDenoiser(Erratic(0.5), SCHEDULE, variance="learned", second_head="sn")
    generator, noise = DomainGenerator(domain(network, 8), 40, 1.0), KeyedNoise(0, range(4))
    torch.manual_seed(0)
    images = 0.5 * torch.randn(4, 3, 8, 8, dtype=torch.float64)
    z = generator.encode(images, noise)
    gap = generator(z) - images
    # Of strangers 0.56. The source chain's own residuals over sigma would not be finite.
    assert float(gap.abs().mean()) < 0.06
    assert float(z.square().mean()) == pytest.approx(1, abs=0.1)


def test_a_learned_code_is_that_of_the_source_chain_where_it_is_near() -> None:
    """A perfect network's residuals are N(0, 1), so that few are cut off."""
    exact = NetworkDenoiser(Exact(0.5), SCHEDULE, variance="learned", second_head="sn")
    generator, noise = DomainGenerator(domain(exact, 4), 20, 1.0), KeyedNoise(0, range(4))
    torch.manual_seed(0)
    images = 0.5 * torch.randn(4, 3, 4, 4, dtype=torch.float64)
    z = generator.encode(images, noise)
    steps = list(source_chain(exact, images, grid=generator.grid, eta=1.0, noise=noise))
    plain = generator.join([steps[0].x_t, *(step.noise for step in steps[:-1])])
    near = plain.abs().view(4, 20, 48).amax(dim=1) < 2.9  # Pixels of which nothing is cut off.
    assert near.float().mean() > 0.9
    each, other = (value.view(4, 20, 48).transpose(1, 2)[near] for value in (z, plain))
    torch.testing.assert_close(each, other, rtol=1e-6, atol=1e-6)


def test_a_gaussian_domain_is_encoded_and_decoded() -> None:
    generator = DomainGenerator(domain(Gaussian(0.2, 0.5), 4), 1000, 0.0)
    images = 0.2 + 0.5 * torch.randn(2, 3, 4, 4, dtype=torch.float64)
    z = generator.encode(images, KeyedNoise(0, range(2)))
    # The map of a Gaussian is affine: x_T is the image's own standard score, up to 1 / steps.
    torch.testing.assert_close(z, (images.flatten(1) - 0.2) / 0.5, atol=0.03, rtol=0)
    torch.testing.assert_close(generator(z), images, atol=0.02, rtol=0)


def test_ddgan_has_no_encoder() -> None:
    generator = ddgan()
    with pytest.raises(ValueError, match="generator: DDGAN cannot encode images"):
        generator.encode(torch.zeros(1, 3, 8, 8), KeyedNoise(0, [0]))


def saved(steps: int, checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that the graph of an image of `steps` steps holds, beside the parameters."""
    generator = DomainGenerator(unet_domain(16), steps, 1.0)
    if not checkpointed:
        target = "cyclelight.guidance.generators.recomputed"
        monkeypatch.setattr(target, lambda call, *arguments: call(*arguments))
    z = latent(generator, 1).requires_grad_(True)
    held: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        image = generator(z)
    del image
    gc.collect()
    monkeypatch.undo()
    return sum(held.values()) - z.untyped_storage().nbytes()


def test_memory_does_not_grow_with_activations_times_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Per step, a state of the chain is kept; without computing anew, all activations are."""
    few, many = saved(5, True, monkeypatch), saved(20, True, monkeypatch)
    state = 3 * 16 * 16 * 8
    assert many - few <= 15 * 3 * state
    plain = saved(20, False, monkeypatch) - saved(5, False, monkeypatch)
    assert plain > 10 * (many - few)
