"""Leaf-Tuple: boxes of leaves, neighbours, and how near it comes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.preprocessing import MinMaxScaler

from attacks.errors import ModelError
from attacks.leaf_search import LeafSearch, across
from attacks.leaf_tuple import LeafTuple
from attacks.threat import Domain, Norm, ThreatModel
from attacks.trees import Forest, adapt


def unit_box(width: int) -> Domain:
    yes = np.ones(width, dtype=bool)
    return Domain(np.zeros(width), np.ones(width), ~yes, yes)


def white_box(width: int, norm: Norm, eps: float | None = None) -> ThreatModel:
    return ThreatModel("trees", norm, eps, unit_box(width), "white-box", 0)


def cancer(estimator: Any) -> tuple[Forest, NDArray[np.float64], NDArray[np.int64]]:
    x, y = load_breast_cancer(return_X_y=True)
    x = MinMaxScaler().fit_transform(x)
    forest = adapt(estimator.fit(x[::2], y[::2]))
    fresh = x[1::2][:20]
    return forest, fresh, np.argmax(forest.predict(fresh), axis=1)


def small(seed: int) -> tuple[Forest, NDArray[np.float64], NDArray[np.int64]]:
    """Few trees on three features, so that every cell can be tried."""
    rng = np.random.default_rng(seed)
    x = rng.random((150, 3))
    y = (np.sin(6 * x[:, 0]) + x[:, 1] * x[:, 2] > 0.5).astype(int)
    forest = adapt(RandomForestClassifier(7, max_depth=4, random_state=seed).fit(x, y))
    fresh = rng.random((40, 3))
    return forest, fresh, np.argmax(forest.predict(fresh), axis=1)


def exact(forest: Forest, x: NDArray[np.float64], y: NDArray[np.int64], threat: ThreatModel) -> NDArray[np.float64]:
    """(n,) the least distance of an adversarial row: the nearest row of every cell between thresholds is tried."""
    least = np.full(len(x), np.inf)
    for row in range(len(x)):
        choices = []
        for column, edges in enumerate(forest.thresholds):
            near = [across(edges, True, False), across(edges, False, False), x[row, [column]]]
            choices.append(np.unique(np.concatenate(near)))
        cells = np.array(list(itertools.product(*choices)))
        hit = cells[np.argmax(forest.predict(cells), axis=1) != y[row]]
        least[row] = threat.distances(np.repeat(x[[row]], len(hit), axis=0), hit).min()
    return least


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_it_mostly_finds_the_nearest_row_there_is(norm: Norm) -> None:
    forest, x, y = small(0)
    threat = white_box(3, norm)
    crafted = LeafTuple().craft(forest, x, y, threat, np.random.default_rng(0))
    least = exact(forest, x, y, threat)
    assert crafted.success.all()
    assert (crafted.distances >= least - 1e-7).all()
    assert (crafted.distances <= least + 1e-6).mean() >= 0.8
    assert (crafted.distances / least).mean() < 1.1


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(20, random_state=0),
        GradientBoostingClassifier(n_estimators=30, random_state=0),
        HistGradientBoostingClassifier(max_iter=30, max_bins=20, random_state=0),
    ],
    ids=["forest", "boosting", "few thresholds"],
)
def test_it_comes_nearer_than_leaf_search(estimator: Any, norm: Norm) -> None:
    forest, x, y = cancer(estimator)
    threat = white_box(x.shape[1], norm)
    found = LeafTuple().craft(forest, x, y, threat, np.random.default_rng(0))
    before = LeafSearch().craft(forest, x, y, threat, np.random.default_rng(0))
    assert found.success.all()
    assert (found.distances <= before.distances + 1e-9).mean() >= 0.95
    assert (found.distances < before.distances - 1e-6).mean() >= 0.3
    assert found.distances.mean() < 0.97 * before.distances.mean()


def test_no_neighbour_of_what_it_found_is_nearer() -> None:
    forest, x, y = small(1)
    threat = white_box(3, "l2")
    crafted = LeafTuple().craft(forest, x, y, threat, np.random.default_rng(0))
    trees = np.arange(len(forest.first), dtype=np.int32)
    cells = forest.cells(crafted.inputs)
    for row in np.flatnonzero(crafted.success):
        _, low, high = forest.meeting(trees, *cells.without(np.repeat(row, len(trees)), trees))
        least = np.where(np.isfinite(low), np.nextafter(low.astype(np.float32), np.float32(np.inf)), -np.inf)
        most = np.where(np.isfinite(high), np.nextafter(high.astype(np.float32), np.float32(-np.inf)), np.inf)
        tried = np.clip(x[row], least, most)
        fooled = np.argmax(forest.predict(tried), axis=1) != y[row]
        assert (np.linalg.norm(tried - x[row], axis=1)[fooled] >= crafted.distances[row] - 1e-6).all()


def test_cells_are_where_every_leaf_stays_and_leaves_that_meet_them_are_reached() -> None:
    forest, x, _ = small(2)
    cells = forest.cells(x)
    assert (cells.low < x).all()
    assert (x <= cells.high).all()
    low, high = np.maximum(cells.low, -1.0), np.minimum(cells.high, 2.0)
    own = forest.leaves(x)
    assert np.array_equal(forest.leaves(low + 0.5 * (high - low)), own)
    for column in range(x.shape[1]):
        for bound, beyond, tree in (
            (cells.low, lambda edges: edges - 1e-6, cells.low_tree),
            (cells.high, lambda edges: edges + 1e-6, cells.high_tree),
        ):
            rows = np.flatnonzero(np.isfinite(bound[:, column]))
            moved = x[rows].copy()
            moved[:, column] = beyond(bound[rows, column])
            changed = forest.leaves(moved) != own[rows]
            assert changed[np.arange(len(rows)), tree[rows, column]].all()
    for tree_number in range(len(forest.first)):
        trees = np.full(len(x), tree_number, dtype=np.int32)
        without = cells.without(np.arange(len(x)), trees)
        owner, low, high = forest.meeting(trees, *without)
        assert (low < high).all()
        inner = np.maximum(low, -1.0) + 0.5 * (np.minimum(high, 2.0) - np.maximum(low, -1.0))
        others = np.arange(len(forest.first)) != tree_number
        reached = forest.leaves(inner)
        assert np.array_equal(reached[:, others], own[owner][:, others])
        assert len(np.unique(np.stack([owner, reached[:, tree_number]]), axis=1).T) == len(owner)
        drawn = np.random.default_rng(0).random((50, len(x), 3))
        least, most = np.maximum(without[0], -1.0), np.minimum(without[1], 2.0)
        for points in least + drawn * (most - least):
            met = set(zip(owner.tolist(), reached[:, tree_number].tolist(), strict=True))
            assert set(enumerate(forest.leaves(points)[:, tree_number].tolist())) <= met


def test_whole_numbers_categories_and_what_cannot_change_are_kept() -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate(
        [rng.random((300, 2)), rng.integers(0, 9, (300, 2)), np.eye(3)[rng.integers(0, 3, 300)]], axis=1
    ).astype(np.float64)
    y = (x[:, 0] + x[:, 2] / 8 + x[:, 5] + 0.5 * x[:, 1] > 1.4).astype(int)
    forest = adapt(RandomForestClassifier(15, max_depth=6, random_state=0).fit(x, y))
    low, high = np.zeros(7), np.array([1.0, 1, 8, 8, 1, 1, 1])
    integral = np.array([False, False, True, True, False, False, False])
    mutable = np.array([True, False, True, True, True, True, True])
    domain = Domain(low, high, integral, mutable, (np.array([4, 5, 6]),))
    answers = np.argmax(forest.predict(x), axis=1)
    scale = np.array([1.0, 1, 8, 8, 1, 1, 1])
    for norm in ("l1", "l2", "linf"):
        threat = ThreatModel("mixed", norm, None, domain, "white-box", 0, scale=scale)
        crafted = LeafTuple().craft(forest, x[:30], answers[:30], threat, np.random.default_rng(0))
        assert threat.admits(x[:30], crafted.inputs).all()
        assert crafted.success.mean() > 0.95
        before = LeafSearch().craft(forest, x[:30], answers[:30], threat, np.random.default_rng(0))
        assert crafted.distances[crafted.success].mean() <= before.distances[before.success].mean()


def test_a_bound_keeps_only_what_is_within_it() -> None:
    forest, x, y = small(3)
    free = LeafTuple().craft(forest, x, y, white_box(3, "l2"), np.random.default_rng(0))
    eps = float(np.median(free.distances))
    bound = LeafTuple().craft(forest, x, y, white_box(3, "l2", eps), np.random.default_rng(0))
    assert (bound.success == (free.distances <= eps)).mean() >= 0.9
    assert (bound.distances[bound.success] <= eps + 1e-9).all()
    searched = LeafSearch().craft(forest, x, y, white_box(3, "l2", eps), np.random.default_rng(0))
    assert bound.success[searched.success].all()
    assert np.array_equal(bound.inputs[~bound.success], x[~bound.success])


def test_a_model_without_boxes_is_refused() -> None:
    class OnlyLeaves:
        thresholds: tuple[NDArray[np.float64], ...] = ()

        def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.zeros((len(X), 2))

        def leaves(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
            return np.zeros((len(X), 1), dtype=np.int64)

    with pytest.raises(ModelError, match="OnlyLeaves lacks them"):
        LeafTuple().craft(
            OnlyLeaves(), np.zeros((1, 3)), np.zeros(1, dtype=int), white_box(3, "l2"), np.random.default_rng(0)
        )
