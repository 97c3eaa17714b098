"""Three statistics: an interval for a share, a paired test of two systems, and an interval for a ratio of shares."""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Interval for a binomial share (Wilson 1927).

    wilson(8, 10) -> (0.490, 0.943). Without trials nothing is known, so that the interval is (0, 1).

    Args:
        successes, trials: the counts.
        z: quantile of the normal distribution; 1.96 covers the true share in about 95 % of samples.
    """
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, z * z
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p-value that right answers lost and gained are equally likely (McNemar 1947, exact binomial form).

    Args:
        lost: number of questions that only the first of two systems answers rightly.
        gained: number of questions that only the second one answers rightly.
    """
    n, k = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    # Logarithms, because 2 ** -n is zero in floating point from n = 1075 on.
    terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(t) for t in terms))


def relative_interval(
    right: Sequence[int], right_full: Sequence[int], resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval for sum(right) / sum(right_full), by resampling whole videos (paired cluster bootstrap).

    Questions about one video depend on one another. An interval that took them as independent would be too narrow.

    Args:
        right: number of right answers about each video with the reduced tokens.
        right_full: number of right answers about each video with all tokens.
        resamples: how often the videos are drawn anew for Efron's percentile interval.
        seed: makes the drawing repeatable.

    Returns:
        The ends of the interval; NaN where no answer is right with all tokens.
    """
    ours, full = np.asarray(right, float), np.asarray(right_full, float)
    if full.sum() == 0:
        return math.nan, math.nan
    rng, n = np.random.default_rng(seed), len(full)
    ratios = []
    for _ in range(resamples):
        drawn = rng.integers(0, n, n)
        if total := full[drawn].sum():
            ratios.append(ours[drawn].sum() / total)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)
