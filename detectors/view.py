"""What several detectors need of a batch, computed once: standardised rows and distances to the condensed reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.condense import condense
from detectors.contract import Batch, Reference
from detectors.kernels import exact, rows

#: Rows of a block of the product with the reference: the block's result stays in the second-level cache.
BLOCK_ROWS = 128
#: Condensed reference rows, unless asked otherwise.
REFERENCE_ROWS = 1000
#: A feature that never varied gets this share of the mean spread as its scale, so that a change in it weighs heavily.
CONSTANT_SCALE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class ReferenceFrame:
    """The fitted yardstick: scale of every feature and the condensed reference, sorted by predicted class.

    Attributes
    ----------
    mean, scale : float64 (d,)
    inputs : float64 (r, d)
        Condensed reference rows in the units of the schema.
    labels : int32 (r,)
    standardised : float64 (r, d)
        The same on the grid of exact products.
    norms : float64 (r,)
        Squared lengths.
    bounds : int64 (k + 1,)
        Class c stands in rows bounds[c]:bounds[c + 1].
    grid : float
        Steps a standard deviation.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    inputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    standardised: NDArray[np.float64]
    norms: NDArray[np.float64]
    bounds: NDArray[np.int64]
    grid: float

    @classmethod
    def fit(cls, reference: Reference, classes: int, rng: np.random.Generator, size: int = REFERENCE_ROWS) -> Self:
        """Learn scales and condense. Rows that the model is known to have got wrong are left out of the reference."""
        inputs = np.ascontiguousarray(reference.inputs, dtype=np.float64)
        labels = reference.labels.astype(np.int32)
        if reference.truth is not None:
            right = labels == reference.truth
            inputs, labels = inputs[right], labels[right]
        mean = inputs.mean(axis=0)
        spread = inputs.std(axis=0)
        typical = float(spread[spread > 0].mean()) if np.any(spread > 0) else 1.0
        scale = np.maximum(spread, CONSTANT_SCALE_SHARE * typical)
        grid = exact.grid_for(inputs.shape[1])
        standardised = exact.standardise(inputs, mean, scale, grid)
        chosen = condense(standardised, labels, classes, size, rng)
        return cls._of(mean, scale, inputs[chosen], labels[chosen], classes)

    @classmethod
    def _of(
        cls,
        mean: NDArray[np.float64],
        scale: NDArray[np.float64],
        inputs: NDArray[np.float64],
        labels: NDArray[np.int32],
        classes: int,
    ) -> Self:
        grid = exact.grid_for(inputs.shape[1])
        standardised = exact.standardise(inputs, mean, scale, grid)
        bounds = np.searchsorted(labels, np.arange(classes + 1)).astype(np.int64)
        return cls(mean, scale, inputs, labels, standardised, exact.square_norms(standardised), bounds, grid)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a bundle stores; the rest follows from it."""
        return {"mean": self.mean, "scale": self.scale, "inputs": self.inputs, "labels": self.labels}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], classes: int) -> Self:
        """The inverse of `arrays`."""
        return cls._of(arrays["mean"], arrays["scale"], arrays["inputs"], arrays["labels"], classes)


class BatchView:
    """`contract.View` of one batch; every quantity is computed on first use."""

    def __init__(self, frame: ReferenceFrame, batch: Batch) -> None:
        self.frame = frame
        self._batch = batch

    @property
    def batch(self) -> Batch:
        """The rows."""
        return self._batch

    @cached_property
    def standardised(self) -> NDArray[np.float64]:
        """(n, d) rows in standard deviations, on the grid of exact products."""
        frame = self.frame
        return exact.standardise(self._batch.inputs, frame.mean, frame.scale, frame.grid)

    @cached_property
    def single(self) -> NDArray[np.float32]:
        """(n, d) raw inputs in single precision, for trees."""
        return self._batch.inputs.astype(np.float32)

    @cached_property
    def _neighbours(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        frame, n = self.frame, len(self._batch)
        own, other = np.empty(n), np.empty(n)
        index = np.empty(n, dtype=np.int64)
        norms = exact.square_norms(self.standardised)
        block = np.empty((BLOCK_ROWS, len(frame.norms)))
        transposed = frame.standardised.T
        for start in range(0, n, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, n)
            products = np.matmul(self.standardised[start:stop], transposed, out=block[: stop - start])
            rows.nearest(
                products,
                norms[start:stop],
                self._batch.labels[start:stop],
                frame.norms,
                frame.bounds,
                own[start:stop],
                index[start:stop],
                other[start:stop],
            )
        return own, index, other

    @property
    def own_squared(self) -> NDArray[np.float64]:
        """(n,) squared distance to the 5th nearest reference row of the predicted class."""
        return self._neighbours[0]

    @property
    def other_squared(self) -> NDArray[np.float64]:
        """(n,) squared distance to the nearest reference row of any other class."""
        return self._neighbours[2]

    @property
    def own_distance(self) -> NDArray[np.float64]:
        """(n,) distance to the 5th nearest reference row of the predicted class."""
        return np.sqrt(self.own_squared)

    @property
    def other_distance(self) -> NDArray[np.float64]:
        """(n,) distance to the nearest reference row of any other class."""
        return np.sqrt(self.other_squared)

    @property
    def nearest_own(self) -> NDArray[np.int64]:
        """(n,) index of the nearest condensed reference row of the predicted class; -1 where there is none."""
        return self._neighbours[1]
