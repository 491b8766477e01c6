"""A small network that stands for the watched model wherever a decision needs its margins.

What decides must be a function of the log and the bundle alone, so the watched model is not asked again: the bundle
carries its own copy, fitted on the model's answers.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference
from detectors.errors import FitError
from detectors.kernels import exact, margins
from detectors.kernels.feedback import LEAST_PROBABILITY
from detectors.schema import FeatureSchema
from detectors.view import ReferenceFrame

#: Units of the hidden layers.
HIDDEN_UNITS = (128, 64)
#: Rows that the network learns from, at most.
LEARN_ROWS = 20_000
#: Rows of a step of learning, and passes over them: at most so many, and fewer of many rows.
STEP_ROWS, PASSES, ROWS_PASSED = 200, 200, 600_000
#: scikit-learn's alpha (it counts once a step) for labels and for scores. Margins are compared along directions, and
#: there a smooth network agrees best with another one: on digits, 2,000 rows, the cosine of gradients with the watched
#: model's is .77 learning from scores like this, .60 at a tenth of it, .5 learning from labels.
LABEL_SHRINKAGE, SCORE_SHRINKAGE = 3.0, 20.0
#: Share of rows whose largest score must be the stated label, else the scores aren't learned from.
AGREEMENT = 0.99
#: Logit of a class that the reference has no row of, below the others.
ABSENT_LOGIT = -20.0
#: Rows that pass through the network at once.
BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Two hidden layers of rectified units on standardised inputs.

    Weights, inputs and hidden values lie on grids of exact products (`detectors.kernels.exact`): the margin of a row
    does not depend, to the bit, on other rows or on the processor.

    Attributes
    ----------
    mean, scale : float64 (d,)
    weights : tuple of float64 (inputs, units)
    biases : tuple of float64 (units,)
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]

    @property
    def grid(self) -> float:
        """Steps a standard deviation of the inputs."""
        return exact.grid_for(len(self.mean))

    @classmethod
    def fit(cls, reference: Reference, schema: FeatureSchema, frame: ReferenceFrame, rng: np.random.Generator) -> Self:
        """Learn the watched model's answers on the reference: its scores where they are probabilities, else its labels.

        Raises
        ------
        FitError
            When there are no rows, or they don't fit the schema.
        """
        if len(reference) == 0 or reference.inputs.shape[1] != schema.width:
            raise FitError(
                f"a surrogate needs reference rows of {schema.width} features, got shape {reference.inputs.shape}"
            )
        which = np.arange(len(reference))
        if len(which) > LEARN_ROWS:
            which = np.sort(rng.choice(which, LEARN_ROWS, replace=False))
        inputs = exact.standardise(reference.inputs[which], frame.mean, frame.scale, exact.grid_for(schema.width))
        labels = reference.labels[which]
        outputs = None if reference.outputs is None else _probabilities(reference.outputs[which], labels)
        seed = int(rng.integers(2**31))
        if outputs is not None:
            weights, biases = _learn_scores(inputs, outputs, seed)
        else:
            weights, biases = _learn_labels(inputs, labels, len(schema.classes), seed)
        weights[0][np.ptp(inputs, axis=0) == 0] = 0.0  # never learned: the start's random weights would speak
        return cls(
            mean=frame.mean,
            scale=frame.scale,
            weights=tuple(np.ascontiguousarray(exact.on_grid(w, exact.grid_for(len(w)))) for w in weights),
            biases=tuple(np.ascontiguousarray(b) for b in biases),
        )

    def margins(self, rows: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64]:
        """ln(p of the given label) - ln(largest other p).

        Parameters
        ----------
        rows : float64 (m, d)
            In the units of the schema.
        labels : int32 (m,)

        Returns
        -------
        float64 (m,)
        """
        out = np.empty(len(rows))
        for start in range(0, len(rows), BLOCK_ROWS):
            block = np.ascontiguousarray(rows[start : start + BLOCK_ROWS])
            standard = np.empty(block.shape)
            margins.standard_rows(block, self.mean, self.scale, self.grid, standard)
            self.standard_margins(standard, labels[start : start + BLOCK_ROWS], out[start : start + BLOCK_ROWS])
        return out

    def standard_margins(
        self, standard: NDArray[np.float64], labels: NDArray[np.int32], out: NDArray[np.float64]
    ) -> None:
        """The same of rows (m, d) in standard form, into out (m,)."""
        layer = standard
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layer = layer @ weights
            margins.activate(layer, biases, exact.grid_for(layer.shape[1]))
        margins.label_margins(layer @ self.weights[-1], self.biases[-1], labels, out)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted."""
        layers = zip(self.weights, self.biases, strict=True)
        return {
            "mean": self.mean,
            "scale": self.scale,
            **{f"{name}_{i}": part for i, layer in enumerate(layers) for name, part in zip(_PARTS, layer, strict=True)},
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""

        def array(name: str) -> NDArray[np.float64]:
            return np.array(arrays[name], dtype=np.float64, order="C")

        layers = range(sum(name.startswith("weights_") for name in arrays))
        weights, biases = (tuple(array(f"{part}_{i}") for i in layers) for part in _PARTS)
        return cls(array("mean"), array("scale"), weights, biases)


_PARTS = ("weights", "biases")
_Layers = tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]


