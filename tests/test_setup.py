"""What an installation brings."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins(name: str) -> dict[str, str]:
    """Package => the rest of its line in a lock."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if not line.startswith("#"))


def test_the_cpu_lock_is_the_lock_without_what_gpus_need() -> None:
    whole, cpu = pins("requirements.lock"), pins("requirements-cpu.lock")
    gone = whole.keys() - cpu.keys()
    assert cpu.items() <= whole.items()
    assert all(re.match(r"(nvidia|cuda)-|triton$", name) for name in gone) and len(gone) > 10
    assert not [name for name in cpu if re.match(r"(nvidia|cuda)-|triton$", name)]


def test_windows_is_told_at_once() -> None:
    code = (
        "import sys; sys.platform = 'win32'\n"
        "try: import cyclelight\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cyclelight runs on Linux and macOS; on Windows, in WSL 2\n"
