"""What the ensemble says of attackers, sensors and ordinary clients, and what its signals hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.contract import Batch, Level, Reference, Signal, Technique
from detectors.ensemble import fit
from detectors.errors import FitError, SchemaError
from detectors.policy import Policy
from detectors.queries.intent import IntentTest
from detectors.queries.memory import MEMBERS, Memory
from detectors.scorer import Ensemble
from detectors.signals import member_order, next_check
from tests.conftest import in_haste

ATTACKER = 0xABCDEF0123456789
TRACES = 5


def fit_to(small_world: Any, traffic: Batch | None, **changes: Any) -> Any:
    options = {
        "budget": 1,
        "clients_per_week": 40,
        "week_us": small_world.WEEK_US,
        "partitions": 1,
        "rng": np.random.default_rng(1),
    }
    with in_haste():
        return fit(small_world.world().reference, small_world.SCHEMA, traffic, **{**options, **changes})


@pytest.fixture(scope="module")
def at_once(small_world: Any, home: Any) -> Any:
    """(ensemble, report) of a site without repeaters."""
    traffic = small_world.benign(home, np.random.default_rng(21), clients=90, weeks=5, a_week=40, sensors=0)
    return fit_to(small_world, traffic)


@pytest.fixture(scope="module")
def quiet(small_world: Any) -> Any:
    """(ensemble, report) of the reference alone."""
    return fit_to(small_world, None)


def signals_of(ensemble: Ensemble, batch: Batch, state: Memory | None = None) -> tuple[Signal, ...]:
    return ensemble.score(batch, state or ensemble.new_state(500, 2000)).signals


def first_at(signals: tuple[Signal, ...], level: Level, own: NDArray[np.bool_]) -> float:
    """The attacker's own queries until the first signal of a level."""
    spoken = [signal.row for signal in signals if signal.level >= level]
    return float(np.cumsum(own)[spoken[0]]) if spoken else np.inf


# --- attackers and others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 4])
@pytest.mark.parametrize("attack", ["boundary_walk", "score_descent", "pixel_search"])
def test_every_attacker_is_ticketed_within_a_few_queries(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any, attack: str, share: int
) -> None:
    rng, tickets = np.random.default_rng(31), []
    for _ in range(TRACES):
        rows, own = small_world.diluted(home, small_world.ATTACKS[attack](home, rng, 60), share, rng)
        tickets.append(first_at(signals_of(ensemble, sent(home, rows, ATTACKER)), Level.TICKET, own))
    assert max(tickets) <= 20


@pytest.mark.parametrize("share", [0, 4])
def test_attacker_at_the_boundary_is_paged(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any, share: int
) -> None:
    rng, pages = np.random.default_rng(32), []
    for _ in range(TRACES):
        rows, own = small_world.diluted(home, small_world.boundary_walk(home, rng, 150), share, rng)
        pages.append(first_at(signals_of(ensemble, sent(home, rows, ATTACKER)), Level.PAGE, own))
    assert max(pages) < np.inf
    assert np.median(pages) <= 60


def test_sensor_is_ticketed_but_never_paged(ensemble: Ensemble, small_world: Any, home: Any, sent: Any) -> None:
    rng = np.random.default_rng(33)
    for _ in range(TRACES):
        signals = signals_of(ensemble, sent(home, small_world.sensor_rows(home, 300, rng), 5))
        assert signals
        assert {signal.level for signal in signals} == {Level.TICKET}
        assert len(signals) <= 12


def test_ordinary_clients_page_within_the_budget(ensemble: Ensemble, small_world: Any, home: Any) -> None:
    for seed in (34, 35, 36):
        traffic = small_world.benign(home, np.random.default_rng(seed), clients=100, weeks=1, a_week=40, sensors=2)
        signals = signals_of(ensemble, traffic)
        paged = {signal.entity_id for signal in signals if signal.level == Level.PAGE}
        assert len(paged) <= 1
        assert not {f"{small_world.SENSOR + sensor:016x}" for sensor in range(2)} & paged


def test_exact_repetition_says_nothing(ensemble: Ensemble, home: Any, sent: Any) -> None:
    row = home.fresh(1, np.random.default_rng(37))
    state = ensemble.new_state(10, 100)
    assert not signals_of(ensemble, sent(home, np.repeat(row, 200, axis=0), 5), state)
    assert state.clients.scalars[4] == 199


