"""Tree ensembles as arrays: scores, leaves and split thresholds of fitted scikit-learn classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from attacks.errors import ModelError
from attacks.network import softmax

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
class Forest:
    """All trees of an ensemble in one set of arrays. A `TreeModel`.

    Rows are rounded to single precision first, as scikit-learn does.

    Attributes
    ----------
    feature : int64 (nodes,)
        Feature of the split; at leaves 0.
    threshold : float64 (nodes,)
        Left when ``x <= threshold``.
    left, right : int64 (nodes,)
        Next nodes; a leaf is its own next.
    value : float64 (nodes, k)
        What a leaf adds to the scores.
    roots : int64 (trees,)
    depth : int
    base : float64 (k,)
        Scores before the first tree.
    link : {"mean", "softmax"}
        Scores are the mean over trees, or the softmax of the sum.
    thresholds : tuple of float64
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]
    roots: NDArray[np.int64]
    depth: int
    base: NDArray[np.float64]
    link: Literal["mean", "softmax"]
    thresholds: tuple[NDArray[np.float64], ...]

    def leaves(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
        rows = np.asarray(X, dtype=np.float64).astype(np.float32)
        node = np.tile(self.roots, (len(rows), 1))
        which = np.arange(len(rows))[:, None]
        for _ in range(self.depth):
            right = rows[which, self.feature[node]] > self.threshold[node]
            node = np.where(right, self.right[node], self.left[node])
        return node

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = [np.empty((0, len(self.base)))]
        for first in range(0, len(X), ROWS_AT_ONCE):
            found = self.leaves(X[first : first + ROWS_AT_ONCE])
            parts.append(self.value[found].sum(axis=1))
        total = np.concatenate(parts)
        return total / len(self.roots) if self.link == "mean" else softmax(total + self.base)


def adapt(estimator: Any) -> Forest:
    """The arrays of a fitted DecisionTree-, RandomForest-, ExtraTrees- or GradientBoostingClassifier.

    Raises
    ------
    ModelError
        For any other estimator, or one that is not fitted, or one with several outputs.
    """
    boosted = isinstance(estimator, GradientBoostingClassifier)
    known = (DecisionTreeClassifier, RandomForestClassifier, ExtraTreesClassifier, GradientBoostingClassifier)
    if not isinstance(estimator, known):
        raise ModelError(
            f"{type(estimator).__name__} is no tree ensemble that can be read; "
            "DecisionTree-, RandomForest-, ExtraTrees- and GradientBoostingClassifier are"
        )
    if not hasattr(estimator, "classes_") or getattr(estimator, "n_outputs_", 1) != 1:
        raise ModelError(f"{type(estimator).__name__} is not fitted, or has several outputs")
    classes, width = len(estimator.classes_), int(estimator.n_features_in_)
    base = np.zeros(classes)
    trees: list[tuple[Any, int]] = []
    if boosted:
        columns = estimator.estimators_.shape[1]
        trees = [
            (tree.tree_, column + (columns == 1)) for row in estimator.estimators_ for column, tree in enumerate(row)
        ]
        start = _boosting_start(estimator, width)
        base[base.size - columns :] = start
    elif isinstance(estimator, DecisionTreeClassifier):
        trees = [(estimator.tree_, -1)]
    else:
        trees = [(tree.tree_, -1) for tree in estimator.estimators_]
    return _joined(trees, classes, width, base, estimator.learning_rate if boosted else 1.0, boosted)


def _boosting_start(estimator: Any, width: int) -> NDArray[np.float64]:
    """What gradient boosting adds before its first tree: its decision minus that of its trees, at any row."""
    row = np.zeros((1, width))
    trees = estimator.estimators_
    added = np.array([sum(tree.predict(row)[0] for tree in trees[:, column]) for column in range(trees.shape[1])])
    decision = np.atleast_1d(estimator.decision_function(row)[0])
    return np.asarray(decision - estimator.learning_rate * added, dtype=np.float64)


def _joined(
    trees: list[tuple[Any, int]], classes: int, width: int, base: NDArray[np.float64], rate: float, boosted: bool
) -> Forest:
    features, thresholds, lefts, rights, values, roots = [], [], [], [], [], []
    at, depth = 0, 0
    for tree, column in trees:
        count = tree.node_count
        leaf = tree.children_left < 0
        own = np.arange(count)
        roots.append(at)
        features.append(np.where(leaf, 0, tree.feature))
        thresholds.append(np.where(leaf, np.inf, tree.threshold))
        lefts.append(np.where(leaf, own, tree.children_left) + at)
        rights.append(np.where(leaf, own, tree.children_right) + at)
        value = tree.value[:, 0, :]
        if boosted:
            spread = np.zeros((count, classes))
            spread[:, column] = rate * value[:, 0]
            values.append(spread)
        else:
            values.append(value / value.sum(axis=1, keepdims=True))
        at += count
        depth = max(depth, int(tree.max_depth))
    feature, threshold = np.concatenate(features).astype(np.int64), np.concatenate(thresholds)
    split = np.isfinite(threshold)
    return Forest(
        feature,
        threshold,
        np.concatenate(lefts).astype(np.int64),
        np.concatenate(rights).astype(np.int64),
        np.concatenate(values),
        np.array(roots, dtype=np.int64),
        depth,
        base,
        "softmax" if boosted else "mean",
        tuple(np.unique(threshold[split & (feature == column)]) for column in range(width)),
    )