def unlearnable(outputs: NDArray[np.float64], labels: NDArray[np.int32]) -> str:
    """Why scores (n, k) are not learned from: they are probabilities whose largest is the label, or a sentence."""
    if not len(outputs):
        return ""
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        return f"{np.count_nonzero(~finite)} rows have none; leave those rows out"
    if (outputs < -1e-6).any() or np.abs(outputs.sum(axis=1) - 1.0).max() > 1e-2:
        return "they are no probabilities (not negative, sum 1); give those, the softmax of logits"
    agree = float((outputs.argmax(axis=1) == labels).mean())
    if agree < AGREEMENT:
        return f"the largest of them is the label in {agree:.1%} of the rows, and {AGREEMENT:.0%} are asked for"
    return ""


def _probabilities(outputs: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64] | None:
    """The scores, where they are probabilities whose largest is the label; else None."""
    return None if unlearnable(outputs, labels) else outputs


@contextmanager
def interruptible() -> Iterator[None]:
    """Around the fit of scikit-learn's networks: Ctrl-C ends it.

    They take a KeyboardInterrupt for the end of learning, with a warning, and would go on as they are by then.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Training interrupted by user", UserWarning)
        try:
            yield
        except UserWarning as told:
            if "interrupted" not in str(told):
                raise
            raise KeyboardInterrupt from None


@contextmanager
def learning() -> Iterator[None]:
    """Around the fit of estimators of scikit-learn: warnings are not told, as a stop at the last pass is good enough,
    and Ctrl-C ends it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with interruptible():
            yield


def _settings(rows: int, shrinkage: float, seed: int) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": HIDDEN_UNITS,
        "alpha": shrinkage,
        "batch_size": min(STEP_ROWS, rows),
        "max_iter": max(20, min(PASSES, ROWS_PASSED // rows)),
        "random_state": seed,
    }


def _learn_scores(inputs: NDArray[np.float64], outputs: NDArray[np.float64], seed: int) -> _Layers:
    """Regression on the logits (Ba & Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014)."""
    from sklearn.neural_network import MLPRegressor

    logits = np.log(np.maximum(outputs, LEAST_PROBABILITY))
    logits -= logits.mean(axis=1, keepdims=True)
    learner = MLPRegressor(**_settings(len(inputs), SCORE_SHRINKAGE, seed))
    with learning():
        learner.fit(inputs, logits)
    return learner.coefs_, learner.intercepts_


def _learn_labels(inputs: NDArray[np.float64], labels: NDArray[np.int32], classes: int, seed: int) -> _Layers:
    """Classification of the labels; classes without rows get a constant low logit."""
    from sklearn.neural_network import MLPClassifier

    seen = np.unique(labels)
    output, output_bias = np.zeros((HIDDEN_UNITS[-1], classes)), np.full(classes, ABSENT_LOGIT)
    output_bias[seen] = 0.0
    if len(seen) < 2:
        sizes = (inputs.shape[1], *HIDDEN_UNITS)
        weights = [np.zeros(shape) for shape in itertools.pairwise(sizes)]
        return [*weights, output], [*(np.zeros(units) for units in HIDDEN_UNITS), output_bias]
    learner = MLPClassifier(**_settings(len(inputs), LABEL_SHRINKAGE, seed))
    with learning():
        learner.fit(inputs, labels)
    last, last_bias = learner.coefs_[-1], learner.intercepts_[-1]
    if len(seen) == 2:  # one logistic unit speaks for the second class
        output[:, seen[1]], output_bias[seen[1]] = last[:, 0], last_bias[0]
    else:
        output[:, seen], output_bias[seen] = last, last_bias
    return [*learner.coefs_[:-1], output], [*learner.intercepts_[:-1], output_bias]
