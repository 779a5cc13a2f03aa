"""Methods of unpaired translation: one a file, each a setting of a few chains."""

from importlib import import_module
from pkgutil import iter_modules


def import_methods() -> None:
    """Import every file of this package, so that each method is known by its short name."""
    for found in iter_modules(__path__, f"{__name__}."):
        import_module(found.name)
