"""Detectors that ask the watched model again: the escalation tier, for rows that something else has singled out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference
from detectors.schema import FeatureSchema

Ask = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""The watched model: rows (m, d) in, probabilities (m, k) out. It must answer a row the same whenever it is asked."""


@runtime_checkable
class Inquiry(Protocol):
    """Scores single inputs by what the watched model says of others near them; a larger score is more adversarial.

    A fitted inquiry is a pure function of the row, its label and the callable. What it asks is drawn once, at the fit.
    It is as exact as the callable is: where the model answers a row the same to the bit in whatever company it is
    asked, a row's score is the same to the bit too, alone and in any batch.

    Attributes
    ----------
    name : str
    questions : int
        Rows that the model is asked for each row judged.
    """

    name: str

    @property
    def questions(self) -> int: ...

    def fit(self, reference: Reference, schema: FeatureSchema, ask: Ask, rng: np.random.Generator) -> Self:
        """Learn from benign rows what the model usually answers."""

    def score(self, inputs: NDArray[np.float64], labels: NDArray[np.int32], ask: Ask) -> NDArray[np.float64]:
        """(n,) finite scores of rows (n, d) that the model gave labels (n,).

        Raises
        ------
        InquiryError
            The rows do not fit the schema, or the model's answers are not probabilities of the schema's classes.
        """

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything fitted, as named arrays."""

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.generic]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
