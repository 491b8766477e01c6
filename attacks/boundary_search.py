"""What attacks on labels share: a first adversarial row, and bisection between it and the start row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.oracle import Oracle

#: Random rows tried before a start row is given up.
TRIES = 100


def random_starts(
    oracle: Oracle, rng: np.random.Generator, tries: int = TRIES
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Adversarial rows (n, d), found at random, and for which start rows (n,) there is one.

    The first try redraws every movable feature, later ones a random share of them, and in every second of those the
    drawn features go to the ends of their ranges.
    """
    domain = oracle.threat.domain
    rows, found = oracle.x.copy(), np.zeros(len(oracle.x), dtype=np.bool_)
    bounded = np.isfinite(domain.low) & np.isfinite(domain.high)
    middle = np.where(bounded, (np.where(bounded, domain.low, 0.0) + np.where(bounded, domain.high, 0.0)) / 2, 0.0)
    for turn in range(tries):
        which = np.flatnonzero(~found & oracle.going)
        if len(which) == 0:
            break
        x = oracle.x[which]
        share = 1.0 if turn == 0 else np.sqrt(rng.random((len(which), 1)))
        tried = domain.sample(x, rng, share)
        far = x + (tried - x) * 2.0 ** (turn / 4)
        tried = domain.repair(x, np.where(bounded, tried, far))
        if turn % 2:
            ends = np.where(tried > middle, domain.high, domain.low)
            tried = domain.repair(x, np.where(bounded & ~domain.grouped & (tried != x), ends, tried))
        fooled = oracle.fooled(which, tried)
        rows[which[fooled]] = tried[fooled]
        found[which[fooled]] = True
    return rows, found


def affordable(oracle: Oracle, which: NDArray[np.intp], wanted: NDArray[np.intp], reserve: int = 0) -> NDArray[np.intp]:
    """Of the places `wanted` in start rows `which` (m,), which may repeat, those that can be asked one query each."""
    samples = which[wanted]
    order = np.argsort(samples, kind="stable")
    rank = np.empty(len(samples), dtype=np.int64)
    rank[order] = np.arange(len(samples)) - np.searchsorted(samples[order], samples[order])
    return wanted[oracle.going[samples] & (rank < oracle.left[samples] - reserve)]


def bisect(
    oracle: Oracle,
    which: NDArray[np.intp],
    rows: NDArray[np.float64],
    gap: NDArray[np.float64],
    reserve: int = 0,
    low: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Adversarial rows (m, d) near the decision boundary, between the start rows `which` (m,) and adversarial `rows`.

    Under Linf the rows are clipped to ever smaller boxes around the start row, under the other norms they approach it
    on a straight line. Ends when the bracket is `gap` (m,) of the way wide, or when no more than `reserve` queries are
    left. `low` (m,) is the share of the way that is known not to be adversarial. `which` may repeat.
    """
    threat, domain = oracle.threat, oracle.threat.domain
    x = oracle.x[which]
    best = rows.copy()
    low = np.zeros(len(which)) if low is None else low.copy()
    high = np.ones(len(which))
    box = threat.norm == "linf"
    size = threat.distances(x, rows)
    while True:
        open_ = affordable(oracle, which, np.flatnonzero(high - low > gap), reserve)
        if len(open_) == 0:
            return best
        share = (low[open_] + high[open_]) / 2
        if box:
            reach = (share * size[open_])[:, None] * threat.unit
            tried = np.clip(rows[open_], x[open_] - reach, x[open_] + reach)
        else:
            tried = x[open_] + share[:, None] * (rows[open_] - x[open_])
        tried = domain.repair(x[open_], tried)
        same = (tried == best[open_]).all(axis=1)
        none = (tried == x[open_]).all(axis=1)
        fooled = same.copy()
        asking = np.flatnonzero(~same & ~none)
        fooled[asking] = oracle.fooled(which[open_[asking]], tried[asking])
        best[open_[fooled]] = tried[fooled]
        high[open_] = np.where(fooled, share, high[open_])
        low[open_] = np.where(fooled, low[open_], share)
