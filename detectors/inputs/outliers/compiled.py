"""What detectors have in common that PyOD fits and that score from arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.schema import FeatureSchema
from detectors.view import standard_rows


class Compiled(ABC):
    """A detector of PyOD that is fitted by PyOD on standardised rows and scores without it.

    `decision_function` equals PyOD's method of that name to rounding, whatever else is in the batch. Where PyOD would
    give an infinite score or none, the score is finite.
    """

    name: ClassVar[str]
    #: What a high score means, in one sentence for people.
    meaning: ClassVar[str]

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Fit with PyOD, then compile."""
        rows, _ = standard_rows(reference, schema, rng)
        return self.compile(self._learn(rows, int(rng.integers(2**31))))

    @abstractmethod
    def _learn(self, rows: NDArray[np.float64], seed: int) -> Any:
        """PyOD's detector, fitted on the rows."""

    @abstractmethod
    def compile(self, fitted: Any) -> Self:
        """Take over a detector that PyOD has fitted."""

    @abstractmethod
    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) scores of rows (n, d) in C order, in the units of the rows that it was fitted on."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted."""

    @classmethod
    @abstractmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) outlier scores."""
        return self.decision_function(view.standardised)

    def explain(self, view: View, row: int) -> str:
        """The score and what it means."""
        one = np.ascontiguousarray(view.standardised[row : row + 1])
        return f"{self.meaning} ({self.name} scores {float(self.decision_function(one)[0]):.4g})"
