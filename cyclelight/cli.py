"""The program `lightning`, also installed as `cyclelight`: names of commands -> functions.

Nothing heavy is imported before a command is chosen: torch and Lightning take about 8 seconds.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import version

from cyclelight.commands.guard import UsageError, closest, guarded

COMMANDS = {
    "quickstart": (
        "cyclelight.commands.quickstart:quickstart",
        "train on two folders and translate between them",
    ),
    "fit": ("cyclelight.commands.fit:fit", "train the model of a domain, or an autoencoder"),
    "validate": ("cyclelight.commands.validate:validate", "compute the validation loss"),
    "test": ("cyclelight.commands.test:test", "sample a domain and score the samples"),
    "predict": ("cyclelight.commands.predict:predict", "translate images into another domain"),
    "guide": ("cyclelight.commands.guide:guide", "steer a generator by a judge of its images"),
    "edit": ("cyclelight.commands.edit:edit", "edit images by texts"),
    "evaluate": ("cyclelight.commands.evaluate:evaluate", "score translations of any program"),
    "atlas": ("cyclelight.commands.atlas:atlas", "draw the codes between two images"),
    "benchmark": ("cyclelight.commands.benchmark:benchmark", "time the translation here"),
    "import": ("cyclelight.commands.import_:import_", "make a domain of a foreign checkpoint"),
    "export": ("cyclelight.commands.import_:export", "write a domain for guided-diffusion"),
    "inspect": ("cyclelight.commands.inspect:inspect", "show domains and which can be paired"),
    "push": ("cyclelight.commands.push:push", "publish a domain on the Hugging Face Hub"),
}

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
    code: int = getattr(import_module(module), function)(rest)
    return code


def main(args: list[str] | None = None) -> int:
    """Run the program on `args` (default: those of the process) and return its exit code.

    0: done; 1: failed while running; 2: wrong usage; 130: interrupted; 143: terminated.
    """
    # Last, so that no file there takes the place of a library: for classes of one's own.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return guarded(lambda: dispatch(sys.argv[1:] if args is None else args))
