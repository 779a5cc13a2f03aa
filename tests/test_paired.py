"""Paired differences against another library, a closed form, and their own promise."""

import math

import numpy as np
import pytest
from scipy import stats

from cyclelight.metrics.paired import Difference, paired_difference, student_quantile


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 39, 1000, 1_000_000])
def test_the_quantile_is_that_of_another_library(degrees: int, confidence: float) -> None:
    wanted = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_quantile(confidence, degrees) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("n", [2, 5, 60])
def test_the_interval_is_that_of_another_library(n: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.exponential(1, n), generator.exponential(2, n)
    found = paired_difference(a.tolist(), b.tolist(), confidence=0.9)
    wanted = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-5)
    assert found.mean == pytest.approx((a - b).mean()) and found.n == n


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(3), 0
    for _ in range(400):
        # Whether each of 40 images is taken for a dog, after one method and after another.
        a, b = generator.random(40) < 0.8, generator.random(40) < 0.6
        found = paired_difference(a.astype(float).tolist(), b.astype(float).tolist())
        held += found.low <= 0.2 <= found.high
    # 95 %, with three standard errors of 400 trials.
    assert held / 400 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 400))


def test_what_all_images_share_has_no_width() -> None:
    values = [0.25, 3.5, -7.0, 0.0]
    found = paired_difference([value + 0.5 for value in values], values)
    assert found == Difference(0.5, 0.5, 0.5, 4)


@pytest.mark.parametrize(
    ("values", "confidence", "says"),
    [
        ([1.0], 0.95, "the same 2 images or more, got 1 and 2"),
        ([1.0, math.nan], 0.95, "all must be finite"),
        ([1.0, math.inf], 0.95, "all must be finite"),
        ([1.0, 2.0], 1.0, r"confidence must be in \(0, 1\), got 1.0"),
    ],
)
def test_refusals(values: list[float], confidence: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        paired_difference(values, [0.0, 0.0], confidence=confidence)
