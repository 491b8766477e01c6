"""Thresholds of all statistics of a client, combined so that one count holds for all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.order_statistics import Threshold, at_rank

#: No threshold is lower: a statistic that no benign client-week has shown at all still needs some evidence.
LEAST_THRESHOLD = 1e-3


@dataclass(frozen=True, slots=True)
class Combined:
    """Thresholds (s,) of several statistics, and the count of units in which any of them is crossed.

    The combination is max over statistics of statistic / own threshold; its unit maxima are calibrated as one.
    """

    values: NDArray[np.float64]
    count: Threshold


def combine(maxima: Sequence[NDArray[np.float64]], rank: int, coming: int, most: int) -> Combined:
    """Thresholds at the `rank`-th largest unit maximum of each statistic, scaled by that of the combination.

    Parameters
    ----------
    maxima : sequence of float64 (m,)
        Of each statistic, over the same units.
    rank : int
    coming, most : int
        Units of the week to come, and the budget.
    """
    own = np.array([max(LEAST_THRESHOLD, at_rank(part, rank, coming, most).value) for part in maxima])
    together = np.max([part / threshold for part, threshold in zip(maxima, own, strict=True)], axis=0)
    count = at_rank(together, rank, coming, most)
    return Combined(own * max(count.value, np.finfo(np.float64).tiny), count)
