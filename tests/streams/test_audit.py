from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from redis import Redis

from detectors.schema import Feature, FeatureSchema
from streams import config
from streams.audit import AuditReport, PartitionAudit, Unreadable, audit, count_rows, run
from streams.errors import BrokerError, MissingTopic, StoreError
from streams.store.keys import PartitionKeys
from streams.topics import DEAD_SUFFIX

D, K = 3, 2
SCHEMA = FeatureSchema(tuple(Feature(f"f{i}") for i in range(D)), ("a", "b"))

Record = tuple[bytes, list[tuple[str, bytes]]]


def rows_of(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, D))


def native(n: int, nested: bool = True) -> Record:
    inputs = rows_of(n).tolist()
    outputs = [[0.1, 0.9]] * n
    if n == 1 and not nested:
        inputs, outputs = inputs[0], outputs[0]
    return json.dumps({"model": "digits", "inputs": inputs, "outputs": outputs}).encode(), []


def native_base64(n: int, flat: bool = False) -> Record:
    data = rows_of(n).astype("<f4")
    shape = [D] if flat else [n, D]
    tensor = {"shape": shape, "dtype": "float32", "data": base64.b64encode(data.tobytes()).decode()}
    return json.dumps({"model": "digits", "inputs": tensor, "label": 1 if flat else [1] * n}).encode(), []


def oip(n: int) -> Record:
    tensors = [{"name": "x", "shape": [n, D], "datatype": "FP64", "data": rows_of(n).ravel().tolist()}]
    answers = [{"name": "y", "shape": [n, K], "datatype": "FP64", "data": [0.1, 0.9] * n}]
    body = {"model_name": "digits", "request": {"inputs": tensors}, "response": {"outputs": answers}}
    return json.dumps(body).encode(), []


def oip_binary(n: int) -> Record:
    raw = rows_of(n).astype("<f4").tobytes()
    answer = np.tile(np.array([0.1, 0.9], "<f4"), n).tobytes()
    tensors = [{"name": "x", "shape": [n, D], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}]
    answers = [{"name": "y", "shape": [n, K], "datatype": "FP32", "parameters": {"binary_data_size": len(answer)}}]
    body = json.dumps({"model_name": "digits", "request": {"inputs": tensors}, "response": {"outputs": answers}})
    return body.encode() + raw + answer, [("Inference-Header-Content-Length", str(len(body)).encode())]


def compact(coordinates: list[tuple[int, int, int]]) -> Record:
    n = len(coordinates)
    partitions, offsets, places = zip(*coordinates, strict=True)
    schema = pa.schema(
        [
            ("source_partition", pa.int32()),
            ("source_offset", pa.int64()),
            ("source_row", pa.int32()),
            ("time", pa.timestamp("us", "UTC")),
            ("client", pa.uint64()),
            ("inputs", pa.list_(pa.float32(), D)),
            ("outputs", pa.list_(pa.float32(), K)),
        ],
        metadata={"vedette.version": "1", "model": "digits", "model_version": "1"},
    )
    columns = [
        pa.array(partitions, pa.int32()),
        pa.array(offsets, pa.int64()),
        pa.array(places, pa.int32()),
        pa.array([0] * n, pa.timestamp("us", "UTC")),
        pa.array([7] * n, pa.uint64()),
        pa.FixedSizeListArray.from_arrays(pa.array(rows_of(n).ravel(), pa.float32()), D),
        pa.FixedSizeListArray.from_arrays(pa.array([0.1, 0.9] * n, pa.float32()), K),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch(columns, schema=schema))
    return sink.getvalue().to_pybytes(), []


FORMATS: dict[str, tuple[Record, int]] = {
    "native, one row": (native(1, nested=False), 1),
    "native, one row nested": (native(1), 1),
    "native, many rows": (native(5), 5),
    "native, base64": (native_base64(4), 4),
    "native, base64 of one row": (native_base64(1, flat=True), 1),
    "oip": (oip(6), 6),
    "oip, binary": (oip_binary(7), 7),
    "compact": (compact([(0, 10, 0), (0, 10, 1), (0, 11, 0)]), 3),
}


