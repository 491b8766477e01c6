"""Constraint violations: values that no legitimate client sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import rows
from detectors.schema import FeatureSchema
from detectors.stored import stored
from detectors.view import correct_rows

#: Slack of ranges (as a share of their width), whole numbers and groups: numbers may come from single precision.
TOLERANCE = 1e-5
#: A learned range reaches so many widths of the observed range beyond it.
LEARNED_MARGIN = 0.25


class Constraints:
    """Sum of violations: stated ranges, whole numbers, one-hot groups; learned ranges and constant features.

    A range weighs by how far it is exceeded, in widths of the range (of the observed range where a stated one is open);
    a broken whole number or group weighs 1; a feature that was constant in the reference and is not now weighs
    `rows.PATTERN_WEIGHT`.

    Blind to: crafted inputs that keep the schema, as constrained attacks do; relations between features (`relations`
    learns some).

    References
    ----------
    Vedette's own method. Constraints that attacks on tables must keep, and do: Simonetto, Ghamizi & Cordy,
    "TabularBench: Benchmarking Adversarial Robustness for Tabular Deep Learning in Real-world Use-cases", NeurIPS 2024.
    """

    name = "constraints"

    def __init__(self) -> None:
        self._schema: FeatureSchema | None = None
        self.low_: NDArray[np.float64] = np.empty(0)
        self.high_: NDArray[np.float64] = np.empty(0)

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn observed ranges and constant features; the stated ones come from the schema."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        self.low_, self.high_ = kept.inputs.min(axis=0), kept.inputs.max(axis=0)
        self._prepare(schema)
        return self

    def _prepare(self, schema: FeatureSchema) -> None:
        self._schema = schema
        observed = self.high_ - self.low_
        constant = observed == 0.0
        size = np.maximum(np.abs(self.low_), 1.0)
        learned = np.where(constant, size, observed)
        margin = np.where(constant, 0.0, LEARNED_MARGIN * observed)
        low, high = schema.lows(), schema.highs()
        closed = np.isfinite(low) & np.isfinite(high) & (high > low)
        stated = np.ones(schema.width)
        np.subtract(high, low, out=stated, where=closed)
        groups = list(schema.groups().values())
        self._limits = (
            low,
            high,
            np.where(closed, stated, learned),
            self.low_ - margin,
            self.high_ + margin,
            learned,
            constant,
            schema.integral(),
            np.concatenate([*groups, np.empty(0, dtype=np.intp)]).astype(np.int64),
            np.cumsum([0, *(len(group) for group in groups)]).astype(np.int64),
            TOLERANCE,
        )

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) sums of violations; 0 for a row that keeps everything."""
        out = np.empty(len(view.batch))
        rows.row_sums(self._parts(view.batch.inputs), out)
        return out

    def _parts(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        self._fitted()
        parts = np.empty(inputs.shape)
        rows.violations(inputs, *self._limits, parts)
        return parts

    def explain(self, view: View, row: int) -> str:
        """The worst offender by name."""
        schema = self._fitted()
        parts = self._parts(view.batch.inputs[row : row + 1])[0]
        count = int(np.count_nonzero(parts))
        if not count:
            return "the input keeps the schema and the ranges that were seen"
        worst = int(np.argmax(parts))
        feature = schema.features[worst]
        value = float(view.batch.inputs[row, worst])
        found = f"{feature.name} = {value:.6g}"
        if feature.group is not None:
            found += f" (one-hot group {feature.group})"
        rest = "" if count == 1 else f", and {count - 1} more"
        return f"the input breaks the schema or a range that was always kept: {found}{rest}"

    def _fitted(self) -> FeatureSchema:
        if self._schema is None:
            raise ValueError("constraints: call fit or restore first")
        return self._schema

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Observed ranges; everything else follows from them and the schema."""
        return {"low": self.low_, "high": self.high_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made.low_, made.high_ = (stored(arrays, name, np.float64, schema.width) for name in ("low", "high"))
        made._prepare(schema)
        return made
