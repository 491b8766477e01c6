"""A prober that is gone opens an incident, and its successor's outcomes resolve it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest
from redis import Redis

from streams.config import ProbeSettings, ScheduleSettings
from streams.errors import Fenced
from streams.incidents.absence import Absence, patience
from streams.incidents.correlator import Correlator
from streams.incidents.ledger import Ledger
from streams.incidents.monitoring import BLIND, resolve_blind
from streams.lease import Lease
from streams.store.keys import ModelKeys
from streams.store.messages import Incident, ProbeOutcome

KEYS = ModelKeys("digits")
SECOND = 1_000_000
PATIENCE = 600 * SECOND
BEGIN = 1_700_000_000 * SECOND


def outcome(redis: Redis, finished: int) -> None:
    found = ProbeOutcome(
        campaign="c",
        attack="transfer_pgd",
        kind="burst",
        threat="",
        inputs=1,
        arrived=1,
        detected=True,
        ticketed=True,
        queries_to_ticket=1,
        queries_to_page=1,
        latency_ms=1.0,
        finished=finished,
    )
    redis.xadd(KEYS.probe_log, {"m": msgspec.json.encode(found)})


def opened(redis: Redis) -> Incident | None:
    stored = Ledger(redis, KEYS).open_incident(BLIND.group)
    return None if stored is None else stored.incident


@pytest.fixture
def prober(redis: Redis) -> Lease:
    lease = Lease(redis, KEYS, "prober")
    assert lease.acquire()
    return lease


def test_dead_prober_is_said_after_its_patience_and_once(redis: Redis, prober: Lease) -> None:
    watch = Absence(redis, KEYS, PATIENCE)
    outcome(redis, BEGIN)
    assert not watch.look(BEGIN + 10 * PATIENCE, None)
    prober.release()
    assert not watch.look(BEGIN + 10 * PATIENCE, None)
    assert not watch.look(BEGIN + 11 * PATIENCE - 1, None)
    assert opened(redis) is None
    assert watch.look(BEGIN + 11 * PATIENCE, None)
    incident = opened(redis)
    assert incident is not None
    assert (incident.level, incident.entity, incident.signals) == ("page", "monitoring", 1)
    assert incident.title == "Monitoring is blind: no prober is active, and no probe was finished for 110 minutes"
    assert not watch.look(BEGIN + 12 * PATIENCE, None)
    assert opened(redis) == incident


def test_lease_without_end_or_outcomes_that_come_are_no_absence(redis: Redis, prober: Lease) -> None:
    watch = Absence(redis, KEYS, PATIENCE)
    for step in range(5):
        assert not watch.look(BEGIN + step * PATIENCE, None)
    prober.release()
    for step in range(5):  # a prober that loses its lease to Redis, and goes on
        outcome(redis, BEGIN + step * PATIENCE)
        assert not watch.look(BEGIN + step * PATIENCE + PATIENCE // 2, None)
    assert opened(redis) is None


def test_site_without_probes_is_left_alone(redis: Redis) -> None:
    watch = Absence(redis, KEYS, PATIENCE)
    assert not any(watch.look(BEGIN + step * PATIENCE, None) for step in range(5))
    off = tuple(ScheduleSettings(name=name, enabled=False) for name in ("burst", "campaign", "control"))
    assert patience(ProbeSettings(schedules=off)) == 0
    assert patience(ProbeSettings()) == round((2 * 300 + 30) * 1e6)
    hourly = ScheduleSettings(name="hourly", attacks={"square": 1.0}, cron="0 * * * *")
    assert patience(ProbeSettings(schedules=(*off, hourly))) == 3600 * SECOND


def test_what_a_person_resolved_stays_so_until_a_prober_was_there(redis: Redis, prober: Lease) -> None:
    watch = Absence(redis, KEYS, PATIENCE)
    prober.release()
    assert not watch.look(BEGIN, None)
    assert watch.look(BEGIN + PATIENCE, None)
    assert resolve_blind(redis, KEYS, BEGIN + PATIENCE) is not None
    assert not watch.look(BEGIN + 5 * PATIENCE, None)
    assert prober.acquire()
    assert not watch.look(BEGIN + 6 * PATIENCE, None)
    prober.release()
    assert not watch.look(BEGIN + 7 * PATIENCE, None)
    assert watch.look(BEGIN + 8 * PATIENCE, None)


def test_correlator_that_lost_its_lease_says_nothing(redis: Redis, prober: Lease) -> None:
    lease = Lease(redis, KEYS, "correlator")
    assert lease.acquire()
    prober.release()
    watch = Absence(redis, KEYS, PATIENCE)
    assert not watch.look(BEGIN, lease.token)
    redis.incr(KEYS.fence("correlator"))
    with pytest.raises(Fenced):
        watch.look(BEGIN + PATIENCE, lease.token)
    assert opened(redis) is None


def test_running_correlator_opens_it_and_outcomes_end_it(
    redis: Redis, prober: Lease, wait_until: Callable[..., None]
) -> None:
    prober.release()
    stop, now = threading.Event(), [BEGIN]

    def clock() -> int:
        now[0] += PATIENCE
        return now[0]

    correlator = Correlator(redis, "digits", "events", Lease(redis, KEYS, "correlator"), clock, patience=PATIENCE)
    assert correlator.lease.acquire()
    correlator.keep_house()
    thread = threading.Thread(target=correlator.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: opened(redis) is not None, 10, "the incident")
    finally:
        stop.set()
        thread.join()
    assert prober.acquire()
    assert resolve_blind(redis, KEYS, now[0], token=prober.token) is not None
    assert opened(redis) is None
