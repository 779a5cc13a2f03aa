"""Generators as maps z -> x (Wu and De la Torre 2023, sec. 3.1): all randomness is in z.

A map is differentiable in z, and its memory does not grow with activations times steps: each call
of a network is computed again in the backward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cyclelight.chains.ddgan import generate
from cyclelight.chains.diffae import SCHEDULE, code_denoiser, image_denoiser
from cyclelight.chains.invert import inversion_chain
from cyclelight.chains.source import check_eta, scale, source_chain
from cyclelight.diffusion.ddgan import DDGANSchedule
from cyclelight.diffusion.denoiser import Denoiser, NetworkDenoiser, Prediction, mean_and_sigma
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import CLEAN
from cyclelight.diffusion.steps import Step
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue
from cyclelight.networks.ddgan import DDGANGenerator
from cyclelight.networks.diffae import DiffusionAutoencoder

Shapes = Mapping[str, tuple[int, ...]]
FARTHEST = 3.0
"""The most that a noise of a code is where variances are learned: a small one would ask for more,
and what lies so far out multiplies rounding errors."""


class Generator(nn.Module, ABC):
    """Images from latents: called with z (B, latent_size), N(0, I) each, it gives (B, C, R, R).

    Args:
        shapes: what z consists of, in order, by name, without the batch: each a purpose of noise.
        resolution: height and width of the images in pixels.
        calls: calls of networks that an image takes.
        name: what to call it.
        channels: C of the images: 3, or 1 for greyscale.
    """

    def __init__(
        self, shapes: Shapes, resolution: int, calls: int, name: str, channels: int = 3
    ) -> None:
        super().__init__()
        self.shapes, self.resolution, self.calls, self.name = dict(shapes), resolution, calls, name
        self.channels = channels

    @property
    def latent_size(self) -> int:
        """d, the numbers of one z."""
        return sum(map(prod, self.shapes.values()))

    def sample_latent(self, noise: Noise, like: Tensor) -> Tensor:
        """z ~ N(0, I), (B, latent_size), of the dtype and on the device of `like`, (B, ...).

        `noise` is called for ("latent", i) for the i-th part.
        """
        parts = [
            noise("latent", i, like.new_empty((len(like), *shape)))
            for i, shape in enumerate(self.shapes.values())
        ]
        return self.join(parts)

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """The parts of z in their shapes, by name.

        Raises:
            ValueError: z is not (B, latent_size).
        """
        if z.ndim != 2 or z.shape[1] != self.latent_size:
            raise ValueError(
                f"z must have shape (B, {self.latent_size}) for {self.name}, got {tuple(z.shape)}"
            )
        parts = torch.split(z, [prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.view(len(z), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, parts: list[Tensor]) -> Tensor:
        """z of its parts, in order."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    @property
    def encodes(self) -> bool:
        """Whether it has an encoder."""
        return type(self).encode is not Generator.encode

    def encode(self, images: Tensor, noise: Noise) -> Tensor:
        """A z of images (B, C, R, R) in [-1, 1], from which the map comes back near them.

        Raises:
            ValueError: this generator has no encoder.
        """
        raise BadValue("generator", f"generator: {self.name} cannot encode images")

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Images (B, C, R, R), near [-1, 1], not clamped."""


class Recomputed:
    """A denoiser whose calls are computed again in the backward pass, instead of kept."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        return recomputed(self.denoiser, x_t, t)


def recomputed(call: Callable[..., Any], *arguments: Any) -> Any:
    """`call(*arguments)`, of which the backward pass keeps the arguments alone."""
    # Networks in evaluation mode draw nothing whose state would have to be kept.
    return checkpoint(call, *arguments, use_reentrant=False, preserve_rng_state=False)


