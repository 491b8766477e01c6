"""Pattern of usual values: which features have the one value that most rows have there?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored
from detectors.view import correct_rows

#: A feature has a usual value when at least this share of the reference has it.
LEAST_SHARE = 0.05
#: A value is the usual one within this share of the feature's observed range: numbers may come from single precision.
TOLERANCE = 1e-6
#: Rows of the whole reference that are added, in its shares, to those of each class.
PRIOR_ROWS = 5.0


class Pattern:
    """-ln of the chance, for the predicted class, of which features have their usual value and which have not.

    Many kinds of data hold exact repetitions: the background of a picture, words that a mail does not contain, amounts
    that are nearly always zero. Small changes everywhere break them all at once. Features are taken for independent.

    Blind to: data without usual values, and attacks that change only features which vary anyway.

    References
    ----------
    The likelihood of binary events of McCallum & Nigam, "A Comparison of Event Models for Naive Bayes Text
    Classification", AAAI workshop 1998, section 2.1, on patterns of zeros.
    """

    name = "pattern"

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn each feature's usual value, and how often each class has it."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        n, d = kept.inputs.shape
        self.usual_, self.slack_ = np.zeros(d), np.full(d, -1.0)
        for f in range(d):
            values, counts = np.unique(kept.inputs[:, f], return_counts=True)
            most = int(counts.argmax())
            self.usual_[f] = values[most]
            if counts[most] >= LEAST_SHARE * n and counts[most] > 1:
                self.slack_[f] = TOLERANCE * (float(np.ptp(values)) or 1.0)
        has = np.abs(kept.inputs - self.usual_) <= self.slack_
        pooled = (has.sum(axis=0) + 0.5) / (n + 1.0)
        self.cost_ = np.empty((2, len(schema.classes), d))
        for label in range(len(schema.classes)):
            mine = has[kept.labels == label]
            share = (mine.sum(axis=0) + PRIOR_ROWS * pooled) / (len(mine) + PRIOR_ROWS)
            self.cost_[0, label], self.cost_[1, label] = -np.log(share), -np.log1p(-share)
        self.cost_[:, :, self.slack_ < 0] = 0.0
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) sums over features, in nats."""
        batch = view.batch
        out = np.empty(len(batch))
        outliers.pattern_surprise(batch.inputs, batch.labels, self.usual_, self.slack_, self.cost_, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """How many features lost a value that nearly all rows of the class have."""
        x, label = view.batch.inputs[row], int(view.batch.labels[row])
        nearly_always = self.cost_[0, label] < 0.1
        lost = int(np.count_nonzero(nearly_always & (self.slack_ >= 0) & (np.abs(x - self.usual_) > self.slack_)))
        return f"{lost} features do not have the one value that nearly all rows of the predicted class have there"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Usual values, tolerances and costs."""
        return {"usual": self.usual_, "slack": self.slack_, "cost": self.cost_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made.usual_, made.slack_ = (stored(arrays, name, np.float64, schema.width) for name in ("usual", "slack"))
        made.cost_ = stored(arrays, "cost", np.float64, 2, len(schema.classes), schema.width)
        return made
