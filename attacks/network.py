"""A classifier of affine layers whose gradients are written down in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Activation = Literal["relu", "tanh", "logistic", "identity"]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (n, k) of positive numbers that sum to 1."""
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float64)


def activate(values: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """A layer's outputs of its sums."""
    if activation == "relu":
        return np.maximum(values, 0.0)
    if activation == "tanh":
        return np.tanh(values)
    if activation == "logistic":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), dtype=np.float64)
    return values


def slope(outputs: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """The derivative of `activate`, by its outputs."""
    if activation == "relu":
        return np.asarray(outputs > 0, dtype=np.float64)
    if activation == "tanh":
        return 1.0 - outputs * outputs
    if activation == "logistic":
        return outputs * (1.0 - outputs)
    return np.ones_like(outputs)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Affine layers with one activation between them; a single layer is a logistic regression. A `GradientModel`.

    Attributes
    ----------
    weights : tuple of float64 (inputs, outputs)
    biases : tuple of float64 (outputs,)
    activation : {"relu", "tanh", "logistic", "identity"}
        Of every layer but the last, whose sums are the logits.
    """

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]
    activation: Activation = "relu"

    def logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, k) scores before the softmax."""
        return self._layers(X)[-1]

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, k) probabilities."""
        return softmax(self.logits(X))

    def gradient(self, X: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, d) gradient of the sum over classes of weights (n, k) times logits, at each row."""
        layers = self._layers(X)
        flow = np.asarray(weights, dtype=np.float64)
        for number in range(len(self.weights) - 1, -1, -1):
            flow = flow @ self.weights[number].T
            if number:
                flow = flow * slope(layers[number - 1], self.activation)
        return flow

    def _layers(self, X: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        out, value = [], np.asarray(X, dtype=np.float64)
        for number, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = value @ weights + bias
            if number < len(self.weights) - 1:
                value = activate(value, self.activation)
            out.append(value)
        return out
