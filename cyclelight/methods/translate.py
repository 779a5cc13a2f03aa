"""translate: images of one domain into another by any method, in one call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cyclelight.chains.loop import last
from cyclelight.chains.shared import SharedDenoiser, SharedNoise, side_by_side
from cyclelight.diffusion.noise import Noise, noise_for
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue
from cyclelight.methods.base import Domains, Method
from cyclelight.methods.cyclediffusion import CycleDiffusion


def translate(
    source: Domain | None,
    target: Domain | Sequence[Domain] | None,
    images: Tensor,
    *,
    method: Method | None = None,
    seed: int = 0,
    keys: Sequence[str | int] | None = None,
    noise: Noise | None = None,
    mask: Tensor | None = None,
    progress: bool = False,
    on_step: Callable[[Tensor], object] | None = None,
    **settings: Any,
) -> Tensor:
    """Translate images by a method, or by CycleDiffusion with the given settings.

    With equal networks on both sides, and no cleanup, the methods that run two models in lockstep
    return `images` bit for bit; where there is an autoencoder, what it makes of them.

    Args:
        source: the domain that the images belong to; None where the method needs none.
        target: the domain to translate into; or several, which share the encoding: the source is
            called once for all of them, and each result is that of the target alone, bit for bit.
        images: (B, C, H, W), floating point, in [-1, 1].
        method: such as `SDEdit(strength=0.5)`; None for `CycleDiffusion(**settings)`.
        seed: seed of the noise.
        keys: one key per image; None for its position in the batch. An image's result depends on
            its key and seed alone.
        noise: a source of noise in place of seed and keys.
        mask: bool, (H, W) for all images or (B, H, W): where they may change. Elsewhere they stay
            as they are, bit for bit. CycleDiffusion, SDEdit, EditFriendly, DDCM and FlowEdit take
            one.
        progress: show a progress bar.
        on_step: called with the state after each step, (B, *domain.shape), of each target. Who
            wants to stop on the way iterates over `method.stream`.
        settings: of CycleDiffusion; not with `method`, which has its own.

    Returns:
        Images (B, C, H, W), near [-1, 1], not clamped; of a list of N targets (N, B, C, H, W).

    Raises:
        TypeError: CycleDiffusion has no such setting.
        ValueError: a setting is out of range, or images and domains do not fit together.
    """
    if method is None:
        method = CycleDiffusion(**settings)
    elif settings:
        name = type(method).__name__
        raise ValueError(f"{', '.join(settings)} must be given to the method, {name}(...)")
    several = not isinstance(target, Domain) and isinstance(target, Sequence)
    targets: Sequence[Any] = target if several else [target]  # type: ignore[assignment]
    if several:
        check_several(method, len(targets))
    pairs = [method.choose({"source": source, "target": one}) for one in targets]
    entry, _ = method.ends(pairs[0])
    entry.check_images(images)
    check_mask(method, mask, images)
    if mask is not None:
        mask = mask.to(images.device).expand(len(images), *images.shape[2:])[:, None]
    with torch.set_grad_enabled(method.gradients):
        x_0 = entry.to_states(images)
        given: dict[str, Any] = {}
        if mask is not None:
            given = {"mask": state_mask(mask, entry.shape[-1])}
        states = _states(method, pairs, x_0, noise_for(len(images), noise, seed, keys), given)
        length = method.count(pairs[0])

        def tell(reached: tuple[Tensor, ...]) -> None:
            if on_step is not None:
                for state in reached:
                    on_step(state)

        ys = last(states, length, "translate", progress=progress, on_state=tell)
        made = [method.ends(pair)[1].to_images(y) for pair, y in zip(pairs, ys, strict=True)]
        if mask is not None:  # What an autoencoder has changed outside is put back.
            made = [torch.where(mask, each, images) for each in made]
        return torch.stack(made) if several else made[0]


def _states(
    method: Method, pairs: Sequence[Domains], x_0: Tensor, noise: Noise, given: dict[str, Any]
) -> Iterator[tuple[Tensor, ...]]:
    """The states after each step, one for each pair of domains, which have one source."""
    if len(pairs) == 1:
        return ((state,) for state in method.stream(pairs[0], x_0, noise, **given))
    shared: list[SharedDenoiser | SharedNoise] = [drawn := SharedNoise(noise)]
    source = pairs[0].get("source")
    if source is not None:
        shared.append(denoiser := SharedDenoiser(source.denoiser))
        source = replace(source, denoiser=denoiser)
        pairs = [{**pair, "source": source} for pair in pairs]
    streams = [method.stream(pair, x_0, drawn, **given) for pair in pairs]
    return side_by_side(streams, shared)


def check_several(method: Method, count: int) -> None:
    """Raises ValueError unless a method can be given a list of so many targets."""
    name = type(method).__name__
    if "target" not in method.needs:
        raise BadValue("target", f"target: {name} takes no target, and got a list of {count}")
    if not count:
        raise BadValue("target", f"target: {name} needs at least one, got an empty list")


def check_mask(method: Method, mask: Tensor | None, images: Tensor) -> None:
    """Raises ValueError unless the method takes a mask, and this one fits the images."""
    if mask is None:
        return
    check_masks(method)
    shapes = (images.shape[2:], (len(images), *images.shape[2:]))
    if mask.dtype != torch.bool or mask.shape not in shapes:
        raise BadValue(
            "mask",
            f"mask must be bool, {tuple(shapes[0])} or {tuple(shapes[1])} for these images, got "
            f"{mask.dtype}, {tuple(mask.shape)}",
        )


def check_masks(method: Method, argument: str = "mask") -> None:
    """Raises ValueError, naming the argument, unless the method takes masks."""
    if not method.masks:
        raise BadValue(
            argument,
            f"{argument}: {type(method).__name__} takes no masks; CycleDiffusion, SDEdit, "
            f"EditFriendly, DDCM and FlowEdit do",
        )


def state_mask(mask: Tensor, side: int) -> Tensor:
    """Where states (B, C, side, side) may change: those of any pixel of a mask (B, 1, R, R)."""
    factor = mask.shape[-1] // side
    if factor == 1:
        return mask
    return F.max_pool2d(mask.float(), factor) > 0
