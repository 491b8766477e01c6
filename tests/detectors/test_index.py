"""The index of all accounts: what is near in it, and clusters that no account has by itself."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.calibration import history, repeaters
from detectors.contract import ANONYMOUS, Level, Signal
from detectors.errors import FitError
from detectors.queries import walk as walking
from detectors.queries.walk import BLOCK_ROWS, INDEX_EXAMINED, MOST_MEASURED, NO_BITS, SLACK_BITS
from detectors.scorer import Ensemble

FIRST_ACCOUNT = 7000


def mailed(home: Any, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One template, ten fields of which differ."""
    rows = np.repeat(home.fresh(1, rng), count, axis=0)
    columns = rng.choice(64, 10, replace=False)
    rows[:, columns] = np.clip(rows[:, columns] + 0.1 * rng.normal(size=(count, 10)), 0.0, 1.0)
    return rows


def campaign(
    small_world: Any, home: Any, accounts: int, each: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.bool_]]:
    """A search along the boundary whose every query is sent by the next account; rows, clients, the attacker's own."""
    rows, own = small_world.diluted(home, small_world.boundary_walk(home, rng, 200), each, rng)
    clients = rng.integers(1, 300, len(rows))
    clients[own] = FIRST_ACCOUNT + np.arange(own.sum()) % accounts
    return rows, clients, own


# --- what is near -----------------------------------------------------------------------------------------------------


