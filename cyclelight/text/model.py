"""TextModel: a text-to-image model, which a prompt makes a domain."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import Denoiser, NetworkDenoiser
from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue, real
from cyclelight.text.attention import AttentionControl, Controller, watch
from cyclelight.text.control import Controlled, Spelling, plan_of
from cyclelight.text.guided import Embeddings, Guided


class TextReader(nn.Module, ABC):
    """Texts as a network takes them: tokenizers and text encoders of one family of models."""

    @abstractmethod
    def check(self, texts: Sequence[str]) -> None:
        """Raises ValueError, with the text, if one is too long."""

    @abstractmethod
    def spell(self, text: str) -> Spelling:
        """A text in tokens."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of a text, filled up."""

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> Embeddings:
        """The embeddings of B texts: (B, ...) each."""


class TextModel(nn.Module):
    """A text-to-image diffusion model.

    Args:
        denoiser: its network, called as (x_t, t, *embeddings).
        reader: makes the embeddings of texts.
        resolution: height and width of its images in pixels.
        name: what to call it.
        card: where it comes from: training data and licence, steps, versions.
        autoencoder: of the latent space that the network works in; None if in pixels.
        distilled: whether guidance is learnt: the network is told the scale behind the texts, in
            one call, and knows of no negative text.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        reader: TextReader,
        resolution: int,
        name: str = "model",
        card: dict[str, Any] | None = None,
        autoencoder: Autoencoder | None = None,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser, self.reader, self.resolution = denoiser, reader, resolution
        self.name, self.card, self.autoencoder = name, card or {}, autoencoder
        self.distilled = distilled

    def prompted(
        self,
        text: str | Sequence[str],
        negative: str | Sequence[str] = "",
        scale: float | Sequence[float] = 7.5,
    ) -> Domain:
        """The images that a text describes, as a domain; or for each image of a batch its own text.

        Args:
            text: one for all images of any batch, or one for each image of batches of B.
            negative: what the images are led away from; one, or B.
            scale: of classifier-free guidance, see `Guided`; one, or B. At 1 there is none, and a
                step costs half. Where guidance is learnt (FLUX.1 dev, 3.5), what the network is
                told.

        Raises:
            ValueError: a text is too long, or there are not as many of one as of the other; or a
                negative text where guidance is learnt.
        """
        many = [len(v) for v in (text, negative, scale) if _is_many(v)]  # type: ignore[arg-type]
        count = max(many, default=1)
        texts = _each("text", text, count)
        negatives = _each("negative", negative, count)
        scales = [real("scale", each) for each in _each("scale", scale, count)]
        guided = self._guided(texts, negatives, scales)
        return self._domain(guided, text if isinstance(text, str) else self.name)

    def controlled(
        self,
        source_texts: Sequence[str],
        target_texts: Sequence[str],
        control: AttentionControl,
        timesteps: Sequence[int],
        *,
        negative: str = "",
        source_scale: float | Sequence[float] = 1.0,
        scale: float | Sequence[float] = 7.5,
    ) -> tuple[Domain, Domain]:
        """Two domains for one batch, the second of which looks where the first does.

        For methods that run both step by step: CycleDiffusion, EditFriendly, DDCM, DDIB.

        Args:
            source_texts, target_texts: B each, for the images of the batch.
            control: what of the source's attention the target takes over.
            timesteps: that the method will run, descending, such as those of its grid.
            negative: see `prompted`.
            source_scale, scale: of guidance by the source's and the target's text; one, or B.

        Raises:
            ValueError: as `prompted`; or texts do not admit the control.
        """
        count = len(source_texts)
        targets = _each("target_texts", list(target_texts), count)
        spelt = [
            (self.reader.spell(source), self.reader.spell(target))
            for source, target in zip(source_texts, targets, strict=True)
        ]
        plan = plan_of(control, spelt, timesteps, self.reader.length)
        controller = Controller(plan, watch(self.denoiser.network))
        roles = (
            ("source_scale", source_texts, source_scale),
            ("scale", targets, scale),
        )
        source, target = (
            self._domain(
                Controlled(
                    self._guided(
                        texts, [negative] * count, [real(n, s) for s in _each(n, own, count)]
                    ),
                    controller,
                    target=n == "scale",
                ),
                self.name,
            )
            for n, texts, own in roles
        )
        return source, target

    def _guided(
        self, texts: Sequence[str], negatives: Sequence[str], scales: Sequence[float]
    ) -> Guided:
        self.reader.check([*texts, *negatives])
        if self.distilled:
            if any(negatives):
                told = "negative: this model's guidance is learnt, and leads away from no text"
                raise BadValue("negative", told)
            embeddings = (*self._read(texts), torch.tensor(scales))
            return Guided(self.denoiser, embeddings, embeddings, [1.0] * len(scales))
        return Guided(self.denoiser, self._read(texts), self._read(negatives), scales)

    def _domain(self, denoiser: Denoiser, name: str) -> Domain:
        return Domain(
            denoiser, self.resolution, self.channels, name or self.name, self.card, self.autoencoder
        )

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return 3 if self.autoencoder is None else self.autoencoder.channels

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Each text is read once, alone: what it is read as does not depend on its neighbours."""
        # In the encoder's own dtype, even where a trainer has the networks in half precision.
        kind = next(self.reader.parameters()).device.type
        known_kind = torch.amp.is_autocast_available(kind)  # Not `meta`.
        with torch.autocast(kind, enabled=False) if known_kind else nullcontext():
            known = {text: self.reader([text]) for text in dict.fromkeys(texts)}
        each = [known[text] for text in texts]
        return tuple(torch.cat(parts) for parts in zip(*each, strict=True))


def _is_many(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _each(name: str, value: Any, count: int) -> list[Any]:
    """As many values as there are images.

    Raises:
        ValueError: several are given, but not as many.
    """
    if not _is_many(value):
        return [value] * count
    if not value:
        raise BadValue(name, f"{name} must be one, or one for each image, got none")
    if len(value) != count:
        told = f"{name} must be one, or one for each of {count} images, got {len(value)}"
        raise BadValue(name, told)
    return list(value)
