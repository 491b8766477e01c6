"""A single input that is odder than what benign clients send: a ticket, and no flood of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detectors.calibration.decision import THRESHOLD_NAMES
from detectors.contract import ANONYMOUS, Batch, Level, Technique
from detectors.queries.memory import ODD_ANONYMOUS
from detectors.queries.walk import MOST_ODD
from detectors.scorer import TESTS, Ensemble

CLIENT = 77


@pytest.fixture(scope="module")
def noise(ensemble: Ensemble, home: Any, sent: Any) -> Any:
    """So many rows that are nothing like what any client has ever sent, all beyond the threshold."""
    rows = np.random.default_rng(9).integers(0, 2, (800, 64)).astype(np.float64)
    verdicts = ensemble.score(sent(home, rows, ANONYMOUS), ensemble.new_state(10, 1000))
    beyond = verdicts.statistics[:, TESTS.index("input-row")] > 1.0
    return lambda n: rows[beyond][:n]


def told(ensemble: Ensemble, batch: Batch, state: Any = None) -> list[Any]:
    state = ensemble.new_state(100, 1000) if state is None else state
    return [signal for signal in ensemble.score(batch, state).signals if signal.rule == "input-row"]


def test_one_odd_row_is_a_ticket(ensemble: Ensemble, home: Any, sent: Any, noise: Any) -> None:
    rows = home.fresh(6, np.random.default_rng(8))
    rows[3] = noise(1)[0]
    verdicts = ensemble.score(sent(home, rows, CLIENT), ensemble.new_state(10, 100))
    (signal,) = verdicts.signals
    assert (signal.row, signal.rule, signal.level) == (3, "input-row", Level.TICKET)
    assert (signal.entity, signal.entity_id, signal.technique) == ("client", f"{CLIENT:016x}", Technique.CRAFT)
    assert signal.statistic > signal.threshold == ensemble.tables.thresholds[THRESHOLD_NAMES.index("input-row")]
    assert signal.reasons[0].detector == "fused" and len(signal.reasons) > 1
    assert verdicts.levels.tolist() == [0, 0, 0, Level.TICKET, 0, 0]
    crossed = verdicts.statistics[:, TESTS.index("input-row")]
    assert crossed[3] > 1.0 and (np.delete(crossed, 3) <= 1.0).all()


def test_many_odd_rows_of_a_client_are_told_at_powers_of_two(
    ensemble: Ensemble, home: Any, sent: Any, noise: Any
) -> None:
    signals = told(ensemble, sent(home, noise(300), CLIENT))
    assert [signal.row + 1 for signal in signals] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert MOST_ODD < 256


def test_each_client_has_a_count_of_its_own_and_a_taken_slot_begins_anew(
    ensemble: Ensemble, home: Any, sent: Any, noise: Any
) -> None:
    state = ensemble.new_state(2, 1000)
    clients = np.array([1, 1, 1, 2, 2, 2, 3, 4, 1])
    signals = told(ensemble, sent(home, noise(9), clients), state)
    assert [signal.row for signal in signals] == [0, 1, 3, 4, 6, 7, 8]


def test_a_copy_of_an_odd_row_is_not_told_again(ensemble: Ensemble, home: Any, sent: Any, noise: Any) -> None:
    rows = np.repeat(noise(1), 8, axis=0)
    assert [signal.row for signal in told(ensemble, sent(home, rows, CLIENT))] == [0]


def test_anonymous_rows_share_one_count(ensemble: Ensemble, home: Any, sent: Any, noise: Any) -> None:
    state = ensemble.new_state(10, 1000)
    signals = told(ensemble, sent(home, noise(9), ANONYMOUS), state)
    assert [signal.row for signal in signals] == [0, 1, 3, 7]
    assert {signal.entity for signal in signals} == {"cluster"}
    assert len({signal.entity_id for signal in signals}) == 4
    assert state.clients.scalars[ODD_ANONYMOUS] == 9


def test_cuts_change_nothing(ensemble: Ensemble, home: Any, sent: Any, noise: Any) -> None:
    rng = np.random.default_rng(10)
    batch = sent(home, noise(60), rng.integers(0, 5, 60))
    whole, pieces = ensemble.new_state(10, 100), ensemble.new_state(10, 100)
    expected = [signal.row for signal in told(ensemble, batch, whole)]
    found = [
        start + signal.row
        for start in range(0, 60, 7)
        for signal in told(ensemble, batch.take(slice(start, start + 7)), pieces)
    ]
    assert found == expected
    assert whole.digest() == pieces.digest()


def test_benign_weeks_have_about_as_many_tickets_as_are_accepted(
    ensemble: Ensemble, small_world: Any, home: Any
) -> None:
    clients, weeks = 100, 3
    tickets = 0
    for seed in range(40, 40 + weeks):
        traffic = small_world.benign(home, np.random.default_rng(seed), clients=clients, weeks=1, a_week=40, sensors=2)
        tickets += len({signal.entity_id for signal in told(ensemble, traffic)})
    assert tickets <= 3 * weeks  # 1 a week is accepted


def test_a_threshold_that_is_infinite_tells_nothing(ensemble: Ensemble, home: Any, sent: Any, noise: Any) -> None:
    thresholds = ensemble.tables.thresholds.copy()
    thresholds[4] = np.inf
    silent = replace(ensemble, tables=ensemble.tables._replace(thresholds=thresholds))
    assert not told(silent, sent(home, noise(4), CLIENT))