@pytest.fixture
def producer(kafka: str) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5)
    yield producer
    producer.close()


def settings_for(kafka: str, redis_url: str, topic: str) -> config.Settings:
    data = {
        "models": [{"name": "digits", "topic": topic, "bundle": "none"}],
        "kafka": {"bootstrap": kafka},
        "redis": {"url": redis_url},
    }
    return config.parse(data, "test")


def dead_letter(producer: KafkaProducer, topic: str, partition: int, offset: int, rows: str = "*") -> None:
    headers = [("vedette-source", f"{topic}/{partition}/{offset}".encode()), ("vedette-rows", rows.encode())]
    producer.send(topic + DEAD_SUFFIX, value=b"as it came", headers=headers)
    producer.flush()


def store(redis: Redis, topic: str, partition: int, watermark: int, since: int = 0, **totals: int) -> None:
    keys = PartitionKeys(topic, partition)
    redis.hset(keys.watermark, mapping={"w": watermark, "since": since})
    if totals:
        redis.hset(keys.totals, mapping={name: str(count) for name, count in totals.items()})


class Scene:
    """A topic of two partitions with every format, dead letters, a record delivered twice, and totals that fit."""

    def __init__(self, kafka: str, redis_url: str, redis: Redis, producer: KafkaProducer, topic: str) -> None:
        self.settings = settings_for(kafka, redis_url, topic)
        self.redis, self.topic = redis, topic
        records = [record for record, _ in FORMATS.values()]
        for value, headers in records:
            producer.send(topic, value=value, headers=headers, partition=0)
        producer.send(topic, value=b"\x00 no event", partition=0)
        value, headers = native(4)
        producer.send(topic, value=value, headers=headers, partition=0)
        value, headers = compact([(0, 11, 0), (0, 12, 0), (1, 3, 0), (0, 12, 0)])
        producer.send(topic, value=value, headers=headers, partition=0)
        for _ in range(10):
            producer.send(topic, value=native(1)[0], partition=1)
        producer.flush()
        self.end = len(records) + 3
        self.rows = sum(rows for _, rows in FORMATS.values()) + 1 + 4 + 4
        dead_letter(producer, topic, 0, len(records))
        dead_letter(producer, topic, 0, len(records) + 1, "1,3")
        dead_letter(producer, topic, 0, len(records) + 1, "1,3")
        self.counts = {
            "records": self.end,
            "rows": self.rows,
            "scored": self.rows - 3 - 2 - 5 - 1,
            "probes": 5,
            "probes_excluded": 1,
            "invalid": 3,
            "duplicates": 2,
        }
        store(redis, topic, 0, self.end, **self.counts)
        store(redis, topic, 1, 10, records=10, rows=10, scored=10)

    def change(self, **by: int) -> None:
        """Move totals of partition 0."""
        for name, step in by.items():
            self.redis.hincrby(PartitionKeys(self.topic, 0).totals, name, step)

    def audit(self, wait_seconds: float = 0.0, **options: Any) -> AuditReport:
        return audit(self.settings, "digits", self.redis, wait_seconds=wait_seconds, **options)

    def findings(self) -> list[str]:
        return self.audit().partitions[0].findings


@pytest.fixture
def scene(kafka: str, redis_url: str, redis: Redis, producer: KafkaProducer, topic: Callable[..., str]) -> Scene:
    return Scene(kafka, redis_url, redis, producer, topic(2))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_every_format_are_counted_without_the_codecs(name: str) -> None:
    (value, headers), rows = FORMATS[name]
    assert count_rows(value, headers)[0] == rows


@pytest.mark.parametrize("name", FORMATS)
def test_the_codecs_find_the_same_number_of_rows(name: str) -> None:
    from streams.events import decoder
    from streams.events.batch import DecodeOptions

    (value, headers), rows = FORMATS[name]

    class One:
        offset, timestamp, key = 0, 0, b"k"

    one = One()
    one.value, one.headers = value, headers  # type: ignore[attr-defined]  # a record, as small as can be
    batch = decoder("auto").decode([one], DecodeOptions("digits", SCHEMA, "key", bytes(16)))  # type: ignore[list-item]
    assert not batch.dead
    assert len(batch) == rows


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": 3}',
        b'{"request": {"inputs": [{}]}}',
        b"\xff\xff\xff\xff12",
    ],
)
def test_what_holds_no_rows_is_unreadable(value: bytes) -> None:
    with pytest.raises(Unreadable):
        count_rows(value, [])


