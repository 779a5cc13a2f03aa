"""The processes of one run, started as SLURM does: at once, none by another.

Lightning's own launcher starts the others when the first has imported everything, which takes the
tests twice as long. It is met by test_preemption.py and test_restart.py.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run(arguments: Iterable[object], processes: int = 2, *paths: Path) -> tuple[int, str]:
    """The exit code of the first process and what it said on stderr; the others have to end with 0.

    `paths` are folders to import from, beside that of the tests.
    """
    command = [sys.executable, "-m", "cyclelight", *map(str, arguments)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int, **streams: Any) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE, *paths))),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "NODE_RANK": "0",
            "LOCAL_RANK": str(rank),
        }
        return subprocess.Popen(command, env=environment, cwd=HERE.parent, text=True, **streams)

    others = [start(rank) for rank in range(1, processes)]
    first = start(0, stderr=subprocess.PIPE)
    try:
        said = first.communicate(timeout=300)[1]
        codes = [other.wait(timeout=60) for other in others]
    finally:
        for process in (first, *others):
            process.kill()
    print(said)
    assert not any(codes), codes
    return first.returncode, said
