"""p-values to e-values, normal scores, and the fastest way up of a sequential test."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.conformal import pvalue_table

#: Near p = 1 the formula loses its digits; its limit is used.
NEAR_ONE = 1e-4
#: Updates after which a test that has not crossed is said never to do so.
MAX_UPDATES = 100_000


def evalue(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """e = (1 - p + p ln p) / (p ln^2 p), the mixture of kappa p^(kappa - 1) over kappa in (0, 1).

    Its mean under uniform p is 1 (Vovk & Wang, "E-values: Calibration, combination and applications", Annals of
    Statistics 49(3), 2021, equation 4), and at most 1 under conformal p-values, as it falls in p. At p = 1 the limit is
    1/2, which the series (1 - u)^-1 (1/2 - u/6 + ...) with u = 1 - p meets to first order.
    """
    safe = np.clip(p, np.finfo(np.float64).tiny, 1.0 - NEAR_ONE)
    log = np.log(safe)
    exact = (1.0 - safe + safe * log) / (safe * log * log)
    rest = 1.0 - p
    return np.asarray(np.where(rest < NEAR_ONE, 0.5 + rest / 6.0, exact))


def evalue_table(m: int) -> NDArray[np.float64]:
    """(m + 1,) e-value by conformal rank."""
    return evalue(pvalue_table(m))


def normal_scores(m: int) -> NDArray[np.float64]:
    """(m + 1,) standard normal score Phi^-1(1 - p) by conformal rank; p = 1 counts as 1 - 1 / (2 m + 2)."""
    from scipy.special import ndtri

    p = np.minimum(pvalue_table(m), 1.0 - 0.5 / (m + 1.0))
    return np.asarray(-ndtri(p), dtype=np.float64)


def updates_to_cross(threshold: float, ceiling: float) -> int | None:
    """Updates after which R <- (1 + R) e exceeds a threshold if every e stands at its ceiling; None if never."""
    value = 0.0
    for update in range(1, MAX_UPDATES + 1):
        value = (1.0 + value) * ceiling
        if value > threshold:
            return update
        if not math.isfinite(value):
            break
    return None
