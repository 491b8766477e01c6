"""Linear relations between features, such as total = part + part: stated or learned, and kept by every crafted row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.errors import ThreatModelError
from detectors.relations import linear_relations

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
    matrix, _ = linear_relations(rows, np.flatnonzero(taking))
    if len(matrix) == 0:
        return None
    constant = np.median(rows @ matrix.T, axis=0)
    residual = np.abs(rows @ matrix.T - constant).max(axis=0)
    terms = (np.abs(matrix) * np.abs(rows).max(axis=0)).max(axis=1)
    return Relations(matrix, constant, RESIDUALS * residual + ROUNDING * np.maximum(terms, 1.0))
