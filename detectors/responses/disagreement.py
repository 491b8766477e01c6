"""Surrogate disagreement: do models that learned the watched one's past answers answer otherwise now?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import trees as kernels
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.surrogate import learning
from detectors.trees import Trees, read
from detectors.view import standard_rows

#: Rows that surrogates learn from, at most.
MAX_ROWS = 10_000
#: Boosting steps, units of the network's hidden layer and passes over the rows.
BOOSTING_STEPS, HIDDEN_UNITS, PASSES = 60, 64, 60
#: ln of the least probability that a surrogate is taken to give.
LOG_FLOOR = float(np.log(1e-6))
#: A probability of the watched model below this adds nothing.
LEAST_PROBABILITY = 1e-12
#: The watched model's scores are taken for probabilities when they sum to 1 within this.
SUM_TOLERANCE = 1e-2

_PARTS = ("hidden", "hidden_bias", "output", "output_bias", "linear", "linear_bias")


class Disagreement:
    """Mean Kullback-Leibler divergence of the watched model's answer from those of three surrogates.

    The surrogates are boosted trees, a network with one hidden layer, and a logistic regression, fitted on the labels
    that the model gave. Where an event carries no probabilities, its label is taken as certain.

    Blind to: adversarial inputs that transfer to all three, as such crafted on a surrogate do.

    References
    ----------
    Query by committee: Seung, Opper & Sompolinsky, COLT 1992; on adversarial inputs, detection by the disagreement of
    models: Monteiro, Albuquerque, Akhtar & Falk, "Generalizable Adversarial Examples Detection Based on Bi-model
    Decision Mismatch", IEEE SMC 2019.
    """

    name = "disagreement"

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Fit the surrogates on the model's answers to reference rows, its errors included."""
        told = Reference(reference.inputs, reference.labels)
        rows, labels = standard_rows(told, schema, rng, MAX_ROWS)
        self._classes = len(schema.classes)
        seed = int(rng.integers(2**31))
        seen = np.unique(labels)
        self._blank(schema.width)
        if len(seen) > 1:
            self._learn(rows, labels, seen, seed)
        else:
            self.base_[seen] = 0.0
            self.layers_["output_bias"][seen] = 0.0
            self.layers_["linear_bias"][seen] = 0.0
        return self

    def _blank(self, width: int) -> None:
        k = self._classes
        self.base_ = np.full(k, LOG_FLOOR)
        self.columns_ = np.zeros(1, dtype=np.int32)
        none = np.zeros(1, dtype=np.int32)
        self.trees_ = Trees(none, np.full(1, np.inf), none, none, none, none, single=False)
        self.values_ = np.zeros(1)
        self.layers_ = {
            "hidden": np.zeros((width, HIDDEN_UNITS)),
            "hidden_bias": np.zeros(HIDDEN_UNITS),
            "output": np.zeros((HIDDEN_UNITS, k)),
            "output_bias": np.full(k, LOG_FLOOR),
            "linear": np.zeros((width, k)),
            "linear_bias": np.full(k, LOG_FLOOR),
        }

    def _learn(self, rows: NDArray[np.float64], labels: NDArray[np.int32], seen: NDArray[np.int32], seed: int) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier

        boosted = HistGradientBoostingClassifier(max_iter=BOOSTING_STEPS, random_state=seed, early_stopping=False)
        network = MLPClassifier((HIDDEN_UNITS,), max_iter=PASSES, random_state=seed, alpha=1e-2)
        linear = LogisticRegression(max_iter=200, C=0.1)
        with learning():
            for learner in (boosted, network, linear):
                learner.fit(rows, labels)
        self._take_trees(boosted, seen)
        self.layers_["hidden"], self.layers_["hidden_bias"] = network.coefs_[0], network.intercepts_[0]
        _take(self.layers_, "output", network.coefs_[1], network.intercepts_[1], seen)
        _take(self.layers_, "linear", linear.coef_.T, linear.intercept_, seen)

    def _take_trees(self, boosted: Any, seen: NDArray[np.int32]) -> None:
        start = np.ravel(boosted._baseline_prediction)  # noqa: SLF001  (scikit-learn has no public name for it)
        columns, values = [], []
        for step in boosted._predictors:  # noqa: SLF001
            for column, predictor in enumerate(step):
                columns.append(seen[1] if len(step) == 1 else seen[column])
                values.append(predictor.nodes["value"][predictor.nodes["is_leaf"].astype(bool)])
        trees = read(boosted)
        # Leaves are numbered on from tree to tree, so that one array holds the values of all.
        first = np.cumsum([0, *(len(part) for part in values)])[:-1]
        tree_of = np.searchsorted(trees.roots, np.arange(len(trees.leaf)), side="right") - 1
        leaf = np.where(trees.leaf < 0, -1, trees.leaf + first[tree_of]).astype(np.int32)
        self.trees_ = Trees(trees.feature, trees.threshold, trees.left, trees.right, leaf, trees.roots, single=False)
        self.values_, self.columns_ = np.concatenate(values), np.array(columns, dtype=np.int32)
        self.base_[seen] = np.array([0.0, start[0]]) if len(start) == 1 else start

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) mean divergences, >= 0."""
        batch = view.batch
        return self._scores(view.standardised, batch.labels, batch.outputs)

    def _scores(
        self, standardised: NDArray[np.float64], labels: NDArray[np.int32], outputs: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        n, k = len(standardised), self._classes
        answers = np.zeros((n, k)) if outputs is None or outputs.shape[1] != k else np.ascontiguousarray(outputs)
        with np.errstate(invalid="ignore"):
            known = (np.abs(answers.sum(axis=1) - 1.0) < SUM_TOLERANCE) & (answers >= 0).all(axis=1)
        out = np.zeros(n)
        for logits in self._logits(standardised):
            kernels.log_softmax(logits, LOG_FLOOR)
            kernels.divergence(answers, known, labels, logits, LEAST_PROBABILITY, out)
        return out / len(self._names)

    _names = ("boosted trees", "a network", "a logistic regression")

    def _logits(self, rows: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        k, parts = self._classes, self.layers_
        rows = np.ascontiguousarray(rows)
        boosted = np.tile(self.base_, (len(rows), 1))
        kernels.add_leaves(self.trees_.leaves(rows), self.values_, self.columns_, boosted)
        inner, network, linear = np.empty((len(rows), HIDDEN_UNITS)), np.empty((len(rows), k)), np.empty((len(rows), k))
        kernels.layer(rows, parts["hidden"], parts["hidden_bias"], True, inner)
        kernels.layer(inner, parts["output"], parts["output_bias"], False, network)
        kernels.layer(rows, parts["linear"], parts["linear_bias"], False, linear)
        return [boosted, network, linear]

    def explain(self, view: View, row: int) -> str:
        """Which surrogates say something else."""
        label = int(view.batch.labels[row])
        found = self._logits(np.ascontiguousarray(view.standardised[row : row + 1]))
        others = [name for name, logits in zip(self._names, found, strict=True) if int(logits[0].argmax()) != label]
        if others:
            return f"models that learned the watched one's past answers answer otherwise here: {', '.join(others)}"
        return "models that learned the watched one's past answers are less sure of this answer than it is"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The surrogates."""
        return {
            **self.trees_.arrays(),
            "values": self.values_,
            "columns": self.columns_,
            "base": self.base_,
            **{name: np.ascontiguousarray(self.layers_[name]) for name in _PARTS},
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made, width, k = cls(), schema.width, len(schema.classes)
        made._classes = k
        made.trees_ = Trees.restore(arrays, width)
        made.values_ = stored(arrays, "values", np.float64, None)
        within("leaf", made.trees_.leaf, -1, len(made.values_) - 1)
        made.columns_ = within("columns", stored(arrays, "columns", np.int32, len(made.trees_.roots)), 0, k - 1)
        made.base_ = stored(arrays, "base", np.float64, k)
        shapes = ((width, HIDDEN_UNITS), (HIDDEN_UNITS,), (HIDDEN_UNITS, k), (k,), (width, k), (k,))
        made.layers_ = {
            name: stored(arrays, name, np.float64, *shape) for name, shape in zip(_PARTS, shapes, strict=True)
        }
        return made


def _take(
    layers: dict[str, NDArray[np.float64]],
    name: str,
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    seen: NDArray[np.int32],
) -> None:
    """Put the weights of the classes that were seen in their columns; one column speaks for the second of two."""
    columns = seen[1:] if weights.shape[1] == 1 else seen
    layers[f"{name}_bias"][seen] = 0.0
    layers[name][:, columns] = weights
    layers[f"{name}_bias"][columns] = bias
