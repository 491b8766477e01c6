"""Thresholds by order statistics of client-weeks, exact in finite samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Chance that a week has more than N false pages.
RISK = 0.05
#: A chance equal to the risk fits, whatever the last bits of its computation say.
SLACK = 1.0 + 1e-9
#: More client-weeks than this are not asked for; the search ends there.
MOST_UNITS = 10**9


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold and what it promises.

    Attributes
    ----------
    value : float
        Page where the statistic is larger (strictly).
    rank : int
        It is the `rank`-th largest of the calibration maxima.
    units : int
        Calibration maxima, m.
    expected : float
        Mean number of the coming week's units that exceed it.
    excess : float
        Chance that more than N do.
    """

    value: float
    rank: int
    units: int
    expected: float
    excess: float


def excess_chance(coming: int, rank: int, units: int, most: int) -> float:
    """P(more than `most` of `coming` units exceed the `rank`-th largest of `units` exchangeable ones).

    The number that exceed it is beta-binomial (coming, rank, units + 1 - rank) where no two values are equal; equal
    values only make it smaller, as a page needs a strictly larger one.
    """
    from scipy.stats import betabinom

    if most >= coming:
        return 0.0
    return float(betabinom.sf(most, coming, rank, units + 1 - rank))


def best_rank(coming: int, units: int, most: int, risk: float = RISK) -> int:
    """The largest rank with `excess_chance` <= `risk`; 0 where there is none."""
    low, high = 0, units
    while low < high:
        middle = (low + high + 1) // 2
        if excess_chance(coming, middle, units, most) <= risk * SLACK:
            low = middle
        else:
            high = middle - 1
    return low


def units_needed(coming: int, most: int, risk: float = RISK, rank: int = 1) -> int:
    """The fewest calibration units with which this rank fits."""
    high = rank
    while excess_chance(coming, rank, high, most) > risk * SLACK and high < MOST_UNITS:
        high *= 2
    low = rank - 1
    while high - low > 1:
        middle = (low + high) // 2
        if excess_chance(coming, rank, middle, most) <= risk * SLACK:
            high = middle
        else:
            low = middle
    return high


def least_budget(coming: int, units: int, risk: float = RISK) -> int:
    """The smallest N with which some rank fits so many calibration units, 1 or more."""
    larger = np.arange(1, units + 1) + coming

    def chance(most: int) -> float:
        """`excess_chance` at rank 1: the `most` + 1 largest of all are of the coming week. No sum over counts."""
        return float(np.exp(np.log1p(-(most + 1) / larger).sum()))

    low, high = -1, coming
    while high - low > 1:
        middle = (low + high) // 2
        if chance(middle) <= risk * SLACK:
            high = middle
        else:
            low = middle
    return high


def most_expected(coming: int, most: int, risk: float = RISK) -> float:
    """Mean number of pages a week with endless calibration: C q with P(binomial(C, q) > `most`) = `risk`."""
    from scipy.stats import beta

    return float(coming) if most >= coming else coming * float(beta.ppf(risk, most + 1, coming - most))


def threshold(maxima: NDArray[np.float64], coming: int, most: int, risk: float = RISK) -> Threshold | None:
    """The lowest threshold that at most `most` of `coming` units exceed, but with chance `risk`; None if none fits.

    Parameters
    ----------
    maxima : float64 (m,)
        The largest value of the statistic in each calibration unit (a client-week).
    coming : int
        Units of the week to come.
    most : int
        Budget N.
    risk : float
        Chance of more, over calibration and coming week together.
    """
    units = len(maxima)
    rank = best_rank(coming, units, most, risk) if units else 0
    if rank == 0:
        return None
    return at_rank(maxima, rank, coming, most)


def at_rank(maxima: NDArray[np.float64], rank: int, coming: int, most: int) -> Threshold:
    """The threshold at a given rank, and what it promises."""
    units = len(maxima)
    value = float(np.partition(maxima, units - rank)[units - rank])
    expected = coming * rank / (units + 1.0)
    return Threshold(value, rank, units, expected, excess_chance(coming, rank, units, most))
