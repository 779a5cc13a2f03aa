"""Runs of several processes.

`run` starts them as SLURM does, at once, none by another. They are forked from a server that has
imported torch and Lightning already, about 10 seconds for each process otherwise. `launch` leaves
it to Lightning's launcher, whose first process starts the others: the slow tests have some of each
command.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from multiprocessing import get_context, get_start_method, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory

from cyclelight.commands.processes import PARENT

HERE = Path(__file__).parent
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["cyclelight.commands.stages"])


def rank(
    words: list[str], paths: list[str], environment: dict[str, str], said: Path, workers: str
) -> None:
    """One process: its streams go to the file `said`, and its exit code is that of the program.

    `workers` is how it starts those of its data loaders, which would inherit the way of the server.
    """
    import torch

    from cyclelight.cli import main

    set_start_method(workers, force=True)
    stream = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environment)
    # The server's, not that of the processes.
    os.environ.pop(PARENT, None)
    torch.set_num_threads(1)
    sys.path[:0] = paths
    sys.exit(main(words))


def run(arguments: Iterable[object], processes: int = 2, *paths: Path) -> tuple[int, str]:
    """The exit code of the first process, and what all printed; the others have to end with 0.

    `paths` are folders to import from.
    """
    words = [*map(str, arguments)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    with TemporaryDirectory() as folder:
        files = [Path(folder) / str(index) for index in range(processes)]
        started = []
        for number, said in enumerate(files):
            environment = {**common, "LOCAL_RANK": str(number)}
            args = (words, [*map(str, paths)], environment, said, get_start_method())
            started.append(FORKS.Process(target=rank, args=args))
        for process in started:
            process.start()
        try:
            for process in started:
                process.join(timeout=300)
        finally:
            for process in started:
                process.kill()
                process.join()
        codes = [process.exitcode for process in started]
        printed = "\n".join(file.read_text() for file in files)
    print(printed)
    assert codes[0] is not None
    assert not any(codes[1:]), codes
    return codes[0], printed


def launch(arguments: Iterable[object], *paths: Path) -> int:
    """The exit code of a run whose processes Lightning starts."""
    path = os.pathsep.join(map(str, (HERE, *paths)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cyclelight", *map(str, arguments)]
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    print(done.stderr)
    return done.returncode
