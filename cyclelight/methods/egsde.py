"""EGSDE (Zhao et al. 2022): SDEdit, led away from the source domain and towards the image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.chains.sample import Adjust, reverse_chain
from cyclelight.diffusion.lowpass import check_factor, low_pass
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.diffusion.steps import add_noise
from cyclelight.domains.classifier import (
    DomainClassifier,
    check_classifier_path,
    classifier_fingerprint,
    load_classifier,
)
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue, at_least, one_of
from cyclelight.methods.base import Domains, GridMethod, Role

Likeness = Literal["cosine", "neg_l2"]
"""How alike two maps (B, C, H, W) are: the mean over positions of the cosine along channels, or
minus the sum of the squared differences. The names are those of the authors' program."""


def likeness(a: Tensor, b: Tensor, kind: Likeness) -> Tensor:
    """How alike two maps (B, C, H, W) are, see `Likeness`: (B,)."""
    if kind == "cosine":
        return F.cosine_similarity(a, b, dim=1, eps=1e-10).mean(dim=(1, 2))
    return -(a - b).square().sum(dim=(1, 2, 3))


@dataclass(frozen=True)
class EGSDE(GridMethod):
    """SDEdit whose steps also descend two energies of the state y_t and the noised image x_t.

    Each step's mean is moved by -w_t grad_y (lambda_s S(E(y_t), E(x_t)) - lambda_i S'(phi(y_t),
    phi(x_t))) (Zhao et al. 2022, Eq. 8 and Algorithm 1), w_t = beta / sqrt(1 - beta), where beta is
    the variance between the two levels of the step; E are features of a classifier of noisy images,
    by which the result leaves the source domain, and phi reduces by N and enlarges again by a
    linear kernel, by which it stays near the image. S is how alike two maps are. x_t has one noise
    for the whole chain, that which it starts with. No source domain is needed. With both weights 0
    it is SDEdit, bit for bit.

    Args:
        classifier: folder of a classifier of noisy images of both domains, made by
            `DomainClassifierModule` or `lightning import`; its schedule is the target's.
        steps: number of timesteps of the whole grid, 1 .. T. The authors have 1000.
        eta: 0 .. 1; the authors have 1.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end. The
            authors have 0.5.
        spacing: how the timesteps are spread, see `Spacing`.
        lambda_s: weight of leaving the source domain; the authors have 500.
        lambda_i: weight of staying near the image; the authors have 2 for 256 pixels. Its energy is
            a sum over pixels.
        down_N: how far the images that are compared are reduced; it divides their side. The authors
            have 32 for 256 pixels, which then have 8 x 8.
        repeats: how often the chain is run, each time from the last result.
        realism: how features are compared.
        faithfulness: how reduced images are compared.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: there is no classifier.
    """

    classifier: str = ""
    steps: int = 100
    strength: float = 0.5
    lambda_s: float = 500.0
    lambda_i: float = 2.0
    down_N: int = 8
    repeats: int = 1
    realism: Likeness = "cosine"
    faithfulness: Likeness = "neg_l2"

    needs: ClassVar[tuple[Role, ...]] = ("target",)
    gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, lambda_s=self.lambda_s, lambda_i=self.lambda_i)
        at_least(1, down_N=self.down_N, repeats=self.repeats)
        one_of(get_args(Likeness), realism=self.realism)
        one_of(get_args(Likeness), faithfulness=self.faithfulness)
        if not self.classifier:
            raise BadValue("classifier", "classifier must name a classifier folder, got none")
        check_classifier_path(self.classifier)

    @classmethod
    def paper(cls, classifier: str, **changes: Any) -> "EGSDE":
        """The settings of the paper for AFHQ at 256 pixels (M = 0.5 T), but for `changes`."""
        return cls(classifier=classifier, **{"steps": 1000, "down_N": 32, **changes})

    @classmethod
    def dagger(cls, classifier: str, **changes: Any) -> "EGSDE":
        """EGSDE-dagger, tuned for FID: as the paper's, but from M = 0.6 T."""
        return cls.paper(classifier, **{"strength": 0.6, **changes})

    def length(self, schedule: NoiseSchedule) -> int:
        return self.repeats * super().length(schedule)

    @cached_property
    def extractor(self) -> DomainClassifier:
        """The classifier, loaded when it is first used."""
        return load_classifier(self.classifier)

    def networks(self) -> dict[str, nn.Module]:
        return {"classifier": self.extractor.network}

    def made_by(self) -> dict[str, str]:
        return {"classifier": classifier_fingerprint(check_classifier_path(self.classifier))}

    def choose(self, domains: Mapping[Role, Domain | None]) -> Domains:
        chosen = super().choose(domains)
        target = chosen["target"]
        depth, *sides = target.shape
        check_factor("down_N", self.down_N, *sides)
        classifier = load_classifier(self.classifier, device="meta")
        if target.space != "pixels" or depth != classifier.channels:
            raise BadValue(
                "classifier",
                f"classifier: {self.classifier} is of images of {classifier.channels} channels, "
                f"target {target.name!r} works on {depth} channels of {target.space}",
            )
        difference = target.schedule.difference(classifier.schedule)
        if difference is not None:
            raise BadValue(
                "classifier",
                f"classifier: the noise schedules of target {target.name!r} and of "
                f"{self.classifier} differ in {difference}",
            )
        return chosen

    def stream(self, domains: Domains, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states of the target's chain, as often as it is run."""
        target, y = domains["target"].denoiser, x_0
        grid = self.grid(target.schedule)
        for turn in range(self.repeats):
            # The first chain's are SDEdit's own noises.
            purpose = "sdedit" if turn == 0 else f"sdedit {turn}"
            drawn = noise(f"{purpose} start", grid.start, x_0)
            start = add_noise(y, drawn, target.schedule.alpha_bar(grid.start))
            guided = self._guided(x_0, drawn, target.schedule)
            for y in reverse_chain(
                target, start, grid=grid, eta=self.eta, noise=noise, purpose=purpose, adjust=guided
            ):
                yield y

    def _guided(self, x_0: Tensor, drawn: Tensor, schedule: NoiseSchedule) -> Adjust:
        """What moves the states that the steps of one chain reach."""

        def moved(y_t: Tensor, y_s: Tensor, t: int, s: int) -> Tensor:
            x_t = add_noise(x_0, drawn, schedule.alpha_bar(t))
            beta = 1 - schedule.alpha_bar(t) / schedule.alpha_bar(s)
            gradient = self.gradient(y_t, x_t, t)
            return y_s if gradient is None else y_s - beta / sqrt(1 - beta) * gradient

        return moved

    def gradient(self, y_t: Tensor, x_t: Tensor, t: int) -> Tensor | None:
        """Of the weighted energies of all images in y_t; (B, C, H, W), None if both weights are 0.

        Args:
            y_t: states (B, C, H, W).
            x_t: the noised images, same shape.
            t: timestep of both.
        """
        with torch.autocast(y_t.device.type, enabled=False):
            return self._gradient(y_t.detach().requires_grad_(), x_t, t)

    def _gradient(self, y: Tensor, x_t: Tensor, t: int) -> Tensor | None:
        energy: Tensor | None = None
        if self.lambda_s:
            nn.Module.to(self.extractor.network, device=y.device)
            with torch.no_grad():
                wanted = self.extractor.features(x_t, t)
            alike = likeness(self.extractor.features(y, t), wanted, self.realism)
            energy = self.lambda_s * alike.sum()
        if self.lambda_i:
            ys, xs = (low_pass(z, self.down_N, "linear") for z in (y, x_t))
            unlike = -self.lambda_i * likeness(ys, xs, self.faithfulness).sum()
            energy = unlike if energy is None else energy + unlike
        if energy is None:
            return None
        (gradient,) = torch.autograd.grad(energy, y)
        return gradient
