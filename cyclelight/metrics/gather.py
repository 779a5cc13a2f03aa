"""What the processes of a run tell each other of their images."""

from math import ceil
from typing import Any

import torch.distributed

from cyclelight.metrics.columns import Columns
from cyclelight.metrics.judge import Judge

PIECE = 4096
"""Images whose figures travel to the first process at a time, from all others together."""


def agree(judge: Judge) -> None:
    """Leave out figures whose weights a process lacks: all figures are of all images."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    have: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(have, list(judge.measures))
    for name in list(judge.measures):
        lacking = [rank for rank, names in enumerate(have) if name not in names]
        if lacking:
            del judge.measures[name]
            judge.notes.append(f"no {name}: process {lacking[0]} lacks its weights")


def gather(columns: Columns) -> Columns:
    """What all processes know, on the first, by key; elsewhere only what was known there."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return columns
    first, processes = torch.distributed.get_rank() == 0, torch.distributed.get_world_size()
    counts = [0] * processes
    torch.distributed.all_gather_object(counts, len(columns))
    # In rounds: at once, everything would be there packed and unpacked, and padded to the largest.
    size = max(1, PIECE // processes)
    pieces = columns.pieces(size)
    for _ in range(ceil(max(counts[1:], default=0) / size)):
        parts: list[Any] | None = [None] * processes if first else None
        torch.distributed.gather_object(None if first else next(pieces, None), parts)
        for part in parts or []:
            if part is not None:
                columns.add(*part)
    return columns
