"""OC-score: do the leaves that the input reaches ever come together for its predicted class?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.errors import FitError
from detectors.kernels import trees as kernels
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.trees import Trees, read
from detectors.view import correct_rows

#: Reference rows that are kept.
MAX_ROWS = 5_000
#: Leaves of a tree that two bytes can number.
MAX_LEAVES = 1 << 16
#: Nearest rows whose distances are averaged; the published score looks at one.
NEIGHBOURS = 1


class LeafDistance:
    """Share of trees whose leaf differs from that of the nearest reference row of the predicted class.

    The watched model is read once, at the fit; arrays of its trees score rows afterwards.

    Parameters
    ----------
    model : object, optional
        A fitted tree ensemble (`detectors.trees.read`).
    neighbours : int
        The mean distance to so many nearest rows is taken.

    Blind to: crafted inputs that reach leaves which benign rows of the new class reach together, and to everything in
    models that are no trees.

    References
    ----------
    Devos, Perini, Meert & Davis, "Detecting Evasion Attacks in Deployed Tree Ensembles", ECML PKDD 2023, section 4.
    """

    name = "oc_score"
    needs_model: ClassVar[bool] = True

    def __init__(self, model: Any = None, neighbours: int = NEIGHBOURS) -> None:
        self.model = model
        self.neighbours = neighbours

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Read the trees; keep the leaves of reference rows that the model got right, a random part where many."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        if self.model is None:
            raise FitError("oc_score reads the watched model's trees; give the model")
        trees = read(self.model)
        classes = getattr(self.model, "n_classes_", None)
        if isinstance(classes, int | np.integer) and classes != len(schema.classes):
            raise FitError(f"the model has {classes} classes; the schema has {len(schema.classes)}")
        if trees.feature.max() >= schema.width:
            raise FitError(f"the model's trees read feature {trees.feature.max()}; the schema has {schema.width}")
        if trees.leaf.max() >= MAX_LEAVES:
            raise FitError(f"a tree has {trees.leaf.max() + 1} leaves; oc_score numbers {MAX_LEAVES}")
        chosen = np.arange(len(kept))
        if len(chosen) > MAX_ROWS:
            chosen = np.sort(rng.choice(chosen, MAX_ROWS, replace=False))
        chosen = chosen[np.argsort(kept.labels[chosen], kind="stable")]
        bounds = np.searchsorted(kept.labels[chosen], np.arange(len(schema.classes) + 1)).astype(np.int64)
        return self._of(trees, trees.leaves(kept.inputs[chosen]).astype(np.uint16), bounds)

    def _of(self, trees: Trees, reference: NDArray[np.uint16], bounds: NDArray[np.int64]) -> Self:
        self.trees_, self.reference_, self.bounds_ = trees, reference, bounds
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) shares, 0 to 1."""
        return self._distances(view.batch.inputs, view.batch.labels)

    def _distances(self, inputs: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64]:
        found = self.trees_.leaves(inputs).astype(np.uint16)
        out = np.empty((len(found), self.neighbours), dtype=np.int32)
        kernels.nearest_leaves(found, labels, self.reference_, self.bounds_, out)
        return np.asarray(out.sum(axis=1) / (self.neighbours * len(self.trees_.roots)))

    def explain(self, view: View, row: int) -> str:
        """The share in words."""
        one = slice(row, row + 1)
        share = float(self._distances(view.batch.inputs[one], view.batch.labels[one])[0])
        return f"in {share:.0%} of the model's trees the input ends apart from every known row of its predicted class"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The trees and the leaves of the reference."""
        settings = np.array([self.neighbours], dtype=np.int64)
        return {**self.trees_.arrays(), "reference": self.reference_, "bounds": self.bounds_, "settings": settings}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        trees = Trees.restore(arrays, schema.width)
        within("leaf", trees.leaf, -1, MAX_LEAVES - 1)
        reference = stored(arrays, "reference", np.uint16, None, len(trees.roots))
        bounds = within("bounds", stored(arrays, "bounds", np.int64, len(schema.classes) + 1), 0, len(reference))
        if np.any(np.diff(bounds) < 0):
            raise ValueError("bounds are not in order")
        settings = within("neighbours", stored(arrays, "settings", np.int64, 1), 1, 1000)
        made = cls(neighbours=int(settings[0]))
        return made._of(trees, reference, bounds)
