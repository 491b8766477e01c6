"""PyOD's HBOS, compiled: one histogram a feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.inputs.outliers.compiled import Compiled
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored, within


class Hbos(Compiled):
    """Sum over features of -log2 of the height of the histogram's bin that the value falls in.

    Blind to: rare combinations of usual values; it takes features for independent.

    References
    ----------
    Goldstein & Dengel, "Histogram-based Outlier Score (HBOS)", KI 2012.
    """

    name: ClassVar[str] = "pyod.HBOS"
    meaning: ClassVar[str] = "several features have values that few reference rows have"

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        from pyod.models.hbos import HBOS

        return HBOS().fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.hbos.HBOS`, of a fixed or an automatic number of bins."""
        ragged = isinstance(fitted.hist_, list)
        heights = fitted.hist_ if ragged else list(fitted.hist_.T)
        borders = fitted.bin_edges_ if ragged else list(fitted.bin_edges_.T)
        width, most = len(heights), max(len(height) for height in heights)
        self.last_ = np.array([len(height) for height in heights], dtype=np.int64)
        self.edges_ = np.full((most + 1, width), np.inf)
        self.surprise_ = np.zeros((most + 2, width))
        self.slack_ = np.empty((2, width))
        for f, (height, border) in enumerate(zip(heights, borders, strict=True)):
            bins = len(height)
            level = -np.log2(height + fitted.alpha)
            self.edges_[: bins + 1, f] = border
            self.surprise_[1 : bins + 1, f] = level
            self.surprise_[0, f] = self.surprise_[bins + 1, f] = level.max()
            self.slack_[0, f] = border[0] - fitted.tol * (border[1] - border[0])
            self.slack_[1, f] = border[-1] + fitted.tol * (border[-1] - border[-2])
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        outliers.histograms(inputs, self.edges_, self.last_, self.slack_[0], self.slack_[1], self.surprise_, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"edges": self.edges_, "last": self.last_, "slack": self.slack_, "surprise": self.surprise_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        made = cls()
        made.edges_ = stored(arrays, "edges", np.float64, None, schema.width, finite=False)
        bins = len(made.edges_) - 1
        made.last_ = within("last", stored(arrays, "last", np.int64, schema.width), 1, bins)
        made.slack_ = stored(arrays, "slack", np.float64, 2, schema.width)
        made.surprise_ = stored(arrays, "surprise", np.float64, bins + 2, schema.width)
        return made
