"""Loaders of images, and the processes that decode these for them."""

import multiprocessing.queues
import os
import signal
import threading
import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def begin_worker(worker: int) -> None:
    """In a process that decodes images: end when its parent says so, or waits in vain.

    It heeds SIGTERM from its parent only, and no Ctrl-C: both reach it where they are sent to a
    whole job, whose parent may go on for a while. If an image cannot be handed on, as /dev/shm is
    full, Python would print why and leave the parent waiting.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def heed() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(143)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sends a signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=heed, daemon=True).start()
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(lambda error, image: os._exit(1))


def make_loader(
    items: Dataset[Any], num_workers: int, *, in_memory: bool, **options: Any
) -> DataLoader[Any]:
    """torch's loader of `items`; with workers only where there are files to decode."""
    workers = 0 if in_memory else num_workers
    if in_memory:  # Lightning would advise workers, which would only slow this down.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
    return DataLoader(
        items,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=begin_worker,
        pin_memory=torch.cuda.is_available(),
        **options,
    )
