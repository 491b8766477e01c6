"""Clients that legitimately send near-identical rows: sensors, retries, people who try what-if values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.conformal import MAD_TO_SD
from detectors.contract import ANONYMOUS
from detectors.queries.walk import FIRST_CHECK, GAIN_CAP

#: A client whose cluster evidence reaches what half of the largest gain over `FIRST_CHECK` rows brings is a repeater.
REPEATER_EVIDENCE = 0.5 * GAIN_CAP * FIRST_CHECK
#: Quantile of a client's distances to its nearest earlier rows that is compared with other clients'.
NEAR_QUANTILE = 0.25
#: So many robust standard deviations, and this ratio of distances, below the median client.
OUTLYING_SD, OUTLYING_RATIO = 4.0, 2.0
#: Clients with fewer rows are not compared.
LEAST_ROWS = 10


def near(clients: NDArray[np.uint64], distances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) rows of clients that stay far nearer to their own past than other clients do.

    distances (n,): squared ratio of the distance to the nearest earlier row to the density, NaN where there is none.
    Used before there are tables, so that repeaters don't become what "near" is measured by.
    """
    names, member = np.unique(clients, return_inverse=True)
    typical = np.full(len(names), np.nan)
    order = np.argsort(member, kind="stable")
    for name, rows in enumerate(np.split(order, np.cumsum(np.bincount(member))[:-1])):
        seen = distances[rows]
        seen = seen[np.isfinite(seen)]
        if names[name] != ANONYMOUS and len(seen) >= LEAST_ROWS:
            typical[name] = 0.5 * np.log(np.quantile(seen, NEAR_QUANTILE))
    known = typical[np.isfinite(typical)]
    if len(known) == 0:
        return np.zeros(len(clients), dtype=np.bool_)
    centre = float(np.median(known))
    spread = MAD_TO_SD * float(np.median(np.abs(known - centre)))
    outlying = typical < centre - np.maximum(OUTLYING_SD * spread, np.log(OUTLYING_RATIO))
    return np.asarray(outlying[member])


def in_common(distances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) rows that lie far nearer to one of the index than most do, as mails sent to many and popular objects.

    distances (n,): squared ratio of the distance to the nearest row of the index to the density, NaN where there is
    none. Like `near`, so that they don't become what "near" is measured by.
    """
    logarithm = 0.5 * np.log(distances)
    known = logarithm[np.isfinite(logarithm)]
    if len(known) == 0:
        return np.zeros(len(distances), dtype=np.bool_)
    centre = float(np.median(known))
    spread = MAD_TO_SD * float(np.median(np.abs(known - centre)))
    return np.asarray(logarithm < centre - max(OUTLYING_SD * spread, float(np.log(OUTLYING_RATIO))))


def evident(evidence: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(m,) client-weeks whose largest cluster evidence only endless repetition explains."""
    return np.asarray(evidence >= REPEATER_EVIDENCE)