def test_burst_of_odd_inputs_pages_without_near_duplicates(ensemble: Ensemble, home: Any, sent: Any) -> None:
    rng = np.random.default_rng(38)
    rows = home.fresh(20, rng)
    odd = np.clip(rows + 0.25 * rng.choice([-1.0, 1.0], rows.shape), 0, 1)
    signals = signals_of(ensemble, sent(home, odd, ATTACKER))
    paged = [signal for signal in signals if signal.level == Level.PAGE]
    assert {signal.rule for signal in paged} == {"input-sequence"}
    assert paged[0].technique == Technique.CRAFT
    assert paged[0].statistic > paged[0].threshold
    assert paged[0].reasons[0].detector == "fused"
    assert {reason.detector for reason in paged[0].reasons[1:]} <= set(ensemble.detectors)


def test_attack_over_ten_accounts_is_seen_by_the_index(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    rng = np.random.default_rng(39)
    trace = small_world.boundary_walk(home, rng, 150)
    rows, own = small_world.diluted(home, trace, 4, rng)
    clients = np.where(own, 7000 + np.arange(len(rows)) // 5 % 10, rng.integers(1, 50, len(rows)))
    signals = [signal for signal in signals_of(ensemble, sent(home, rows, clients)) if signal.entity == "cluster"]
    assert signals
    assert np.cumsum(own)[signals[0].row] <= 60
    last = signals[-1]
    assert last.rule.startswith("index-")
    assert len(set(last.member_clients.tolist()) & set(range(7000, 7010))) >= 5
    offset, row = (int(part) for part in last.entity_id.split("-"))
    assert offset >= 1000
    assert row == 0


def test_nobodys_rows_are_seen_by_the_index_alone(ensemble: Ensemble, small_world: Any, home: Any, sent: Any) -> None:
    trace = small_world.boundary_walk(home, np.random.default_rng(40), 150)
    state = ensemble.new_state(10, 1000)
    signals = signals_of(ensemble, sent(home, trace, 0), state)
    assert signals
    assert {signal.entity for signal in signals} == {"cluster"}
    assert {signal.level for signal in signals} == {Level.TICKET}
    assert state.clients.scalars[0] == 0


def test_single_account_is_not_the_business_of_the_index(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    trace = small_world.boundary_walk(home, np.random.default_rng(41), 150)
    assert all(signal.entity == "client" for signal in signals_of(ensemble, sent(home, trace, ATTACKER)))


def test_flood_of_repeaters_does_not_hide_an_attacker(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    rng = np.random.default_rng(42)
    state = Memory(64, 500, 500, pool=6)
    noise = np.concatenate([small_world.sensor_rows(home, 40, rng) for _ in range(30)])
    who = np.repeat(np.arange(1, 31), 40)
    shuffled = rng.permutation(len(noise))
    signals_of(ensemble, sent(home, noise[shuffled], who[shuffled]), state)
    assert (state.pool.heads["owner"] >= 0).sum() == 6
    trace = small_world.boundary_walk(home, rng, 200)
    more = np.concatenate([small_world.sensor_rows(home, 20, rng) for _ in range(10)])
    rows = np.concatenate([trace, more])
    clients = np.concatenate([np.full(len(trace), 77), np.repeat(np.arange(1, 11), 20)])
    place = np.argsort(np.concatenate([np.arange(len(trace)), rng.integers(0, len(trace), 200)]), kind="stable")
    signals = signals_of(ensemble, sent(home, rows[place], clients[place], first=9000), state)
    assert any(signal.level == Level.PAGE and signal.entity_id == f"{77:016x}" for signal in signals)


# --- modes ------------------------------------------------------------------------------------------------------------


def test_site_with_a_sensor_asks_for_intent(fitted: Any) -> None:
    _, report = fitted
    assert report.mode == "intent"
    assert report.repeaters == (f"{900_000:016x}",) or len(report.repeaters) >= 1
    assert "repeat" in report.reason
    assert report.excess <= 0.05
    assert report.client_weeks >= report.client_weeks_needed
    assert report.fastest["page by the intent test"] >= 17


def test_site_without_repeaters_pages_at_once(at_once: Any, small_world: Any, home: Any, sent: Any) -> None:
    ensemble, report = at_once
    assert report.mode == "at-once"
    assert "no client" in report.reason
    trace = small_world.boundary_walk(home, np.random.default_rng(51), 80)
    signals = signals_of(ensemble, sent(home, trace, ATTACKER))
    assert signals[0].level == Level.PAGE
    assert signals[0].rule == "query-cluster"
    assert signals[0].row <= 20
    assert report.fastest["page by cluster evidence"] <= signals[0].row + 1


def test_history_without_repeaters_holds_the_rank_it_promises(at_once: Any) -> None:
    _, report = at_once
    assert report.would_page == report.rank - 1
    assert len(report.proposed_repeaters) <= report.would_page


def test_reference_alone_only_tickets(quiet: Any, small_world: Any, home: Any, sent: Any) -> None:
    ensemble, report = quiet
    assert report.mode == "tickets"
    assert not report.pages
    assert any("nothing pages" in line for line in report.sentences())
    assert any("--benign" in line for line in report.sentences())
    rng = np.random.default_rng(52)
    for attack in small_world.ATTACKS.values():
        signals = signals_of(ensemble, sent(home, attack(home, rng, 100), ATTACKER))
        assert signals
        assert {signal.level for signal in signals} == {Level.TICKET}
    odd = np.clip(home.fresh(40, rng) + 0.3 * rng.choice([-1.0, 1.0], (40, 64)), 0, 1)
    assert {signal.level for signal in signals_of(ensemble, sent(home, odd, 3))} == {Level.TICKET}


@pytest.fixture(scope="module")
def weighed(small_world: Any, home: Any) -> Any:
    """(ensemble, report) of a short history, a large site, and crafted rows that break a constraint and a pattern."""
    traffic = small_world.benign(home, np.random.default_rng(22), clients=30, weeks=2, a_week=30)
    outside = home.fresh(150, np.random.default_rng(23))
    outside[:, 5] = 4.0
    crafted = {"outside": Reference(outside, home.predict(outside))}
    return fit_to(small_world, traffic, crafted=crafted, clients_per_week=1000)


def test_too_few_client_weeks_refuse_to_page_and_say_how_many_would_do(weighed: Any) -> None:
    ensemble, report = weighed
    assert ensemble.policy.mode == "tickets"
    assert report.client_weeks_needed > 3000
    assert f"{report.client_weeks_needed} would" in report.reason
    assert any("client-weeks in all would do" in line for line in report.sentences())


def test_given_crafted_rows_weigh_the_detectors(weighed: Any, at_once: Any) -> None:
    _, report = weighed
    assert report.fusion == "logistic"
    spoken = [report.weights[report.detectors.index(name)] for name in ("constraints", "pattern")]
    assert sum(spoken) > 0.5
    assert at_once[1].fusion == "rehearsed"
    assert min(at_once[1].weights) >= 0.04


def spoiled(field: str, change: Callable[[Any], None]) -> Callable[[Batch], Batch]:
    def spoil(batch: Batch) -> Batch:
        array = getattr(batch, field).copy()
        change(array)
        return replace(batch, **{field: array})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda b: b.take(slice(0, 100)), "too few to calibrate on; give at least 600 of 20 clients"),
        (lambda b: replace(b, clients=np.full(len(b), 9, dtype=np.uint64)), "1 clients are too few"),
        (spoiled("times", lambda t: t.__setitem__(slice(None), t[::-1].copy())), "in the order of their times"),
        (spoiled("inputs", lambda x: x.__setitem__((7, 3), np.nan)), "NaN or infinity, first row 7"),
        (spoiled("labels", lambda y: y.__setitem__(5, 10)), "benign row 5 has label 10; labels are 0 to 9"),
        (lambda b: replace(b, inputs=b.inputs[:, :63]), r"shape \(\d+, 63\); the schema needs \(n, 64\)"),
    ],
)
def test_fit_says_what_is_wrong_with_benign_events(
    small_world: Any, home: Any, spoil: Callable[[Batch], Batch], complaint: str
) -> None:
    traffic = small_world.benign(home, np.random.default_rng(24), clients=24, weeks=2, a_week=30)
    with pytest.raises(FitError, match=complaint):
        fit_to(small_world, spoil(traffic))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"budget": -1}, "budget -1 must be >= 0"),
        ({"week_us": 0}, "week 0 us"),
        ({"partitions": 0}, "partitions 0"),
        ({"clients_per_week": 0}, "clients a week 0"),
    ],
)
def test_fit_says_what_is_wrong_with_numbers(small_world: Any, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FitError, match=complaint):
        fit_to(small_world, None, **changes)


