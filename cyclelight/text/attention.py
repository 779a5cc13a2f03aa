"""Control over attention: the source's maps in the target's place (Hertz et al. 2022).

At each step the source is asked first, and its maps are kept; then the target is, and its own are
edited by them. So this goes with methods that run both step by step. Maps of one step are kept,
however many steps there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cyclelight.errors import BadValue, one_of, real, whole
from cyclelight.text.blend import Blender, LocalBlend, Places
from cyclelight.text.prompts import Alignment, Window, bounds

Kind = Literal["auto", "replace", "refine"]
"""How the words of two texts correspond: by their numbers, which takes as many of both; in order,
those that both have; or `replace` where it can be, else `refine`."""


@dataclass(frozen=True)
class AttentionControl:
    """What of the source's attention the target takes over.

    Args:
        cross: when maps from pixels to words are the source's, as a share of the steps that are
            run, or from one share to another; 0 for never.
        self_attention: when maps from pixels to pixels are; of few pixels alone.
        kind: how the words correspond.
        words: another `cross` for single words of the target text.
        reweight: a factor for the maps of single words of the target text; above 1 for more of
            it. It counts while `cross` does.
        most_queries: pixels of a map from pixels to pixels that is taken over, at most. Published
            are 16 x 16, and 32 x 32 in a later version.
        blend: where the image may change, by the same attention; None for everywhere.

    Raises:
        ValueError: a setting is out of range.
    """

    cross: Window = 0.8
    self_attention: Window = 0.4
    kind: Kind = "auto"
    words: dict[str, Window] = field(default_factory=dict)
    reweight: dict[str, float] = field(default_factory=dict)
    most_queries: int = 256
    blend: LocalBlend | None = None

    def __post_init__(self) -> None:
        one_of(get_args(Kind), kind=self.kind)
        for word, factor in self.reweight.items():
            real("reweight", factor)
            if not word:
                raise BadValue("reweight", "reweight: a word is empty")
        for name, windows in {
            "cross": [self.cross],
            "self_attention": [self.self_attention],
            "words": self.words.values(),
        }.items():
            for window in windows:
                start, end = (real(name, share) for share in bounds(window))
                if not 0 <= start <= end <= 1:
                    raise BadValue(
                        name,
                        f"{name} must be in [0, 1], or from one such share to another, "
                        f"got {window}",
                    )
        whole("most_queries", self.most_queries)


@dataclass(frozen=True)
class Plan:
    """What is done to the maps of B pairs of texts.

    Args:
        timesteps: of the run, descending.
        matrix, keep: `Alignment` of each pair, (B, L, L) and (B, L).
        factors: of each target token, (B, L).
        cross: whether the map of each token is edited at each step: 0 or 1, (S, B, L).
        self_steps: the first step at which maps from pixels to pixels are taken over, and the one
            behind the last.
        most_queries: see `AttentionControl`.
        blend: where the images may change; None for everywhere.
    """

    timesteps: tuple[int, ...]
    matrix: Tensor
    keep: Tensor
    factors: Tensor
    cross: Tensor
    self_steps: tuple[int, int]
    most_queries: int
    blend: Places | None = None

    @classmethod
    def of(
        cls,
        timesteps: Sequence[int],
        alignments: Sequence[Alignment],
        factors: Sequence[Tensor],
        windows: Sequence[Tensor],
        self_steps: tuple[int, int],
        most_queries: int,
        blend: Places | None = None,
    ) -> "Plan":
        """That of B pairs, each with its own."""
        return cls(
            tuple(timesteps),
            torch.stack([alignment.matrix for alignment in alignments]),
            torch.stack([alignment.keep for alignment in alignments]),
            torch.stack(list(factors)),
            torch.stack(list(windows), dim=1),
            self_steps,
            most_queries,
            blend,
        )

    def wants(self, step: int, queries: int, *, cross: bool) -> bool:
        """Whether maps of that kind are edited at a step."""
        if cross:
            return bool(self.cross[step].any())
        return self.self_steps[0] <= step < self.self_steps[1] and queries <= self.most_queries

    def edit(self, step: int, base: Tensor, own: Tensor, *, cross: bool) -> Tensor:
        """The target's maps, edited.

        Args:
            step: number of the step, 0 the noisiest; one at which they are wanted.
            base: the source's, (B, heads, queries, keys), or (1, ...) for all.
            own: the target's own, (B, heads, queries, keys).
            cross: whether keys are tokens, L of them.
        """
        if not cross:
            return base.expand_as(own)
        matrix, keep, factors, when = (
            each.to(own) for each in (self.matrix, self.keep, self.factors, self.cross[step])
        )
        keep, factors, when = (each[:, None, None] for each in (keep, factors, when))
        inner = (base @ matrix[:, None] + own * keep) * factors
        return inner * when + own * (1 - when)


class Seat:
    """Where a controller sits while one of its networks is asked; shared by all its layers."""

    def __init__(self) -> None:
        self.controller: Controller | None = None


class Controller:
    """Keeps the source's maps of a step, and edits the target's by them, or its states.

    Args:
        plan: what is done.
        seat: of the network that both share.
    """

    def __init__(self, plan: Plan, seat: Seat) -> None:
        self.plan, self.seat = plan, seat
        self.pairs = len(plan.keep)
        self._maps: dict[str, Tensor] = {}
        self._step: int | None = None
        self._seen: set[int] = set()
        self._target = False
        self._last = -1
        self._blender = Blender(plan.blend) if plan.blend is not None else None

    @contextmanager
    def asks(self, t: int, side: int, *, target: bool) -> Iterator[None]:
        """While the network is asked at timestep t; not at one that the plan does not know.

        Args:
            t: the timestep.
            side: height and width of the states.
            target: whether it is asked for the target's texts.

        Raises:
            ValueError: the target is asked before the source, or alone and there is a blend.
        """
        if target and self._blender is not None and self._step is None and self._seen:
            raise BadValue("cleanup", "cleanup must be 0 with a blend: it changes all of an image")
        if t not in self.plan.timesteps:
            yield
            return
        step = self.plan.timesteps.index(t)
        if not target:
            self._maps, self._step, self._last = {}, step, step
            self._seen.add(step)
            if step == 0 and self._blender is not None:
                self._blender.begin(side)
        elif step not in self._seen:
            raise ValueError(
                "attention is controlled where source and target are run step by step, as by "
                "CycleDiffusion, EditFriendly, DDCM and DDIB: the target was asked first"
            )
        if self._step == step:  # Else a cleanup, which has no source.
            self.seat.controller, self._target = self, target
        try:
            yield
        finally:
            self.seat.controller = None
            if target:
                self._maps, self._step = {}, None

    def wants(self, queries: int, *, cross: bool) -> bool:
        """Whether a layer of so many queries has to show its maps now."""
        blends = cross and self._blender is not None and self._blender.wants(queries)
        edits = self._step is not None and self.plan.wants(self._step, queries, cross=cross)
        return blends or edits

    def see(self, layer: str, maps: Tensor, *, cross: bool) -> Tensor:
        """The maps that a layer goes on with.

        Args:
            layer: its name.
            maps: (rows, heads, queries, keys); the first rows are those of the texts, others of
                what is led away from.
            cross: whether keys are tokens.
        """
        assert self._step is not None
        own = maps[: self.pairs]
        if not self._target:
            self._maps[layer] = own
        elif self.plan.wants(self._step, own.shape[2], cross=cross):
            own = self.plan.edit(self._step, self._maps[layer], own, cross=cross)
            maps = torch.cat([own, maps[self.pairs :]])
        if cross and self._blender is not None and self._blender.wants(own.shape[2]):
            self._blender.see(own, target=self._target)
        return maps

    def blend(self, y_s: Tensor, x_s: Tensor) -> Tensor:
        """The target's state after the step that both have been asked for, blended."""
        return y_s if self._blender is None else self._blender.blend(y_s, x_s, self._last)


