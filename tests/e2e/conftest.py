"""The whole chain: events in real Kafka, a worker, a correlator and a console as processes of their own, Chromium."""

from __future__ import annotations

import json
import re
import secrets
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page
from redis import Redis
from threadpoolctl import threadpool_limits

from attacks import registry
from attacks.threat import ThreatModel
from detectors import bundle as bundles
from detectors import ensemble
from detectors.contract import Reference
from streams import children
from streams.config import KafkaSettings
from streams.demo import digits
from streams.demo.model import Perceptron, train
from streams.demo.prepare import history, rows_of
from streams.embedded import free_ports
from streams.probes.workshop import domain
from streams.topics import DEAD_SUFFIX, ensure
from tests.conftest import in_haste
from tests.streams.console.conftest import browser, pictures_directory, scene, serve, visiting

__all__ = ["browser", "pictures_directory", "scene", "serve"]

MODEL = "digits"
SEED = 20
#: Length of a week here, benign history, and clients that come in a week.
WEEK_US, HISTORY_WEEKS, HISTORY_RATE, CLIENTS_A_WEEK = 120_000_000, 4, 20.0, 20
REFERENCE_ROWS = 600
CLIENT_KEY, PROBE_KEY = bytes(range(16)).hex(), bytes(range(32)).hex()
#: How long processes may take to start on a busy machine with nothing compiled yet.
START_SECONDS = 120.0

#: What would run if it were ever taken for more than text.
HOSTILE = (
    '"\'><img src=x onerror="window.ran=1"><script>window.ran=1</script><svg/onload=window.ran=1>{{7*7}}javascript:1'
)

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Watched:
    """A real model and a bundle that pages."""

    model: Perceptron
    pools: digits.Pools
    bundle: Path

    def rows(self, count: int, rng: np.random.Generator) -> Rows:
        """Benign rows."""
        return rows_of(self.pools.live, count, rng)[0]

    def attack(self, rng: np.random.Generator, budget: int = 300) -> Rows:
        """The queries of a HopSkipJump attack, in order."""
        asked: list[Rows] = []
        model = self.model

        class Door:
            classes = len(digits.schema().classes)

            def predict(self, inputs: Rows) -> Rows:
                asked.append(np.array(inputs))
                return model.predict(inputs)

        inputs, _ = rows_of(self.pools.hostile, 1, rng)
        threat = ThreatModel("test", "l2", None, domain(digits.schema()), "black-box", budget)
        labels = np.argmax(model.predict(inputs), axis=1)
        registry.kind("hop_skip_jump")().craft(Door(), inputs, labels, threat, rng)
        return np.concatenate(asked)


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    path = tmp_path_factory.mktemp("bundle") / "digits.vedette"
    with threadpool_limits(1):
        pools = digits.split(SEED)
        model = train(pools.model, np.random.default_rng(SEED))
        rng = np.random.default_rng(3)
        inputs, truth = rows_of(pools.reference, REFERENCE_ROWS, rng)
        scores = model.predict(inputs)
        known = Reference(inputs, np.argmax(scores, axis=1).astype(np.int32), scores, truth.astype(np.int32))
        benign = history(pools.history, model, HISTORY_RATE, rng, weeks=HISTORY_WEEKS)
        with in_haste():
            fitted, found = ensemble.fit(
                known, digits.schema(), benign, budget=1, clients_per_week=CLIENTS_A_WEEK, week_us=WEEK_US,
                partitions=1, rng=rng,
            )  # fmt: skip
    assert found.mode != "tickets", found.sentences()
    bundles.save(path, fitted, found)
    return Watched(model, pools, path)


