"""What is left of a client's scores when its own past is taken off.

Clients differ, so a row that is odd in general may be usual for its client. z' = z - u_t with u_t the sum of the
client's past clip(z, -`RESIDUAL_CLIP`, `RESIDUAL_CLIP`) over (rows + tau): the client's mean, shrunk to 0 by tau rows.
A small tau learns a client's habits in a few rows, and an attacker's too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.conformal import upper_pvalues
from detectors.calibration.evalues import evalue
from detectors.queries.walk import RESIDUAL_CLIP

#: Weights of the prior that are tried.
TAUS = (5.0, 10.0, 20.0, 40.0)
#: Normal scores of the hostile streams that a test is to cross with; p = .023, .005, .001.
HOSTILE_SCORES = (2.0, 2.6, 3.1)
#: Rows after which a stream counts as missed.
MISSED_ROWS = 100
#: Quantile of benign clients' maxima that stands for the threshold, and by how much that will be higher.
QUANTILE, MARGIN = 0.95, 10.0
#: Rows that are looked at, at most.
MOST_ROWS = 50_000


def by_client(clients: NDArray[np.uint64]) -> list[NDArray[np.intp]]:
    """Rows of each client, in order."""
    _, member = np.unique(clients, return_inverse=True)
    order = np.argsort(member, kind="stable")
    return np.split(order, np.cumsum(np.bincount(member))[:-1])


def residuals(scores: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """z' of one client's scores (t,) in order."""
    past = np.concatenate([[0.0], np.cumsum(np.clip(scores, -RESIDUAL_CLIP, RESIDUAL_CLIP))[:-1]])
    return np.asarray(scores - past / (np.arange(len(scores)) + tau))


def largest(evidence: NDArray[np.float64]) -> float:
    """The largest R of R <- (1 + R) e."""
    value = best = 0.0
    for e in evidence:
        value = (1.0 + value) * e
        best = max(best, value)
    return best


def choose_tau(scores: NDArray[np.float64], clients: NDArray[np.uint64], rng: np.random.Generator) -> float:
    """The tau with which hostile streams cross soonest, at the threshold that these benign clients ask for.

    Parameters
    ----------
    scores : float64 (n,)
        Normal scores of benign rows that are fresh evidence, in the order of the stream. They tune, and set nothing
        that is promised: thresholds come from other clients.
    clients : uint64 (n,)
    rng : numpy.random.Generator
    """
    scores, clients = scores[:MOST_ROWS], clients[:MOST_ROWS]
    groups = by_client(clients)
    if len(groups) < 4:
        return TAUS[len(TAUS) // 2]
    order = rng.permutation(len(groups))
    first, second = order[: len(groups) // 2], order[len(groups) // 2 :]
    waits = [_wait(scores, [groups[g] for g in first], [groups[g] for g in second], tau) for tau in TAUS]
    return TAUS[int(np.argmin(waits))]


def _wait(
    scores: NDArray[np.float64], first: Sequence[NDArray[np.intp]], second: Sequence[NDArray[np.intp]], tau: float
) -> float:
    """Rows until hostile streams cross, in all."""
    usual = np.sort(np.concatenate([residuals(scores[rows], tau) for rows in first]))
    maxima = [largest(evalue(upper_pvalues(residuals(scores[rows], tau), usual))) for rows in second]
    threshold = MARGIN * float(np.quantile(maxima, QUANTILE))
    return sum(_rows_to_cross(np.full(MISSED_ROWS, score), usual, tau, threshold) for score in HOSTILE_SCORES)


def _rows_to_cross(stream: NDArray[np.float64], usual: NDArray[np.float64], tau: float, threshold: float) -> float:
    value = 0.0
    for row, e in enumerate(evalue(upper_pvalues(residuals(stream, tau), usual)), start=1):
        value = (1.0 + value) * float(e)
        if value > threshold:
            return float(row)
    return float(2 * MISSED_ROWS)


def between_share(scores: NDArray[np.float64], clients: NDArray[np.uint64]) -> float:
    """Share of the scores' variance that lies between clients (one-way analysis of variance, unequal groups)."""
    groups = [scores[rows] for rows in by_client(clients) if len(rows) > 1]
    if len(groups) < 2:
        return 0.0
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    total = float(sizes.sum())
    within = sum(float(np.square(group - mean).sum()) for group, mean in zip(groups, means, strict=True))
    within /= total - len(groups)
    grand = float(np.average(means, weights=sizes))
    spread = float((sizes * np.square(means - grand)).sum()) / (len(groups) - 1)
    size = (total - float(np.square(sizes).sum()) / total) / (len(groups) - 1)
    between = max(0.0, (spread - within) / size)
    return between / (between + within) if between + within > 0.0 else 0.0
