"""What stops a start, or a partition from being taken: one clear sentence each, and an exit code of its own."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaAdminClient

from streams.config import KafkaSettings
from streams.store.keys import ModelKeys
from streams.topics import DEAD_SUFFIX, ensure
from tests.streams.worker.conftest import MODEL, Deployment, event
from tests.streams.worker.counting import save

Deploy = Callable[..., Deployment]


def ended(site: Deployment, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Start a worker that must end by itself: its exit code, and the last line that it says."""
    worker = site.start(environ)
    code = worker.wait(150)
    said = site.log().read_text().strip().splitlines()
    assert not any(line.startswith("Traceback") for line in said), "\n".join(said)
    return code, said[-1]


def recreate(site: Deployment, records: int, key: str = "one") -> None:
    """Delete the topic, make it again, and fill it."""
    admin = KafkaAdminClient(bootstrap_servers=site.kafka)
    admin.delete_topics([site.topic, site.topic + DEAD_SUFFIX])
    names: Any = site.wait_until(lambda: site.topic not in admin.list_topics() and [True], 20, "the topic to be gone")
    assert names
    site.wait_until(lambda: ensure(KafkaSettings(bootstrap=site.kafka), site.topic, site.partitions), 20, "topics")
    admin.close()
    if site._producer is not None:
        site._producer.close(timeout=2)
        site._producer = None
    for number in range(records):
        site.send(event(number), key)
    site.producer().flush()


def test_unreachable_broker(deploy: Deploy) -> None:
    site = deploy(1)
    site.kafka, kafka = "127.0.0.1:1", site.kafka
    code, said = ended(site)
    site.kafka = kafka
    assert code == 10
    assert "no Kafka broker answers at 127.0.0.1:1" in said


def test_unreachable_redis(deploy: Deploy) -> None:
    site = deploy(1)
    site.redis_url = "redis://:secret@127.0.0.1:1/0"
    code, said = ended(site)
    assert code == 11
    assert "Redis at redis://127.0.0.1:1/0 does not answer" in said
    assert "secret" not in said


def test_missing_topic(deploy: Deploy) -> None:
    site = deploy(1)
    site.topic += "-nowhere"
    code, said = ended(site)
    assert code == 13
    assert f"topic '{site.topic}' does not exist" in said
    assert "vedette topics" in said


def test_missing_dead_letter_topic(deploy: Deploy) -> None:
    site = deploy(1)
    admin = KafkaAdminClient(bootstrap_servers=site.kafka)
    admin.delete_topics([site.topic + DEAD_SUFFIX])
    site.wait_until(lambda: site.topic + DEAD_SUFFIX not in admin.list_topics(), 20, "the topic to be gone")
    code, said = ended(site)
    ensure(KafkaSettings(bootstrap=site.kafka), site.topic, 1)
    admin.close()
    assert code == 13
    assert f"'{site.topic}.dead' does not exist" in said


def test_missing_bundle(deploy: Deploy) -> None:
    site = deploy(1)
    site.bundle = site.directory / "nothing"
    code, said = ended(site)
    assert code == 12
    assert "no bundle at" in said


def test_damaged_bundle(deploy: Deploy) -> None:
    site = deploy(1)
    site.bundle = site.directory / "damaged"
    site.bundle.write_text("{")
    code, said = ended(site)
    assert code == 12
    assert f"the bundle at {site.bundle} cannot be used" in said


def test_missing_secret(deploy: Deploy) -> None:
    site = deploy(1)
    code, said = ended(site, {"VEDETTE_PROBE_KEY": "abc"})
    assert code == 2
    assert "VEDETTE_PROBE_KEY: must hold 64 hex digits" in said


