"""Topics that the sender's clock stamps, and deployments on them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from redis import Redis

from streams.topics import DEAD_SUFFIX
from tests.streams.worker.conftest import Deployment, deployments

WaitUntil = Callable[..., Any]


@pytest.fixture
def stamped_topic(kafka: str) -> Iterator[Callable[..., str]]:
    """Make a topic with CreateTime and its dead-letter topic; both are deleted afterwards."""
    made: list[str] = []
    admin = KafkaAdminClient(bootstrap_servers=kafka)

    def make(partitions: int = 1) -> str:
        name = f"vedette-test-{secrets.token_hex(4)}"
        configs = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
        wanted = [(name, partitions), (name + DEAD_SUFFIX, 1)]
        admin.create_topics([NewTopic(each, count, 1, topic_configs=configs) for each, count in wanted])
        admin.wait_for_topics([each for each, _ in wanted], timeout_ms=15_000)
        made.extend(each for each, _ in wanted)
        return name

    yield make
    admin.delete_topics(made)
    admin.close()


@pytest.fixture
def deploy(
    compiled: None,
    kafka: str,
    stamped_topic: Callable[..., str],
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
    wait_until: WaitUntil,
) -> Iterator[Callable[..., Deployment]]:
    """Real workers with the counting scorer, on topics of the sender's clock."""
    with deployments(kafka, stamped_topic, redis, redis_url, tmp_path, wait_until) as make:
        yield make
