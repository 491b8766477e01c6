"""Benign clients in disjoint pools, so that no client's rows set both a table and the threshold that judges it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.contract import ANONYMOUS

#: Shares of the clients in the first three pools; the rest sets thresholds.
SHAPE_SHARE, RANKS_SHARE, FUSION_SHARE = 0.08, 0.14, 0.18


@dataclass(frozen=True, slots=True)
class Pools:
    """Which rows belong to which pool, bool (n,) each.

    Attributes
    ----------
    shape
        Class normalisation of scores.
    ranks
        Calibration of single detectors, distances of near rows.
    fusion
        Calibration of what is made of those: the fused score, combined p-values, residuals.
    thresholds
        Client-weeks.
    """

    shape: NDArray[np.bool_]
    ranks: NDArray[np.bool_]
    fusion: NDArray[np.bool_]
    thresholds: NDArray[np.bool_]


def split(clients: NDArray[np.uint64], rng: np.random.Generator) -> Pools:
    """Deal clients out at random; anonymous rows are dealt out one by one, but set no thresholds of clients."""
    names, member = np.unique(clients, return_inverse=True)
    order = rng.permutation(len(names))
    bounds = np.cumsum(np.array([SHAPE_SHARE, RANKS_SHARE, FUSION_SHARE]) * len(names)).round().astype(np.intp)
    pool_of = np.empty(len(names), dtype=np.intp)
    pool_of[order] = np.searchsorted(bounds, np.arange(len(names)), side="right")
    pool = pool_of[member]
    anonymous = clients == ANONYMOUS
    if anonymous.any():
        share = np.cumsum([SHAPE_SHARE, RANKS_SHARE, FUSION_SHARE])
        pool[anonymous] = np.searchsorted(share, rng.random(int(anonymous.sum())), side="right")
    return Pools(pool == 0, pool == 1, pool == 2, pool == 3)


def halves(clients: NDArray[np.uint64], rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows of one half of the clients, and of the other."""
    names, member = np.unique(clients, return_inverse=True)
    first = np.zeros(len(names), dtype=np.bool_)
    first[rng.permutation(len(names))[: (len(names) + 1) // 2]] = True
    return first[member], ~first[member]
