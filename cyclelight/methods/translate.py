"""translate: images of one domain into another, in one call."""

from collections.abc import Sequence

from torch import Tensor

from cyclelight.chains.encode import LastResidual
from cyclelight.diffusion.noise import Noise
from cyclelight.domains.domain import Domain
from cyclelight.methods.cyclediffusion import CycleDiffusion


def translate(
    source: Domain,
    target: Domain,
    images: Tensor,
    *,
    steps: int = 100,
    eta: float = 0.1,
    strength: float = 1.0,
    cleanup: int = 0,
    cleanup_eta: float = 1.0,
    last_residual: LastResidual = "keep",
    seed: int = 0,
    keys: Sequence[str | int] | None = None,
    noise: Noise | None = None,
    progress: bool = False,
) -> Tensor:
    """Translate images with CycleDiffusion: both chains in lockstep, nothing stored.

    Without cleanup this equals `decode(target, encode(source, images, ...))` up to rounding, in the
    memory of two states. With equal networks it returns `images` bit for bit; where there is an
    autoencoder, what it makes of them.

    Args:
        source: the domain that the images belong to.
        target: the domain to translate into.
        images: (B, C, H, W), floating point, in [-1, 1].
        steps, eta, strength, cleanup, cleanup_eta, last_residual, seed: see `CycleDiffusion`.
        keys: one key per image; None for its position in the batch.
        noise: a source of noise in place of seed and keys.
        progress: show a progress bar.

    Returns:
        Images (B, C, H, W), near [-1, 1], not clamped.

    Raises:
        ValueError: an argument is out of range, or images and domains do not fit together.
    """
    method = CycleDiffusion(
        source,
        target,
        steps=steps,
        eta=eta,
        strength=strength,
        cleanup=cleanup,
        cleanup_eta=cleanup_eta,
        last_residual=last_residual,
        seed=seed,
    )
    return method(images, keys, noise=noise, progress=progress)