class Watched:
    """An attention processor of diffusers that shows its maps to a controller that wants them.

    Else it is the one that was there before, which need not have any maps.
    """

    def __init__(self, plain: Any, name: str, seat: Seat) -> None:
        self.plain, self.name, self.seat = plain, name, seat

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        controller, cross = self.seat.controller, encoder_hidden_states is not None
        if controller is None or not controller.wants(hidden_states.shape[1], cross=cross):
            out: Tensor = self.plain(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return out
        told = encoder_hidden_states if encoder_hidden_states is not None else hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(told), attn.to_v(told)
        q, k, v = (attn.head_to_batch_dim(each) for each in (q, k, v))
        maps = attn.get_attention_scores(q, k).unflatten(0, (len(hidden_states), attn.heads))
        maps = controller.see(self.name, maps, cross=cross)
        out = attn.batch_to_head_dim(maps.flatten(0, 1) @ v)
        out = attn.to_out[1](attn.to_out[0](out))
        out = out + hidden_states if attn.residual_connection else out
        return out / attn.rescale_output_factor


def watch(network: nn.Module) -> Seat:
    """Let all attention layers of a UNet of diffusers be watched, once; where a controller sits.

    Raises:
        ValueError: it is no such network, or it is compiled or replayed as a graph, where nothing
            can be watched.
    """
    engine = getattr(network, "engine", None)
    if engine is not None:
        cuda = next(network.parameters()).is_cuda
        if engine.compile or (engine.graphs and cuda):
            raise BadValue(
                "engine",
                "engine: attention cannot be controlled in a network that is compiled or "
                "replayed as a CUDA graph: set compile and graphs to false",
            )
    unet: Any = network.network if engine is not None else network
    processors: Mapping[str, Any] = getattr(unet, "attn_processors", {})
    if not processors:
        raise BadValue("control", "control: this network has no attention that can be controlled")
    first = next(iter(processors.values()))
    if isinstance(first, Watched):
        return first.seat
    seat = Seat()
    unet.set_attn_processor({n: Watched(plain, n, seat) for n, plain in processors.items()})
    return seat
