"""Approved false alarms: how many count, and how far they may move a threshold."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.calibration import decision, order_statistics
from detectors.calibration.alarms import FalseAlarm, admitted
from detectors.calibration.decision import Decision, Yardstick
from detectors.calibration.history import History
from detectors.calibration.weeks import ClientWeeks
from detectors.policy import Policy
from detectors.recalibration import _with_alarms

SCALES = np.ones(3)
WEEK = 1_000
PILOT = 160
BUDGET, COMING = 3, 30
FIVE = st.floats(0.0, 50.0)
ALARMS = st.lists(
    st.builds(FalseAlarm, st.integers(1, 9), st.integers(0, 9 * WEEK), FIVE, FIVE, FIVE, FIVE), max_size=30
)


def history(seed: int) -> History:
    rng = np.random.default_rng(seed)
    same, opposite, sequence = (rng.exponential(size=PILOT) for _ in range(3))
    units = ClientWeeks(
        np.arange(1, PILOT + 1, dtype=np.uint64) + 1000, np.zeros(PILOT, np.int64), np.empty(0, np.int64), 1
    )
    return History(
        weeks=units, same=same, opposite=opposite, sequence=sequence, oddest=np.zeros(PILOT),
        index=np.empty(0), repeating=np.zeros(PILOT, np.bool_), parts=(), index_rows=0, clients_a_week=PILOT, start=0,
        week_us=WEEK,
        alarm=np.zeros(PILOT, np.bool_), spoke=np.zeros(PILOT), counted=PILOT,
    )  # fmt: skip


class _Tables:
    """What `decide` reads of the walk's tables."""

    gain_a = gain_b = index_gain = evalue = np.ones(1)

    def _replace(self, **_: Any) -> _Tables:
        return self

    def packed(self) -> None:
        return None


def decided(past: History) -> Decision:
    return decision.decide(
        past, Yardstick(SCALES), _Tables(), None, real=True, budget=BUDGET, clients_per_week=COMING, partitions=1,  # type: ignore[arg-type]  # no intent test and no walk: nobody repeats
        progress=lambda what, share: None,
    )  # fmt: skip


@functools.cache
def alone(seed: int) -> Decision:
    return decided(history(seed))


@settings(max_examples=15, deadline=None)
@given(alarms=ALARMS, seed=st.integers(0, 1))
def test_a_threshold_never_falls_and_never_passes_the_pilots_largest(alarms: list[FalseAlarm], seed: int) -> None:
    past, plain = history(seed), alone(seed)
    assert plain.policy.mode == "at-once"
    assert plain.count.rank > 1
    after, moved, told = _with_alarms(past, plain, alarms, Yardstick(SCALES), BUDGET, decided)
    most = float(np.max([past.same, past.opposite, np.log1p(past.sequence)])) * 1.0001
    for place, limit in ((0, most), (1, most), (3, np.expm1(most) * 1.0001)):
        assert plain.thresholds[place] <= moved.thresholds[place] <= limit
    assert moved.count == plain.count
    assert len(after.weeks) - PILOT <= min(len(alarms), plain.count.rank - 1)
    assert f"of {len(alarms)} approved false alarms count" in told[0]


def test_strong_false_alarms_move_the_threshold_and_say_from_where_to_where() -> None:
    past, plain = history(0), alone(0)
    strong = [FalseAlarm(client, 10, same=40.0) for client in (1, 2)]
    after, moved, told = _with_alarms(past, plain, strong, Yardstick(SCALES), BUDGET, decided)
    assert len(after.weeks) == PILOT + 2
    assert moved.thresholds[0] > plain.thresholds[0]
    assert f"client-cluster from {plain.thresholds[0]:.4g} to {moved.thresholds[0]:.4g}" in told[1]
    together = np.max([past.same, past.opposite, np.log1p(past.sequence)], axis=0)
    wanted = order_statistics.at_rank(together, plain.count.rank - 2, COMING, BUDGET).value
    assert moved.thresholds[0] == pytest.approx(wanted, rel=1e-6)


