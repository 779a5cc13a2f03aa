"""CUT (Park et al. 2020): one generator, trained for one pair of domains, called once."""

from dataclasses import dataclass
from typing import ClassVar

from cyclelight.domains.network_folder import NetworkFolder
from cyclelight.domains.translator import CUT as CUT_FOLDER
from cyclelight.domains.translator import Translator, load_translator
from cyclelight.methods.generator import GeneratorMethod
from cyclelight.networks.cut import CUTGenerator


@dataclass(frozen=True)
class CUT(GeneratorMethod):
    """One call of a generator that was trained by contrast of patches: CUT or FastCUT.

    Park et al. 2020, Eq. 1. It needs no domains, and draws no noise: an image's result depends on
    the image alone.

    Args:
        generator: folder of the generator, made by `CUTModule`: it decides the size of the images.

    Raises:
        ValueError: there is no generator, or none of CUT's.
        FileNotFoundError: the folder does not exist.
    """

    folder: ClassVar[NetworkFolder[CUTGenerator]] = CUT_FOLDER

    def load(self, device: str) -> Translator:
        return load_translator(self.generator, device=device)
