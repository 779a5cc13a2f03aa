"""What the figures of `predict`, `test` and `evaluate` have in common."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning.pytorch import Trainer
from tqdm import tqdm

from cyclelight.metrics.columns import Judged
from cyclelight.metrics.judge import Judge, PerImage, score
from cyclelight.metrics.protocol import Protocol, protocol
from cyclelight.runs.report import Report
from datamodules.order import groups_of
from datamodules.square_images import SquareImages

T = TypeVar("T")

BATCH = 32
"""Reference images that a feature network sees at a time."""
PIECE = 4096
"""Images whose figures travel to the first process at a time, from all others together."""


def choose_protocol(name: str, network: str | None) -> Protocol:
    """The protocol of this name, with another network if one is given.

    Raises:
        ValueError: there is no such protocol.
    """
    chosen = protocol(name)
    return chosen if network is None else replace(chosen, network=network)


def make_report(
    images: Judged,
    reference: Judged,
    judge: Judge,
    protocol: Protocol,
    classes: str | None,
) -> Report:
    """The figures of images that were judged, in the order of their keys."""
    return Report(
        score(images, reference, protocol, classes),
        PerImage(images, classes),
        protocol.describe() if judge.network is not None else "",
        judge.notes,
    )


def agree(judge: Judge) -> None:
    """Leave out LPIPS if a process lacks its weights: all figures are of all images."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    have = [False] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(have, judge.lpips is not None)
    if judge.lpips is not None and not all(have):
        judge.lpips = None
        judge.notes.append(f"no LPIPS: process {have.index(False)} lacks its weights")


def judge_share(judge: Judge, images: SquareImages, trainer: Trainer, label: str) -> Judged:
    """This process's share of some images, judged."""
    judged = Judged()
    # Whole batches, since the last bits depend on their shape.
    mine = groups_of(len(images), BATCH)[trainer.global_rank :: trainer.world_size]
    device = trainer.strategy.root_device
    for batch in progress(mine, trainer, label):
        pixels = torch.stack([images.pixels(index) for index in batch]).to(device)
        keys = [images.files[index][0] for index in batch]
        judged.add(keys, judge(pixels))
    return judged


def gather(judged: Judged) -> Judged:
    """What all processes know, on the first, by key; elsewhere only what was known there."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return judged
    first, processes = torch.distributed.get_rank() == 0, torch.distributed.get_world_size()
    counts = [0] * processes
    torch.distributed.all_gather_object(counts, len(judged))
    # In rounds: at once, everything would be there packed and unpacked, and padded to the largest.
    size = max(1, PIECE // processes)
    pieces = judged.pieces(size)
    for _ in range(ceil(max(counts[1:], default=0) / size)):
        parts: list[Any] | None = [None] * processes if first else None
        torch.distributed.gather_object(None if first else next(pieces, None), parts)
        for part in parts or []:
            if part is not None:
                judged.add(*part)
    return judged


def progress(batches: Sequence[T], trainer: Trainer, label: str) -> Iterable[T]:
    """The batches, with a bar on the first process if the trainer shows one."""
    barred = trainer.is_global_zero and trainer.progress_bar_callback is not None
    shown = barred and len(batches) > 0
    return tqdm(batches, label, unit="batch", disable=not shown, leave=False)
