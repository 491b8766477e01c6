"""Compiled detectors of PyOD against PyOD, exact neighbours, and detectors that run as PyOD gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyod.models.ecod import ECOD
from pyod.models.gmm import GMM
from pyod.models.hbos import HBOS
from pyod.models.kde import KDE
from pyod.models.knn import KNN
from pyod.models.loda import LODA
from pyod.models.lof import LOF
from pyod.models.mcd import MCD
from pyod.models.pca import PCA

from detectors import registry
from detectors.contract import Batch, Reference
from detectors.errors import DetectorError, FitError
from detectors.inputs.isolation_forest import IsolationForest
from detectors.inputs.outliers.ecod import Ecod
from detectors.inputs.outliers.gmm import Gmm
from detectors.inputs.outliers.hbos import Hbos
from detectors.inputs.outliers.knn import Knn
from detectors.inputs.outliers.loda import Loda
from detectors.inputs.outliers.lof import Lof
from detectors.inputs.outliers.mcd import Mcd
from detectors.inputs.outliers.neighbours import Neighbours
from detectors.inputs.outliers.pca import Pca
from detectors.kernels import outliers
from detectors.schema import Feature, FeatureSchema
from detectors.view import BatchView, ReferenceFrame

WIDTH = 17
SCHEMA = FeatureSchema(tuple(Feature(f"x{f}") for f in range(WIDTH)), ("no", "yes"))


def table(n: int, seed: int) -> NDArray[np.float64]:
    """Correlated, skewed both ways, whole numbers, a rare flag; fixed mixing."""
    mixing = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)) * 0.4 + np.eye(WIDTH)
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(n, WIDTH)) @ mixing
    made[:, 0], made[:, 1] = np.exp(made[:, 0]), -np.exp(made[:, 1])
    made[:, 2] = np.rint(made[:, 2] * 2)
    made[:, 3] = rng.random(n) < 0.1
    return made


REFERENCE = table(800, 1)
FRESH = np.concatenate([table(90, 2), REFERENCE[:6], 5.0 * table(20, 3), [np.full(WIDTH, 60.0), np.full(WIDTH, -60.0)]])

CASES: dict[str, tuple[type[Any], Any]] = {
    "hbos": (Hbos, HBOS()),
    "hbos, automatic bins": (Hbos, HBOS(n_bins="auto")),
    "hbos, wide tolerance": (Hbos, HBOS(n_bins=4, alpha=0.3, tol=0.9)),
    "pca": (Pca, PCA()),
    "pca, few components": (Pca, PCA(n_components=9, n_selected_components=4, standardization=False)),
    "pca, equal weights": (Pca, PCA(weighted=False)),
    "knn": (Knn, KNN()),
    "knn, mean": (Knn, KNN(n_neighbors=11, method="mean")),
    "knn, median of even": (Knn, KNN(n_neighbors=8, method="median")),
    "lof": (Lof, LOF(novelty=True)),
    "lof, 7": (Lof, LOF(n_neighbors=7, novelty=True)),
    "mcd": (Mcd, MCD(random_state=0)),
    "gmm": (Gmm, GMM(random_state=0)),
    "gmm, five": (Gmm, GMM(n_components=5, random_state=0)),
    "gmm, tied": (Gmm, GMM(n_components=3, covariance_type="tied", random_state=0)),
    "gmm, diagonal": (Gmm, GMM(n_components=3, covariance_type="diag", random_state=0)),
    "gmm, spherical": (Gmm, GMM(n_components=3, covariance_type="spherical", random_state=0)),
    "loda": (Loda, LODA(random_state=0)),
    "loda, automatic bins": (Loda, LODA(n_bins="auto", n_random_cuts=20, random_state=0)),
}


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(compiled, PyOD's own)."""
    kind, theirs = CASES[request.param]
    theirs.fit(REFERENCE)
    return kind().compile(theirs), theirs


