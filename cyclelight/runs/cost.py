"""What the images of a run have cost, over all sittings: `cost.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path

from cyclelight.files import read_json, write_json

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What was spent on the images that were made, those made twice included.

    Args:
        images: that were made.
        calls: states that a network was called with: of domains, and of the method's own networks.
        seconds: that it took, without the loading of networks and the judging.
    """

    images: int = 0
    calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.images + other.images, self.calls + other.calls, self.seconds + other.seconds
        )

    @property
    def calls_per_image(self) -> float | None:
        """Network calls for an image; None if none was made."""
        return self.calls / self.images if self.images else None

    @property
    def seconds_per_image(self) -> float | None:
        """Seconds for an image; None if none was made."""
        return self.seconds / self.images if self.images else None

    @classmethod
    def read(cls, folder: Path) -> "Cost":
        """What was spent in a run folder so far; nothing where there is no such file.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / COST
        if not path.exists():
            return cls()
        kept = read_json(path, COST)
        try:
            return cls(int(kept["images"]), int(kept["calls"]), float(kept["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: delete it") from error

    def write(self, folder: Path) -> None:
        """Write it, atomically."""
        write_json(folder / COST, asdict(self))
