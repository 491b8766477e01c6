"""Learned relations: what is found, what is left alone, and how breaking it scores and reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from detectors.contract import Batch, Reference
from detectors.inputs.constraints import Constraints
from detectors.inputs.relations import LEAST_ROWS, Relations
from detectors.schema import Feature, FeatureSchema
from detectors.view import BatchView, ReferenceFrame

NAMES = ("total", "first", "second", "part", "whole", "count", "red", "green", "blue", "price")


def plain(width: int) -> FeatureSchema:
    return FeatureSchema(tuple(Feature(f"x{f}") for f in range(width)), ("no", "yes"))


SCHEMA = FeatureSchema(tuple(Feature(name) for name in NAMES), ("no", "yes"))
STATED = FeatureSchema(
    tuple(
        Feature(name, integral=name == "count", group="colour" if name in ("red", "green", "blue") else None)
        for name in NAMES
    ),
    ("no", "yes"),
)


def rows_of(n: int, seed: int) -> NDArray[np.float64]:
    """total = first + second + 5; part <= whole; count whole; one of three colours; price = 2 first + 100, to cents."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, len(NAMES)))
    x[:, 1], x[:, 2] = rng.lognormal(5, 1, n), rng.normal(0, 50, n)
    x[:, 0] = x[:, 1] + x[:, 2] + 5
    x[:, 4] = np.rint(rng.gamma(3, 20, n)) + 0.5
    x[:, 3] = np.where(rng.random(n) < 0.3, x[:, 4], x[:, 4] * rng.random(n))
    x[:, 5] = rng.poisson(2, n)
    x[np.arange(n), 6 + rng.choice(3, n, p=[0.7, 0.29, 0.01])] = 1.0
    x[:, 9] = np.round(2 * x[:, 1] + 100, 2)
    return x


def fitted(inputs: NDArray[np.float64], schema: FeatureSchema = SCHEMA) -> Relations:
    reference = Reference(inputs, np.zeros(len(inputs), dtype=np.int32))
    return Relations().fit(reference, schema, np.random.default_rng(0))


def view_of(inputs: NDArray[np.float64], like: NDArray[np.float64] | None = None) -> BatchView:
    like = inputs if like is None else like
    nothing = np.zeros(len(like), dtype=np.int32)
    frame = ReferenceFrame.fit(Reference(like, nothing), 2, np.random.default_rng(0), size=50)
    wide = np.zeros(len(inputs), dtype=np.int64)
    return BatchView(frame, Batch(inputs, wide.astype(np.int32), wide.astype(np.uint64), wide, wide, wide))


REFERENCE = rows_of(900, 1)
FRESH = rows_of(5000, 2)


@pytest.fixture(scope="module")
def learned() -> Relations:
    return fitted(REFERENCE)


def changed(feature: str, by: float, row: int = 0) -> NDArray[np.float64]:
    inputs = FRESH[row : row + 1].copy()
    inputs[0, NAMES.index(feature)] += by
    return inputs


def test_relations_are_found_and_only_those(learned: Relations) -> None:
    assert [set(np.flatnonzero(row)) for row in learned.matrix_] in ([{0, 1, 2}, {1, 9}], [{0, 2, 9}, {1, 9}])
    assert learned.pairs_.tolist() == [[3, 4]]
    assert np.flatnonzero(learned.whole_).tolist() == [5, 6, 7]  # blue is too rare to be told whole by itself
    assert [np.flatnonzero(group).tolist() for group in learned.groups_] == [[6, 7, 8]]


def test_rows_that_keep_relations_score_nothing(learned: Relations) -> None:
    assert not learned.score(view_of(FRESH, REFERENCE)).any()
    single = FRESH.astype(np.float32).astype(np.float64)
    assert not learned.score(view_of(single, REFERENCE)).any(), "numbers that came in single precision"


@pytest.mark.parametrize(
    ("feature", "by", "told"),
    [
        ("total", 1.0, "total = "),
        ("second", -0.5, "total = "),
        ("price", 3.0, "first = 0.5 price - 50"),
        ("part", 500.0, "part <= whole"),
        ("count", 0.5, "count is a whole number"),
        ("blue", 1.0, "one of red, green, blue is 1"),
    ],
)
def test_a_broken_relation_scores_and_is_named(learned: Relations, feature: str, by: float, told: str) -> None:
    view = view_of(changed(feature, by), REFERENCE)
    assert learned.score(view)[0] > 0.5
    assert told in learned.explain(view, 0)


def test_whole_numbers_and_groups_weigh_as_in_constraints(learned: Relations) -> None:
    constraints = Constraints().fit(
        Reference(REFERENCE, np.zeros(len(REFERENCE), dtype=np.int32)), STATED, np.random.default_rng(0)
    )
    blue = int(np.flatnonzero(FRESH[:, NAMES.index("blue")] == 0)[0])
    for feature, by in (("count", 0.25), ("blue", 1.0)):
        view = view_of(changed(feature, by, blue), REFERENCE)
        assert learned.score(view)[0] == constraints.score(view)[0] == 1.0


def test_what_the_schema_states_is_left_to_constraints() -> None:
    found = fitted(REFERENCE, STATED)
    assert not found.whole_.any()
    assert len(found.groups_) == 0
    assert len(found.matrix_) == 2


