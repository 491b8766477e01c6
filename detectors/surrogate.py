"""A small network that stands for the watched model wherever a decision needs its margins.

What decides must be a function of the log and the bundle alone, so the watched model is not asked again: the bundle
carries its own copy, fitted on the model's answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference
from detectors.errors import FitError
from detectors.kernels import exact, margins
from detectors.schema import FeatureSchema
from detectors.view import ReferenceFrame

#: Units of the hidden layer.
HIDDEN_UNITS = 64
#: Rows of the reference that the network learns from, at most.
LEARN_ROWS = 20_000
#: Passes over the rows, at most.
EPOCHS = 200
#: Weight of the squared weights in the loss, a row, for labels and for scores. So much larger than what predicts best
#: because margins are compared along directions: between networks of one training set gradients agree with a cosine
#: of .3 on digits at the usual shrinkage, .65 at this.
LABEL_SHRINKAGE, SCORE_SHRINKAGE = 0.005, 0.15
#: A probability is taken as at least this: beyond it lies nothing that a margin has to tell.
LEAST_PROBABILITY = 1e-3
#: Share of rows whose largest score must be the stated label, else the scores aren't learned from.
AGREEMENT = 0.99
#: Logit of a class that the reference has no row of, below the others.
ABSENT_LOGIT = -20.0
#: Rows that pass through the network at once.
BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True)
class Surrogate:
    """One hidden layer of rectified units on standardised inputs.

    Weights, inputs and hidden values lie on grids of exact products (`detectors.kernels.exact`): the margin of a row
    does not depend, to the bit, on other rows or on the processor.

    Attributes
    ----------
    mean, scale : float64 (d,)
    hidden : float64 (d, h); hidden_bias : float64 (h,)
    output : float64 (h, k); output_bias : float64 (k,)
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    hidden: NDArray[np.float64]
    hidden_bias: NDArray[np.float64]
    output: NDArray[np.float64]
    output_bias: NDArray[np.float64]

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
        grid = exact.grid_for(schema.width)
        inputs = exact.standardise(reference.inputs[which], frame.mean, frame.scale, grid)
        labels = reference.labels[which]
        outputs = None if reference.outputs is None else _probabilities(reference.outputs[which], labels)
        seed = int(rng.integers(2**31))
        classes = len(schema.classes)
        if outputs is not None:
            layers = _learn_scores(inputs, outputs, seed)
        else:
            layers = _learn_labels(inputs, labels, classes, seed)
        hidden, hidden_bias, output, output_bias = layers
        hidden[np.ptp(inputs, axis=0) == 0] = 0.0  # never learned: the start's random weights would speak
        return cls(
            mean=frame.mean,
            scale=frame.scale,
            hidden=exact.on_grid(hidden, grid),
            hidden_bias=hidden_bias,
            output=exact.on_grid(output, exact.grid_for(hidden.shape[1])),
            output_bias=output_bias,
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
        hidden = standard @ self.hidden
        margins.activate(hidden, self.hidden_bias, exact.grid_for(hidden.shape[1]))
        margins.label_margins(hidden @ self.output, self.output_bias, labels, out)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "hidden": self.hidden,
            "hidden_bias": self.hidden_bias,
            "output": self.output,
            "output_bias": self.output_bias,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""
        names = ("mean", "scale", "hidden", "hidden_bias", "output", "output_bias")
        return cls(*(np.array(arrays[name], dtype=np.float64, order="C") for name in names))


def _probabilities(outputs: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64] | None:
    """The scores, where they are probabilities whose largest is the label; else None."""
    if not np.isfinite(outputs).all() or (outputs < -1e-6).any():
        return None
    if np.abs(outputs.sum(axis=1) - 1.0).max() > 1e-2 or (outputs.argmax(axis=1) == labels).mean() < AGREEMENT:
        return None
    return outputs


_Layers = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _learn_scores(inputs: NDArray[np.float64], outputs: NDArray[np.float64], seed: int) -> _Layers:
    """Regression on the logits (Ba & Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014)."""
    from sklearn.neural_network import MLPRegressor

    logits = np.log(np.maximum(outputs, LEAST_PROBABILITY))
    logits -= logits.mean(axis=1, keepdims=True)
    learner = MLPRegressor(
        hidden_layer_sizes=(HIDDEN_UNITS,), alpha=SCORE_SHRINKAGE * len(inputs), max_iter=EPOCHS, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stop at the last pass is good enough
        learner.fit(inputs, logits)
    return learner.coefs_[0], learner.intercepts_[0], learner.coefs_[1], learner.intercepts_[1]


def _learn_labels(inputs: NDArray[np.float64], labels: NDArray[np.int32], classes: int, seed: int) -> _Layers:
    """Classification of the labels; classes without rows get a constant low logit."""
    from sklearn.neural_network import MLPClassifier

    seen = np.unique(labels)
    output, output_bias = np.zeros((HIDDEN_UNITS, classes)), np.full(classes, ABSENT_LOGIT)
    output_bias[seen] = 0.0
    if len(seen) < 2:
        return np.zeros((inputs.shape[1], HIDDEN_UNITS)), np.zeros(HIDDEN_UNITS), output, output_bias
    learner = MLPClassifier((HIDDEN_UNITS,), alpha=LABEL_SHRINKAGE * len(inputs), max_iter=EPOCHS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stop at the last pass is good enough
        learner.fit(inputs, labels)
    last, last_bias = learner.coefs_[1], learner.intercepts_[1]
    if len(seen) == 2:  # one logistic unit speaks for the second class
        output[:, seen[1]], output_bias[seen[1]] = last[:, 0], last_bias[0]
    else:
        output[:, seen], output_bias[seen] = last, last_bias
    return learner.coefs_[0], learner.intercepts_[0], output, output_bias
