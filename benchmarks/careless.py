"""What careless and hostile input leads to: for each kind the command, the exit code, what is said.

    python benchmarks/careless.py            # the whole table
    python benchmarks/careless.py grey       # the kinds with this word

Inputs are made here, networks are tiny and untrained. Each row runs in this process, as the program
does; a row of Python is what a user of the API would write.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from careless_cases import archives, domain, files, fits, images, models, python
from tabulate import tabulate

from cyclelight.cli import main

LONGEST = 230
"""Letters of what is said, in the table."""
WAS = {
    "scheduler": "exit 0: loaded as a linear DDPM",
    "inspect of": "called a pair",
    "class-conditional": "fell in the first step",
    "Fourier": "fell in the first step",
    "2 C input": "fell in the first step",
    "4 channels": "fell in the first step",
    "sample_size [": "refused",
    "a second fit": "exit 0: replaced the domain",
    "a dry run": "exit 0: replaced the domain",
    "limit_predict_batches 1": "exit 0: all images",
    "limit_predict_batches 0": "exit 0, no word",
    "precision 64": "failed in the first step",
    "precision bf16": "exit 0: up to 35 levels off",
    "load_from_checkpoint": "TypeError",
    "channels 1": "exit 1",
    "runs code": "ran it, under TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1",
    "5,000 workers": "571 processes",
    "a linked folder": "2 of 8 images; by a pattern 405",
    "suffixes": "left out, no word",
    "TIFF, 16 bit": "inverted: (191, 191, 191)",
    "TIFF, 32-bit": "nearly black",
    "ICC": "ignored: up to 26 levels off",
    "PostScript": "called Ghostscript",
    "control characters": "printed raw",
    "evaluate: a.png": "exit 2: several sources; no source",
    "evaluate: one": "no KID, no FID, no word",
    "dangling": "an unclear message",
    "a zip": "IndexError",
    "0.2 MB": "read whole: 9.4 GB of 8 MB",
    "300 MB": "read whole",
    "is a command": "ran it",
    "from a URL": "fetched it",
    "10^7": "built for hours",
    "10^9": "MemoryError",
    "negative": "RuntimeError",
    "one bad folder": "no line for the others",
    "push": "published the file",
    "a flag": "not an option",
    "4000 steps": "exit 0: the network was fed t",
    "images of 0": "a mean of 127",
    "images with NaN": "NaN",
    "NumPy array": "AttributeError",
    "PIL": "AttributeError",
    "a path": "AttributeError",
    "empty batch": "RuntimeError",
    "returns a tensor": "AttributeError",
    "one channel": "was broadcast",
    "torch.tensor": "NaN",
    "np.float32": "a code that save could not write",
    "steps=2.5": "2.5 steps",
}
"""What the kinds with these words led to when they were found."""


def show(kind: str, case: list[str] | Callable[[], object]) -> tuple[str, str, str, str]:
    """(kind, command, exit code, the last line that was said)."""
    if not isinstance(case, list):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return kind, "Python", "", str(case())
        except Exception as error:  # Whatever it is, it is what the user would see.
            return kind, "Python", type(error).__name__, str(error)
    with tempfile.TemporaryFile("w+") as said:
        with redirected(said.fileno()):
            code = main(case)
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    told = [line for line in lines if line.startswith(("error", "warning", "no "))] or lines[-1:]
    return kind, f"lightning {case[0]}", str(code), " / ".join(dict.fromkeys(told))


@contextmanager
def redirected(file: int) -> Iterator[None]:
    """Both outputs of this process go to `file`, also those of handlers that were made before."""
    before = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, old in zip((1, 2), before, strict=True):
            os.dup2(old, number)
            os.close(old)


def run() -> None:
    """Print the table."""
    wanted, rows = " ".join(sys.argv[1:]), []
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        domain("cat"), domain("dog")
        images(*(f"cats/{index}.png" for index in range(5)))
        for group in (models, fits, files, archives, python):
            for kind, case in group():
                if wanted in kind:
                    row = show(kind, case)
                    was = next((told for words, told in WAS.items() if words in kind), "")
                    says = row[3].replace(place, "...").replace("|", "\\|")[:LONGEST]
                    rows.append((kind, was, *row[1:3], says))
                    print(*rows[-1], sep=" | ", file=sys.stderr)
        os.chdir("/")
    print(tabulate(rows, ("kind", "it did", "command", "exit", "it says"), tablefmt="pipe"))


if __name__ == "__main__":
    run()
