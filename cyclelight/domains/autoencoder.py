"""Autoencoder: the border between pixels and the latent space that a domain's chain works in."""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.errors import BadValue, real


class Autoencoder:
    """A frozen autoencoder (Rombach et al. 2022, sec. 3.1), such as diffusers' AutoencoderKL.

    Both ways are deterministic: an image's latents are the mean of its posterior.

    Args:
        network: diffusers' AutoencoderKL or VQModel, or what has their `encode`, `decode` and
            `config`. It is frozen, and follows its input from device to device.
        card: where it comes from: training data and licence, steps, versions.

    Raises:
        ValueError: its configuration does more to latents than to shift them by `shift_factor` and
            scale them by `scaling_factor`, which is above 0, or it is for something else than
            images of 1 or 3 channels.
    """

    def __init__(self, network: nn.Module, card: Mapping[str, Any] | None = None) -> None:
        config: Any = network.config
        if not real("scaling_factor", config.scaling_factor) > 0:
            raise BadValue(
                "scaling_factor", f"scaling_factor must be above 0, got {config.scaling_factor}"
            )
        channels = config.in_channels, getattr(config, "out_channels", config.in_channels)
        if channels not in ((1, 1), (3, 3)):
            raise ValueError("images have 1 or 3 channels, not {} in and {} out".format(*channels))
        for name in ("latents_mean", "latents_std"):
            if getattr(config, name, None) is not None:
                raise ValueError(f"an autoencoder with {name} is not supported")
        self.network: Any = network.requires_grad_(False).eval()
        self.card = card or {}
        self.channels: int = config.in_channels
        # The channels of a VQModel's latents may be others than those of its encoder.
        self.latent_channels: int = getattr(config, "vq_embed_dim", None) or config.latent_channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        """How many times smaller the side of the latents is."""
        self.scaling_factor = float(config.scaling_factor)
        self.shift_factor = real("shift_factor", getattr(config, "shift_factor", None) or 0.0)
        self.fingerprint = _fingerprint(network, self.scaling_factor, self.shift_factor)
        """Twelve hexadecimal digits that tell its latent space from another's."""

    def __deepcopy__(self, memo: Any) -> "Autoencoder":
        # Frozen, so that whoever is copied with it, such as a module by its moving average, may
        # share it.
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] => latents of about unit variance, of the same dtype.

        (B, latent channels, H / factor, W / factor).
        """
        network = self._on(images.device)
        with _no_float16(images.device):
            encoded = network.encode(images.to(self._dtype))
        latents = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latents
        return (latents.to(images.dtype) - self.shift_factor) * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents => images (B, C, H, W), near [-1, 1], not clamped, of the latents' dtype."""
        network = self._on(latents.device)
        latents = latents / self.scaling_factor + self.shift_factor
        with _no_float16(latents.device):
            images: Tensor = network.decode(latents.to(self._dtype)).sample
        return images.to(latents.dtype)

    def to(self, dtype: torch.dtype | None = None) -> "Autoencoder":
        """Compute in another dtype, in place; images and latents keep theirs."""
        nn.Module.to(self.network, dtype=dtype)
        return self

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def _on(self, device: torch.device) -> Any:
        return nn.Module.to(self.network, device=device)


def _no_float16(device: torch.device) -> AbstractContextManager[object]:
    """Where float16 is chosen by autocast, none: these networks overflow in it."""
    kind = device.type
    known = torch.amp.is_autocast_available(kind)
    if known and torch.get_autocast_dtype(kind) == torch.float16:
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def state_shape(
    channels: int, resolution: int, autoencoder: Autoencoder | None
) -> tuple[int, int, int]:
    """(C, H, W) of what a chain works on: images of that shape, or their latents.

    Raises:
        ValueError: the autoencoder is for other images.
    """
    if autoencoder is None:
        return channels, resolution, resolution
    if channels != autoencoder.channels:
        raise BadValue(
            "channels",
            f"channels must be {autoencoder.channels} for this autoencoder, got {channels}",
        )
    if resolution % autoencoder.factor:
        raise BadValue(
            "resolution",
            f"resolution must be a multiple of {autoencoder.factor} for this autoencoder, "
            f"got {resolution}",
        )
    side = resolution // autoencoder.factor
    return autoencoder.latent_channels, side, side


def state_space(autoencoder: Autoencoder | None) -> str:
    """What a chain works on, in words: equal if states of one mean the same to the other."""
    if autoencoder is None:
        return "pixels"
    return f"latents of autoencoder {autoencoder.fingerprint}"


def _fingerprint(network: nn.Module, scaling_factor: float, shift_factor: float) -> str:
    """A hash of the weights and of the factors."""
    factors = repr(scaling_factor) + (f" {shift_factor!r}" if shift_factor else "")
    digest = hashlib.sha256(f"{type(network).__name__} {factors}".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        # As float32, so that a lossless change of dtype on disk changes nothing.
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
