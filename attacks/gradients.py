"""Gradients of fitted scikit-learn classifiers: linear ones and multi-layer perceptrons, behind scalers or bare."""

from __future__ import annotations

from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from attacks.errors import ModelError
from attacks.network import Activation, Network


def adapt(estimator: Any) -> Network:
    """The network that a fitted classifier is; its logits and their order of classes are the estimator's.

    Takes linear classifiers (anything fitted that has `coef_`, `intercept_` and `classes_`: LogisticRegression,
    LinearSVC, SGDClassifier, RidgeClassifier, LinearDiscriminantAnalysis ...), MLPClassifier, and a Pipeline of
    StandardScaler, MinMaxScaler (without clipping) or MaxAbsScaler steps that ends in one of them. Two classes become
    two columns, the first of them 0. Probabilities equal the estimator's where it has a softmax or logistic link.

    Raises
    ------
    ModelError
        For any other estimator, or one that is not fitted.
    """
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    last = steps[-1]
    if isinstance(last, MLPClassifier) and hasattr(last, "coefs_"):
        weights, biases = [np.array(w) for w in last.coefs_], [np.array(b) for b in last.intercepts_]
        activation = last.activation
    elif all(hasattr(last, name) for name in ("coef_", "intercept_", "classes_")):
        weights = [np.atleast_2d(np.asarray(last.coef_, dtype=np.float64)).T]
        biases = [np.broadcast_to(np.asarray(last.intercept_, dtype=np.float64).ravel(), weights[0].shape[1]).copy()]
        activation = "identity"
    else:
        raise ModelError(
            f"no gradients for {type(last).__name__}; fitted linear classifiers and a fitted MLPClassifier have them"
        )
    if getattr(last, "out_activation_", "") == "logistic" and weights[-1].shape[1] > 1:
        raise ModelError("no gradients for an MLPClassifier with several labels a row")
    if activation not in get_args(Activation):
        raise ModelError(f"no gradients for the activation {activation!r}")
    if weights[-1].shape[1] == 1:
        weights[-1] = np.hstack([np.zeros_like(weights[-1]), weights[-1]])
        biases[-1] = np.concatenate([[0.0], biases[-1]])
    for scaler in reversed(steps[:-1]):
        factor, shift = _affine(scaler, len(weights[0]))
        biases[0] = biases[0] + shift @ weights[0]
        weights[0] = factor[:, None] * weights[0]
    return Network(tuple(weights), tuple(biases), cast("Activation", activation))


def _affine(scaler: Any, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A scaler as x * factor + shift."""
    if scaler in (None, "passthrough"):
        return np.ones(width), np.zeros(width)
    if isinstance(scaler, StandardScaler):
        factor = np.ones(width) if scaler.scale_ is None else 1.0 / scaler.scale_
        return factor, np.zeros(width) if scaler.mean_ is None else -scaler.mean_ * factor
    if isinstance(scaler, MinMaxScaler) and not scaler.clip:
        return np.asarray(scaler.scale_), np.asarray(scaler.min_)
    if isinstance(scaler, MaxAbsScaler) and not getattr(scaler, "clip", False):
        return 1.0 / np.asarray(scaler.scale_), np.zeros(width)
    raise ModelError(f"no gradients through the step {type(scaler).__name__}; scalers without clipping have them")
