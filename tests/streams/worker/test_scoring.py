"""Scoring of one partition: a function of the log, whatever the cuts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.contract import ANONYMOUS, Batch, Level, Signal, Verdicts
from streams.events import decoder
from streams.events.batch import DecodeOptions, InferenceBatch
from streams.incidents.grouping import direct_group
from streams.probes import marks
from streams.store.approvals import NOBODY, Approvals
from streams.store.hours import unpack_hour
from streams.store.messages import SignalMessage
from streams.worker import clock as clocks
from streams.worker.clock import MAX_JUMP_US, Clock
from streams.worker.probes import ProbeUses
from streams.worker.scoring import PartitionScoring, ScoringOptions
from streams.worker.sources import Sources
from streams.worker.tally import BUCKETS, Counters, Histograms, buckets
from tests.streams.worker.conftest import CLASSES, CLIENT_KEY, MODEL, PROBE_KEY, WIDTH, event
from tests.streams.worker.counting import CountingScorer

TOPIC, PARTITION = "events", 3
CAMPAIGN = bytes(8)
START_MS = 1_700_000_000_000
TTL_US = 120_000_000


@dataclass(frozen=True)
class Rec:
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_type: int = 1


def options(max_rows: int = 50, clients: int = 6) -> ScoringOptions:
    schema = CountingScorer(WIDTH, CLASSES).schema
    return ScoringOptions(
        topic=TOPIC,
        model=MODEL,
        decode=DecodeOptions(MODEL, schema, "key", CLIENT_KEY),
        codec=decoder("native"),
        probe_key=PROBE_KEY,
        probe_ttl_us=TTL_US,
        clients=clients,
        index_rows=10,
        max_rows=max_rows,
    )


def fresh(max_rows: int = 50, bundle_from: int = 0) -> PartitionScoring:
    return PartitionScoring(CountingScorer(WIDTH, CLASSES), options(max_rows), PARTITION, "topic-id", bundle_from)


def log(rng: np.random.Generator, length: int) -> list[Rec]:
    """Traffic with everything in it: many rows a record, dead letters, anonymous rows, probes, copies, gaps in time."""
    records: list[Rec] = []
    offset, at = 100, START_MS
    for number in range(length):
        offset += int(rng.integers(1, 3))
        at += int(rng.choice([0, 5, 30_000, 70_000], p=[0.3, 0.5, 0.15, 0.05]))
        key = f"client-{rng.integers(9)}".encode()
        kind = rng.integers(10)
        value, headers = event(number), ()
        if kind == 0:
            value = b"{"
        elif kind == 1:
            key = None
        elif kind == 2:
            rows = int(rng.integers(1, 6))
            inputs = [[float(x) for x in rng.integers(0, 5, WIDTH)] for _ in range(rows)]
            if rng.random() < 0.3:
                inputs[0][0] = float("inf")
            value = event(number, inputs=inputs, outputs=[[0.1, 0.2, 0.7]] * rows).replace(b"Infinity", b"1e999")
        elif kind in (3, 4):
            issued = at * 1000 if kind == 3 else int(rng.choice([0, at * 1000 - TTL_US]))
            key = b"prober"
            mark = marks.sign_header(
                PROBE_KEY, TOPIC, PARTITION, CAMPAIGN, int(rng.integers(length)), issued, key, value
            )
            headers = ((marks.HEADER, mark if rng.random() < 0.8 else mark[:-1] + b"x"),)
        elif kind == 5 and records:
            copied = records[int(rng.integers(len(records)))]
            key, value, headers = copied.key, copied.value or b"", copied.headers
        records.append(Rec(offset, at, key, value, tuple(headers)))
    return records


def pieces(records: Sequence[Rec], cuts: Sequence[int]) -> list[list[Rec]]:
    edges = [0, *sorted({cut % len(records) for cut in cuts} - {0}), len(records)]
    return [list(records[a:b]) for a, b in itertools.pairwise(edges)]


def summed(parts: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = (
                summed([found.get(name, {}), value]) if isinstance(value, dict) else found.get(name, 0) + value
            )
    return found


def summed_up(parts: Sequence[dict[str, bytes]]) -> dict[str, bytes]:
    """What a hash holds after all of them."""
    return {name: value for part in parts for name, value in part.items()}


def everything(records: Sequence[Rec], cuts: Sequence[int], max_rows: int) -> dict[str, Any]:
    scoring = fresh(max_rows)
    outcomes = []
    base = 100
    for part in pieces(records, cuts):
        outcomes.append(scoring.step(part, base, pilot=False))
        base = outcomes[-1].plan.next
    uses: dict[str, str] = {}
    for outcome in outcomes:
        uses |= outcome.plan.uses
        for gone in outcome.plan.expired:
            uses.pop(gone, None)
    return {
        "totals": summed([o.plan.totals for o in outcomes]),
        "minutes": summed([o.plan.minutes for o in outcomes]),
        "hours": summed([o.plan.hours for o in outcomes]),
        "histograms": summed_up([o.plan.histograms for o in outcomes]),
        "signals": [s for o in outcomes for s in o.signals],
        "verdicts": [v for o in outcomes for v in o.verdicts],
        "dead": [(record.offset, letter) for o in outcomes for record, letter in o.dead],
        "uses": uses,
        "mark": outcomes[-1].plan.mark,
        "state": {name: array.tobytes() for name, array in scoring.arrays().items()},
    }


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
    max_rows=st.sampled_from([1, 3, 50, 1000]),
)
def test_effects_and_state_do_not_depend_on_cuts(seed: int, cuts: list[int], max_rows: int) -> None:
    records = log(np.random.default_rng(seed), 80)
    assert everything(records, cuts, max_rows) == everything(records, [], 1000)


def test_every_row_ends_in_one_counter() -> None:
    for seed in range(20):
        got = everything(log(np.random.default_rng(seed), 200), [50, 90], 50)
        totals = got["totals"]
        ends = sum(totals.get(n, 0) for n in ("scored", "probes", "probes_excluded", "invalid", "duplicates"))
        assert totals["rows"] == ends
        assert totals["records"] == 200
        assert totals["invalid"] == sum(1 if d.rows is None else len(d.rows) for _, d in got["dead"])
        assert got["uses"] is not None
        assert totals["signals"] == len(got["signals"])


@pytest.mark.parametrize("place", [1, 40, 79])
def test_state_that_is_stored_and_loaded_goes_on_the_same(place: int) -> None:
    records = log(np.random.default_rng(5), 80)
    whole = fresh()
    whole.follow(records)
    first, second = fresh(), fresh()
    first.follow(records[:place])
    second.load({name: array.copy() for name, array in first.arrays().items()})
    second.follow(records[place:])
    assert {n: a.tobytes() for n, a in second.arrays().items()} == {n: a.tobytes() for n, a in whole.arrays().items()}


def test_following_leaves_the_state_that_scoring_leaves() -> None:
    records = log(np.random.default_rng(6), 80)
    scored, followed = fresh(), fresh()
    scored.step(records, 100, pilot=False)
    followed.follow(records)
    assert followed.state.digest() == scored.state.digest()
    assert followed.overlay.digest() == scored.overlay.digest()


def test_rows_before_the_bundle_decides_move_only_time_and_coordinates() -> None:
    records = log(np.random.default_rng(7), 80)
    border = records[40].offset
    late, only = fresh(bundle_from=border), fresh()
    late.follow(records)
    only.follow(records[40:])
    assert late.state.digest() == only.state.digest()
    assert late.clock.last == only.clock.last


def test_signals_stand_in_the_order_of_their_entry_ids() -> None:
    got = everything(log(np.random.default_rng(8), 300), [], 1000)["signals"]
    assert len(got) > 5
    places = [(s.offset, s.row) for s in got]
    assert places == sorted(places)
    assert all(isinstance(s, SignalMessage) and s.id == f"topic-id/3/{s.offset}/{s.row}/{s.rule}" for s in got)


# --- time ------------------------------------------------------------------------------------------------------------


def stamped(stamps: Sequence[int], kind: int) -> list[Rec]:
    return [Rec(n, stamp, None, None, timestamp_type=kind) for n, stamp in enumerate(stamps)]


@given(
    stamps=st.lists(st.integers(-1, 20_000_000), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 100), max_size=5),
    kind=st.sampled_from([0, 1]),
)
def test_time_never_runs_backwards_nor_far_ahead(stamps: list[int], cuts: list[int], kind: int) -> None:
    records = stamped(stamps, kind)
    whole = Clock()
    times = whole.stamp(records)
    parts = Clock()
    pieced = np.concatenate([parts.stamp(part) for part in pieces(records, cuts)])
    assert np.array_equal(times, pieced)
    assert whole.last == parts.last == int(times[-1])
    steps = np.diff(times)
    assert np.all(steps >= 0)
    assert times[0] == max(0, stamps[0] * 1000)
    if kind == 0:
        assert np.all(steps <= MAX_JUMP_US)
    else:
        assert np.array_equal(times, np.maximum.accumulate(np.maximum(np.array(stamps) * 1000, 0)))


def test_one_stamp_from_the_far_future_moves_time_by_an_hour() -> None:
    far = 10**15
    times = Clock().stamp(stamped([1000, far, 2000, 3000], 0))
    assert times.tolist() == [1_000_000, 1_000_000 + MAX_JUMP_US, 1_000_000 + MAX_JUMP_US, 1_000_000 + MAX_JUMP_US]
    assert clocks.MAX_JUMP_US == 3_600_000_000


# --- source coordinates ----------------------------------------------------------------------------------------------


def sourced(rows: Sequence[tuple[int, int, int]]) -> InferenceBatch:
    n = len(rows)
    return InferenceBatch(
        inputs=np.zeros((n, 1)),
        outputs=None,
        labels=np.zeros(n, dtype=np.int32),
        clients=np.zeros(n, dtype=np.uint64),
        times=np.zeros(n, dtype=np.int64),
        offsets=np.arange(n, dtype=np.int64),
        rows=np.zeros(n, dtype=np.int32),
        marks=np.full(n, -1, dtype=np.int32),
        source_partitions=np.array([r[0] for r in rows], dtype=np.int32),
        source_offsets=np.array([r[1] for r in rows], dtype=np.int64),
        source_rows=np.array([r[2] for r in rows], dtype=np.int32),
    )


@given(
    rows=st.lists(
        st.tuples(
            st.integers(-1, 2),
            st.one_of(st.integers(-1, 6), st.sampled_from([2**40, 2**62])),
            st.one_of(st.integers(-1, 3), st.just(2**30)),
        ),
        min_size=1,
        max_size=30,
    ),
    cuts=st.lists(st.integers(0, 100), max_size=4),
)
def test_repeated_rows_are_those_not_newer_than_one_before(rows: list[tuple[int, int, int]], cuts: list[int]) -> None:
    newest: dict[int, tuple[int, int]] = {}
    expected = []
    for source, *place in rows:
        coordinate = (place[0], place[1])
        again = source >= 0 and coordinate <= newest.get(source, (-1, -1))
        expected.append(again)
        if source >= 0 and not again:
            newest[source] = coordinate
    sources = Sources()
    found: list[bool] = []
    for part in pieces(rows, cuts):  # type: ignore[arg-type]  # any sequence can be cut
        repeated = sources.repeated(sourced(part))  # type: ignore[arg-type]  # the same
        assert repeated is not None
        found += repeated.tolist()
        kept = Sources()
        kept.load(sources.arrays())
        sources = kept
    assert found == expected


# --- probe ids -------------------------------------------------------------------------------------------------------


def test_first_uses_are_remembered_until_they_expire() -> None:
    uses = ProbeUses()
    one, two = marks.probe_id(CAMPAIGN, 1), marks.probe_id(CAMPAIGN, 2)
    assert uses.first(one, 10, 0, 1000, 1)
    assert uses.first(one, 10, 0, 1000, 2)
    assert not uses.first(one, 10, 1, 1000, 3)
    assert not uses.first(one, 11, 0, 1000, 1000)
    assert uses.first(two, 12, 0, 3000, 1000)
    assert uses.forget(1000) == []
    assert uses.forget(1001) == [one]
    assert uses.forget(1002) == []
    kept = ProbeUses()
    kept.load(uses.arrays())
    assert not kept.first(two, 13, 0, 3000, 1002)
    assert kept.forget(3001) == [two]
    assert len(kept) == 0


# --- counting --------------------------------------------------------------------------------------------------------


def test_buckets_are_eighths_of_a_decade_of_p() -> None:
    p = np.concatenate([[1.0], 10.0 ** -np.linspace(0.01, 7.9, 200), [1e-9, 5e-324, 0.0]])
    found = buckets(p)
    plain = np.minimum(np.floor(8 * -np.log10(np.maximum(p, 1e-300))), BUCKETS - 1)
    assert np.all(np.abs(found - plain) <= 1)
    assert np.mean(found == plain) > 0.9
    assert (found[0], found[-1]) == (0, BUCKETS - 1)
    assert np.all(np.diff(found) >= 0)


def test_counts_fall_in_the_minutes_of_their_rows() -> None:
    counters = Counters()
    times = np.array([0, 59_999_999, 60_000_000, 3_600_000_000], dtype=np.int64)
    counters.add("rows", times)
    counters.add("odd", times, np.array([True, False, True, False]))
    assert counters.minutes == {0: {"rows": 2, "odd": 1}, 1: {"rows": 1, "odd": 1}, 60: {"rows": 1}}
    assert counters.hours() == {0: {"rows": 3, "odd": 2}, 1: {"rows": 1}}
    assert counters.totals() == {"rows": 4, "odd": 2}


class FramingScorer(CountingScorer):
    """A cluster of the index at every page: rows of the anonymous, and perhaps of one client."""

    def __init__(self, members: Sequence[int], rests_on: int = ANONYMOUS) -> None:
        super().__init__(WIDTH, CLASSES)
        self.rests_on = rests_on
        self.members = np.array(members, dtype=np.uint64)

    def score(self, batch: Batch, state: object) -> Verdicts:
        verdicts = super().score(batch, state)
        places = np.column_stack([np.arange(len(self.members)), np.zeros(len(self.members), dtype=np.int64)])
        signals = tuple(
            replace(
                s,
                entity="cluster",
                entity_id="1-0",
                rule="index-intent",
                members=places,
                member_clients=self.members,
                rests_on=self.rests_on,
            )
            for s in verdicts.signals
            if s.level == Level.PAGE
        )
        return replace(verdicts, signals=signals)


@pytest.mark.parametrize(
    ("members", "entity"),
    [([7, 7], "client|" + f"{7:016x}"), ([ANONYMOUS, 7, ANONYMOUS], "cluster|3:1-0"), ([ANONYMOUS], "cluster|3:1-0")],
)
def test_an_innocent_client_among_anonymous_rows_is_not_named(members: list[int], entity: str) -> None:
    scoring = PartitionScoring(FramingScorer(members), options(), PARTITION, "topic-id", 0)
    records = [Rec(number, START_MS + number, b"one", event(number)) for number in range(40)]
    (signal,) = scoring.step(records, 0, pilot=False).signals
    assert direct_group(signal).endswith(f"|{entity}")


def one_client(approvals: Approvals, cuts: Sequence[int] = (), scorer: CountingScorer | None = None) -> Any:
    """Signals of a client who pages at one of 40 rows, a second apart, and the state behind them."""
    scoring = PartitionScoring(scorer or CountingScorer(WIDTH, CLASSES), options(), PARTITION, "topic-id", 0)
    records = [Rec(number, START_MS + number * 1000, b"one", event(number)) for number in range(40)]
    outcomes = [scoring.step(part, part[0].offset, pilot=False, approvals=approvals) for part in pieces(records, cuts)]
    totals = summed([outcome.plan.totals for outcome in outcomes])
    return [s for o in outcomes for s in o.signals], totals, scoring.state.digest()


@pytest.mark.parametrize("cuts", [(), (20,), (5, 21, 33)])
def test_an_approval_turns_pages_of_its_time_to_tickets_and_changes_nothing_else(cuts: tuple[int, ...]) -> None:
    plain, counts, state = one_client(NOBODY)
    (page,) = [signal for signal in plain if signal.level == "page"]
    client = int(page.entity_id, 16)
    held = Approvals({client: (page.time, page.time + 1)})
    signals, totals, after = one_client(held, cuts)
    assert after == state
    assert [msgspec.structs.replace(s, level="page", repeater=False) if s.repeater else s for s in signals] == plain
    assert [(s.level, s.pilot) for s in signals if s.repeater] == [("ticket", False)]
    assert (totals["repeater_pages"], totals["tickets"], "pages" in totals) == (1, counts["tickets"] + 1, False)
    for spans in ({client: (page.time - 9, page.time)}, {client: (page.time + 1, 2**62)}, {client + 1: (0, 2**62)}):
        assert one_client(Approvals(spans), cuts)[0] == plain, spans


def test_a_cluster_is_excused_where_three_of_four_members_are_or_where_it_rests_on_one() -> None:
    always = (0, 2**62)
    for members, rests_on, approved, excused in (
        ([7, 8], 0, {7: always, 8: always}, True),
        ([7, 8], 0, {7: always}, False),
        ([7, 8, 9], 0, {7: always, 9: always}, False),
        ([7, 8, 9, 7], 0, {7: always, 9: always}, True),
        ([7, ANONYMOUS], 0, {7: always, ANONYMOUS: always}, False),
        ([7, 8], 7, {7: always}, True),
        ([7, 8], 8, {7: always}, False),
        ([], 0, {7: always}, False),
    ):
        signals, _, _ = one_client(Approvals(approved), scorer=FramingScorer(members, rests_on))
        assert [signal.repeater for signal in signals] == [excused], (members, rests_on, approved)


def test_single_inputs_of_a_repeater_page_as_ever() -> None:
    page = Signal(
        row=0, rule="input-sequence", level=Level.PAGE, technique="AML.T0043", entity="client",
        entity_id=f"{7:016x}", statistic=2.0, threshold=1.0, members=np.zeros((1, 2), dtype=np.int64),
        member_clients=np.array([7], dtype=np.uint64), reasons=(), input=np.zeros(WIDTH), nearest=np.zeros(WIDTH),
        label=0, nearest_label=0,
    )  # fmt: skip
    held = Approvals({7: (0, 2**62)})
    assert not held.excuse(page, 1)
    assert held.excuse(replace(page, rule="query-intent"), 1)
    assert not held.excuse(replace(page, rule="query-intent", level=Level.TICKET), 1)


def test_blocks_of_clients_are_counted_hour_by_hour_without_probes_or_the_anonymous() -> None:
    records = log(np.random.default_rng(4), 400)
    scoring = fresh()
    outcome = scoring.step(records, 100, pilot=False)
    hours = [hour for each in scoring.histograms.packed().values() if (hour := unpack_hour(each)) is not None]
    assert len(hours) > 1
    known = outcome.plan.totals["scored"] - outcome.plan.totals["anonymous"]
    assert 0 < known == sum(int(counts[0].sum()) for _, counts in hours)
    assert sum(int(counts[1].sum()) for _, counts in hours) > 0
    assert all(np.count_nonzero(counts[0]) <= 9 for _, counts in hours)  # nine clients
    packed = scoring.histograms.packed()
    assert Histograms(packed).packed() == {name: each for name, each in packed.items() if name.startswith("hour:")}


class Keeping(CountingScorer):
    """Keeps the batches that it is given; its schema states an embedding."""

    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        self.schema = replace(self.schema, embedding_width=2)
        self.seen: list[Batch] = []

    def score(self, batch: Batch, state: object) -> Verdicts:
        self.seen.append(batch)
        return super().score(batch, state)


def test_embeddings_reach_the_scorer_and_wrong_ones_the_dead_letters() -> None:
    scorer, given_options = Keeping(), options()
    given_options = replace(given_options, decode=replace(given_options.decode, schema=scorer.schema))
    scoring = PartitionScoring(scorer, given_options, PARTITION, "topic-id", 0)
    layers: list[list[float] | None] = [[1.0, 2.0], None, [3.0], [4.0, 5.0]]
    records = [Rec(i, START_MS + i, b"ann", event(i, embedding=layer)) for i, layer in enumerate(layers)]
    outcome = scoring.step(records, 0, pilot=False)
    assert [(record.offset, letter.reason) for record, letter in outcome.dead] == [(2, "wrong-shape")]
    (batch,) = scorer.seen
    np.testing.assert_array_equal(batch.embeddings, [[1, 2], [np.nan, np.nan], [4, 5]])
