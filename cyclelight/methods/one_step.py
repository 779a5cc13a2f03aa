"""OneStep: a student that was taught by another method's translations, called once."""

from dataclasses import dataclass
from typing import ClassVar

from cyclelight.domains.network_folder import NetworkFolder
from cyclelight.domains.translator import STUDENT, Translator, load_translator
from cyclelight.methods.generator import GeneratorMethod
from cyclelight.networks.one_step import OneStepUNet


@dataclass(frozen=True)
class OneStep(GeneratorMethod):
    """One call of a student that learned from the translations of a slower method.

    It needs no domains, and draws no noise: an image's result depends on the image alone.

    Args:
        generator: folder of the student, made by `DistillationModule`: it decides the size of the
            images.
        direction: which way, of a student that goes several: the number of its name, from 0.

    Raises:
        ValueError: there is no student, or it does not go that way.
        FileNotFoundError: the folder does not exist.
    """

    direction: int = 0

    folder: ClassVar[NetworkFolder[OneStepUNet]] = STUDENT

    def load(self, device: str) -> Translator:
        return load_translator(self.generator, direction=self.direction, device=device)