def test_compiled_scores_are_those_of_pyod(pair: tuple[Any, Any]) -> None:
    mine, theirs = pair
    rows = FRESH
    if isinstance(mine, Loda | Knn):  # bins end at reference rows; PyOD's distance from a row to itself is 1e-8
        rows = np.delete(FRESH, np.s_[90:96], axis=0)
    np.testing.assert_allclose(mine.decision_function(rows), theirs.decision_function(rows), rtol=1e-9, atol=1e-9)


def test_compiled_scores_do_not_depend_on_the_batch(pair: tuple[Any, Any]) -> None:
    mine, _ = pair
    whole = mine.decision_function(FRESH)
    for size in (1, 7, 64):
        parts = [mine.decision_function(FRESH[a : a + size]) for a in range(0, len(FRESH), size)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_compiled_scores_survive_their_arrays(pair: tuple[Any, Any]) -> None:
    mine, _ = pair
    restored = type(mine).restore(mine.arrays(), SCHEMA)
    assert restored.decision_function(FRESH).tobytes() == mine.decision_function(FRESH).tobytes()


def test_ecod_scores_are_those_of_pyod_one_row_at_a_time() -> None:
    theirs = ECOD().fit(REFERENCE)
    mine = Ecod().compile(theirs)
    alone = np.array([theirs.decision_function(row[None])[0] for row in FRESH])
    np.testing.assert_allclose(mine.decision_function(FRESH), alone, rtol=1e-9, atol=1e-9)
    assert not np.allclose(theirs.decision_function(FRESH), alone, atol=1e-3)  # what the batch does to PyOD's
    assert Ecod.restore(mine.arrays(), SCHEMA).decision_function(FRESH).tobytes() == (
        mine.decision_function(FRESH).tobytes()
    )


def test_ecod_of_a_constant_feature_counts_it_by_its_tails() -> None:
    rows = REFERENCE.copy()
    rows[:, 5] = 2.0
    theirs = ECOD().fit(rows)
    mine = Ecod().compile(theirs)
    usual, changed = FRESH[:1].copy(), FRESH[:1].copy()
    usual[0, 5], changed[0, 5] = 2.0, 2.5
    for row in (usual, changed):
        assert mine.decision_function(row)[0] == pytest.approx(theirs.decision_function(row)[0])
    without = ECOD().fit(np.delete(rows, 5, axis=1))
    assert mine.decision_function(usual)[0] == pytest.approx(without.decision_function(np.delete(usual, 5, axis=1))[0])


def test_metrics_that_are_not_compiled_are_refused() -> None:
    with pytest.raises(FitError, match="KNN of metric 'manhattan' is not compiled"):
        Knn().compile(KNN(metric="manhattan").fit(REFERENCE))
    with pytest.raises(FitError, match="LOF of metric 'manhattan' is not compiled"):
        Lof().compile(LOF(metric="manhattan", novelty=True).fit(REFERENCE))


# --- exact neighbours -------------------------------------------------------------------------------------------------


def plain_neighbours(inputs: NDArray[np.float64], reference: NDArray[np.float64], count: int) -> Any:
    squared = ((inputs[:, None] - reference[None]) ** 2).sum(axis=2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(squared, order, axis=1), order


@pytest.mark.parametrize("directions", [1, 4, WIDTH])
@pytest.mark.parametrize("count", [1, 5, 50])
def test_neighbours_are_those_of_a_full_search(directions: int, count: int) -> None:
    basis = np.linalg.qr(np.random.default_rng(4).normal(size=(WIDTH, WIDTH)))[0][:, :directions]
    search = Neighbours._with(REFERENCE, np.ascontiguousarray(basis))
    squared, index = search.search(FRESH, count)
    expected, order = plain_neighbours(FRESH, REFERENCE, count)
    np.testing.assert_allclose(squared, expected, rtol=1e-12, atol=1e-12)
    assert (index == order).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**31))
