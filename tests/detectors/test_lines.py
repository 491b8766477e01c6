"""Queries that halve the way between two answers on a straight line."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.kernels import exact, lines

Rows = NDArray[np.float64]

WIDTH = 30


def counted(rows: Rows, labels: NDArray[np.bool_]) -> tuple[int, int]:
    x = exact.on_grid(rows, exact.grid_for(rows.shape[1]))
    norms, even = (x * x).sum(axis=1), np.empty(len(rows), dtype=np.bool_)
    lines.even_steps(rows, np.ones(rows.shape[1]), even)
    x, norms, rows, labels = x[~even], norms[~even], rows[~even], labels[~even]
    found, apart, members = lines.halvings(
        x @ x.T, norms, labels.astype(np.int32), rows, np.ones(rows.shape[1]), 1e-5, 6
    )
    assert (members > 0) == (apart > 0)
    return int(found), int(apart)


def beyond(rows: Rows) -> NDArray[np.bool_]:
    """A linear model: what lies beyond the boundary."""
    return np.asarray(rows.sum(axis=-1) > 0.7 * WIDTH)


def search(start: Rows, end: Rows, count: int, sideways: float = 0.0, seed: int = 0, share: float = 0.5) -> list[Rows]:
    """Search for the boundary between two rows: at this share of the piece, and this share of an arm beside it."""
    rng = np.random.default_rng(seed)
    low, high, found = start, end, []
    for _ in range(count):
        aside = rng.standard_normal(WIDTH)
        arm = np.linalg.norm(high - low) / 2
        middle = low + share * (high - low) + sideways * arm * aside / np.linalg.norm(aside)
        found.append(middle)
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return found


def ends(count: int, seed: int = 0) -> list[Rows]:
    """Rows beyond the boundary."""
    return list(1.0 + 0.5 * np.random.default_rng(seed).standard_normal((count, WIDTH)))


def test_two_halvings_count_of_each_line_that_goes_the_way_of_another() -> None:
    for count, expected in ((0, 0), (1, 2), (2, 4), (6, 4)):
        rows = np.array([row for end in ends(2) for row in (end, *search(np.zeros(WIDTH), end, count))])
        rows = np.concatenate([np.zeros((1, WIDTH)), rows])
        assert counted(rows, beyond(rows)) == (expected, 0)
    rows = np.array([np.zeros(WIDTH), *(row for end in ends(4) for row in (end, *search(np.zeros(WIDTH), end, 5)))])
    assert counted(rows, beyond(rows)) == (8, 0)


def test_lines_that_go_ways_of_their_own_are_told_apart() -> None:
    """From one row after another to the nearest that is answered differently: what recourse asks."""
    rng = np.random.default_rng(1)
    for lot in (1, 4):
        rows = []
        for _ in range(lot):
            start = 0.7 + rng.standard_normal(WIDTH)
            start -= start.mean() - 0.6
            end = 0.7 + rng.standard_normal(WIDTH)
            end -= end.mean() - 0.8
            rows += [start, end, *search(start, end, 5)]
        assert counted(np.array(rows), beyond(np.array(rows))) == (0, lot)


@pytest.mark.parametrize(("sideways", "least"), [(0.1, 7), (0.2, 5)])
def test_small_steps_beside_the_line_hide_nothing(sideways: float, least: int) -> None:
    for seed in range(5):
        rows = [np.zeros(WIDTH)]
        for end in ends(4, seed):
            rows += [end, *search(np.zeros(WIDTH), end, 4, sideways, seed)]
        assert counted(np.array(rows), beyond(np.array(rows)))[0] >= least


@pytest.mark.parametrize("share", [0.19, 0.81, 0.1])
def test_uneven_searches_count_as_well(share: float) -> None:
    rows = [np.zeros(WIDTH)]
    for end in ends(4):
        rows += [end, *search(np.zeros(WIDTH), end, 6, share=share)]
    assert counted(np.array(rows), beyond(np.array(rows)))[0] >= 7


def test_even_steps_for_a_chart_count_for_nothing() -> None:
    """Whole lines between answers, from either end, one after another; in each the answer changes somewhere."""
    shares = np.linspace(0, 1, 15)[:, None]
    for way in (shares, shares[::-1]):
        rows = np.concatenate([way * end for end in ends(5)])
        assert counted(rows, beyond(rows)) == (0, 0)


def test_neither_one_answer_nor_few_features_nor_chance_count() -> None:
    start = np.zeros(WIDTH)
    searched = np.array([start, *(row for end in ends(4) for row in (end, *search(start, end, 5)))])
    assert counted(searched, np.zeros(len(searched), dtype=np.bool_)) == (0, 0)
    few = searched.copy()
    few[:, 6:] = 0.0
    assert counted(few, beyond(searched)) == (0, 0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cloud = 0.7 + rng.standard_normal((128, WIDTH))
        walk = np.cumsum(0.1 * rng.standard_normal((128, WIDTH)), axis=0) + 0.7
        for rows in (cloud, walk):
            assert counted(rows, beyond(rows)) == (0, 0)


def test_a_row_asked_twice_is_no_line() -> None:
    rows = np.array([np.zeros(WIDTH), np.ones(WIDTH)] * 10)
    assert counted(rows, beyond(rows)) == (0, 0)


def test_only_long_runs_of_even_steps_are_told() -> None:
    """A row in the middle between two others makes the later one look like an even step: a cheap decoy."""
    rng = np.random.default_rng(2)
    start, step, turn = rng.standard_normal((3, WIDTH))
    path = [start + k * step for k in range(7)]
    short = [path[-1] + k * turn for k in range(1, 5)]
    own = rng.standard_normal((5, WIDTH))
    rows = np.array(
        [*path, *short, short[-1], *(row for k in range(1, 5) for row in ((own[k - 1] + own[k]) / 2, own[k]))]
    )
    found, scale = np.empty(len(rows), dtype=np.bool_), np.full(WIDTH, 0.3)
    assert lines.even_steps(rows, scale, found) == 5
    assert np.flatnonzero(found).tolist() == [2, 3, 4, 5, 6]
    assert lines.even_steps(rows[:7], scale, found[:7]) == 5
    path = np.array([start + k * step for k in range(10)] + [own[0], *(own[0] + k * turn for k in range(1, 11))])
    found = np.empty(len(path), dtype=np.bool_)
    assert lines.even_steps(path, scale, found) == 21
    assert lines.even_steps(path[:9], scale, found[:9]) == 7
    huge = np.array([[1e308], [-1e308], [1e308], [-1e308], [1e308], [-1e308]])
    assert lines.even_steps(huge, np.ones(1), found[:6]) == 0
