"""Whether a client's next queries follow the answers to its last ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.kernels import exact, margins
from detectors.kernels import feedback as kernels
from detectors.queries.feedback import ANSWERS_REACH, REACH, feedback

Rows = NDArray[np.float64]
Pairs = tuple[Rows, NDArray[np.int64], Rows]


def pairs(rows: Rows) -> Pairs:
    """Products, nearest earlier row and squared distance of rows on the grid of exact products."""
    rows = exact.on_grid(rows, exact.grid_for(rows.shape[1]))
    parent, squared = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    products = rows @ rows.T
    margins.link(products, (rows * rows).sum(axis=1), np.zeros(len(rows), dtype=np.int32), parent, squared)
    return products, parent, squared


def followed(rows: Rows, values: Rows, begun: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    begun = np.ones(len(rows), dtype=np.bool_) if begun is None else begun
    return feedback(*pairs(rows), values, begun)


def coordinate_search(rng: np.random.Generator, d: int = 30, sign: float = 1.0, count: int = 100) -> tuple[Rows, Rows]:
    """SimBA on a linear model: a step in one feature is kept where it lowers sign times the margin."""
    slope, row = rng.standard_normal(d), np.zeros(d)
    rows, values = [row], [0.0]
    for turn in range(count):
        tried = row.copy()
        tried[turn % d] += 0.1 * rng.choice([-1, 1])
        rows.append(tried)
        values.append(float(slope @ tried))
        if sign * (slope @ tried) < sign * (slope @ row):
            row = tried
    return np.array(rows), np.array(values)


def test_who_keeps_what_lowers_the_margin_is_seen_and_who_raises_it_is_its_opposite() -> None:
    for seed in range(10):
        attacker, _ = followed(*coordinate_search(np.random.default_rng(seed)))
        optimiser, _ = followed(*coordinate_search(np.random.default_rng(seed), sign=-1.0))
        assert attacker > 4.0
        assert optimiser < -2.0


def test_who_moves_along_a_gradient_estimate_is_seen() -> None:
    """NES: noise around a row, then the row moves along the sum of what was seen."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        slope, row, rows, values = rng.standard_normal(60), np.zeros(60), [], []
        for _ in range(6):
            noise = rng.standard_normal((20, 60))
            rows.append(row + 0.1 * noise)
            values.append(rows[-1] @ slope)
            row = row - 0.1 * np.sign(values[-1] @ noise)
        found.append(followed(np.concatenate(rows), np.concatenate(values))[0])
    assert np.mean(found) > 3.5
    assert min(found) > 1.0


