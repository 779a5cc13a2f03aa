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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from cyclelight.errors import BadValue


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
    """The JSON object that a file holds.

    Raises:
        ValueError: it holds something else; the message begins with `what`, the argument.
    """
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadValue(what, f"{what}: {path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadValue(what, f"{what}: {path} must hold a JSON object")
    return value
