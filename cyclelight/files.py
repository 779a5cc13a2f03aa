"""Files on disk: read with one line for what is wrong, written whole or not at all.

Whatever touches the disk stands on this.
"""

import errno
import fcntl
import json
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from cyclelight.errors import BadValue, first_line

MOST_JSON = 2**24
"""Bytes of a JSON file; a card or a configuration has some thousands."""


def check_zip(path: Path) -> None:
    """Raises ValueError if a zip's parts would unpack to more than the file holds.

    torch.save compresses nothing, so that this tells a checkpoint from 8 MB that become gigabytes.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    unpacked = sum(part.file_size for part in parts)
    # Parts may also lie within one another.
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or unpacked > path.stat().st_size:
        raise ValueError(
            f"it would unpack to {unpacked} bytes, which no checkpoint does: its "
            f"{path.stat().st_size} are compressed"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made.

    The lock is the process's own: it ends with it, however that dies, and is not inherited by
    workers that outlive it.

    Raises:
        ValueError: another run is writing there, or it is a file or a link to nothing.
        OSError: nothing can be written there.
    """
    check_no_file(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"another run is writing to the output folder {folder}") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            warnings.warn(
                f"{folder} is on a file system without locks: let no other run write there",
                stacklevel=3,
            )
        yield


def check_no_file(folder: Path) -> None:
    """ValueError if an output folder can be none: it is a file, or a link to nothing."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output folder {folder} is a file")
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"the output folder {folder}: {path} is a link to {os.readlink(path)}, which is "
                f"not there; make that or remove the link"
            )


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Of these files, remove the temporary ones of `atomic`, of a run that was killed."""
    for path in paths:
        if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces `path` at the end if nothing was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            # Whoever reads that the disk is full wants to know which.
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def whole_folder(folder: Path, what: str, mark: str) -> Iterator[Path]:
    """A place beside `folder` to make it in; it takes the place of an older one if all goes well.

    Args:
        folder: what is to appear, whole or not at all.
        what: what to call it in messages.
        mark: the file by which an older one is known.

    Raises:
        ValueError: `folder` exists and is something else.
    """
    check_place(folder, what, mark)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "new"
        yield made
        for file in made.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes its files private
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        made.rename(folder)


def check_place(folder: Path, what: str, mark: str) -> None:
    """ValueError if `whole_folder` would refuse to make this one."""
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{folder} is a link to {os.readlink(folder)}, which is not there")
    if folder.exists() and not (folder / mark).is_file():
        raise ValueError(f"{folder} exists and is not {what}; it is left as it is")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object that a file of settings holds.

    Raises:
        ValueError: it holds something else, or cannot be read; the message begins with `what`, the
            argument.
    """
    if not path.is_file():  # Of a pipe nothing would ever come.
        raise BadValue(what, f"{what}: {path} is not there, or no regular file")
    try:
        if path.stat().st_size > MOST_JSON:
            raise BadValue(what, f"{what}: {path} is too large for settings ({MOST_JSON} bytes)")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadValue(what, f"{what}: {path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise BadValue(what, f"{what}: {path} is not valid JSON: nested too deeply") from error
    except BadValue:
        raise
    except ValueError as error:  # Of JSON, of UTF-8, of numbers of thousands of digits.
        raise BadValue(what, f"{what}: {path} is not valid JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise BadValue(what, f"{what}: {path} must hold a JSON object")
    return value
