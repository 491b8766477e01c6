"""Redis or the broker away: the worker holds, loses nothing, and catches up. Servers of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from streams import embedded
from streams.config import KafkaSettings
from streams.topics import ensure
from tests.streams.worker.conftest import Deployment

TOPIC = "away"


class Servers:
    """A broker and a Redis that a test may end and start again."""

    def __init__(self, kafka: embedded.Server, redis: embedded.Server) -> None:
        self.kafka, self.redis = kafka, redis


@pytest.fixture
def servers() -> Iterator[Servers]:
    with embedded.kafka() as kafka, embedded.redis() as redis:
        yield Servers(kafka, redis)


@pytest.fixture
def site(servers: Servers, tmp_path: Path, wait_until: Callable[..., Any]) -> Iterator[Deployment]:
    ensure(KafkaSettings(bootstrap=servers.kafka.address), TOPIC, 2)
    redis = Redis.from_url(servers.redis.address, socket_timeout=5)
    made = Deployment(
        tmp_path,
        servers.kafka.address,
        servers.redis.address,
        redis,
        TOPIC,
        2,
        wait_until,
        worker={"watchdog_seconds": 3.0},
    )
    yield made
    made.close()
    print(made.log().read_text())


def answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def test_redis_away_is_waited_for(site: Deployment, servers: Servers) -> None:
    site.traffic(0, 500)
    worker = site.start()
    site.wait_recorded(500)
    servers.redis.pause()
    site.traffic(500, 2500)
    site.wait_until(
        lambda: "Redis is away or refuses, holding on" in site.log().read_text(), 90, "the worker to notice"
    )
    # Longer than the watchdog's patience: holding on is no stall.
    site.wait_until(lambda: worker.poll() is None and _age(site, "Redis is away") > 5.0, 60, "a while")
    servers.redis.resume()
    site.wait_until(lambda: answers(site.redis), 20, "Redis")
    site.wait_recorded(2500)
    assert worker.poll() is None
    report = site.audit()
    assert report.passed, report.to_dict()
    assert report.rows == 2500
    assert "Redis answers again" in site.log().read_text()
    assert site.stop(worker) == 0


def test_frozen_redis_is_waited_for_and_nothing_is_counted_twice(site: Deployment, servers: Servers) -> None:
    """A frozen server still takes what is sent, and runs it when it wakes: the reply is lost, the effect is not."""
    site.traffic(0, 200)
    worker = site.start()
    site.wait_recorded(200)
    os.kill(servers.redis.process.pid, signal.SIGSTOP)
    try:
        site.traffic(200, 1200)
        site.wait_until(
            lambda: "Redis is away or refuses, holding on" in site.log().read_text(), 90, "the worker to notice"
        )
    finally:
        os.kill(servers.redis.process.pid, signal.SIGCONT)
    site.wait_recorded(1200)
    report = site.audit()
    assert report.passed, report.to_dict()
    assert site.totals()["rows"] == 1200
    assert worker.poll() is None


def test_broker_away_is_waited_for(site: Deployment, servers: Servers) -> None:
    site.traffic(0, 500)
    worker = site.start()
    site.wait_recorded(500)
    servers.kafka.pause()
    site.wait_until(
        lambda: "the broker is away or refuses, holding on" in site.log().read_text(), 90, "the worker to notice"
    )
    site.wait_until(lambda: worker.poll() is None and _age(site, "the broker is away") > 5.0, 60, "a while")
    servers.kafka.resume()
    site.wait_until(lambda: "the broker answers again" in site.log().read_text(), 90, "the worker to see it")
    site._producer = None
    site.traffic(500, 1500)
    site.wait_recorded(1500, 90)
    report = site.audit()
    assert report.passed, report.to_dict()
    assert report.rows == 1500
    assert worker.poll() is None
    assert site.stop(worker) == 0


def _age(site: Deployment, words: str) -> float:
    """Seconds since the worker said so."""
    import datetime

    line = next(line for line in site.log().read_text().splitlines() if words in line)
    said = datetime.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007  (local time on both sides)
    return (datetime.datetime.now() - said).total_seconds()  # noqa: DTZ005
