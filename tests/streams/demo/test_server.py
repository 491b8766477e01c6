"""The demo's model server: it answers by the protocol, and every request stands in the topic once."""

from __future__ import annotations

import http.client
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from streams.demo.digits import Pools
from streams.demo.model import Perceptron
from streams.models.oip import OIPModel
from streams.probes.records import partition_of


def read_all(kafka: str, topic: str) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=kafka, group_id=None, enable_auto_commit=False, consumer_timeout_ms=2000)
    places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    wanted = sum(consumer.end_offsets(places).values())
    records: list[Any] = []
    while len(records) < wanted:
        for found in consumer.poll(timeout_ms=500).values():
            records += found
    consumer.close()
    return records


def test_every_request_is_logged_once_with_client_and_id(
    served: Any, kafka: str, perceptron: Perceptron, pools: Pools
) -> None:
    rows = pools.live.inputs[:30]
    asked = {}
    for client in ("alice", "bob", "carol-3"):
        counter = iter(range(100))
        model = OIPModel(
            served.url,
            served.name,
            client_id=client,
            request_id=lambda _, client=client, counter=counter: f"{client}/{next(counter)}",
        )
        for number, part in enumerate((rows[:1], rows[1:2], rows[2:9])):
            assert np.allclose(model.predict(part), perceptron.predict(part), atol=1e-12)
            asked[f"{client}/{number}"] = (client, part)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    records = read_all(kafka, served.topic)
    assert len(records) == len(asked)
    for record in records:
        event = json.loads(record.value)
        client, part = asked.pop(event["request"]["id"])
        assert record.key == client.encode()
        assert record.partition == partition_of(record.key, 2)
        tensor = event["request"]["inputs"][0]
        assert np.array_equal(np.reshape(tensor["data"], tensor["shape"]), part)
        assert event["response"]["id"] == event["request"]["id"]
        assert event["response"]["model_name"] == served.name
        output = event["response"]["outputs"][0]
        assert np.allclose(np.reshape(output["data"], output["shape"]), perceptron.predict(part), atol=1e-12)
    assert not asked


def test_a_request_without_a_client_is_logged_without_a_key(served: Any, kafka: str, pools: Pools) -> None:
    OIPModel(served.url, served.name).predict(pools.live.inputs[:1])
    served.process.send_signal(signal.SIGTERM)
    served.process.wait(10)
    (record,) = read_all(kafka, served.topic)
    assert record.key is None


BAD_REQUESTS = [
    (b"", "truncated"),
    (b"\xff\xfe", "malformed"),
    (b'{"inputs": []}', "one input"),
    (b'{"inputs": [{"name": "i", "shape": [1, 3], "datatype": "FP64", "data": [1, 2, 3]}]}', "[1, 3]"),
    (b'{"inputs": [{"name": "i", "shape": [1, 64], "datatype": "FP64", "data": [1, 2, 3]}]}', "does not hold"),
    (b'{"inputs": [{"name": "i", "shape": [-1, 64], "datatype": "FP64", "data": []}]}', "[-1, 64]"),
    (b'{"inputs": [{"name": "i", "shape": [1, 64], "datatype": "FP64", "data": ["a"]}]}', "does not hold"),
]


def test_bad_requests_are_refused_and_not_logged(served: Any, kafka: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(served.url).port, timeout=5)
    for body, says in BAD_REQUESTS:
        connection.request("POST", f"/v2/models/{served.name}/infer", body)
        answer = connection.getresponse()
        assert answer.status == 400, body
        assert says in json.loads(answer.read())["error"]
    connection.close()
    assert read_all(kafka, served.topic) == []


def test_four_hundred_requests_a_second_take_a_fraction_of_a_core(served: Any, pools: Pools) -> None:
    rows, threads, each = pools.live.inputs, 4, 300

    def ask(number: int) -> None:
        model = OIPModel(served.url, served.name, client_id=f"c{number}")
        for row in range(each):
            model.predict(rows[row % len(rows)][None])

    with ThreadPoolExecutor(threads) as pool:
        before, began = cpu_seconds(served.process.pid), time.perf_counter()
        list(pool.map(ask, range(threads)))
        took = time.perf_counter() - began
        used = cpu_seconds(served.process.pid) - before
    requests = threads * each
    print(f"{requests / took:.0f} requests/s, {used / requests * 1e6:.0f} us of cpu each")
    assert 400 * used / requests < 0.6


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
