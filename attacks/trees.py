"""Tree ensembles as arrays: scores, leaves and split thresholds of fitted classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attacks.leaf_values import Link, valued
from attacks.network import softmax
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
class Forest:
    """All trees of an ensemble, and what their leaves say. A `TreeModel`.

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
