"""OPT and Cube, which ask, on forests and on models whose nearest adversarial row is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import MinMaxScaler

from attacks import trees
from attacks.boundary_search import affordable
from attacks.cube import Cube
from attacks.network import Network
from attacks.opt import Opt
from attacks.oracle import Oracle
from attacks.random_search import random_features, shrunk
from attacks.sign_opt import SignOpt
from attacks.threat import Domain, Norm, ThreatModel


def unit_box(width: int) -> Domain:
    yes = np.ones(width, dtype=bool)
    return Domain(np.zeros(width), np.ones(width), ~yes, yes)


def black_box(width: int, norm: Norm, eps: float | None, budget: int = 1000) -> ThreatModel:
    return ThreatModel("asked", norm, eps, unit_box(width), "black-box", budget)


def plane(width: int, seed: int = 3) -> tuple[Network, NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """A linear model, rows (n, d), their classes, and their distances from the boundary."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (width, 2))
    model = Network((weights,), (-0.5 * weights.sum(axis=0),))
    x = rng.uniform(0.3, 0.7, (40, width))
    logits = model.logits(x)
    return model, x, np.argmax(logits, axis=1), np.abs(np.diff(logits)[:, 0]) / np.linalg.norm(np.diff(weights))


def cancer() -> tuple[trees.Forest, NDArray[np.float64], NDArray[np.int64]]:
    x, y = load_breast_cancer(return_X_y=True)
    x = MinMaxScaler().fit_transform(x)
    forest = trees.adapt(RandomForestClassifier(40, random_state=0).fit(x[::2], y[::2]))
    fresh = x[1::2][:50]
    return forest, fresh, np.argmax(forest.predict(fresh), axis=1)


def test_opt_finds_the_plane_of_a_linear_model() -> None:
    model, x, y, gap = plane(8)
    crafted = Opt().craft(model, x, y, black_box(8, "l2", None), np.random.default_rng(0))
    assert crafted.success.all()
    assert (crafted.distances >= gap - 1e-9).all()
    assert np.median(crafted.distances / gap) < 1.15


def test_opt_comes_nearer_with_every_query() -> None:
    forest, x, y = cancer()
    means = [
        Opt().craft(forest, x, y, black_box(30, "l2", None, budget), np.random.default_rng(0)).distances.mean()
        for budget in (60, 300, 1500)
    ]
    assert means[0] > 1.2 * means[1] > 1.2 * means[2]


def test_sign_opt_makes_more_of_a_thousand_labels_than_opt() -> None:
    """What its paper (Cheng 2020) is about."""
    forest, x, y = cancer()
    threat = black_box(30, "l2", None)
    distances = [kind().craft(forest, x, y, threat, np.random.default_rng(0)).distances for kind in (SignOpt, Opt)]
    assert np.mean(distances[0]) < np.mean(distances[1])


def test_start_rows_that_repeat_are_asked_no_more_than_they_can_pay() -> None:
    model, x, y, _ = plane(8)
    oracle = Oracle(model, x[:3], y[:3], black_box(8, "l2", None, 3))
    which = np.array([0, 2, 0, 0, 0, 2])
    every = np.arange(6)
    assert affordable(oracle, which, every).tolist() == [0, 1, 2, 3, 5]
    assert affordable(oracle, which, every, reserve=1).tolist() == [0, 1, 2, 5]
    assert affordable(oracle, which, np.array([3, 4])).tolist() == [3, 4]
    oracle.ask(np.array([0, 0, 0]), x[[0, 0, 0]])
    assert affordable(oracle, which, every).tolist() == [1, 5]


def test_cube_goes_to_corners_and_leaves_what_does_not_help() -> None:
    forest, x, y = cancer()
    threat = black_box(30, "linf", 0.2)
    crafted = Cube().craft(forest, x, y, threat, np.random.default_rng(0))
    moved = crafted.inputs != x
    at_end = np.isclose(np.abs(crafted.inputs - x), 0.2) | np.isin(crafted.inputs, [0.0, 1.0])
    assert at_end[moved].all()
    assert crafted.success.mean() > 0.7
    assert (~moved[crafted.success]).any(axis=1).mean() > 0.9
    stuck = Cube().craft(forest, x, y, black_box(30, "linf", 0.01), np.random.default_rng(0))
    assert stuck.success.mean() < crafted.success.mean() / 2


def test_cube_needs_few_queries_where_one_corner_is_enough() -> None:
    model, x, y, gap = plane(8)
    near = gap < 0.1
    threat = black_box(8, "linf", 0.3)
    crafted = Cube().craft(model, x[near], y[near], threat, np.random.default_rng(0))
    assert crafted.success.all()
    assert np.median(crafted.queries) < 30


def test_shares_shrink_and_patches_hold_movable_features_alone() -> None:
    assert [shrunk(0.8, turn, 1000) for turn in (0, 2, 150, 999)] == [0.8, 0.4, 0.8 / 32, 0.8 / 512]
    movable = np.array([True, False, True, True, False, True])
    drawn = random_features(50, 0.5, movable, np.random.default_rng(0))
    assert (drawn.sum(axis=1) == 2).all()
    assert not drawn[:, ~movable].any()
    assert drawn[:, movable].any(axis=0).all()
    assert (random_features(5, 0.001, movable, np.random.default_rng(0)).sum(axis=1) == 1).all()
