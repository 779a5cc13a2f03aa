"""Plan: what a run of `predict` has to do, and what an earlier one has done."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from lightning.pytorch import Callback, Trainer

from cyclelight.runs.folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """Made once, before the loader.

    Images and batches are always the same ones, so that a run which goes on where another was
    stopped gives what an undisturbed one would have given, to the last bit.

    Args:
        folder: where the images go.
        keys: of all images that can be made, in order.
        groups: the batches, as indices of `keys`.
        done: the keys of the images that are there already.
    """

    folder: RunFolder
    keys: Sequence[str]
    groups: Sequence[range]
    done: Set[str]

    def batches(self, *, done: bool) -> list[range]:
        """The batches with all images done, or the others."""
        return [g for g in self.groups if all(self.keys[i] in self.done for i in g) == done]


class Planner(Callback):
    """A callback that knows the plan of a run before its loader is made."""

    plan: Plan | None = None


def plan_of(trainer: Trainer) -> Plan | None:
    """The plan of the trainer's `Planner`; None without one, where everything is to be made."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    plans = (callback.plan for callback in callbacks if isinstance(callback, Planner))
    return next(plans, None)
