from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from redis import Redis

from streams.incidents import correlator as module
from streams.incidents.correlator import Correlator
from streams.incidents.service import IncidentService
from streams.lease import Lease
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Alert, SignalMessage

SignalFactory = Callable[..., SignalMessage]
Send = Callable[[SignalMessage], None]
KEYS = ModelKeys("digits")
KEEP, CAP = 10, 30


@pytest.fixture
def correlator(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Correlator:
    monkeypatch.setattr(module, "ENTRIES_KEPT", KEEP)
    monkeypatch.setattr(module, "ENTRIES_CAP", CAP)
    monkeypatch.setattr(module, "SIGNALS_KEPT", KEEP)
    monkeypatch.setattr(module, "TRIM_STEP", 4)
    lease = Lease(redis, KEYS, "correlator")
    assert lease.acquire()
    return Correlator(redis, "digits", "events", lease, clock=lambda: 1)


def fill(redis: Redis, first: int, last: int) -> None:
    for n in range(first, last):
        redis.xadd(KEYS.alerts, {"m": f'{{"n":{n}}}'}, id=f"{n + 1}-0")


def left(redis: Redis) -> list[int]:
    return [int(name.split(b"-")[0]) - 1 for name, _ in redis.xrange(KEYS.alerts)]


def test_stream_that_nobody_reads_keeps_the_newest(redis: Redis, correlator: Correlator) -> None:
    fill(redis, 0, 100)
    correlator.keep_house()
    assert left(redis) == list(range(100 - KEEP, 100))


def test_slowest_group_keeps_what_it_has_not_read(redis: Redis, correlator: Correlator) -> None:
    fill(redis, 0, 25)
    redis.xgroup_create(KEYS.alerts, "siem", id="0")
    redis.xgroup_create(KEYS.alerts, "quick", id="0")
    redis.xreadgroup("siem", "c", {KEYS.alerts: ">"}, count=6, noack=True)
    redis.xreadgroup("quick", "c", {KEYS.alerts: ">"}, count=20, noack=True)
    correlator.keep_house()
    assert left(redis) == list(range(6, 25))


def test_delivered_but_unacknowledged_entries_stay(redis: Redis, correlator: Correlator) -> None:
    fill(redis, 0, 25)
    redis.xgroup_create(KEYS.alerts, "siem", id="0")
    redis.xreadgroup("siem", "c", {KEYS.alerts: ">"}, count=20)
    redis.xack(KEYS.alerts, "siem", *(f"{n}-0" for n in (1, 2, 3, 5, 6)))
    correlator.keep_house()
    assert left(redis) == list(range(3, 25))


def test_group_that_has_read_all_holds_nothing_back(redis: Redis, correlator: Correlator) -> None:
    fill(redis, 0, 25)
    redis.xgroup_create(KEYS.alerts, "siem", id="$")
    correlator.keep_house()
    assert left(redis) == list(range(15, 25))


def test_cap_trims_beyond_a_group_and_says_so(redis: Redis, correlator: Correlator) -> None:
    fill(redis, 0, 50)
    group = 'odd "name" %1 @FIRST@'
    redis.xgroup_create(KEYS.alerts, group, id="0")
    redis.xgroup_create(KEYS.alerts, "quick", id="$")
    redis.xreadgroup(group, "c", {KEYS.alerts: ">"}, count=5, noack=True)
    correlator.keep_house()
    entries = redis.xrange(KEYS.alerts)
    assert [int(name.split(b"-")[0]) - 1 for name, _ in entries[:-1]] == list(range(50 - CAP + CAP // 10, 50))
    alert = msgspec.json.decode(entries[-1][1][b"m"], type=Alert)
    assert (alert.change, alert.entity_id, alert.model) == ("trimmed-from", group, "digits")
    assert alert.id == f"trimmed#6-0#{group}"
    assert "entries from 6-0 up to 24-0 (exclusive) were trimmed" in alert.title
    length = redis.xlen(KEYS.alerts)
    correlator.keep_house()
    assert redis.xlen(KEYS.alerts) == length


def test_signals_are_trimmed_only_below_what_was_applied(
    redis: Redis, correlator: Correlator, make_signal: SignalFactory, send: Send
) -> None:
    for offset in range(40):
        send(make_signal(offset))
    correlator.load()
    correlator.progress[0] = "21-0"
    correlator.keep_house()
    stream = PartitionKeys("events", 0).signals
    assert [name for name, _ in redis.xrange(stream)] == [f"{n}-0".encode() for n in range(21, 41)]
    correlator.progress[0] = "40-0"
    correlator.keep_house()
    assert [name for name, _ in redis.xrange(stream)] == [f"{n}-0".encode() for n in range(31, 41)]


def test_only_old_resolved_incidents_are_forgotten(
    redis: Redis, correlator: Correlator, make_signal: SignalFactory, send: Send
) -> None:
    for offset in range(3):
        send(make_signal(offset, client=f"{offset:016x}"))
    correlator.load()
    correlator.step(1)
    desk = IncidentService(redis, "digits")
    old, still_open, young = (incident.id for incident in desk.list()[::-1])
    desk.resolve(old, "ada", "true")
    desk.resolve(young, "ada", "true")
    last_seen = {incident.id: incident.last_seen for incident in desk.list()}
    redis.zadd(KEYS.incidents, {old: 0, still_open: 0})
    correlator._clock = lambda: last_seen[young]
    correlator.keep_house()
    assert sorted(incident.id for incident in desk.list()) == sorted([still_open, young])
    assert not redis.exists(KEYS.incident(old), KEYS.evidence(old))
