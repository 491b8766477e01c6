"""Input pre-processing: clip to legal ranges, squeeze to few values; and the classifier that lives behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone

from attacks.contract import GradientModel, Model
from attacks.trees import TreeModel
from streams.models.named import Answers
from streams.redteam.subject import of


def prepared(
    X: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], levels: int | None
) -> NDArray[np.float64]:
    """Rows (n, d) clipped to `low` and `high` (d,), infinite where there is none, and rounded to `levels` values.

    Levels are spaced equally over each feature's range; features without both bounds are not rounded.

    References
    ----------
    Xu, Evans & Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018, section
    III-A (colour depth).
    """
    out = np.clip(X, low, high)
    if levels is not None:
        start, step, squeezed = grid(low, high, levels)
        out[:, squeezed] = np.rint((out[:, squeezed] - start[squeezed]) / step[squeezed])
        out[:, squeezed] = out[:, squeezed] * step[squeezed] + start[squeezed]
    return out


def grid(
    low: NDArray[np.float64], high: NDArray[np.float64], levels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """(d,) lowest level, (d,) distance between two, (d,) which features have levels."""
    squeezed = np.isfinite(low) & np.isfinite(high) & (low < high)
    start = np.where(squeezed, low, 0.0)
    return start, np.where(squeezed, np.where(squeezed, high, 1.0) - start, 1.0) / (levels - 1), squeezed


class Prepared(ClassifierMixin, BaseEstimator):
    """A classifier that sees prepared rows, while it learns and when it answers.

    Parameters
    ----------
    estimator : estimator
        Cloned by `fit`.
    low, high : float64 (d,)
        Legal range of each feature.
    levels : int or None
        Values that a feature is rounded to; None for clipping alone.
    """

    def __init__(
        self, estimator: Any, low: NDArray[np.float64], high: NDArray[np.float64], levels: int | None = None
    ) -> None:
        self.estimator = estimator
        self.low = low
        self.high = high
        self.levels = levels

    def fit(self, X: NDArray[np.float64], y: NDArray[np.int64]) -> Self:
        """Fit a copy of the estimator on prepared rows."""
        self.estimator_ = clone(self.estimator).fit(self._prepared(X), y)
        self.classes_ = self.estimator_.classes_
        return self

    def predict_proba(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k)."""
        return Answers(self.estimator_, "the estimator").predict(self._prepared(X))

    def predict(self, X: NDArray[np.float64]) -> NDArray[Any]:
        """Classes (n,)."""
        return np.asarray(self.classes_[np.argmax(self.predict_proba(X), axis=1)])

    def attacked(self) -> Model:
        """The model as attackers who know of the preparation reach it."""
        inner = of(self.estimator_, "model")
        if inner.gradients is not None:
            return _Gradients(self, inner.gradients)
        if inner.trees is not None:
            return _Trees(self, inner.trees)
        return _Scores(self)

    def _prepared(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return prepared(np.asarray(X, dtype=np.float64), self.low, self.high, self.levels)


@dataclass(frozen=True, slots=True)
class _Scores:
    model: Prepared

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k)."""
        return self.model.predict_proba(X)


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Gradients at the prepared row, as if preparing changed nothing.

    Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 4.1 (BPDA):
    without it squeezing would only look robust, because its own gradient is zero almost everywhere.
    """

    model: Prepared
    inner: GradientModel

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities (n, k)."""
        return self.inner.predict(self.model._prepared(X))  # noqa: SLF001 - the same file

    def logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, k) scores before the softmax."""
        return self.inner.logits(self.model._prepared(X))  # noqa: SLF001

    def gradient(self, X: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, d) straight through the preparation."""
        return self.inner.gradient(self.model._prepared(X), weights)  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class _Trees:
    """A tree ensemble behind the preparation; thresholds are those that unprepared rows cross."""

    model: Prepared
    inner: TreeModel

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k)."""
        return self.inner.predict(self.model._prepared(X))  # noqa: SLF001 - the same file

    def leaves(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n, trees)."""
        return self.inner.leaves(self.model._prepared(X))  # noqa: SLF001

    @property
    def thresholds(self) -> tuple[NDArray[np.float64], ...]:
        """Between two levels the border is their middle."""
        levels = self.model.levels
        if levels is None:
            return self.inner.thresholds
        start, step, squeezed = grid(self.model.low, self.model.high, levels)
        return tuple(
            np.unique((np.floor((edges - start[column]) / step[column]) + 0.5) * step[column] + start[column])
            if squeezed[column]
            else edges
            for column, edges in enumerate(self.inner.thresholds)
        )
