"""From the public stream to real HTTP servers, over real Redis."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from redis import Redis
from redis import asyncio as aioredis

from streams.config import InhibitionSettings, ModelSettings, NotifySettings, RedisSettings, Settings
from streams.errors import Fenced
from streams.incidents.correlator import Correlator
from streams.incidents.monitoring import open_blind, open_incident, regression, resolve_blind
from streams.incidents.service import IncidentService
from streams.lease import Lease
from streams.notify.outbox import GROUP
from streams.notify.routing import Routing
from streams.notify.service import ModelNotifier
from streams.notify.transport import HttpTransport
from streams.store.keys import ModelKeys
from streams.store.messages import Alert, CalibrationStatus, Incident, Matcher
from tests.notify.conftest import HOUR, SECOND, START, Destination, alert, notify, to, webhook

KEYS = ModelKeys("digits")
Announce = Callable[[Alert], None]


@dataclass
class Desk:
    """One notifier, driven step by step by a clock of ours."""

    notifier: ModelNotifier
    token: int
    now: list[int] = field(default_factory=lambda: [START])

    async def take_in(self) -> int:
        return await self.notifier._intake.step(self.token, self.now[0], 1)

    async def deliver(self) -> int:
        """Everything that is due now."""
        tried = 0
        for courier in self.notifier.couriers:
            while (count := await courier.round()) > 0:
                tried += count
        return tried

    async def all(self, seconds: float = 0.0) -> None:
        self.now[0] += round(seconds * SECOND)
        while await self.take_in():
            continue
        await self.deliver()


@asynccontextmanager
async def desk(redis: Redis, url: str, settings: NotifySettings, fresh: bool = False) -> AsyncIterator[Desk]:
    now = [START]
    every = Settings(
        models=(ModelSettings(name="digits", topic="events", bundle="none"),),
        redis=RedisSettings(url=url),
        notify=settings,
    )
    store = aioredis.Redis.from_url(url, socket_timeout=5)
    transports = {one.name: HttpTransport(one) for one in settings.destinations}
    notifier = ModelNotifier(
        every, "digits", redis, store, Routing.of(settings), transports, lambda: now[0], random.Random(3)
    )
    assert notifier._lease.acquire()
    token = notifier._lease.token
    assert token is not None
    for courier in notifier.couriers:
        courier.token = token
        courier._health = await notifier.outbox.health(courier.name)
    if not fresh:
        await notifier.outbox.begin(await notifier.outbox.newest())
    yield Desk(notifier, token, now)
    for transport in transports.values():
        await transport.close()
    await store.aclose()
    notifier._lease.release()


def said(server: Destination) -> list[str]:
    return [f"{one.json['action']} {one.json['reason']}" for one in server.accepted]


def test_a_life_of_an_incident_is_told_in_order(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()

    async def main() -> None:
        async with desk(redis, redis_url, notify([webhook("a", server.url, secret_file)], [to("a")])) as one:
            for number, change in enumerate(("opened", "updated", "acknowledged", "resolved", "reopened"), 1):
                announce(alert(number=number, change=change))
                await one.all(1)
            await one.all(4 * 3600)

    asyncio.run(main())
    assert said(server) == [
        "trigger opened",
        "acknowledge acknowledged",
        "resolve resolved",
        "trigger reopened",
        "resolve resolved",  # before the repeat it is found to be no more: no incident of that id is kept
    ]
    assert len({one.json["key"] for one in server.received}) == 1
    assert len({one.json["id"] for one in server.received}) == 5


def test_a_destination_that_fails_delays_no_other_and_is_left_alone_for_a_while(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    bad, good = destination(), destination()
    bad.always(503, {"Retry-After": "600"})
    both = [webhook("bad", bad.url, secret_file), webhook("good", good.url, secret_file)]

    async def main() -> None:
        async with desk(redis, redis_url, notify(both, [to("bad", "good")])) as one:
            for place in range(5):
                announce(alert(f"{place:016x}"))
            await one.all()
            assert len(good.accepted) == 5
            tried = len(bad.received)
            assert 1 <= tried <= 4
            await one.all(599)
            assert len(bad.received) == tried, "Retry-After is kept"
            bad.always(200)
            await one.all(2)
            assert {request.json["key"] for request in bad.accepted} == {
                request.json["key"] for request in good.accepted
            }

    asyncio.run(main())
    totals = redis.hgetall(KEYS.notice_totals)
    assert totals[b"good|delivered"] == totals[b"bad|delivered"] == b"5"
    assert int(totals[b"bad|retried"]) == len(bad.received) - 5


def test_what_is_refused_is_a_dead_letter_and_its_end_is_not_told(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()
    server.always(422)

    async def main() -> None:
        async with desk(redis, redis_url, notify([webhook("a", server.url, secret_file)], [to("a")])) as one:
            announce(alert())
            await one.all()
            server.always(200)
            announce(alert(number=2, change="resolved"))
            await one.all(60)

    asyncio.run(main())
    assert len(server.received) == 1
    ((_, letter),) = redis.xrange(KEYS.notices_dead("a"))
    assert json.loads(letter[b"m"])["incidents"][0]["id"] == "1f00000000000001"
    assert letter[b"reason"] == b"refused: HTTP 422: ok"
    assert redis.hlen(KEYS.notices("a")) == 0


def test_what_cannot_be_delivered_for_long_is_given_up(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()
    server.always(500)
    settings = notify([webhook("a", server.url, secret_file)], [to("a")], give_up_hours=1.0)

    async def main() -> None:
        async with desk(redis, redis_url, settings) as one:
            announce(alert())
            for _ in range(14):
                await one.all(300)

    asyncio.run(main())
    ((_, letter),) = redis.xrange(KEYS.notices_dead("a"))
    assert letter[b"reason"].startswith(b"given up: HTTP 500")
    assert redis.zcard(KEYS.notices_due("a")) == 0


def test_silenced_incident_is_not_repeated_and_one_that_ended_unheard_is_resolved(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str
) -> None:
    server = destination()
    service = IncidentService(redis, "digits")
    lease = Lease(redis, KEYS, "correlator", seconds=300)
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease, clock=lambda: START)

    async def main() -> None:
        async with desk(redis, redis_url, notify([webhook("a", server.url, secret_file)], [to("a")])) as one:
            incident = open_blind(redis, KEYS, "no probe was seen", START)
            await one.all()
            assert said(server) == ["trigger opened"]
            silence = service.silence(Matcher(entity="monitoring"), "ada", START + 9 * HOUR, "known", now=START)
            correlator.tend()
            assert service.show(incident.id).incident.state == "suppressed"
            await one.all(5 * 3600)
            assert said(server) == ["trigger opened"]
            service.end_silence(silence.id, "ada", now=START + 5 * HOUR)
            correlator._clock = lambda: START + 5 * HOUR
            correlator.tend()
            await one.all(60)
            assert said(server) == ["trigger opened", "trigger reopened"]
            redis.xgroup_setid(KEYS.alerts, GROUP, "$")
            resolve_blind(redis, KEYS, START + 6 * HOUR)
            redis.xgroup_setid(KEYS.alerts, GROUP, "$")  # as if the alert had been lost
            await one.all(5 * 3600)
            assert said(server)[2:] == ["resolve resolved"]

    asyncio.run(main())


def test_inhibited_incidents_are_held_while_the_source_is_open(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()
    settings = notify(
        [webhook("a", server.url, secret_file)],
        [to("a")],
        inhibitions=(InhibitionSettings(source="monitoring-blind", target="AML.*"),),
    )

    async def main() -> None:
        async with desk(redis, redis_url, settings) as one:
            open_blind(redis, KEYS, "the broker is away", START)
            announce(alert("a" * 16))
            announce(alert("b" * 16))
            await one.all()
            assert [request.json["technique"] for request in server.accepted] == ["monitoring-blind"]
            announce(alert("b" * 16, 2, "resolved"))
            await one.all(60)
            resolve_blind(redis, KEYS, START + 60 * SECOND)
            await one.all(60)

    asyncio.run(main())
    told = [(request.json["action"], request.json["key"][-16:]) for request in server.accepted[1:]]
    assert ("trigger", "a" * 16) in told
    assert not any(name == "b" * 16 for _, name in told), "it began and ended under the cause"


def test_monitoring_as_a_source_is_what_makes_pages_worth_little_and_nothing_else(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()
    inhibitions = (InhibitionSettings(source="monitoring", target="AML.*"),)
    settings = notify([webhook("a", server.url, secret_file)], [to("a")], inhibitions=inhibitions)
    mark = CalibrationStatus(bundle="b1", since=0, at=1, risk=0.05, stale=True)

    async def main() -> None:
        async with desk(redis, redis_url, settings) as one:
            open_incident(redis, KEYS, regression("hop_skip_jump"), "worse by half", START)
            announce(alert("a" * 16))
            await one.all()
            assert [request.json["technique"] for request in server.accepted] == ["AML.T0043.001"]
            redis.hset(KEYS.calibration, "m", msgspec.json.encode(mark))
            announce(alert("b" * 16, stale=True))
            announce(alert("c" * 16))
            await one.all(60)
            assert [request.json["key"][-16:] for request in server.accepted[1:]] == ["c" * 16], "its evidence is older"
            redis.hset(KEYS.calibration, "m", b"{}")
            await one.all(60)
            redis.hset(KEYS.calibration, "m", msgspec.json.encode(msgspec.structs.replace(mark, stale=False)))
            await one.all(60)
            assert [request.json["key"][-16:] for request in server.accepted[2:]] == ["b" * 16]

    asyncio.run(main())


def test_alerts_lost_to_trimming_are_made_up_from_the_incidents(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()

    async def main() -> None:
        async with desk(redis, redis_url, notify([webhook("a", server.url, secret_file)], [to("a")])) as one:
            incident = open_blind(redis, KEYS, "no probe was seen", START)
            redis.xtrim(KEYS.alerts, 0, approximate=False)
            announce(alert("", change="trimmed-from", entity_id=GROUP))
            await one.all()
            assert server.accepted[0].json["key"] == f"vedette/digits/{incident.id}"
            resolve_blind(redis, KEYS, START + SECOND)
            redis.xtrim(KEYS.alerts, 0, approximate=False)
            announce(alert("", change="trimmed-from", entity_id="another-group"))
            announce(alert("", change="trimmed-from", entity_id=GROUP))
            await one.all(1)

    asyncio.run(main())
    assert said(server) == ["trigger opened", "resolve resolved"]


def test_first_start_tells_of_pages_that_nobody_has_and_of_no_old_tickets(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()
    chat = [webhook("a", server.url, secret_file, chat=True)]

    async def main(level: Any) -> None:
        async with desk(redis, redis_url, notify(chat, [to("a", levels=("page", "ticket"))]), fresh=True) as one:
            redis.delete(KEYS.alerts)
            open_blind(redis, KEYS, "no probe was seen", START, level=level)
            await one.all()
            announce(alert())
            await one.all(1)

    asyncio.run(main("ticket"))
    assert [request.json["technique"] for request in server.accepted] == ["AML.T0043.001"]
    redis.flushdb()
    asyncio.run(main("page"))
    assert [request.json["technique"] for request in server.accepted[1:]] == ["monitoring-blind", "AML.T0043.001"]


def test_resolution_follows_the_trigger_although_the_routes_have_changed(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    old, new = destination(), destination()
    both = [webhook("old", old.url, secret_file), webhook("new", new.url, secret_file)]

    async def main(routes: list[Any], change: str, number: int) -> None:
        async with desk(redis, redis_url, notify(both, routes)) as one:
            announce(alert(number=number, change=change))
            await one.all(1)

    asyncio.run(main([to("old"), to("new", models=("x",))], "opened", 1))
    asyncio.run(main([to("new"), to("old", models=("x",))], "resolved", 2))
    assert said(old) == ["trigger opened", "resolve resolved"]
    assert new.received == []


def test_who_lost_the_lease_writes_nothing(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()

    async def main() -> None:
        async with desk(redis, redis_url, notify([webhook("a", server.url, secret_file)], [to("a")])) as one:
            redis.incr(KEYS.fence("notifier"))  # somebody else took over
            announce(alert())
            with pytest.raises(Fenced):
                await one.take_in()
            assert redis.exists(KEYS.notices("a")) == 0
            position = await one.notifier.outbox.position()
            assert position is not None
            assert await one.notifier.outbox.read(position, 1)

    asyncio.run(main())


def test_broken_alerts_and_threads_stop_nothing(
    redis: Redis, redis_url: str, destination: Callable[[], Destination], secret_file: str, announce: Announce
) -> None:
    server = destination()

    async def main() -> None:
        async with desk(redis, redis_url, notify([webhook("a", server.url, secret_file)], [to("a")])) as one:
            redis.xadd(KEYS.alerts, {"m": "{"})
            redis.xadd(KEYS.alerts, {"x": "y"})
            redis.hset(KEYS.notices("a"), f"vedette/digits/{'c' * 16}", "{}")
            redis.zadd(KEYS.notices_due("a"), {f"vedette/digits/{'c' * 16}": 1.0, "vedette/digits/gone": 1.0})
            announce(alert("c" * 16))
            await one.all()

    asyncio.run(main())
    assert said(server) == ["trigger opened"]


def test_stream_is_not_trimmed_before_alerts_are_taken_in(redis: Redis, redis_url: str, secret_file: str) -> None:
    """The notifier's group is what the correlator's trimming looks at."""

    async def main() -> None:
        settings = notify([webhook("a", "http://127.0.0.1:1", secret_file)], [to("a")])
        async with desk(redis, redis_url, settings) as one:
            redis.xadd(KEYS.alerts, {"m": msgspec.json.encode(alert())})
            (group,) = redis.xinfo_groups(KEYS.alerts)
            before = group["last-delivered-id"]
            await one.take_in()
            (group,) = redis.xinfo_groups(KEYS.alerts)
            assert group["name"].decode() == GROUP
            assert group["last-delivered-id"] != before
            assert group["pending"] == 0

    asyncio.run(main())


def test_incident_type_is_what_the_states_are_read_as(redis: Redis, redis_url: str, secret_file: str) -> None:
    async def main() -> None:
        settings = notify([webhook("a", "http://127.0.0.1:1", secret_file)], [to("a")])
        async with desk(redis, redis_url, settings) as one:
            made = open_blind(redis, KEYS, "x", START)
            states = await one.notifier.outbox.states([made.id, "f" * 16])
            assert isinstance(states[made.id], Incident)
            assert states["f" * 16] is None

    asyncio.run(main())