def test_at_most_n_a_week_count_and_fewer_than_the_rank_the_weakest_first() -> None:
    alarms = [FalseAlarm(client, week * WEEK + 1, same=float(client)) for client in range(1, 8) for week in (0, 5)]
    few = admitted(alarms, SCALES, 0, WEEK, budget=2, rank=100, intent=False)
    assert sorted((one.client, one.time // WEEK) for one in few) == [(1, 0), (1, 5), (2, 0), (2, 5)]
    assert len(admitted(alarms, SCALES, 0, WEEK, budget=2, rank=4, intent=False)) == 3
    assert admitted(alarms, SCALES, 0, WEEK, budget=2, rank=1, intent=False) == []
    assert admitted(alarms, SCALES, 0, WEEK, budget=0, rank=9, intent=False) == []
    twice = [FalseAlarm(1, 1, same=2.0), FalseAlarm(1, 9, opposite=3.0)]
    assert admitted(twice, SCALES, 0, WEEK, budget=9, rank=9, intent=False) == [
        FalseAlarm(1, 9, same=2.0, opposite=3.0)
    ]


def test_what_the_pilot_replays_is_not_counted_twice_and_nothing_moves_where_nothing_pages() -> None:
    past, plain = history(0), alone(0)
    inside = [FalseAlarm(1001, 10, same=40.0)]
    _, moved, told = _with_alarms(past, plain, inside, Yardstick(SCALES), BUDGET, decided)
    assert moved is plain
    assert told[0].startswith("0 of 1 approved false alarms count as client-weeks (1 lie in the pilot itself")
    tickets = Decision(**{**{name: getattr(plain, name) for name in plain.__slots__}, "policy": Policy("tickets")})
    assert _with_alarms(past, tickets, inside, Yardstick(SCALES), BUDGET, decided)[1] is tickets


def test_evidence_is_told_by_the_threshold_that_it_crossed() -> None:
    tickets = np.array([10.0, 20.0])
    clear, unclear = {"score": 6.0, "needed": 1.25, "page": 1.0}, {"score": 9.0, "needed": 1.0, "page": 0.0}
    said: list[tuple[str, float, float, dict[str, float]]] = [
        ("query-cluster", 12.0, 10.0, {}), ("query-intent", 33.0, 10.0, clear), ("query-cluster", 25.0, 20.0, unclear),
        ("input-sequence", 7.0, 5.0, {}), ("index-cluster", 99.0, 10.0, clear), ("query-cluster", 99.0, 11.0, clear),
    ]  # fmt: skip
    found = FalseAlarm.of(7, 1, said, tickets)
    assert found == FalseAlarm(7, 1, same=33.0, opposite=25.0, sequence=7.0, spoke=4.8)
    assert found.strength(np.array([1.0, 100.0, 1.0]), intent=False) == 33.0


def test_where_intent_is_asked_the_least_clear_come_first() -> None:
    honest = [FalseAlarm(client, 1, same=200.0, spoke=1.3) for client in (1, 2, 3)]
    clear = [FalseAlarm(client, 1, same=12.0, spoke=30.0) for client in (4, 5, 6)]
    assert admitted([*clear, *honest], SCALES, 0, WEEK, budget=3, rank=4, intent=True) == honest
    assert admitted([*clear, *honest], SCALES, 0, WEEK, budget=3, rank=4, intent=False) == clear


def of_repeaters(spoke: NDArray[np.float64], sequence: float) -> Decision:
    """A pilot in which somebody repeats himself, so that intent is asked for."""
    some = np.arange(PILOT) < 9
    past = replace(history(0), repeating=some, spoke=spoke, sequence=np.where(some, np.expm1(sequence), 0.0))
    return decided(past)


def test_a_cluster_must_speak_more_clearly_than_benign_ones_do() -> None:
    spoke = np.zeros(PILOT)
    spoke[:5] = 7.0, 5.0, 3.0, 2.0, 1.5
    made = of_repeaters(spoke, 0.5)
    assert made.policy.mode == "intent"
    worst = np.sort(spoke)[-made.count.rank]
    assert made.policy.page_score == pytest.approx(max(1.0, worst), rel=1e-9)
    assert made.policy.page_score > worst
    assert np.count_nonzero(spoke >= made.policy.page_score) == np.count_nonzero(made.beyond) <= made.count.rank - 1
    assert of_repeaters(np.zeros(PILOT), 0.5).policy.page_score == 1.0, "never less than the test itself asks for"


def test_clients_that_are_odd_in_the_sequential_test_hardly_move_what_intent_needs() -> None:
    made = of_repeaters(np.zeros(PILOT), 5.0)
    assert made.policy.page_score == pytest.approx(5.0 ** (1 / 8), rel=1e-9)
    assert made.thresholds[3] == pytest.approx(np.expm1(5.0), rel=1e-6)