def test_taken_web_port(deploy: Deploy) -> None:
    import socket

    site = deploy(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        site.worker["web_port"] = taken.getsockname()[1]
        code, said = ended(site)
    assert code == 2
    assert "worker.web_port: cannot listen on 127.0.0.1:" in said


def test_topic_that_is_not_keyed_by_client(deploy: Deploy) -> None:
    site = deploy(2)
    for number, partition in itertools.product(range(20), range(2)):
        site.send(event(number), f"client-{number % 5}", partition)
    site.producer().flush()
    code, said = ended(site)
    assert code == 17
    assert f"{site.topic} is not keyed by client: of 5 clients" in said
    assert "5 have them in several partitions" in said
    assert not site.redis.keys("*")


def test_watermark_that_is_missing_although_the_group_has_committed(deploy: Deploy) -> None:
    site = deploy(1)
    site.traffic(0, 200)
    worker = site.start()
    site.wait_recorded(200)
    assert site.stop(worker) == 0
    site.redis.flushdb()
    code, said = ended(site)
    assert code == 15
    assert f"Redis holds no watermark of {site.topic}/0, but the group has committed offset 200" in said
    assert not site.redis.exists(site.keys().watermark)


@pytest.mark.parametrize("records", [10, 400], ids=["shorter", "longer"])
def test_topic_that_was_created_anew(deploy: Deploy, records: int) -> None:
    site = deploy(1)
    site.traffic(0, 200)
    worker = site.start()
    site.wait_recorded(200)
    assert site.stop(worker) == 0
    recreate(site, records)
    before = site.dump()
    code, said = ended(site)
    assert code == 14
    assert f"the topic {site.topic} was created anew" in said
    assert site.dump() == before


def test_topic_that_was_created_anew_is_known_by_its_last_record_where_there_are_no_topic_ids(deploy: Deploy) -> None:
    site = deploy(1)
    site.traffic(0, 200)
    worker = site.start()
    site.wait_recorded(200)
    site.stop(worker)
    identity = site.redis.hget(site.keys().watermark, "identity")
    assert identity.startswith(b"199:")
    site.redis.hdel(site.keys().watermark, "topic_id")
    worker = site.start({"WITHOUT_TOPIC_ID": "1"})
    site.traffic(200, 210)
    site.wait_recorded(210)
    site.stop(worker)
    recreate(site, 400)
    code, said = ended(site, {"WITHOUT_TOPIC_ID": "1"})
    assert code == 14
    assert f"the record at offset 209 of {site.topic}/0 is not the one that was recorded last" in said


def test_keys_of_a_newer_version(deploy: Deploy) -> None:
    site = deploy(1)
    site.redis.hset(site.keys().watermark, mapping={"w": 0, "epoch": 3, "layout": 99})
    code, said = ended(site)
    assert code == 11
    assert "has layout 99, and this version knows 1; update this worker" in said
    assert site.redis.hget(site.keys().watermark, "epoch") == b"3"


def test_bundle_in_force_of_another_digest_is_refused_while_running(deploy: Deploy) -> None:
    site = deploy(1)
    worker = site.start()
    site.wait_until(site.statuses, 90, "a status")
    wrong = save(site.directory / "wrong.json", width=4, classes=3, name="wrong")
    site.redis.hset(ModelKeys(MODEL).bundle, mapping={"path": str(wrong), "digest": "d" * 32, "from": "0"})
    site.wait_until(lambda: "is in force; bundle" in site.log().read_text(), 60, "the refusal")
    site.traffic(0, 50)
    site.wait_recorded(50)
    assert site.stop(worker) == 0


def test_stall_ends_the_process(deploy: Deploy) -> None:
    site = deploy(1, worker={"watchdog_seconds": 2.0})
    site.traffic(0, 200)
    worker = site.start({"HANG": "1"})
    assert worker.wait(150) == 16
    assert "has not moved for" in site.log().read_text()
    site.start()
    site.wait_recorded(200)
    assert site.audit().passed


def test_shutdown_that_hangs_is_cut_short(deploy: Deploy) -> None:
    site = deploy(1, worker={"shutdown_seconds": 1.0})
    site.traffic(0, 200)
    worker = site.start({"HANG": "1"})
    site.wait_until(lambda: site.statuses() and site.statuses()[0].lag == 200, 90, "the hang")
    assert site.stop(worker, signal.SIGTERM) == 1
    assert "is cut short" in site.log().read_text()


def test_health_of_a_stuck_worker_is_bad(deploy: Deploy) -> None:
    site = deploy(1, worker={"watchdog_seconds": 6.0})
    site.traffic(0, 200)
    site.start({"HANG": "1"})
    site.wait_until(lambda: site.get("/health")[0] == 503, 90, "a bad answer")
    body = json.loads(site.get("/health")[1])
    assert (body["status"], body["stuck"]) == ("stuck", [0])