def test_nested_beyond_reason_is_unreadable() -> None:
    with pytest.raises(Unreadable):
        count_rows(b"[" * 200_000, [])


def test_everything_accounted_for_passes(scene: Scene) -> None:
    report = scene.audit()
    assert [part.findings for part in report.partitions] == [[], []]
    assert report.passed
    assert report.complete
    assert (report.rows, report.rows_lost, report.rows_double_counted) == (scene.rows + 10, 0, 0)
    first = report.partitions[0]
    assert (first.records, first.dead, first.repeated) == (scene.end, 3, 2)


def test_a_lost_row_is_found(scene: Scene) -> None:
    scene.change(scored=-1, rows=-1)
    report = scene.audit()
    assert report.rows_lost == 1
    assert not report.passed
    assert any("1 rows were lost" in finding for finding in report.partitions[0].findings)


def test_a_row_counted_twice_is_found(scene: Scene) -> None:
    scene.change(scored=2, rows=2)
    report = scene.audit()
    assert (report.rows_lost, report.rows_double_counted) == (0, 2)
    assert not report.passed


def test_a_lost_row_does_not_hide_behind_one_counted_twice_in_another_partition(scene: Scene) -> None:
    scene.change(scored=-1, rows=-1)
    scene.redis.hincrby(PartitionKeys(scene.topic, 1).totals, "scored", 1)
    report = scene.audit()
    assert (report.rows_lost, report.rows_double_counted) == (1, 1)


def test_a_row_called_a_duplicate_that_is_none_is_found(scene: Scene) -> None:
    scene.change(scored=-1, duplicates=1)
    report = scene.audit()
    assert report.rows_lost == 1
    assert any("3 duplicates, but there are 2" in finding for finding in report.partitions[0].findings)


def test_a_row_called_invalid_without_a_dead_letter_is_found(scene: Scene) -> None:
    scene.change(scored=-1, invalid=1)
    assert any("4 invalid, but there are 3 rows in the dead letters" in text for text in scene.findings())


def test_totals_that_contradict_each_other_are_found(scene: Scene) -> None:
    scene.change(rows=1)
    assert any("own totals differ" in text for text in scene.findings())


def test_an_unreadable_record_without_a_dead_letter_is_found(scene: Scene, producer: KafkaProducer) -> None:
    producer.send(scene.topic, value=b"garbage", partition=0)
    producer.flush()
    scene.change(records=1, rows=1, invalid=1)
    scene.redis.hset(PartitionKeys(scene.topic, 0).watermark, "w", scene.end + 1)
    assert any(f"offset {scene.end} is no event" in text for text in scene.findings())


def test_dead_letters_of_other_topics_and_without_source_count_for_nothing(
    scene: Scene, producer: KafkaProducer
) -> None:
    producer.send(scene.topic + DEAD_SUFFIX, value=b"?")
    for source in (b"elsewhere/0/0", scene.topic.encode() + b"/x/0", scene.topic.encode() + b"/0", b"/", b"\xff"):
        producer.send(scene.topic + DEAD_SUFFIX, value=b"?", headers=[("vedette-source", source)])
    producer.flush()
    assert scene.audit().passed


def test_what_the_worker_has_not_reached_is_pending(scene: Scene, producer: KafkaProducer) -> None:
    for _ in range(3):
        producer.send(scene.topic, value=native(1)[0], partition=1)
    producer.flush()
    report = scene.audit(wait_seconds=0.3)
    assert report.partitions[1].pending == 3
    assert not report.complete
    assert not report.passed
    assert report.waited_seconds >= 0.3
    assert report.partitions[1].findings == [], "what was reached is accounted for"


