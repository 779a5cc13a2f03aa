"""Run a chain to its end, with a progress bar if asked for."""

from collections.abc import Callable, Iterable

from torch import Tensor
from tqdm.auto import tqdm


def last(
    states: Iterable[Tensor],
    steps: int,
    label: str,
    *,
    progress: bool,
    on_state: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """The last of `states`, of which there are `steps`, at least one; the others are let go.

    Args:
        on_state: called with each of them.
    """
    state: Tensor | None = None
    for state in tqdm(states, label, steps, unit="step", disable=not progress):
        if on_state is not None:
            on_state(state)
    assert state is not None
    return state
