"""An incident's queries, read again from Kafka by their coordinates and drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer

from detectors.schema import FeatureSchema
from streams.config import KafkaSettings, ModelSettings, Settings, WorkerSettings
from streams.console.queries import READ, coordinates, of_evidence, plane, read
from streams.errors import BrokerError

Fixture = Any
RECORDS = 1_500
DIGITS = FeatureSchema.image((8, 8), [str(digit) for digit in range(10)], 0, 16)


@pytest.fixture
def traffic(kafka: str, topic: Callable[..., str]) -> tuple[str, str]:
    """(broker, topic) with `RECORDS` events; pixel 0 of the event at offset n is n / 100."""
    name = topic()
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    for offset in range(RECORDS):
        inputs = np.full(64, 4.0)
        inputs[0] = offset / 100
        scores = np.zeros(10)
        scores[3 if offset % 2 else 8] = 1.0
        event = {
            "id": str(offset),
            "model": "digits",
            "client": "c",
            "inputs": inputs.tolist(),
            "outputs": scores.tolist(),
        }
        producer.send(name, key=b"c", value=json.dumps(event).encode())
    producer.flush(30)
    producer.close()
    return kafka, name


def model(topic: str) -> ModelSettings:
    return ModelSettings(name="digits", topic=topic, bundle="none")


def site(bootstrap: str, **worker: int) -> Settings:
    kafka = KafkaSettings(bootstrap=bootstrap)
    return Settings(models=(model("none"),), kafka=kafka, worker=WorkerSettings(**worker))


def test_queries_are_read_by_their_coordinates(traffic: tuple[str, str]) -> None:
    kafka, name = traffic
    wanted = [(0, offset, 0) for offset in (2, 3, 5, 700, 1_499)]
    found = read(site(kafka), model(name), DIGITS, wanted)
    assert found.where == wanted
    assert found.inputs[:, 0].tolist() == pytest.approx([0.02, 0.03, 0.05, 7.0, 14.99])
    assert found.labels.tolist() == [8, 3, 3, 8, 3]
    assert (found.wanted, found.problem) == (5, "")
    assert (np.diff(found.times) >= 0).all()


def test_what_is_gone_is_told(traffic: tuple[str, str]) -> None:
    kafka, name = traffic
    settings = site(kafka)
    found = read(settings, model(name), DIGITS, [(0, 1, 0), (0, 1, 7), (0, 5_000, 0)])
    assert found.where == [(0, 1, 0)]
    assert (found.wanted, found.problem) == (3, "some records are no longer kept")
    assert read(settings, model(name), DIGITS, [(9, 1, 0)]).problem == "the topic is gone"
    assert len(read(settings, model("vedette-test-nowhere"), DIGITS, [(0, 1, 0)])) == 0
    with pytest.raises(BrokerError, match="no Kafka broker answers"):
        read(site("127.0.0.1:1"), model(name), DIGITS, [(0, 1, 0)])


def test_records_that_the_settings_refuse_are_not_drawn(traffic: tuple[str, str]) -> None:
    kafka, name = traffic
    assert len(read(site(kafka, max_record_bytes=100), model(name), DIGITS, [(0, 1, 0)])) == 0


def test_page_draws_the_queries_of_an_incident(traffic: tuple[str, str], scene: Fixture, serve: Fixture) -> None:
    kafka, name = traffic
    scene.topic = name
    incident = scene.attack(members=[(offset, 0) for offset in range(100, 140)])
    served = serve(topic=name, kafka=kafka)
    page = served.get(f"/incidents/{incident}/queries")
    text = " ".join(page.text.split())
    assert "46 of 46 queries." in text  # 40 members, and the rows of six signals
    assert page.text.count('<circle class="kind-') == 2 * 46
    assert re.search(r'</span> 3 <span class="faint">23</span>', text)
    fragment = served.get(f"/incidents/{incident}/queries", headers={"X-Requested-With": "fragment"})
    assert fragment.text.lstrip().startswith('<div class="queries">')


def test_without_kafka_the_evidence_is_drawn(scene: Fixture, serve: Fixture) -> None:
    incident = scene.attack()
    text = serve().get(f"/incidents/{incident}/queries").text
    assert "no Kafka broker answers at 127.0.0.1:1" in text
    assert text.count('<circle class="kind-') == 2 * 6
    text = serve(schema=None).get(f"/incidents/{incident}/queries").text
    assert "the bundle that says how to read records is not there" in text


def test_newest_coordinates_are_chosen_and_each_once(scene: Fixture) -> None:
    one = scene.signal(members=[(offset, 0) for offset in range(500)])
    two = scene.signal(members=[(499, 0), (499, 1)])
    found = coordinates([one, two])
    assert len(found) == READ
    assert found == sorted(found)
    assert (0, 499, 1) in found
    assert (0, 0, 0) not in found


def test_evidence_of_different_widths_keeps_the_widest(scene: Fixture) -> None:
    signals = [scene.signal(width=64), scene.signal(width=4), scene.signal(width=64)]
    found = of_evidence(signals, 9, "why")
    assert found.inputs.shape == (2, 64)
    assert of_evidence([], 0, "").inputs.shape == (0, 0)


def test_plane_keeps_distances_of_what_lies_in_a_plane() -> None:
    rng = np.random.default_rng(2)
    flat = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 50))
    flat /= np.ptp(flat, axis=0)
    points, share = plane(flat, None)
    assert share == pytest.approx(1.0)
    scaled = flat / np.ptp(flat, axis=0)
    before = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    after = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert np.allclose(before, after)
    assert plane(flat[:1], None)[0].shape == (1, 2)
    same, share = plane(np.ones((5, 3)), None)
    assert np.allclose(same, 0)
    assert share == 1.0


def test_incidents_near_each_other_are_named(scene: Fixture, serve: Fixture) -> None:
    first = scene.attack("11aa000000000001")
    shares = None
    for _ in range(2):
        scene.signal(
            entity="cluster", entity_id="5-0", clients=["11aa000000000001", "22bb000000000001"], rule="index-cluster"
        )
    (shares,) = set(scene.correlate()) - {first}
    same = scene.attack("33cc000000000001")
    scene.signal("44dd000000000001", time=scene.now + 3600 * 1_000_000)
    (later,) = set(scene.correlate()) - {first, shares, same}
    text = serve().get(f"/incidents/{first}").text
    near = re.search(r'aria-labelledby="near-title">(.*?)</section>', text, re.DOTALL)
    assert near
    names = re.findall(r"/incidents/([0-9a-f]{16})", near.group(1))
    assert names == [shares, same]
    assert "1 of its clients is here too" in near.group(1)
    assert later not in names
