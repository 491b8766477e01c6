"""Conformal p-values of detector scores: normalised by predicted class, then pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.scheme import Spread
from detectors.contract import SAYS_NOTHING
from detectors.kernels import rows
from detectors.stored import stored

#: A class with fewer rows than this is normalised like all classes together.
MIN_ROWS = 20
#: The median absolute deviation of a normal distribution times this is its standard deviation.
MAD_TO_SD = 1.4826
#: Quantile that a spread of the tail reaches to.
TAIL_QUANTILE = 0.95
#: Calibration scores that are kept; of more, an evenly spaced sample is.
MAX_VALUES = 8000
#: Stands in calibration values for "larger than every score".
LARGEST = float(np.finfo(np.float64).max)


def surprise_of(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """-ln p."""
    return np.asarray(-np.log(p))


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """What turns scores into p-values p = (1 + #{calibration scores >= s}) / (m + 1).

    Over exchangeable benign rows P(p <= a) <= a (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World",
    2005, proposition 2.8), whatever the class normalisation, as long as that was learned on other rows.

    A row that says nothing to a detector (`contract.SAYS_NOTHING`) has p = 1, and counts among neither the rows that a
    normalisation is learned from nor the calibration scores: the p-values of others are those among rows that say
    something.

    Attributes
    ----------
    centres, spreads : float64 (k, D)
        Median and spread (`Scheme.spread`) of each detector's scores among rows of each predicted class.
    values : float64 (D, m)
        Normalised scores of calibration rows, ascending; of a detector to which some say nothing, those of the others
        spread over the m places such that p-values stay valid.
    surprise : float64 (m + 1,)
        What each rank adds to the fusion: -ln p, or e (`Scheme.fusion`).
    """

    centres: NDArray[np.float64]
    spreads: NDArray[np.float64]
    values: NDArray[np.float64]
    surprise: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        shape_scores: NDArray[np.float64],
        shape_labels: NDArray[np.int32],
        scores: NDArray[np.float64],
        labels: NDArray[np.int32],
        classes: int,
        spread: Spread = "median",
        measure: Callable[[NDArray[np.float64]], NDArray[np.float64]] = surprise_of,
    ) -> Self:
        """Learn the normalisation from one set of rows, (n', D), and the values from another, (n, D).

        `measure` says what a p-value adds to the fusion.
        """
        centres, spreads = np.empty((classes, scores.shape[1])), np.empty((classes, scores.shape[1]))
        nothing = np.zeros(scores.shape[1]), np.ones(scores.shape[1])
        pooled = _centre_and_spread(shape_scores, spread, nothing, least=1)
        for label in range(classes):
            members = shape_scores[shape_labels == label]
            centres[label], spreads[label] = _centre_and_spread(members, spread, pooled)
        normal = (scores - centres[labels]) / spreads[labels]
        silent = scores <= SAYS_NOTHING
        values = np.ascontiguousarray(thinned(np.sort(normal, axis=0), MAX_VALUES).T)
        for column in np.flatnonzero(silent.any(axis=0)):
            values[column] = spread_out(np.sort(normal[~silent[:, column], column]), values.shape[1])
        return cls(centres, spreads, values, measure(pvalue_table(values.shape[1])))

    def normal(self, scores: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64]:
        """(n, D) scores in spreads from the centre of the predicted class: what ranks compare."""
        return np.asarray((scores - self.centres[labels]) / self.spreads[labels])

    def ranks(self, scores: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """(n, D) number of calibration scores that are at least as large."""
        out = np.empty(scores.shape, dtype=np.int32)
        rows.conformal_ranks(scores, labels, self.centres, self.spreads, self.values, out)
        return out

    def pvalues(self, ranks: NDArray[np.int32]) -> NDArray[np.float64]:
        """p-values of ranks."""
        return np.asarray((1.0 + ranks) / (self.values.shape[1] + 1.0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted."""
        return {"centres": self.centres, "spreads": self.spreads, "values": self.values, "surprise": self.surprise}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], classes: int, detectors: int) -> Self:
        """The inverse of `arrays`; -ln p is stored too, as its last bit may differ between machines."""
        centres, spreads = (stored(arrays, name, np.float64, classes, detectors) for name in ("centres", "spreads"))
        values = stored(arrays, "values", np.float64, detectors, None)
        return cls(centres, spreads, values, stored(arrays, "surprise", np.float64, values.shape[1] + 1))


def pvalue_table(m: int) -> NDArray[np.float64]:
    """(m + 1,) p-value by the number of calibration values that are at least as extreme."""
    return np.asarray((1.0 + np.arange(m + 1)) / (m + 1.0))


def upper_pvalues(values: NDArray[np.float64], ascending: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values of large values: (1 + #{calibration >= v}) / (m + 1)."""
    above = len(ascending) - np.searchsorted(ascending, values, side="left")
    return np.asarray((1.0 + above) / (len(ascending) + 1.0))


def lower_pvalues(values: NDArray[np.float64], ascending: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values of small values: (1 + #{calibration <= v}) / (m + 1)."""
    below = np.searchsorted(ascending, values, side="right")
    return np.asarray((1.0 + below) / (len(ascending) + 1.0))


def thinned(ascending: NDArray[np.float64], most: int, small: bool = False) -> NDArray[np.float64]:
    """At most `most` of ascending rows, such that p-values of large values (of small ones) stay super-uniform.

    Of n values the k-th most extreme of m kept ones is the floor(k (n + 1) / (m + 1))-th most extreme of all.
    """
    n = len(ascending)
    if n <= most:
        return ascending
    place = (np.arange(1, most + 1) * (n + 1)) // (most + 1) - 1
    return np.asarray(ascending[place] if small else ascending[n - 1 - place[::-1]])


def spread_out(ascending: NDArray[np.float64], places: int) -> NDArray[np.float64]:
    """Ascending values (n,) over m `places`, such that p-values of large values stay super-uniform, whatever n and m.

    As in `thinned`, the k-th largest of m is the floor(k (n + 1) / (m + 1))-th largest of all; the 0-th is `LARGEST`.
    """
    n = len(ascending)
    place = (np.arange(1, places + 1) * (n + 1)) // (places + 1)
    return np.append(ascending, LARGEST)[n - place[::-1]]


_Normalisation = tuple[NDArray[np.float64], NDArray[np.float64]]


def _centre_and_spread(
    scores: NDArray[np.float64], kind: Spread, instead: _Normalisation, least: int = MIN_ROWS
) -> _Normalisation:
    """Centre and spread (D,) of the scores (n, D) that say something; `instead` where those are fewer than `least`."""
    silent = scores <= SAYS_NOTHING
    if not silent.any():
        return _measured(scores, kind) if len(scores) >= least else instead
    centre, spread = instead[0].copy(), instead[1].copy()
    for column in range(scores.shape[1]):
        heard = scores[~silent[:, column], column]
        if len(heard) >= least:
            centre[column], spread[column] = _measured(heard, kind)
    return centre, spread


def _measured(scores: NDArray[np.float64], kind: Spread) -> tuple[Any, Any]:
    centre = np.median(scores, axis=0)
    if kind == "tail":
        spread = np.quantile(scores, TAIL_QUANTILE, axis=0) - centre
    else:
        spread = MAD_TO_SD * np.median(np.abs(scores - centre), axis=0)
    deviation = scores.std(axis=0)
    spread = np.where(spread > 0.0, spread, deviation)
    return centre, np.where(spread > 0.0, spread, 1.0)
