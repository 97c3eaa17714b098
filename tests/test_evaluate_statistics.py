"""Intervals and the paired test against published and hand-computed values."""

import math
from math import comb

import pytest

from sttm.evaluation.statistics import mcnemar_exact, relative_interval, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_stays_within_zero_and_one() -> None:
    low, high = wilson(15, 148)
    assert wilson(133, 148) == pytest.approx((1 - high, 1 - low))
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 20)[0] == 0.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 0) == 1.0


def test_mcnemar_equals_the_exact_binomial_sum_and_does_not_care_which_side_won() -> None:
    for n in range(1, 41):
        for lost in range(n + 1):
            k = min(lost, n - lost)
            exact = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
            assert mcnemar_exact(lost, n - lost) == pytest.approx(exact)
            assert mcnemar_exact(lost, n - lost) == mcnemar_exact(n - lost, lost)


def test_mcnemar_of_thousands_of_differences_does_not_underflow() -> None:
    lost, gained = 1100, 1000
    z = (lost - gained - 1) / math.sqrt(lost + gained)  # normal approximation with continuity correction
    assert mcnemar_exact(lost, gained) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


def test_relative_interval_of_equal_systems_is_one() -> None:
    assert relative_interval([3, 0, 5], [3, 0, 5]) == (1.0, 1.0)
    assert all(math.isnan(end) for end in relative_interval([0, 0], [0, 0]))


def test_relative_interval_covers_the_ratio_and_shrinks_with_more_videos() -> None:
    ours, full = [9, 8, 10, 7], [10, 10, 10, 8]
    low, high = relative_interval(ours, full)
    assert low < sum(ours) / sum(full) < high
    low_many, high_many = relative_interval(ours * 25, full * 25)
    assert high_many - low_many < (high - low) / 3


def test_relative_interval_is_wider_when_a_video_loses_all_its_questions_at_once() -> None:
    """The same number of questions lost: spread over all videos, or all of one video in ten."""
    spread = relative_interval([9] * 100, [10] * 100)
    clustered = relative_interval([10] * 90 + [0] * 10, [10] * 100)
    assert clustered[1] - clustered[0] > 0.1 > spread[1] - spread[0]
