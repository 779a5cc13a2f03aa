"""Checkpoint files: written whole or not at all, and found again even if one was damaged."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from cyclelight.files import atomic


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


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                return f"its part {broken} is damaged"
            # Names stand in a pickle as they are; unpickling could run what it likes.
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    except (OSError, zipfile.BadZipFile) as error:
        return f"it is cut off or no checkpoint ({error})"
    fits = any(b"pytorch-lightning_version" in pickle for pickle in pickles)
    return None if fits else "it is no checkpoint of a fit"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, with a warning for each newer one that is not.

    None if there is none.
    """
    there = [path for path in folder.glob("*.ckpt") if path.is_file()]  # No dangling links.
    # By name too, so that of equally old ones all processes choose the same.
    age = {path: (path.stat().st_mtime_ns, path.name) for path in there}
    for path in sorted(age, key=lambda path: age[path], reverse=True):
        reason = damage(path)
        if reason is None:
            return path
        rank_zero_warn(f"passing over the checkpoint {path}: {reason}")
    return None
