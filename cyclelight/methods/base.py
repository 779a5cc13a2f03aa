"""Method: one way to translate. Its constructor's arguments are its settings."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Protocol, get_args

from torch import Tensor, nn

from cyclelight.chains.source import check_eta_or_pair
from cyclelight.diffusion.grid import Spacing, TimeGrid, check_strength
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.diffusion.steps import EtaOrPair
from cyclelight.domains.domain import Domain, check_domain, check_pair
from cyclelight.errors import BadValue, at_least, one_of, plain_numbers

Role = Literal["source", "target"]
Domains = Mapping[Role, Domain]
"""The domains that a method needs, by what they are to it."""


class Ends(Protocol):
    """What images go into a method by, or come out of it: a Domain, or what stands for one."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def resolution(self) -> int:
        """Height and width R of its images in pixels."""

    @property
    def channels(self) -> int:
        """Channels of its images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its states."""

    def to_states(self, images: Tensor) -> Tensor:
        """Images (B, C, R, R) in [-1, 1] => states (B, *shape)."""

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless they are images of this kind and size."""

    def to_images(self, states: Tensor) -> Tensor:
        """States (B, *shape) => images (B, C, R, R), near [-1, 1]."""


class Method(ABC):
    """One way to translate images; a subclass is a frozen dataclass of its settings.

    One that checks them calls `super().__post_init__()` first, which makes its numbers plain.

    They are the options of the command line (`--model.method SDEdit --model.method.strength 0.5`),
    the arguments in Python, and what a run is known by; their defaults stand in one place, there.
    """

    needs: ClassVar[tuple[Role, ...]] = ("source", "target")
    """The domains it works with. The first takes the images in, the last gives them out; one that
    needs none has `ends` of its own."""
    gradients: ClassVar[bool] = False
    """Whether it takes gradients: then autograd records what `stream` does."""
    masks: ClassVar[bool] = False
    """Whether `stream` takes a `mask` too: (B, 1, H, W), bool, outside of which x_0 stays."""

    def __post_init__(self) -> None:
        """Numbers that were given become plain ones, whatever library they are from.

        Raises:
            ValueError: a setting that is a number was given as something else.
        """
        plain_numbers(self)

    @abstractmethod
    def stream(self, domains: Domains, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states on the way, one for each step; the last is the clean one of the result.

        All are in the space that the domains share: x_0 comes from `Domain.to_states`, and the last
        goes to `Domain.to_images`.
        """

    @abstractmethod
    def length(self, schedule: NoiseSchedule) -> int:
        """How many states `stream` yields.

        Raises:
            ValueError: a setting is out of the schedule's range.
        """

    def ends(self, domains: Domains) -> tuple[Ends, Ends]:
        """What takes the images in, and what gives them out, of the chosen domains."""
        return domains[self.needs[0]], domains[self.needs[-1]]

    def count(self, domains: Domains) -> int:
        """How many states `stream` yields, with the chosen domains."""
        return self.length(domains[self.needs[0]].schedule)

    def networks(self) -> Mapping[str, nn.Module]:
        """Networks of its own beside the domains' denoisers, by the setting that names them."""
        return {}

    def made_by(self) -> Mapping[str, str]:
        """The SHA-256 of the weights of its own networks, by the setting that names them."""
        return {}

    def choose(self, domains: Mapping[Role, Domain | None]) -> Domains:
        """Those of the domains that it needs, in the order of `needs`.

        Raises:
            ValueError: one is missing, they cannot be paired, or a setting does not fit them.
        """
        chosen: dict[Role, Domain] = {}
        for role in self.needs:
            domain = domains.get(role)
            if domain is None:
                name = type(self).__name__
                raise BadValue(role, f"{role}: {name} needs this domain, and got none")
            check_domain(role, domain)
            chosen[role] = domain
        members = list(chosen.values())
        for other in members[1:]:
            check_pair(members[0], other)
        self.length(members[0].schedule)
        return chosen

    def describe(self) -> str:
        """The settings that are set, in one line."""
        # Subclasses are dataclasses; that cannot be said of an abstract class.
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        given = ((name, getattr(self, name)) for name in names)
        return ", ".join(f"{name} {value}" for name, value in given if value is not None)


@dataclass(frozen=True)
class GridMethod(Method):
    """A method that runs the lower part of an even grid, stochastically.

    Args:
        steps: number of timesteps of the whole grid, 1 .. T.
        eta: 0 .. 1; or two such numbers, at the clean end of the schedule and at the noisy one,
            between which it changes linearly.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end.
        spacing: how the timesteps are spread, see `Spacing`.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 50
    eta: EtaOrPair = 1.0
    strength: float = 0.85
    spacing: Spacing = "leading"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eta", check_eta_or_pair("eta", self.eta))
        check_strength(self.strength)
        one_of(get_args(Spacing), spacing=self.spacing)

    def grid(self, schedule: NoiseSchedule) -> TimeGrid:
        """The timesteps that are run.

        Raises:
            ValueError: `steps` is above the schedule's T.
        """
        return TimeGrid.spaced(schedule, self.steps, self.strength, self.spacing)

    def length(self, schedule: NoiseSchedule) -> int:
        return len(self.grid(schedule))


def check_parallel(parallel: int) -> None:
    """Raises ValueError unless it is how many states a call may take, or 0 for one timestep."""
    at_least(0, parallel=parallel)
