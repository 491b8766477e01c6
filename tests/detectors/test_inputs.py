"""The detectors of single inputs, one by one, and the reference they share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyod.models.iforest import IForest
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits

from detectors import registry
from detectors.condense import MIN_ROWS_A_CLASS, condense
from detectors.contract import Batch, Reference
from detectors.errors import FitError
from detectors.inputs.constraints import LEARNED_MARGIN, Constraints
from detectors.inputs.isolation_forest import IsolationForest
from detectors.inputs.mahalanobis import Mahalanobis
from detectors.inputs.residual import KEPT_VARIANCE, PcaResidual
from detectors.inputs.trust_ratio import FLOOR, TrustRatio
from detectors.kernels import rows
from detectors.schema import Feature, FeatureSchema
from detectors.view import BatchView, ReferenceFrame, feature_scales

DIGITS = FeatureSchema.image((8, 8), [str(digit) for digit in range(10)])


def digits(n: int, seed: int) -> Reference:
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(pixels), n)
    inputs = np.clip(pixels[chosen] / 16 + rng.normal(0, 0.05, (n, 64)), 0, 1)
    return Reference(inputs, labels[chosen].astype(np.int32))


def batch_of(inputs: NDArray[np.float64], labels: NDArray[np.int32]) -> Batch:
    wide = np.zeros(len(inputs), dtype=np.int64)
    return Batch(inputs, labels, wide.astype(np.uint64), wide, wide, labels)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return digits(2000, 0)


@pytest.fixture(scope="module")
def view(reference: Reference) -> BatchView:
    frame = ReferenceFrame.fit(reference, 10, np.random.default_rng(1))
    fresh = digits(300, 2)
    return BatchView(frame, batch_of(fresh.inputs, fresh.labels))


# --- the shared reference ---------------------------------------------------------------------------------------------


def test_trust_ratio_equals_distances_measured_one_by_one(view: BatchView) -> None:
    scores = TrustRatio().score(view)
    frame = view.frame
    for row in range(0, 300, 7):
        distances = np.sqrt(((frame.standardised - view.standardised[row]) ** 2).sum(axis=1))
        own = frame.labels == view.batch.labels[row]
        nearest, other = distances[own].min(), distances[~own].min()
        assert view.own_distance[row] == pytest.approx(np.sort(distances[own])[rows.OWN_RANK - 1], abs=1e-12)
        assert scores[row] == pytest.approx(np.log((nearest + FLOOR) / (other + FLOOR)), abs=1e-12)


def test_trust_ratio_is_larger_for_a_wrong_label(view: BatchView) -> None:
    right = TrustRatio().score(view)
    swapped = batch_of(view.batch.inputs, ((view.batch.labels + 1) % 10).astype(np.int32))
    wrong = TrustRatio().score(BatchView(view.frame, swapped))
    assert (wrong > right).mean() > 0.99
    assert "nearer to another class" in TrustRatio().explain(BatchView(view.frame, swapped), int(wrong.argmax()))


def test_nearest_own_points_at_a_row_of_the_predicted_class(view: BatchView) -> None:
    assert (view.frame.labels[view.nearest_own] == view.batch.labels).all()


def test_frame_survives_its_arrays(view: BatchView) -> None:
    arrays = {name: array.copy() for name, array in view.frame.arrays().items()}
    for array in arrays.values():
        array.flags.writeable = False
    restored = BatchView(ReferenceFrame.restore(arrays, 10), view.batch)
    assert restored.own_squared.tobytes() == view.own_squared.tobytes()
    assert restored.other_squared.tobytes() == view.other_squared.tobytes()


def test_rows_the_model_got_wrong_are_left_out() -> None:
    sample = digits(500, 3)
    truth = sample.labels.copy()
    truth[::10] = (truth[::10] + 1) % 10
    frame = ReferenceFrame.fit(Reference(sample.inputs, sample.labels, truth=truth), 10, np.random.default_rng(0))
    wrong = {row.tobytes() for row in sample.inputs[::10]}
    assert len(frame.inputs) > 400
    assert not wrong & {row.tobytes() for row in frame.inputs}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda r: Reference(r.inputs[:0], r.labels[:0]), "no reference row is left"),
        (lambda r: Reference(r.inputs, r.labels, truth=(r.labels + 1) % 10), "no reference row is left"),
        (lambda r: Reference(r.inputs, r.labels + 1), "labels are 0 to 9"),
        (lambda r: Reference(r.inputs, r.labels[1:]), "2000 inputs but 1999 labels"),
        (lambda r: Reference(r.inputs[0], r.labels), r"must be \(n, d\)"),
    ],
)
def test_fit_says_what_the_reference_lacks(
    reference: Reference, spoil: Callable[[Reference], Reference], complaint: str
) -> None:
    with pytest.raises(FitError, match=complaint):
        ReferenceFrame.fit(spoil(reference), 10, np.random.default_rng(0))


def test_scales_keep_each_features_own_unit() -> None:
    rng = np.random.default_rng(0)
    inputs = np.column_stack([rng.normal(0, 1e4, 500), rng.normal(5, 1e-3, 500), np.full(500, 7.0), np.zeros(500)])
    inputs[0, 3] = 1.0
    mean, scale = feature_scales(inputs)
    np.testing.assert_allclose(mean, inputs.mean(axis=0))
    np.testing.assert_allclose(scale[:2], inputs[:, :2].std(axis=0))
    assert scale[2] > 0  # constant
    assert scale[3] < 0.05  # one rare value


def test_condensed_rows_are_distinct_sorted_and_proportional() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4, dtype=np.int32), [3000, 1500, 40, 5])[rng.permutation(4545)]
    standardised = rng.normal(size=(4545, 6))
    standardised[::2] = standardised[0]  # copies
    found = condense(standardised, labels, 5, 1000, np.random.default_rng(1))
    assert len(np.unique(found.rows)) == len(found.rows) == len(found.centres)
    assert (np.diff(labels[found.rows]) >= 0).all()
    sizes = np.bincount(labels[found.rows], minlength=5)
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=0.05)
    assert 0.9 * 990 <= sizes[0] + sizes[1] <= 991
    assert MIN_ROWS_A_CLASS <= sizes[2] <= 40
    assert sizes[3:].tolist() == [5, 0]
    again = condense(standardised, labels, 5, 1000, np.random.default_rng(1))
    assert again.rows.tolist() == found.rows.tolist()
    assert again.centres.tobytes() == found.centres.tobytes()


def test_centres_lie_nearer_to_their_class_than_rows_drawn_at_random(reference: Reference) -> None:
    mean, scale = feature_scales(reference.inputs)
    standardised = (reference.inputs - mean) / scale

    def spread(centres: NDArray[np.float64], labels: NDArray[np.int32]) -> float:
        squared = ((standardised[:, None, :] - centres[None]) ** 2).sum(axis=2)
        squared[reference.labels[:, None] != labels] = np.inf
        return float(squared.min(axis=1).mean())

    found = condense(standardised, reference.labels, 10, 200, np.random.default_rng(0))
    at_random = [np.random.default_rng(s).choice(2000, len(found.rows), replace=False) for s in range(5)]
    best = min(spread(standardised[drawn], reference.labels[drawn]) for drawn in at_random)
    assert spread(found.centres, reference.labels[found.rows]) < 0.9 * best


def test_large_classes_are_sampled_so_that_condensing_stays_quick() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(60_000, dtype=np.int32)
    found = condense(rng.normal(size=(60_000, 4)), labels, 1, 100, rng)
    assert 90 <= len(found.rows) <= 100


# --- residual ---------------------------------------------------------------------------------------------------------


def test_residual_equals_what_a_projection_leaves(reference: Reference, view: BatchView) -> None:
    detector = PcaResidual().fit(reference, DIGITS, np.random.default_rng(0))
    scores = detector.score(view)
    frame = view.frame
    for label in range(10):
        members = (reference.inputs[reference.labels == label] - frame.mean) / frame.scale
        centre = members.mean(axis=0)
        _, singular, directions = np.linalg.svd(members - centre, full_matrices=False)
        share = np.cumsum(singular**2) / (singular**2).sum()
        kept = directions[: int(np.searchsorted(share, KEPT_VARIANCE)) + 1]
        of_class = view.batch.labels == label
        centred = view.standardised[of_class] - centre
        left = np.linalg.norm(centred - centred @ kept.T @ kept, axis=1)
        np.testing.assert_allclose(scores[of_class], left, rtol=1e-3)


def test_residual_sees_noise_but_not_moves_inside_the_class(reference: Reference, view: BatchView) -> None:
    detector = PcaResidual().fit(reference, DIGITS, np.random.default_rng(0))
    noisy = np.clip(view.batch.inputs + np.random.default_rng(0).choice([-0.2, 0.2], (300, 64)), 0, 1)
    moved = BatchView(view.frame, batch_of(noisy, view.batch.labels))
    assert (detector.score(moved) > detector.score(view)).mean() > 0.95


def test_small_class_borrows_the_pooled_basis() -> None:
    sample = digits(600, 4)
    few = (sample.labels != 3) | (np.cumsum(sample.labels == 3) <= 4)
    detector = PcaResidual().fit(Reference(sample.inputs[few], sample.labels[few]), DIGITS, np.random.default_rng(0))
    pooled = detector.ranks_[3]
    assert pooled > max(np.delete(detector.ranks_, 3))  # the union of classes takes more directions than one class


# --- Mahalanobis ----------------------------------------------------------------------------------------------------


def test_mahalanobis_equals_the_quadratic_form(reference: Reference, view: BatchView) -> None:
    detector = Mahalanobis().fit(reference, DIGITS, np.random.default_rng(0))
    scores = detector.score(view)
    frame = view.frame
    for label in range(10):
        members = (reference.inputs[reference.labels == label] - frame.mean) / frame.scale
        estimate = LedoitWolf().fit(members)
        of_class = view.batch.labels == label
        squared = estimate.mahalanobis(view.standardised[of_class])
        np.testing.assert_allclose(scores[of_class], np.sqrt(squared), rtol=1e-3)


def test_mahalanobis_sees_signs_that_no_single_feature_shows(reference: Reference, view: BatchView) -> None:
    detector = Mahalanobis().fit(reference, DIGITS, np.random.default_rng(0))
    signs = np.random.default_rng(0).choice([-0.1, 0.1], (300, 64))
    moved = BatchView(view.frame, batch_of(np.clip(view.batch.inputs + signs, 0, 1), view.batch.labels))
    assert (detector.score(moved) > detector.score(view)).mean() > 0.9


# --- isolation forest -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forests(reference: Reference) -> tuple[IForest, IsolationForest]:
    fitted = IForest(random_state=7).fit(reference.inputs)
    return fitted, IsolationForest().compile(fitted)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 100, 300])
def test_compiled_forest_equals_pyod(forests: tuple[IForest, IsolationForest], n: int) -> None:
    inputs = digits(300, 9).inputs[:n]
    inputs[::3] += np.random.default_rng(n).normal(0, 1, inputs[::3].shape)
    fitted, compiled = forests
    np.testing.assert_allclose(compiled.decision_function(inputs), fitted.decision_function(inputs), rtol=0, atol=1e-9)


def test_compiled_forest_takes_the_same_side_on_a_threshold() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 4, (400, 3)) / 3.0
    fitted = IForest(random_state=1, n_estimators=30).fit(inputs)
    thresholds = np.concatenate([tree.tree_.threshold[tree.tree_.feature >= 0] for tree in fitted.estimators_])
    edge = np.repeat(thresholds[:, None], 3, axis=1)
    both = np.concatenate([edge, np.nextafter(edge, -9), np.nextafter(edge, 9), edge.astype(np.float32)])
    compiled = IsolationForest().compile(fitted)
    np.testing.assert_allclose(compiled.decision_function(both), fitted.decision_function(both), rtol=0, atol=1e-9)


def test_compiled_forest_equals_pyod_on_feature_subsets_and_few_rows() -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 9))
    fitted = IForest(random_state=3, n_estimators=25, max_features=0.5, max_samples=17).fit(inputs)
    compiled = IsolationForest().compile(fitted)
    np.testing.assert_allclose(compiled.decision_function(inputs), fitted.decision_function(inputs), rtol=0, atol=1e-9)


def test_fit_gives_pyods_forest(reference: Reference, view: BatchView) -> None:
    detector = IsolationForest().fit(reference, DIGITS, np.random.default_rng(5))
    fitted = IForest(random_state=int(np.random.default_rng(5).integers(2**31))).fit(reference.inputs)
    np.testing.assert_allclose(detector.score(view), fitted.decision_function(view.batch.inputs), rtol=0, atol=1e-9)


def test_compiled_forest_is_ten_times_faster_than_pyod(forests: tuple[IForest, IsolationForest]) -> None:
    inputs = digits(100, 9).inputs

    def seconds(score: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
        found = []
        for _ in range(5):
            start = time.process_time()
            score(inputs)
            found.append(time.process_time() - start)
        return min(found)

    fitted, compiled = forests
    assert seconds(fitted.decision_function) > 10 * seconds(compiled.decision_function)


# --- constraints ------------------------------------------------------------------------------------------------------

TABLE = FeatureSchema(
    (
        Feature("amount", 0.0, 100.0),
        Feature("age", 18, 99, integral=True),
        Feature("debt"),
        Feature("home", 0, 1, group="place"),
        Feature("away", 0, 1, group="place"),
        Feature("unused"),
    ),
    ("no", "yes"),
)
GOOD = [50.0, 40.0, 3.0, 1.0, 0.0, 2.5]


def fitted_constraints() -> tuple[Constraints, ReferenceFrame]:
    rng = np.random.default_rng(0)
    inputs = np.column_stack(
        [
            rng.uniform(0, 100, 400),
            rng.integers(18, 100, 400),
            rng.uniform(-10, 10, 400),
            np.arange(400) % 2,
            (np.arange(400) + 1) % 2,
            np.full(400, 2.5),
        ]
    ).astype(np.float64)
    inputs[0, 0], inputs[1, 0], inputs[2, 1], inputs[3, 1] = 0, 100, 18, 99
    inputs[0, 2], inputs[1, 2] = -10, 10
    reference = Reference(inputs, np.arange(400, dtype=np.int32) % 2)
    frame = ReferenceFrame.fit(reference, 2, rng)
    return Constraints().fit(reference, TABLE, rng), frame


@pytest.mark.parametrize(
    ("change", "score", "named"),
    [
        ({}, 0.0, "keeps the schema"),
        ({0: 100.0005}, 0.0, "keeps the schema"),
        ({0: 120.0}, 0.2, "amount = 120"),
        ({0: -30.0}, 0.3 + 0.05, "amount = -30"),
        ({1: 40.5}, 1.0, "age = 40.5"),
        ({2: 10 + 20 * LEARNED_MARGIN}, 0.0, "keeps the schema"),
        ({2: 10 + 20 * (LEARNED_MARGIN + 0.5)}, 0.5, "debt = 25"),
        ({3: 0.0}, 1.0, "one-hot group place"),
        ({4: 1.0}, 1.0, "one-hot group place"),
        ({3: 0.5, 4: 0.5}, 1.0, "one-hot group place"),
        ({5: 2.6}, rows.PATTERN_WEIGHT, "unused = 2.6"),
        ({2: 1e300}, rows.VIOLATION_CAP, "debt = 1e+300"),
        ({1: 40.5, 5: 0.0}, 1.0 + rows.PATTERN_WEIGHT, "age = 40.5, and 1 more"),
    ],
)
def test_each_violation_weighs_what_it_should(change: dict[int, float], score: float, named: str) -> None:
    detector, frame = fitted_constraints()
    row = np.array([GOOD])
    for column, value in change.items():
        row[0, column] = value
    view = BatchView(frame, batch_of(row, np.zeros(1, dtype=np.int32)))
    assert detector.score(view)[0] == pytest.approx(score, abs=1e-4)
    assert named in detector.explain(view, 0)


def test_constraints_score_nothing_before_a_fit(view: BatchView) -> None:
    with pytest.raises(ValueError, match="call fit or restore first"):
        Constraints().score(view)


# --- other machines ---------------------------------------------------------------------------------------------------

SCORE_FROM_FILES = """
import hashlib, sys
import numpy as np
from detectors import registry
from detectors.contract import Batch
from detectors.schema import FeatureSchema
from detectors.view import BatchView, ReferenceFrame
schema = FeatureSchema.image((8, 8), [str(digit) for digit in range(10)])
frame = ReferenceFrame.restore(np.load(sys.argv[1] + "/frame.npz"), 10)
rows = np.load(sys.argv[1] + "/rows.npz")
wide = np.zeros(len(rows["labels"]), dtype=np.int64)
view = BatchView(frame, Batch(rows["inputs"], rows["labels"], wide.astype(np.uint64), wide, wide, rows["labels"]))
digest = hashlib.sha256(view.own_distance.tobytes() + view.other_distance.tobytes() + view.nearest_own.tobytes())
for name in registry.DEFAULT:
    detector = registry.kind(name).restore(np.load(f"{sys.argv[1]}/{name}.npz"), schema)
    digest.update(detector.score(view).tobytes())
print(digest.hexdigest())
"""


def test_another_processor_gives_the_same_bits(tmp_path: Path, reference: Reference, view: BatchView) -> None:
    batch = view.batch
    saved: dict[str, dict[str, Any]] = {
        "frame": dict(view.frame.arrays()),
        "rows": {"inputs": batch.inputs, "labels": batch.labels},
    }
    for name in registry.DEFAULT:
        saved[name] = dict(registry.kind(name)().fit(reference, DIGITS, np.random.default_rng(0)).arrays())
    for name, arrays in saved.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)

    def digest(**environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCORE_FROM_FILES, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    plain = {"NUMBA_CPU_NAME": "generic", "OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"}
    assert digest(**plain) == digest()
