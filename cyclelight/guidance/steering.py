"""Steering: how a generator is brought to images of low energy."""

from abc import ABC, abstractmethod
from dataclasses import fields

from cyclelight.guidance.generators import Generator


class Steering(ABC):
    """How a generator is steered; a subclass is a frozen dataclass of its settings.

    They are the options of the command line (`--model.sampler Adam --model.sampler.steps 100`).
    """

    @abstractmethod
    def length(self, generator: Generator) -> int:
        """How many steps it takes.

        Raises:
            ValueError: it is not for this generator.
        """

    @abstractmethod
    def calls(self, generator: Generator, way: int) -> int:
        """Calls of the generator's networks for an image, those of backward passes not counted.

        Args:
            generator: what is steered.
            way: images on the way that are shown.
        """

    def describe(self) -> str:
        """The settings in one line."""
        # Subclasses are dataclasses; that cannot be said of an abstract class.
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return ", ".join([type(self).__name__, *(f"{n} {getattr(self, n)}" for n in names)])
