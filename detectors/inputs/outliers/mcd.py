"""PyOD's MCD, compiled: robust Mahalanobis distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.inputs.outliers.compiled import Compiled
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored


class Mcd(Compiled):
    """Squared Mahalanobis distance from the centre of the tightest half of the reference.

    Blind to: changes along directions in which the reference varies much; it does not look at the predicted class.

    References
    ----------
    Rousseeuw & Van Driessen, "A Fast Algorithm for the Minimum Covariance Determinant Estimator", Technometrics 41(3),
    1999.
    """

    name: ClassVar[str] = "pyod.MCD"
    meaning: ClassVar[str] = "the combination of values is unlike the bulk of the reference"

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        import warnings

        from pyod.models.mcd import MCD

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # features that never vary: the pseudo-inverse leaves them out
            return MCD(random_state=seed).fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.mcd.MCD`."""
        inner = fitted.detector_
        self.centre_ = np.array(inner.location_, dtype=np.float64)
        self.matrix_ = np.ascontiguousarray(inner.get_precision(), dtype=np.float64)
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        outliers.quadratic_form(inputs, self.centre_, self.matrix_, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"centre": self.centre_, "matrix": self.matrix_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        made = cls()
        made.centre_ = stored(arrays, "centre", np.float64, schema.width)
        made.matrix_ = stored(arrays, "matrix", np.float64, schema.width, schema.width)
        return made
