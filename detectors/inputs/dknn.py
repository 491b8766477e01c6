"""Deep k-nearest neighbours on inputs: do the rows most like this one have the predicted class?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.inputs.outliers.neighbours import Neighbours
from detectors.kernels import outliers
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.view import standard_rows

#: Neighbours that vote, at most, and the share of a reference's rows that may.
NEIGHBOURS, LARGEST_SHARE = 50, 0.05
#: Reference rows that are kept.
MAX_ROWS = 5_000


class DeepNeighbours:
    """How many of the nearest reference rows the model gives another class, nearer ones counting more.

    The published detector counts neighbours in every layer and takes their rank among held-out rows (credibility); here
    the layer is the input, the only one that events carry, and ranks are taken where all detectors' are. Neighbours are
    weighed by 1 / rank, which breaks ties between rows of a class that have no foreign neighbour at all or few.

    Blind to: adversarial inputs deep inside another class's region.

    References
    ----------
    Papernot & McDaniel, "Deep k-Nearest Neighbors: Towards Confident, Interpretable and Robust Deep Learning", 2018,
    equations 1 and 2.
    """

    name = "dknn"

    def __init__(self, neighbours: int = NEIGHBOURS) -> None:
        self.neighbours = neighbours

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Keep standardised rows, a random part of them where there are many."""
        rows, labels = standard_rows(reference, schema, rng, MAX_ROWS)
        self.neighbours = max(1, min(self.neighbours, round(LARGEST_SHARE * len(rows))))
        return self._of(rows, labels)

    def _of(self, rows: NDArray[np.float64], labels: NDArray[np.int32]) -> Self:
        self.rows_, self.labels_ = rows, labels
        self._search = Neighbours.of(rows)
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) weighed shares of foreign neighbours, 0 to 1."""
        _, index = self._search.search(view.standardised, self.neighbours)
        out = np.empty(len(index))
        outliers.foreign_share(index, self.labels_, view.batch.labels, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """How many of the neighbours disagree."""
        _, index = self._search.search(np.ascontiguousarray(view.standardised[row : row + 1]), self.neighbours)
        foreign = int(np.count_nonzero(self.labels_[index[0]] != view.batch.labels[row]))
        return f"of the {self.neighbours} reference rows most like the input, {foreign} have another class"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rows and their classes."""
        settings = np.array([self.neighbours], dtype=np.int64)
        return {"rows": self.rows_, "labels": self.labels_, "settings": settings}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        rows = stored(arrays, "rows", np.float64, None, schema.width)
        labels = within("labels", stored(arrays, "labels", np.int32, len(rows)), 0, len(schema.classes) - 1)
        settings = within("neighbours", stored(arrays, "settings", np.int64, 1), 1, len(rows))
        made = cls(int(settings[0]))
        return made._of(rows, labels)