def in_plain_words(columns: Any, room: int, grain: float) -> list[tuple[float, int, int]]:
    """Squared ratio and sketch bits to the nearest row, and simhash bits to a differently answered one, row by row."""
    ring: list[int] = []
    seen, found, rows = 0, [], columns.rows
    for i, row in enumerate(rows):
        apart = [(int(row["simhash"]) ^ int(rows[other]["simhash"])).bit_count() for other in ring]
        if not ring or any(
            bits == 0 and rows[other]["hash"] == row["hash"] for bits, other in zip(apart, ring, strict=True)
        ):
            found.append((np.nan, NO_BITS, NO_BITS))
        else:
            limit, blocks, measured = min(apart) + SLACK_BITS, -(-len(ring) // BLOCK_ROWS), []
            for turn in range(blocks):
                block = ((seen - 1) % room // BLOCK_ROWS - turn) % blocks
                inside = range(block * BLOCK_ROWS, min(len(ring), (block + 1) * BLOCK_ROWS))
                measured += [ring[k] for k in inside if apart[k] <= limit]
                if len(measured) >= MOST_MEASURED:
                    break
            near = min(int(np.square(row["codes"].astype(int) - rows[other]["codes"]).sum()) for other in measured)
            sketch = min((int(row["sketch"]) ^ int(rows[other]["sketch"])).bit_count() for other in measured)
            answered = [
                bits for bits, other in zip(apart, ring, strict=True) if (rows[other]["label"] - row["label"]) % 256
            ]
            unit = grain / (row["density"] + 1e-6)
            found.append((
                (near + 0.25) * unit * unit,
                sketch - int(row["sketch_rank"]),
                min(answered, default=NO_BITS),
            ))  # fmt: skip
        if np.isnan(found[-1][0]) and ring:
            continue
        ring[seen % room : seen % room + 1] = [i]
        seen += 1
    return found


@pytest.mark.parametrize("room", [1, 63, 64, 200])
def test_the_nearest_row_of_another_account_is_found_as_in_plain_words(
    ensemble: Ensemble, home: Any, sent: Any, room: int
) -> None:
    """Strangers, many near-duplicates in common (more than are measured), a client that repeats itself, anonymous rows,
    exact copies of other accounts."""
    rng = np.random.default_rng(room)
    n = 700
    rows = home.fresh(n, rng)
    common = rng.random(n) < 0.4
    rows[common] = np.repeat(home.fresh(1, rng), common.sum(), axis=0) + 0.003 * rng.normal(size=(common.sum(), 64))
    clients = rng.integers(0, 30, n)
    lone = rng.random(n) < 0.1
    rows[lone], clients[lone] = mailed(home, lone.sum(), rng), 31
    again = np.flatnonzero(rng.random(n) < 0.05)
    rows[again] = rows[np.maximum(again - 7, 0)]
    columns = ensemble.single.score(sent(home, np.clip(rows, 0.0, 1.0), clients)).columns
    trace = history.measure(columns, ensemble.tables._replace(thresholds=np.full(walking.THRESHOLDS, np.inf)), room)
    expected = in_plain_words(columns, room, float(ensemble.tables.grain[0]))
    np.testing.assert_allclose(trace["index_near"], [near for near, _, _ in expected], rtol=1e-12)
    assert trace["index_bits"].tolist() == [bits for _, bits, _ in expected]
    assert trace["index_opposite"].tolist() == [bits for _, _, bits in expected]


def test_a_near_duplicate_is_told_from_a_stranger_whose_projections_have_the_same_signs(
    ensemble: Ensemble, home: Any, sent: Any
) -> None:
    """What is nearest in both geometries decides, not the signs of projections, which thousands of rows share."""
    rng = np.random.default_rng(3)
    rows = home.fresh(2000, rng)
    rows[-1] = rows[1000]
    rows[-1, 20] = (rows[-1, 20] + 0.4) % 1.0  # one feature far away: few signs differ, more than of some strangers
    clients = np.arange(2000) + 1
    columns = ensemble.single.score(sent(home, rows, clients)).columns
    trace = history.measure(columns, ensemble.tables._replace(thresholds=np.full(walking.THRESHOLDS, np.inf)), 2000)
    assert trace["index_p"][-1] < np.quantile(trace["index_p"][1000:-1], 0.02)


def test_rows_in_common_are_told_from_strangers() -> None:
    rng = np.random.default_rng(4)
    distances = rng.lognormal(0.0, 0.5, 1000)
    distances[:50] *= 1e-4
    distances[500:520] = np.nan
    assert np.flatnonzero(repeaters.in_common(distances)).tolist() == list(range(50))
    assert repeaters.in_common(rng.lognormal(0.0, 0.5, 1000)).sum() <= 2
    assert not repeaters.in_common(np.full(10, np.nan)).any()


# --- what becomes of a cluster ----------------------------------------------------------------------------------------


def paged(signals: tuple[Signal, ...]) -> list[Signal]:
    return [signal for signal in signals if signal.level == Level.PAGE]


@pytest.mark.parametrize(("accounts", "each"), [(10, 4), (200, 4), (200, 30)])
def test_a_campaign_pages_where_no_account_could(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any, accounts: int, each: int
) -> None:
    rng = np.random.default_rng(accounts + each)
    rows, clients, own = campaign(small_world, home, accounts, each, rng)
    batch = sent(home, rows, clients)
    pages = [signal for signal in paged(ensemble.score(batch, ensemble.new_state(1000)).signals) if own[signal.row]]
    assert pages
    first = pages[0]
    assert (first.entity, first.rule) == ("cluster", "index-intent")
    assert np.cumsum(own)[first.row] <= 120
    assert first.rests_on == ANONYMOUS
    assert first.statistic >= first.threshold == INDEX_EXAMINED
    policy = ensemble.policy
    assert first.measures["asked"] == first.measures["needed"] * policy.page_score * policy.shared_score
    assert first.measures["score"] >= first.measures["asked"]
    theirs = first.member_clients >= FIRST_ACCOUNT
    assert theirs.mean() > 0.8
    assert len(np.unique(first.member_clients[theirs])) >= min(accounts, 10)


@pytest.mark.parametrize("each", [60, 150])
def test_a_client_that_hides_among_its_own_rows_pages(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any, each: int
) -> None:
    """More benign rows than the client's history remembers lie between two of the attack's."""
    rng = np.random.default_rng(each)
    rows, own = small_world.diluted(home, small_world.boundary_walk(home, rng, 120), each, rng)
    signals = ensemble.score(sent(home, rows, np.full(len(rows), FIRST_ACCOUNT)), ensemble.new_state(10)).signals
    pages = [signal for signal in paged(signals) if own[signal.row]]
    assert pages
    assert (pages[0].entity, pages[0].rule) == ("client", "query-intent")
    assert pages[0].entity_id == f"{FIRST_ACCOUNT:016x}"
    assert pages[0].threshold == INDEX_EXAMINED


def test_a_page_is_not_taken_back_by_the_ticket_that_follows(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    """A cluster of several accounts may page long before it opens a ticket."""
    rows, clients, _ = campaign(small_world, home, 200, 4, np.random.default_rng(204))
    thresholds = ensemble.tables.thresholds.copy()
    thresholds[2] = 190.0
    late = replace(ensemble, tables=ensemble.tables._replace(thresholds=thresholds))
    state = late.new_state(1000)
    said: dict[str, list[Signal]] = {}
    for signal in late.score(sent(home, rows, clients), state).signals:
        if signal.entity == "cluster":
            said.setdefault(signal.entity_id, []).append(signal)
    some = [signals for signals in said.values() if signals[0].level == Level.PAGE]
    assert some
    for signals in some:
        sizes = [signal.measures["size"] for signal in signals]
        assert all(after >= 2 * before for before, after in itertools.pairwise(sizes))
    assert all(signal.measures for signals in some for signal in signals)


def test_a_row_without_a_client_leaves_the_check_to_one_that_has(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    """Whichever row of a campaign comes when it is to be judged, it pages."""
    for turn in range(8):
        rows, clients, own = campaign(small_world, home, 200, 4, np.random.default_rng(7))
        clients[np.flatnonzero(own)[turn::8]] = ANONYMOUS
        signals = ensemble.score(sent(home, rows, clients), ensemble.new_state(1000)).signals
        pages = [signal for signal in paged(signals) if own[signal.row]]
        assert pages, turn
        assert all(clients[signal.row] != ANONYMOUS for signal in pages)


def test_what_nobody_sent_never_pages_by_a_client(ensemble: Ensemble, small_world: Any, home: Any, sent: Any) -> None:
    """The same campaign by rows without a client: their pages would count among no client-weeks."""
    rng = np.random.default_rng(204)
    rows, clients, own = campaign(small_world, home, 200, 4, rng)
    clients[own] = ANONYMOUS
    signals = ensemble.score(sent(home, rows, clients), ensemble.new_state(1000)).signals
    assert not [signal for signal in paged(signals) if own[signal.row]]


def test_a_mail_to_many_is_judged_and_is_no_news_below_the_sites_own_mails(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    """Where a site's history holds mails sent to many, its index tickets later; the intent test is asked as ever."""
    rng = np.random.default_rng(6)
    rows = np.concatenate([home.fresh(300, rng), mailed(home, 60, rng)])
    clients = np.concatenate([rng.integers(1, 200, 300), 500 + np.arange(60)])
    order = np.concatenate([np.arange(100), rng.permutation(np.arange(100, 360))])
    thresholds = ensemble.tables.thresholds.copy()
    assert any(signal.entity == "cluster" for signal in ensemble.score(
        sent(home, rows[order], clients[order]), ensemble.new_state(1000)
    ).signals)  # fmt: skip
    thresholds[2] = 1e4
    deaf = replace(ensemble, tables=ensemble.tables._replace(thresholds=thresholds))
    state = deaf.new_state(1000)
    signals = deaf.score(sent(home, rows[order], clients[order]), state).signals
    assert not [signal for signal in signals if signal.entity == "cluster"]
    mail = (state.pool.heads["owner"] <= -2) & (state.pool.heads["size"] >= 40)
    assert mail.sum() == 1
    assert state.pool.heads["check"][mail] > 40  # it was judged at 16, 24 and 32 members
    rows, clients, own = campaign(small_world, home, 200, 4, rng)
    assert any(own[signal.row] for signal in paged(deaf.score(sent(home, rows, clients), deaf.new_state(1000)).signals))


def test_a_benign_campaign_in_the_history_makes_the_site_ask_for_more(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    """What pages by a cluster of many accounts is a statistic of client-weeks like any other: where it speaks of
    benign ones, the threshold rises."""
    rng = np.random.default_rng(7)
    rows, clients, _ = campaign(small_world, home, 200, 4, rng)
    batch = sent(home, rows, clients)
    columns = ensemble.single.score(batch).columns
    everyone = np.ones(len(rows), dtype=np.bool_)
    silent = ensemble.tables._replace(thresholds=np.full(walking.THRESHOLDS, np.inf))
    past = history.History.replay(
        columns, batch.times, everyone, silent, ensemble.index_rows, 10**9, 1, ~everyone,
    )  # fmt: skip
    spoke = past.intentions(ensemble.tables, ensemble.intent, lambda what, share: None)
    of_campaign = past.weeks.clients >= FIRST_ACCOUNT
    assert spoke.together[of_campaign].max() > 1.0
    assert (spoke.together[of_campaign] > 0.0).sum() <= 10  # of those at whose rows it was asked
    assert spoke.shared.max() == spoke.together.max()
    assert not spoke.own.any()
    tickets = np.maximum(past.same / ensemble.tables.thresholds[0], past.opposite / ensemble.tables.thresholds[1])
    assert tickets[of_campaign].max() < 1.0


def test_weeks_without_an_event_tell_nothing_of_the_index(
    ensemble: Ensemble, small_world: Any, home: Any, sent: Any
) -> None:
    """A single wrong time puts many of them before all others, and none is a partition-week."""
    rng = np.random.default_rng(8)
    rows, clients, _ = campaign(small_world, home, 40, 4, rng)
    batch = sent(home, rows, clients)
    columns = ensemble.single.score(batch).columns
    nobody = np.zeros(len(rows), dtype=np.bool_)
    week = int(np.ptp(batch.times)) + 1

    def replayed(first: int, length: int) -> history.History:
        times = batch.times.copy()
        times[0] = first
        return history.History.replay(
            columns, times, ~nobody, ensemble.tables, ensemble.index_rows, length, 2, nobody,
        )  # fmt: skip

    usual, early = replayed(int(batch.times[0]), week), replayed(int(batch.times[0]) - 1000 * week, week)
    assert len(usual.index) == 2 * usual.weeks_seen == 2
    assert early.weeks.whole_weeks == 1001
    assert len(early.index) == 2 * early.weeks_seen == 4
    assert early.index.max() == usual.index.max()
    with pytest.raises(FitError, match="look whether all times are right"):
        replayed(int(batch.times[0]) - 2_000_000 * week, week)
