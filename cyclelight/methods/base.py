"""Method: one way to translate, with one face: method(images, keys) -> images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cyclelight.chains.loop import last
from cyclelight.diffusion.noise import Noise, noise_for
from cyclelight.domains.domain import Domain, check_pair


class Method(ABC):
    """A translation from one domain into another.

    Raises:
        ValueError: the domains cannot be paired.
    """

    source: Domain
    target: Domain
    seed: int

    def __init__(self, source: Domain, target: Domain, *, seed: int = 0) -> None:
        check_pair(source, target)
        self.source, self.target, self.seed = source, target, seed

    @abstractmethod
    def stream(self, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states on the way, one for each step; the last is the clean one of the target.

        All are in the space that source and target share: x_0 comes from `source.to_states`, and
        the last goes to `target.to_images`.
        """

    @abstractmethod
    def __len__(self) -> int:
        """How many states `stream` yields."""

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        keys: Sequence[str | int] | None = None,
        *,
        noise: Noise | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Translate images (B, C, H, W) in [-1, 1]; the result has the same shape, not clamped."""
        x_0 = self.source.to_states(images)
        noise = noise_for(len(images), noise, self.seed, keys)
        states = self.stream(x_0, noise)
        return self.target.to_images(last(states, len(self), "translate", progress=progress))
