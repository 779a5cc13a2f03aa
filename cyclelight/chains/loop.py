"""Run a chain to its end, with a progress bar if asked for."""

from collections import deque
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

State = TypeVar("State")


def last(states: Iterable[State], steps: int, label: str, *, progress: bool) -> State:
    """The last of `states`, of which there are `steps`, at least one; the others are let go."""
    bar: Iterable[State] = tqdm(states, label, steps, unit="step", disable=not progress)
    return deque(bar, maxlen=1).pop()
