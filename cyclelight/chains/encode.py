"""DPM-Encoder: from images to their latent code (Wu and De la Torre 2023, Eq. 5)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cyclelight.chains.latent_code import LatentCode
from cyclelight.chains.lockstep import LastResidual, check_last_residual
from cyclelight.chains.source import check_eta, source_chain
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import Noise, noise_for
from cyclelight.domains.domain import Domain, check_domain


@torch.no_grad()
def encode(
    source: Domain,
    images: Tensor,
    *,
    steps: int = 50,
    eta: float = 1.0,
    strength: float = 0.85,
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
    eta = check_eta("eta", eta)
    check_last_residual(last_residual)
    check_domain("source", source)
    grid = TimeGrid.truncated(source.schedule, steps, strength)
    source.check_images(images)
    x_0 = source.to_states(images)
    noise = noise_for(len(images), noise, seed, keys)
    chain = source_chain(source.denoiser, x_0, grid=grid, eta=eta, noise=noise)
    x_T, codes = x_0, list[Tensor]()
    for step in tqdm(chain, "encode", len(grid), unit="step", disable=not progress):
        x_T = x_T if codes else step.x_t
        codes.append(step.noise)
    last = codes.pop()
    return LatentCode(
        x_T,
        noises=torch.stack(codes) if codes else x_T.new_empty((0, *x_T.shape)),
        last_residual=last if last_residual == "keep" else None,
        grid=grid,
        eta=eta,
        schedule=source.schedule,
        source=source.name,
        space=source.space,
    )
