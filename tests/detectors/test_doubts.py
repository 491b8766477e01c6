"""What makes one doubt the rows of a fit, and says so without changing it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.calibration.doubts import doubts
from detectors.contract import Batch, Reference
from detectors.schema import Feature, FeatureSchema
from detectors.surrogate import unlearnable

SCHEMA = FeatureSchema((Feature("age"), Feature("income"), Feature("never")), ("a", "b", "c"))
N = 300
LABELS = np.arange(N, dtype=np.int32) % 3


def inputs(seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.column_stack([LABELS + 0.2 * rng.normal(size=N), 1000.0 + 10.0 * rng.normal(size=N), np.ones(N)])


def scores(sharp: float = 8.0) -> NDArray[np.float64]:
    powers = np.exp(sharp * np.eye(3)[LABELS])
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


REFERENCE = Reference(inputs(0), LABELS, scores())


def benign(rows: NDArray[np.float64] | None = None, outputs: NDArray[np.float64] | None = None) -> Batch:
    place = np.arange(N, dtype=np.int64)
    return Batch(
        inputs=inputs(1) if rows is None else rows,
        labels=LABELS,
        clients=place.astype(np.uint64),
        times=place,
        offsets=place,
        rows=np.zeros(N, dtype=np.int32),
        outputs=outputs,
    )


def test_nothing_is_doubted_where_all_is_well() -> None:
    assert doubts(REFERENCE, None, SCHEMA) == []
    assert doubts(REFERENCE, benign(outputs=np.where(np.arange(N)[:, None] < 9, np.nan, scores())), SCHEMA) == []


def test_values_in_other_units_are_doubted_by_the_name_of_their_feature() -> None:
    (said,) = doubts(REFERENCE, benign(inputs(1) * np.array([1.0, 0.01, 1.0])), SCHEMA)
    assert "outside the range of the reference in income: both must be in the units" in said


def test_classes_in_another_order_are_doubted() -> None:
    (said,) = doubts(replace(REFERENCE, labels=2 - LABELS, outputs=scores()[:, ::-1]), benign(), SCHEMA)
    assert "of 98% of its rows, but of 33% of the benign events: look whether both number the classes" in said


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (5.0 * scores() - 2.0, "they are no probabilities"),
        (scores() * 0.9, "they are no probabilities"),
        (np.where(np.arange(N)[:, None] == 3, np.nan, scores()), "1 rows have none"),
        (scores()[:, [1, 2, 0]], "the label in 0.0% of the rows, and 99% are asked for"),
    ],
)
def test_scores_that_are_not_learned_from_are_told_with_the_reason(outputs: NDArray[np.float64], told: str) -> None:
    assert told in unlearnable(outputs, LABELS)
    (said,) = doubts(replace(REFERENCE, outputs=outputs), None, SCHEMA)
    assert said.startswith("the scores of the reference are not learned from") and told in said


def test_a_schema_in_other_units_is_doubted() -> None:
    stated = FeatureSchema(
        (Feature("age", integral=True), Feature("income", high=100.0), Feature("never")), SCHEMA.classes
    )
    (said,) = doubts(REFERENCE, None, stated)
    assert said.startswith("most reference rows break what the schema states of age, income, ")
