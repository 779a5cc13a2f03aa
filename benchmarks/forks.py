"""Forks just after other threads entered Python: how many children never come up.

    python benchmarks/forks.py            # as with several processes, where cyclelight waits
    python benchmarks/forks.py --bare     # without that wait

Threads of C call a Python function until the fork, as gloo's do when they free a tensor. CPython
up to 3.11.9 may copy the lock that they need, held, into the child
(https://github.com/python/cpython/issues/112275). Linux.
"""

import argparse
import ctypes
import os
import random
import signal
import sys
import threading
import time
import warnings

from torch import distributed
from tqdm import trange

import cyclelight.commands.processes  # noqa: F401  (has its say before forks)

PATIENCE = 3.0
ENTRY = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
C = ctypes.CDLL(None)
C.pthread_create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ENTRY, ctypes.c_void_p]
C.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]


@ENTRY
def enter(_: int) -> None:
    """What the threads of C do."""


def come_and_go(wanted: threading.Event) -> None:
    """Start threads of C, eight at a time, while they are wanted."""
    threads = (ctypes.c_ulong * 8)()
    while wanted.wait():
        for index in range(len(threads)):
            place = ctypes.addressof(threads) + index * ctypes.sizeof(ctypes.c_ulong)
            C.pthread_create(place, None, enter, None)
        for thread in threads:
            C.pthread_join(thread, None)


def hangs(wanted: threading.Event) -> bool:
    """Whether a child that is forked right after the last threads were started never ends."""
    wanted.set()
    time.sleep(random.uniform(0, 0.0005))
    wanted.clear()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def main() -> None:
    """Print how many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forks", type=int, default=5000)
    parser.add_argument("--bare", action="store_true", help="without a process group, so no wait")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*use of fork")  # Python 3.12: the very thing tried here.
    if not args.bare:
        store = distributed.HashStore()
        distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    wanted = threading.Event()
    for _ in range(2):
        threading.Thread(target=come_and_go, args=(wanted,), daemon=True).start()
    hung = sum(hangs(wanted) for _ in trange(args.forks))
    print(f"Python {sys.version.split()[0]}: {hung} of {args.forks} children hung")


if __name__ == "__main__":
    main()
