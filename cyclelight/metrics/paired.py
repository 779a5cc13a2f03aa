"""Paired differences: two methods on the same images, with an interval of confidence.

Images differ far more from one another than methods do, so that the difference of each image tells
what two means with their errors do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from cyclelight.errors import BadValue

ANGLES = 400_001
"""Of the integral of a density."""


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
    values: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95
) -> Difference:
    """The mean of values - baseline, image by image, with Student's interval.

    The interval is mean +- t s / sqrt(n), where s is the standard deviation of the differences and
    t the quantile for n - 1 degrees of freedom (Student 1908). It is about other images of the same
    kind, and says nothing of other seeds or other trainings.

    Args:
        values: of one method, one for each of n images.
        baseline: of the other one, in the same order.
        confidence: above 0 and below 1.

    Raises:
        ValueError: there are not as many of both, fewer than 2, one is not finite, or `confidence`
            is out of range.
    """
    if not 0 < confidence < 1:
        raise BadValue("confidence", f"confidence must be in (0, 1), got {confidence}")
    n = len(values)
    if n != len(baseline) or n < 2:
        raise BadValue(
            "baseline",
            f"baseline: both need values of the same 2 images or more, got {n} and {len(baseline)}",
        )
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise BadValue("values", "values: all must be finite, and those of the baseline")
    mean = math.fsum(differences) / n
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    reach = student_quantile(confidence, n - 1) * deviation / math.sqrt(n)
    return Difference(mean, mean - reach, mean + reach, n)


@cache
def student_quantile(confidence: float, degrees: int) -> float:
    """The t between which and -t lies a share of Student's distribution.

    With t = sqrt(degrees) tan(angle) its density is proportional to cos(angle)^(degrees - 1), on a
    bounded interval, where it is summed up.

    Args:
        confidence: the share, above 0 and below 1.
        degrees: of freedom, 1 or more.
    """
    angles = np.linspace(0, math.pi / 2, ANGLES)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(np.interp(confidence * below[-1], below, angles))
