from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from redis import Redis

from streams.errors import Fenced
from streams.incidents import grouping
from streams.incidents.correlator import Correlator
from streams.incidents.grouping import EVIDENCE_FIRST, EVIDENCE_KEPT, Draft
from streams.incidents.ledger import Ledger, Outdated, Step, fold
from streams.incidents.service import IncidentService
from streams.lease import Lease
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Alert, IncidentChange, SignalMessage, WorkerStatus

SignalFactory = Callable[..., SignalMessage]
Send = Callable[[SignalMessage], None]
KEYS = ModelKeys("digits")
PLACE = "events:0"


def drafts(ledger: Ledger, *signals: SignalMessage) -> list[Draft]:
    entries = [(signal, msgspec.json.encode(signal).decode()) for signal in signals]
    return list(fold("digits", ledger.book(PLACE, signals), entries, now=1).drafts)


def everything(redis: Redis) -> dict[bytes, bytes]:
    return {key: redis.dump(key) for key in redis.keys("vedette:*")}


def test_script_writes_incident_evidence_log_alert_and_progress(redis: Redis, make_signal: SignalFactory) -> None:
    ledger = Ledger(redis, KEYS)
    lease = Lease(redis, KEYS, "correlator")
    assert lease.acquire()
    signals = [make_signal(1), make_signal(2, level="page", rule="query-intent")]
    step = Step(PLACE, "", "3-0", grouping.Opening(7, 1))
    ledger.apply(drafts(ledger, *signals), token=lease.token, step=step)
    (name,) = redis.zrange(KEYS.incidents, 0, -1)
    stored = ledger.incident(name.decode())
    assert (stored.version, stored.incident.signals, stored.incident.level) == (2, 2, "page")
    assert redis.hgetall(KEYS.open_incidents) == {stored.group.encode(): name}
    assert redis.hget(KEYS.progress, PLACE) == b"3-0"
    assert redis.hget(KEYS.openings, PLACE) == b"7:1"
    evidence = redis.lrange(KEYS.evidence(name.decode()), 0, -1)
    assert [msgspec.json.decode(text, type=SignalMessage) for text in evidence] == signals
    assert 0 < redis.ttl(KEYS.evidence(name.decode())) <= 30 * 24 * 3600
    log = [msgspec.json.decode(fields[b"m"], type=IncidentChange) for _, fields in redis.xrange(KEYS.log)]
    assert [(entry.change, entry.signal) for entry in log] == [("opened", signals[0].id), ("raised", signals[1].id)]
    alerts = [msgspec.json.decode(fields[b"m"], type=Alert) for _, fields in redis.xrange(KEYS.alerts)]
    assert [alert.id for alert in alerts] == [f"{name.decode()}#1", f"{name.decode()}#2"]


def test_repeated_batch_changes_nothing(redis: Redis, make_signal: SignalFactory) -> None:
    ledger = Ledger(redis, KEYS)
    planned = drafts(ledger, make_signal(1))
    ledger.apply(planned, step=Step(PLACE, "", "2-0"))
    before = everything(redis)
    with pytest.raises(Outdated) as outdated:
        ledger.apply(planned, step=Step(PLACE, "", "2-0"))
    assert (outdated.value.what, outdated.value.stored) == ("progress", "2-0")
    with pytest.raises(Outdated, match="changed"):
        ledger.apply(planned)
    assert everything(redis) == before


def test_fenced_correlator_writes_nothing(redis: Redis, make_signal: SignalFactory) -> None:
    ledger = Ledger(redis, KEYS)
    lease = Lease(redis, KEYS, "correlator")
    assert lease.acquire()
    redis.incr(KEYS.fence("correlator"))
    before = everything(redis)
    with pytest.raises(Fenced):
        ledger.apply(drafts(ledger, make_signal(1)), token=lease.token, step=Step(PLACE, "", "2-0"))
    assert everything(redis) == before


def test_two_openings_of_one_group_are_not_both_written(redis: Redis, make_signal: SignalFactory) -> None:
    ledger = Ledger(redis, KEYS)
    one, other = drafts(ledger, make_signal(1)), drafts(ledger, make_signal(2))
    ledger.apply(one)
    with pytest.raises(Outdated):
        ledger.apply(other)
    assert redis.zcard(KEYS.incidents) == 1


def test_evidence_keeps_the_first_the_first_page_and_the_newest(
    redis: Redis, make_signal: SignalFactory, send: Send
) -> None:
    total, page_at = 200, 41
    for offset in range(total):
        paged = offset >= page_at
        send(
            make_signal(offset, level="page" if paged else "ticket", rule="query-intent" if paged else "query-cluster")
        )
    correlate(redis, "digits")
    (name,) = redis.zrange(KEYS.incidents, 0, -1)
    kept = [msgspec.json.decode(text)["offset"] for text in redis.lrange(KEYS.evidence(name.decode()), 0, -1)]
    newest = EVIDENCE_KEPT - EVIDENCE_FIRST - 1
    assert kept == [*range(EVIDENCE_FIRST), page_at, *range(total - newest, total)]


def correlate(redis: Redis, model: str) -> Correlator:
    """Apply everything that the streams hold."""
    lease = Lease(redis, ModelKeys(model), "correlator")
    assert lease.acquire()
    correlator = Correlator(redis, model, "events", lease, clock=lambda: 1)
    correlator.load()
    while correlator.step(1):
        continue
    lease.release()
    return correlator


