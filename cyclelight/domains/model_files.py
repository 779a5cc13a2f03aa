"""Files of models: read strictly, written whole.

Whatever is wrong becomes a ValueError of one line that begins with `what` the folder is for.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open

from cyclelight.errors import BadValue, first_line


def check_weights(path: Path, what: str) -> None:
    """The weights are there and, in safetensors, whole: their header tells the file's size."""
    files = list(path.glob("*.safetensors"))
    if not files and not list(path.glob("*.bin")):
        raise BadValue(what, f"{what}: {path} holds no weights (*.safetensors or *.bin)")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            told = f"{what}: {file} cannot be read: {first_line(error)}"
            raise BadValue(what, told) from error


def load_model(kind: type[ModelMixin], path: Path, what: str) -> Any:
    """diffusers' own loading, which also reads old tensor names and sharded files, made strict."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        model, report = kind.from_pretrained(
            path, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers and safetensors raise a dozen kinds for a bad file
        raise BadValue(what, f"{what}: {path} cannot be read: {first_line(error)}") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    check_loaded(report, path, what)
    assert isinstance(model, kind)
    return model


def check_loaded(report: Mapping[str, Any], path: Path, what: str) -> None:
    """Raises ValueError if the report of a loading, diffusers' or transformers', is not clean."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = sorted(map(str, report[problem]))
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BadValue(
                what, f"{what}: {path}: {problem.replace('_', ' ')}: {', '.join(names[:3])}{more}"
            )


def read_tensors(path: Path, what: str) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values: code is never run."""
    try:
        # Files of old versions are not zipped, and cannot be mapped.
        zipped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise ValueError(
                f"{what}: {path} is refused: reading it would run {named[1]}; it may hold nothing "
                "but tensors and plain values"
            ) from error
        raise ValueError(f"{what}: {path} is no checkpoint of PyTorch") from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = first_line(error) if str(error).strip() else "it ends too early"
        raise ValueError(f"{what}: {path} cannot be read: {reason}") from error
    except Exception as error:  # bytes of another kind make the unpickler fail in any way
        raise ValueError(f"{what}: {path} is no checkpoint of PyTorch") from error
