"""The watched model of the demo: a multilayer perceptron on digits, with the errors that it has."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streams.demo import digits
from streams.demo.digits import Pool

if TYPE_CHECKING:  # the served model needs no scikit-learn
    from sklearn.neural_network import MLPClassifier

#: Hidden layers.
HIDDEN = (64, 32)
#: Rows made of each picture for training.
ROWS_PER_PICTURE = 12
#: Passes over the training rows.
PASSES = 25


@dataclass(frozen=True, slots=True)
class Perceptron:
    """A multilayer perceptron with ReLU units and a softmax; `weights[i]` is float64 (inputs, outputs)."""

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class probabilities float64 (n, 10) of rows (n, 64)."""
        layer = inputs
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layer = np.maximum(layer @ weights + biases, 0.0)
        scores = layer @ self.weights[-1] + self.biases[-1]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        answers: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return answers

    def save(self, path: Path) -> None:
        """Write an npz."""
        arrays = {f"weights_{i}": w for i, w in enumerate(self.weights)}
        arrays |= {f"biases_{i}": b for i, b in enumerate(self.biases)}
        with path.open("wb") as out:
            np.savez(out, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Perceptron:
        """The inverse of `save`."""
        with np.load(path, allow_pickle=False) as stored:
            layers = range(len(stored.files) // 2)
            return cls(
                tuple(stored[f"weights_{i}"] for i in layers),
                tuple(stored[f"biases_{i}"] for i in layers),
            )


def train(pool: Pool, rng: np.random.Generator) -> Perceptron:
    """A model of the pool's pictures."""
    fitted = perceptron(pool, rng)
    return Perceptron(tuple(fitted.coefs_), tuple(fitted.intercepts_))


def perceptron(pool: Pool, rng: np.random.Generator) -> MLPClassifier:
    """The same model as scikit-learn's estimator."""
    from sklearn.exceptions import ConvergenceWarning

    inputs, truth = learning_rows(pool, rng)
    fitted = architecture(int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(inputs, truth)
    return fitted


def architecture(seed: int) -> MLPClassifier:
    """The estimator before it has learned anything."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        HIDDEN, alpha=1e-3, batch_size=128, learning_rate_init=0.004, max_iter=PASSES, random_state=seed
    )


def learning_rows(pool: Pool, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The pool's pictures and `ROWS_PER_PICTURE` fresh rows of each: inputs (m, 64), true classes (m,)."""
    which = np.repeat(np.arange(len(pool)), ROWS_PER_PICTURE)
    plain = digits.columns([digits.Style()]).repeat(len(which), axis=0)
    inputs = np.concatenate([pool.inputs, digits.fresh(pool.inputs[which], plain, rng)])
    return inputs, np.concatenate([pool.truth, pool.truth[which]])
