"""Loaders of images, and the processes that decode these for them."""

import multiprocessing.queues
import os
import signal
import threading
import warnings
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

LEAST_MOST = 64
"""Processes that decode images which any machine may have, however few its cores."""


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


def useful_workers(num_workers: int, batches: int) -> int:
    """As many of the processes as have something to do: no more than batches, or than help.

    A warning tells where a machine has too few cores for as many as are asked for.
    """
    most = max(LEAST_MOST, 4 * (os.cpu_count() or 1))
    wanted = min(num_workers, batches)
    if wanted > most:
        rank_zero_warn(f"num_workers {num_workers} are more than help here: {most} are started")
    return min(wanted, most)


def make_loader(
    items: Dataset[Any], num_workers: int, *, in_memory: bool, **options: Any
) -> DataLoader[Any]:
    """torch's loader of `items`; with workers only where there are files to decode.

    Args:
        items: what is loaded.
        num_workers: processes that decode images, see `useful_workers`.
        in_memory: whether there is nothing to decode.
        options: of torch's loader.
    """
    workers = 0
    if not in_memory and num_workers:
        order, size = options.get("sampler", items), options.get("batch_size", 1)
        count = len(order)
        workers = useful_workers(num_workers, count if size is None else -(-count // size))
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
