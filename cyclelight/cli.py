"""The program `lightning`, also installed as `cyclelight`: names of commands -> functions.

Nothing heavy is imported before a command is chosen: torch and Lightning take about 8 seconds.
"""

import atexit
import gc
import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

from cyclelight.commands import COMMANDS
from cyclelight.commands.guard import UsageError, closest, guarded

USAGE = f"""\
usage: lightning COMMAND [--config FILE] [--OPTION VALUE ...]

commands:
{"".join(f"  {name:<10} {summary}{chr(10)}" for name, (_, summary) in COMMANDS.items())}
  lightning COMMAND --help   the options of a command
  lightning --version        the version

Options on the command line take precedence over those in configuration files.
CYCLELIGHT_DEBUG=1 in the environment adds the traceback to an error.
`cyclelight` and `python -m cyclelight` are the same program."""


def dispatch(args: list[str]) -> int:
    """Run the command that `args` begin with; its exit code."""
    match args:
        case ["--version", *_]:
            print(f"cyclelight {version('cyclelight')}")
            return 0
        case ["-h" | "--help" | "help", *_]:
            print(USAGE)
            return 0
        case []:
            raise UsageError("a command is missing; `lightning --help` lists them")
    command, *rest = args
    if command not in COMMANDS:
        hint = closest(command, COMMANDS) or "`lightning --help` lists the commands"
        raise UsageError(f"unknown command {command!r}; {hint}")
    module, function = COMMANDS[command][0].split(":")
    code: int = getattr(load(module), function)(rest)
    return code


def load(module: str) -> Any:
    """Import the module of a command, while the garbage collector rests.

    What libraries make as they load, near a million objects, stays until the end: to look through
    all of it again and again was a fifth of the start, so that it is looked at when the program
    ends, and not before.
    """
    if not gc.isenabled() or "torch" in sys.modules:  # Else others' garbage would be kept, too.
        return import_module(module)
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # Else libraries complain of what is left over.
        gc.enable()


def main(args: list[str] | None = None) -> int:
    """Run the program on `args` (default: those of the process) and return its exit code.

    0: done; 1: failed while running; 2: wrong usage; 130: interrupted; 143: terminated.
    """
    # Last, so that no file there takes the place of a library: for classes of one's own.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return guarded(lambda: dispatch(sys.argv[1:] if args is None else args))
