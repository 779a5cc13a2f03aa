"""Gaussian numbers that belong to an image, not to a batch.

Every draw is a pure function of (seed, key of the image, purpose, timestep): the same for any
batch, order, number of processes or device. Purposes ("start", "posterior", "cleanup", ...) keep
the streams apart, so that switching one on does not change another.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from cyclelight.errors import BadValue, kind_of, whole

Noise = Callable[[str, int, Tensor], Tensor]
"""A source of noise: (purpose, timestep, like) -> Gaussian numbers with shape, dtype and device of
`like`, whose first dimension counts the images."""


def keyed_generator(*identity: object) -> torch.Generator:
    """A CPU generator seeded by a 64-bit hash of `identity`, which must print reproducibly."""
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    # blake2b, since Python's hash() is salted anew in every process.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def step_generator(seed: int, step: int, batch: int, rank: int) -> torch.Generator:
    """For one batch of one training step on one process.

    It seeds torch's own generator too, for dropout, which takes no other: so what is random in a
    step is the same after a resume, without any state being saved.
    """
    generator = keyed_generator(seed, "train", step, batch, rank)
    torch.manual_seed(generator.initial_seed())
    return generator


def gaussian_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, I) with shape, dtype and device of x, for training.

    A GPU draws its own numbers, since a step would take it no longer than a CPU these; they follow
    from `generator`, which is a CPU's, too, but are others than a CPU's.
    """
    if x.device.type == "cpu":
        return torch.randn(x.shape, generator=generator).to(x)
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=own, device=x.device).to(x)


@dataclass(frozen=True)
class KeyedNoise:
    """Noise from a seed and one key per image.

    Args:
        seed: any integer; another seed gives independent numbers for every key.
        keys: one key per image of the batch, such as relative paths; equal keys get equal noise.

    Raises:
        ValueError: the seed is no integer, or a key neither text nor an integer.
    """

    seed: int
    keys: Sequence[str | int]

    def __post_init__(self) -> None:
        # Noise follows from how these print, which is another way for NumPy's numbers.
        object.__setattr__(self, "seed", whole("seed", self.seed))
        plain = tuple(str(k) if isinstance(k, str) else whole("keys", k) for k in self.keys)
        object.__setattr__(self, "keys", plain)

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        """N(0, I) of the shape of `like`, (B, ...); drawn in float32, then cast.

        Raises:
            ValueError: the number of keys is not B.
        """
        if len(self.keys) != len(like):
            raise ValueError(f"one key per image: got {len(self.keys)} keys, {len(like)} images")
        # Drawn in float32 whatever the dtype, so that a float64 run sees the same noise.
        with torch.inference_mode(False):  # Threads do not inherit the mode, and are to write here.
            draws = torch.empty(like.shape, pin_memory=like.is_cuda)

        def draw(index: int) -> None:
            generator = keyed_generator(self.seed, self.keys[index], purpose, timestep)
            torch.randn(draws.shape[1:], generator=generator, out=draws[index])

        # A GPU works on what it was told before: meanwhile threads draw, and nobody waits.
        draw_all = _threads().map if like.is_cuda else map
        for _ in draw_all(draw, range(len(draws))):
            pass
        return draws.to(device=like.device, dtype=like.dtype, non_blocking=True)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="noise")


def noise_for(
    batch: int, noise: Noise | None, seed: int, keys: Sequence[str | int] | None
) -> Noise:
    """The noise of a call: `noise` if given, else keyed by `seed` and `keys`.

    `keys` None stands for the position in the batch.

    Raises:
        ValueError: one of them is of another kind, or there is not one key for each image.
    """
    if noise is not None:
        if not callable(noise):
            told = f"noise must be a function of (purpose, timestep, like), got {kind_of(noise)}"
            raise BadValue("noise", told)
        return noise
    if isinstance(keys, str) or (keys is not None and len(keys) != batch):
        got = f"{len(keys)} keys, {batch} images"
        got = f"the string {keys!r}" if isinstance(keys, str) else got
        raise BadValue("keys", f"keys must be one per image: got {got}")
    return KeyedNoise(seed, range(batch) if keys is None else keys)
