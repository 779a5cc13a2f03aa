"""CUT (Park et al. 2020): one generator, trained for one pair of domains, called once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.cut_folder import (
    Translator,
    check_translator_path,
    load_translator,
    translator_fingerprint,
)
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue
from cyclelight.methods.base import Domains, Ends, Method, Role


@dataclass(frozen=True)
class CUT(Method):
    """One call of a generator that was trained by contrast of patches: CUT or FastCUT.

    Park et al. 2020, Eq. 1. It needs no domains, and draws no noise: an image's result depends on
    the image alone.

    Args:
        generator: folder of the generator, made by `CUTModule`: it decides the size of the images.

    Raises:
        ValueError: there is no generator, or none of CUT's.
        FileNotFoundError: the folder does not exist.
    """

    generator: str = ""

    needs: ClassVar[tuple[Role, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generator:
            raise BadValue(
                "generator", "generator must name the folder of a CUT generator, got none"
            )
        check_translator_path(self.generator)

    @cached_property
    def translator(self) -> Translator:
        """The generator, loaded when it is first used."""
        return load_translator(self.generator)

    @cached_property
    def _outline(self) -> Translator:
        """The generator without its weights."""
        return load_translator(self.generator, device="meta")

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.translator.network}

    def made_by(self) -> dict[str, str]:
        return {"generator": translator_fingerprint(check_translator_path(self.generator))}

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
        network = self.translator.network
        nn.Module.to(network, device=x_0.device)
        with torch.autocast(x_0.device.type, enabled=False):
            made: Tensor = network(x_0.to(torch.float32))
        yield made.to(x_0.dtype)
