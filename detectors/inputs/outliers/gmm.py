"""PyOD's GMM, compiled: how unlikely is the row under a Gaussian mixture?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.inputs.outliers.compiled import Compiled
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored


class Gmm(Compiled):
    """-ln of the density of a Gaussian mixture, of one component unless asked otherwise.

    Blind to: changes along directions in which the reference varies much; it does not look at the predicted class.

    References
    ----------
    Dempster, Laird & Rubin, Journal of the Royal Statistical Society B 39(1), 1977; on outliers as PyOD uses it.
    """

    name: ClassVar[str] = "pyod.GMM"
    meaning: ClassVar[str] = "the input is unlikely under a mixture of normal distributions"

    def __init__(self, components: int = 1) -> None:
        self.components = components

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        from pyod.models.gmm import GMM

        return GMM(n_components=self.components, random_state=seed).fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.gmm.GMM` of any type of covariance."""
        inner = fitted.detector_
        self.centres_ = np.ascontiguousarray(inner.means_, dtype=np.float64)
        self.components, width = self.centres_.shape
        self.factors_ = np.zeros((self.components, width, width))
        for place in range(self.components):
            factor = (
                inner.precisions_cholesky_ if inner.covariance_type == "tied" else inner.precisions_cholesky_[place]
            )
            self.factors_[place] = factor if np.ndim(factor) == 2 else np.eye(width) * factor
        determinants = np.log(np.einsum("cii->ci", self.factors_)).sum(axis=1)
        self.offsets_ = np.log(inner.weights_) + determinants - 0.5 * width * np.log(2.0 * np.pi)
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        outliers.mixture_surprise(inputs, self.centres_, self.factors_, self.offsets_, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"centres": self.centres_, "factors": self.factors_, "offsets": self.offsets_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        centres = stored(arrays, "centres", np.float64, None, schema.width)
        made = cls(len(centres))
        made.centres_ = centres
        made.factors_ = stored(arrays, "factors", np.float64, len(centres), schema.width, schema.width)
        made.offsets_ = stored(arrays, "offsets", np.float64, len(centres))
        return made
