"""Real servers for tests: Apache Kafka and Redis, embedded, or those that KAFKA and REDIS name."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis

from detectors import surrogate
from detectors.kernels import siphash
from streams import embedded
from streams.events import kernels

# Whoever starts the tests in the background may have Ctrl-C ignored, and so would every process that they press it at.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Pause between two looks at a condition.
POLL_SECONDS = 0.02
#: How many times as long as a quiet machine a busy one may take, but no longer than this: a test is ended after 300 s.
BUSY, AT_MOST_SECONDS = 3, 200.0
#: Passes in which a rough surrogate learns.
HASTY_PASSES = 20


@contextmanager
def in_haste() -> Iterator[None]:
    """Fits learn a rough surrogate: most of a small fit's time, for what only detection needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "PASSES", HASTY_PASSES)
        yield


@pytest.fixture(scope="module")
def hasty() -> Iterator[None]:
    """`in_haste` for the module's tests."""
    with in_haste():
        yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What workers compile is in the cache that they read; of tests that run side by side one compiles it for all."""
    with (tmp_path_factory.getbasetemp().parent / "vedette-compiled.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        siphash.warm_up()
        kernels.warm_up()


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """``host:port`` of a broker; its topics are ours only where their names are (fixture `topic`)."""
    running = os.environ.get("KAFKA")
    if running:
        yield running
        return
    with embedded.kafka() as server:
        yield server.address


@pytest.fixture
def topic(kafka: str) -> Iterator[Callable[..., str]]:
    """Make a topic stamped by the broker and its dead-letter topic; both are deleted afterwards."""
    from kafka import KafkaAdminClient

    from streams.config import KafkaSettings
    from streams.topics import DEAD_SUFFIX, ensure

    made: list[str] = []

    def make(partitions: int = 1) -> str:
        name = f"vedette-test-{secrets.token_hex(4)}"
        ensure(KafkaSettings(bootstrap=kafka), name, partitions)
        made.append(name)
        return name

    yield make
    if made:
        admin = KafkaAdminClient(bootstrap_servers=kafka)
        admin.delete_topics(list(itertools.chain.from_iterable((name, name + DEAD_SUFFIX) for name in made)))
        admin.close()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis whose database is ours alone: tests empty it."""
    running = os.environ.get("REDIS")
    if running:
        client = Redis.from_url(running)
        size = client.dbsize()
        client.close()
        if size:
            pytest.exit(f"REDIS={running} holds {size} keys, and tests empty it; name an empty database (.../15)", 4)
        yield running
        return
    with embedded.redis() as server:
        yield server.address


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """An empty database."""
    client = Redis.from_url(redis_url, socket_timeout=10)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """Look at a condition until it is true; returns its value. Fails with `what` after `seconds` of a quiet machine."""

    def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
        patience = max(seconds, min(BUSY * seconds, AT_MOST_SECONDS))
        until = time.monotonic() + patience
        while not (value := condition()):
            if time.monotonic() >= until:
                pytest.fail(f"waited {patience:g} s in vain for {what}")
            time.sleep(POLL_SECONDS)
        return value

    return wait
