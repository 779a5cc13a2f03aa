"""From latents to guided images: a sampler, a generator and energies put together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cyclelight.diffusion.noise import Noise
from cyclelight.guidance.energy import Energy
from cyclelight.guidance.generators import Generator
from cyclelight.guidance.langevin import Kept, Sampler, Visit, keep
from cyclelight.guidance.steering import Steering
from cyclelight.guidance.tfg import TFG

Keep = Literal["last", "best"]


class ImageEnergy:
    """The energy of z: that of the images which a generator makes of it.

    Args:
        generator: z -> images.
        energies: of images.
        noise: of what is random in the energies.
    """

    def __init__(self, generator: Generator, energies: Sequence[Energy], noise: Noise) -> None:
        self.generator, self.energies, self.noise = generator, energies, noise

    def of_images(self, images: Tensor, step: int) -> Tensor:
        """Each energy of each image, unweighted, (K, B); of grey, of three equal channels."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        values = [energy(images, self.noise, step).float() for energy in self.energies]
        return torch.stack(values) if values else images.new_zeros(0, len(images))

    def __call__(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See `Problem`."""
        if not self.energies:
            return z.new_zeros(0, len(z)), torch.zeros_like(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            values = self.of_images(self.generator(z), step)
            weighted = [e.weight * v.sum() for e, v in zip(self.energies, values, strict=True)]
            (gradient,) = torch.autograd.grad(torch.stack(weighted).sum(), z)
        return values.detach(), gradient


@dataclass(frozen=True)
class Guided:
    """What guidance has made of a batch.

    Args:
        start: images of the first z, (B, C, R, R), near [-1, 1].
        end: images of the z that is kept.
        before: each energy of the first images, unweighted, (K, B).
        after: each energy of the last images.
        kept: the way between.
        way: images on the way, evenly spread, (M, B, C, R, R); none if not asked for.
    """

    start: Tensor
    end: Tensor
    before: Tensor
    after: Tensor
    kept: Kept
    way: Tensor


def guide(
    generator: Generator,
    energies: Sequence[Energy],
    sampler: Steering,
    z: Tensor,
    noise: Noise,
    *,
    which: Keep = "last",
    way: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> Guided:
    """Move z so that the energies of its images fall.

    Args:
        generator: z -> images, without parameters that ask for gradients.
        energies: of images; loaded.
        sampler: how z moves.
        z: where to begin, (B, d).
        noise: for the chain and the energies.
        which: the last state, or the one of least weighted energy.
        way: how many images on the way are wanted.
        on_step: called after each step.

    Raises:
        RuntimeError: as `Sampler.chain`.
    """
    problem = ImageEnergy(generator, energies, noise)
    weights = torch.tensor([e.weight for e in energies], device=z.device, dtype=torch.float32)
    length = sampler.length(generator)
    wanted = [(i + 1) * length // (way + 1) for i in range(way)]
    if isinstance(sampler, TFG):
        end, kept, seen = sampler.steer(generator, problem.of_images, weights, z, on_step)
        on_way = [seen[i] for i in wanted]
    else:
        assert isinstance(sampler, Sampler)
        states: dict[int, Tensor] = {}

        def visits() -> Iterator[Visit]:
            for i, visit in enumerate(sampler.chain(problem, z, noise)):
                if i in wanted:
                    states[i] = visit.z
                if visit.values is not None:
                    on_step()
                yield visit

        kept = keep(visits(), weights if which == "best" else None)
        with torch.no_grad():
            end, on_way = generator(kept.z), [generator(states[i]) for i in wanted]
    with torch.no_grad():
        start = generator(z)
        # Judged by the same augmentations, those of step 0.
        before, after = problem.of_images(start, 0), problem.of_images(end, 0)
    shown = torch.stack(on_way) if on_way else end[None, :0]
    return Guided(start, end, before, after, kept, shown)
