"""A fixed log, workers that meet faults, and what must be equal at the end.

The log stands in a topic with CreateTime, so that two runs over it see the same times. Each run has a Redis database
that was empty before, and a consumer group of its own.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from numpy.typing import NDArray
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from detectors import bundle, ensemble
from streams import audit, children
from streams.config import Settings, parse
from streams.incidents.correlator import Correlator
from streams.lease import Lease
from streams.probes import marks
from streams.probes.records import partition_of
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Incident
from streams.topics import DEAD_SUFFIX
from tests.detectors.world import ATTACKS, SCHEMA, World, benign, diluted, sensor_rows, world
from tests.warm import Forked

MODEL = "digits"
PARTITIONS = 4
CLIENTS = 1_100
START_MS = 1_790_000_000_000
CLIENT_KEY, PROBE_KEY = bytes(range(16)), bytes(range(32))
#: Small batches, so that a run has hundreds of them.
BATCH_ROWS = 150
#: A run that has not ended by then has failed.
RUN_SECONDS = 150.0

#: A worker without one of its guards must be found out within this time.
MUTANT_SECONDS = 45.0

NO_FAULT: dict[str, Any] = {
    "point": "",
    "at": 1,
    "action": "",
    "marker": "",
    "gate": "",
    "pause": 0.0,
    "mutant": "",
    "partitions": PARTITIONS,
}


@dataclass(frozen=True)
class Log:
    """The topic that every run reads, and the bundle that every run decides by."""

    bootstrap: str
    topic: str
    ends: dict[int, int]
    bundle: Path


def make_bundle(path: Path) -> Path:
    """A bundle fitted as `vedette fit` does it, on a small history."""
    home = world()
    history = benign(home, np.random.default_rng(1), clients=240, weeks=6, a_week=40)
    fitted, report = ensemble.fit(
        home.reference,
        SCHEMA,
        history,
        budget=1,
        clients_per_week=200,
        week_us=60_000_000,
        partitions=PARTITIONS,
        rng=np.random.default_rng(2),
    )
    bundle.save(path, fitted, report)
    return path


def events(home: World, rng: np.random.Generator) -> list[tuple[bytes | None, NDArray[np.float64]]]:
    """(client, row) of everything that is no probe and not malformed, in the order of the log."""
    streams: list[tuple[bytes | None, NDArray[np.float64]]] = [
        (b"client-%d" % client, home.fresh(int(rng.integers(4, 16)), rng)) for client in range(CLIENTS)
    ]
    for number, (name, attack) in enumerate(sorted(ATTACKS.items())):
        streams.extend((f"attacker-{name}-{again}".encode(), attack(home, rng, queries=160)) for again in range(2))
        mixed, _ = diluted(home, attack(home, rng, queries=80), 3, rng)
        streams.append((b"mixed-%d" % number, mixed))
    streams.append((b"sensor", sensor_rows(home, 250, rng)))
    streams.append((None, home.fresh(300, rng)))
    when = np.concatenate([np.sort(rng.random(len(rows))) for _, rows in streams])
    who = np.repeat(np.arange(len(streams)), [len(rows) for _, rows in streams])
    place = np.concatenate([np.arange(len(rows)) for _, rows in streams])
    return [(streams[who[i]][0], streams[who[i]][1][place[i]]) for i in np.argsort(when, kind="stable")]


def write_log(bootstrap: str, topic: str) -> dict[int, int]:
    """Create the topic and write the log; returns the end of each partition."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    stamped = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
    wanted = NewTopic(name=topic, num_partitions=PARTITIONS, replication_factor=1, topic_configs=stamped)
    admin.create_topics([wanted, NewTopic(name=topic + DEAD_SUFFIX, num_partitions=1, replication_factor=1)])
    admin.close()
    home, rng = world(), np.random.default_rng(3)
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
    log = events(home, rng)
    outputs = home.probabilities(np.array([row for _, row in log]))
    campaigns = [rng.bytes(8) for _ in range(16)]
    counters = dict.fromkeys(range(len(campaigns)), 0)
    signed: list[tuple[int, bytes, bytes, list[tuple[str, bytes]], int]] = []
    for number, (client, row) in enumerate(log):
        at = START_MS + number * 6
        partition = partition_of(client, PARTITIONS) if client else number % PARTITIONS
        body: dict[str, Any] = {"model": MODEL, "inputs": row.tolist(), "outputs": outputs[number].tolist()}
        if number % 17 == 0:  # many rows a record, as Open Inference Protocol
            value = _oip(np.array([row, row + 1e-3]), np.array([outputs[number]] * 2))
        else:
            value = json.dumps(body).encode()
        producer.send(topic, key=client, value=value, partition=partition, timestamp_ms=at)
        if number % 101 == 0:
            bad = value[: len(value) // 2] if number % 2 else json.dumps({**body, "model": "stranger"}).encode()
            producer.send(topic, key=client, value=bad, partition=partition, timestamp_ms=at)
        if number % 40 == 0:
            which = (number // 40) % len(campaigns)
            name = b"probe-%d" % which
            counters[which] += 1
            there = partition_of(name, PARTITIONS)
            crafted = {**body, "inputs": np.clip(row + rng.normal(0, 0.2, 64), 0, 1).tolist()}
            payload = json.dumps(crafted).encode()
            mark = marks.sign_header(
                PROBE_KEY, topic, there, campaigns[which], counters[which], at * 1000, name, payload
            )
            headers = [(marks.HEADER, mark)]
            producer.send(topic, key=name, value=payload, headers=headers, partition=there, timestamp_ms=at)
            signed.append((there, name, payload, headers, at))
            if number % 200 == 0:  # a copy of an earlier one
                there, name, payload, headers, _ = signed[len(signed) // 2]
                producer.send(topic, key=name, value=payload, headers=headers, partition=there, timestamp_ms=at)
    producer.flush()
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    ends = {place.partition: end for place, end in consumer.end_offsets(places).items()}
    consumer.close()
    return ends


def _oip(inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> bytes:
    def tensor(name: str, rows: NDArray[np.float64]) -> dict[str, Any]:
        return {"name": name, "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}

    request = {"inputs": [tensor("input", inputs)]}
    response = {"model_name": MODEL, "outputs": [tensor("output", outputs)]}
    return json.dumps({"model_name": MODEL, "request": request, "response": response}).encode()


@dataclass
class Run:
    """One run over the log: a group, workers, a correlator."""

    log: Log
    redis_url: str
    directory: Path
    settings: Settings
    toml: Path
    children: list[Forked] = field(default_factory=list)

    def start(self, **fault: Any) -> Forked:
        """A worker, perhaps one that meets a fault."""
        order = json.dumps({**NO_FAULT, **fault})
        log = self.directory / f"worker-{len(self.children)}.log"
        child = Forked("tests.faults.worker_main", [str(self.toml), order], log)
        self.children.append(child)
        return child

    def watermarks(self, redis: Redis) -> dict[int, int]:
        """How far each partition is recorded."""
        keys = [PartitionKeys(self.log.topic, partition).watermark for partition in range(PARTITIONS)]
        pipe = redis.pipeline()
        for key in keys:
            pipe.hget(key, "w")
        return {partition: int(w or 0) for partition, w in enumerate(pipe.execute())}

    def done(self, redis: Redis) -> bool:
        """Whether everything is recorded."""
        try:
            return self.watermarks(redis) == self.log.ends
        except RedisConnectionError:  # a fault that ends connections ended this one too
            return False

    def ends(self, redis: Redis, seconds: float) -> bool:
        """Whether the workers that run reach the end of the log in time; nobody replaces them."""
        until = time.monotonic() + seconds
        while not self.done(redis):
            if time.monotonic() > until or all(child.poll() is not None for child in self.children):
                return self.done(redis)
            time.sleep(0.05)
        return True

    def finish(self, redis: Redis, keep: int = 2) -> None:
        """Let workers run to the end of the log; those that a fault ended are replaced."""
        until = time.monotonic() + RUN_SECONDS
        while not self.done(redis):
            if time.monotonic() > until:
                stand = f"{self.watermarks(redis)} of {self.log.ends}"
                raise AssertionError(f"not done after {RUN_SECONDS:.0f} s: {stand}\n{self.last_words()}")
            alive = [child for child in self.children if child.poll() is None]
            for _ in range(keep - len(alive)):
                self.start()
            time.sleep(0.05)

    def last_words(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.directory.glob("worker-*.log"))
        return "\n".join(f"--- {log.name}\n{children.tail(log)}" for log in logs)


@contextmanager
def running(log: Log, redis_url: str, directory: Path, name: str) -> Iterator[Run]:
    """A run with its correlator; everything is ended at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    document = f"""
week_seconds = 60
[[models]]
name = "{MODEL}"
topic = "{log.topic}"
bundle = "{log.bundle}"
[kafka]
bootstrap = "{log.bootstrap}"
group = "{name}"
[redis]
url = "{redis_url}"
[secrets]
client_key_file = "{directory}/client.key"
probe_key_file = "{directory}/probe.key"
[worker]
max_batch_rows = {BATCH_ROWS}
clients_per_partition = 200
index_rows = 400
snapshot_seconds = 0.15
watchdog_seconds = 60
"""
    (directory / "client.key").write_text(CLIENT_KEY.hex())
    (directory / "probe.key").write_text(PROBE_KEY.hex())
    toml = directory / "vedette.toml"
    toml.write_text(document)
    run = Run(log, redis_url, directory, parse(msgspec.toml.decode(document), "test"), toml)
    stop = threading.Event()
    client = Redis.from_url(redis_url, socket_timeout=10)
    correlator = Correlator(client, MODEL, log.topic, Lease(client, ModelKeys(MODEL), "correlator"), clock=lambda: 1)
    thread = threading.Thread(target=correlator.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield run
    finally:
        stop.set()
        for child in run.children:
            if child.poll() is None:
                children.signal_session(child, signal.SIGCONT)
        children.stop(run.children, 5.0)
        thread.join(10)
        client.close()


def state_of(run: Run, redis: Redis, wait_until: Callable[..., Any]) -> dict[str, Any]:
    """Everything that must not depend on faults. Waits until the correlator has applied every signal."""
    model = ModelKeys(MODEL)

    def applied() -> bool:
        for partition in range(PARTITIONS):
            last = redis.xrevrange(PartitionKeys(run.log.topic, partition).signals, count=1)
            if last and redis.hget(model.progress, f"{run.log.topic}:{partition}") != last[0][0]:
                return False
        return True

    wait_until(applied, 60, "the correlator to apply every signal")
    found: dict[str, Any] = {}
    for partition in range(PARTITIONS):
        keys = PartitionKeys(run.log.topic, partition)
        mark = redis.hgetall(keys.watermark)
        mark.pop(b"epoch")
        found[f"{partition}.watermark"] = mark
        found[f"{partition}.totals"] = redis.hgetall(keys.totals)
        found[f"{partition}.histograms"] = {n: base64.b64encode(v) for n, v in redis.hgetall(keys.histograms).items()}
        found[f"{partition}.uses"] = redis.hgetall(keys.probe_uses)
        found[f"{partition}.signals"] = [(name, _timeless(f[b"m"])) for name, f in redis.xrange(keys.signals)]
        found[f"{partition}.probes"] = [(name, _timeless(f[b"m"])) for name, f in redis.xrange(keys.probes)]
        for kind in ("minute", "hour"):
            for key in sorted(redis.scan_iter(f"{keys.tag}:{kind}:*")):
                found[f"{partition}.{key.decode().removeprefix(keys.tag)}"] = redis.hgetall(key)
    for name in redis.zrange(model.incidents, 0, -1):
        one = msgspec.json.decode(redis.hget(model.incident(name.decode()), "m"), type=Incident)
        found[f"incident {one.id}"] = (
            one.technique,
            one.entity,
            one.entity_id,
            one.level,
            one.signals,
            sorted(one.rules.items()),
            sorted(one.clients),
            sorted(one.partitions),
            one.max_ratio,
            one.queries,
            one.first_seen,
            one.last_seen,
        )
    return found


def _timeless(text: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(text)
    message.pop("at")
    return message


def audited(run: Run, redis: Redis) -> audit.AuditReport:
    """The independent count."""
    return audit.audit(run.settings, MODEL, redis, wait_seconds=5)


def wake(child: Forked) -> None:
    """Let a stopped worker go on."""
    os.kill(child.pid, signal.SIGCONT)


def stopped(child: Forked) -> bool:
    """Whether a child is stopped by a signal."""
    status = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii")
    return status.rpartition(")")[2].split()[0] == "T"
