"""Trust ratio: is the input nearer to another class than to the one the model says?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import rows
from detectors.schema import FeatureSchema
from detectors.view import correct_rows

#: Added to both distances (standard deviations), so that copies of reference rows stay finite.
FLOOR = 1e-3


class TrustRatio:
    """ln of the distance to the predicted class over the distance to the nearest other class.

    Both are distances to the nearest centre of the condensed reference: the averaging of centres takes the place of a
    k-th neighbour, and a 5th neighbour on one side alone was measured to be worse.

    Blind to: adversarial inputs that land deep inside another class's region.

    References
    ----------
    Jiang, Kim, Guan & Gupta, "To Trust Or Not To Trust A Classifier", NeurIPS 2018, section 3 (inverted: a larger score
    is less trustworthy).
    """

    name = "trust_ratio"

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Check the reference; there is nothing of its own to learn, as the view's condensed reference is shared."""
        correct_rows(reference, len(schema.classes), schema.width)
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) log ratios; 0 where either side has no reference rows."""
        out = np.empty(len(view.batch))
        rows.log_ratio(view.own_nearest, view.other_distance, FLOOR, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """Both distances in words."""
        own, other = float(view.own_nearest[row]), float(view.other_distance[row])
        distances = f"{own:.1f} sd to the predicted class, {other:.1f} sd to the nearest other"
        if other < own:
            return f"the input is nearer to another class than to the predicted one: {distances}"
        return f"the input lies between classes: {distances}"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is stored."""
        return {}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        return cls()
