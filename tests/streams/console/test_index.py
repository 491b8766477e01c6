"""The incident index: follows the log, survives trimming and forgetting, and answers what lists ask."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import redis.asyncio
from redis import Redis

from streams.console.index import COMPARE_SECONDS, IncidentIndex
from streams.incidents.service import IncidentService

Fixture = Any
T = TypeVar("T")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Follower:
    """An index in an event loop of its own."""

    def __init__(self, url: str, keys: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self._client = redis.asyncio.Redis.from_url(url)
        self.index = IncidentIndex(self._client, keys, self.clock)

    def wait(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    def refresh(self) -> None:
        self.wait(self.index.refresh())

    def commands(self) -> int:
        stats: Any = self.wait(self._client.info("commandstats"))
        return sum(stat["calls"] for name, stat in stats.items() if name != "cmdstat_info")

    def close(self) -> None:
        self.wait(self._client.aclose())
        self.loop.close()


@pytest.fixture
def follower(redis_url: str, scene: Fixture) -> Iterator[Follower]:
    made = Follower(redis_url, scene.keys)
    yield made
    made.close()


def test_a_look_without_changes_reads_no_incident(scene: Fixture, follower: Follower) -> None:
    for client in range(30):
        scene.signal(f"{client:016x}", time=scene.now + client * 60_000_000)
    scene.correlate()
    follower.refresh()
    assert len(follower.index) == 30
    before = follower.commands()
    follower.refresh()
    assert follower.commands() - before <= 3


def test_changes_are_followed(scene: Fixture, follower: Follower, redis: Redis) -> None:
    follower.refresh()
    assert len(follower.index) == 0
    name = scene.attack(page=False)
    follower.refresh()
    row = follower.index.get(name)
    assert row is not None
    assert (row.level, row.state, row.signals, row.clients) == ("ticket", "new", 5, ["3fa1b2c4d5e6f708"])
    IncidentService(redis, "digits").resolve(name, "ada", "benign")
    follower.refresh()
    row = follower.index.get(name)
    assert row is not None
    assert (row.state, row.verdict, row.change) == ("resolved", "benign", 6)


def test_trimmed_log_loses_nothing(scene: Fixture, follower: Follower, redis: Redis) -> None:
    scene.attack("11aa000000000001")
    follower.refresh()
    for client in range(2, 6):
        scene.attack(f"{client}{client}aa000000000001")
    redis.xtrim(scene.keys.log, maxlen=1, approximate=False)
    follower.refresh()
    assert len(follower.index) == 5


def test_forgotten_incidents_leave(scene: Fixture, follower: Follower, redis: Redis) -> None:
    name = scene.attack()
    kept = scene.attack("77aa000000000001")
    follower.refresh()
    redis.delete(scene.keys.incident(name))
    redis.zrem(scene.keys.incidents, name)
    follower.refresh()
    assert name in follower.index  # forgetting leaves no entry in the log
    follower.clock.now += COMPARE_SECONDS
    follower.refresh()
    assert name not in follower.index
    assert kept in follower.index


def test_emptied_redis_empties_the_index(scene: Fixture, follower: Follower, redis: Redis) -> None:
    scene.attack()
    follower.refresh()
    redis.flushdb()
    follower.refresh()
    assert len(follower.index) == 0


def test_only_the_newest_are_held(scene: Fixture, follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.console.index.HELD", 3)
    for client in range(5):
        scene.signal(f"{client:016x}", time=scene.now + client)
    names = scene.correlate()
    follower.refresh()
    assert {row.id for row in follower.index.rows} == set(names[:3])


def test_filters_words_and_orders(scene: Fixture, follower: Follower, redis: Redis) -> None:
    old = scene.attack("00aa000000000001", page=False)
    page = scene.attack("11aa000000000001")
    done = scene.attack("22bb000000000001")
    desk = IncidentService(redis, "digits")
    desk.acknowledge(page, "Ada")
    desk.resolve(done, "bob", "true")
    follower.refresh()
    select = follower.index.select

    def ids(**wanted: Any) -> list[str]:
        return [row.id for row in select(**wanted)]

    assert ids() == [page, old, done]
    assert ids(state="open") == [page, old]
    assert ids(state="resolved") == [done]
    assert ids(state="in_progress", level="page") == [page]
    assert ids(level="ticket") == [old]
    assert ids(text="22BB") == [done]
    assert ids(text="ada page") == []
    assert ids(text="ada evasion") == [page]
    assert ids(assignee="Ada") == [page]
    assert ids(technique="AML.T0015") == []
    assert ids(order="first_seen", ascending=True) == [old, page, done]
    assert ids(order="strength") == [done, page, old]
