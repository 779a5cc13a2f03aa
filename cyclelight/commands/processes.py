"""Signals, forks and the deaths of other processes, where Lightning's ways do not suffice."""

import os
import signal
import sys
import threading
import time
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from cyclelight.commands.guard import heed

PARENT = "CYCLELIGHT_PARENT"
"""Where a process tells its children its id."""


def settle() -> None:
    """Let the threads of gloo end what a collective has left them to free, before a fork.

    To free it they enter the interpreter, under a lock that a fork of that moment copies as held:
    the child, a process that is to decode images, would wait for it for ever
    (https://github.com/python/cpython/issues/112275).
    """
    if distributed.is_available() and distributed.is_initialized():
        time.sleep(0.1)


if sys.version_info < (3, 11, 10):
    os.register_at_fork(before=settle)


def keep_signals(trainer: Trainer) -> None:
    """Leave our handlers alone.

    Lightning's would communicate with the other processes from within the handler, whatever these
    are at, and would end a fit between the batches of one step.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


class Heed(Callback):
    """Ends a run that was asked to end and has lost that, at its next batch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A fit that was asked before it watched signals itself."""
        heed()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """At each batch."""
        heed()

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """At each batch."""
        heed()

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """At each batch."""
        heed()


def die_with_parent(trainer: Trainer) -> None:
    """End this process when the one that started it for its share of the work has died.

    Lightning ends all when a child dies, but a child may go on alone, for hours in `predict`.
    SLURM and torchrun, whose children are no one's here, watch theirs.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, LightningEnvironment):
        return
    if trainer.local_rank == 0:
        # Told to the children, since one whose parent died early never sees it.
        os.environ[PARENT] = str(os.getpid())
        return
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        # Nothing gentler reaches a process that waits for the dead one. Files are whole anyway.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
