"""Checkpoint files: written whole or not at all, read as data, found again if one was damaged."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch.serialization import get_unsafe_globals_in_checkpoint

from cyclelight.errors import first_line
from cyclelight.files import atomic, check_zip

CODE = "it holds more than weights and settings ({}), and to load that would run code of its maker"


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their place and moved there when they are on disk.

    Lightning's own are moved from the system's temporary folder, which copies them if that is
    another file system: a process killed meanwhile leaves half a checkpoint under the final name.
    """

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to the local file `path`.

        Raises:
            OSError: there is no room, or no permission; the file that was there stays.
        """
        assert storage_options is None
        with atomic(Path(path)) as temporary:
            try:
                with open(temporary, "wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
            except (OSError, RuntimeError) as error:  # torch's writer hides the operating system's.
                cause = error.__context__ if isinstance(error.__context__, OSError) else error
                raise OSError(f"cannot write the checkpoint {path}: {cause}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """What the file `path` holds, read as data alone whatever `weights_only` or torch's
        environment variables say.

        Raises:
            ValueError: loading it would run code.
        """
        return read_checkpoint(path, map_location)


def read_checkpoint(
    path: str | Path, map_location: Any = "cpu", *, mmap: bool = False
) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values; no code of it is run.

    Args:
        path: the file.
        map_location: where tensors go, as in `torch.load`.
        mmap: read tensors when they are used, from the file, which stays open.

    Raises:
        ValueError: loading it would run code.
    """
    try:
        found: dict[str, Any] = torch.load(
            path, map_location=map_location, mmap=mmap, weights_only=True
        )
    except pickle.UnpicklingError as error:
        what = first_line(error).rstrip(".")
        raise ValueError(f"the checkpoint {path} is not loaded: {CODE.format(what)}") from error
    return found


def damage(path: Path) -> str | None:
    """Why a checkpoint file is not to be loaded; None if it is whole and holds no code."""
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                return f"its part {broken} is damaged"
            # Names stand in a pickle as they are; unpickling could run what it likes.
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        code = get_unsafe_globals_in_checkpoint(path)
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        return f"it is cut off or no checkpoint ({first_line(error)})"
    if not any(b"pytorch-lightning_version" in pickle for pickle in pickles):
        return "it is no checkpoint of a fit"
    return CODE.format(", ".join(sorted(code))) if code else None


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint in `folder` of most steps, with a warning for each that is not whole.

    Of several of one step it is the one that was written last. None if there is none.
    """
    there = [path for path in folder.glob("*.ckpt") if path.is_file()]  # No dangling links.
    # By name too, so that of equally old ones all processes choose the same.
    rank = {path: (_steps(path), path.stat().st_mtime_ns, path.name) for path in there}
    for path in sorted(rank, key=lambda path: rank[path], reverse=True):
        reason = damage(path)
        if reason is None:
            return path
        rank_zero_warn(f"passing over the checkpoint {path}: {reason}")
    return None


def _steps(path: Path) -> float:
    """How many steps a checkpoint is of; of one that cannot be read, more than of any other."""
    try:
        return int(read_checkpoint(path, mmap=True)["global_step"])
    except Exception:  # Whatever torch raises of a damaged file.
        return float("inf")
