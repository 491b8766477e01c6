"""The stale mark: from what workers counted to what every incident says."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from redis import Redis

from detectors.calibration.drift import BLOCKS, crossing_limit
from detectors.calibration.report import FitReport
from detectors.errors import BundleError
from streams.errors import Fenced
from streams.incidents.calibration import HOUR_US, CalibrationWatch, Limits, read_calibration
from streams.incidents.correlator import Correlator
from streams.incidents.service import IncidentService
from streams.lease import Lease
from streams.store.hours import hour_field, pack_hour
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Alert, SignalMessage
from tests.streams.incidents.conftest import SignalFactory

KEYS = ModelKeys("digits")
FIRST_HOUR = 500_000
PARTITIONS = (0, 1)
WEEK_US = 168 * HOUR_US
Send = Callable[[SignalMessage], None]


def report(**changes: object) -> FitReport:
    """Of a calibration in which 4 of 400 client-weeks opened tickets; C = 200, the 2nd largest pages."""
    plain = {field.name: None for field in dataclasses.fields(FitReport)}
    made = {**plain, "mode": "intent", "client_weeks": 400, "clients_per_week": 200, "expected_tickets": 2.0, "rank": 2}
    return FitReport(**{**made, **changes})  # type: ignore[arg-type]  # only what the limits read


class Site:
    """Two partitions of a model, as workers leave them, and the correlator."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.lease = Lease(redis, KEYS, "correlator")
        assert self.lease.acquire()
        self.correlator = self.another()
        self.hour = FIRST_HOUR
        self.rng = np.random.default_rng(3)
        self.usual = 4.0 + 0.5 * self.rng.standard_normal(BLOCKS)

    def another(self) -> Correlator:
        watch = CalibrationWatch(self.redis, KEYS, "events", "none.vedette", WEEK_US, lambda _: report())
        correlator = Correlator(self.redis, "digits", "events", self.lease, calibration=watch)
        correlator.load()
        return correlator

    def traffic(self, hours: int, shift: NDArray[np.float64] | float = 0.0, *, bundle: str = "b1") -> None:
        """So many hours of traffic, looked at after each."""
        for _ in range(hours):
            for partition in PARTITIONS:
                rows = self.rng.poisson(20.0, BLOCKS)
                oddness = rows * (self.usual + shift) + np.sqrt(rows) * self.rng.exponential(2.0, BLOCKS)
                counts = np.stack([rows, np.maximum(0, oddness).astype(np.int64)])
                keys = PartitionKeys("events", partition)
                self.redis.hset(keys.histograms, hour_field(self.hour), pack_hour(self.hour, counts))
                mark = {"w": "5", "bundle": bundle, "time": str((self.hour + 1) * HOUR_US + 5)}
                self.redis.hset(keys.watermark, mapping=mark)
            self.hour += 1
            self.look()

    def look(self) -> None:
        self.correlator.discover()
        self.correlator.keep_house()

    def tickets(self, send: Send, make: SignalFactory, clients: range, **changes: object) -> None:
        """A signal of each of these clients now."""
        for client in clients:
            name = f"{client + 1:016x}"
            at = self.hour * HOUR_US
            send(make(offset=client, client=name, time=at + client * 61_000_000, nearest=[float(client)], **changes))
        self.correlator.step(1)


@pytest.fixture
def site(redis: Redis) -> Site:
    return Site(redis)


def test_a_population_that_moves_marks_every_later_incident(
    site: Site, redis: Redis, send: Send, make_signal: SignalFactory
) -> None:
    site.traffic(80)
    send(make_signal(offset=1, client="a" * 16, time=site.hour * HOUR_US))
    site.correlator.step(1)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert (status.stale, status.kind, status.bundle) == (False, "", "b1")
    assert status.hours >= 75
    site.traffic(8, 0.8)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert status.stale
    assert status.stale_at is not None
    assert list(status.reasons) == ["martingale"]
    assert status.kind == "drift"
    send(make_signal(offset=2, client="b" * 16, time=site.hour * HOUR_US))
    site.correlator.step(1)
    service = IncidentService(redis, "digits")
    said = {incident.entity_id[0]: incident for incident in service.list()}
    assert (said["a"].stale, said["b"].stale) == (False, True)
    assert service.show(said["b"].id).evidence[0].stale
    alerts = [msgspec.json.decode(fields[b"m"], type=Alert) for _, fields in redis.xrange(KEYS.alerts)]
    assert {alert.entity_id[0]: alert.stale for alert in alerts} == {"a": False, "b": True}
    send(make_signal(offset=3, client="c" * 16, time=site.hour * HOUR_US, bundle="b2"))
    site.correlator.step(1)  # the mark is that of a bundle
    assert not next(incident for incident in service.list() if incident.entity_id[0] == "c").stale


def test_few_clients_that_move_far_are_no_stale_calibration(site: Site, redis: Redis) -> None:
    shift = np.zeros(BLOCKS)
    shift[7] = 20.0
    site.traffic(80)
    site.traffic(10, shift)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert not status.stale
    assert status.breadth is not None
    assert status.breadth < 0.25