def test_fit_needs_enough_reference_rows(small_world: Any, home: Any) -> None:
    few = Reference(home.reference.inputs[:150], home.reference.labels[:150])
    with pytest.raises(FitError, match="150 reference rows alone are too few; give at least 200"):
        fit(
            few,
            small_world.SCHEMA,
            None,
            budget=0,
            clients_per_week=None,
            week_us=1,
            partitions=1,
            rng=np.random.default_rng(0),
        )


# --- what a signal holds ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paged(ensemble: Ensemble, small_world: Any, home: Any, sent: Any) -> tuple[Batch, tuple[Signal, ...]]:
    """An attack diluted 1:4, between other clients' rows."""
    rng = np.random.default_rng(61)
    rows, _ = small_world.diluted(home, small_world.boundary_walk(home, rng, 120), 4, rng)
    others = home.fresh(len(rows), rng)
    inputs = np.stack([rows, others], axis=1).reshape(-1, 64)
    clients = np.stack([np.full(len(rows), ATTACKER, dtype=np.uint64), rng.integers(1, 30, len(rows), dtype=np.uint64)])
    batch = sent(home, inputs, clients.T.ravel())
    return batch, signals_of(ensemble, batch)


def test_ticket_comes_first_and_becomes_a_page_with_the_measures_of_intent(paged: Any) -> None:
    _, signals = paged
    mine = [signal for signal in signals if signal.entity_id == f"{ATTACKER:016x}"]
    levels = [signal.level for signal in mine]
    assert levels[0] == Level.TICKET
    assert mine[0].rule == "query-cluster"
    page = mine[levels.index(Level.PAGE)]
    assert page.rule == "query-intent"
    assert {"gate", "progress", "following", "bisection", "size", "score"} <= set(page.measures)
    assert page.measures["page"] == 1.0
    assert page.technique == Technique.CRAFT_BLACK_BOX
    assert page.statistic > page.threshold
    assert sorted(levels) == levels  # a page is never taken back


