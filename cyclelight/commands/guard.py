"""Whatever ends a command early becomes one line on stderr and an exit code."""

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

from cyclelight.errors import printable

DEBUG = "CYCLELIGHT_DEBUG"
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""The signals whose handlers are put back at the end; a fit handles all of them itself."""

PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""What gloo and NCCL say of it, among other errors of theirs."""
PEER_DIED = "another process of this run has died: what it said, if anything, stands above"
LOADER_DIED = (
    "a process that decodes images (data.num_workers) has died, perhaps for want of memory or of "
    "room in /dev/shm"
)


class OneLine(logging.Formatter):
    """Messages alone, in which names do nothing to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class UsageError(ValueError):
    """The command was called with something that it cannot take; exit code 2."""


_ending: list[SystemExit] = []


def heed() -> None:
    """End the command if it was asked to, should the SystemExit of that have been lost.

    So it is where Python swallows what is raised: in destructors and around forks, such as those of
    the processes that decode images.
    """
    if _ending:
        raise _ending[0]


def guarded(run: Callable[[], int]) -> int:
    """`run()`, with its failure reported in one line: the exit code of the process.

    SIGTERM and SIGUSR1 raise SystemExit(143) meanwhile, SIGHUP SystemExit(129): without this,
    Lightning ends a terminated fit with 0, and does not end a terminated predict at all.
    """
    _ending.clear()

    def terminate(number: int, frame: FrameType | None) -> None:
        # Kept, since torch makes another error of it where it loads weights.
        _ending.append(SystemExit(129 if number == signal.SIGHUP else 143))
        raise _ending[0]

    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(message)}\n"
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        before = {s: signal.getsignal(s) for s in HANDLED}
        signal.signal(signal.SIGTERM, terminate)
        # Job scripts ignore SIGUSR1 until a fit heeds it, nohup ignores SIGHUP.
        for number in (signal.SIGUSR1, signal.SIGHUP):
            if before[number] is signal.SIG_DFL:
                signal.signal(number, terminate)
    try:
        code = run()
        heed()
        if sys.stdout is not None:  # As it is if that was closed (`>&-`).
            sys.stdout.flush()
        return code
    except BaseException as error:
        code, message = _judge(_ending[0] if _ending else error)
        if message and os.environ.get(DEBUG):
            traceback.print_exception(error)
        if message:
            with suppress(OSError):  # The terminal may be gone.
                if code != 2 and sys.stderr.isatty():
                    print(file=sys.stderr)  # a progress bar may hold the line
                print(printable(message), file=sys.stderr)
        return code
    finally:
        if in_main_thread:
            # Lightning leaves SIGINT ignored after an interruption.
            for number, handler in before.items():
                signal.signal(number, handler)


def _judge(error: BaseException) -> tuple[int, str | None]:
    """(exit code, the line to print, if any)."""
    match error:
        case KeyboardInterrupt():
            return 130, "interrupted; what was finished is kept"
        # Lightning turns an interruption into sys.exit(1).
        case SystemExit(__context__=KeyboardInterrupt()):
            return 130, "interrupted; what was finished is kept"
        case SystemExit(code=129 | 130 | 143 as code, __notes__=[note]):
            return code, note
        case SystemExit(code=129 | 143 as code):
            return code, "terminated; what was finished is kept"
        case SystemExit(code=code):
            return (code, None) if isinstance(code, int) else (int(code is not None), None)
        case ConnectionError() | EOFError() if _loading(error):
            text = LOADER_DIED
        case RuntimeError() if str(error).startswith("DataLoader worker (pid"):
            text = f"{LOADER_DIED}: {one_line(error)}"
        case BrokenPipeError():
            # The reader has gone (`| head`). Python would complain again when it flushes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141, None
        case UsageError():
            return 2, f"error: {one_line(error)}"
        case RuntimeError() if any(words in str(error) for words in PEER_GONE):
            text = PEER_DIED
        case OSError(strerror=str(reason), filename=str(name)):
            text = f"{name}: {reason}"
        case ValueError() | OSError() | RuntimeError():
            text = one_line(error)
        case _:
            text = ": ".join(filter(None, (type(error).__name__, one_line(error))))
    return 1, f"error: {text} ({DEBUG}=1 shows the traceback)"


def _loading(error: BaseException) -> bool:
    """Whether it was raised while torch waited for a process that decodes images."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-3:-1] == ("utils", "data") for frame in frames)


def one_line(error: BaseException) -> str:
    """The message of an exception, on one line."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        # Of a data-loading worker: its traceback's end, as it would have been without one.
        text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
    return " ".join(text.split())


def closest(word: str, words: Iterable[str]) -> str | None:
    """`did you mean ...?`, or None if none of `words` is near."""
    near = get_close_matches(word, list(words), n=1)
    return f"did you mean {near[0]}?" if near else None
