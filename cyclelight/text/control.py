"""From the settings of a control and pairs of texts to two denoisers that it binds together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import Prediction
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import BadValue
from cyclelight.text.attention import AttentionControl, Controller, Plan
from cyclelight.text.blend import Places, Text
from cyclelight.text.guided import Guided
from cyclelight.text.prompts import (
    Alignment,
    cross_window,
    occurrences,
    refining,
    replacing,
    self_window,
    token_positions,
    words_of,
)


@dataclass(frozen=True)
class Spelling:
    """A text in tokens.

    Args:
        text: as it is.
        ids: of all its tokens, those that begin and end it among them.
        tokens: how each reads, without those two.
    """

    text: str
    ids: Sequence[int]
    tokens: Sequence[str]

    @property
    def words(self) -> list[str]:
        """Its words."""
        return words_of(self.text)

    @property
    def positions(self) -> list[list[int]]:
        """Of the tokens of each word.

        Raises:
            ValueError: its tokens are not those of its words, one after the other.
        """
        try:
            return token_positions(self.tokens, self.words)
        except ValueError as error:
            told = f"control: the words of {self.text!r} cannot be told apart: {error}"
            raise BadValue("control", told) from error


def plan_of(
    control: AttentionControl,
    pairs: Sequence[tuple[Spelling, Spelling]],
    timesteps: Sequence[int],
    length: int,
) -> Plan:
    """What a control means for B pairs of texts, source and target.

    Args:
        timesteps: that will be run, descending.
        length: tokens of a text, filled up.

    Raises:
        ValueError: texts do not admit it: their words do not correspond as `kind` says, or a word
            with a window or a factor of its own, or of a blend, is not in its text.
    """
    steps = len(timesteps)
    alignments, factors, windows = list[Alignment](), list[Tensor](), list[Tensor]()
    for source, target in pairs:
        alignments.append(_alignment(control, source, target, length))
        words, positions = target.words, target.positions
        factor = torch.ones(length)
        for word, value in control.reweight.items():
            factor[occurrences(word, words, positions, "reweight")] = value
        factors.append(factor)
        windows.append(cross_window(steps, control.cross, control.words, words, positions, length))
    blend = None
    if control.blend is not None:
        texts = [(Text(s.words, s.positions), Text(t.words, t.positions)) for s, t in pairs]
        blend = Places.of(control.blend, texts, steps, length)
    return Plan.of(
        timesteps,
        alignments,
        factors,
        windows,
        self_window(steps, control.self_attention),
        control.most_queries,
        blend,
    )


def _alignment(
    control: AttentionControl, source: Spelling, target: Spelling, length: int
) -> Alignment:
    as_many = len(source.words) == len(target.words)
    if control.kind == "refine" or (control.kind == "auto" and not as_many):
        return refining(source.ids, target.ids, length)
    return replacing(source.words, target.words, source.positions, target.positions, length)


class Controlled(nn.Module):
    """A denoiser whose attention a controller watches, or edits: the source's, or the target's.

    Args:
        guided: asked for the same pairs of texts as the controller's plan.
        controller: that both share.
        target: whether it is the target's.
    """

    def __init__(self, guided: Guided, controller: Controller, *, target: bool) -> None:
        super().__init__()
        self.guided, self.target = guided, target
        self._controller: Any = controller

    @property
    def schedule(self) -> NoiseSchedule:
        """That of the network."""
        return self.guided.schedule

    def forward(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        """As `Guided`.

        Raises:
            ValueError: several timesteps are asked for at once.
        """
        if isinstance(t, Tensor) or len(x_t) != self._controller.pairs:
            raise BadValue(
                "parallel",
                f"parallel must be 0 where attention is controlled, and there must be a text for "
                f"each image: got {self._controller.pairs} texts, {len(x_t)} images",
            )
        with self._controller.asks(t, x_t.shape[-1], target=self.target):
            return self.guided(x_t, t)

    def blend(self, y_s: Tensor, x_s: Tensor) -> Tensor:
        """See `Blending`."""
        blended: Tensor = self._controller.blend(y_s, x_s)
        return blended
