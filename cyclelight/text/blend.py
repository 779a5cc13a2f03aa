"""Local blend: an edit stays where its words are looked at (Hertz et al. 2022).

From the attention of pixels to a few words, summed over the steps so far, follows where the image
may change; elsewhere the target's state is the source's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from cyclelight.errors import BadValue, real
from cyclelight.text.prompts import differing, occurrences

SHRUNK = 4
"""The maps that count have a quarter of the states' side: 16 of 64 in Stable Diffusion 1.x, 8 of 32
in the emoji model."""


@dataclass(frozen=True)
class LocalBlend:
    """Where an edit may change the image, by the words that its parts are looked at for.

    The image may change where attention to the words of either text is above a share of its
    maximum, and nowhere else. What lies outside is the source's at each step, and so at the end:
    bit for bit in pixels; in latents, what the model's autoencoder makes of them.

    Args:
        source_words: what of the source text is to change; None for the words that the target text
            lacks.
        target_words: what of the target text is new; None for the words that the source text lacks.
        source_kept: words of the source text whose places stay as they are all the same.
        target_kept: such words of the target text.
        threshold: share of the maximum above which a place may change; less for larger parts.
        kept_threshold: the same for places that are kept.
        start: share of the steps that are run before anything is blended.

    Raises:
        ValueError: a setting is out of range.
    """

    source_words: list[str] | None = None
    target_words: list[str] | None = None
    source_kept: list[str] = field(default_factory=list)
    target_kept: list[str] = field(default_factory=list)
    threshold: float = 0.3
    kept_threshold: float = 0.3
    start: float = 0.2

    def __post_init__(self) -> None:
        for name in ("threshold", "kept_threshold", "start"):
            if not 0 <= real(name, getattr(self, name)) < 1:
                told = f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                raise BadValue(name, told)
        for name in ("source_words", "target_words", "source_kept", "target_kept"):
            words = getattr(self, name)
            if isinstance(words, str):
                raise BadValue(name, f"{name} must be a list of words, got {words!r}")


@dataclass(frozen=True)
class Text:
    """A text of a pair: its words, and the positions of the tokens of each."""

    words: Sequence[str]
    positions: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Places:
    """What a local blend means for B pairs of texts.

    Args:
        counted: 1 for tokens whose places may change, or are kept, else 0:
            (2 roles, B, 2 kinds, L); roles are source and target, kinds to change and to keep.
        thresholds: of the two kinds.
        first_step: the first step that is blended.
    """

    counted: Tensor
    thresholds: tuple[float, float]
    first_step: int

    @classmethod
    def of(
        cls, blend: LocalBlend, pairs: Sequence[tuple[Text, Text]], steps: int, length: int
    ) -> "Places":
        """Those of B pairs of texts.

        Args:
            pairs: source and target.
            steps: really run.
            length: L.

        Raises:
            ValueError: a word is not in its text; or the texts have the same words, and none is
                named.
        """
        counted = torch.zeros(2, len(pairs), 2, length)
        for number, pair in enumerate(pairs):
            for role, (text, other) in enumerate((pair, pair[::-1])):
                name = ("source", "target")[role]
                words, kept = getattr(blend, f"{name}_words"), getattr(blend, f"{name}_kept")
                chosen = differing(text.words, other.words) if words is None else words
                for kind, some in enumerate((chosen, kept)):
                    argument = f"{name}_{('words', 'kept')[kind]}"
                    for word in some:
                        found = occurrences(word, text.words, text.positions, argument)
                        counted[role, number, kind, found] = 1
            if not counted[:, number, 0].any():
                told = " ".join(pair[0].words)
                raise BadValue(
                    "blend",
                    f"blend: nothing differs between the words of {told!r} and its target text: "
                    f"name source_words or target_words",
                )
        thresholds = (blend.threshold, blend.kept_threshold)
        return cls(counted, thresholds, int(blend.start * steps))

    def attention(self, maps: Tensor, *, target: bool) -> Tensor:
        """How much a layer looks at the words, summed over its heads: (B, 2 kinds, queries).

        Args:
            maps: from pixels to tokens, (B, heads, queries, L).
        """
        counted = self.counted[int(target)].to(maps.device)
        # No matrix product, which autocast would take in half precision.
        return (maps.float().sum(dim=1)[:, None] * counted[:, :, None]).sum(dim=-1)

    def mask(self, seen: Tensor, side: int) -> Tensor:
        """Where states (B, C, side, side) may change: (B, 1, side, side), bool.

        Args:
            seen: `attention` of all layers and steps so far, of source and target:
                (2, B, 2, queries), queries a square number.
        """
        width = round(seen.shape[-1] ** 0.5)
        maps = seen.reshape(*seen.shape[:-1], width, width)
        # Around each place there is some room, but not around what is kept.
        change = F.max_pool2d(maps[:, :, 0], 3, stride=1, padding=1)
        found = [
            _above(kind, side, threshold).any(dim=0)
            for kind, threshold in zip((change, maps[:, :, 1]), self.thresholds, strict=True)
        ]
        return (found[0] & ~found[1])[:, None]


class Blender:
    """Follows what B pairs of images are looked at for, and blends their states by it.

    Args:
        places: what is looked for.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self._width: int | None = None
        self._seen: list[Tensor | None] = [None, None]

    def begin(self, side: int) -> None:
        """Forget what was seen: a run with states (B, C, side, side) begins."""
        self._width, self._seen = side // SHRUNK, [None, None]

    def wants(self, queries: int) -> bool:
        """Whether a layer from so many pixels to words counts."""
        return self._width is not None and queries == self._width**2

    def see(self, maps: Tensor, *, target: bool) -> None:
        """One layer's maps of a step, (B, heads, queries, L), as it goes on with them."""
        more, known = self.places.attention(maps, target=target), self._seen[int(target)]
        self._seen[int(target)] = more if known is None else known + more

    def blend(self, y_s: Tensor, x_s: Tensor, step: int) -> Tensor:
        """The target's state after a step: the source's where nothing may change.

        Raises:
            ValueError: no layer that counts was seen.
        """
        seen = [each for each in self._seen if each is not None]
        if len(seen) < 2:
            raise BadValue(
                "blend",
                f"blend: this network has no attention from {self._width} x {self._width} pixels "
                f"to words, a quarter of the side of its states, which blending goes by",
            )
        if step < self.places.first_step:
            return y_s
        return torch.where(self.places.mask(torch.stack(seen), y_s.shape[-1]), y_s, x_s)


def _above(maps: Tensor, side: int, threshold: float) -> Tensor:
    """Where maps (2, B, h, w) are above a share of their own maximum, as (2, B, side, side)."""
    large = F.interpolate(maps, size=(side, side), mode="nearest")
    most = large.amax(dim=(2, 3), keepdim=True)
    # Those of no word at all are 0, and nowhere above.
    return (most > 0) & (large / most > threshold)
