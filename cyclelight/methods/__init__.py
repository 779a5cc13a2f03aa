"""Methods of unpaired translation, by name."""

from cyclelight.methods.base import Method
from cyclelight.methods.cyclediffusion import CycleDiffusion

METHODS = {method.__name__: method for method in (CycleDiffusion,)}

__all__ = ["METHODS", "CycleDiffusion", "Method"]
