"""Tree ensembles as arrays: scores, leaves and split thresholds of fitted classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attacks.leaf_values import Link, valued
from attacks.network import softmax
from detectors.kernels import trees as kernels
from detectors.trees import Trees

#: Rows walked through all trees at once.
ROWS_AT_ONCE = 4_000


@runtime_checkable
class TreeModel(Protocol):
    """A tree ensemble in the attacker's own hands."""

    def predict(self, X: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Scores (n, k) of rows (n, d)."""

    def leaves(self, X: NDArray[np.float64], /) -> NDArray[np.int64]:
        """(n, trees) the leaf that each row reaches in each tree."""

    @property
    def thresholds(self) -> tuple[NDArray[np.float64], ...]:
        """For each feature the ascending thresholds t of its splits ``x <= t``."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """For each row the box ``low < x <= high`` in which every tree gives the leaf that it gives at the row.

    Attributes
    ----------
    low, high : float64 (n, d)
        Infinite where no tree sets a bound.
    low_tree, high_tree : int32 (n, d)
        The tree that sets the bound; -1 where there is none.
    next_low, next_high : float64 (n, d)
        The bounds without that tree; the same where two trees set them.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    low_tree: NDArray[np.int32]
    high_tree: NDArray[np.int32]
    next_low: NDArray[np.float64]
    next_high: NDArray[np.float64]

    def without(
        self, rows: NDArray[np.intp], tree: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds low and high (p, d) of the boxes of rows (p,), each without a tree (p,)."""
        low = np.where(self.low_tree[rows] == tree[:, None], self.next_low[rows], self.low[rows])
        high = np.where(self.high_tree[rows] == tree[:, None], self.next_high[rows], self.high[rows])
        return low, high


@runtime_checkable
class LeafModel(TreeModel, Protocol):
    """A `TreeModel` whose leaves are known as boxes of inputs."""

    def cells(self, X: NDArray[np.float64], /) -> Cells:
        """The boxes around rows (n, d)."""

    def meeting(
        self, tree: NDArray[np.int32], low: NDArray[np.float64], high: NDArray[np.float64], /
    ) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        """Leaves of trees (p,) that meet boxes (p, d): places (c,) in p, and bounds low and high (c, d)."""


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """All trees of an ensemble, and what their leaves say. A `LeafModel`.

    Attributes
    ----------
    trees : Trees
        Where rows go; also whether they are rounded to single precision first, as scikit-learn and XGBoost do.
    first : int64 (trees,)
        Place in `value` of each tree's leaf 0.
    value : float64 (leaves, k)
        What a leaf adds to the scores.
    base : float64 (k,)
        Scores before the first tree.
    link : {"mean", "softmax"}
        Scores are the mean over trees, or the softmax of the sum.
    thresholds : tuple of float64
        For each feature, ascending.
    """

    trees: Trees
    first: NDArray[np.int64]
    value: NDArray[np.float64]
    base: NDArray[np.float64]
    link: Link
    thresholds: tuple[NDArray[np.float64], ...]

    def leaves(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
        return self.first + self.trees.leaves(X)

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = [np.empty((0, len(self.base)))]
        for start in range(0, len(X), ROWS_AT_ONCE):
            found = self.leaves(X[start : start + ROWS_AT_ONCE])
            parts.append(self.value[found].sum(axis=1))
        total = np.concatenate(parts)
        return total / len(self.first) if self.link == "mean" else softmax(total + self.base)

    def cells(self, X: NDArray[np.float64]) -> Cells:
        read = self.trees
        rows = np.array(X, dtype=np.float64, order="C")
        if read.single:
            rows = rows.astype(np.float32).astype(np.float64)
        low, next_low = np.full(rows.shape, -np.inf), np.full(rows.shape, -np.inf)
        high, next_high = np.full(rows.shape, np.inf), np.full(rows.shape, np.inf)
        low_tree, high_tree = np.full(rows.shape, -1, dtype=np.int32), np.full(rows.shape, -1, dtype=np.int32)
        nodes = read.feature, read.threshold, read.left, read.right, read.leaf, read.roots
        kernels.cells(rows, *nodes, low, high, next_low, next_high, low_tree, high_tree)
        return Cells(low, high, low_tree, high_tree, next_low, next_high)

    def meeting(
        self, tree: NDArray[np.int32], low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        read = self.trees
        owner, node = np.arange(len(tree)), read.roots[tree].astype(np.intp)
        found: list[tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]] = []
        while len(node):
            end = read.leaf[node] >= 0
            found.append((owner[end], low[end], high[end]))
            owner, node, low, high = owner[~end], node[~end], low[~end], high[~end]
            place, column, edge = np.arange(len(node)), read.feature[node], read.threshold[node]
            left, right = low[place, column] < edge, high[place, column] > edge
            under, over = high[left], low[right]
            under[np.arange(len(under)), column[left]] = np.minimum(
                under[np.arange(len(under)), column[left]], edge[left]
            )
            over[np.arange(len(over)), column[right]] = np.maximum(
                over[np.arange(len(over)), column[right]], edge[right]
            )
            owner = np.concatenate([owner[left], owner[right]])
            node = np.concatenate([read.left[node[left]], read.right[node[right]]])
            low, high = np.concatenate([low[left], over]), np.concatenate([under, high[right]])
        owners, lows, highs = zip(*found, strict=True) if found else ((owner,), (low,), (high,))
        return np.concatenate(owners), np.concatenate(lows), np.concatenate(highs)


def adapt(estimator: Any) -> Forest:
    """The trees of a fitted classifier in the attacker's own hands.

    Parameters
    ----------
    estimator : object
        scikit-learn's DecisionTree-, RandomForest-, ExtraTrees-, GradientBoosting- or HistGradientBoostingClassifier;
        an ``XGBClassifier`` or ``xgboost.Booster`` (binary:logistic, multi:softprob, multi:softmax); an
        ``LGBMClassifier`` or ``lightgbm.Booster`` (binary, multiclass).

    Raises
    ------
    ModelError
        For any other estimator, one that is not fitted, one with several outputs, or one that splits by sets of
        categories or by missing values.
    """
    found = valued(estimator)
    read = found.read
    counts = [len(values) for values in found.leaves]
    inner = read.leaf < 0
    return Forest(
        read,
        np.cumsum([0, *counts[:-1]], dtype=np.int64),
        np.concatenate(found.leaves),
        found.base,
        found.link,
        tuple(np.unique(read.threshold[inner & (read.feature == column)]) for column in range(found.width)),
    )
