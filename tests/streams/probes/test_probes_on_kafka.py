"""Probes on a real topic: straight and by the front door, read back by a small worker that verifies every mark.

The worker here is a double on purpose: it says of each record which way it would have gone (probe, excluded, traffic)
and can be told to page, which the real one does only when its detectors do.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from numpy.typing import NDArray
from redis import Redis

from streams.config import KafkaSettings, ModelSettings, ProbeSettings
from streams.errors import ConfigError, MissingTopic
from streams.events.batch import ProbeCandidate
from streams.lease import Lease
from streams.probes import marks
from streams.probes.craft import (
    ControlDirect,
    ControlFrontDoor,
    Desk,
    Endpoint,
    QueryCampaign,
    RequestId,
    TransferBurst,
    classes,
)
from streams.probes.data import Deck
from streams.probes.pace import Stopped
from streams.probes.prober import Crafter, Probe, Prober
from streams.probes.records import DirectSender, encode, partition_of
from streams.probes.store import ProbeStore
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import ProbeSummary, ProbeVerdict

KEY = bytes(range(32))
MODEL = "digits"
TTL = 60_000_000
WIDTH = 6
CLASSES = 3

WaitUntil = Callable[..., Any]


def scores(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.random.default_rng(0).normal(size=(WIDTH, CLASSES))
    powers = np.exp(inputs @ weights)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class LoggingEndpoint:
    """A model that answers, and logs each request as native JSON with the caller's id, keyed by client."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap)
        self._topic = topic

    def connect(self, client: str, request_id: RequestId) -> _Client:
        return _Client(self, client, request_id)

    def log(self, name: str, client: str, inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
        body = {"id": name, "model": MODEL, "inputs": inputs.tolist(), "outputs": outputs.tolist()}
        self._producer.send(self._topic, key=client.encode(), value=json.dumps(body).encode()).get(10)

    def close(self) -> None:
        self._producer.close(timeout=2)


class _Client:
    def __init__(self, endpoint: LoggingEndpoint, client: str, request_id: RequestId) -> None:
        self._endpoint, self._client, self._request_id = endpoint, client, request_id

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        outputs = scores(inputs)
        self._endpoint.log(self._request_id(inputs), self._client, inputs, outputs)
        return outputs


class VerifyingWorker(threading.Thread):
    """Reads the whole topic, verifies marks, writes verdicts; pages each client at its `pages_at`-th probe row."""

    def __init__(self, bootstrap: str, topic: str, partitions: int, redis: Redis, pages_at: int | None) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self.records: list[Any] = []
        self.done = threading.Event()
        self._topic, self._redis, self._pages_at = topic, redis, pages_at
        self._used: dict[str, tuple[int, int]] = {}
        self._rows: Counter[bytes] = Counter()
        self._consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
        self._consumer.assign([TopicPartition(topic, p) for p in range(partitions)])

    def run(self) -> None:
        while not self.done.is_set():
            for records in self._consumer.poll(timeout_ms=50).values():
                for record in records:
                    self._see(record)
        self._consumer.close()

    def _see(self, record: Any) -> None:
        body = json.loads(record.value)
        inputs = np.atleast_2d(np.asarray(body["inputs"], dtype=np.float64))
        header = dict(record.headers).get(marks.HEADER)
        name = body["id"] if body["id"].startswith(marks.REQUEST_PREFIX) else None
        candidate = ProbeCandidate(record.offset, header, name, record.key, record.value)
        time_us = record.timestamp * 1000
        mark = marks.verify(candidate, self._topic, record.partition, time_us, TTL, KEY, inputs)
        here = (record.partition, record.offset)
        if mark is None:
            status = "traffic"
        elif mark.expired:
            status = "expired"
        else:
            status = "scored" if self._used.setdefault(mark.id, here) == here else "replayed"
        self.seen[status] += len(inputs)
        self.records.append((status, record))
        if mark is None:
            return
        self._rows[record.key] += len(inputs) if status == "scored" else 0
        paged = status == "scored" and self._pages_at is not None and self._rows[record.key] >= self._pages_at
        said = ProbeVerdict(
            probe=mark.id,
            status=status,  # type: ignore[arg-type]  # never "traffic" here
            partition=record.partition,
            offset=record.offset,
            rows=len(inputs),
            time=time_us,
            at=time.time_ns() // 1000,
            issued=mark.issued,
            level=2 if paged else 0,
            ratio=0.0,
            pvalues={},
            fused=1.0,
        )
        self._redis.xadd(PartitionKeys(self._topic, record.partition).probes, {"m": msgspec.json.encode(said)})


class Scene:
    """A topic with three partitions, a logging endpoint, a worker and a desk."""

    def __init__(self, kafka: str, topic: str, redis: Redis, pages_at: int | None) -> None:
        self.kafka = KafkaSettings(bootstrap=kafka)
        self.model = ModelSettings(name=MODEL, topic=topic, bundle="unused", format="native")
        self.settings = ProbeSettings(
            control_every_seconds=0.2, queries_per_second=2_000.0, control_inputs=25, timeout_seconds=15.0
        )
        self.endpoint = LoggingEndpoint(kafka, topic)
        self.sender = DirectSender(self.kafka, self.model, KEY)
        self.worker = VerifyingWorker(kafka, topic, 3, redis, pages_at)
        self.rng = np.random.default_rng(3)
        self.desk = Desk(self.settings, topic, KEY, self.endpoint.connect, self.sender, self.rng)
        self.deck = Deck(self.rng.uniform(size=(400, WIDTH)), self.rng)
        self.worker.start()

    def close(self) -> None:
        self.worker.done.set()
        self.worker.join(10)
        self.sender.close()
        self.endpoint.close()


@pytest.fixture
def scene(kafka: str, topic: Callable[..., str], redis: Redis) -> Iterator[Scene]:
    made = Scene(kafka, topic(3), redis, pages_at=None)
    yield made
    made.close()


def test_controls_come_back_as_probes_and_nothing_becomes_traffic(
    scene: Scene, redis: Redis, wait_until: WaitUntil
) -> None:
    crafters = {"control": (ControlDirect(scene.desk, scene.deck), ControlFrontDoor(scene.desk, scene.deck))}
    store = ProbeStore(redis, MODEL, scene.model.topic)
    stop = threading.Event()
    prober = Prober(
        store, scene.settings, Lease(redis, ModelKeys(MODEL), "prober"), crafters, scene.sender.partitions, scene.rng
    )
    thread = threading.Thread(target=prober.run, args=(stop,), daemon=True)
    thread.start()
    finished = wait_until(lambda: (found := store.outcomes()) and len(found) >= 6 and found, 40, "six controls")
    stop.set()
    thread.join(10)
    assert {outcome.attack for outcome in finished} == {"control_direct", "control_front_door"}
    for outcome in finished:
        assert (outcome.inputs, outcome.arrived, outcome.detected, outcome.abandoned) == (25, 25, False, "")
    assert scene.worker.seen["traffic"] == 0
    assert scene.worker.seen["replayed"] == 0
    assert scene.worker.seen["expired"] >= 25
    assert scene.worker.seen["scored"] >= 150


def test_a_burst_lies_in_its_clients_partition_and_its_questions_are_excluded(
    scene: Scene, wait_until: WaitUntil
) -> None:
    for client in ("anna", "bert", "carl"):
        probe = Probe(scene.rng.bytes(8), client)
        rows = scene.deck.deal(20)
        scene.desk.send(probe, rows, scene.desk.ask(rows, probe.stop))
        assert (probe.sent, probe.inputs) == (20, 20)
    wait_until(lambda: scene.worker.seen["scored"] == 60 and scene.worker.seen["expired"] == 60, 20, "all records")
    assert sum(scene.worker.seen.values()) == 120
    for status, record in scene.worker.records:
        if status == "scored":
            assert record.partition == partition_of(record.key, 3)
            body = json.loads(record.value)
            np.testing.assert_allclose(body["outputs"], scores(np.array([body["inputs"]]))[0])


def test_copies_forgeries_and_borrowed_marks_are_not_probes(scene: Scene, kafka: str, wait_until: WaitUntil) -> None:
    probe = Probe(scene.rng.bytes(8), "anna")
    rows = scene.deck.deal(2)
    scene.desk.send(probe, rows, scores(rows))
    wait_until(lambda: scene.worker.seen["scored"] == 2, 20, "the probe")
    _, genuine = scene.worker.records[0]
    header = dict(genuine.headers)[marks.HEADER]
    producer = KafkaProducer(bootstrap_servers=kafka)

    def send(value: bytes, key: bytes, partition: int, mark: bytes) -> None:
        producer.send(scene.model.topic, key=key, value=value, partition=partition, headers=[(marks.HEADER, mark)]).get(
            10
        )

    elsewhere = (genuine.partition + 1) % 3
    send(genuine.value, genuine.key, genuine.partition, header)  # a copy of the whole record: replayed
    send(genuine.value, genuine.key, elsewhere, header)  # in another partition
    send(genuine.value, b"mallory", genuine.partition, header)  # under another account
    send(genuine.value.replace(b"digits", b"digitz"), genuine.key, genuine.partition, header)  # another body
    forged = marks.sign_header(
        bytes(32),
        scene.model.topic,
        genuine.partition,
        b"campaign",
        0,
        time.time_ns() // 1000,
        genuine.key,
        genuine.value,
    )
    send(genuine.value, genuine.key, genuine.partition, forged)  # under another key
    producer.close(timeout=2)
    wait_until(lambda: sum(scene.worker.seen.values()) == 7, 20, "all records")
    assert scene.worker.seen == {"scored": 2, "replayed": 1, "traffic": 4}


def test_front_door_ids_are_worth_nothing_to_others(scene: Scene, wait_until: WaitUntil) -> None:
    probe = Probe(scene.rng.bytes(8), "anna")
    rows = scene.deck.deal(1)
    scene.desk.front_door(probe, 10).predict(rows)
    wait_until(lambda: scene.worker.seen["scored"] == 1, 20, "the probe")
    name = json.loads(scene.worker.records[0][1].value)["id"]
    scene.endpoint.log(name, "anna", rows, scores(rows))  # the same request again
    scene.endpoint.log(name, "mallory", rows, scores(rows))  # by another account
    scene.endpoint.log(name, "anna", rows + 0.01, scores(rows))  # with another body
    wait_until(lambda: sum(scene.worker.seen.values()) == 4, 20, "all records")
    assert scene.worker.seen == {"scored": 1, "replayed": 1, "traffic": 2}


def test_missing_topic_is_named(kafka: str) -> None:
    model = ModelSettings(name=MODEL, topic="no-such-topic", bundle="unused")
    with pytest.raises(MissingTopic, match="no-such-topic"):
        DirectSender(KafkaSettings(bootstrap=kafka), model, KEY)


def test_partitions_agree_with_kafkas_own(kafka: str, topic: Callable[..., str]) -> None:
    name = topic(7)
    producer = KafkaProducer(bootstrap_servers=kafka)
    for number in range(20):
        key = f"client-{number}".encode()
        assert producer.send(name, key=key, value=b"x").get(10).partition == partition_of(key, 7)
    producer.close(timeout=2)


@pytest.mark.parametrize(
    ("form", "client", "where"),
    [
        ("auto", "key", None),
        ("native", "field:user", lambda event: json.loads(event.value)["user"]),
        ("native", "header:x-user", lambda event: dict(event.headers)["x-user"].decode()),
        ("oip", "parameter:user", lambda event: json.loads(event.value)["request"]["parameters"]["user"]),
        ("auto", "parameter:user", lambda event: json.loads(event.value)["request"]["parameters"]["user"]),
    ],
)
def test_the_client_stands_where_the_model_says(form: Any, client: str, where: Any) -> None:
    model = ModelSettings(name=MODEL, topic="t", bundle="unused", format=form, client=client)
    event = encode(model, "anna", np.ones((1, 2)), np.ones((1, 3)))
    assert event.key == b"anna"
    assert where is None or where(event) == "anna"


def test_a_client_parameter_needs_a_format_that_has_parameters() -> None:
    model = ModelSettings(name=MODEL, topic="t", bundle="unused", format="native", client="parameter:user")
    with pytest.raises(ConfigError, match=r"models\.digits\.client"):
        encode(model, "anna", np.ones((1, 2)), np.ones((1, 3)))
    compact = ModelSettings(name=MODEL, topic="t", bundle="unused", format="compact")
    with pytest.raises(ConfigError, match="set 'auto'"):
        encode(compact, "anna", np.ones((1, 2)), np.ones((1, 3)))


class SignStep:
    """The smallest transfer attack: one signed step on a linear surrogate."""

    attack = "transfer_pgd"
    threat = "Linf 0.4, transfer"
    fitted: list[int]

    def __init__(self) -> None:
        self.fitted = []

    def fit(self, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator) -> object:
        self.fitted.append(len(inputs))
        return np.linalg.lstsq(inputs, np.eye(CLASSES)[labels], rcond=None)[0]

    def craft(
        self, surrogate: object, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        assert isinstance(surrogate, np.ndarray)
        return np.clip(inputs - 0.4 * np.sign(surrogate[:, labels].T), 0, 1)


class Bisection:
    """The smallest query attack: walks from the row to a random other and halves the way to the boundary."""

    attack = "hop_skip_jump"
    threat = "L2"

    def craft(
        self, model: Endpoint, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        far = rng.uniform(size=inputs.shape)
        low, high = 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            same = classes(model.predict(inputs + middle * (far - inputs))) == labels
            low, high = (middle, high) if same[0] else (low, middle)


def test_bursts_and_campaigns_are_found_and_stated_with_their_intervals(
    kafka: str, topic: Callable[..., str], redis: Redis, wait_until: WaitUntil
) -> None:
    scene = Scene(kafka, topic(3), redis, pages_at=15)
    transfer = SignStep()
    crafters: dict[str, tuple[Crafter, ...]] = {
        "burst": (TransferBurst(scene.desk, scene.deck, transfer),),
        "campaign": (QueryCampaign(scene.desk, scene.deck, Bisection()),),
    }
    options = msgspec.structs.replace(
        scene.settings, burst_every_seconds=0.3, campaign_every_seconds=0.3, concurrent_campaigns=3, surrogate_rows=100
    )
    scene.desk.settings = options
    store = ProbeStore(redis, MODEL, scene.model.topic)
    stop = threading.Event()
    lease = Lease(redis, ModelKeys(MODEL), "prober")
    prober = Prober(store, options, lease, crafters, scene.sender.partitions, scene.rng)
    thread = threading.Thread(target=prober.run, args=(stop,), daemon=True)
    thread.start()

    def counted() -> bool:
        found = Counter(outcome.attack for outcome in store.outcomes())
        return found["transfer_pgd"] >= 3 and found["hop_skip_jump"] >= 3

    wait_until(counted, 40, "three bursts and three campaigns")
    stop.set()
    thread.join(10)
    scene.close()
    results = {
        a.decode(): msgspec.json.decode(s, type=ProbeSummary)
        for a, s in redis.hgetall(store.keys.probe_results).items()
    }
    burst, campaign = results["transfer_pgd"], results["hop_skip_jump"]
    assert (burst.recall, burst.n, burst.queries_to_page_p50) == (1.0, 20 * burst.units, 15)
    assert burst.robust_accuracy is not None
    assert burst.robust_accuracy < 0.9
    assert (campaign.recall, campaign.n, campaign.queries_to_page_p50) == (1.0, campaign.units, 15)
    assert 0 < campaign.low < campaign.high == 1.0
    assert transfer.fitted == [100]
    for outcome in store.outcomes():
        assert outcome.arrived == outcome.inputs
        assert outcome.inputs == 20 if outcome.kind == "burst" else 15 <= outcome.inputs < 300
    assert scene.worker.seen["traffic"] == 0


def test_an_undetected_campaign_spends_its_budget_and_no_query_more(scene: Scene, wait_until: WaitUntil) -> None:
    probe = Probe(scene.rng.bytes(8), "anna", homeless=True)
    campaign = QueryCampaign(
        Desk(
            msgspec.structs.replace(scene.settings, campaign_queries=33),
            scene.model.topic,
            KEY,
            scene.endpoint.connect,
            scene.sender,
            scene.rng,
        ),
        scene.deck,
        Bisection(),
    )
    with pytest.raises(Stopped):
        campaign.run(probe)
    assert (probe.sent, probe.inputs) == (33, 33)
    wait_until(lambda: scene.worker.seen["scored"] == 33, 20, "every query")


def test_known_answers_spare_the_endpoint(scene: Scene) -> None:
    rows = scene.deck.deal(50)
    transfer = SignStep()
    probe = Probe(scene.rng.bytes(8), "anna")
    TransferBurst(scene.desk, scene.deck, transfer, (rows, classes(scores(rows)))).run(probe)
    assert transfer.fitted == [50]
    assert probe.inputs == 20
    assert probe.fooled is not None
