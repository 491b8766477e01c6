"""PyOD's isolation forest, fitted by PyOD and compiled to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import rows
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.view import correct_rows

#: Trees of the forest (PyOD's default).
TREES = 100

#: What stands at each inner node.
_NODES = (("features", np.uint16), ("thresholds", np.float32))


class IsolationForest:
    """How few random cuts separate the input from the reference; equal to PyOD's `IForest.decision_function`.

    Trees are padded to complete ones of equal depth, so that every row takes the same number of steps.
    Blind to: perturbations that stay within the bulk of each single feature.

    References
    ----------
    Liu, Ting & Zhou, "Isolation Forest", ICDM 2008. PyOD: Zhao, Nasrullah & Li, JMLR 20, 2019.
    """

    name = "isolation_forest"

    def __init__(self, trees: int = TREES) -> None:
        self.trees = trees
        self.features_: NDArray[np.uint16] = np.empty((0, 0), dtype=np.uint16)
        self.thresholds_: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        self.leaves_: NDArray[np.float64] = np.empty((0, 0))
        self.denominator_ = 1.0
        self.offset_ = 0.0

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Fit with PyOD, then compile."""
        from pyod.models.iforest import IForest

        kept = correct_rows(reference, len(schema.classes), schema.width)
        forest = IForest(n_estimators=self.trees, random_state=int(rng.integers(2**31)))
        forest.fit(kept.inputs)
        return self.compile(forest)

    def compile(self, forest: Any) -> Self:
        """Take over a fitted `pyod.models.iforest.IForest`."""
        inner = forest.detector_
        trees = [estimator.tree_ for estimator in inner.estimators_]
        used = list(inner.estimators_features_)
        depth = max(int(tree.max_depth) for tree in trees)
        size = (1 << depth) - 1
        self.features_ = np.zeros((len(trees), size), dtype=np.uint16)
        self.thresholds_ = np.full((len(trees), size), np.inf, dtype=np.float32)
        self.leaves_ = np.zeros((len(trees), size + 1))
        for place, (tree, columns) in enumerate(zip(trees, used, strict=True)):
            self._pad(place, tree, columns, depth)
        samples = int(inner.max_samples_)
        self.denominator_ = len(trees) * float(_average_path(np.array([samples]))[0])
        self.offset_ = float(inner.offset_)
        return self

    def _pad(self, place: int, tree: Any, columns: NDArray[np.intp], depth: int) -> None:
        inner = (1 << depth) - 1
        lefts, rights = tree.children_left.tolist(), tree.children_right.tolist()
        features, thresholds = tree.feature.tolist(), tree.threshold.tolist()
        beyond = _average_path(tree.n_node_samples).tolist()
        stack = [(0, 0, 0)]
        while stack:
            node, at, level = stack.pop()
            left, right = lefts[node], rights[node]
            if left == right:
                value = level + beyond[node]
                first, count = at, 1
                for _ in range(depth - level):
                    first, count = 2 * first + 1, count * 2
                self.leaves_[place, first - inner : first - inner + count] = value
                continue
            self.features_[place, at] = columns[features[node]]
            self.thresholds_[place, at] = _at_most(thresholds[node])
            stack.append((left, 2 * at + 1, level + 1))
            stack.append((right, 2 * at + 2, level + 1))

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) PyOD's outlier scores."""
        return self.decision_function(getattr(view, "single", view.batch.inputs))

    def decision_function(self, inputs: NDArray[Any]) -> NDArray[np.float64]:
        """Scores of raw rows (n, d), as PyOD's method of that name."""
        with np.errstate(over="ignore"):
            single = np.require(inputs, dtype=np.float32, requirements=["C", "W"])
        depths, out = np.empty(len(single)), np.empty(len(single))
        levels = int(self.leaves_.shape[1]).bit_length() - 1
        rows.forest_depth(single, self.features_, self.thresholds_, self.leaves_, levels, depths)
        rows.isolation(depths, self.denominator_, self.offset_, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """What isolation means."""
        return "few random cuts set the input apart from the reference: its combination of values is rare"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The compiled forest."""
        return {
            "features": self.features_,
            "thresholds": self.thresholds_,
            "leaves": self.leaves_,
            "scalars": np.array([self.denominator_, self.offset_]),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        leaves = stored(arrays, "leaves", np.float64, None, None)
        trees, size = leaves.shape
        if size & (size - 1):
            raise ValueError(f"leaves: {size} a tree is no power of two")
        inner = (stored(arrays, name, kind, trees, size - 1, finite=False) for name, kind in _NODES)
        made = cls(trees)
        made.features_, made.thresholds_ = inner
        made.leaves_ = leaves
        within("features", made.features_, 0, schema.width - 1)
        made.denominator_, made.offset_ = (float(v) for v in stored(arrays, "scalars", np.float64, 2))
        return made


def _average_path(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Average path length of an unsuccessful search in a binary search tree (Liu et al. 2008, equation 1)."""
    n = samples.astype(np.float64)
    harmonic = np.log(np.maximum(n - 1.0, 1.0)) + np.euler_gamma
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, 2.0 * harmonic - 2.0 * (n - 1.0) / np.maximum(n, 1.0)))


def _at_most(threshold: float) -> np.float32:
    """The largest single-precision number that is not above the threshold: x32 <= t holds for it exactly when for t."""
    rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return np.float32(rounded)
