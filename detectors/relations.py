"""Linear relations between features, such as total = part + part, found in rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Spread of a combination of standardised features below which it counts as constant.
CONSTANT_SPREAD = 1e-7
#: A smallest eigenvalue of the correlations above this is no rounding: there is no relation, nor need of a finer look.
CERTAIN_VARIANCE = 1e-10
#: Coefficients of standardised features below this are rounding.
LEAST_COEFFICIENT = 1e-6


def reduced(
    matrix: NDArray[np.float64], sizes: NDArray[np.float64], eligible: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.bool_]]:
    """Solve relations (r, d) for features that may follow the others (Gauss-Jordan, complete pivoting).

    Returns
    -------
    follow : float64 (p, d)
        A change of the other features changes pivot i by ``-follow[i] @ change``; columns of pivots are 0.
    pivots : intp (p,)
        The features that follow, all `eligible`.
    stuck : bool (d,)
        Features of relations that no eligible feature can mend: none of them can change.
    """
    rows = matrix * sizes
    rows = rows / np.maximum(np.abs(rows).max(axis=1, initial=0.0, keepdims=True), 1e-300)
    open_ = np.ones(len(rows), dtype=np.bool_)
    pivots: list[int] = []
    order: list[int] = []
    for _ in range(len(rows)):
        size = np.where(open_[:, None] & eligible, np.abs(rows), 0.0)
        row, column = np.unravel_index(int(np.argmax(size)), size.shape)
        if size[row, column] <= LEAST_COEFFICIENT:
            break
        rows[row] /= rows[row, column]
        others = np.arange(len(rows)) != row
        rows[others] -= rows[others, column][:, None] * rows[row]
        rows[np.abs(rows) < LEAST_COEFFICIENT] = 0.0
        open_[row] = False
        pivots.append(int(column))
        order.append(int(row))
    stuck = np.asarray((rows[open_] != 0).any(axis=0), dtype=np.bool_)
    columns = np.array(pivots, dtype=np.intp)
    follow = rows[order] / sizes * sizes[columns][:, None] if pivots else np.empty((0, matrix.shape[1]))
    follow[:, columns] = 0.0
    return follow, columns, stuck


def linear_relations(
    rows: NDArray[np.float64],
    columns: NDArray[np.intp],
    spread: float = CONSTANT_SPREAD,
    least: float = LEAST_COEFFICIENT,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Combinations of features that hardly vary: the null space of the standardised columns, solved for pivots.

    Parameters
    ----------
    rows : float64 (n, d)
    columns : intp (c,)
        Features that take part; none of them is constant. With fewer rows than these anything is a relation.
    spread : float
        Combinations of unit length with at most this standard deviation count, in standard deviations of the features.
    least : float
        Smaller coefficients of standardised features, relative to the pivot's, are dropped.

    Returns
    -------
    matrix : float64 (r, d)
        ``matrix @ row`` hardly varies; the largest coefficient of each is 1 or -1.
    pivots : intp (r,)
        A feature of each relation that no other relation has.
    """
    nothing = np.zeros((0, rows.shape[1])), np.empty(0, dtype=np.intp)
    if len(columns) < 2:
        return nothing
    deviation = rows[:, columns].std(axis=0)
    standard = (rows[:, columns] - rows[:, columns].mean(axis=0)) / deviation
    if np.linalg.eigvalsh(standard.T @ standard / len(rows))[0] > max(4 * spread**2, CERTAIN_VARIANCE):
        return nothing
    _, sizes, directions = np.linalg.svd(standard, full_matrices=False)
    null = directions[sizes / np.sqrt(len(rows)) < spread]
    if len(null) == 0:
        return nothing
    everyone = np.ones(len(columns), dtype=np.bool_)
    follow, pivots, _ = reduced(null, np.ones(len(columns)), everyone)
    follow[np.abs(follow) < least] = 0.0
    follow[np.arange(len(pivots)), pivots] = 1.0
    matrix = np.zeros((len(pivots), rows.shape[1]))
    matrix[:, columns] = follow / deviation
    matrix /= np.abs(matrix).max(axis=1, keepdims=True)
    return matrix, columns[pivots]
