"""Run a chain to its end, with a progress bar if asked for."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from tqdm.auto import tqdm

State = TypeVar("State")


def last(
    states: Iterable[State],
    steps: int,
    label: str,
    *,
    progress: bool,
    on_state: Callable[[State], object] | None = None,
) -> State:
    """The last of `states`, of which there are `steps`, at least one; the others are let go.

    Args:
        states: tensors, or tuples of them where several chains go side by side.
        on_state: called with each of them.
    """
    state: State | None = None
    for state in tqdm(states, label, steps, unit="step", disable=not progress):
        if on_state is not None:
            on_state(state)
    assert state is not None
    return state
