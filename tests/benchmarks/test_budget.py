"""The benchmark of the budget: its sums are right, and its simulated weeks keep what the theory promises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import budget, report
from benchmarks.budget import HOURS, Camera, Drifting, Habits, Maxima, World, crossing_hours, martingale_mark, one_week
from detectors.calibration.drift import BLOCKS


def pool(clients: int, rng: np.random.Generator, repeating: bool) -> Maxima:
    """Statistics of independent clients with heavy tails."""
    draw = rng.pareto(1.0, (5, clients))
    same = np.full(clients, repeating)
    return Maxima(np.arange(clients), np.zeros(clients, dtype=np.int64), *draw, same)


@pytest.mark.parametrize("repeating", [False, True])
def test_exchangeable_weeks_keep_the_budget(repeating: bool) -> None:
    rng = np.random.default_rng(0)
    ensemble = SimpleNamespace(tables=SimpleNamespace(thresholds=np.array([1.0, 1.0, 1.0, 20.0])))
    made = SimpleNamespace(
        name="alike", ensemble=ensemble, pool=pool(900, rng, False), repeaters=pool(100, rng, repeating)
    )
    cell = budget.simulate(cast("World", made), 100, 0.1, 400, rng)
    assert not cell.bootstrapped
    assert cell.within >= 0.93
    assert 0.5 < cell.pages < 3.0  # thresholds are no higher than they must be
    crowded = budget.simulate(cast("World", made), 1_000, 0.1, 2, rng)
    assert crowded.bootstrapped


def test_seeds_are_joined_and_the_worst_is_told() -> None:
    one = budget.Cell("alike", 100, 0.05, (200,), (199,), 2.0, 7, False)
    other = budget.Cell("alike", 100, 0.05, (200,), (150,), 4.0, 7, True)
    cell = budget.Cell.joined([one, other])
    assert (cell.weeks, cell.held, cell.pages, cell.bootstrapped) == ((200, 200), (199, 150), 3.0, True)
    assert (cell.within, cell.least) == (349 / 400, 0.75)
    run = budget.DriftCell("none", (20,), (1,), (0,), (20,), (3.0,), 1.0, 2)
    joined = budget.DriftCell.joined([run, run])
    assert joined.judged == ("mark_without_cause", (1, 1))
    assert (joined.delays, joined.young) == ((3.0, 3.0), 4)
    slow = budget.DriftCell("slight", (20, 20), (20, 20), (0, 0), (20, 18), (), 1.0, 0)
    figures = [
        report.share_over_seeds(cell.name, cell.held, cell.weeks, np.random.default_rng(0)),
        *(report.share_over_seeds(r.judged[0], r.judged[1], r.runs, np.random.default_rng(0)) for r in (joined, slow)),
    ]
    page = budget.table([cell], [joined, slow], {"alike": [0.02, 0.04]}, figures)
    assert "| 0.03 of the variance (0.02-0.04) | 100 (bootstrapped) | 5% | 87.2% (" in page
    assert "| 75.0% | 3.00 | 7 of 200 |" in page
    assert "| none | 5.0% (" in page
    assert "| slight | 100.0% | 0.0% | 95.0% (" in page


def test_hours_of_crossing_are_the_first_of_each_client() -> None:
    nothing = np.zeros(5)
    units = Maxima(
        np.array([0, 0, 1, 2, 2]), np.array([7, 3, 9, 5, 6]), *(nothing for _ in range(5)), nothing.astype(bool)
    )
    crossed = np.array([True, True, True, False, True])
    assert crossing_hours(units, crossed, np.array([1, 1, 1])).tolist() == [3, 6, 9]
    assert crossing_hours(units, crossed, np.array([2, 0, 0])).tolist() == [3, 3]


def test_a_week_is_the_largest_of_its_hours() -> None:
    period = np.array([0, 5, HOURS, 2 * HOURS + 1, 2 * HOURS + 2])
    value = np.array([1.0, 3.0, 9.0, 2.0, 4.0])
    units = Maxima(np.array([0, 0, 0, 0, 1]), period, value, value, value, value, value, value > 3.5)
    assert one_week(units, 2, 0).same.tolist() == [3.0, 0.0]
    assert one_week(units, 2, 2).tested.tolist() == [2.0, 4.0]
    assert one_week(units, 2, 2).oddest.tolist() == [2.0, 4.0]
    assert one_week(units, 2, 2).repeating.tolist() == [True, True]


@pytest.mark.parametrize("repeating", [False, True])
def test_a_client_week_whose_oddest_row_crosses_is_ticketed(repeating: bool) -> None:
    rng = np.random.default_rng(5)
    ensemble: Any = SimpleNamespace(tables=SimpleNamespace(thresholds=np.array([1e9, 1e9, 1.0, 20.0])))
    units = pool(800, rng, repeating)
    rule = budget.Rule.calibrated(ensemble, units, np.arange(800), 400)
    calm = np.zeros(2)
    week = Maxima(
        np.arange(2), np.arange(2), calm, calm, calm, calm, np.array([rule.odd, 1.01 * rule.odd]), calm.astype(bool)
    )
    assert rule.tickets(week).tolist() == [False, True]
    assert not rule.pages(week).any()
    beyond = np.count_nonzero(units.oddest > rule.odd)
    assert 0 < beyond < 2 * budget.BUDGET


@pytest.mark.parametrize("size", [0.0, 2.0])
def test_the_mark_comes_with_a_change_only(size: float) -> None:
    rng = np.random.default_rng(2)
    clients, since = 2 * BLOCKS, 2 * HOURS + 40
    rows = rng.poisson(2.0, (clients, 3 * HOURS))
    mean = 4.0 + rng.normal(0, 1, clients)[:, None] + size * (np.arange(3 * HOURS) >= since)
    counts = np.stack([rows, np.maximum(0, rows * mean + np.sqrt(rows) * rng.normal(0, 2, rows.shape))], axis=2)
    stream = Drifting(counts.astype(np.int32), since)
    mark = martingale_mark(stream, np.ones(clients, dtype=np.int64), rng)
    assert (since <= mark < since + 12) if size else np.isinf(mark)


def test_traffic_is_heavy_tailed_repeats_some_rows_and_stands_in_order() -> None:
    rng = np.random.default_rng(3)
    pictures = rng.random((40, 64))
    camera: Any = SimpleNamespace(
        pictures=pictures, of_class=[np.arange(4 * k, 4 * k + 4) for k in range(10)], taken=Camera.taken
    )
    people = [Habits.drawn(0.8, rng) for _ in range(300)]
    events = np.array([one.events for one in people])
    assert 75 <= np.median(events) <= 130
    assert events.max() > 800
    rows, clients, times = budget.traffic(camera, people[:40], 1, rng, np.zeros_like)
    assert np.all(np.diff(times) >= 0)
    assert 0.0 <= rows.min() <= rows.max() <= 1.0
    twice = 0
    for client in range(1, 41):
        own = rows[clients == client]
        twice += int(np.count_nonzero((own[1:] == own[:-1]).all(axis=1)))
    assert 0.01 < twice / len(rows) < 0.03


def test_an_unturned_picture_is_itself() -> None:
    pictures = np.random.default_rng(4).random((3, 64))
    nothing = SimpleNamespace(normal=lambda *_: np.zeros((3, 2, 1)), standard_normal=lambda size: np.zeros(size))
    same = Camera.taken(pictures, np.zeros(3), np.ones(3), 0.0, cast("np.random.Generator", nothing))
    assert np.allclose(same, pictures)
    turned = Camera.taken(pictures, np.full(3, 90.0), np.ones(3), 0.0, cast("np.random.Generator", nothing))
    assert np.allclose(turned.reshape(3, 8, 8), np.rot90(pictures.reshape(3, 8, 8), axes=(1, 2)))
