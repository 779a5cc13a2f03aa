"""What the mathematics is tested against: closed forms, recorded networks and recorded noises."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from safetensors.torch import load_file
from torch import Tensor, nn

from cyclelight import Autoencoder, Domain, NoiseSchedule, Prediction
from cyclelight.networks.autoencoder import AutoencoderSettings, build_autoencoder
from cyclelight.text.control import Spelling

SCHEDULE = NoiseSchedule.linear()
VECTORS = Path(__file__).parent / "vectors" / "step"
P2P = VECTORS.parent / "p2p"


def vectors(name: str) -> dict[str, Tensor]:
    """The arrays of a recorded file."""
    return load_file(VECTORS / f"{name}.safetensors")


class Gaussian:
    """The exact denoiser of pixels that are independently N(mean, std^2)."""

    def __init__(self, mean: float, std: float, schedule: NoiseSchedule = SCHEDULE) -> None:
        self.mean, self.std, self.schedule = mean, std, schedule

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        a = float(self.schedule.alphas_cumprod[t])
        spread = a * self.std**2 + 1 - a
        return Prediction(eps=(1 - a) ** 0.5 * (x_t - a**0.5 * self.mean) / spread)


class Table:
    """The networks of the recorded runs: eps = a(t) x + b(t)."""

    schedule = SCHEDULE

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        return Prediction(eps=self.a[t].item() * x_t + self.b[t].item())


class Recorded:
    """Noises in the order in which a recorded run drew them, as float64."""

    def __init__(self, noises: Sequence[Tensor]) -> None:
        self.noises = iter(noises)

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        return next(self.noises).to(like).expand_as(like)


def domain(denoiser: Any, resolution: int, name: str = "domain") -> Domain:
    """A domain around any denoiser."""
    return Domain(denoiser=denoiser, resolution=resolution, name=name)


class Orthogonal(nn.Module):
    """An autoencoder that loses nothing: each 2 x 2 block of pixels turned by an orthogonal matrix.

    Its interface is that of diffusers' autoencoders.
    """

    def __init__(self, seed: int = 0, scaling_factor: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
        self.matrix = nn.Parameter(torch.linalg.qr(matrix)[0])
        self.config = SimpleNamespace(
            in_channels=3,
            latent_channels=12,
            block_out_channels=(1, 1),
            scaling_factor=scaling_factor,
        )

    def encode(self, images: Tensor) -> Any:
        blocks = nn.functional.pixel_unshuffle(images, 2)
        return VQEncoderOutput(torch.einsum("ij,bjhw->bihw", self.matrix, blocks))

    def decode(self, latents: Tensor) -> Any:
        blocks = torch.einsum("ij,bihw->bjhw", self.matrix, latents)
        return SimpleNamespace(sample=nn.functional.pixel_shuffle(blocks, 2))


def tiny_autoencoder(seed: int = 0, levels: int = 2, scaling_factor: float = 2.5) -> Autoencoder:
    """An untrained AutoencoderKL with 4 latent channels."""
    torch.manual_seed(seed)
    settings = AutoencoderSettings((8,) * levels, 1, 4, norm_groups=8)
    network = build_autoencoder(settings, resolution=16, channels=3)
    network.register_to_config(scaling_factor=scaling_factor)
    return Autoencoder(network, {"resolution": 16})


def numbers(n: int, seed: int, count: int) -> np.ndarray[Any, Any]:
    """r of the vectors' README: the rule that fills weights and inputs."""
    with np.errstate(over="ignore"):
        i = np.arange(1, count + 1, dtype=np.uint32)
        u = i * np.uint32(2654435761)
        u += np.uint32(((n + 1) * 40503 + seed * 69069) % 2**32)
        u = (u ^ (u >> np.uint32(15))) * np.uint32(2246822519)
        u = (u ^ (u >> np.uint32(13))) * np.uint32(3266489917)
        u ^= u >> np.uint32(16)
    return u.astype(np.float64) / 2**32 - 0.5


def formula_tensor(n: int, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The n-th weight of a network that is filled by that rule."""
    r = numbers(n, seed, int(np.prod(shape)))
    if len(shape) > 1:
        value = r * (0.8 * 12**0.5 / (r.size / shape[0]) ** 0.5)
    else:
        value = 1 + 0.4 * r if name.endswith(".weight") else 0.2 * r
    return torch.from_numpy(value.astype(np.float32)).view(*shape)


def formula_input(seed: int, *shape: int) -> Tensor:
    r = numbers(1_000_000, seed, int(np.prod(shape)))
    return torch.from_numpy((3.4 * r).astype(np.float32)).view(shape)


def prompt_spellings(prompts: list[str], ids: list[list[int]]) -> list[Spelling]:
    """The recorded ids; how each reads, from the recorded pairs, or else each word is a token."""
    reads: dict[int, str] = {49406: "", 49407: ""}
    for pair in json.loads((P2P / "pairs.json").read_text())["pairs"]:
        for role in ("source", "target"):
            reads |= zip(pair[f"{role}_ids"], pair[f"{role}_tokens"], strict=True)
    return [
        Spelling(
            text,
            own,
            [reads[i] if i in reads else text.split(" ")[n] for n, i in enumerate(own[1:-1])],
        )
        for text, own in zip(prompts, ids, strict=True)
    ]
