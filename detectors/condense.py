"""Choosing about a thousand reference rows to stand for all of them, so that a neighbour search costs microseconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Rows of a class that are kept whatever its share.
MIN_ROWS_A_CLASS = 12


def condense(
    rows: NDArray[np.float64], labels: NDArray[np.int32], classes: int, size: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Indices of at most about `size` rows, sorted by class.

    Each class gets its share, but at least `MIN_ROWS_A_CLASS`. Within a class rows are drawn by D-squared sampling
    (k-means++ seeding, Arthur & Vassilvitskii 2007): mostly rows that no chosen one lies near, so sparse regions stay
    covered.
    """
    chosen: list[NDArray[np.intp]] = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        want = max(MIN_ROWS_A_CLASS, round(size * len(members) / max(len(rows), 1)))
        if len(members) <= want:
            chosen.append(members)
            continue
        chosen.append(members[np.sort(_d_squared(rows[members], want, rng))])
    return np.concatenate(chosen)


def _d_squared(rows: NDArray[np.float64], want: int, rng: np.random.Generator) -> NDArray[np.intp]:
    norms = np.einsum("ij,ij->i", rows, rows)
    first = int(rng.integers(len(rows)))
    picked = [first]
    distance = np.maximum(norms - 2.0 * (rows @ rows[first]) + norms[first], 0.0)
    for _ in range(want - 1):
        total = distance.sum()
        if total <= 0.0:
            break
        place = int(np.searchsorted(np.cumsum(distance), rng.random() * total))
        place = min(place, len(rows) - 1)
        picked.append(place)
        np.minimum(distance, np.maximum(norms - 2.0 * (rows @ rows[place]) + norms[place], 0.0), out=distance)
    return np.unique(np.array(picked, dtype=np.intp))
