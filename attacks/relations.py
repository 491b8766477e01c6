"""Linear relations between features, such as total = part + part: stated or learned, and kept by every crafted row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.errors import ThreatModelError

#: Spread of a combination of standardised features below which it counts as constant.
CONSTANT_SPREAD = 1e-7
#: Coefficients of standardised features below this are rounding.
LEAST_COEFFICIENT = 1e-6
#: Slack of a learned relation: so many times the largest residual seen, and so much of the largest term.
RESIDUALS, ROUNDING = 4.0, 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Relations:
    """Linear equations that every legal row fulfils.

    Attributes
    ----------
    matrix : float64 (r, d)
    constant : float64 (r,)
    tolerance : float64 (r,)
        ``abs(matrix @ row - constant) <= tolerance``.

    Raises
    ------
    ThreatModelError
    """

    matrix: NDArray[np.float64]
    constant: NDArray[np.float64]
    tolerance: NDArray[np.float64]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.ndim != 2 or not np.isfinite(matrix).all():
            raise ThreatModelError(f"relations: matrix is not a finite (r, d) array, got shape {matrix.shape}")
        for name in ("constant", "tolerance"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != (len(matrix),) or not np.isfinite(values).all():
                raise ThreatModelError(f"relations: {name} holds one finite number for each of {len(matrix)} relations")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)

    def __len__(self) -> int:
        return len(self.matrix)

    def residuals(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, r) by how much each row misses each relation."""
        return np.asarray(np.abs(x @ self.matrix.T - self.constant), dtype=np.float64)

    def hold(self, x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) which rows fulfil all of them."""
        return np.asarray((self.residuals(x) <= self.tolerance).all(axis=1), dtype=np.bool_)


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


def learn_relations(inputs: NDArray[np.float64], apart: tuple[NDArray[np.intp], ...] = ()) -> Relations | None:
    """Linear relations that all rows (n, d) fulfil; None when there are none.

    Constant features, and the columns of the one-hot groups `apart`, take no part: ranges and groups tell of them.
    Needs more rows than features, otherwise anything is a relation.

    Raises
    ------
    ThreatModelError
        With too few rows.
    """
    rows = np.asarray(inputs, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 * rows.shape[1]:
        raise ThreatModelError(
            f"relations: {rows.shape} rows; learning them takes at least twice as many rows as features"
        )
    spread = rows.std(axis=0)
    taking = spread > 1e-12 * np.maximum(np.abs(rows).max(axis=0), 1.0)
    taking[np.concatenate([*apart, np.empty(0, dtype=np.intp)])] = False
    columns = np.flatnonzero(taking)
    if len(columns) < 2:
        return None
    standard = (rows[:, columns] - rows[:, columns].mean(axis=0)) / spread[columns]
    _, sizes, directions = np.linalg.svd(standard, full_matrices=False)
    null = directions[sizes / np.sqrt(len(rows)) < CONSTANT_SPREAD]
    if len(null) == 0:
        return None
    everyone = np.ones(len(columns), dtype=np.bool_)
    follow, pivots, _ = reduced(null, np.ones(len(columns)), everyone)
    follow[np.abs(follow) < LEAST_COEFFICIENT] = 0.0
    follow[np.arange(len(pivots)), pivots] = 1.0
    matrix = np.zeros((len(pivots), rows.shape[1]))
    matrix[:, columns] = follow / spread[columns]
    matrix /= np.abs(matrix).max(axis=1, keepdims=True)
    constant = np.median(rows @ matrix.T, axis=0)
    residual = np.abs(rows @ matrix.T - constant).max(axis=0)
    terms = (np.abs(matrix) * np.abs(rows).max(axis=0)).max(axis=1)
    return Relations(matrix, constant, RESIDUALS * residual + ROUNDING * np.maximum(terms, 1.0))
