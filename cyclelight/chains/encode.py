"""DPM-Encoder: from an image to its latent code (Wu and De la Torre 2023, Eq. 5).

The chain runs from noise to clean, the direction in which decoders consume it, so that nothing has
to be stored between the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from cyclelight.chains.latent_code import LatentCode
from cyclelight.diffusion.denoiser import Denoiser, Prediction
from cyclelight.diffusion.noise import Noise, noise_for
from cyclelight.diffusion.schedule import CLEAN, NoiseSchedule, TimeGrid
from cyclelight.diffusion.steps import Step, add_noise
from cyclelight.domains.domain import Domain

LastResidual = Literal["keep", "drop"]


@dataclass(frozen=True)
class EncodedStep:
    """One step of the encoder: x_s drawn from the posterior, and where the model would have gone.

    Args:
        t, s: the timestep left and the one reached.
        x_t, x_s: the source chain at both, (B, C, H, W).
        mean: the model's mean mu(x_t), so that the residual is x_s - mean.
        sigma: the model's standard deviation: a number, or a tensor where it is learned.
    """

    t: int
    s: int
    x_t: Tensor
    x_s: Tensor
    mean: Tensor
    sigma: float | Tensor

    @property
    def noise(self) -> Tensor:
        """The residual over sigma; the residual itself where sigma is 0."""
        return (self.x_s - self.mean) / scale(self.sigma)


def scale(sigma: float | Tensor) -> float | Tensor:
    """What a code's noise is counted in: sigma, or 1 where sigma is 0."""
    return 1.0 if isinstance(sigma, float) and sigma == 0 else sigma


def mean_and_sigma(
    step: Step, x_t: Tensor, prediction: Prediction
) -> tuple[Tensor, float | Tensor]:
    """mu and sigma of the reverse step that a prediction gives.

    Raises:
        ValueError: the prediction has a learned variance and eta is not 1.
    """
    mean = step.mean(x_t, prediction.eps)
    if prediction.v_range is None:
        return mean, step.sigma
    if step.eta != 1:
        raise ValueError(f"a learned variance goes with eta 1, got eta {step.eta}")
    return mean, step.learned_sigma(prediction.v_range)


def encode_stream(
    source: Denoiser,
    x_0: Tensor,
    *,
    schedule: NoiseSchedule,
    grid: TimeGrid,
    eta: float,
    noise: Noise,
) -> Iterator[EncodedStep]:
    """The encoder's steps, from the grid's start down to the clean image.

    The chain itself needs no network: x_start ~ q(x_start | x_0), then each
    x_s ~ q(x_s | x_t, x_0). It ends at x_0 exactly.

    Args:
        source: the denoiser whose means are subtracted.
        x_0: images (B, C, H, W).
        schedule: the denoiser's schedule.
        grid: the timesteps to visit.
        eta: as in `Step`.
        noise: called for ("start", grid.start) and ("posterior", t) at every t but the last.
    """
    x_t = add_noise(x_0, noise("start", grid.start, x_0), schedule.alpha_bar(grid.start))
    for t, s in grid.pairs:
        step = Step.between(schedule, t, s, eta)
        draw = torch.zeros_like(x_0) if s == CLEAN or eta == 0 else noise("posterior", t, x_0)
        x_s = step.posterior(x_t, x_0, draw)
        mean, sigma = mean_and_sigma(step, x_t, source(x_t, t))
        yield EncodedStep(t, s, x_t, x_s, mean, sigma)
        x_t = x_s


@dataclass(frozen=True)
class CodeRecipe:
    """How to make a latent code again, in place of the code: nothing is stored but x_0.

    `decode` accepts it like a `LatentCode` and runs source and target in lockstep, in memory that
    does not depend on the number of steps. x_0 is what `source.to_states` makes of the images.
    """

    source: Domain
    x_0: Tensor
    grid: TimeGrid
    eta: float
    noise: Noise
    last_residual: LastResidual = "keep"

    def steps(self) -> Iterator[EncodedStep]:
        """The encoder's steps, computed as they are asked for."""
        return encode_stream(
            self.source.denoiser,
            self.x_0,
            schedule=self.source.schedule,
            grid=self.grid,
            eta=self.eta,
            noise=self.noise,
        )


@torch.no_grad()
def recipe(
    source: Domain,
    images: Tensor,
    *,
    steps: int = 100,
    eta: float = 0.1,
    strength: float = 1.0,
    last_residual: LastResidual = "keep",
    seed: int = 0,
    keys: Sequence[str | int] | None = None,
    noise: Noise | None = None,
) -> CodeRecipe:
    """The latent code of images as a recipe: what `encode` would store, computed when it is needed.

    Args and raises: as `encode`.
    """
    source.check_images(images)
    check_chain(eta, last_residual)
    grid = TimeGrid.truncated(source.schedule, steps, strength)
    noise = noise_for(len(images), noise, seed, keys)
    return CodeRecipe(source, source.to_states(images), grid, eta, noise, last_residual)


@torch.no_grad()
def encode(
    source: Domain,
    images: Tensor,
    *,
    steps: int = 100,
    eta: float = 0.1,
    strength: float = 1.0,
    last_residual: LastResidual = "keep",
    seed: int = 0,
    keys: Sequence[str | int] | None = None,
    noise: Noise | None = None,
    progress: bool = False,
) -> LatentCode:
    """Encode images into the latent space of a domain (Wu and De la Torre 2023, Eq. 5).

    Args:
        source: the domain that the images belong to.
        images: (B, C, H, W), floating point, in [-1, 1]. Their dtype is that of the chain.
        steps: number of timesteps of the whole grid, 1 .. T.
        eta: 0 .. 1. The code is a sample of N(0, I) for a perfect model only at eta = 1 and many
            steps; smaller values tie the code closer to the image (the paper uses 0.1), and what is
            decoded is then not distributed as the target domain.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end.
        last_residual: `keep` makes decoding with the same domain return the images; `drop` decodes
            the last step as the model's plain prediction, as the authors' program does.
        seed: seed of the noise.
        keys: one key per image; None for its position in the batch. An image's result depends on
            its key and seed alone.
        noise: a source of noise in place of seed and keys.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, or the images do not fit the domain.
    """
    made = recipe(
        source,
        images,
        steps=steps,
        eta=eta,
        strength=strength,
        last_residual=last_residual,
        seed=seed,
        keys=keys,
        noise=noise,
    )
    x_T, codes = made.x_0, []
    encoded_steps = tqdm(made.steps(), "encode", len(made.grid), unit="step", disable=not progress)
    for encoded in encoded_steps:
        if encoded.t == made.grid.start:
            x_T = encoded.x_t
        codes.append(encoded.noise)
    last = codes.pop()
    return LatentCode(
        x_T,
        noises=torch.stack(codes) if codes else x_T.new_empty((0, *x_T.shape)),
        last_residual=last if last_residual == "keep" else None,
        grid=made.grid,
        eta=eta,
        schedule=source.schedule,
        source=source.name,
        space=source.space,
    )


def check_chain(eta: float, last_residual: LastResidual = "keep") -> None:
    """Raises ValueError, naming the argument, unless both settings are in range."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if last_residual not in ("keep", "drop"):
        raise ValueError(f"last_residual must be 'keep' or 'drop', got {last_residual!r}")
