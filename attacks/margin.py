"""By how much a goal is reached, from a model's scores, and in which direction that grows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.contract import GradientModel
from attacks.network import softmax
from attacks.threat import ThreatModel

#: Floor of a score before its logarithm.
LEAST_SCORE = 1e-12


def log_scores(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k) logarithms of probabilities; scores that are no probabilities are taken as they are."""
    if (scores < 0).any() or (scores > 1).any():
        return scores
    return np.log(np.maximum(scores, LEAST_SCORE))


def marked(y: NDArray[np.int64], threat: ThreatModel) -> NDArray[np.int64]:
    """(n,) the class to leave, or the class to reach."""
    return y if threat.goal == "any" else np.full(len(y), threat.goal, dtype=np.int64)


def margins(logits: NDArray[np.float64], y: NDArray[np.int64], threat: ThreatModel) -> NDArray[np.float64]:
    """(n,) by how much the goal leads: positive when it is reached."""
    rows, mark, others = np.arange(len(logits)), marked(y, threat), logits.copy()
    others[rows, mark] = -np.inf
    lead = others.max(axis=1) - logits[rows, mark]
    return lead if threat.goal == "any" else -lead


def uphill(
    model: GradientModel, X: NDArray[np.float64], logits: NDArray[np.float64], y: NDArray[np.int64], threat: ThreatModel
) -> NDArray[np.float64]:
    """(n, d) direction in which the cross-entropy of the goal improves fastest.

    The gradient is divided by 1 - p of the marked class: the same direction, and it does not vanish where the model is
    sure of itself.
    """
    rows, mark = np.arange(len(X)), marked(y, threat)
    others = logits.copy()
    others[rows, mark] = -np.inf
    weights = softmax(others)
    weights[rows, mark] = -1.0
    return model.gradient(X, weights if threat.goal == "any" else -weights)


def margin_slope(
    model: GradientModel, X: NDArray[np.float64], logits: NDArray[np.float64], y: NDArray[np.int64], threat: ThreatModel
) -> NDArray[np.float64]:
    """(n, d) gradient of `margins`."""
    rows, mark = np.arange(len(X)), marked(y, threat)
    others = logits.copy()
    others[rows, mark] = -np.inf
    weights = np.zeros_like(logits)
    weights[rows, np.argmax(others, axis=1)] = 1.0
    weights[rows, mark] = -1.0
    return model.gradient(X, weights if threat.goal == "any" else -weights)
