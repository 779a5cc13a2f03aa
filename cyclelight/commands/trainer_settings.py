"""What a stage allows of the trainer's settings, and what it chooses itself."""

import logging
import re
from typing import Any

import torch

from cyclelight.chains.engine import DTYPES, best_precision, dtype_of
from cyclelight.commands.guard import UsageError
from cyclelight.runs.sharding import FSDP2, PRECISIONS, Sharded

log = logging.getLogger(__name__)


def choose_precision(trainer: Any, kept: str | None = None) -> None:
    """The trainer's precision: where none is asked for, by the hardware, and said.

    Args:
        trainer: the settings of the trainer.
        kept: that of the run which goes on, if one does.

    Raises:
        UsageError: states would not stay in float32 under it.
    """
    if trainer.precision is None:
        cuda = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        trainer.precision = kept or best_precision("cuda" if cuda else "cpu")
        why = "as before" if kept else "the fastest here; 32-true gives a CPU's exact bits"
        log.info("Networks run in %s, states in float32 (%s)", trainer.precision, why)
    try:
        dtype_of(trainer.precision)
    except ValueError as error:
        raise UsageError(f"--trainer.{error}") from error


def check_training(trainer: Any) -> None:
    """UsageError for precisions under which a training would not have all in float32."""
    try:
        dtype_of(trainer.precision or "32-true")
    except ValueError as error:
        raise UsageError(
            f"--trainer.precision: {trainer.precision} is not for training, where images and "
            f"weights are float32; take one of {', '.join(DTYPES)}"
        ) from error


def check_strategy(trainer: Any, *, shards: bool) -> None:
    """UsageError for strategies under which this stage, or any, would give something wrong.

    Args:
        trainer: the settings of the trainer.
        shards: whether the stage can run sharded.
    """
    strategy = trainer.strategy
    name = strategy if isinstance(strategy, str) else strategy.class_path
    if name not in (FSDP2, f"{Sharded.__module__}.{Sharded.__qualname__}"):
        if re.search("fsdp|deepspeed|model_?parallel", name.lower()):
            # They would save the average, and the domain, in shards or not at all.
            right = f"{FSDP2}, which shards too, or ddp" if shards else "ddp"
            raise UsageError(f"--trainer.strategy: {name} is not supported; take {right}")
    elif not shards:
        raise UsageError(f"--trainer.strategy: {name} is for fit alone; take ddp")
    elif trainer.precision not in PRECISIONS:
        raise UsageError(
            f"--trainer.precision: {trainer.precision} does not go with --trainer.strategy {name}; "
            f"take 32-true or bf16-mixed"
        )
