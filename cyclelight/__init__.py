"""CycleDiffusion on PyTorch Lightning: translation between image domains by their latent noises."""

from importlib.metadata import version

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
    "load_domain",
    "recipe",
    "sample",
    "save_domain",
    "translate",
]
