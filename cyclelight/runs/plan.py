"""Plan: what a run of `predict` has to do, and what an earlier one has done."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from lightning.pytorch import Callback, Trainer

from cyclelight.runs.folder import RunFolder
from cyclelight.runs.task import PartCallback


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


class Planner(PartCallback):
    """A callback that knows the plan of a part of a run before the loader is made."""

    plan: Plan | None = None


def plan_of(trainer: Trainer, part: str | None = None) -> Plan | None:
    """The plan of the trainer's `Planner`; None without one, where everything is to be made.

    Args:
        trainer: of the run.
        part: whose folder; of several parts, which have the same batches, any by default. Done is
            what is done in all of them.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    planners = [callback for callback in callbacks if isinstance(callback, Planner)]
    plans = {planner.part: planner.plan for planner in planners if planner.plan is not None}
    plan = plans.get(next(iter(plans), "") if part is None else part)
    if plan is None or len(plans) == 1:
        return plan
    return replace(plan, done=frozenset.intersection(*(frozenset(p.done) for p in plans.values())))
