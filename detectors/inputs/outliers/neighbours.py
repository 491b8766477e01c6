"""Exact search for nearest reference rows, at a few microseconds a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detectors.kernels import outliers
from detectors.kernels.rows import CHUNK_ROWS

#: Numbers of directions that are tried for the bound, and the sample that tells what they cost.
DIRECTIONS = (8, 16, 24, 32, 48)
SAMPLE_ROWS = 64
#: Cost of a product with one reference row: a start, and each direction; and of one exact distance, a feature. In the
#: same units; only the choice between numbers of directions rests on them.
START_COST, DIRECTION_COST, FEATURE_COST = 30.0, 1.0, 50.0
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
    thin : float32 (p + 1, r')
    thin_norms : float32 (r',)
    longest : float
    """

    reference: NDArray[np.float64]
    centre: NDArray[np.float64]
    basis: NDArray[np.float64]
    thin: NDArray[np.float32]
    thin_norms: NDArray[np.float32]
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
            measured = made.search_counted(sample, min(CHOICE_NEIGHBOURS + 1, len(rows)))[2] / len(sample)
            cost = len(rows) * (START_COST + DIRECTION_COST * count) + measured * width * FEATURE_COST
            if cost < least:
                best, least = made, cost
        assert best is not None
        return best

    @classmethod
    def _with(cls, rows: NDArray[np.float64], basis: NDArray[np.float64]) -> Self:
        centre = rows.mean(axis=0)
        norms, short = np.empty(len(rows)), np.empty((len(rows), basis.shape[1] + 1), dtype=np.float32)
        outliers.project(rows, centre, basis, norms, short)
        padded = -(-len(rows) // CHUNK_ROWS) * CHUNK_ROWS
        thin = np.zeros((basis.shape[1] + 1, padded), dtype=np.float32)
        thin[:, : len(rows)] = short.T
        thin_norms = np.full(padded, np.inf, dtype=np.float32)
        thin_norms[: len(rows)] = norms
        return cls(rows, centre, basis, thin, thin_norms, float(np.sqrt(norms.max())))

    def search(self, inputs: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(n, count) ascending squared distances and the reference rows they go to; infinite and -1 where none is."""
        squared, index, _ = self.search_counted(inputs, count)
        return squared, index

    def search_counted(
        self, inputs: NDArray[np.float64], count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        """The same, and the number of distances that were measured."""
        squared, index = np.empty((len(inputs), count)), np.empty((len(inputs), count), dtype=np.int64)
        prepared = self.centre, self.basis, self.thin, self.thin_norms, self.longest
        measured = outliers.nearest_of(inputs, self.reference, *prepared, squared, index)
        return squared, index, measured
