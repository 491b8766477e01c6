"""One p-value a row out of those of all detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.conformal import MAX_VALUES, ScoreCalibration, thinned
from detectors.calibration.tail import Tail
from detectors.kernels import rows
from detectors.stored import stored

#: Strength of the ridge of the logistic fusion, in rows.
RIDGE_ROWS = 1.0
#: Share of the weight that rehearsed rows don't decide.
HEDGE_SHARE = 0.25
#: A logistic fusion whose weights are all below this has learned nothing; equal weights are kept.
LEAST_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class Fusion:
    """Weighted sum of -ln p over detectors, re-calibrated on fresh benign rows.

    Whatever the weights and however the detectors depend on each other, the re-calibrated p-value is conformal. The
    weights are those of a logistic regression of crafted against benign, kept from being negative; without crafted
    rows, of such as are made at the fit (`rehearsal`), and hedged. Equal weights are Fisher's method ("Statistical
    Methods for Research Workers", 1932, section 21.1).

    Attributes
    ----------
    weights : float64 (D,)
        Sum 1.
    values : float64 (c,)
        Sums of fresh benign rows, ascending.
    tail : Tail
        Of these sums, to rank what lies beyond them.
    """

    weights: NDArray[np.float64]
    values: NDArray[np.float64]
    tail: Tail

    @classmethod
    def fit(cls, weights: NDArray[np.float64], scores: ScoreCalibration, ranks: NDArray[np.int32]) -> Self:
        """Calibrate the sums of benign rows whose ranks (n, D) are given and that nothing else was learned from."""
        sums, _ = _fuse(ranks, scores.surprise, weights, np.zeros(1))
        values = thinned(np.sort(sums), MAX_VALUES)
        return cls(weights, values, Tail.fit(values))

    def fuse(self, ranks: NDArray[np.int32], surprise: NDArray[np.float64]) -> tuple[Any, Any]:
        """(n,) sums and (n,) int32 their ranks."""
        return _fuse(ranks, surprise, self.weights, self.values)

    def pvalues(self, rank: NDArray[np.int32]) -> NDArray[np.float64]:
        """Conformal p-values of ranks."""
        return np.asarray((1.0 + rank) / (len(self.values) + 1.0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted."""
        return {"weights": self.weights, "values": self.values, **self.tail.arrays()}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], detectors: int) -> Self:
        """The inverse of `arrays`."""
        weights = stored(arrays, "weights", np.float64, detectors)
        return cls(weights, stored(arrays, "values", np.float64, None), Tail.restore(arrays))


def equal_weights(detectors: int) -> NDArray[np.float64]:
    """Every detector counts the same."""
    return np.full(detectors, 1.0 / detectors)


def hedged(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights with a share for every detector, as real attacks are not those that were rehearsed."""
    return (1.0 - HEDGE_SHARE) * weights + HEDGE_SHARE * equal_weights(len(weights))


def spread_over(weights: NDArray[np.float64], alone: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(D,) weights of all detectors from those of the detectors that crafted rows weigh, which `alone` (D,) marks.

    No single row tells what a client's history is worth, nor a row without an embedding what embeddings are: each
    detector of these gets an equal share.
    """
    found = equal_weights(len(alone))
    found[alone] = weights * np.count_nonzero(alone) / len(alone)
    return found


def learned_weights(
    benign: NDArray[np.float64], crafted: Sequence[NDArray[np.float64]], alone: NDArray[np.bool_], hedge: bool
) -> NDArray[np.float64]:
    """(D,) weights by -ln p (n, D) of benign rows and of those of several attacks; `alone` as in `spread_over`.

    `hedge` is for rehearsed attacks.
    """
    if not alone.any():
        return equal_weights(len(alone))
    weights = logistic_weights(benign[:, alone], np.concatenate([odd[:, alone] for odd in crafted]))
    return spread_over(hedged(weights) if hedge else weights, alone)


def logistic_weights(benign: NDArray[np.float64], crafted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a logistic regression of crafted against benign -ln p, (n, D) each, none negative; sum 1.

    Both kinds weigh the same in total. Equal weights where nothing tells the kinds apart.
    """
    from scipy.optimize import minimize

    surprise = np.concatenate([benign, crafted])
    sign = np.concatenate([np.full(len(benign), -1.0), np.ones(len(crafted))])
    share = np.concatenate([np.full(len(benign), 0.5 / len(benign)), np.full(len(crafted), 0.5 / len(crafted))])
    ridge = RIDGE_ROWS / len(surprise)

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = at[:-1], at[-1]
        margin = sign * (surprise @ weights + bias)
        slope = -share * sign / (1.0 + np.exp(np.clip(margin, -500.0, 500.0)))
        value = float(share @ np.logaddexp(0.0, -margin)) + 0.5 * ridge * float(weights @ weights)
        return value, np.append(surprise.T @ slope + ridge * weights, slope.sum())

    width = surprise.shape[1]
    if width == 0:
        return np.empty(0)
    start = np.append(np.full(width, 0.1), 0.0)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * width + [(None, None)])
    weights = np.asarray(found.x[:-1], dtype=np.float64)
    total = float(weights.sum())
    return weights / total if total > LEAST_WEIGHT else equal_weights(width)


def _fuse(
    ranks: NDArray[np.int32], surprise: NDArray[np.float64], weights: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    sums, rank = np.empty(len(ranks)), np.empty(len(ranks), dtype=np.int32)
    rows.fuse(ranks, surprise, weights, values, sums, rank)
    return sums, rank
