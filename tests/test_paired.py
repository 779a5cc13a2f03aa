"""Paired differences against another library, a closed form, and their own promise."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from cyclelight.metrics.paired import Difference, paired_difference


def test_the_interval_is_that_of_another_library() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.exponential(1, 30), generator.exponential(2, 30)
    found = paired_difference(a.tolist(), b.tolist(), resamples=40_000)
    other = bootstrap(
        (a - b,), np.mean, n_resamples=40_000, method="percentile", random_state=2
    ).confidence_interval
    mean, wider = (a - b).mean(), math.sqrt(30 / 29)
    assert found.mean == pytest.approx(mean) and found.n == 30
    # Two ends of 40,000 draws each.
    assert found.low == pytest.approx(mean + wider * (other.low - mean), abs=0.03)
    assert found.high == pytest.approx(mean + wider * (other.high - mean), abs=0.03)


def test_of_many_images_it_is_the_normal_one() -> None:
    differences = np.random.default_rng(0).normal(0.1, 2.0, 4000)
    found = paired_difference(differences.tolist(), [0.0] * 4000, confidence=0.9)
    reach = 1.6449 * differences.std(ddof=1) / math.sqrt(4000)
    assert found.high - found.mean == pytest.approx(reach, rel=0.05)
    assert found.mean - found.low == pytest.approx(reach, rel=0.05)


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(3), 0
    for _ in range(400):
        # Whether each of 40 images is taken for a dog, after one method and after another.
        a, b = generator.random(40) < 0.8, generator.random(40) < 0.6
        found = paired_difference(a.tolist(), b.tolist(), resamples=1000)
        held += found.low <= 0.2 <= found.high
    # 95 %, with three standard errors of 400 trials.
    assert held / 400 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 400))


def test_what_all_images_share_has_no_width() -> None:
    values = [0.25, 3.5, -7.0, 0.0]
    found = paired_difference([value + 0.5 for value in values], values)
    assert found == Difference(0.5, 0.5, 0.5, 4)
    assert paired_difference(values, values[::-1]) == paired_difference(values, values[::-1])


@pytest.mark.parametrize(
    ("values", "options", "says"),
    [
        ([1.0], {}, "the same 2 images or more, got 1 and 2"),
        ([1.0, math.nan], {}, "all must be finite"),
        ([1.0, math.inf], {}, "all must be finite"),
        ([1.0, 2.0], {"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
        ([1.0, 2.0], {"resamples": 0}, "resamples must be at least 1"),
    ],
)
def test_refusals(values: list[float], options: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        paired_difference(values, [0.0, 0.0], **options)  # type: ignore[arg-type]
