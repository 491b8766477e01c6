"""Thousands of malformed records through a live worker on Kafka and Redis: what becomes of each, record by record."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from numpy.typing import NDArray
from redis import Redis

from detectors import bundle, ensemble
from detectors.contract import Reference
from detectors.schema import Feature, FeatureSchema
from streams import audit, children, config
from streams.probes.records import partition_of
from streams.store.keys import PartitionKeys
from streams.topics import DEAD_SUFFIX
from streams.worker.deadletters import REASON_HEADER
from tests.fuzz.generators import CONTROLS, Expected, Generated, Target, records

pytestmark = pytest.mark.usefixtures("hasty")

COUNT = 100_000 if os.environ.get("VEDETTE_FAULTS") == "full" else 10_000
PARTITIONS = 2
RUN_SECONDS = 900 if COUNT > 10_000 else 200
CLIENT_KEY, PROBE_KEY = bytes(16), bytes(range(32))

Place = tuple[int, int]
WaitUntil = Callable[..., Any]


def make_bundle(path: Path, target: Target) -> Path:
    """A fitted ensemble of the target's width."""
    schema = FeatureSchema(tuple(Feature(f"f{i}") for i in range(target.width)), target.classes)
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(1500, target.width))
    labels: NDArray[np.int32] = np.argmax(inputs[:, : len(target.classes)], axis=1).astype(np.int32)
    fitted, report = ensemble.fit(
        Reference(inputs, labels),
        schema,
        None,
        budget=1,
        clients_per_week=None,
        week_us=60_000_000,
        partitions=PARTITIONS,
        rng=rng,
    )
    bundle.save(path, fitted, report)
    return path


def settings_file(directory: Path, kafka: str, topic: str, redis_url: str, target: Target) -> Path:
    path = make_bundle(directory / "bundle.npz", target)
    (directory / "client.key").write_text(CLIENT_KEY.hex())
    (directory / "probe.key").write_text(PROBE_KEY.hex())
    toml = directory / "vedette.toml"
    toml.write_text(
        f"""
[[models]]
name = "{target.model}"
topic = "{topic}"
bundle = "{path}"
[kafka]
bootstrap = "{kafka}"
group = "fuzz"
[redis]
url = "{redis_url}"
[secrets]
client_key_file = "{directory}/client.key"
probe_key_file = "{directory}/probe.key"
[worker]
max_record_bytes = {target.max_record_bytes}
"""
    )
    return toml


def send(kafka: str, topic: str, target: Target) -> dict[Place, Generated]:
    """Produce every record; returns what stands where."""
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5, max_request_size=8 * 1024 * 1024)
    waiting = []
    for number, made in enumerate(records(11, COUNT, target, disturbing=False)):
        partition = number % PARTITIONS if made.key is None else partition_of(made.key, PARTITIONS)
        sent = producer.send(topic, value=made.value, key=made.key, headers=list(made.headers), partition=partition)
        waiting.append((sent, partition, made))
    producer.flush()
    found = {(partition, sent.get(30).offset): made for sent, partition, made in waiting}
    producer.close()
    return found


def dead_letters(kafka: str, topic: str) -> dict[Place, dict[tuple[int, ...] | None, str]]:
    """Coordinates -> refused rows (None: the record as a whole) -> reason."""
    consumer = KafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest")
    place = TopicPartition(topic + DEAD_SUFFIX, 0)
    consumer.assign([place])
    end = consumer.end_offsets([place])[place]
    found: dict[Place, dict[tuple[int, ...] | None, str]] = {}
    while consumer.position(place) < end:
        for record in consumer.poll(timeout_ms=500).get(place, ()):
            headers = {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
            source, partition, offset = headers[audit.SOURCE_HEADER].rsplit("/", 2)
            assert source == topic
            rows = headers[audit.ROWS_HEADER]
            which = None if rows == "*" else tuple(int(row) for row in rows.split(","))
            found.setdefault((int(partition), int(offset)), {})[which] = headers[REASON_HEADER]
    consumer.close()
    return found


def wrong(expected: Expected, letters: dict[tuple[int, ...] | None, str]) -> bool:
    if {rows for _, rows in expected.refused} != set(letters):
        return True
    return any(letters[rows] not in reasons for reasons, rows in expected.refused)


@pytest.mark.timeout(RUN_SECONDS + 300)
def test_fuzz_leaves_a_living_worker_that_did_right_by_every_record(
    kafka: str, topic: Callable[..., str], redis: Redis, redis_url: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    name = topic(PARTITIONS)
    target = Target(topic=name)
    toml = settings_file(tmp_path, kafka, name, redis_url, target)
    sent = send(kafka, name, target)
    ends = Counter(partition for partition, _ in sent)
    log = tmp_path / "worker.log"
    worker = children.spawn([sys.executable, "-m", "streams.cli", "--config", toml, "worker"], log)
    keys = [PartitionKeys(name, partition) for partition in range(PARTITIONS)]

    def done() -> bool:
        assert worker.poll() is None, children.tail(log)
        return all(int(redis.hget(k.watermark, "w") or 0) == ends[k.partition] for k in keys)

    try:
        wait_until(done, RUN_SECONDS, "the worker to reach the end of the topic")
        # still alive: a valid record after all of it is scored
        last = next(made for made in sent.values() if made.name in CONTROLS and made.expected.scored == 1)
        producer = KafkaProducer(bootstrap_servers=kafka)
        partition = 0 if last.key is None else partition_of(last.key, PARTITIONS)
        producer.send(name, value=last.value, key=last.key, headers=list(last.headers), partition=partition)
        ends[partition] += 1
        producer.flush()
        producer.close()
        wait_until(done, 60, "the worker to score one more record")
    finally:
        children.signal_session(worker, signal.SIGTERM)
        code = worker.wait(30)
        children.stop([worker])
    assert code == 0, children.tail(log)

    letters = dead_letters(kafka, name)
    failures = [
        f"{place} {made.name}: {letters.get(place, {})} instead of {made.expected}"
        for place, made in sent.items()
        if not made.expected.undetermined and wrong(made.expected, letters.get(place, {}))
    ]
    assert failures == [], f"{len(failures)} records, the first: {failures[:5]}"
    refused_controls = [place for place, made in sent.items() if made.name in CONTROLS and place in letters]
    expected_refusals = [place for place, made in sent.items() if made.name in CONTROLS and made.expected.refused]
    assert refused_controls == expected_refusals

    totals: Counter[str] = Counter()
    for k in keys:
        totals.update({field.decode(): int(value) for field, value in redis.hgetall(k.totals).items()})
    assert totals["probes"] == totals["probes_excluded"] == 0
    determined = [made.expected for made in sent.values() if not made.expected.undetermined]
    assert totals["invalid_marks"] >= sum(expected.invalid_marks for expected in determined) > 0
    assert totals["scored"] + totals["duplicates"] >= sum(expected.scored for expected in determined) + 1
    report = audit.audit(config.load(toml), target.model, redis, wait_seconds=5)
    assert report.passed, [part.findings for part in report.partitions]
    assert (report.rows_lost, report.rows_double_counted) == (0, 0)
