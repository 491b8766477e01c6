"""PyOD's ECOD, compiled in the form that does not depend on the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.inputs.outliers.compiled import Compiled
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored

#: Equal steps of a feature's range that a search starts from.
BUCKETS = 1024


class Ecod(Compiled):
    """Sum over features of -ln of the empirical tail that the value lies in.

    PyOD builds its tables anew from the reference and the batch together, so that a row's score depends on its company.
    This is the score that PyOD gives a row alone. Where all values of a feature together are symmetric to rounding, the
    sign of their skewness, and so either score, is a matter of rounding.

    Blind to: rare combinations of usual values; it takes features for independent.

    References
    ----------
    Li, Zhao, Hu, Botta, Ionescu & Chen, "ECOD: Unsupervised Outlier Detection Using Empirical Cumulative Distribution
    Functions", IEEE TKDE 35(12), 2023.
    """

    name: ClassVar[str] = "pyod.ECOD"
    meaning: ClassVar[str] = "several features have values in the tails of what the reference has"

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        from pyod.models.ecod import ECOD

        return ECOD().fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.ecod.ECOD`."""
        return self._of(np.ascontiguousarray(np.sort(np.asarray(fitted.X_train, dtype=np.float64), axis=0).T))

    def _of(self, columns: NDArray[np.float64]) -> Self:
        self.columns_ = columns
        means = columns.mean(axis=1)
        away = columns - means[:, None]
        distinct = [np.unique(column, return_counts=True) for column in columns]
        offsets = np.cumsum([0, *(len(values) for values, _ in distinct)]).astype(np.int64)
        values = np.concatenate([values for values, _ in distinct])
        counts = np.concatenate([np.cumsum([0, *many]) for _, many in distinct]).astype(np.int32)
        width = columns[:, -1] - columns[:, 0]
        steps = np.zeros(len(columns))
        np.divide(BUCKETS, width, out=steps, where=width > 0.0)
        lows, starts = np.ascontiguousarray(columns[:, 0]), np.empty((len(columns), BUCKETS + 1), dtype=np.int32)
        outliers.bucket_starts(values, offsets, lows, steps, starts)
        whole = columns.shape[1] + 1.0
        surprise = -np.log(np.maximum(np.arange(whole + 1.0), 1.0) / whole)
        moments = means, (away**2).sum(axis=1), (away**3).sum(axis=1)
        self._tables = (values, counts, offsets, lows, steps, starts, *moments, surprise)
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        outliers.empirical_tails(inputs, *self._tables, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"columns": self.columns_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        columns = stored(arrays, "columns", np.float64, schema.width, None)
        if np.any(np.diff(columns, axis=1) < 0):
            raise ValueError("columns are not in order")
        made = cls()
        return made._of(columns)