@dataclass
class Chain:
    """Vedette as it runs, and the events that it sees."""

    watched: Watched
    topic: str
    config: Path
    url: str
    redis: Redis
    producer: KafkaProducer
    wait_until: Callable[..., Any]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(11))
    sent: int = 0

    def send(self, inputs: Rows, client: str, **changes: Any) -> None:
        """One native event a row."""
        scores = self.watched.model.predict(inputs)
        for row, output in zip(inputs, scores, strict=True):
            self.sent += 1
            event = {"id": f"r{self.sent}", "model": MODEL, "inputs": row.tolist(), "outputs": output.tolist()}
            self.record(json.dumps({**event, **changes}).encode(), client)

    def record(self, value: bytes, key: str | None, headers: list[tuple[str, bytes]] | None = None) -> None:
        """One record as it is."""
        self.producer.send(self.topic, value=value, key=None if key is None else key.encode(), headers=headers or [])

    def traffic(self, clients: int = 20, each: int = 3) -> None:
        """Benign events of several clients."""
        for number in range(clients):
            self.send(self.watched.rows(each, self.rng), f"client-{number}")
        self.producer.flush()

    def attack(self, client: str = "guest", seed: int = 0, **changes: Any) -> None:
        """A query-based attack of one client."""
        self.send(self.watched.attack(np.random.default_rng(seed)), client, **changes)
        self.producer.flush()


@pytest.fixture(scope="module")
def chain(
    watched: Watched,
    kafka: str,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    wait_until: Callable[..., Any],
) -> Iterator[Chain]:
    """A worker, a correlator and a console, for all tests of a module; all are ready, and Redis is theirs."""
    directory, (port,) = tmp_path_factory.mktemp("chain"), free_ports(1)
    events = f"vedette-test-{secrets.token_hex(4)}"
    ensure(KafkaSettings(bootstrap=kafka), events, 1)
    redis = Redis.from_url(redis_url, socket_timeout=10)
    redis.flushdb()
    config = directory / "vedette.toml"
    config.write_text(
        f'[kafka]\nbootstrap = "{kafka}"\ngroup = "{events}"\n[redis]\nurl = "{redis_url}"\n'
        f'[[models]]\nname = "{MODEL}"\ntopic = "{events}"\nbundle = "{watched.bundle}"\n'
        f"[console]\nport = {port}\n[worker]\nsnapshot_seconds = 2.0\n"
    )
    keys = {"VEDETTE_CLIENT_KEY": CLIENT_KEY, "VEDETTE_PROBE_KEY": PROBE_KEY}
    command = [sys.executable, "-m", "streams.cli", "--config", str(config)]
    logs = {name: directory / f"{name}.log" for name in ("worker", "correlator", "console")}
    processes = [children.spawn([*command, name], logs[name], keys) for name in logs]
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=2)
    try:

        def ready() -> bool:
            for process, log in zip(processes, logs.values(), strict=True):
                assert process.poll() is None, children.tail(log)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
                    text = answer.read().decode()
            except OSError:
                return False
            partitions = re.search(r'vedette_partitions_without_worker\{model="digits"\} (\d+)', text)
            living = f'vedette_workers{{model="{MODEL}"}} 1' in text
            return living and partitions is not None and bool(redis.exists(f"vedette:{{{events}:0}}:w"))

        wait_until(ready, START_SECONDS, "the whole chain")
        yield Chain(watched, events, config, f"http://127.0.0.1:{port}", redis, producer, wait_until)
    finally:
        producer.close(timeout=2)
        children.stop(processes)
        redis.flushdb()
        redis.close()
        admin = KafkaAdminClient(bootstrap_servers=kafka)
        admin.delete_topics([events, events + DEAD_SUFFIX])
        admin.close()
        for log in logs.values():
            print(f"--- {log.name}\n{children.tail(log)}")


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page in a context of its own; anything that the browser complains of fails the test, and any dialog."""
    with visiting(browser) as (open_page, complaints):
        yield open_page
    # That somebody was faster is an answer with status 409, of which the browser tells.
    assert [text for text in complaints if "status of 409" not in text] == []


def nothing_ran(page: Page) -> bool:
    """Whether the page holds nothing of the attacker's but text."""
    return bool(
        page.evaluate(
            """() => window.ran === undefined
              && document.querySelectorAll('img[src=x], svg[onload], [onerror], [onload]').length === 0
              && [...document.scripts].every(script => script.src.startsWith(location.origin + '/static/'))
              && !document.title.includes('49')
              && [...document.links].every(link => !link.href.startsWith('javascript:'))"""
        )
    )
