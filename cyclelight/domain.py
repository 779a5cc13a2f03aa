"""Domain: one kind of image (cats, dogs, ...) as a diffusion model knows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.denoiser import Denoiser
from cyclelight.schedule import NoiseSchedule


@dataclass(frozen=True)
class Domain:
    """A denoiser, the schedule it was trained under, and the images it knows.

    Args:
        denoiser: any callable (x_t, t, condition=None) -> `Prediction`.
        schedule: its noise schedule.
        resolution: height and width of its images in pixels.
        channels: channels of its images.
        name: what to call it.
        card: where it comes from: training data and licence, steps, versions.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    resolution: int
    channels: int = 3
    name: str = "domain"
    card: Mapping[str, Any] = field(default_factory=dict)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Domain":
        """Move the network to a device or dtype, in place; a plain callable stays as it is."""
        if isinstance(self.denoiser, nn.Module):
            self.denoiser.to(device=device, dtype=dtype)
        return self

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless `images` are floating point (B, channels, resolution^2)."""
        wanted = (self.channels, self.resolution, self.resolution)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, wanted))}) for domain "
                f"{self.name!r}, got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [-1, 1], got {images.dtype}")


def check_pair(source: Domain, target: Domain) -> None:
    """Raises ValueError, with the field and both values, unless two domains can be paired.

    A code means the same to two models only if they share schedule, resolution and channels.
    """
    for field_name in ("resolution", "channels"):
        a, b = getattr(source, field_name), getattr(target, field_name)
        if a != b:
            raise ValueError(
                f"source {source.name!r} and target {target.name!r} cannot be paired: "
                f"they differ in {field_name}: {a} and {b}"
            )
    difference = source.schedule.difference(target.schedule)
    if difference is not None:
        raise ValueError(
            f"source {source.name!r} and target {target.name!r} cannot be paired: "
            f"their noise schedules differ in {difference}"
        )
