"""Benign events of a stretch of a real topic."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer

from detectors import bundle as bundles
from streams.cli import invoke
from streams.config import ModelSettings, Settings, load
from streams.errors import BrokerError, ConfigError, MissingTopic
from streams.events.identity import hash_clients
from streams.training.sources import Events, Span, from_topic
from tests.streams.training.conftest import KEY, Files, fit_arguments

CLIENTS, EACH, PARTITIONS = 60, 20, 2


def settings(kafka: str, topic: str) -> Settings:
    Path("vedette.toml").write_text(
        f'[kafka]\nbootstrap = "{kafka}"\n[[models]]\nname = "shop"\ntopic = "{topic}"\nbundle = "b"\n'
    )
    return load("vedette.toml")


def send(kafka: str, topic: str, events: list[dict[str, Any]], headers: list[tuple[str, bytes]] | None = None) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka)
    for event in events:
        key = event["client"].encode()
        value = json.dumps(event).encode()
        producer.send(topic, value, key=key, partition=sum(key) % PARTITIONS, headers=headers or [])
    producer.flush()
    producer.close()


@pytest.fixture
def history(files: Files, kafka: str, topic: Callable[..., str]) -> tuple[str, list[dict[str, Any]]]:
    name = topic(PARTITIONS)
    events = files.shop.lines(files.shop.traffic(CLIENTS, EACH, np.random.default_rng(7)))
    send(kafka, name, events)
    return name, events


def read(files: Files, given: Settings, span: Span | None = None) -> Events:
    model: ModelSettings = given.models[0]
    return from_topic(given, model, files.shop.schema, bytes.fromhex(KEY), span or Span(), lambda *_: None)


def test_every_event_comes_in_the_order_of_broker_time_with_its_client(
    files: Files, kafka: str, history: tuple[str, list[dict[str, Any]]]
) -> None:
    name, sent = history
    found = read(files, settings(kafka, name))
    assert found.partitions == PARTITIONS
    assert found.notes == ()
    batch = found.batch
    assert len(batch) == len(sent)
    assert np.all(np.diff(batch.times) >= 0)
    assert batch.outputs is not None
    names = [event["client"].encode() for event in sent]
    hashes = hash_clients(names, bytes.fromhex(KEY))
    for client in np.unique(hashes)[:10]:
        mine = np.array([event["inputs"] for event, one in zip(sent, hashes, strict=True) if one == client])
        assert batch.inputs[batch.clients == client] == pytest.approx(mine, rel=1e-6)


def test_probes_and_unreadable_records_are_left_out_and_counted(
    files: Files, kafka: str, history: tuple[str, list[dict[str, Any]]]
) -> None:
    name, sent = history
    mark = b"v1.0123456789abcdef-00000001.1790000000000000." + b"0" * 64
    send(kafka, name, sent[:3], headers=[("vedette-probe", mark)])
    send(kafka, name, [{"client": "x", "model": "shop", "inputs": "none"}])
    found = read(files, settings(kafka, name))
    assert len(found.batch) == len(sent)
    assert found.notes == ("left out: 1 unreadable row", "left out: 3 probes")


def test_a_stretch_of_time_and_the_newest_records_are_chosen(
    files: Files, kafka: str, history: tuple[str, list[dict[str, Any]]], wait_until: Callable[..., Any]
) -> None:
    name, sent = history
    given = settings(kafka, name)
    last = int(read(files, given).batch.times[-1]) // 1000
    wait_until(lambda: time.time() * 1000 > last + 5, 10, "the clock to go on")
    send(kafka, name, sent[:40])
    assert len(read(files, given).batch) == len(sent) + 40
    assert len(read(files, given, Span(begin=last + 1)).batch) == 40
    assert len(read(files, given, Span(end=last + 1)).batch) == len(sent)
    assert len(read(files, given, Span(most=100)).batch) == 100
    with pytest.raises(ConfigError, match="no readable events"):
        read(files, given, Span(begin=last + 3_600_000))


def test_a_missing_topic_and_an_absent_broker_are_told_apart(files: Files, kafka: str) -> None:
    with pytest.raises(MissingTopic, match="vedette-test-nowhere"):
        read(files, settings(kafka, "vedette-test-nowhere"))
    with pytest.raises(BrokerError, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
        read(files, settings("127.0.0.1:1", "events"))


def test_a_bundle_is_fitted_on_the_models_topic(
    files: Files, kafka: str, history: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    name, sent = history
    settings(kafka, name)
    arguments = [*fit_arguments(files)[:-2], "--benign", "topic", "--at-most", "100000", "--out", "b.vedette", "--json"]
    assert invoke(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["events"], told["clients"]) == (len(sent), CLIENTS)
    assert told["digest"] == bundles.load("b.vedette").digest
