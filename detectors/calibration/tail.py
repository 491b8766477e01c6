"""The far tail of a calibration sample, extrapolated: for ranking only, never for decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.stored import stored

#: Share of the sample that the tail is fitted to.
TAIL_SHARE = 0.05
#: Fewer values than this don't make a tail: nothing is extrapolated.
MIN_TAIL = 30
#: Shapes beyond these make the extrapolation a fantasy.
SHAPE_RANGE = (-0.5, 0.5)
#: No p-value is said to be smaller.
LEAST_P = 1e-12


@dataclass(frozen=True, slots=True)
class Tail:
    """A generalised Pareto distribution over a threshold.

    Attributes
    ----------
    start : float
        Where the tail starts; +inf where nothing is extrapolated.
    share : float
        Share of benign values beyond it.
    shape, scale : float

    References
    ----------
    Siffer, Fouque, Termier & Largouet, "Anomaly Detection in Streams with Extreme Value Theory" (SPOT), KDD 2017;
    fitted by probability-weighted moments (Hosking & Wallis, Technometrics 29(3), 1987, section 2.2).
    """

    start: float
    share: float
    shape: float
    scale: float

    @classmethod
    def fit(cls, ascending: NDArray[np.float64]) -> Self:
        """Fit to the largest `TAIL_SHARE` of ascending values."""
        count = int(TAIL_SHARE * len(ascending))
        if count < MIN_TAIL:
            return cls(np.inf, 0.0, 0.0, 1.0)
        start = float(ascending[-count - 1])
        beyond = ascending[-count:] - start
        first = float(beyond.mean())
        weights = (np.arange(count, 0, -1) - 0.65) / count
        second = float((weights * beyond).mean())
        if first <= 2.0 * second or first <= 0.0:
            return cls(np.inf, 0.0, 0.0, 1.0)
        shape = float(np.clip(2.0 - first / (first - 2.0 * second), *SHAPE_RANGE))
        scale = first * (1.0 - shape)
        return cls(start, count / len(ascending), shape, scale)

    def pvalue(self, value: float) -> float | None:
        """The extrapolated p-value of a value in the tail; None outside it."""
        if not value > self.start:
            return None
        over = (value - self.start) / self.scale
        if abs(self.shape) < 1e-9:
            left = float(np.exp(-over))
        else:
            left = float(max(0.0, 1.0 + self.shape * over) ** (-1.0 / self.shape))
        return max(LEAST_P, self.share * left)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted."""
        return {"tail": np.array([self.start, self.share, self.shape, self.scale])}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""
        return cls(*(float(value) for value in stored(arrays, "tail", np.float64, 4, finite=False)))
