"""Thresholds of all statistics of a client, combined so that one count holds for all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.order_statistics import Threshold, at_rank

#: No scale is smaller: a statistic that no unit has shown at all still needs some evidence.
LEAST_SCALE = 1e-3
#: Thresholds are this much larger than the product that they come from, so that rounding pages nobody.
ROUNDING = 1.0 + 1e-12

#: The two statistics that page in intent mode share one count. How clearly the intent test speaks goes in with this
#: power, so that a client that is odd in the sequential test (by a factor of 5, say) hardly moves what intent needs.
CLEAR_POWER = 8


@dataclass(frozen=True, slots=True)
class Combined:
    """Thresholds (s,) of several statistics, and the count of units in which any of them is crossed."""

    values: NDArray[np.float64]
    count: Threshold


def combine(
    maxima: Sequence[NDArray[np.float64]], scales: NDArray[np.float64], rank: int, coming: int, most: int
) -> Combined:
    """Thresholds at the `rank`-th largest unit maximum of the largest statistic / scale.

    The count is exact as long as the scales were not learned from these units: with scales from the very same, three
    statistics were measured to page three times as often.

    Parameters
    ----------
    maxima : sequence of float64 (m,)
        Of each statistic, over the same units.
    scales : float64 (s,)
        What makes the statistics comparable.
    rank : int
    coming, most : int
        Units of the week to come, and the budget.
    """
    together = np.max([part / scale for part, scale in zip(maxima, scales, strict=True)], axis=0)
    count = at_rank(together, rank, coming, most)
    return Combined(scales * max(count.value, LEAST_SCALE) * ROUNDING, count)


def own_scales(maxima: Sequence[NDArray[np.float64]], rank: int) -> NDArray[np.float64]:
    """The `rank`-th largest maximum of each statistic."""
    return np.array([max(LEAST_SCALE, at_rank(part, rank, 1, 0).value) for part in maxima])
