"""CycleDiffusion on PyTorch Lightning: translation between image domains by their latent noises."""

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclelight.autoencoder import Autoencoder
    from cyclelight.autoencoder_folder import load_autoencoder, save_autoencoder
    from cyclelight.decode import decode
    from cyclelight.denoiser import NetworkDenoiser, Prediction
    from cyclelight.domain import Domain
    from cyclelight.domain_folder import load_domain, save_domain
    from cyclelight.encode import CodeRecipe, encode, recipe
    from cyclelight.invert import invert
    from cyclelight.latent_code import LatentCode
    from cyclelight.methods import CycleDiffusion
    from cyclelight.noise import KeyedNoise
    from cyclelight.sample import sample
    from cyclelight.schedule import NoiseSchedule, TimeGrid
    from cyclelight.translate import translate

__version__ = version("cyclelight")

__all__ = [
    "Autoencoder",
    "CodeRecipe",
    "CycleDiffusion",
    "Domain",
    "KeyedNoise",
    "LatentCode",
    "NetworkDenoiser",
    "NoiseSchedule",
    "Prediction",
    "TimeGrid",
    "decode",
    "encode",
    "invert",
    "load_autoencoder",
    "load_domain",
    "recipe",
    "sample",
    "save_autoencoder",
    "save_domain",
    "translate",
]

_HOMES = {
    "Autoencoder": "autoencoder",
    "CodeRecipe": "encode",
    "CycleDiffusion": "methods",
    "Domain": "domain",
    "KeyedNoise": "noise",
    "LatentCode": "latent_code",
    "NetworkDenoiser": "denoiser",
    "NoiseSchedule": "schedule",
    "Prediction": "denoiser",
    "TimeGrid": "schedule",
    "load_autoencoder": "autoencoder_folder",
    "load_domain": "domain_folder",
    "recipe": "encode",
    "save_autoencoder": "autoencoder_folder",
    "save_domain": "domain_folder",
}


class _Package(ModuleType):
    """Imports a public name when it is first used.

    The program starts in this package: with torch and diffusers imported at once, `--help` would
    take 8 seconds, and Ctrl-C meanwhile would show a traceback.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, name)}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # The import of cyclelight.decode would put the file in the place of the function.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
