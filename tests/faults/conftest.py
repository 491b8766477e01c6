from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from redis import Redis

from streams.topics import DEAD_SUFFIX
from tests.faults import harness
from tests.faults.harness import Log


@pytest.fixture(scope="session")
def log(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    directory = tmp_path_factory.mktemp("faults")
    topic = f"vedette-test-faults-{secrets.token_hex(4)}"
    path = harness.make_bundle(directory / "bundle.npz")
    ends = harness.write_log(kafka, topic)
    yield Log(kafka, topic, ends, path)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_topics([topic, topic + DEAD_SUFFIX])
    admin.close()


@pytest.fixture(scope="session")
def undisturbed(
    log: Log, redis_url: str, tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]
) -> dict[str, Any]:
    """What a run without faults leaves."""
    redis = Redis.from_url(redis_url, socket_timeout=10)
    redis.flushdb()
    with harness.running(log, redis_url, tmp_path_factory.mktemp("undisturbed"), "undisturbed") as run:
        run.finish(redis, keep=1)
        state = harness.state_of(run, redis, wait_until)
        report = harness.audited(run, redis)
    redis.flushdb()
    redis.close()
    assert report.passed, report.to_dict()
    return state


@pytest.fixture
def run(log: Log, redis: Redis, redis_url: str, tmp_path: Path) -> Iterator[harness.Run]:
    with harness.running(log, redis_url, tmp_path, f"faults-{secrets.token_hex(4)}") as made:
        yield made
