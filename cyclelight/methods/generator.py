"""What methods share that call one trained generator once."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.domain import Domain
from cyclelight.domains.network_folder import NetworkFolder
from cyclelight.domains.translator import Translator
from cyclelight.errors import BadValue
from cyclelight.methods.base import Domains, Ends, Method, Role


@dataclass(frozen=True)
class GeneratorMethod(Method):
    """One call of a generator that was trained for a pair of domains.

    It needs no domains, and draws no noise: an image's result depends on the image alone.

    Args:
        generator: folder of the generator: it decides the size of the images.

    Raises:
        ValueError: there is no generator, or none of this method's.
        FileNotFoundError: the folder does not exist.
    """

    generator: str = ""

    needs: ClassVar[tuple[Role, ...]] = ()
    folder: ClassVar[NetworkFolder[Any]]
    """What its generators' folders are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generator:
            raise BadValue("generator", f"generator must name {self.folder.what}, got none")
        self.folder.check(self.generator, "generator")

    @abstractmethod
    def load(self, device: str) -> Translator:
        """The generator on a device; on `meta` without its weights."""

    @cached_property
    def translator(self) -> Translator:
        """The generator, loaded when it is first used."""
        return self.load("cpu")

    @cached_property
    def _outline(self) -> Translator:
        return self.load("meta")

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.translator.network}

    def made_by(self) -> dict[str, str]:
        return {"generator": self.folder.fingerprint(Path(self.generator))}

    def choose(self, domains: Mapping[Role, Domain | None]) -> Domains:
        """None of them; the generator's settings are judged, its weights not read yet."""
        self.ends({})
        return {}

    def ends(self, domains: Domains) -> tuple[Ends, Ends]:
        return self._outline, self._outline

    def count(self, domains: Domains) -> int:
        return 1

    def length(self, schedule: NoiseSchedule) -> int:
        return 1

    def stream(self, domains: Domains, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The translation alone, in float32: half precision would round it, and save one call."""
        nn.Module.to(self.translator.network, device=x_0.device)
        with torch.autocast(x_0.device.type, enabled=False):
            made = self.translator(x_0.to(torch.float32))
        yield made.to(x_0.dtype)
