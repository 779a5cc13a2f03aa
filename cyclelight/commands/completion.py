"""`lightning completion`: what the Tab key needs to know of commands, options and recipes."""

import re
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO

from cyclelight.commands import COMMANDS
from cyclelight.commands.guard import UsageError
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.commands.recipes import recipes

SHELLS = ("bash", "zsh")
OPTION = re.compile(r"(?<![\w-])--[a-z](?:[\w.-]*\w)?")

SCRIPT = """\
{zsh}_cyclelight() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    case $before in
        --config) words="{recipes}" ;;
        *) case $COMP_CWORD:${{COMP_WORDS[1]}} in
            1:*) words="{commands}" ;;
{options}
        esac ;;
    esac
    # What does not begin with a dash is a file, but for the command and the recipe.
    [ "$before" = --config ] || [ $COMP_CWORD = 1 ] || [ "${{word#-}}" != "$word" ] || words=""
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _cyclelight lightning cyclelight"""

EPILOG = """\
For the shell that runs: source <(lightning completion bash). For each one to come: its output into
a file that ~/.bashrc or ~/.zshrc sources, since it takes a while to collect the options."""


def completion(args: list[str]) -> int:
    """`lightning completion`; the exit code."""
    parser = make_parser("completion", "bash|zsh", "Print a script for the Tab key.", EPILOG)
    parser.add_argument("shell", metavar="SHELL", help="bash or zsh.")
    with usage():
        shell = parser.parse_args(args).shell
    if shell not in SHELLS:
        raise UsageError(f"SHELL: it must be bash or zsh, got {shell!r}")
    print(script(shell))
    return 0


def script(shell: str) -> str:
    """The script for `shell`, bash or zsh: commands, their options, and recipes after --config."""
    lines = [
        f'            *:{command}) words="{" ".join(options(place))}" ;;'
        for command, (place, _) in COMMANDS.items()
    ]
    return SCRIPT.format(
        zsh="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        recipes=" ".join(recipes()),
        commands=" ".join(COMMANDS),
        options="\n".join(lines),
    )


def options(place: str) -> list[str]:
    """The options that the help of a command names, for the function at `package.module:name`."""
    module, function = place.split(":")
    text = StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        getattr(import_module(module), function)(["--help"])
    # Not `--trainer.NAME`, which stands for many.
    return sorted({word for word in OPTION.findall(text.getvalue()) if word.islower()})