def test_the_mark_stays_over_restarts_until_another_bundle_is_in_force(site: Site, redis: Redis) -> None:
    site.traffic(60)
    site.traffic(8, 1.0)
    before = read_calibration(redis, KEYS)
    assert before is not None
    assert before.stale
    site.correlator = site.another()
    site.traffic(30)
    after = read_calibration(redis, KEYS)
    assert after is not None
    assert (after.stale, after.stale_at, after.reasons) == (True, before.stale_at, before.reasons)
    site.traffic(1, bundle="b2")
    fresh = read_calibration(redis, KEYS)
    assert fresh is not None
    assert (fresh.bundle, fresh.stale, fresh.hours, fresh.reasons) == ("b2", False, 0, {})


def test_looks_at_other_moments_see_the_same(redis: Redis) -> None:
    """A correlator that looks every seventh hour, and restarts in between, knows what one knows that never slept."""
    seen = []
    for rarely in (False, True):
        redis.flushdb()
        site = Site(redis)
        looks = site.look
        for hour in range(100):
            site.look = looks if not rarely or hour % 7 == 1 or hour in (0, 99) else (lambda: None)  # type: ignore[method-assign]  # a pause
            if rarely and hour % 31 == 0:
                site.correlator = site.another()
            site.traffic(1, 1.0 if hour > 80 else 0.0)
        seen.append((redis.hget(KEYS.calibration, "watch"), read_calibration(redis, KEYS)))
        site.lease.release()
    (always, said), (seldom, told) = seen
    assert always == seldom
    assert said is not None
    assert told is not None
    assert (said.stale, said.hours, said.log10_wealth) == (True, told.hours, told.log10_wealth)


def test_more_clients_with_tickets_than_the_calibration_allows_raise_the_mark(
    site: Site, redis: Redis, send: Send, make_signal: SignalFactory
) -> None:
    site.traffic(3)
    limit = crossing_limit(200, 4, 400, 0.01)
    assert 5 <= limit <= 15
    site.tickets(send, make_signal, range(limit))
    site.traffic(1)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert (status.ticketed, status.ticket_limit, status.stale) == (limit, limit, False)
    site.tickets(send, make_signal, range(limit, limit + 1))
    site.traffic(1)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert status.stale
    assert list(status.reasons) == ["tickets"]


def test_real_attacks_do_not_count(site: Site, redis: Redis, send: Send, make_signal: SignalFactory) -> None:
    site.traffic(3)
    limit = crossing_limit(200, 1, 400, 0.01)
    site.tickets(send, make_signal, range(limit + 1), level="page")
    service = IncidentService(redis, "digits")
    for incident in service.list(limit=100)[:2]:
        service.resolve(incident.id, "ana", "true")
    site.traffic(1)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert (status.paged, status.page_limit, "pages" in status.reasons) == (limit - 1, limit, False)
    site.tickets(send, make_signal, range(20, 23), level="ticket", pilot=True)  # would have paged
    site.traffic(1)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert "pages" in status.reasons
    for incident in service.list(limit=100):
        if incident.state != "resolved":
            service.resolve(incident.id, "ana", "true")
    site.traffic(1)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert (status.stale, status.stale_at, status.reasons) == (False, None, {})


def test_a_correlator_that_lost_its_lease_writes_nothing(site: Site, redis: Redis) -> None:
    site.traffic(3)
    redis.incr(KEYS.fence("correlator"))
    before = redis.hgetall(KEYS.calibration)
    with pytest.raises(Fenced):
        site.traffic(1)
    assert redis.hgetall(KEYS.calibration) == before


def test_what_cannot_be_read_begins_anew_and_counts_are_not_judged(site: Site, redis: Redis) -> None:
    def unreadable(_: str) -> FitReport:
        raise BundleError("no bundle here")

    site.traffic(3)
    redis.hset(KEYS.calibration, "watch", b"rubbish")
    watch = CalibrationWatch(redis, KEYS, "events", "none.vedette", WEEK_US, unreadable)
    site.correlator = Correlator(redis, "digits", "events", site.lease, calibration=watch)
    site.correlator.load()
    assert watch.status is None
    site.traffic(4)
    status = read_calibration(redis, KEYS)
    assert status is not None
    assert (status.hours, status.ticket_limit, status.page_limit) == (2, None, None)


def test_limits_follow_the_calibration() -> None:
    assert Limits.of(report(client_weeks=0)) == Limits()
    assert Limits.of(report(mode="tickets")).pages is None
    usual, loose = Limits.of(report()), Limits.of(report(expected_tickets=20.0))
    assert usual.tickets is not None
    assert loose.tickets is not None
    assert usual.pages is not None
    assert usual.pages <= usual.tickets < loose.tickets


def test_nothing_is_loaded_while_incidents_wait(site: Site, redis_url: str) -> None:
    """The first look judges counts; what it needs is there before the correlator begins, as loading takes seconds."""
    site.traffic(1)
    code = """
import sys
from redis import Redis
from streams.incidents.calibration import CalibrationWatch
from streams.store.keys import ModelKeys
from tests.streams.incidents.test_calibration import WEEK_US, report

watch = CalibrationWatch(Redis.from_url(sys.argv[1]), ModelKeys("digits"), "events", "", WEEK_US, lambda _: report())
known = set(sys.modules)
watch.look((0, 1), lambda _: (), int(sys.argv[2]))
fresh = {name.partition(".")[0] for name in set(sys.modules) - known} - sys.stdlib_module_names
print(watch.status.ticket_limit is not None, sorted(fresh))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, redis_url, str(site.lease.token)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.stdout.strip() == "True []"
