"""Margin: is the model nearly undecided, as where a search for the least change ends?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.schema import FeatureSchema
from detectors.view import correct_rows


class Margin:
    """1 - (largest - second largest score), of events that carry probabilities; 0 of others.

    Attacks that look for the smallest change end at the boundary, where the two largest probabilities are equal. Benign
    rows near it exist too, but few are as near.

    Blind to: events without scores, and attacks that go on beyond the boundary, as PGD does: these have a large margin.

    References
    ----------
    Maximum softmax probability: Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017; the margin is that of active learning (Scheffer, Decomain & Wrobel, 2001).
    """

    name = "margin"

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Check the reference; there is nothing to learn."""
        correct_rows(reference, len(schema.classes), schema.width)
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) scores, 0 to 1."""
        outputs = view.batch.outputs
        if outputs is None or outputs.shape[1] < 2 or len(outputs) == 0:
            return np.zeros(len(view.batch))
        most = np.partition(outputs, -2, axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            found = 1.0 - (most[:, -1] - most[:, -2])
        return np.where(np.isfinite(found), np.clip(found, 0.0, 1.0), 0.0)

    def explain(self, view: View, row: int) -> str:
        """The margin in words."""
        if view.batch.outputs is None:
            return "the event carries no scores, so nothing is known of the model's margin"
        margin = 1.0 - float(self.score(view)[row])
        return f"the model is nearly undecided: its two largest scores differ by {margin:.3g}"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is stored."""
        return {}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        return cls()
