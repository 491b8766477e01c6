"""PyOD's PCA, compiled: distances to the principal components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.inputs.outliers.compiled import Compiled
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored, within


class Pca(Compiled):
    """Sum of the row's distances to all components, each over the share of variance that the component explains.

    A component without any variance, by whose share PyOD would divide, is left out.
    Blind to: much the same as `pca_residual`, and it does not look at the predicted class.

    References
    ----------
    Shyu, Chen, Sarinnapakorn & Chang, "A Novel Anomaly Detection Scheme Based on Principal Component Classifier", ICDM
    workshop 2003, as PyOD varies it.
    """

    name: ClassVar[str] = "pyod.PCA"
    meaning: ClassVar[str] = "the input is far along directions in which the reference hardly varies"

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        from pyod.models.pca import PCA

        with np.errstate(divide="ignore", invalid="ignore"):  # components without variance, left out below
            return PCA(random_state=seed).fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.pca.PCA`."""
        columns = np.ascontiguousarray(fitted.selected_components_.T, dtype=np.float64)
        shares = np.asarray(fitted.selected_w_components_, dtype=np.float64)
        self.columns_ = columns
        self.weights_ = np.zeros(len(shares))
        np.divide(1.0, shares, out=self.weights_, where=shares > 1.0 / outliers.LARGEST_SCORE)
        if fitted.standardization:
            self.mean_, self.scale_ = np.array(fitted.scaler_.mean_), np.array(fitted.scaler_.scale_)
        else:
            self.mean_, self.scale_ = np.zeros(len(columns)), np.ones(len(columns))
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        outliers.scattered_distances(inputs, self.mean_, self.scale_, self.columns_, self.weights_, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"mean": self.mean_, "scale": self.scale_, "columns": self.columns_, "weights": self.weights_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        made = cls()
        made.mean_ = stored(arrays, "mean", np.float64, schema.width)
        tiny = np.finfo(np.float64).tiny
        made.scale_ = within("scale", stored(arrays, "scale", np.float64, schema.width), tiny, np.inf)
        made.columns_ = stored(arrays, "columns", np.float64, schema.width, None)
        made.weights_ = stored(arrays, "weights", np.float64, made.columns_.shape[1])
        return made
