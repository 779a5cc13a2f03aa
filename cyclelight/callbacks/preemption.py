"""Preemption: end a fit on a signal, between two steps and with everything saved."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

log = logging.getLogger(__name__)

CODES = {signal.SIGINT: 130, signal.SIGHUP: 129}
"""Exit codes of a fit that was asked to end, as the shell's; that of SIGTERM for all others."""


class Preempted(SystemExit):
    """The fit was asked to end and has saved its state."""


class Preemption(Checkpoint):
    """On SIGTERM, SIGUSR1, SIGHUP or Ctrl-C the step in hand ends, all is saved, the fit stops.

    Nothing is done within the signal's handler, where a step would be half done; one process that
    got the signal stops all. Under SLURM, SIGUSR1, by which `sbatch --signal` announces the time
    limit, puts the job back into the queue; SIGTERM does not: whoever sends it, `scancel` or a
    preemption, has decided already what becomes of the job.

    It is a `Checkpoint` so that Lightning calls it last, when the moving average is up to date.
    The signals are watched from the moment that it is made, since a second one, without a handler,
    would end the process; Ctrl-C only while there is training, where a second one ends it at once.

    Args:
        path: where the state is saved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signal: signal.Signals | None = None
        self._step = 0
        self._tells: int | None = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._note)
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As nohup would have it.
                signal.signal(signal.SIGHUP, self._note)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._note(number, frame)
        if self._tells == os.getpid():  # Not the processes that decode images.
            os.write(2, b"\nending the step in hand and saving; Ctrl-C again ends at once\n")

    def _note(self, number: int, frame: FrameType | None) -> None:
        # SIGTERM follows SIGUSR1 when time is up; the requeueing is due all the same.
        if self._signal is None:
            self._signal = signal.Signals(number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asked to end while the data were loading: nothing is lost by going at once."""
        if self._asked(trainer):
            self._stop(trainer, f"stopped before step {trainer.global_step}")
        self._tells = os.getpid() if trainer.is_global_zero else None
        heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # A shell's background job.
        if heeded and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Know whether the batch will have been a whole step."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here, but not amid the batches of one step: their gradients cannot be saved.

        After the last step of `max_steps` the fit comes to its end by itself.
        """
        if trainer.global_step in (self._step, trainer.max_steps) or not self._asked(trainer):
            return
        trainer.save_checkpoint(self.path)
        # What Lightning would do next, so that the logs have this step, too.
        trainer._logger_connector.update_train_step_metrics()
        self._stop(trainer, f"stopped after step {trainer.global_step}, saved in {self.path}")

    def _asked(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def _stop(self, trainer: Trainer, what: str) -> None:
        job = slurm_job()
        requeues = job is not None and self._requeue_wanted(trainer)
        if requeues and trainer.is_global_zero:
            assert job is not None
            requeue(job)
        # Were it not 0 elsewhere, Lightning would kill the first process while that winds up.
        code = 143 if self._signal is None else CODES.get(self._signal, 143)
        stop = Preempted(code if trainer.is_global_zero else 0)
        go_on = f"job {job} is queued again" if requeues else "--ckpt_path last goes on from there"
        stop.add_note(f"{what}; {go_on}")
        raise stop

    def _requeue_wanted(self, trainer: Trainer) -> bool:
        asked = self._signal is signal.SIGUSR1
        return trainer.strategy.reduce_boolean_decision(asked, all=False)


def slurm_job() -> str | None:
    """The id of the SLURM job that this process belongs to, if any."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array[0]}_{array[1]}" if all(array) else os.environ.get("SLURM_JOB_ID")


def requeue(job: str) -> None:
    """Put a running SLURM job back into the queue; it is ended by SLURM at once.

    Raises:
        RuntimeError: SLURM refused, as it does if the job was submitted with `--no-requeue`.
    """
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the state is saved, but job {job} is not queued again: {done.stderr}")