@pytest.mark.parametrize("kind", ["noise", "walk", "drift"])
@pytest.mark.parametrize("d", [8, 40])
def test_who_does_not_look_at_answers_is_seen_by_chance_only(kind: str, d: int) -> None:
    """A steady drift leans to one side of every pair, and so does the margin: what chance does there is taken off."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((100, d))
        if kind == "walk":
            rows = np.cumsum(rows, axis=0)
        elif kind == "drift":
            rows = 0.2 * rows + np.arange(100)[:, None] * 0.05 * rng.standard_normal(d)
        found.append(followed(rows, rows @ rng.standard_normal(d))[0])
    assert abs(np.mean(found)) < 0.4
    assert np.mean(np.array(found) > 3.0) <= 0.06


def test_which_side_is_left_is_unknown_where_a_client_keeps_to_both() -> None:
    rows, values = coordinate_search(np.random.default_rng(1))
    both = np.arange(len(rows)) % 2 == 0
    for begun in (both, ~both):
        assert followed(rows, values, begun)[0] > 4.0
        assert followed(rows, -values, begun)[0] > 4.0
    mostly = np.arange(len(rows)) % 5 != 0
    assert followed(rows, -values, mostly)[0] < -4.0


def plain(rows: Rows, values: Rows) -> tuple[Rows, Rows, float]:
    """`leanings` and `agreement` written out."""
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    onward, closer, change = (np.full(len(rows), np.nan) for _ in range(3))
    for t in range(1, len(rows) - 1):
        p = int(distance[t, :t].argmin())
        step = rows[t] - rows[p]
        for found, way in (
            (onward, rows[t + 1 : t + 1 + REACH].mean(axis=0) - rows[max(0, t - REACH) : t].mean(axis=0)),
            (closer, rows[t + 1 : t + 1 + ANSWERS_REACH].mean(axis=0) - (rows[t] + rows[p]) / 2),
        ):
            found[t] = step @ way / np.linalg.norm(step) / np.linalg.norm(way)
        change[t] = values[t] - values[p]
    fine = np.isfinite(onward)
    limit = 2.0 * np.median(np.abs(change[fine][change[fine] != 0]))
    correlation = np.corrcoef(onward[fine], np.clip(change[fine], -limit, limit))[0, 1]
    return onward, closer, -correlation * math.sqrt(fine.sum())


def plain_chance(rows: Rows) -> float:
    """How far chance goes, written out."""
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    steps, ways = [], []
    for t in range(1, len(rows) - 1):
        step = rows[t] - rows[int(distance[t, :t].argmin())]
        way = rows[t + 1 : t + 1 + REACH].mean(axis=0) - rows[max(0, t - REACH) : t].mean(axis=0)
        steps.append(step / np.linalg.norm(step))
        ways.append(way / np.linalg.norm(way))
    directed = np.square(np.mean(ways, axis=0)).sum()
    dimensions = 1.0 / np.square(np.array(steps).T @ np.array(steps) / len(steps)).sum()
    return math.sqrt(1.0 + len(steps) * directed / dimensions)


@pytest.mark.parametrize("count", [10, 40, 128])
def test_leanings_and_agreement_are_what_they_say(count: int) -> None:
    rng = np.random.default_rng(count)
    rows = exact.on_grid(5.0 + rng.standard_normal((count, 12)), exact.grid_for(12))
    values = rng.standard_normal(count)
    products, parent, squared = pairs(rows)
    onward, closer = np.empty(count), np.empty(count)
    chance = kernels.leanings(products, parent, squared, REACH, ANSWERS_REACH, onward, closer)
    assert chance == pytest.approx(plain_chance(rows), rel=1e-6)
    expected = plain(rows, values)
    assert onward == pytest.approx(expected[0], rel=1e-6, nan_ok=True)
    assert closer == pytest.approx(expected[1], rel=1e-6, nan_ok=True)
    assert kernels.agreement(onward, parent, values) == pytest.approx(expected[2], rel=1e-6)


def test_nothing_is_said_of_few_rows_equal_rows_or_equal_answers() -> None:
    rng = np.random.default_rng(0)
    rows, values = rng.standard_normal((60, 10)), rng.standard_normal(60)
    assert followed(rows[:8], values[:8]) == (0.0, 0.0)
    assert followed(rows, np.ones(60)) == (0.0, 0.0)
    assert followed(np.repeat(rows[:1], 60, axis=0), values) == (0.0, 0.0)
    assert followed(rows, values)[0] != 0.0


def answered(own: list[float], rival: list[float], labels: list[int], modal: int = 1) -> list[float] | None:
    found = np.empty(len(own))
    fine = kernels.answered_margins(np.array(own), np.array(rival), np.array(labels, dtype=np.int32), modal, found)
    return found.tolist() if fine else None


def test_margins_are_log_odds_of_probabilities_and_differences_of_other_scores() -> None:
    assert answered([0.8, 0.6, 1.0], [0.2, 0.4, 0.0], [1, 0, 1]) == pytest.approx(
        [math.log(4), -math.log(1.5), math.log(1e6)]
    )
    assert answered([8.0, -0.5], [0.25, -4.0], [1, 0]) == pytest.approx([7.75, -3.5])
    assert answered([0.8, np.nan], [0.2, np.nan], [1, 1]) is None
    assert answered([0.8, np.inf], [0.2, 0.1], [1, 1]) is None


def test_strongest_scores_are_those_of_the_predicted_class_and_of_its_rival() -> None:
    outputs = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [np.nan, 0.5, 0.5], [0.5, np.inf, 0.1]])
    outputs = np.concatenate([outputs, outputs[:2]])
    labels = np.array([1, 2, 1, 0, 3, -1], dtype=np.int32)
    own, rival = np.empty(6), np.empty(6)
    kernels.strongest(outputs, labels, own, rival)
    assert own[:2].tolist() == [0.7, 0.2]
    assert rival[:2].tolist() == [0.2, 0.5]
    assert np.isnan(own[2:]).all()
    assert np.isnan(rival[2:]).all()


@pytest.mark.parametrize(
    ("rows", "touched", "two_valued"),
    [
        (np.zeros((9, 4)), 0, 1.0),
        (np.eye(9), 0, 1.0),
        (np.concatenate([np.eye(9), np.eye(9)]), 9, 1.0),
        (np.arange(36.0).reshape(9, 4), 4, 0.0),
    ],
)
def test_touched_features_and_two_valued_ones(rows: Any, touched: int, two_valued: float) -> None:
    scale = np.ones(rows.shape[1])
    assert kernels.touched_features(rows, np.median(rows, axis=0), scale, 1e-5) == touched
    assert kernels.two_valued_share(rows, scale, 1e-5) == two_valued