def test_signals_are_found_in_partitions_that_appear_later(
    redis: Redis, make_signal: SignalFactory, send: Send
) -> None:
    correlator = correlate(redis, "digits")
    assert correlator.progress == {}
    send(make_signal(1, partition=60))
    send(make_signal(1, partition=3, client="b" * 16))
    send(make_signal(1, partition=900, client="c" * 16))
    status = WorkerStatus("w", 1, [900], 0, 0, 0.0, 0.0, 0, 0.0, "", "")
    redis.hset(KEYS.workers, "w", msgspec.json.encode(status))
    correlate(redis, "digits")
    assert redis.hgetall(KEYS.progress) == {b"events:3": b"2-0", b"events:60": b"2-0", b"events:900": b"2-0"}
    assert redis.zcard(KEYS.incidents) == 3


def test_unreadable_signal_is_passed_over(redis: Redis, make_signal: SignalFactory, send: Send) -> None:
    stream = PartitionKeys("events", 0).signals
    send(make_signal(1))
    redis.xadd(stream, {"m": b'{"id": 7'}, id="5-0")
    redis.xadd(stream, {"other": b"x"}, id="6-0")
    send(make_signal(8))
    correlate(redis, "digits")
    assert redis.hget(KEYS.progress, PLACE) == b"9-0"
    (name,) = redis.zrange(KEYS.incidents, 0, -1)
    assert Ledger(redis, KEYS).incident(name.decode()).incident.signals == 2


def test_change_by_a_person_between_reading_and_writing_is_kept(
    redis: Redis, make_signal: SignalFactory, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.incidents.service import IncidentService

    send(make_signal(1))
    correlator = correlate(redis, "digits")
    (name,) = redis.zrange(KEYS.incidents, 0, -1)
    send(make_signal(2))
    read = Ledger.book
    reads = []

    def interrupted(ledger: Ledger, place: str, signals: list[SignalMessage]) -> grouping.Book:
        book = read(ledger, place, signals)
        reads.append(place)
        if len(reads) == 1:
            IncidentService(redis, "digits").acknowledge(name.decode(), "ada")
        return book

    monkeypatch.setattr(Ledger, "book", interrupted)
    assert correlator.lease.acquire()
    correlator.step(1)
    incident = Ledger(redis, KEYS).incident(name.decode()).incident
    assert len(reads) == 2
    assert (incident.assignee, incident.state, incident.signals) == ("ada", "in_progress", 2)


@pytest.mark.parametrize("batch", [1, 7])
def test_cuts_of_the_stream_leave_the_same_redis(
    redis: Redis, make_signal: SignalFactory, send: Send, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    signals = [make_signal(n, client=f"{n % 5:016x}", level="page" if n % 9 == 8 else "ticket") for n in range(60)]

    def run(size: int) -> dict[str, object]:
        redis.flushdb()
        monkeypatch.setattr("streams.incidents.correlator.BATCH_SIGNALS", size)
        for signal in signals:
            send(signal)
        correlate(redis, "digits")
        names = [name.decode() for name in redis.zrange(KEYS.incidents, 0, -1)]
        return {
            "incidents": {name: redis.hgetall(KEYS.incident(name)) for name in names},
            "evidence": {name: redis.lrange(KEYS.evidence(name), 0, -1) for name in names},
            "alerts": sorted(fields[b"m"] for _, fields in redis.xrange(KEYS.alerts)),
            "log": sorted(fields[b"m"] for _, fields in redis.xrange(KEYS.log)),
            "open": redis.hgetall(KEYS.open_incidents),
        }

    assert run(batch) == run(200)


def test_campaign_takes_in_what_proves_its_first_client(redis: Redis, make_signal: SignalFactory, send: Send) -> None:
    lease = Lease(redis, KEYS, "correlator", seconds=60)
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease)
    near: dict[str, object] = {"nearest": [1.0, 2.0]}
    page: dict[str, object] = {"level": "page", "rule": "query-intent", **near}
    for offset, (client, more) in enumerate([("a", near), ("a", page), ("a", page), ("b", page), ("c", page)]):
        send(make_signal(offset, client=client * 16, **more))
        correlator.load()
        assert correlator.step(1) == 1  # one batch each: everything comes back from Redis
    desk = IncidentService(redis, "digits")
    (campaign,) = desk.list("open")
    (first,) = desk.list("resolved")
    assert (campaign.entity, campaign.level, campaign.signals) == ("cluster", "page", 2)
    assert campaign.clients == ["a" * 16, "b" * 16, "c" * 16]
    assert first.merged_into == campaign.id
    evidence = desk.show(campaign.id).evidence
    assert [(signal.entity_id[0], signal.offset) for signal in reversed(evidence)] == [("a", 1), ("b", 3), ("c", 4)]


def test_signals_of_a_topic_that_was_made_again_are_read_from_the_beginning(
    redis: Redis, make_signal: SignalFactory, send: Send
) -> None:
    lease = Lease(redis, KEYS, "correlator", seconds=60)
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease)
    send(make_signal(100_000))
    correlator.load()
    assert correlator.step(1) == 1
    keys = PartitionKeys("events", 0)
    redis.delete(keys.signals, keys.watermark)
    send(make_signal(5, client="b" * 16))
    correlator.discover()
    assert correlator.step(1) == 1
    correlator.discover()
    assert correlator.step(1) == 0, "a signal was read twice"
    assert {incident.entity_id for incident in IncidentService(redis, "digits").list("open")} == {
        "3fa1" * 4,
        "b" * 16,
    }
