"""How near an image is to another one, its source or the right result, one value per image.

The definitions are those of CycleDiffusion's program (Wu and De la Torre 2023), in float64. Images
are uint8 (B, H, W, C), grey ones judged as of three equal channels; values are float64 (B,), on the
images' device.
"""

from pickle import UnpicklingError
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights

from cyclelight.diffusion.pixels import MODES, three_channels, to_float
from cyclelight.errors import first_line, one_of
from cyclelight.metrics.weights import WeightFile

Backbone = Literal["alex", "vgg", "squeeze"]

IDENTICAL_PSNR = 100.0
"""In dB, by convention: the mean over images must stay finite."""
CANDIDATES = 512
"""Of which distances are taken at a time."""


def psnr(images: Tensor, sources: Tensor) -> Tensor:
    """10 log10(1 / MSE) in dB, the MSE over all pixels and channels on [0, 1]; 100 if identical.

    Raises:
        ValueError: not two uint8 batches (B, H, W, C) of one shape.
    """
    error = mse(images, sources)
    return torch.where(error > 0, -10 * error.log10(), IDENTICAL_PSNR)


def ssim(images: Tensor, sources: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), <= 1.

    Gaussian window of 11 x 11 pixels and sigma 1.5, each channel alone on 0..255, over the region
    where the window fits; K1 = 0.01, K2 = 0.03, population covariance.

    Raises:
        ValueError: not two uint8 batches (B, H, W, C) of one shape, or smaller than the window.
    """
    # torchmetrics' own mean takes in the border, where its window sees mirrored pixels.
    return _similarity(images, sources)[..., 5:-5, 5:-5].mean((1, 2, 3))


def whole_ssim(images: Tensor, sources: Tensor) -> Tensor:
    """`ssim` over the whole frame, beyond which pixels are mirrored, as torchmetrics takes it.

    Raises:
        ValueError: as `ssim`.
    """
    return _similarity(images, sources).mean((1, 2, 3))


def _similarity(images: Tensor, sources: Tensor) -> Tensor:
    _check_pair("ssim", images, sources, at_least=11)
    _, similarity = structural_similarity_index_measure(
        images.movedim(-1, 1).double(),
        sources.movedim(-1, 1).double(),
        sigma=1.5,
        data_range=255.0,
        reduction="none",
        return_full_image=True,
    )
    return similarity


def mse(images: Tensor, sources: Tensor) -> Tensor:
    """The mean squared difference of all pixels and channels on [0, 1].

    Raises:
        ValueError: not two uint8 batches (B, H, W, C) of one shape.
    """
    return _difference(images, sources).square().mean((1, 2, 3))


def l2(images: Tensor, sources: Tensor) -> Tensor:
    """The Euclidean norm of the whole difference on [0, 1]; it grows with the number of pixels.

    Raises:
        ValueError: not two uint8 batches (B, H, W, C) of one shape.
    """
    return _difference(images, sources).square().sum((1, 2, 3)).sqrt()


def square_distances(images: Tensor, others: Tensor) -> Tensor:
    """|a - b|^2 over pixels and channels, of each image with each other one: float64 (B, N), exact.

    Args:
        images: uint8 (B, H, W, C).
        others: uint8 (N, H, W, C), on whatever device.
    """
    a, found = images.flatten(1).double(), []
    for part in torch.split(others, CANDIDATES):
        b = part.to(a.device).flatten(1).double()
        # Of integers, which float64 holds exactly.
        found.append(a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T)
    return torch.cat(found, dim=1)


class NearestIsTruth:
    """Whether no candidate is nearer to an image than its truth, by L2 on pixels: 1 or 0.

    The truth counts as a candidate; those that look like it are it. Distances are exact.

    Args:
        candidates: uint8 (N, H, W, C).
    """

    def __init__(self, candidates: Tensor) -> None:
        self.candidates = candidates

    def __call__(self, images: Tensor, truths: Tensor) -> Tensor:
        """uint8 (B, H, W, C) each => float64 (B,).

        Raises:
            ValueError: not two uint8 batches (B, H, W, C) of one shape.
        """
        _check_pair("nearest is truth", images, truths)
        distance = (images.flatten(1).double() - truths.flatten(1).double()).square().sum(1)
        nearest = square_distances(images, self.candidates).amin(1)
        return (distance <= nearest).double()


class Lpips(nn.Module):
    """LPIPS (Zhang et al. 2018), version 0.1, by torchmetrics. Nothing is ever downloaded.

    Args:
        backbone: the network that sees the images. `alex` is what papers mean by LPIPS.

    Raises:
        FileNotFoundError: the backbone's ImageNet weights are missing; the message says what to
            download and where to put it.
        ValueError: they cannot be read, or there is no such backbone.
    """

    def __init__(self, backbone: Backbone = "alex") -> None:
        super().__init__()
        one_of(get_args(Backbone), backbone=backbone)
        model = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[backbone]
        file = WeightFile(get_model_weights(model).DEFAULT.url, "", "LPIPS")
        if file.find() is None:
            raise FileNotFoundError(f"LPIPS needs the weights of {model}: {file.wanted()}")
        try:
            metric = LearnedPerceptualImagePatchSimilarity(net_type=backbone)
        except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
            raise ValueError(f"LPIPS cannot read {file.home}: {first_line(error)}") from error
        self.network = metric.net

    def forward(self, images: Tensor, sources: Tensor) -> Tensor:
        """uint8 (B, H, W, C) each, at least 31 pixels wide and high => float64 (B,), >= 0.

        Raises:
            ValueError: not two uint8 batches (B, H, W, C) of one shape, or too small.
        """
        _check_pair("lpips", images, sources, at_least=31)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            values = self.network(*(to_float(three_channels(x)) for x in (images, sources)))
        return values.flatten().double()


def _difference(images: Tensor, sources: Tensor) -> Tensor:
    _check_pair("the metric", images, sources)
    return three_channels(images.double() - sources.double()) / 255


def _check_pair(metric: str, images: Tensor, sources: Tensor, at_least: int = 1) -> None:
    for name, batch in (("images", images), ("sources", sources)):
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[-1] not in MODES:
            raise ValueError(
                f"{name} must be uint8 of shape (B, H, W, 3) or (B, H, W, 1), "
                f"got {batch.dtype} of shape {tuple(batch.shape)}"
            )
    if images.shape != sources.shape:
        raise ValueError(
            f"images and sources must have one shape, "
            f"got {tuple(images.shape)} and {tuple(sources.shape)}"
        )
    if min(images.shape[1:3]) < at_least:
        height, width = images.shape[1:3]
        raise ValueError(
            f"images must be at least {at_least} x {at_least} pixels for {metric}, "
            f"got {height} x {width}"
        )
