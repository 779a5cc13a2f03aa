"""CycleDiffusion on PyTorch Lightning: translation between image domains by their latent noises."""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclelight.chains.decode import decode as decode
    from cyclelight.chains.encode import encode as encode
    from cyclelight.chains.interpolate import interpolate as interpolate
    from cyclelight.chains.invert import invert as invert
    from cyclelight.chains.latent_code import LatentCode as LatentCode
    from cyclelight.chains.sample import sample as sample
    from cyclelight.diffusion.denoiser import NetworkDenoiser as NetworkDenoiser
    from cyclelight.diffusion.denoiser import Prediction as Prediction
    from cyclelight.diffusion.grid import TimeGrid as TimeGrid
    from cyclelight.diffusion.noise import KeyedNoise as KeyedNoise
    from cyclelight.diffusion.pixels import to_pil as to_pil
    from cyclelight.diffusion.schedule import NoiseSchedule as NoiseSchedule
    from cyclelight.domains.autoencoder import Autoencoder as Autoencoder
    from cyclelight.domains.autoencoder_folder import load_autoencoder as load_autoencoder
    from cyclelight.domains.autoencoder_folder import save_autoencoder as save_autoencoder
    from cyclelight.domains.classifier import DomainClassifier as DomainClassifier
    from cyclelight.domains.classifier import load_classifier as load_classifier
    from cyclelight.domains.classifier import save_classifier as save_classifier
    from cyclelight.domains.domain import Domain as Domain
    from cyclelight.domains.folder import load_domain as load_domain
    from cyclelight.domains.folder import save_domain as save_domain
    from cyclelight.methods.base import Method as Method
    from cyclelight.methods.cut import CUT as CUT
    from cyclelight.methods.cyclediffusion import CycleDiffusion as CycleDiffusion
    from cyclelight.methods.ddcm import DDCM as DDCM
    from cyclelight.methods.ddib import DDIB as DDIB
    from cyclelight.methods.edit_friendly import EditFriendly as EditFriendly
    from cyclelight.methods.egsde import EGSDE as EGSDE
    from cyclelight.methods.flowedit import FlowEdit as FlowEdit
    from cyclelight.methods.ilvr import ILVR as ILVR
    from cyclelight.methods.one_step import OneStep as OneStep
    from cyclelight.methods.sdedit import SDEdit as SDEdit
    from cyclelight.methods.translate import translate as translate
    from cyclelight.text.attention import AttentionControl as AttentionControl
    from cyclelight.text.blend import LocalBlend as LocalBlend
    from cyclelight.text.load import load_text_model as load_text_model
    from cyclelight.text.model import TextModel as TextModel
    from datamodules.loaded import load_images as load_images

if sys.platform == "win32":
    raise ImportError("cyclelight runs on Linux and macOS; on Windows, in WSL 2")

__version__ = version("cyclelight")

_HOMES = {
    "AttentionControl": "cyclelight.text.attention",
    "Autoencoder": "cyclelight.domains.autoencoder",
    "CUT": "cyclelight.methods.cut",
    "CycleDiffusion": "cyclelight.methods.cyclediffusion",
    "DDCM": "cyclelight.methods.ddcm",
    "DDIB": "cyclelight.methods.ddib",
    "Domain": "cyclelight.domains.domain",
    "DomainClassifier": "cyclelight.domains.classifier",
    "EGSDE": "cyclelight.methods.egsde",
    "EditFriendly": "cyclelight.methods.edit_friendly",
    "FlowEdit": "cyclelight.methods.flowedit",
    "ILVR": "cyclelight.methods.ilvr",
    "KeyedNoise": "cyclelight.diffusion.noise",
    "LatentCode": "cyclelight.chains.latent_code",
    "LocalBlend": "cyclelight.text.blend",
    "Method": "cyclelight.methods.base",
    "NetworkDenoiser": "cyclelight.diffusion.denoiser",
    "NoiseSchedule": "cyclelight.diffusion.schedule",
    "OneStep": "cyclelight.methods.one_step",
    "Prediction": "cyclelight.diffusion.denoiser",
    "SDEdit": "cyclelight.methods.sdedit",
    "TextModel": "cyclelight.text.model",
    "TimeGrid": "cyclelight.diffusion.grid",
    "decode": "cyclelight.chains.decode",
    "encode": "cyclelight.chains.encode",
    "interpolate": "cyclelight.chains.interpolate",
    "invert": "cyclelight.chains.invert",
    "load_autoencoder": "cyclelight.domains.autoencoder_folder",
    "load_classifier": "cyclelight.domains.classifier",
    "load_domain": "cyclelight.domains.folder",
    "load_images": "datamodules.loaded",
    "load_text_model": "cyclelight.text.load",
    "sample": "cyclelight.chains.sample",
    "save_autoencoder": "cyclelight.domains.autoencoder_folder",
    "save_classifier": "cyclelight.domains.classifier",
    "save_domain": "cyclelight.domains.folder",
    "to_pil": "cyclelight.diffusion.pixels",
    "translate": "cyclelight.methods.translate",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: with torch at once, `--help` took 8 seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
