"""Domain: one kind of image (cats, dogs, ...) as a diffusion model knows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import Denoiser
from cyclelight.diffusion.pixels import check_images, check_states
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.autoencoder import Autoencoder, state_shape, state_space
from cyclelight.errors import BadValue, at_least, kind_of, whole


@dataclass(frozen=True)
class Domain:
    """A denoiser and the images it knows.

    With an autoencoder, images are encoded once on the way in and decoded once on the way out;
    between the two, the chain and all its states are latents. Without one they are pixels.

    Args:
        denoiser: see `Denoiser`: what is called as (x_t, t) and has a `schedule`.
        resolution: height and width of its images in pixels.
        channels: channels of its images.
        name: what to call it.
        card: where it comes from: training data and licence, steps, versions.
        autoencoder: what makes its images latents, of which the denoiser then is.

    Raises:
        ValueError: an argument is out of range, or the denoiser is none.
    """

    denoiser: Denoiser
    resolution: int
    channels: int = 3
    name: str = "domain"
    card: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: Autoencoder | None = None

    def __post_init__(self) -> None:
        if not callable(self.denoiser) or not hasattr(self.denoiser, "schedule"):
            raise BadValue(
                "denoiser",
                f"denoiser must be called as (x_t, t) and have a schedule, "
                f"got {kind_of(self.denoiser)}; of a network, NetworkDenoiser(network, schedule) "
                f"is one",
            )
        for name in ("resolution", "channels"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        at_least(1, resolution=self.resolution, channels=self.channels)

    def __repr__(self) -> str:
        network = self.denoiser if isinstance(self.denoiser, nn.Module) else None
        count = sum(weight.numel() for weight in network.parameters()) if network else 0
        schedule = self.schedule
        parts = (
            f"{self.name!r}",
            f"{self.resolution} x {self.resolution}, {self.channels} channels",
            *([f"chains on {self.space}"] if self.autoencoder else []),
            f"{schedule.kind} schedule of {schedule.timesteps} steps",
            *([f"{count / 1e6:.1f} M parameters"] if count else []),
        )
        return f"Domain({', '.join(parts)})"

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Domain":
        """Move the networks to a device or dtype, in place; a plain callable stays as it is."""
        if isinstance(self.denoiser, nn.Module):
            self.denoiser.to(device=device, dtype=dtype)
        if self.autoencoder is not None:
            self.autoencoder.to(dtype)
        return self

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the denoiser was trained under."""
        return self.denoiser.schedule

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the chain's states: the images' own, or that of their latents."""
        return state_shape(self.channels, self.resolution, self.autoencoder)

    @property
    def space(self) -> str:
        """What the chain's states are, in words; domains can be paired only if theirs agree."""
        return state_space(self.autoencoder)

    def to_states(self, images: Tensor) -> Tensor:
        """Images (B, channels, resolution^2) in [-1, 1] => clean states (B, *shape) of chains."""
        return images if self.autoencoder is None else self.autoencoder.encode(images)

    def to_images(self, states: Tensor) -> Tensor:
        """Clean states (B, *shape) => images (B, channels, resolution^2), near [-1, 1]."""
        return states if self.autoencoder is None else self.autoencoder.decode(states)

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless they are images of this domain; see `pixels.check_images`."""
        whose = f"domain {self.name!r}"
        check_images("images", images, self.channels, self.resolution, whose)

    def check_states(self, states: Tensor) -> None:
        """Raises ValueError unless `states` are finite, floating point, (B, *shape)."""
        check_states("x_T", states, self.shape, f"domain {self.name!r}")


def check_domain(argument: str, domain: object) -> None:
    """Raises ValueError, naming the argument, unless it is a `Domain`."""
    if not isinstance(domain, Domain):
        raise BadValue(
            argument,
            f"{argument} must be a Domain, such as cyclelight.load_domain(folder), "
            f"got {kind_of(domain)}",
        )


def check_pair(source: Domain, target: Domain) -> None:
    """Raises ValueError, with the field and both values, unless two domains can be paired.

    A code means the same to two models only if they share schedule, resolution, channels and, if
    they have one, autoencoder.
    """
    for field_name in ("resolution", "channels", "space"):
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