class DomainGenerator(Generator):
    """The reverse chain of a domain: z = x_T and, where steps have a variance, their noises.

    DDPM is eta 1, DDIM eta 0; SN-DDPM is eta 1 with a learned variance; a domain of latents is
    decoded at the end.

    Args:
        domain: what to sample.
        steps: timesteps of the chain.
        eta: 0 .. 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, domain: Domain, steps: int = 50, eta: float = 1.0) -> None:
        check_eta("eta", eta)
        self.grid, self.eta = TimeGrid.whole(domain.schedule, steps), eta
        shapes = {"x_T": domain.shape}
        denoiser = domain.denoiser
        self.learned = isinstance(denoiser, NetworkDenoiser) and denoiser.variance == "learned"
        self.noisy = eta > 0 or self.learned
        if self.noisy:
            shapes |= {f"eps_{t}": domain.shape for t in self.grid.timesteps[:-1]}
        super().__init__(shapes, domain.resolution, len(self.grid), domain.name, domain.channels)
        self.domain = domain
        # As a sub-module, it goes where the generator goes.
        self.network = denoiser if isinstance(denoiser, nn.Module) else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        x, *noises = self.split(z).values()
        for i, (t, s) in enumerate(self.grid.pairs):
            x = recomputed(self._step, x, noises[i] if s != CLEAN and self.noisy else None, t, s)
        images: Tensor = recomputed(self.domain.to_images, x)
        return images

    def _step(self, x: Tensor, noise: Tensor | None, t: int, s: int) -> Tensor:
        step = Step.between(self.domain.schedule, t, s, self.eta)
        mean, sigma = mean_and_sigma(step, x, self.domain.denoiser(x, t))
        return mean if noise is None else mean + sigma * noise

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Noise) -> Tensor:
        """By DPM-Encoder (Eq. 5) where the steps have noise, else by inversion (DDIM).

        With a learned variance, which may be 0, each noise leads from where the map is itself:
        what one step cannot reach is left to those that follow.
        """
        self.domain.check_images(images)
        x_0, denoiser = self.domain.to_states(images), self.domain.denoiser
        if not self.noisy:
            states = list(inversion_chain(denoiser, x_0, grid=self.grid))
            return self.join([states[-1]])
        steps = list(source_chain(denoiser, x_0, grid=self.grid, eta=self.eta, noise=noise))
        # What the last step leaves has no noise to be in.
        if not self.learned:
            return self.join([steps[0].x_t, *(step.noise for step in steps[:-1])])
        y, noises = steps[0].x_t, list[Tensor]()
        for step in steps[:-1]:
            own = Step.between(denoiser.schedule, step.t, step.s, self.eta)
            mean, sigma = mean_and_sigma(own, y, denoiser(y, step.t))
            z = (step.x_s - mean) / scale(sigma)
            noises.append(z.clamp(-FARTHEST, FARTHEST))
            y = mean + sigma * noises[-1]
        return self.join([steps[0].x_t, *noises])


class DDGANMap(Generator):
    """A denoising diffusion GAN: z = x_T and the latent and noise of each step.

    Args:
        network: the generator.
        name: what to call it.
    """

    def __init__(self, network: DDGANGenerator, name: str = "DDGAN") -> None:
        config = network.config
        self.schedule = DDGANSchedule(config.timesteps, config.beta_min, config.beta_max)
        image = (config.in_channels, config.sample_size, config.sample_size)
        shapes: dict[str, tuple[int, ...]] = {"x_T": image}
        for t in reversed(range(config.timesteps)):
            shapes[f"latent_{t}"] = (config.latent_size,)
            if t:  # The last step has no noise.
                shapes[f"noise_{t}"] = image
        super().__init__(shapes, config.sample_size, config.timesteps, name, config.in_channels)
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        x_T, *parts = self.split(z).values()
        latents = torch.stack(parts[::2])
        noises = torch.stack(parts[1::2]) if len(parts) > 1 else x_T[None]

        def say(x: Tensor, t: Tensor, latent: Tensor) -> Tensor:
            x_0: Tensor = recomputed(self.network, x, t, latent)
            return x_0

        *_, (_, image) = generate(say, self.schedule, x_T, latents, noises)
        return image


class DiffAEMap(Generator):
    """A diffusion autoencoder with its latent prior: z = the noise of the code, and x_T.

    Args:
        network: the autoencoder with its prior.
        steps: timesteps of the image's chain.
        latent_steps: timesteps of the code's chain.
        name: what to call it.
    """

    def __init__(
        self,
        network: DiffusionAutoencoder,
        steps: int = 20,
        latent_steps: int = 20,
        name: str = "DiffAE",
    ) -> None:
        config = network.config
        image = (config.in_channels, config.sample_size, config.sample_size)
        shapes = {"code": (config.code_size,), "x_T": image}
        calls = steps + latent_steps
        super().__init__(shapes, config.sample_size, calls, name, config.in_channels)
        self.network = network
        self.grid = TimeGrid.whole(SCHEDULE, steps)
        self.latent_grid = TimeGrid.whole(code_denoiser(network).schedule, latent_steps)

    def forward(self, z: Tensor) -> Tensor:
        parts = self.split(z)
        h = parts["code"][:, :, None, None]
        prior = Recomputed(code_denoiser(self.network))
        for t, s in self.latent_grid.pairs:
            h = Step.between(prior.schedule, t, s, 0).mean(h, prior(h, t).eps)
        code = h.flatten(1) * self.network.code_std + self.network.code_mean
        x = parts["x_T"]
        for t, s in self.grid.pairs:
            # The code is handed over, so that its gradient is known where it is computed again.
            x = recomputed(self._step, x, code, t, s)
        return x

    def _step(self, x: Tensor, code: Tensor, t: int, s: int) -> Tensor:
        denoiser = image_denoiser(self.network, code)
        return Step.between(SCHEDULE, t, s, 0).mean(x, denoiser(x, t).eps)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Noise) -> Tensor:
        """By the encoder, and by inversion of both chains."""
        code = self.network.encoder(images)
        normal = ((code - self.network.code_mean) / self.network.code_std)[:, :, None, None]
        *_, top = inversion_chain(code_denoiser(self.network), normal, grid=self.latent_grid)
        *_, x_T = inversion_chain(image_denoiser(self.network, code), images, grid=self.grid)
        return self.join([top, x_T])
