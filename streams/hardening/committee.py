"""An ensemble: the mean answer of several classifiers, and how attackers reach all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from attacks.contract import GradientModel, Model
from attacks.trees import Forest
from detectors.trees import Trees
from streams.models.named import Answers
from streams.redteam.subject import of

#: Floor of a mean probability before its logarithm.
LEAST_PROBABILITY = 1e-12


class Committee(ClassifierMixin, BaseEstimator):
    """The mean of fitted classifiers' probabilities.

    Parameters
    ----------
    members : sequence of fitted estimators
        With the same classes.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        self.members = members

    @property
    def classes_(self) -> NDArray[Any]:
        """The members' classes."""
        return np.asarray(self.members[0].classes_)

    @classmethod
    def of(cls, make: Callable[[int], Any], count: int) -> Committee:
        """So many members, each made from its number."""
        return cls([make(number) for number in range(count)])

    def fit(self, X: NDArray[np.float64], y: NDArray[np.int64]) -> Self:
        """Fit every member anew."""
        for member in self.members:
            member.fit(X, y)
        return self

    def predict_proba(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean scores (n, k)."""
        answers = [Answers(member, "a member").predict(X) for member in self.members]
        return np.asarray(np.mean(answers, axis=0), dtype=np.float64)

    def predict(self, X: NDArray[np.float64]) -> NDArray[Any]:
        """Classes (n,)."""
        return np.asarray(self.classes_[np.argmax(self.predict_proba(X), axis=1)])

    def attacked(self) -> Model:
        """All members as one model: with gradients, as one forest, or by scores alone."""
        inner = [of(member, "model") for member in self.members]
        gradients = [one.gradients for one in inner if one.gradients is not None]
        if len(gradients) == len(inner):
            return MeanOfNetworks(tuple(gradients))
        forests = [one.trees for one in inner if isinstance(one.trees, Forest) and one.trees.link == "mean"]
        if len(forests) == len(inner):
            return joined(forests)
        return _Scores(self)


@dataclass(frozen=True, slots=True)
class _Scores:
    model: Committee

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k)."""
        return self.model.predict_proba(X)


@dataclass(frozen=True, slots=True)
class MeanOfNetworks:
    """The mean probability of networks; logits are its logarithms. A `GradientModel`."""

    members: tuple[GradientModel, ...]

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, k) mean probabilities."""
        return np.asarray(np.mean([member.predict(X) for member in self.members], axis=0), dtype=np.float64)

    def logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, k)."""
        return np.log(np.maximum(self.predict(X), LEAST_PROBABILITY))

    def gradient(self, X: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, d) by the chain rule through every member's softmax."""
        answers = [member.predict(X) for member in self.members]
        slope = weights / np.maximum(np.mean(answers, axis=0), LEAST_PROBABILITY) / len(self.members)
        total = np.zeros_like(np.asarray(X, dtype=np.float64))
        for member, own in zip(self.members, answers, strict=True):
            total += member.gradient(X, own * (slope - (slope * own).sum(axis=1, keepdims=True)))
        return total


def joined(forests: Sequence[Forest]) -> Forest:
    """Forests of equally many trees that answer by the mean, as one."""
    inner = [one.trees for one in forests]
    nodes = np.cumsum([0, *(len(one.leaf) for one in inner[:-1])], dtype=np.int32)
    leaves = np.cumsum([0, *(len(one.value) for one in forests[:-1])])
    width = len(forests[0].thresholds)
    counts = np.array([len(one.first) for one in forests], dtype=np.float64)
    share = counts.sum() / (len(forests) * counts)
    trees = Trees(
        feature=np.concatenate([one.feature for one in inner]),
        threshold=np.concatenate([one.threshold for one in inner]),
        left=np.concatenate([one.left + start for one, start in zip(inner, nodes, strict=True)]),
        right=np.concatenate([one.right + start for one, start in zip(inner, nodes, strict=True)]),
        leaf=np.concatenate([one.leaf for one in inner]),
        roots=np.concatenate([one.roots + start for one, start in zip(inner, nodes, strict=True)]),
        single=inner[0].single,
    )
    return Forest(
        trees=trees,
        first=np.concatenate([one.first + start for one, start in zip(forests, leaves, strict=True)]),
        value=np.concatenate([one.value * part for one, part in zip(forests, share, strict=True)]),
        base=forests[0].base,
        link="mean",
        thresholds=tuple(np.unique(np.concatenate([one.thresholds[c] for one in forests])) for c in range(width)),
    )
