"""A topic, settings and worker processes of one test."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from redis import Redis

from streams import children, config
from streams.audit import AuditReport, audit
from streams.config import Settings
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import ProbeVerdict, SignalMessage, WorkerStatus
from streams.topics import DEAD_SUFFIX
from tests.streams.worker.counting import save
from tests.warm import Forked

MODEL = "digits"
WIDTH, CLASSES = 4, 3
CLIENT_KEY, PROBE_KEY = bytes(16), bytes(range(32))
#: Settings of tests: quick to notice, small batches so that much happens.
WORKER = {"snapshot_seconds": 0.5, "max_batch_rows": 200, "clients_per_partition": 300, "shutdown_seconds": 8.0}

WaitUntil = Callable[..., Any]


@dataclass
class Deployment:
    """One model's topic and its workers."""

    directory: Path
    kafka: str
    redis_url: str
    redis: Redis
    topic: str
    partitions: int
    wait_until: WaitUntil
    group: str = "vedette"
    format: str = "native"
    worker: dict[str, Any] = field(default_factory=dict)
    bundle: Path = Path()
    _workers: list[Forked] = field(default_factory=list)
    _producer: KafkaProducer | None = None
    _logs: int = 0

    def __post_init__(self) -> None:
        self.bundle = save(self.directory / "bundle.json", width=WIDTH, classes=CLASSES)

    # settings ---------------------------------------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        return {
            "kafka": {"bootstrap": self.kafka, "group": self.group},
            "redis": {"url": self.redis_url},
            "worker": {**WORKER, **self.worker},
            "models": [{"name": MODEL, "topic": self.topic, "bundle": str(self.bundle), "format": self.format}],
        }

    def settings(self) -> Settings:
        return config.parse(self.data(), "test")

    def config_file(self) -> Path:
        path = self.directory / "vedette.toml"
        lines = []
        data = self.data()
        for section in ("kafka", "redis", "worker"):
            lines.append(f"[{section}]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in data[section].items()]
        lines.append("[[models]]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in data["models"][0].items()]
        path.write_text("\n".join(lines) + "\n")
        return path

    # the topic --------------------------------------------------------------------------------------------------------

    def producer(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = KafkaProducer(bootstrap_servers=self.kafka, linger_ms=2)
        return self._producer

    def send(
        self,
        value: bytes | None,
        key: str | None = None,
        partition: int | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> Any:
        return self.producer().send(
            self.topic,
            value=value,
            key=None if key is None else key.encode(),
            partition=partition,
            headers=list(headers),
            timestamp_ms=timestamp_ms,
        )

    def traffic(self, first: int, last: int, clients: int = 40) -> int:
        """Events first..last-1 of the usual traffic, some of them malformed; returns the number of records."""
        for number in range(first, last):
            client = f"client-{number * 7 % clients}"
            if number % 61 == 0:
                self.send(b"{broken", client)
            elif number % 53 == 0:
                self.send(event(number), None)  # anonymous
            else:
                self.send(event(number), client)
        self.producer().flush()
        return last - first

    def dead(self) -> list[Any]:
        """All dead letters."""
        consumer = KafkaConsumer(bootstrap_servers=self.kafka, group_id=None, auto_offset_reset="earliest")
        place = TopicPartition(self.topic + DEAD_SUFFIX, 0)
        consumer.assign([place])
        end = consumer.end_offsets([place])[place]
        found: list[Any] = []
        consumer.seek_to_beginning(place)
        until = time.monotonic() + 20
        while consumer.position(place) < end and time.monotonic() < until:
            found += consumer.poll(timeout_ms=200).get(place, [])
        consumer.close()
        return found

    # workers ----------------------------------------------------------------------------------------------------------

    def start(self, environ: Mapping[str, str] | None = None) -> Forked:
        self._logs += 1
        keys = {"VEDETTE_CLIENT_KEY": CLIENT_KEY.hex(), "VEDETTE_PROBE_KEY": PROBE_KEY.hex()}
        given = {**keys, **(environ or {})}
        child = Forked("tests.streams.worker.worker_main", [str(self.config_file())], self.log(self._logs), given)
        self._workers.append(child)
        return child

    def log(self, number: int | None = None) -> Path:
        return self.directory / f"worker-{number or self._logs}.log"

    def stop(self, child: Forked, how: signal.Signals = signal.SIGTERM) -> int:
        if child.poll() is None:
            os.kill(child.pid, how)
        return child.wait(25)

    def close(self) -> None:
        for child in self._workers:
            children.signal_session(child, signal.SIGKILL)
            child.wait(10)
        if self._producer is not None:
            self._producer.close(timeout=2)

    # what stands in Redis ---------------------------------------------------------------------------------------------

    def keys(self, partition: int = 0) -> PartitionKeys:
        return PartitionKeys(self.topic, partition)

    def watermark(self, partition: int = 0) -> int:
        return int(self.redis.hget(self.keys(partition).watermark, "w") or 0)

    def recorded(self) -> int:
        return sum(self.watermark(partition) for partition in range(self.partitions))

    def totals(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for partition in range(self.partitions):
            for name, count in self.redis.hgetall(self.keys(partition).totals).items():
                found[name.decode()] = found.get(name.decode(), 0) + int(count)
        return found

    def signals(self, partition: int = 0) -> list[SignalMessage]:
        entries = self.redis.xrange(self.keys(partition).signals)
        return [msgspec.json.decode(fields[b"m"], type=SignalMessage) for _, fields in entries]

    def verdicts(self, partition: int = 0) -> list[ProbeVerdict]:
        entries = self.redis.xrange(self.keys(partition).probes)
        return [msgspec.json.decode(fields[b"m"], type=ProbeVerdict) for _, fields in entries]

    def statuses(self) -> list[WorkerStatus]:
        return [msgspec.json.decode(body, type=WorkerStatus) for body in self.redis.hvals(ModelKeys(MODEL).workers)]

    def audit(self, wait_seconds: float = 30.0) -> AuditReport:
        return audit(self.settings(), MODEL, self.redis, wait_seconds=wait_seconds)

    def wait_recorded(self, records: int, seconds: float = 90.0) -> None:
        self.wait_until(lambda: self.recorded() >= records, seconds, f"{records} records")

    def get(self, path: str) -> tuple[int, str]:
        web = self.wait_until(lambda: (s := self.statuses()) and s[0].web, 90, "a status")
        try:
            with urllib.request.urlopen(f"http://{web}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def dump(self) -> dict[str, Any]:
        """Everything in the partitions' keys that a replay must give again, snapshots of the last state included."""
        found: dict[str, Any] = {}
        for partition in range(self.partitions):
            keys = self.keys(partition)
            prefix = f"vedette:{{{self.topic}:{partition}}}:"
            for key in sorted(self.redis.scan_iter(f"{prefix}*")):
                name = key.decode()
                if ":chunk:" in name or name == keys.snapshots:
                    continue
                kind = self.redis.type(key)
                if kind == b"hash":
                    value: Any = dict(self.redis.hgetall(key))
                    if name == keys.watermark:
                        value.pop(b"epoch")
                elif kind == b"stream":
                    value = [
                        (entry, {**msgspec.json.decode(fields[b"m"]), "at": 0})
                        for entry, fields in self.redis.xrange(key)
                    ]
                else:
                    raise AssertionError(f"{name} is a {kind!r}")
                found[name.removeprefix("vedette:")] = value
            found[f"state {partition}"] = self.snapshot(partition)
        return found

    def snapshot(self, partition: int = 0) -> Any:
        """Offset and arrays (as digests of their chunks) of the newest published snapshot."""
        stored = self.redis.hgetall(self.keys(partition).snapshots)
        if not stored:
            return None
        manifest = msgspec.msgpack.decode(stored[stored[b"newer"]])
        return manifest["offset"], manifest["arrays"]

    def wait_snapshot(self, seconds: float = 60.0) -> None:
        """Until the newest snapshot of each partition stands at its watermark."""

        def done() -> bool:
            shots = [(self.snapshot(p), self.watermark(p)) for p in range(self.partitions)]
            return all(shot is not None and shot[0] == mark for shot, mark in shots if mark)

        self.wait_until(done, seconds, "snapshots at the watermarks")


def event(number: int, inputs: Any = None, **fields: Any) -> bytes:
    """A native event whose content follows from its number."""
    body = {
        "id": f"r{number}",
        "model": MODEL,
        "inputs": [number % 11, 0.5, number % 3, 1.0] if inputs is None else inputs,
        "outputs": [0.2, 0.7, 0.1],
        **fields,
    }
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


@contextmanager
def deployments(
    kafka: str, topic: Callable[..., str], redis: Redis, redis_url: str, directory: Path, wait_until: WaitUntil
) -> Iterator[Callable[..., Deployment]]:
    """Make deployments on topics that `topic` makes; they are closed afterwards, and their logs shown."""
    made: list[Deployment] = []

    def make(partitions: int = 2, **changes: Any) -> Deployment:
        name = topic(partitions)
        options = {"group": name, **changes}
        deployment = Deployment(directory, kafka, redis_url, redis, name, partitions, wait_until, **options)
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.close()
        for log in sorted(directory.glob("worker-*.log")):
            print(f"--- {log.name}\n{children.tail(log)}")


@pytest.fixture
def deploy(
    compiled: None,
    kafka: str,
    topic: Callable[..., str],
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
    wait_until: WaitUntil,
) -> Iterator[Callable[..., Deployment]]:
    with deployments(kafka, topic, redis, redis_url, tmp_path, wait_until) as make:
        yield make
