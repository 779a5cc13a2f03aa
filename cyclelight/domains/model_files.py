"""Files of models: read strictly, and nothing is built that the files do not hold.

Whatever is wrong becomes a ValueError of one line that begins with `what` the folder is for.
"""

import hashlib
import mmap
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from cyclelight.errors import BadValue, MissingFile, first_line, printable
from cyclelight.files import check_zip, read_json
from cyclelight.networks.sizes import check_config

STEM = "diffusion_pytorch_model"
"""What diffusers calls a network's weights."""
MOST_VALUES = 10**6
"""Values in a checkpoint, counted as often as they are met: a pickle may hold one list in another
so that kilobytes become more than any memory."""
GREEDY = re.compile(
    rb"(builtins|__builtin__)\nbytearray\n|torch[\w.]*\n(\w*Tensor|UntypedStorage|TypedStorage)\n"
)
"""Names in a pickle of what torch makes as large as a number in it says."""
SHARED = 4
"""How many tensors may share their numbers, on average."""


@contextmanager
def judged(what: str, part: Path) -> Iterator[None]:
    """Whatever is raised meanwhile is a fault of that file or folder: a ValueError that names it.

    diffusers, safetensors and torch raise dozens of kinds for what they did not expect.
    """
    try:
        yield
    except MissingFile:
        raise
    except Exception as error:
        if isinstance(error, BadValue) and error.argument == what:
            raise
        told, how = printable(" ".join(str(error).split()) or repr(error), 300), ""
        if not isinstance(error, ValueError):
            how = " cannot be read"
            told = told if isinstance(error, OSError) else f"{type(error).__name__}: {told}"
        raise BadValue(what, f"{what}: {part}{how}: {told}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers' own remarks on a configuration are for its programmers."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws a bar for each network that it loads, diffusers for one in several files;
    what they warn of is left alone.
    """
    logs: list[Any] = [transformers_logging, diffusers_logging]
    drawing = [log for log in logs if log.is_progress_bar_enabled()]
    for log in drawing:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in drawing:
            log.enable_progress_bar()


def build(config: Mapping[str, Any], kind: type) -> Any:
    """A network of the settings of a configuration on `meta`, where it takes no memory.

    Raises:
        ValueError: a setting is wrong, or beyond any bound.
    """
    check_config(config, kind)
    make: Any = kind
    with _quiet(), torch.device("meta"):
        return make.from_config(config)


def check_kind(
    config: Mapping[str, Any], kinds: Mapping[str, type], folder: Path, what: str
) -> str:
    """The class that a configuration names; ValueError if it is none of these."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in kinds:
        told = printable(name, 80)
        raise BadValue(what, f"{what}: {folder} holds a {told}, not one of {', '.join(kinds)}")
    return name


def held(path: Path) -> int:
    """How many numbers the weights in a folder can be at most: each takes a byte at least."""
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    return sum(file.stat().st_size for file in weights)


def check_size(network: nn.Module, held: int) -> None:
    """Raises ValueError if a network has more numbers than there are for it."""
    needed = sum(value.numel() for value in network.state_dict().values())
    if needed > held:
        raise ValueError(f"its settings ask for {needed:,} numbers, its weights hold {held:,}")


def check_weights(path: Path, what: str) -> None:
    """The weights are there, as regular files that hold what they say and nothing but tensors.

    Raises:
        ValueError: they are not.
    """
    for file in sorted(path.glob("*")):
        weights = file.suffix in (".safetensors", ".bin")
        if (weights or file.suffix == ".json") and not file.is_file():
            raise BadValue(what, f"{what}: {file} is no regular file")
        with judged(what, file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):  # Its header tells the file's size.
                    pass
            elif file.suffix == ".bin":
                _check_pickle(file)
            elif ".index." in file.name and file.suffix == ".json":
                parts = set(read_json(file, what)["weight_map"].values())
                if any(Path(str(part)).name != part for part in parts):
                    raise ValueError("a part of the weights would lie in another folder")
    if not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise BadValue(what, f"{what}: {path} holds no weights (*.safetensors or *.bin)")


def load_model(kind: type[ModelMixin], path: Path, what: str) -> Any:
    """diffusers' own loading, which also reads old tensor names and sharded files, made strict.

    Args:
        kind: the class that `path`/config.json names.
        path: what `check_weights` has looked at.
        what: the argument that errors are about.
    """
    with judged(what, path / "config.json"):
        check_size(build(read_json(path / "config.json", what), kind), held(path))
    with judged(what, path), _quiet(), without_bars():
        model, report = kind.from_pretrained(
            path,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
            variant=_variant(path),
        )
    check_loaded(report, path, what)
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


def _variant(path: Path) -> str | None:
    """`fp16` where the weights are there as that variant alone, `STEM.fp16.safetensors`.

    Raises:
        ValueError: there are several variants, and none is the plain one.
    """
    # STEM.VARIANT.safetensors, or in parts STEM.VARIANT-00001-of-00002.safetensors.
    name = re.compile(rf"{STEM}(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(safetensors|bin)")
    found = {match["variant"] for file in path.iterdir() if (match := name.fullmatch(file.name))}
    if None in found or not found:
        return None
    if len(found) > 1:
        raise ValueError(f"it holds the variants {', '.join(sorted(found))}: leave one")
    return found.pop()


def read_tensors(path: Path, what: str) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values: code is never run.

    Raises:
        ValueError: it is something else, or would unpack to far more than the file holds.
    """
    if not path.is_file():
        raise BadValue(what, f"{what}: {path} is no regular file")
    try:
        # Files of old versions are not zipped, and cannot be mapped.
        zipped = _check_pickle(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        _check_values(found, SHARED * path.stat().st_size + 2**20)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise BadValue(
                what,
                f"{what}: {path} is refused: reading it would run {named[1]}; it may hold nothing "
                "but tensors and plain values",
            ) from error
        raise BadValue(what, f"{what}: {path} is no checkpoint of PyTorch") from error
    except _TooMuch as error:
        raise BadValue(what, f"{what}: {path} is refused: {error}") from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = first_line(error) if str(error).strip() else "it ends too early"
        raise BadValue(what, f"{what}: {path} cannot be read: {reason}") from error
    except Exception as error:  # bytes of another kind make the unpickler fail in any way
        raise BadValue(what, f"{what}: {path} is no checkpoint of PyTorch") from error
    return found


class _TooMuch(ValueError):
    """A small file that means to fill the memory."""


def _check_pickle(path: Path) -> bool:
    """Whether it is zipped; _TooMuch if it unpacks to more than it holds, or allocates at will."""
    if not path.stat().st_size:
        raise EOFError
    if not zipfile.is_zipfile(path):
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_,
        ):
            _check_names(bytes_)
        return False
    try:
        check_zip(path)
    except ValueError as error:
        raise _TooMuch(error) from error
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                _check_names(archive.read(name))
    return True


def _check_names(content: bytes | mmap.mmap) -> None:
    """Classes that torch calls harmless, though they take as much memory as a number says."""
    if named := GREEDY.search(content):
        what = " ".join(named[0].decode().split())
        raise _TooMuch(f"it holds {what}, which no checkpoint needs")


def _check_values(found: Any, most: int) -> None:
    """Raises _TooMuch unless it is a tree, and its tensors no larger than `most` bytes in all."""
    left, size, count = [(found, 0)], 0, 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST_VALUES or depth > 100:
            raise _TooMuch("it holds values within one another without end")
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta:
                raise _TooMuch("it holds a sparse or an empty tensor")
            size += value.numel() * value.element_size()
            if size > most:
                raise _TooMuch("its tensors would take far more memory than the file holds")
        elif isinstance(value, Mapping):
            left += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple | set):
            left += [(inner, depth + 1) for inner in value]


def file_digest(files: Iterable[Path], path: Path) -> str:
    """The SHA-256 of the contents of `files` and of their names below `path`, in hexadecimal."""
    total = hashlib.sha256()
    for file in sorted(set(files)):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        # A checkpoint that was moved is the same one.
        name = "" if file == path else file.relative_to(path).as_posix()
        total.update(f"{digest} {name}\n".encode())
    return total.hexdigest()
