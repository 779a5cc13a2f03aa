"""LatentCode: the latent code of a stored encoding."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cyclelight.chains.source import check_eta
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.latent_schedule import stored_schedule
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import BadValue, first_line, printable


@dataclass(frozen=True, eq=False)
class LatentCode:
    """z = (x_T, noises, last residual) of a batch of images (Wu and De la Torre 2023, Eq. 5).

    `cyclelight.encode` makes it, `cyclelight.decode` turns it back into images. It holds as many
    images' worth of numbers as the grid has steps; `cyclelight.translate` stores none.

    Args:
        x_T: the noisy image where the chain starts, (B, C, H, W); floating point, as all here.
        noises: (S - 1, B, C, H, W), in running order (noise to clean): the residual x_s - mu over
            sigma, or the residual itself where sigma is 0 (eta 0).
        last_residual: the residual of the step to the clean image, (B, C, H, W), where sigma is
            always 0; None if it was dropped.
        grid: the timesteps of the chain, S of them.
        eta: as in `encode`.
        schedule: the schedule that both encoder and decoder must have.
        source: name of the domain that encoded.
        space: `Domain.space` of the domain that encoded.

    Raises:
        ValueError: shapes, grid and schedule do not fit together, or eta is out of range.
    """

    x_T: Tensor
    noises: Tensor
    last_residual: Tensor | None
    grid: TimeGrid
    eta: float
    schedule: NoiseSchedule
    source: str = "domain"
    space: str = "pixels"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_eta("eta", self.eta))
        if self.x_T.ndim != 4:
            raise BadValue("x_T", f"x_T must be (B, C, H, W), got {tuple(self.x_T.shape)}")
        wanted = {"noises": (self.noises, (len(self.grid) - 1, *self.x_T.shape))}
        if self.last_residual is not None:
            wanted["last_residual"] = self.last_residual, tuple(self.x_T.shape)
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                told = f"{name} must have shape {shape} for this x_T and grid"
                raise BadValue(name, f"{told}, got {tuple(tensor.shape)}")
        for name, tensor in {"x_T": self.x_T, **{n: t for n, (t, _) in wanted.items()}}.items():
            if not tensor.is_floating_point():
                raise BadValue(name, f"{name} must be floating point, got {tensor.dtype}")
        if self.grid.start >= self.schedule.timesteps:
            raise BadValue(
                "grid",
                f"the grid starts at {self.grid.start}, beyond the schedule's "
                f"{self.schedule.timesteps} timesteps",
            )

    def __len__(self) -> int:
        """How many images it is of."""
        return len(self.x_T)

    def __getitem__(self, index: int | slice) -> "LatentCode":
        """The code of one image or of several, still with a dimension for them.

        Raises:
            IndexError: there are not that many images.
        """
        found = range(len(self))[index]
        chosen = [found] if isinstance(found, int) else list(found)
        last = self.last_residual
        return replace(
            self,
            x_T=self.x_T[chosen],
            noises=self.noises[:, chosen],
            last_residual=None if last is None else last[chosen],
        )

    def __repr__(self) -> str:
        images = f"{len(self)} image{'s' * (len(self) != 1)} of {self.source!r}"
        shape = " x ".join(map(str, self.x_T.shape[1:]))
        dropped = ", no last residual" * (self.last_residual is None)
        return (
            f"LatentCode({images}, {shape} {self.space}, {len(self.grid)} steps from "
            f"t = {self.grid.start}, eta {self.eta}{dropped})"
        )

    def mean_squares(self) -> Tensor:
        """Mean over pixels of each squared noise, (S - 1, B): all near 1 if the code is Gaussian.

        For eta < 1 they exceed 1, about as 1 / eta^2 at small t: there the code also carries what
        the model did not know about the image.

        Raises:
            ValueError: eta is 0: such a code holds residuals, not noises.
        """
        if self.eta == 0:
            raise ValueError("a code with eta 0 has no noises: its residuals have no scale")
        return self.noises.square().mean(dim=(2, 3, 4))

    def steps(self) -> Iterator[tuple[int, int, Tensor | None]]:
        """(t, s, noise) in running order; at the last step the residual, or None if dropped."""
        for (t, s), noise in zip(self.grid.pairs, (*self.noises, self.last_residual), strict=True):
            yield t, s, noise

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "LatentCode":
        """The same code on another device or in another dtype."""
        last = self.last_residual
        return replace(
            self,
            x_T=self.x_T.to(device=device, dtype=dtype),
            noises=self.noises.to(device=device, dtype=dtype),
            last_residual=None if last is None else last.to(device=device, dtype=dtype),
        )

    def save(self, file: str | Path) -> None:
        """Write a safetensors file, complete or not at all."""
        tensors = {"x_T": self.x_T, "noises": self.noises}
        if self.last_residual is not None:
            tensors["last_residual"] = self.last_residual
        metadata = {
            "timesteps": json.dumps(self.grid.timesteps),
            "eta": json.dumps(self.eta),
            "schedule": json.dumps(self.schedule.to_diffusers()),
            "source": self.source,
            "space": self.space,
        }
        file = Path(file)
        partial = file.with_name(f".{file.name}.partial")
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: str | Path) -> "LatentCode":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a latent code.
        """
        if not Path(file).is_file():
            raise FileNotFoundError(f"no such file: {file}")
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata()
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            infinite = [name for name, value in tensors.items() if not value.isfinite().all()]
            if infinite:
                raise ValueError(f"{infinite[0]} holds NaN or infinite numbers")
            return cls(
                x_T=tensors["x_T"],
                noises=tensors["noises"],
                last_residual=tensors.get("last_residual"),
                grid=TimeGrid(tuple(json.loads(metadata["timesteps"]))),
                eta=json.loads(metadata["eta"]),
                schedule=stored_schedule(json.loads(metadata["schedule"])),
                source=metadata["source"],
                space=metadata.get("space", "pixels"),
            )
        except (SafetensorError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(f"{file} is not a latent code saved by cyclelight") from error
        except (ValueError, RuntimeError) as error:  # A grid nested too deeply recurses, too.
            told = f"{file} is not a whole latent code: {printable(first_line(error), 300)}"
            raise ValueError(told) from error
