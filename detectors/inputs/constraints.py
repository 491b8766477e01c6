"""Constraint violations: values that no legitimate client sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.schema import FeatureSchema

#: Relative slack of a range, for numbers that went through single precision.
RANGE_SLACK = 1e-5
#: Weight of a feature that was constant in the reference and is not now.
PATTERN_WEIGHT = 0.25
#: A learned range reaches so many widths of the observed range beyond it.
LEARNED_MARGIN = 0.25


class Constraints:
    """Sum of violations: stated ranges, whole numbers, one-hot groups; learned ranges and constant features.

    A stated range weighs by how far it is exceeded in units of the range; a broken whole number or group weighs 1 each.
    Blind to: crafted inputs that keep the schema, as constrained attacks do (CAPGD, TabularBench 2024).
    """

    name = "constraints"

    def __init__(self) -> None:
        self._schema: FeatureSchema | None = None
        self.low_: NDArray[np.float64] = np.empty(0)
        self.high_: NDArray[np.float64] = np.empty(0)
        self.learned_low_: NDArray[np.float64] = np.empty(0)
        self.learned_high_: NDArray[np.float64] = np.empty(0)
        self.constant_: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self.values_: NDArray[np.float64] = np.empty(0)

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn ranges and constant features; take the stated ones from the schema."""
        seen_low, seen_high = reference.inputs.min(axis=0), reference.inputs.max(axis=0)
        width = np.maximum(seen_high - seen_low, 1e-12)
        self._schema = schema
        self.low_, self.high_ = schema.lows(), schema.highs()
        self.learned_low_ = seen_low - LEARNED_MARGIN * width
        self.learned_high_ = seen_high + LEARNED_MARGIN * width
        self.constant_ = seen_low == seen_high
        self.values_ = seen_low
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) sums of violations; 0 for a row that keeps everything."""
        return self._parts(view.batch.inputs).sum(axis=1)

    def _parts(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        schema = self._fitted()
        width = np.where(np.isfinite(self.high_ - self.low_), self.high_ - self.low_, 1.0)
        slack = RANGE_SLACK * np.maximum(width, 1e-12)
        parts = np.maximum(0.0, np.maximum(self.low_ - inputs - slack, inputs - self.high_ - slack)) / np.maximum(width, 1e-12)
        learned = np.maximum(self.learned_high_ - self.learned_low_, 1e-12)
        parts += np.maximum(0.0, np.maximum(self.learned_low_ - inputs, inputs - self.learned_high_)) / learned
        parts += PATTERN_WEIGHT * (self.constant_ & (np.abs(inputs - self.values_) > 1e-9))
        whole = schema.integral()
        if whole.any():
            parts[:, whole] += np.abs(inputs[:, whole] - np.rint(inputs[:, whole])) > 1e-6
        for columns in schema.groups().values():
            group = inputs[:, columns]
            broken = (np.count_nonzero(group, axis=1) != 1) | (np.abs(group.max(axis=1) - 1.0) > 1e-6)
            parts[:, columns[0]] += broken
        return np.asarray(parts)

    def explain(self, view: View, row: int) -> str:
        """The worst offender by name."""
        schema = self._fitted()
        parts = self._parts(view.batch.inputs[row : row + 1])[0]
        if not parts.any():
            return "the input keeps the schema"
        worst = int(np.argmax(parts))
        count = int(np.count_nonzero(parts))
        value = float(view.batch.inputs[row, worst])
        return f"{count} feature(s) break the schema or what was ever seen, first {schema.features[worst].name} = {value:.4g}"

    def _fitted(self) -> FeatureSchema:
        if self._schema is None:
            raise ValueError("constraints: call fit first")
        return self._schema

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Learned ranges and constants; stated ones come from the schema."""
        return {
            "learned_low": self.learned_low_,
            "learned_high": self.learned_high_,
            "constant": self.constant_,
            "values": self.values_,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made._schema = schema
        made.low_, made.high_ = schema.lows(), schema.highs()
        made.learned_low_, made.learned_high_ = arrays["learned_low"], arrays["learned_high"]
        made.constant_, made.values_ = arrays["constant"].astype(bool), arrays["values"]
        return made
