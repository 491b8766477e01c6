"""PyOD's LODA, compiled: histograms of sparse random projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.inputs.outliers.compiled import Compiled
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored, within


class Loda(Compiled):
    """Mean over random projections of -ln of the share of the histogram's bin that the row falls in.

    A projection that lies on an edge of a bin to rounding may fall on its other side here than in PyOD.
    Blind to: changes that are small along every projection.

    References
    ----------
    Pevny, "Loda: Lightweight on-line detector of anomalies", Machine Learning 102(2), 2016.
    """

    name: ClassVar[str] = "pyod.LODA"
    meaning: ClassVar[str] = "random projections of the input fall where few reference rows do"

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        from pyod.models.loda import LODA

        return LODA(random_state=seed).fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.loda.LODA`, of a fixed or an automatic number of bins."""
        cuts = len(fitted.projections_)
        shares = [np.asarray(fitted.histograms_[c]) for c in range(cuts)]
        most = max(len(share) for share in shares)
        used = max(int(np.count_nonzero(fitted.projections_, axis=1).max()), 1)
        self.features_ = np.zeros((cuts, used), dtype=np.int64)
        self.loadings_ = np.zeros((cuts, used))
        self.limits_ = np.full((cuts, max(most - 1, 1)), np.inf)
        self.surprise_ = np.zeros((cuts, max(most, 2)))
        for c, share in enumerate(shares):
            columns = np.flatnonzero(fitted.projections_[c])
            self.features_[c, : len(columns)] = columns
            self.loadings_[c, : len(columns)] = fitted.projections_[c, columns]
            bins = len(share)
            self.limits_[c, : bins - 1] = fitted.limits_[c][: bins - 1]
            self.surprise_[c, :bins] = -fitted.weights[c] * np.log(share) / cuts
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        outliers.projected_histograms(inputs, self.features_, self.loadings_, self.limits_, self.surprise_, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "features": self.features_,
            "loadings": self.loadings_,
            "limits": self.limits_,
            "surprise": self.surprise_,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        made = cls()
        made.features_ = within("features", stored(arrays, "features", np.int64, None, None), 0, schema.width - 1)
        made.loadings_ = stored(arrays, "loadings", np.float64, *made.features_.shape)
        cuts = len(made.features_)
        made.limits_ = stored(arrays, "limits", np.float64, cuts, None, finite=False)
        made.surprise_ = stored(arrays, "surprise", np.float64, cuts, made.limits_.shape[1] + 1)
        return made