def test_the_intent_test_gets_the_scores_that_came_with_the_members(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = sent(home, small_world.boundary_walk(home, np.random.default_rng(61), 120), ATTACKER)
    outputs = np.random.default_rng(62).dirichlet(np.ones(len(ensemble.schema.classes)), len(batch))
    outputs[40:50] = np.nan
    judge, asked = IntentTest.judge, []

    def spy(self: IntentTest, rows: Any, labels: Any, size: int, origin: Any, seed: int, answers: Any = None) -> Any:
        asked.append((rows, answers))
        return judge(self, rows, labels, size, origin, seed, answers)

    monkeypatch.setattr(IntentTest, "judge", spy)
    for given in (replace(batch, outputs=outputs), replace(batch, outputs=None)):
        asked.clear()
        signals_of(ensemble, given)
        assert asked
        for rows, answers in asked:
            for row, (own, rival) in zip(rows, answers, strict=True):
                place = int(np.flatnonzero((batch.inputs == row).all(axis=1))[0])
                if given.outputs is None or 40 <= place < 50:
                    assert np.isnan([own, rival]).all()
                else:
                    others = np.delete(outputs[place], batch.labels[place])
                    assert (own, rival) == (outputs[place, batch.labels[place]], others.max())


def test_a_page_needs_the_intent_test_to_speak_as_clearly_as_the_policy_asks(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    attack = sent(home, small_world.boundary_walk(home, np.random.default_rng(61), 120), ATTACKER)

    def told(least: float) -> tuple[Signal, ...]:
        return signals_of(replace(ensemble, policy=Policy("intent", page_score=least)), attack)

    first = next(signal for signal in told(1.0) if signal.level == Level.PAGE)
    clear = first.measures["score"] / first.measures["needed"]
    for least, pages in ((clear, True), (clear * 1.001, False), (1e9, False)):
        signals = told(least)
        (same,) = (signal for signal in signals if signal.row == first.row and signal.measures)
        assert (same.level == Level.PAGE) is pages
        assert same.measures["asked"] == pytest.approx(same.measures["needed"] * least)
        assert signals[0].level == Level.TICKET
        assert signals[0].row < first.row, "tickets do not ask"


def test_members_are_rows_of_the_client_oldest_first_and_end_with_the_row_itself(paged: Any) -> None:
    batch, signals = paged
    for signal in signals:
        if signal.entity != "client" or signal.rule == "input-sequence":
            continue
        assert signal.members.dtype == np.int64
        assert len(signal.members) == len(signal.member_clients) <= MEMBERS
        assert (np.diff(signal.members[:, 0]) > 0).all()
        places = signal.members[:, 0] - 1000
        assert (batch.clients[places] == signal.member_clients).all()
        assert {f"{int(client):016x}" for client in signal.member_clients} == {signal.entity_id}
        assert places[-1] == signal.row


def test_signal_shows_the_input_beside_the_nearest_reference_row_of_its_class(paged: Any, ensemble: Ensemble) -> None:
    batch, signals = paged
    for signal in signals:
        assert (signal.input == batch.inputs[signal.row]).all()
        assert signal.label == signal.nearest_label == batch.labels[signal.row]
        assert any((signal.nearest == row).all() for row in ensemble.single.frame.inputs)


def test_reasons_are_few_and_in_plain_words(paged: Any) -> None:
    _, signals = paged
    assert signals
    for signal in signals:
        assert 1 <= len(signal.reasons) <= 6
        for reason in signal.reasons:
            assert 0 < reason.pvalue <= 1
            assert 20 < len(reason.text) < 250
            assert "nan" not in reason.text
    assert any("an earlier query of this client" in reason.text for signal in signals for reason in signal.reasons)
    assert any(
        reason.detector == "intent" and "near-identical queries" in reason.text
        for signal in signals
        for reason in signal.reasons
    )


def test_signals_of_a_long_attack_stay_few(ensemble: Ensemble, small_world: Any, home: Any, sent: Any) -> None:
    rng = np.random.default_rng(62)
    trace = np.concatenate([small_world.boundary_walk(home, rng, 400) for _ in range(3)])
    assert len(signals_of(ensemble, sent(home, trace, ATTACKER))) <= 60


def test_signals_stand_in_the_order_of_rows(paged: Any) -> None:
    _, signals = paged
    rows = [signal.row for signal in signals]
    assert rows == sorted(rows)


# --- the rest of the contract -----------------------------------------------------------------------------------------


def test_sizes_at_which_intent_is_judged() -> None:
    sizes = [16]
    while sizes[-1] < 300:
        sizes.append(next_check(sizes[-1]))
    assert sizes == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    assert next_check(17) == 24
    assert next_check(25) == 32


def test_ring_of_members_is_read_oldest_first() -> None:
    assert member_order(3).tolist() == [0, 1, 2]
    assert member_order(MEMBERS).tolist() == list(range(MEMBERS))
    assert member_order(MEMBERS + 2).tolist() == [*range(2, MEMBERS), 0, 1]


def test_foreign_state_is_refused(ensemble: Ensemble, home: Any, sent: Any) -> None:
    with pytest.raises(TypeError, match="must come from new_state"):
        ensemble.score(sent(home, home.fresh(1, np.random.default_rng(0)), 1), object())  # type: ignore[arg-type]


def test_refused_batch_changes_nothing(ensemble: Ensemble, home: Any, sent: Any) -> None:
    state = ensemble.new_state(10, 10)
    before = state.digest()
    batch = sent(home, home.fresh(5, np.random.default_rng(0)), 1)
    batch.inputs[3, 3] = np.nan
    with pytest.raises(SchemaError, match="row 3 of the batch"):
        ensemble.score(batch, state)
    assert state.digest() == before


def test_empty_batch_is_scored(ensemble: Ensemble, home: Any, sent: Any) -> None:
    batch = sent(home, home.fresh(1, np.random.default_rng(0)), 1).take(slice(0, 0))
    state = ensemble.new_state(10, 10)
    before = state.digest()
    verdicts = ensemble.score(batch, state)
    assert verdicts.scores.shape == (0, len(ensemble.detectors))
    assert verdicts.signals == ()
    assert state.digest() == before


def test_index_is_no_larger_than_it_was_calibrated_for(ensemble: Ensemble) -> None:
    assert ensemble.new_state(10, 10**6).index.simhash.shape[1] == ensemble.index_rows
    assert ensemble.new_state(10, 10).index.simhash.shape[1] == 10


def test_client_costs_about_a_kibibyte(ensemble: Ensemble) -> None:
    assert ensemble.new_state(20_000, 10).bytes_a_client() < 1064


def test_state_survives_its_arrays(ensemble: Ensemble, small_world: Any, home: Any) -> None:
    traffic = small_world.benign(home, np.random.default_rng(71), clients=15, weeks=1, a_week=30)
    state, other = ensemble.new_state(8, 64), ensemble.new_state(8, 64)
    half = len(traffic) // 2
    ensemble.score(traffic.take(slice(0, half)), state)
    stored = {name: array.copy() for name, array in state.arrays().items()}
    for array in stored.values():
        assert array.dtype.names is None
        array.flags.writeable = False
    other.load(stored)
    assert other.digest() == state.digest()
    rest = traffic.take(slice(half, None))
    assert ensemble.score(rest, other).statistics.tobytes() == ensemble.score(rest, state).statistics.tobytes()
    assert other.digest() == state.digest()


def test_state_of_another_size_is_refused_by_name(ensemble: Ensemble) -> None:
    state = ensemble.new_state(8, 64)
    with pytest.raises(ValueError, match=r"clients\.table: stored int32\(32,\), expected int32\(16,\)"):
        state.load(ensemble.new_state(9, 64).arrays())
    arrays = state.arrays()
    del arrays["pool.clock"]
    with pytest.raises(ValueError, match=r"other arrays: pool\.clock"):
        state.load(arrays)
