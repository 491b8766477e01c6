"""Benign clients whose near-duplicates make a site ask for more of everybody, and what excusing them changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.calibration import decision
from detectors.calibration.decision import Decision, Yardstick, excuses
from detectors.calibration.history import History
from detectors.calibration.weeks import ClientWeeks
from detectors.errors import FitError
from detectors.recalibration import recalibrate
from detectors.signals import client_name

UNITS, COMING, WEEK = 400, 80, 1000


def history(clear: dict[int, float]) -> History:
    """Four hundred client-weeks, two of each client; how clearly the intent test speaks by unit."""
    weeks = ClientWeeks(
        np.arange(UNITS, dtype=np.uint64) // np.uint64(2) + np.uint64(1000),
        np.arange(UNITS) % 2,
        np.empty(0, np.int64),
        2,
    )
    spoke = np.zeros(UNITS)
    spoke[list(clear)] = list(clear.values())
    rng = np.random.default_rng(1)
    return History(
        weeks=weeks, same=rng.exponential(size=UNITS), opposite=rng.exponential(size=UNITS), sequence=np.zeros(UNITS),
        oddest=np.zeros(UNITS), index=np.empty(0), repeating=np.arange(UNITS) < 8, parts=(), index_rows=0,
        clients_a_week=COMING, start=0, week_us=WEEK, alarm=np.zeros(UNITS, np.bool_), spoke=spoke, counted=UNITS,
    )  # fmt: skip


class _Tables:
    """What `decide` reads of the walk's tables."""

    gain_a = gain_b = index_gain = evalue = np.ones(1)
    thresholds: NDArray[np.float64] = np.ones(4)

    def _replace(self, **_: Any) -> _Tables:
        return self

    def packed(self) -> None:
        return None


def decided(past: History, excused: tuple[int, ...] = ()) -> Decision:
    return decision.decide(
        past, Yardstick(np.ones(3)), _Tables(), None, real=True, budget=1, clients_per_week=COMING, partitions=1,  # type: ignore[arg-type]  # the history has no clusters left to judge
        progress=lambda what, share: None, excused=excused,
    )  # fmt: skip


def test_who_makes_the_site_ask_for_more_is_named_with_what_excusing_them_would_bring() -> None:
    plain = decided(history({10: 4.0, 11: 3.5, 20: 2.0, 30: 0.7}))
    assert plain.policy.mode == "intent"
    assert plain.policy.page_score == pytest.approx(4.0, rel=1e-3)
    assert [client for client, _ in plain.costly] == [1005, 1010]
    assert [score for _, score in plain.costly] == pytest.approx([2.0, 1.0], rel=1e-3)
    (said,) = excuses(plain, history({}), WEEK)
    assert said.startswith("page_score is 4, ")
    assert f"without {client_name(1005)} it would be 2; without {client_name(1010)} it would be 1, each" in said


def test_an_excused_client_sets_nothing_by_its_near_duplicates() -> None:
    past = history({10: 4.0, 11: 3.5, 20: 2.0})
    plain, one, both = (decided(past, given) for given in ((), (1005,), (1005, 1010)))
    scores = [found.policy.page_score for found in (plain, one, both)]
    assert scores == pytest.approx([4.0, 2.0, 1.0], rel=1e-3)
    assert [client for client, _ in one.costly] == [1010]
    assert both.costly == ()
    assert excuses(both, past, WEEK) == ()
    for found in (one, both):
        assert (found.thresholds[:3] == plain.thresholds[:3]).all()
        assert found.count.rank == plain.count.rank


def test_nobody_is_named_where_nothing_would_change() -> None:
    assert decided(history({10: 1.0, 20: 0.9})).costly == ()
    many = dict.fromkeys(range(40, 80), 3.0)
    assert decided(history(many)).costly == ()


def test_a_pilot_is_calibrated_without_the_near_duplicates_of_who_is_excused(fitted: Any, small_world: Any) -> None:
    """A service that searches the boundary in the pilot makes the site ask for more, until it is excused."""
    ensemble, known = fitted
    home, rng = small_world.world(), np.random.default_rng(21)
    benign = small_world.benign(home, rng, clients=80, weeks=4, a_week=30)
    service = small_world.boundary_walk(home, rng, 250)
    pilot = small_world.batch_of(
        home.predict,
        np.concatenate([benign.inputs, service]),
        np.concatenate([benign.clients.astype(np.int64), np.full(len(service), 777)]),
        np.concatenate([benign.times.astype(np.float64), np.linspace(0, 3.9 * small_world.WEEK_US, len(service))]),
    )

    def found(excused: tuple[int, ...]) -> Any:
        return recalibrate(
            ensemble, known, pilot, budget=1, clients_per_week=60, week_us=small_world.WEEK_US, partitions=1,
            progress=lambda what, share: None, excused=excused,
        )  # fmt: skip

    (loud, before), (quiet, after) = found(()), found((777,))
    assert before.mode == after.mode == "intent"
    assert loud.policy.page_score > 1.2 > quiet.policy.page_score
    assert any(f"without {client_name(777)} it would be" in note for note in before.notes)
    assert any(note.startswith("approved repeaters: 1, 1 of them in the pilot") for note in after.notes)
    assert not any("page_score is" in note for note in after.notes)
    assert before.data_digest != after.data_digest
    assert before.rank == after.rank


def test_a_pilot_of_few_is_refused(ensemble: Any, fitted: Any, small_world: Any, home: Any) -> None:
    few = small_world.benign(home, np.random.default_rng(3), clients=19, weeks=2, a_week=40, sensors=0)
    with pytest.raises(FitError, match="of 19 clients is too small; let it run until there are 600 of 20"):
        recalibrate(
            ensemble, fitted[1], few, budget=1, clients_per_week=60, week_us=small_world.WEEK_US, partitions=1,
            progress=lambda what, share: None,
        )  # fmt: skip


def test_who_is_excused_sets_no_threshold_where_crossing_one_pages() -> None:
    past = history({})
    past = replace(past, repeating=np.zeros(UNITS, np.bool_), same=np.where(np.arange(UNITS) == 10, 500.0, past.same))
    plain, excused = decided(past), decided(past, (1005,))
    assert plain.policy.mode == excused.policy.mode == "at-once"
    assert plain.thresholds[0] > 100.0 > excused.thresholds[0]


def test_events_of_less_than_a_week_are_told() -> None:
    past = history({})
    (said,) = excuses(decided(past), past, 60 * WEEK)
    assert said.startswith("the events reach over 0.001 seconds, less than the week of 0.06 seconds, and count as one")
    assert "of which a week has 60, " in said


def test_fewer_clients_than_a_week_saw_are_told() -> None:
    past = replace(history({}), clients_a_week=8 * COMING)
    (said,) = excuses(decided(past), past, WEEK)
    assert "for C = 80 clients a week, but a week of the events saw 640; with so many, 8 times as many" in said


def test_a_budget_that_lets_everybody_page_is_told() -> None:
    past = history({})
    made = decided(past)
    (said,) = excuses(replace(made, split=replace(made.split, clients=COMING)), past, WEEK)
    assert "lets every benign client page" in said
