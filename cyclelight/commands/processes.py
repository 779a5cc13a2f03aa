"""Signals and the deaths of other processes, which Lightning treats in ways of its own."""

import os
import signal
import threading
import time

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer


def keep_signals(trainer: Trainer) -> None:
    """Leave our handlers alone.

    Lightning's would communicate with the other processes from within the handler, whatever these
    are at, and would end a fit between the batches of one step.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def die_with_parent(trainer: Trainer) -> None:
    """End this process when the one that started it for its share of the work has died.

    Lightning ends all when a child dies, but a child may go on alone, for hours in `predict`.
    SLURM and torchrun, whose children are no one's here, watch theirs.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, LightningEnvironment) or trainer.local_rank == 0:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        # Nothing gentler reaches a process that waits for the dead one. Files are whole anyway.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