def test_neighbours_of_rows_on_a_coarse_grid_are_found_in_order(n: int, d: int, count: int, seed: int) -> None:
    """Many equal distances: of these the first row counts."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(-2, 3, (n, d)).astype(np.float64)
    inputs = rng.integers(-2, 3, (5, d)).astype(np.float64)
    squared, index = Neighbours.of(reference).search(inputs, count)
    expected, order = plain_neighbours(inputs, reference, count)
    found = min(n, count)
    assert (squared[:, :found] == expected).all()
    assert (index[:, :found] == order).all()
    assert np.isinf(squared[:, found:]).all()
    assert (index[:, found:] == -1).all()


def measured_neighbours(inputs: NDArray[np.float64], reference: NDArray[np.float64], count: int) -> Any:
    """Every distance measured, in the order that is stated; -1 where it is not finite."""
    pairs = [
        [outliers.square_distance(inputs, i, reference, j) for j in range(len(reference))] for i in range(len(inputs))
    ]
    every = np.full((len(inputs), len(reference) + count), np.inf)
    every[:, : len(reference)] = np.nan_to_num(pairs, nan=np.inf, posinf=np.inf)
    order = np.argsort(every, axis=1, kind="stable")[:, :count]
    squared = np.take_along_axis(every, order, axis=1)
    return squared, np.where(np.isfinite(squared), order, -1)


def drawn_rows(kind: str, n: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    made = rng.normal(size=(n, width))
    if kind == "grid":
        made = np.rint(made)
    elif kind == "heavy tails":
        made = np.exp(3.0 * made)
    elif kind == "any size":
        made *= 10.0 ** rng.integers(-60, 60)
    elif kind == "constant features":
        made[:, rng.random(width) < 0.7] = 3.0
    elif kind == "near duplicates":
        made = made[rng.integers(0, 1 + n // 10, n)]
        made[::2] += 1e-9 * rng.normal(size=made[::2].shape)
    elif kind == "far from zero":
        made = 1e-3 * made + 1e6
    elif kind == "a few far away":
        made[rng.random(n) < 0.05] *= 10.0 ** rng.integers(1, 20)
    return made


KINDS = ["normal", "grid", "heavy tails", "any size", "constant features", "near duplicates", "far from zero"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*KINDS, "a few far away"]),
    st.sampled_from([1, 2, 15, 255, 256, 257, 600]),
    st.sampled_from([1, 2, 7, 8, 31, 32, 33, 64, 800]),
    st.sampled_from([1, 2, 5, 20, 50, 300]),
    st.integers(0, 2**31),
)
def test_no_neighbour_is_lost_to_rounding(kind: str, n: int, width: int, count: int, seed: int) -> None:
    """The same bits as when every distance is measured, in whatever batches."""
    rng = np.random.default_rng(seed)
    made = drawn_rows(kind, n + 8, width, rng)
    reference = np.ascontiguousarray(made[:n])
    inputs = np.concatenate([made[n:], reference[:3], np.zeros((5, width))])
    inputs[-4:, rng.integers(width)] = np.nan, np.inf, 1e25, 1e200
    search = Neighbours.of(reference)
    squared, index = search.search(inputs, count)
    expected, order = measured_neighbours(inputs, reference, count)
    assert squared.tobytes() == expected.tobytes()
    assert (index == order).all()
    parts = [search.search(np.ascontiguousarray(inputs[a : a + 3]), count) for a in range(0, len(inputs), 3)]
    assert np.concatenate([part[0] for part in parts]).tobytes() == squared.tobytes()
    assert (np.concatenate([part[1] for part in parts]) == index).all()


@pytest.mark.parametrize("scale", [1e-70, 1e-30, 1e-22])
def test_neighbours_are_found_where_squares_are_nothing_in_single_precision(scale: float) -> None:
    reference, inputs = REFERENCE * scale, FRESH * scale
    squared, index = Neighbours.of(reference).search(inputs, 5)
    expected, order = measured_neighbours(inputs, reference, 5)
    assert squared.tobytes() == expected.tobytes()
    assert (index == order).all()


def test_neighbours_among_huge_reference_rows_are_measured_one_by_one() -> None:
    reference = REFERENCE.copy()
    reference[::50] *= 1e40
    inputs = np.concatenate([FRESH, reference[:60:50]])
    squared, index = Neighbours.of(reference).search(inputs, 5)
    expected, order = measured_neighbours(inputs, reference, 5)
    assert squared.tobytes() == expected.tobytes()
    assert (index == order).all()


def test_of_many_reference_rows_few_are_looked_at_twice() -> None:
    """What makes the search fast; without the first sieve all 800 would be."""
    _, _, compared = Neighbours.of(REFERENCE).search_counted(REFERENCE[:100], 5)
    assert compared < 100 * 80


def test_neighbours_of_huge_rows_are_measured_one_by_one() -> None:
    far = np.concatenate([FRESH[:3], np.full((1, WIDTH), 1e25), np.full((1, WIDTH), 1e200)])
    squared, index = Neighbours.of(REFERENCE).search(far, 3)
    assert (index[:4] >= 0).all()
    assert np.isfinite(squared[:4]).all()
    assert (index[4] == -1).all()


# --- any other of PyOD's ----------------------------------------------------------------------------------------------


def view_of(rows: NDArray[np.float64]) -> BatchView:
    reference = Reference(REFERENCE, np.zeros(len(REFERENCE), dtype=np.int32))
    frame = ReferenceFrame.fit(reference, 2, np.random.default_rng(0), size=50)
    nothing = np.zeros(len(rows), dtype=np.int64)
    labels = nothing.astype(np.int32)
    return BatchView(frame, Batch(rows, labels, nothing.astype(np.uint64), nothing, nothing, labels))


# The same four are under the whole contract in test_detector_contract.
@pytest.mark.parametrize("name", ["COPOD", "KDE", "OCSVM", "Sampling"])
def test_any_detector_of_pyod_runs_by_the_name_of_its_class(name: str) -> None:
    kind = registry.kind(f"pyod.{name}")
    assert registry.kind(f"pyod.{name}") is kind
    reference = Reference(REFERENCE[:150], np.zeros(150, dtype=np.int32))
    detector = kind().fit(reference, SCHEMA, np.random.default_rng(3))
    view = view_of(FRESH[88:100])
    scores = detector.score(view)
    assert np.isfinite(scores).all()
    assert scores[-4:].mean() > scores[:2].mean()
    assert "outlier" in detector.explain(view, 0)


def test_detector_that_scores_otherwise_than_at_the_fit_is_refused() -> None:
    reference = Reference(REFERENCE[:100], np.zeros(100, dtype=np.int32))
    kind = registry.kind("pyod.KDE")
    arrays = kind().fit(reference, SCHEMA, np.random.default_rng(3)).arrays()
    arrays["witness"] = arrays["witness"] + 1.0
    with pytest.raises(ValueError, match=r"pyod\.KDE scores otherwise than when the bundle was fitted"):
        kind.restore(arrays, SCHEMA)


def test_detector_that_only_compares_rows_of_a_batch_is_refused() -> None:
    reference = Reference(REFERENCE[:100], np.zeros(100, dtype=np.int32))
    with pytest.raises(FitError, match=r"pyod\.COF cannot judge a row alone"):
        registry.kind("pyod.COF")().fit(reference, SCHEMA, np.random.default_rng(3))


def test_uncompiled_scores_are_pyods_on_standardised_rows() -> None:
    reference = Reference(REFERENCE[:150], np.zeros(150, dtype=np.int32))
    detector: Any = registry.kind("pyod.KDE")().fit(reference, SCHEMA, np.random.default_rng(3))
    rows = view_of(FRESH[:10]).standardised
    theirs = KDE().fit(detector.rows_).decision_function(rows)
    np.testing.assert_allclose(detector._scores(rows), theirs, rtol=1e-9)


@pytest.mark.parametrize("name", ["pyod.Nought", "pyod.os.path", "pyod.", "pyod.BaseDetector", "pyod.base"])
def test_names_that_pyod_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(DetectorError, match="PyOD"):
        registry.kind(name)


def test_isolation_forest_has_its_name_of_pyod_too() -> None:
    assert registry.kind("pyod.IForest") is IsolationForest
