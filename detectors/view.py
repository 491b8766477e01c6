"""What several detectors need of a batch, computed once: standardised rows and distances to the condensed reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.condense import condense
from detectors.contract import Batch, Reference
from detectors.errors import FitError, SchemaError
from detectors.kernels import exact, rows, sieves
from detectors.schema import FeatureSchema
from detectors.stored import stored, within

#: Condensed reference rows, unless asked otherwise.
REFERENCE_ROWS = 1000
#: A feature's scale is at least this share of its observed range, so that a rare value isn't hundreds of sd away.
RANGE_SHARE = 0.02
#: A feature that never varied gets this share of the mean spread as its scale, so that a change in it weighs heavily.
CONSTANT_SCALE_SHARE = 0.1


def correct_rows(reference: Reference, classes: int, width: int | None = None) -> Reference:
    """The rows to learn "normal" from: checked, contiguous, without those that the model is known to have got wrong.

    Raises
    ------
    FitError
        When there are no rows, shapes disagree, a value is not finite, or a label is not 0 <= label < `classes`.
    """
    inputs = np.ascontiguousarray(reference.inputs, dtype=np.float64)
    if inputs.ndim != 2 or inputs.shape[1] == 0 or (width is not None and inputs.shape[1] != width):
        wanted = "(n, d)" if width is None else f"(n, {width})"
        raise FitError(f"reference inputs have shape {inputs.shape}; they must be {wanted}, one row an input")
    if len(reference.labels) != len(inputs):
        raise FitError(f"the reference has {len(inputs)} inputs but {len(reference.labels)} labels")
    if reference.embeddings is not None and len(reference.embeddings) != len(inputs):
        raise FitError(f"the reference has {len(inputs)} inputs but {len(reference.embeddings)} embeddings")
    bad = np.flatnonzero(~np.isfinite(inputs).all(axis=1))
    if len(bad):
        raise FitError(
            f"{len(bad)} reference rows hold NaN or infinity, first row {bad[0]}; remove them before the fit"
        )
    labels = reference.labels.astype(np.int32)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise FitError(f"reference row {wrong[0]} has label {labels[wrong[0]]}; labels are 0 to {classes - 1}")
    if reference.truth is None:
        kept = replace(reference, inputs=inputs, labels=labels)
    else:
        right = labels == reference.truth
        outputs = None if reference.outputs is None else reference.outputs[right]
        embeddings = None if reference.embeddings is None else reference.embeddings[right]
        kept = Reference(inputs[right], labels[right], outputs, reference.truth[right], embeddings)
    if len(kept) == 0:
        raise FitError("no reference row is left to learn from; give benign rows that the model predicts correctly")
    return kept


def feature_scales(inputs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and scale (d,) of every feature: its standard deviation, kept away from zero."""
    spread = inputs.std(axis=0)
    width = inputs.max(axis=0) - inputs.min(axis=0)
    varies = spread > 0
    typical = float(spread[varies].mean()) if varies.any() else 1.0
    return inputs.mean(axis=0), np.where(
        varies, np.maximum(spread, RANGE_SHARE * width), CONSTANT_SCALE_SHARE * typical
    )


