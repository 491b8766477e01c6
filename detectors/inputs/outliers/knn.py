"""PyOD's KNN, compiled: the distance to the k-th nearest reference row."""

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

#: How the k distances become one, in the order of the kernel's numbers.
METHODS = ("largest", "mean", "median")


class Knn(Compiled):
    """Distance to the k-th nearest reference row (or the mean or median of k distances), L2.

    Distances are exact; PyOD's, by products, are off by up to about 1e-8 where they are nearly 0.
    Blind to: crafted inputs that stay near benign ones, of whatever class.

    References
    ----------
    Ramaswamy, Rastogi & Shim, "Efficient Algorithms for Mining Outliers from Large Data Sets", SIGMOD 2000.
    """

    name: ClassVar[str] = "pyod.KNN"
    meaning: ClassVar[str] = "the input lies far from all reference rows"

    def __init__(self, neighbours: int = 5, method: str = "largest") -> None:
        self.neighbours = neighbours
        self.method = method

    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        from pyod.models.knn import KNN

        return KNN(n_neighbors=self.neighbours, method=self.method).fit(rows)

    def compile(self, fitted: Any) -> Self:
        """Take over a fitted `pyod.models.knn.KNN` of Euclidean distances."""
        if not _euclidean(fitted):
            raise FitError(f"KNN of metric {fitted.metric!r} is not compiled; minkowski with p = 2 is")
        self.neighbours, self.method = int(fitted.n_neighbors), fitted.method
        return self._of(np.ascontiguousarray(fitted.neigh_._fit_X, dtype=np.float64))  # noqa: SLF001  (no public name)

    def _of(self, reference: NDArray[np.float64]) -> Self:
        self.reference_ = reference
        self._neighbours = Neighbours.of(reference)
        return self

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(inputs))
        squared, _ = self._neighbours.search(inputs, self.neighbours)
        outliers.neighbour_distance(squared, METHODS.index(self.method), out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        settings = np.array([self.neighbours, METHODS.index(self.method)], dtype=np.int64)
        return {"reference": self.reference_, "settings": settings}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        reference = stored(arrays, "reference", np.float64, None, schema.width)
        settings = stored(arrays, "settings", np.int64, 2)
        within("neighbours", settings[:1], 1, len(reference))
        within("method", settings[1:], 0, len(METHODS) - 1)
        made = cls(int(settings[0]), METHODS[int(settings[1])])
        return made._of(reference)


def _euclidean(fitted: Any) -> bool:
    return fitted.metric in ("l2", "euclidean") or (fitted.metric == "minkowski" and fitted.p == 2)
