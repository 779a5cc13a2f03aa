"""From images to figures.

Images are judged one by one, wherever they are; only what `Columns` holds is kept and gathered. So
the figures depend neither on batches nor on processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cyclelight.metrics.columns import Columns
from cyclelight.metrics.edits import Seen
from cyclelight.metrics.feature_network import FeatureNetwork
from cyclelight.metrics.features import feature_network
from cyclelight.metrics.figure_kinds import Measure, Score, Sets, TextMeasure
from cyclelight.metrics.figures import FIGURES, classes_of, image_figures
from cyclelight.metrics.protocol import MetricProtocol

if TYPE_CHECKING:
    from cyclelight.metrics.structure import Dino
    from cyclelight.text.clip import Clip

Texts = tuple[Sequence[str], Sequence[str]]
"""Of B images: what their sources show, and what they are to show."""


class Judge(nn.Module):
    """Looks at images one by one.

    Args:
        protocol: whose feature network judges realism; None judges faithfulness only.
        weights: the network's weights, see `feature_network`.
        resolution: side of the images: some figures have a least one.
        sources: whether images have sources to be faithful to.
        clip: judges edits by their texts; None for no such figures.
        truth: whether the right result of each image is known.
        candidates: images among which that is looked for, uint8 (N, H, W, C); None for no such
            figure.
        regions: whether it is known where each image is to change.
        dino: tells how images are laid out; None for no such figure.

    Raises:
        FileNotFoundError, ValueError: the network cannot be had, see `feature_network`.
    """

    def __init__(
        self,
        protocol: MetricProtocol | None,
        weights: str | None = None,
        *,
        resolution: int,
        sources: bool = True,
        clip: Clip | None = None,
        truth: bool = False,
        candidates: Tensor | None = None,
        regions: bool = False,
        dino: Dino | None = None,
    ) -> None:
        super().__init__()
        self.network: FeatureNetwork | None = None
        if protocol is not None:
            self.network = feature_network(protocol.network, weights)
        self.measures: dict[str, Measure] = {}
        """What is measured of images and their sources or truths, by the figure's name."""
        self.text_measures: dict[str, TextMeasure] = {}
        """What is measured of texts, too, by the figure's name."""
        self.clip = clip
        self.notes: list[str] = []
        """Why a figure is missing."""
        given = {"candidates": candidates if truth else None, "dino": dino}
        known = {"source": sources, "texts": clip is not None, "truth": truth}
        known |= {name: value is not None for name, value in given.items()}
        for name, figure in image_figures().items() if sources else ():
            if not known[figure.against] or not (regions or figure.where == "whole"):
                continue
            if resolution < figure.least_side:
                told = f"no {name}: it needs images of {figure.least_side} pixels or more"
                self.notes.append(told)
                continue
            try:
                measure = figure.make()
            except FileNotFoundError as error:
                self.notes.append(f"no {name}: {error}")
                continue
            if figure.against == "texts":
                self.text_measures[name] = measure
            else:
                known_by = given.get(figure.against)
                self.measures[name] = measure if known_by is None else measure(known_by)
        self.remembered: dict[bytes, dict[str, Tensor]] | None = None
        """What the network sees in batches of sources, for one who judges the same ones again and
        again; None to look anew each time."""
        # As sub-modules, they go where the judge goes.
        self.networks = nn.ModuleList(m for m in self.measures.values() if isinstance(m, nn.Module))

    def forward(
        self,
        images: Tensor,
        sources: Tensor | None = None,
        texts: Texts | None = None,
        truths: Tensor | None = None,
        regions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """uint8 (B, H, W, C) each => what `Columns` keeps, one entry per image, on the CPU.

        Grey is judged as three equal channels.

        With a network: `row` (B, D), `label` (B,) if it classifies, and both of the sources, as
        `source row` and `source label`. Of sources, the figures of each image by name, (B,); with a
        CLIP and texts, truths, or regions, (B, H, W), bool, those that are judged by them; and of
        some the sources' as `source NAME`.
        """
        columns = self._see(images)
        if sources is not None:
            seen = self._see_sources(sources)
            columns |= {f"source {name}": values for name, values in seen.items()}
            columns |= self._measure(images, sources, truths, regions)
            if self.clip is not None and texts is not None:
                columns |= self._read(self.clip, images, sources, texts, regions)
        return {name: values.cpu() for name, values in columns.items()}

    def _measure(
        self,
        images: Tensor,
        sources: Tensor,
        truths: Tensor | None,
        regions: Tensor | None,
    ) -> dict[str, Tensor]:
        columns = {}
        for name, measure in self.measures.items():
            figure = image_figures()[name]
            other = truths if figure.against in ("truth", "candidates") else sources
            assert other is not None, "whoever knows truths gives them"
            if figure.where == "background":
                assert regions is not None, "whoever knows regions gives them"
                outside = ~regions
                values = measure(*(x * outside[..., None] for x in (images, other)))
                columns[name] = values.masked_fill(~outside.any(2).any(1), torch.nan)
                continue
            columns[name] = measure(images, other)
            if figure.of_sources:
                columns[f"source {name}"] = measure(sources, other)
        return columns

    def _see(self, images: Tensor) -> dict[str, Tensor]:
        if self.network is None:
            return {}
        rows, logits = self.network(images)
        # NumPy, which keeps them, knows no bfloat16.
        seen = {"row": rows if rows.element_size() >= 4 else rows.float()}
        return seen if logits is None else seen | {"label": logits.argmax(1)}

    def _see_sources(self, sources: Tensor) -> dict[str, Tensor]:
        if self.remembered is None:
            return self._see(sources)
        # Whole batches, since the last bits depend on their shape.
        pixels = blake2b(sources.cpu().numpy().tobytes(), digest_size=16).digest()
        if pixels not in self.remembered:
            seen = self._see(sources)
            self.remembered[pixels] = {name: values.cpu() for name, values in seen.items()}
        return dict(self.remembered[pixels])

    def _read(
        self, clip: Clip, images: Tensor, sources: Tensor, texts: Texts, regions: Tensor | None
    ) -> dict[str, Tensor]:
        source_text, text = (clip.read(some).to(images.device) for some in texts)
        part = None if regions is None else clip.see(images * regions[..., None])
        seen = Seen(clip.see(images), clip.see(sources), text, source_text, part)
        columns = {name: measure(seen) for name, measure in self.text_measures.items()}
        before = replace(seen, image=seen.source)
        for name, measure in self.text_measures.items():
            if image_figures()[name].of_sources:
                columns[f"source {name}"] = measure(before)
        return columns

    def look(
        self,
        batches: Iterable[Sequence[int]],
        keys: Sequence[str],
        images: Callable[[int], Tensor],
        sources: Callable[[int], Tensor] | None = None,
        device: str | torch.device = "cpu",
        texts: Callable[[int], tuple[str, str]] | None = None,
        truths: Callable[[int], Tensor] | None = None,
        regions: Callable[[int], Tensor] | None = None,
    ) -> Columns:
        """Judge images by their indices.

        Args:
            batches: indices, in the batches in which the networks see them: the last bits of what
                they say depend on those.
            keys: of all images.
            images: gives the image of an index, uint8 (H, W, C).
            sources: gives its source.
            device: where the networks are.
            texts: gives its source's text and its own.
            truths: gives what it should be.
            regions: gives where it is to change, (H, W), bool.
        """
        columns = Columns()
        for batch in batches:
            pixels, others, right, inside = (
                torch.stack([of(index) for index in batch]).to(device) if of is not None else None
                for of in (images, sources, truths, regions)
            )
            told = None
            if texts is not None:
                pairs = [texts(index) for index in batch]
                told = [source for source, _ in pairs], [target for _, target in pairs]
            columns.add([keys[index] for index in batch], self(pixels, others, told, right, inside))
        return columns


def score(
    images: Columns,
    reference: Columns,
    protocol: MetricProtocol,
    classes: str | None = None,
    clip: str = "",
) -> list[Score]:
    """The figures over all images, in the order of their keys, whatever order they came in.

    Args:
        images: what was kept of each; they are put in order.
        reference: of each real image of the target; may be empty: then no FID and KID.
        protocol: how FID and KID are taken.
        classes: the domain of `IMAGENET_CLASSES` whose share is told, if the network classifies.
        clip: the name of the CLIP that has seen the images, if one has.
    """
    images.sort()
    reference.sort()
    sets = Sets(images, reference, protocol, classes, clip)
    scores = (figure.over(sets) for figure in FIGURES.values())
    return [score for score in scores if score is not None]


class PerImage(Mapping[str, Mapping[str, float]]):
    """The figures of each image by its key, looked up when they are asked for.

    They are those of its own, and whether it is of the class (1 or 0); or where `of` is `source `,
    those of its source as it is, as far as they are measured.
    """

    def __init__(self, columns: Columns, classes: str | None = None, of: str = "") -> None:
        self._columns, self._classes, self._of = columns, classes, of

    def __getitem__(self, key: str) -> dict[str, float]:
        if key not in self._columns:
            raise KeyError(key)
        names = self._columns.names
        told = {n.removeprefix(self._of): n for n in names if n.startswith(self._of)}
        known = image_figures()
        figures = {n: self._columns.value(key, column) for n, column in told.items() if n in known}
        if self._classes is not None and "label" in names:
            of_class = self._columns.value(key, "label") in classes_of(self._classes)
            figures = {self._classes: float(of_class), **figures}
        return figures

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)
