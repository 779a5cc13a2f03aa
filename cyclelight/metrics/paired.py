"""Paired differences: two methods on the same images, with an interval of confidence.

Images differ far more from one another than methods do, so that the difference of each image tells
what two means with their errors do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyclelight.errors import BadValue, at_least

BLOCK = 2**22
"""Numbers that are drawn at a time."""


@dataclass(frozen=True)
class Difference:
    """The mean difference of one method from another over images.

    Args:
        mean: of the differences.
        low: the lower end of its interval of confidence.
        high: the upper end.
        n: number of images.
    """

    mean: float
    low: float
    high: float
    n: int


def paired_difference(
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The mean of values - baseline, image by image, with a bootstrap interval.

    The images are drawn anew, with replacement, and the interval holds the middle share
    `confidence` of the means (the percentile interval of Efron 1979). It is widened by
    sqrt(n / (n - 1)), as the spread of a sample is that much below that of what it comes from
    (Hesterberg 2015, sec. 3.2). It says nothing of other seeds or of other trainings.

    Args:
        values: of one method, one for each of n images.
        baseline: of the other one, in the same order.
        confidence: above 0 and below 1.
        resamples: how often images are drawn.
        seed: of the draws.

    Raises:
        ValueError: there are not as many of both, fewer than 2, one is not finite, or an argument
            is out of range.
    """
    at_least(1, resamples=resamples)
    if not 0 < confidence < 1:
        raise BadValue("confidence", f"confidence must be in (0, 1), got {confidence}")
    n = len(values)
    if n != len(baseline) or n < 2:
        raise BadValue(
            "baseline",
            f"baseline: both need values of the same 2 images or more, got {n} and {len(baseline)}",
        )
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    if not np.isfinite(differences).all():
        raise BadValue("values", "values: all must be finite, and those of the baseline")
    generator, means = np.random.default_rng(seed), list[np.ndarray]()
    rows = max(1, BLOCK // n)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, n, (min(rows, resamples - start), n))
        means.append(differences[drawn].mean(axis=1))
    mean, wider = math.fsum(differences) / n, math.sqrt(n / (n - 1))
    ends = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = (mean + wider * (float(end) - mean) for end in ends)
    return Difference(mean, low, high, n)
