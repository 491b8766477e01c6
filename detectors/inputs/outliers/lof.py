"""PyOD's LOF, compiled: is the neighbourhood thinner than the neighbours' own?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.errors import FitError
from detectors.inputs.outliers.compiled import Compiled
from detectors.inputs.outliers.neighbours import Neighbours
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored, within


class Lof(Compiled):
    """Local outlier factor of a new row among the reference, L2.

    Of reference rows at exactly equal distances, PyOD's search may take others than this one; scores then differ.
    Blind to: crafted inputs in thick parts of another class.

    References
    ----------
    Breunig, Kriegel, Ng & Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000.
    """

    name: ClassVar[str] = "pyod.LOF"
    meaning: ClassVar[str] = "the input's neighbourhood is thinner than those of its neighbours"

    def __init__(self, neighbours: int = 20) -> None:
        self.neighbours = neighbours

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        from pyod.models.lof import LOF

        return LOF(n_neighbors=self.neighbours, novelty=True).fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.lof.LOF` of Euclidean distances that judges new rows."""
        inner = fitted.detector_
        if not (inner.novelty and (inner.effective_metric_ in ("l2", "euclidean"))):
            raise FitError(f"LOF of metric {inner.effective_metric_!r} is not compiled; minkowski with p = 2 is")
        self.neighbours = int(inner.n_neighbors_)
        distances = inner._distances_fit_X_
        return self._of(
            np.ascontiguousarray(inner._fit_X, dtype=np.float64),  # noqa: SLF001  (no public name)
            np.ascontiguousarray(distances[:, self.neighbours - 1], dtype=np.float64),
            np.ascontiguousarray(inner._lrd, dtype=np.float64),  # noqa: SLF001  (no public name)
        )

    def _of(self, reference: NDArray[np.float64], kth: NDArray[np.float64], density: NDArray[np.float64]) -> Self:
        self.reference_, self.kth_, self.density_ = reference, kth, density
        self._neighbours = Neighbours.of(reference)
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        squared, index = self._neighbours.search(inputs, self.neighbours)
        outliers.local_outlier(squared, index, self.kth_, self.density_, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "reference": self.reference_,
            "kth": self.kth_,
            "density": self.density_,
            "settings": np.array([self.neighbours], dtype=np.int64),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        reference = stored(arrays, "reference", np.float64, None, schema.width)
        settings = within("neighbours", stored(arrays, "settings", np.int64, 1), 1, len(reference))
        kth, density = (stored(arrays, name, np.float64, len(reference)) for name in ("kth", "density"))
        made = cls(int(settings[0]))
        return made._of(reference, kth, density)