def test_the_worker_is_waited_for(scene: Scene, producer: KafkaProducer) -> None:
    from threading import Timer

    producer.send(scene.topic, value=native(2)[0], partition=1)
    producer.flush()
    late = Timer(0.5, store, (scene.redis, scene.topic, 1, 11), {"records": 11, "rows": 12, "scored": 12})
    late.start()
    report = scene.audit(wait_seconds=20)
    late.join()
    assert report.passed
    assert report.partitions[1].rows == 12


def test_until_bounds_what_is_waited_for_but_compares_all_that_was_reached(
    scene: Scene, producer: KafkaProducer
) -> None:
    producer.send(scene.topic, value=native(2)[0], partition=1)
    producer.flush()
    report = scene.audit(until={0: scene.end, 1: 4})
    assert report.passed
    assert report.partitions[1].records == 10


def test_counting_begins_where_recording_began(scene: Scene) -> None:
    store(scene.redis, scene.topic, 1, 10, since=6, records=4, rows=4, scored=4)
    report = scene.audit()
    assert report.passed
    assert report.partitions[1].records == 4


def test_expired_records_cannot_be_vouched_for(scene: Scene, kafka: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_records({TopicPartition(scene.topic, 1): 4})
    admin.close()
    report = scene.audit()
    assert not report.passed
    assert "records below offset 4 have expired" in report.partitions[1].findings[0]
    store(scene.redis, scene.topic, 1, 10, since=4, records=6, rows=6, scored=6)
    assert scene.audit().passed


def test_watermark_beyond_the_end_means_another_topic(scene: Scene) -> None:
    store(scene.redis, scene.topic, 1, 99)
    assert "the topic was created anew" in scene.audit().partitions[1].findings[0]


def test_partition_without_any_event_needs_no_watermark(
    kafka: str, redis_url: str, redis: Redis, producer: KafkaProducer, topic: Callable[..., str]
) -> None:
    assert audit(settings_for(kafka, redis_url, topic(2)), "digits", redis, wait_seconds=0).passed


def test_json_holds_every_figure_and_the_exit_code_the_verdict(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scene.settings, "digits", as_json=True, wait_seconds=0) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert (document["rows_lost"], document["rows_double_counted"]) == (0, 0)
    assert {name: document[name] for name in ("scored", "probes", "invalid", "duplicates")} == {
        "scored": scene.counts["scored"] + 10,
        "probes": 5,
        "invalid": 3,
        "duplicates": 2,
    }
    assert [part["partition"] for part in document["partitions"]] == [0, 1]
    scene.change(scored=-1, rows=-1)
    assert run(scene.settings, "digits", wait_seconds=0) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 lost, 0 counted twice: NOT every row is accounted for" in printed


def test_totals_that_are_no_counts_stop_it(scene: Scene) -> None:
    scene.redis.hset(PartitionKeys(scene.topic, 0).totals, "scored", "many")
    with pytest.raises(StoreError, match="something else than counts"):
        scene.audit()


def test_missing_topic_and_missing_broker_stop_it(kafka: str, redis_url: str, redis: Redis) -> None:
    with pytest.raises(MissingTopic, match="no-such-topic"):
        audit(settings_for(kafka, redis_url, "no-such-topic"), "digits", redis)
    with pytest.raises(BrokerError):
        audit(settings_for("127.0.0.1:1", redis_url, "events"), "digits", redis)


def test_accounting_identity_is_per_partition() -> None:
    lost = PartitionAudit(0, 10, rows_lost=3)
    twice = PartitionAudit(1, 10, rows_double_counted=3)
    report = AuditReport("digits", "events", (lost, twice), 0.0)
    assert (report.rows_lost, report.rows_double_counted) == (3, 3)


def test_only_the_declared_format_counts() -> None:
    both = {"inputs": [[1.0], [2.0], [3.0]], "request": {"inputs": [{"shape": [2, 1]}]}}
    value = json.dumps(both).encode()
    assert count_rows(value, [], "oip")[0] == 2
    assert count_rows(value, [], "native")[0] == 3
    assert count_rows(value, [("Inference-Header-Content-Length", b"5")], "native")[0] == 3
    with pytest.raises(Unreadable):
        count_rows(value, [("Inference-Header-Content-Length", b"5")], "oip")
