"""Exact search for nearest reference rows, at about ten microseconds a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detectors.kernels import outliers, sieves

#: Numbers of directions that are tried for the bound, and the sample that tells what they cost.
DIRECTIONS = (6, 14, 22, 30, 38, 46)
SAMPLE_ROWS = 64
#: Cost of a product with one reference row: a start, and each direction; and of a distance in single precision: a
#: start, and each feature. In the same units; only the choice between numbers of directions rests on them.
PRODUCT_COST, DIRECTION_COST, DISTANCE_COST, FEATURE_COST = 8.0, 1.0, 500.0, 4.0
#: Features by which rows in single precision are filled up.
FEATURES_AT_ONCE = 32
#: Neighbours whose search the choice is made for.
CHOICE_NEIGHBOURS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Reference rows, prepared for `outliers.nearest_of`. Distances do not depend on how they were prepared.

    Attributes
    ----------
    reference : float64 (r, d)
    centre : float64 (d,)
    basis : float64 (d, p)
        Principal directions.
    thin : float32 (c, p + 2, COLUMNS)
    single : float32 (r, d')
    longest : float
    """

    reference: NDArray[np.float64]
    centre: NDArray[np.float64]
    basis: NDArray[np.float64]
    thin: NDArray[np.float32]
    single: NDArray[np.float32]
    longest: float

    @classmethod
    def of(cls, reference: NDArray[np.float64]) -> Self:
        """Prepare rows (r, d); the number of directions is the one that makes a sample of them cheapest."""
        rows = np.ascontiguousarray(reference, dtype=np.float64)
        width = rows.shape[1]
        _, vectors = np.linalg.eigh(
            np.cov(rows, rowvar=False).reshape(width, width) if len(rows) > 1 else np.eye(width)
        )
        vectors = np.ascontiguousarray(vectors[:, ::-1])
        sample = np.ascontiguousarray(rows[:: max(1, len(rows) // SAMPLE_ROWS)][:SAMPLE_ROWS])
        best, least = None, np.inf
        for count in [*(number for number in DIRECTIONS if number < width), width]:
            made = cls._with(rows, np.ascontiguousarray(vectors[:, :count]))
            compared = made.search_counted(sample, min(CHOICE_NEIGHBOURS + 1, len(rows)))[2] / len(sample)
            cost = len(rows) * (PRODUCT_COST + DIRECTION_COST * count)
            cost += compared * (DISTANCE_COST + FEATURE_COST * width)
            if cost < least:
                best, least = made, cost
        assert best is not None
        return best

    @classmethod
    def _with(cls, rows: NDArray[np.float64], basis: NDArray[np.float64]) -> Self:
        (n, width), directions = rows.shape, basis.shape[1]
        centre = rows.mean(axis=0)
        columns = -(-n // sieves.TILE_ROWS) * sieves.TILE_ROWS
        short = np.zeros((columns, directions + 2), dtype=np.float32)
        norms = np.empty(n)
        outliers.project(rows, centre, basis, norms, short[:n])
        short[:, -1] = np.inf
        single = np.zeros((n, -(-width // FEATURES_AT_ONCE) * FEATURES_AT_ONCE), dtype=np.float32)
        with np.errstate(over="ignore"):  # such rows are not looked at in single precision
            short[:n, -1] = norms
            single[:, :width] = rows - centre
        return cls(rows, centre, basis, sieves.packed(short), single, float(np.sqrt(norms.max())))

    def search(self, inputs: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(n, count) ascending squared distances and the reference rows they go to; infinite and -1 where none is."""
        squared, index, _ = self.search_counted(inputs, count)
        return squared, index

    def search_counted(
        self, inputs: NDArray[np.float64], count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        """The same, and the number of distances in single precision."""
        squared, index = np.empty((len(inputs), count)), np.empty((len(inputs), count), dtype=np.int64)
        prepared = self.centre, self.basis, self.thin, self.single, self.longest
        compared = outliers.nearest_of(inputs, self.reference, *prepared, squared, index)
        return squared, index, compared