def test_scores_grow_with_the_miss_and_end_at_the_cap() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (1000, 3))
    x[:, 2] = x[:, 0] - x[:, 1] + rng.uniform(-1e-3, 1e-3, 1000)
    found = fitted(x, plain(3))
    assert found.slack_[0] == pytest.approx(4e-3, rel=0.05)
    off = np.array([0.0, 5e-3, 1e-2, 2e-2, 10.0])
    rows = np.column_stack([np.ones(5), np.ones(5), off])
    scores = found.score(view_of(rows, x))
    assert scores[:4] == pytest.approx([0, 0.25, 1.5, 4], abs=0.3)
    assert scores[4] == 16


def test_chance_is_no_relation() -> None:
    rng = np.random.default_rng(3)
    noise = np.concatenate([rng.normal(0, 1, (400, 20)), rng.lognormal(0, 2, (400, 20))], axis=1)
    found = fitted(noise, plain(40))
    assert not len(found.matrix_) + len(found.pairs_) + int(found.whole_.sum()) + len(found.groups_)


def test_sparse_features_that_meet_in_few_rows_are_not_tied() -> None:
    """Two words that only ever came together once, and flags set in the same few rows."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (500, 6))
    x[:, 2:] = 0.0
    x[7, 2:4] = 3.5, 7.0
    x[11:31, 4:] = 1.0
    found = fitted(x, plain(6))
    assert not len(found.matrix_) + len(found.pairs_) + int(found.whole_.sum()) + len(found.groups_)


@pytest.mark.parametrize("steps", [16, 1])
def test_pixels_in_steps_of_a_sixteenth_are_no_whole_numbers(steps: int) -> None:
    pixels, labels = load_digits(return_X_y=True)
    schema = FeatureSchema.image((8, 8), [str(d) for d in range(10)], high=16 / steps)
    found = Relations().fit(Reference(pixels / steps, labels.astype(np.int32)), schema, np.random.default_rng(0))
    assert not len(found.matrix_) + len(found.pairs_) + len(found.groups_)
    assert bool(found.whole_.any()) == (steps == 1)


def test_binary_pictures_give_no_equations_or_groups() -> None:
    pixels, labels = load_digits(return_X_y=True)
    schema = FeatureSchema.image((8, 8), [str(d) for d in range(10)])
    inputs = (pixels > 8).astype(np.float64)
    found = Relations().fit(Reference(inputs, labels.astype(np.int32)), schema, np.random.default_rng(0))
    assert not len(found.matrix_) + len(found.pairs_) + len(found.groups_)


def test_one_row_that_breaks_a_relation_unlearns_it() -> None:
    spoiled = REFERENCE.copy()
    spoiled[17, 0] += 1000.0
    spoiled[18, 5] += 0.5
    spoiled[19, 6:9] = 1.0
    spoiled[20, 3] = spoiled[20, 4] + 1.0
    found = fitted(spoiled)
    assert [set(np.flatnonzero(row)) for row in found.matrix_] == [{1, 9}]
    assert not found.whole_[5]
    assert not len(found.groups_) + len(found.pairs_)


def test_few_rows_teach_nothing() -> None:
    found = fitted(REFERENCE[: LEAST_ROWS - 1])
    assert not found.score(view_of(changed("total", 100.0), REFERENCE)).any()
    wide = np.concatenate([REFERENCE, np.random.default_rng(0).normal(0, 1, (len(REFERENCE), 240))], axis=1)
    assert len(fitted(wide, plain(wide.shape[1])).matrix_) == 0, "equations want four rows a feature"


def test_huge_values_score_finitely(learned: Relations) -> None:
    huge = np.concatenate([FRESH[:4]] * 2)
    huge[0], huge[1], huge[2, ::2], huge[2, 1::2] = 1.7e308, -1.7e308, 1.7e308, -1.7e308
    view = view_of(huge, REFERENCE)
    scores = learned.score(view)
    assert np.isfinite(scores).all()
    assert (scores[:3] > 16).all()
    assert all("nan" not in learned.explain(view, row) for row in range(4))


def test_reference_of_huge_values_is_fitted() -> None:
    x = REFERENCE.copy()
    x[:, 4] *= 1e300
    found = fitted(x)
    restored = Relations.restore(found.arrays(), SCHEMA)
    assert np.isfinite(restored.score(view_of(FRESH[:10], REFERENCE))).all()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("matrix", np.zeros((2, 10))),
        ("matrix", np.full((2, 10), np.nan)),
        ("matrix", np.ones((1, 10))),
        ("constant", np.zeros(3)),
        ("slack", np.array([-1.0, 0.0])),
        ("pairs", np.array([[3, 10]])),
        ("pairs", np.array([[-1, 2]])),
        ("units", np.zeros(1)),
        ("whole", np.zeros(9, dtype=np.bool_)),
        ("groups", np.zeros((1, 9), dtype=np.bool_)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(learned: Relations, name: str, array: NDArray[Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Relations.restore({**learned.arrays(), name: array}, SCHEMA)


def test_the_least_number_there_is_breaks_no_scoring() -> None:
    """Where an equation allows nothing at all, its miss is divided by zero."""
    rng = np.random.default_rng(3)
    inputs = rng.integers(-3, 4, (400, 3)).astype(np.float64)
    inputs[:, 0] = inputs[:, 1] + inputs[:, 2]
    made = fitted(inputs, plain(3))
    assert len(made.constant_)
    for name in ("slack_", "constant_"):
        getattr(made, name)[:] = 0.0
    least = np.array([[5e-324, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    restored = Relations.restore(made.arrays(), plain(3))
    scores = restored.score(view_of(least, inputs))
    assert np.isfinite(scores).all()
    assert scores[1] == 0.0 and (scores[[0, 2]] > 0.0).all()