def standard_rows(
    reference: Reference, schema: FeatureSchema, rng: np.random.Generator, most: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Rows (n, d) to learn from, in standard deviations as `View.standardised` gives rows, and their labels (n,).

    A random part of `most` of them, in their order, where there are more.

    Raises
    ------
    FitError
        As `correct_rows`.
    """
    kept = correct_rows(reference, len(schema.classes), schema.width)
    mean, scale = feature_scales(kept.inputs)
    found = exact.standardise(kept.inputs, mean, scale, exact.grid_for(schema.width))
    labels = kept.labels.astype(np.int32)
    if most is None or len(found) <= most:
        return found, labels
    chosen = np.sort(rng.choice(len(found), most, replace=False))
    return np.ascontiguousarray(found[chosen]), labels[chosen]


@dataclass(frozen=True, slots=True)
class ReferenceFrame:
    """The fitted yardstick: scale of every feature and the condensed reference, sorted by predicted class.

    Attributes
    ----------
    mean, scale : float64 (d,)
    inputs : float64 (r, d)
        Reference rows in the units of the schema, one near each centre: what people are shown.
    labels : int32 (r,)
        Ascending.
    standardised : float64 (r, d)
        Centres that stand for the reference (`condense`), on the grid of exact products: what distances go to.
    norms : float64 (r,)
        Squared lengths.
    bounds : int64 (k + 1,)
        Class c stands in rows bounds[c]:bounds[c + 1].
    grid : float
        Steps a standard deviation.
    longest : float
        Length of the longest standardised row.
    columns : float32 (c, d + 1, COLUMNS)
        The standardised rows y as columns of -2 y and |y|^2, as `sieves.rough_products` reads them, to tell which have
        to be measured; as many as whole tiles hold, infinite beyond r.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    inputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    standardised: NDArray[np.float64]
    norms: NDArray[np.float64]
    bounds: NDArray[np.int64]
    grid: float
    longest: float
    columns: NDArray[np.float32]

    @property
    def classes(self) -> int:
        """Number of classes, k."""
        return len(self.bounds) - 1

    @property
    def width(self) -> int:
        """Number of features, d."""
        return len(self.mean)

    @classmethod
    def fit(cls, reference: Reference, classes: int, rng: np.random.Generator, size: int = REFERENCE_ROWS) -> Self:
        """Learn scales and condense to about `size` rows.

        Rows that the model is known to have got wrong are left out. `FitError` says what the rows lack.
        """
        kept = correct_rows(reference, classes)
        mean, scale = feature_scales(kept.inputs)
        standardised = exact.standardise(kept.inputs, mean, scale, exact.grid_for(kept.inputs.shape[1]))
        found = condense(standardised, kept.labels, classes, size, rng)
        return cls._of(mean, scale, kept.inputs[found.rows], kept.labels[found.rows], found.centres, classes)

    @classmethod
    def _of(
        cls,
        mean: NDArray[np.float64],
        scale: NDArray[np.float64],
        inputs: NDArray[np.float64],
        labels: NDArray[np.int32],
        centres: NDArray[np.float64],
        classes: int,
    ) -> Self:
        grid = exact.grid_for(inputs.shape[1])
        standardised = exact.on_grid(centres, grid)
        norms = exact.square_norms(standardised)
        r, d = standardised.shape
        columns = np.zeros((-(-r // sieves.TILE_ROWS) * sieves.TILE_ROWS, d + 1), dtype=np.float32)
        columns[:, d] = np.inf
        columns[:r, :d], columns[:r, d] = -2.0 * standardised, norms
        return cls(
            mean=mean,
            scale=scale,
            inputs=inputs,
            labels=labels,
            standardised=standardised,
            norms=norms,
            bounds=np.searchsorted(labels, np.arange(classes + 1)).astype(np.int64),
            grid=grid,
            longest=math.sqrt(float(norms.max())),
            columns=sieves.packed(columns),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a bundle stores; the rest follows from it."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "inputs": self.inputs,
            "labels": self.labels,
            "centres": self.standardised,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], classes: int) -> Self:
        """The inverse of `arrays`."""
        mean = stored(arrays, "mean", np.float64, None)
        labels = stored(arrays, "labels", np.int32, None)
        shape = len(labels), len(mean)
        scale = within("scale", stored(arrays, "scale", np.float64, len(mean)), np.finfo(np.float64).tiny, np.inf)
        inputs, centres = (stored(arrays, name, np.float64, *shape) for name in ("inputs", "centres"))
        within("labels", labels, 0, classes - 1)
        if np.any(np.diff(labels) < 0):
            raise ValueError("labels of the reference are not in order")
        return cls._of(mean, scale, inputs, labels, centres, classes)


class BatchView:
    """`contract.View` of one batch.

    Rows are checked and standardised at once; every other quantity is computed on first use.

    Raises
    ------
    SchemaError
        When the batch has another number of features than the reference, or a row holds a NaN, an infinity, or a label
        that is not a class. Such rows are refused where events are decoded; here they would silently spoil decisions.
    """

    def __init__(self, frame: ReferenceFrame, batch: Batch) -> None:
        inputs, labels = _owned(batch.inputs, np.float64), _owned(batch.labels, np.int32)
        if inputs.ndim != 2 or inputs.shape[1] != frame.width or labels.shape != (len(inputs),):
            raise SchemaError(
                f"the batch has inputs of shape {inputs.shape} and labels of shape {labels.shape}; "
                f"the reference needs (n, {frame.width}) and (n,)"
            )
        self.frame = frame
        self._batch = replace(batch, inputs=inputs, labels=labels)
        self._standardised = np.empty(inputs.shape)
        self._thin = np.empty(inputs.shape, dtype=np.float32)
        self._norms = np.empty(len(inputs))
        bad = rows.prepare(
            inputs,
            labels,
            frame.mean,
            frame.scale,
            frame.grid,
            frame.classes,
            self._standardised,
            self._thin,
            self._norms,
        )
        if bad >= 0:
            raise SchemaError(_complaint(inputs[bad], int(labels[bad]), int(bad), frame.classes))

    @property
    def batch(self) -> Batch:
        """The rows; inputs and labels in C order and writeable memory, as kernels want them."""
        return self._batch

    @property
    def standardised(self) -> NDArray[np.float64]:
        """(n, d) rows in standard deviations, on the grid of exact products."""
        return self._standardised

    @property
    def norms(self) -> NDArray[np.float64]:
        """(n,) exact squared lengths of the standardised rows."""
        return self._norms

    @cached_property
    def single(self) -> NDArray[np.float32]:
        """(n, d) raw inputs in single precision, for trees; infinite beyond its range."""
        with np.errstate(over="ignore"):
            return self._batch.inputs.astype(np.float32)

    @cached_property
    def _neighbours(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        frame, n = self.frame, len(self._batch)
        own, first, other = np.empty(n), np.empty(n), np.empty(n)
        index = np.empty(n, dtype=np.int64)
        rows.neighbours(
            self._thin,
            self._standardised,
            self._norms,
            self._batch.labels,
            frame.standardised,
            frame.norms,
            frame.bounds,
            frame.longest,
            frame.columns,
            own,
            first,
            index,
            other,
        )
        return own, first, index, other

    @property
    def own_squared(self) -> NDArray[np.float64]:
        """(n,) squared distance to the 5th nearest reference row of the predicted class."""
        return self._neighbours[0]

    @property
    def other_squared(self) -> NDArray[np.float64]:
        """(n,) squared distance to the nearest reference row of any other class."""
        return self._neighbours[3]

    @cached_property
    def own_distance(self) -> NDArray[np.float64]:
        """(n,) distance to the 5th nearest reference row of the predicted class.

        The farthest of a class with fewer rows; the nearest row of all where the class has none.
        """
        return np.sqrt(self.own_squared)

    @cached_property
    def own_nearest(self) -> NDArray[np.float64]:
        """(n,) distance to the nearest reference row of the predicted class; of all rows where the class has none."""
        return np.sqrt(self._neighbours[1])

    @cached_property
    def other_distance(self) -> NDArray[np.float64]:
        """(n,) distance to the nearest reference row of any other class; the own distance where there is no other."""
        return np.sqrt(self.other_squared)

    @property
    def nearest_own(self) -> NDArray[np.int64]:
        """(n,) index of the nearest condensed reference row of the predicted class; -1 where the class has none."""
        return self._neighbours[2]


def _owned(values: NDArray[Any], kind: type[np.generic]) -> NDArray[Any]:
    """The values in C order and writeable memory: kernels are compiled for nothing else."""
    return np.require(values, dtype=kind, requirements=["C", "W"])


def _complaint(inputs: NDArray[np.float64], label: int, row: int, classes: int) -> str:
    columns = np.flatnonzero(~np.isfinite(inputs))
    if len(columns):
        return (
            f"row {row} of the batch: feature {columns[0]} is {inputs[columns[0]]} ({len(columns)} such values); "
            "rows with NaN or infinity must be refused where events are decoded"
        )
    return f"row {row} of the batch: label {label}; labels are 0 to {classes - 1}"
