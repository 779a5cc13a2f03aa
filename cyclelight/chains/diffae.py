"""From noise to codes and from codes to images, of a diffusion autoencoder (Preechakul 2022).

Both ways are deterministic: DDIM, eta 0.
"""

from torch import Tensor, nn

from cyclelight.chains.loop import last
from cyclelight.chains.sample import reverse_chain
from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.networks.diffae import DiffusionAutoencoder

SCHEDULE = NoiseSchedule.linear()
"""Of the images."""


class _Coded(nn.Module):
    """The image denoiser with a code closed into it."""

    def __init__(self, network: DiffusionAutoencoder, code: Tensor) -> None:
        super().__init__()
        self.network, self.code = network, code

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        eps: Tensor = self.network(x_t, t, self.code)
        return eps


class _Pixels(nn.Module):
    """The latent prior of codes (B, code_size, 1, 1), the shape that all chains know."""

    def __init__(self, network: DiffusionAutoencoder) -> None:
        super().__init__()
        self.prior = network.prior

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        eps: Tensor = self.prior(z_t.flatten(1), t)
        return eps[:, :, None, None]


def image_denoiser(network: DiffusionAutoencoder, code: Tensor) -> NetworkDenoiser:
    """The denoiser of images with these codes (B, code_size); it clamps x_0, as published."""
    return NetworkDenoiser(_Coded(network, code), SCHEDULE, clip_x_0=True)


def code_denoiser(network: DiffusionAutoencoder) -> NetworkDenoiser:
    """The denoiser of normalised codes, (B, code_size, 1, 1)."""
    start, end = network.config.latent_beta_start, network.config.latent_beta_end
    return NetworkDenoiser(_Pixels(network), NoiseSchedule.linear(start, end))


def make_codes(network: DiffusionAutoencoder, z_T: Tensor, steps: int) -> Tensor:
    """Semantic codes from noise: (B, code_size) => (B, code_size).

    Args:
        network: has the latent prior.
        z_T: N(0, I).
        steps: timesteps to visit, 1 .. 1000.
    """
    z = _run(code_denoiser(network), z_T[:, :, None, None], steps).flatten(1)
    return z * network.code_std + network.code_mean


def make_images(network: DiffusionAutoencoder, x_T: Tensor, code: Tensor, steps: int) -> Tensor:
    """Images (B, C, H, W) near [-1, 1] from noise x_T, same shape, and codes (B, code_size)."""
    return _run(image_denoiser(network, code), x_T, steps)


def _run(denoiser: NetworkDenoiser, x_T: Tensor, steps: int) -> Tensor:
    grid = TimeGrid.whole(denoiser.schedule, steps)
    noise = KeyedNoise(0, ())  # Never asked, since eta is 0.
    states = reverse_chain(denoiser, x_T, grid=grid, eta=0, noise=noise, purpose="sample")
    return last(states, len(grid), "sample", progress=False)
