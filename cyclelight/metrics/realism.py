"""How near the distribution of images is to a reference, from their features.

Features are floating point (n, D), one row per image, on any device; sums are taken in float64,
block by block: beside the features, memory does not grow with n.
"""

from collections.abc import Collection, Iterable
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from cyclelight.errors import at_least

IMAGENET_CLASSES: dict[str, Collection[int]] = {
    "cat": range(281, 286),
    "dog": range(151, 269),
    "wild": (*range(269, 281), *range(286, 294)),
}
"""Which of ImageNet's 1000 classes (ILSVRC 2012, in the order of their synsets) a domain covers."""

# Kernel values, or numbers of features, held at a time: 64 MiB in float64.
BLOCK = 2**23


class Estimate(NamedTuple):
    """A value, and how far it would move if the images were drawn again."""

    value: float
    standard_error: float


def fid(features: Tensor, reference: Tensor) -> float:
    """The Frechet distance of two Gaussians with the sets' means and covariances (divisor n - 1).

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Heusel et al. 2017, Eq. 6)

    It is biased upwards, the more the fewer images: compare at equal n only.

    Raises:
        ValueError: a set has fewer than 2 rows, NaN or infinite values, or another D.
    """
    _check_pair(features, reference)
    means = _mean(features), _mean(reference)
    # With S_x = X^T X and S_y = Y^T Y, the eigenvalues of S_x S_y are the squared singular values
    # of X Y^T: no matrix root is taken, and singular covariances are nothing special.
    x, y = _covariance_root(features, means[0]), _covariance_root(reference, means[1])
    shift = means[0] - means[1]
    traces = x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    # A squared distance; of equal sets, rounding may leave -1e-14.
    return max(0.0, float(shift.square().sum() + traces))


def kid(
    features: Tensor,
    reference: Tensor,
    *,
    subset_size: int | None = None,
    subsets: int = 100,
    seed: int = 0,
) -> Estimate:
    """The unbiased squared MMD under the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, sec. 4).

    Args:
        features: of the images to be judged.
        reference: features of what they should look like.
        subset_size: None takes the whole sets, and the standard error is the jackknife's (leaving
            out one image at a time, of both sets); where both sets follow one distribution, it errs
            upwards, by up to a factor sqrt(2). A number is clean-fid's protocol: the mean over
            `subsets` draws, without replacement, of this many images, or of all those of the
            smaller set; the second number then is the standard deviation over draws, which is no
            standard error. If every draw would be both whole sets, they are taken once, as with
            None.
        subsets: number of draws.
        seed: of the draws.

    Returns:
        Unscaled values; the standard error of whole sets is NaN below 3 rows.

    Raises:
        ValueError: a set has fewer than 2 rows, NaN or infinite values, or another D; a number is
            out of range.
    """
    _check_pair(features, reference)
    x, y = features, reference
    if subset_size is not None:
        at_least(2, subset_size=subset_size)
    at_least(1, subsets=subsets)
    if subset_size is None or subset_size >= len(x) == len(y):
        return _squared_mmd(x, y)
    size = min(subset_size, len(x), len(y))
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)]

    values = [_squared_mmd(draw(x), draw(y)).value for _ in range(subsets)]
    spread, mean = torch.std_mean(torch.tensor(values, dtype=torch.float64), correction=0)
    return Estimate(float(mean), float(spread))


def class_rate(labels: Tensor, classes: Collection[int]) -> Estimate:
    """The share of images that a classifier puts into `classes`, with its binomial standard error.

    Args:
        labels: the class of each image, integers (n,).
        classes: such as those of `IMAGENET_CLASSES`.

    Raises:
        ValueError: no labels, or none that are integers, or no classes.
    """
    if labels.ndim != 1 or len(labels) < 1 or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape (n,) with n >= 1, got {_describe(labels)}"
        )
    if not classes:
        raise ValueError("classes must be at least one, got none")
    wanted = torch.tensor(list(classes), device=labels.device)
    share = float(torch.isin(labels, wanted).double().mean())
    return Estimate(share, (share * (1 - share) / len(labels)) ** 0.5)


def _blocks(rows: Tensor) -> Iterable[Tensor]:
    return (block.double() for block in torch.split(rows, max(1, BLOCK // rows.shape[1])))


def _mean(rows: Tensor) -> Tensor:
    return torch.stack([block.sum(0) for block in _blocks(rows)]).sum(0) / len(rows)


def _covariance_root(rows: Tensor, mean: Tensor) -> Tensor:
    """A matrix R of at most D rows such that R^T R is the covariance."""
    root = mean.new_empty(0, len(mean))
    for block in _blocks(rows):
        # R^T R of what came before, and of this.
        root = torch.cat([root, (block - mean) / (len(rows) - 1) ** 0.5])
        if len(root) > len(mean):
            root = torch.linalg.qr(root, mode="r").R
    return root


def _squared_mmd(x: Tensor, y: Tensor) -> Estimate:
    n, m = len(x), len(y)
    (xx, _), (yy, _) = _kernel_sums(x, x, within=True), _kernel_sums(y, y, within=True)
    xy, yx = _kernel_sums(x, y)

    def squared_mmd(xx: Tensor, yy: Tensor, xy: Tensor, n: int, m: int) -> Tensor:
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

    in_x, in_y, across = xx.sum(), yy.sum(), xy.sum()
    value = float(squared_mmd(in_x, in_y, across, n, m))
    if min(n, m) < 3:
        return Estimate(value, float("nan"))
    # Without row i, its sums are missing: those within its set twice, those across once.
    without_x = squared_mmd(in_x - 2 * xx, in_y, across - xy, n - 1, m)
    without_y = squared_mmd(in_x, in_y - 2 * yy, across - yx, n, m - 1)
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return Estimate(value, float(variance.sqrt()))


def _kernel_sums(x: Tensor, y: Tensor, *, within: bool = False) -> tuple[Tensor, Tensor]:
    """The kernel matrix of x and y, summed along its rows and its columns.

    With `within`, x is y, and the diagonal counts as 0.
    """
    side = isqrt(BLOCK)
    rows, columns = (torch.zeros(len(z), dtype=torch.float64, device=z.device) for z in (x, y))
    for i in range(0, len(x), side):
        x_i = x[i : i + side].double()
        # Within a set the matrix is symmetric: one half of it gives the other.
        for j in range(i if within else 0, len(y), side):
            y_j = y[j : j + side].double()
            kernel = (x_i @ y_j.T).div_(x.shape[1]).add_(1).pow_(3)
            if within and i == j:
                kernel.fill_diagonal_(0)
            rows[i : i + side] += kernel.sum(1)
            if not within or i != j:
                columns[j : j + side] += kernel.sum(0)
    return (rows + columns, rows + columns) if within else (rows, columns)


def _check_pair(features: Tensor, reference: Tensor) -> None:
    for name, rows in (("features", features), ("reference", reference)):
        if rows.ndim != 2 or not rows.is_floating_point() or len(rows) < 2:
            told = f"{name} must be floating point, of shape (n, D) with n >= 2"
            raise ValueError(f"{told}, got {_describe(rows)}")
        if not all(block.isfinite().all() for block in _blocks(rows)):
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features and reference must come from one network, "
            f"got rows of {features.shape[1]} and {reference.shape[1]} numbers"
        )


def _describe(rows: Tensor) -> str:
    if rows.is_floating_point() and not torch.isfinite(rows).all():
        return "NaN or infinite values"
    return f"{rows.dtype} of shape {tuple(rows.shape)}"
