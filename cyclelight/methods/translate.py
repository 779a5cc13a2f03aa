"""translate: images of one domain into another by any method, in one call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cyclelight.chains.loop import last
from cyclelight.diffusion.noise import Noise, noise_for
from cyclelight.domains.domain import Domain
from cyclelight.methods.base import Method
from cyclelight.methods.cyclediffusion import CycleDiffusion


def translate(
    source: Domain | None,
    target: Domain | None,
    images: Tensor,
    *,
    method: Method | None = None,
    seed: int = 0,
    keys: Sequence[str | int] | None = None,
    noise: Noise | None = None,
    progress: bool = False,
    on_step: Callable[[Tensor], object] | None = None,
    **settings: Any,
) -> Tensor:
    """Translate images by a method, or by CycleDiffusion with the given settings.

    With equal networks on both sides, and no cleanup, the methods that run two models in lockstep
    return `images` bit for bit; where there is an autoencoder, what it makes of them.

    Args:
        source: the domain that the images belong to; None where the method needs none.
        target: the domain to translate into.
        images: (B, C, H, W), floating point, in [-1, 1].
        method: such as `SDEdit(strength=0.5)`; None for `CycleDiffusion(**settings)`.
        seed: seed of the noise.
        keys: one key per image; None for its position in the batch. An image's result depends on
            its key and seed alone.
        noise: a source of noise in place of seed and keys.
        progress: show a progress bar.
        on_step: called with the state after each step, (B, *domain.shape). Who wants to stop on the
            way iterates over `method.stream`.
        settings: of CycleDiffusion; not with `method`, which has its own.

    Returns:
        Images (B, C, H, W), near [-1, 1], not clamped.

    Raises:
        TypeError: CycleDiffusion has no such setting.
        ValueError: a setting is out of range, or images and domains do not fit together.
    """
    if method is None:
        method = CycleDiffusion(**settings)
    elif settings:
        name = type(method).__name__
        raise ValueError(f"{', '.join(settings)} must be given to the method, {name}(...)")
    domains = method.choose({"source": source, "target": target})
    entry, exit_ = domains[method.needs[0]], domains[method.needs[-1]]
    with torch.set_grad_enabled(method.gradients):
        x_0 = entry.to_states(images)
        states = method.stream(domains, x_0, noise_for(len(images), noise, seed, keys))
        length = method.length(entry.schedule)
        y = last(states, length, "translate", progress=progress, on_state=on_step)
        return exit_.to_images(y)
