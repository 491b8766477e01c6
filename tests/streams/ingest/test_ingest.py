"""Events of a model's logger become records that a worker reads, on a real broker."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from detectors.schema import Feature, FeatureSchema
from streams.config import IngestSettings, parse
from streams.events import decoder
from streams.events.batch import DecodeOptions, InferenceBatch
from streams.ingest import payloads
from streams.ingest.cloudevents import Event, Unreadable, read
from streams.ingest.join import Join
from streams.probes import marks

SCHEMA = FeatureSchema(tuple(Feature(f"f{i}") for i in range(4)), ("no", "yes"))
KEY, PROBE_KEY = bytes(range(16)), bytes(range(32))
ROW = [5.1, 3.5, 1.4, 0.2]
TYPE = "org.kubeflow.serving.inference."


def question(identity: str | None = None, rows: Any = (ROW,), **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [len(rows), 4], "datatype": "FP32", "data": [list(row) for row in rows]}
    named = {} if identity is None else {"id": identity}
    return {**named, "inputs": [tensor], **({"parameters": parameters} if parameters else {})}


def answer(rows: int = 1) -> dict[str, Any]:
    tensor = {"name": "p", "shape": [rows, 2], "datatype": "FP32", "data": [[0.25, 0.75]] * rows}
    return {"model_name": "iris-v3", "id": "whatever", "outputs": [tensor]}


def half(kind: str, data: Any, identity: str = "q1", client: str | None = "anna", **attributes: str) -> Event:
    metadata = {} if client is None else {"metadata": json.dumps({"X-Client-Id": [client]})}
    named = {"type": TYPE + kind, "inferenceservicename": "iris", **metadata, **attributes}
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return read({f"CE-{name}": text for name, text in {"id": identity, **named}.items()}, body)[0]


def decoded(value: bytes, key: bytes | None = None) -> InferenceBatch:
    record = SimpleNamespace(offset=0, timestamp=1, key=key, value=value, headers=())
    return decoder("auto").decode([record], DecodeOptions("iris", SCHEMA, "key", KEY))


def test_second_version_is_read_as_a_pair_whatever_the_model_calls_itself() -> None:
    value = payloads.record(half("request", question("body-id", [ROW, ROW])), half("response", answer(2)))
    batch = decoded(value, b"anna")
    assert not batch.dead
    assert batch.inputs.tolist() == [ROW, ROW]
    assert batch.labels.tolist() == [1, 1]
    assert json.loads(value)["request"]["id"] == "body-id"
    assert json.loads(payloads.record(half("request", question()), half("response", answer())))["request"]["id"] == "q1"


@pytest.mark.parametrize(
    ("instances", "predictions", "labels"),
    [
        ([ROW, ROW], [[0.9, 0.1], [0.2, 0.8]], [0, 1]),
        ([ROW], [1], [1]),
        ([[[5.1, 3.5], [1.4, 0.2]]], ["yes"], [1]),
    ],
)
def test_first_version_is_read_with_scores_or_labels(instances: Any, predictions: Any, labels: list[int]) -> None:
    pair = half("request", {"instances": instances}), half("response", {"predictions": predictions})
    batch = decoded(payloads.record(*pair))
    assert not batch.dead
    assert batch.labels.tolist() == labels
    assert batch.inputs[0].tolist() == ROW


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (b"{", b"{}"),
        (b'{"inputs": []}', b"{}"),
        (b'{"instances": [{"a": 1}]}', b'{"predictions": [1]}'),
        (b'{"instances": []}', b'{"predictions": []}'),
        (b'{"instances": [[1]]}', b"[]"),
        (b'{"inputs": []}, "model_name": "other"', b'{"outputs": []}'),
    ],
)
def test_what_is_no_inference_is_said(asked: bytes, answered: bytes) -> None:
    with pytest.raises(Unreadable):
        payloads.record(half("request", asked), half("response", answered))


def test_events_are_read_in_every_mode() -> None:
    plain = half("request", question())
    fields = {"specversion": "1.0", "id": "q1", **plain.attributes}
    structured = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    whole = read(structured, json.dumps({**fields, "data": question()}).encode())[0]
    packed = base64.b64encode(plain.data).decode()
    raw = read(structured, json.dumps({**fields, "data_base64": packed}).encode())[0]
    batched = read({"content-type": "application/cloudevents-batch+json"}, json.dumps([fields, fields]).encode())
    assert len(batched) == 2
    assert whole.place == raw.place == plain.place == batched[1].place
    assert json.loads(whole.data) == json.loads(raw.data) == question()
    assert plain.metadata("x-client-id") == whole.metadata("X-CLIENT-ID") == "anna"
    for headers, body in (
        ({}, b"{}"),
        (structured, b"[]"),
        (structured, b"{"),
        ({"ce-id": "x" * 300, "ce-type": "y"}, b""),
    ):
        with pytest.raises(Unreadable):
            read(headers, body)


def test_client_stands_where_the_setting_says() -> None:
    event = half("request", question(client="bert", number=7), extra="carl")
    assert payloads.client("metadata:x-client-id", event) == b"anna"
    assert payloads.client("attribute:Extra", event) == b"carl"
    assert payloads.client("parameter:client", event) == b"bert"
    assert payloads.client("parameter:number", event) == b"7"
    assert payloads.client("metadata:x-other", event) is None
    assert payloads.client("metadata:x-client-id", half("request", question(), metadata="[", client=None)) is None


def test_halves_find_each_other_in_any_order_and_expire() -> None:
    join = Join(10.0)
    request, response = half("request", question()), half("response", answer())
    assert join.add(request, "request", 0.0) is None
    assert join.add(half("response", answer(), "q2"), "response", 1.0) is None
    assert join.add(half("response", answer(), namespace="other"), "response", 1.0) is None
    assert join.add(response, "response", 2.0) == (request, response)
    assert join.add(half("request", question(), "q2"), "request", 3.0) is not None
    assert len(join) == 1
    join.expire(10.9)
    assert len(join) == 1
    join.expire(11.0)
    assert (len(join), join.size, join.dropped["response"]) == (0, 0, 1)
    join.add(request, "request", 12.0)
    join.add(request, "request", 13.0)
    assert (join.dropped["replaced"], len(join), join.size) == (1, 1, request.size)


# --- as a process -----------------------------------------------------------------------------------------------------


class Running:
    """`vedette ingest` on a topic of its own."""

    def __init__(self, kafka: str, topic: str, folder: Path, **ingest: Any) -> None:
        self.kafka, self.topic = kafka, topic
        lines = [f"{name} = {json.dumps(value)}" for name, value in {"port": 0, **ingest}.items()]
        settings = folder / "vedette.toml"
        settings.write_text(
            f'[kafka]\nbootstrap = "{kafka}"\n[ingest]\n' + "\n".join(lines) + "\n"
            f'[[models]]\nname = "iris"\ntopic = "{topic}"\nbundle = "none"\n'
        )
        self.log = folder / "ingest.log"
        with self.log.open("wb") as out:
            command = [sys.executable, "-m", "streams.cli", "--config", str(settings), "ingest"]
            self.child = subprocess.Popen(command, stderr=out, env={**os.environ, "PYTHONUNBUFFERED": "1"})

    @property
    def address(self) -> str:
        _, _, rest = self.log.read_text().partition("taking events of iris on ")
        return rest.split()[0] if "\n" in rest else ""

    def post(self, event: Event, *, chunked: bool = False) -> tuple[int, str | None]:
        named = {"id": event.id, **event.attributes}
        headers = {"Content-Type": "application/json", **{f"ce-{name}": text for name, text in named.items()}}
        body: Any = iter([event.data]) if chunked else event.data
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://{self.address}/", body, headers)) as said:
                return said.status, None
        except urllib.error.HTTPError as refused:
            return refused.code, refused.headers["Retry-After"]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.address}{path}") as said:
            return str(said.read().decode())

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(30)

    def records(self) -> list[Any]:
        consumer = KafkaConsumer(bootstrap_servers=self.kafka, group_id=None, enable_auto_commit=False)
        places = [TopicPartition(self.topic, number) for number in consumer.partitions_for_topic(self.topic) or ()]
        consumer.assign(places)
        consumer.seek_to_beginning()
        end, found = consumer.end_offsets(places), []
        while any(consumer.position(place) < end[place] for place in places):
            found += [record for part in consumer.poll(500).values() for record in part]
        consumer.close()
        return found


@pytest.fixture
def start(
    kafka: str, topic: Callable[..., str], tmp_path: Path, wait_until: Callable[..., Any]
) -> Iterator[Callable[..., Running]]:
    children: list[Running] = []

    def make(**ingest: Any) -> Running:
        running = Running(kafka, topic(3), tmp_path, **ingest)
        children.append(running)
        wait_until(lambda: running.address or running.child.poll() is not None, 60, "ingest to listen")
        assert running.child.poll() is None, running.log.read_text()
        return running

    yield make
    for running in children:
        if running.child.poll() is None:
            running.child.kill()
            running.child.wait(10)


def test_events_reach_the_topic_by_client_and_a_probe_is_known_again(
    start: Callable[..., Running], wait_until: Callable[..., Any]
) -> None:
    running = start(join_seconds=2.0)
    rows = np.array([ROW])
    name = marks.sign_request(PROBE_KEY, running.topic, bytes(8), 1, 1_000_000, b"client-0", rows)
    for number in range(40):
        client, identity = f"client-{number % 4}", name if number == 0 else f"q{number}"
        pair = [
            half("request", question(identity), f"ce-{number}", client),
            half("response", answer(), f"ce-{number}", client=None),
        ]
        for event in pair if number % 2 else reversed(pair):
            assert running.post(event)[0] == 202
    assert running.post(half("request", question(), "alone"))[0] == 202
    assert running.post(half("request", question(), inferenceservicename="other"))[0] == 202
    assert running.post(half("explain", question()))[0] == 202
    wait_until(lambda: 'unjoined_total{model="iris",half="request"} 1' in running.get("/metrics"), 20, "a lonely half")
    page = running.get("/metrics")
    assert 'vedette_ingest_events_total{model="iris",as="joined"} 40' in page
    assert 'as="other_service"} 1' in page
    assert 'as="other_type"} 1' in page
    assert json.loads(running.get("/health"))["status"] == "ok"
    assert running.stop() == 0
    records = running.records()
    assert len(records) == 40
    homes = {(record.key, record.partition) for record in records}
    assert len(homes) == 4
    for record in records:
        batch = decoder("auto").decode([record], DecodeOptions("iris", SCHEMA, "key", KEY))
        assert (len(batch), batch.dead) == (1, ())
        assert batch.clients[0] != 0
    probe = next(record for record in records if json.loads(record.value)["request"]["id"] == name)
    batch = decoder("auto").decode([probe], DecodeOptions("iris", SCHEMA, "key", KEY))
    mark = marks.verify(batch.requests[0], running.topic, probe.partition, 1_000_000, 10, PROBE_KEY, batch.inputs)
    assert mark is not None
    assert not mark.expired
    assert not mark.elsewhere


def test_full_memory_turns_senders_away_until_it_has_room(
    start: Callable[..., Running], wait_until: Callable[..., Any]
) -> None:
    running = start(join_seconds=3.0, memory_mb=1)
    big = question(rows=[ROW] * 8_000)
    codes = [running.post(half("request", big, f"q{number}")) for number in range(8)]
    assert codes[0] == (202, None)
    assert codes[-1] == (503, "1")
    wait_until(lambda: running.post(half("request", question(), "later"))[0] == 202, 20, "room")
    assert running.post(half("response", answer(), "later"))[0] == 202
    assert running.stop() == 0
    assert len(running.records()) == 1


def test_body_of_unknown_length_counts_as_the_longest(
    start: Callable[..., Running], wait_until: Callable[..., Any]
) -> None:
    running = start(join_seconds=3.0, memory_mb=1, max_event_mb=1)
    assert running.post(half("request", question(), "held")) == (202, None)
    assert running.post(half("request", question(), "chunks"), chunked=True) == (503, "1")
    wait_until(lambda: running.post(half("request", question(), "chunks"), chunked=True)[0] == 202, 20, "room")
    assert running.stop() == 0


def test_body_without_event_is_refused(start: Callable[..., Running]) -> None:
    running = start()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{running.address}/", b"{}")
    assert refused.value.code == 400
    assert running.stop() == 0


@pytest.mark.parametrize(("setting", "value"), [("client", "field:who"), ("format", "compact")])
def test_settings_that_nobody_could_read_back_are_refused(setting: str, value: str) -> None:
    from streams.errors import ConfigError
    from streams.ingest.service import run

    model = {"name": "iris", "topic": "t", "bundle": "b", setting: value}
    with pytest.raises(ConfigError, match=f"models.iris.{setting}"):
        run(parse({"models": [model]}, "here"), "iris")
    assert IngestSettings().host == "127.0.0.1"
