"""How well two ways of measuring the same slides agree: limits of agreement, and the intraclass correlation.

Bland and Altman (1986), Lancet 327:307-310; Shrout and Fleiss (1979), Psychol Bull 86:420-428; the interval of the
intraclass correlation as in McGraw and Wong (1996), Psychol Methods 1:30-46.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtri, stdtrit

# Two-sided 95 %: share below the upper quantile.
UPPER = 0.975
# Limits of agreement hold 95 % of the differences of a normal distribution: that many standard deviations.
LIMITS_SD = 1.96


@dataclass(frozen=True)
class BlandAltman:
    """Differences of N pairs, in the unit of what was measured.

    Attributes:
        mean: (N,) mean of each pair.
        difference: (N,) second minus first.
        bias: mean difference; bias_low, bias_high its 95 % interval.
        low, high: limits of agreement.
    """

    mean: np.ndarray
    difference: np.ndarray
    bias: float
    bias_low: float
    bias_high: float
    low: float
    high: float


@dataclass(frozen=True)
class IntraclassCorrelation:
    """ICC(2,1) and its 95 % interval; NaN where all values are the same."""

    icc: float
    low: float
    high: float


def bland_altman(first: np.ndarray, second: np.ndarray) -> BlandAltman:
    """Describe the differences between two measurements of the same things.

    Args:
        first, second: (N,) float64, N >= 2.

    Raises:
        ValueError: there are fewer than two pairs.
    """
    first, second = _pairs(first, second)
    difference = second - first
    bias, sd, n = float(difference.mean()), float(difference.std(ddof=1)), len(difference)
    half = float(stdtrit(n - 1, UPPER)) * sd / np.sqrt(n)
    return BlandAltman(
        mean=(first + second) / 2,
        difference=difference,
        bias=bias,
        bias_low=float(bias - half),
        bias_high=float(bias + half),
        low=bias - LIMITS_SD * sd,
        high=bias + LIMITS_SD * sd,
    )


def icc_2_1(ratings: np.ndarray) -> IntraclassCorrelation:
    """Return ICC(2,1): two-way random effects, absolute agreement, of a single rating.

    Args:
        ratings: (N, K) float64, N things rated by K raters each, N and K >= 2.

    Raises:
        ValueError: there are fewer than two of either.
    """
    ratings = np.asarray(ratings, np.float64)
    if ratings.ndim != 2 or min(ratings.shape) < 2:
        raise ValueError(f"agreement needs two slides and two measurements of each, got an array {ratings.shape}")
    n, k = ratings.shape
    total = ratings.mean()
    of_rows, of_columns = ratings.mean(axis=1), ratings.mean(axis=0)
    rows = k * ((of_rows - total) ** 2).sum() / (n - 1)
    columns = n * ((of_columns - total) ** 2).sum() / (k - 1)
    rest = ratings - of_rows[:, None] - of_columns + total
    error = (rest**2).sum() / ((n - 1) * (k - 1))
    below = rows + (k - 1) * error + k * (columns - error) / n
    if below <= 0:
        return IntraclassCorrelation(*[float("nan")] * 3)
    icc = (rows - error) / below
    return IntraclassCorrelation(float(icc), *_interval(icc, (rows, columns, error), n, k))


def _interval(icc: float, squares: tuple[float, float, float], n: int, k: int) -> tuple[float, float]:
    """Return the 95 % interval from the mean squares of rows, columns and error."""
    rows, columns, error = squares
    if error == 0:
        return (1.0, 1.0) if icc == 1 else (float("nan"), float("nan"))
    by_columns, by_rows = k * icc * columns / error, n * (1 + (k - 1) * icc) - k * icc
    freedom = (k - 1) * (n - 1) * (by_columns + by_rows) ** 2 / ((n - 1) * by_columns**2 + by_rows**2)
    above, below = fdtri(n - 1, freedom, UPPER), fdtri(freedom, n - 1, UPPER)
    mixed = k * columns + (k * n - k - n) * error
    low = n * (rows - above * error) / (above * mixed + n * rows)
    high = n * (below * rows - error) / (mixed + n * below * rows)
    return float(low), float(high)


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"agreement needs at least two slides measured twice, got {first.shape} and {second.shape}")
    return first, second
