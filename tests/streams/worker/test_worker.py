"""Worker processes on real Kafka and Redis: every row is accounted for, whatever happens to the process."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from detectors.kernels import siphash
from streams.errors import UnreadableRecord
from streams.incidents.repeaters import Repeaters
from streams.store.hours import unpack_hour
from streams.store.keys import ModelKeys
from streams.worker.tally import BUCKETS
from tests.streams.worker.conftest import CLASSES, CLIENT_KEY, MODEL, WIDTH, Deployment, event
from tests.streams.worker.counting import PAGE_AT, TICKET_EVERY, save

Deploy = Callable[..., Deployment]


def test_every_row_is_accounted_for(deploy: Deploy) -> None:
    site = deploy(3)
    site.traffic(0, 1500)
    site.send(None, "client-1")
    site.send(event(0, inputs=[[1.0] * WIDTH] * 5, outputs=[[0.1, 0.9, 0.0]] * 5), "client-2")
    worker = site.start()
    site.wait_recorded(1500)
    site.traffic(1500, 2000)
    report = site.audit()
    assert report.passed, report.to_dict()
    assert report.rows == 2000 + 1 + 5
    assert report.total("invalid") == 2000 // 61 + 1 + 1
    totals = site.totals()
    assert totals["anonymous"] == sum(n % 53 == 0 and n % 61 != 0 for n in range(2000))
    assert totals["signals"] == sum(len(site.signals(p)) for p in range(3))
    assert totals["signals"] == totals["tickets"] + totals["pages"]
    assert totals["pages"] > 0
    assert site.stop(worker) == 0


def test_counters_by_minute_and_hour_add_up_and_histograms_hold_every_row(deploy: Deploy) -> None:
    site = deploy(1)
    site.traffic(0, 800)
    site.start()
    site.wait_recorded(800)
    totals = site.totals()
    for kind in ("minute", "hour"):
        sums: dict[str, int] = {}
        for key in site.redis.scan_iter(f"{site.keys().tag}:{kind}:*"):
            assert site.redis.ttl(key) > 3600
            for name, count in site.redis.hgetall(key).items():
                sums[name.decode()] = sums.get(name.decode(), 0) + int(count)
        assert sums == totals
    histograms = site.redis.hgetall(site.keys().histograms)
    hours = [histograms.pop(name) for name in sorted(histograms) if name.startswith(b"hour:")]
    counted = sum(int(found[1][0].sum()) for packed in hours if (found := unpack_hour(packed)) is not None)
    assert counted == totals["scored"] - totals.get("anonymous", 0)
    assert set(histograms) == {b"count", b"sum", b"fused"}
    for packed in histograms.values():
        counts = np.frombuffer(packed, dtype="<u4")
        assert len(counts) == BUCKETS
        assert counts.sum() == totals["scored"]


def test_signals_are_named_by_where_they_happened(deploy: Deploy) -> None:
    site = deploy(1)
    for number in range(50):
        site.send(event(number), "one")
    site.producer().flush()
    site.start()
    site.wait_recorded(50)
    signals = site.signals()
    topic_id = site.redis.hget(site.keys().watermark, "topic_id").decode()
    assert [s.offset for s in signals] == [n - 1 for n in range(TICKET_EVERY, 51, TICKET_EVERY)]
    assert [s.id for s in signals] == [f"{topic_id}/0/{s.offset}/0/{s.rule}" for s in signals]
    assert [s.level for s in signals].count("page") == 1
    page = next(s for s in signals if s.level == "page")
    assert (page.offset, page.rule, page.pilot, page.model) == (PAGE_AT - 1, "query-intent", False, MODEL)
    assert page.clients == [page.entity_id]
    assert page.at >= page.time


def test_pages_of_a_pilot_and_of_approved_repeaters_are_tickets(deploy: Deploy) -> None:
    site = deploy(1)
    site.redis.set(ModelKeys(MODEL).mode, "pilot")
    for number in range(30):
        site.send(event(number), "one")
    site.producer().flush()
    site.start()
    site.wait_recorded(30)
    assert {s.level for s in site.signals()} == {"ticket"}
    assert [s.offset for s in site.signals() if s.pilot] == [PAGE_AT - 1]
    assert site.totals()["pilot_pages"] == 1
    assert "pages" not in site.totals()
    site.redis.set(ModelKeys(MODEL).mode, "paging")
    site.wait_until(lambda: "paging mode" in site.log().read_text().split("pilot mode")[-1], 60, "the switch")
    for number in range(30):
        site.send(event(number), "two")
    site.producer().flush()
    site.wait_recorded(60)
    assert [s.level for s in site.signals()].count("page") == 1
    desk, now = Repeaters(site.redis, ModelKeys(MODEL)), time.time_ns() // 1000
    client = f"{siphash.hash_bytes(CLIENT_KEY, b'three'):016x}"
    desk.propose(client, "ada", now + 3_600_000_000, "a sensor")
    desk.approve(client, "bob")
    site.wait_until(lambda: "approved as repeaters: 1" in site.log().read_text(), 60, "the approval")
    for number in range(30):
        site.send(event(number), "three")
    site.producer().flush()
    site.wait_recorded(90)
    assert [(s.level, s.offset - 60) for s in site.signals() if s.repeater] == [("ticket", PAGE_AT - 1)]
    assert (site.totals()["repeater_pages"], site.totals()["pages"]) == (1, 1)


def test_killed_worker_leaves_the_same_as_an_undisturbed_one(deploy: Deploy) -> None:
    """Every key of every partition, the state included, and that after two kills at chance places."""
    site = deploy(2, worker={"max_batch_rows": 40, "snapshot_seconds": 0.05})
    records = site.traffic(0, 4000)
    worker = site.start()
    site.wait_recorded(records)
    site.wait_snapshot()
    assert site.stop(worker) == 0
    undisturbed = site.dump()
    assert all(undisturbed[f"{{{site.topic}:{p}}}:signals"] for p in range(2))

    site.redis.flushdb()
    site.group += "-again"
    for part in (1 / 3, 2 / 3):
        worker = site.start()
        site.wait_recorded(int(records * part))
        site.wait_until(lambda: any(site.snapshot(p) for p in range(2)), 60, "a snapshot")
        site.stop(worker, signal.SIGKILL)
    assert site.recorded() < records, "the kills came too late to prove anything"
    site.start()
    site.wait_recorded(records)
    site.wait_snapshot()
    assert "with the snapshot at" in site.log().read_text()
    assert site.dump() == undisturbed
    assert site.audit().passed


def test_state_is_built_from_the_log_where_no_snapshot_is_usable(deploy: Deploy) -> None:
    site = deploy(1, worker={"snapshot_seconds": 600.0})
    site.traffic(0, 1000)
    worker = site.start()
    site.wait_recorded(1000)
    site.stop(worker, signal.SIGKILL)
    assert not site.redis.exists(site.keys().snapshots)
    site.start()
    site.traffic(1000, 1500)
    site.wait_recorded(1500)
    assert "without a usable snapshot" in site.log().read_text()
    once = site.dump()
    site.close()
    site.redis.flushdb()
    site.group += "-again"
    site.start()
    site.wait_recorded(1500)
    assert site.dump() == once


def test_damaged_snapshot_is_passed_over(deploy: Deploy) -> None:
    site = deploy(1)
    site.traffic(0, 600)
    worker = site.start()
    site.wait_recorded(600)
    site.wait_snapshot()
    site.stop(worker, signal.SIGKILL)
    for key in site.redis.scan_iter(f"{site.keys().tag}:chunk:*"):
        site.redis.setrange(key, 0, b"x")
    site.start()
    site.traffic(600, 700)
    site.wait_recorded(700)
    said = site.log().read_text()
    assert "is damaged" in said
    assert "its state is built from offset 0" in said
    assert site.audit().passed


def test_two_workers_share_and_hand_over(deploy: Deploy) -> None:
    site = deploy(4, worker={"max_batch_rows": 40})
    records = site.traffic(0, 3000)
    first = site.start()
    site.wait_recorded(500)
    site.start()
    site.wait_until(lambda: sorted(len(s.partitions) for s in site.statuses()) == [2, 2], 90, "two halves")
    records += site.traffic(3000, 5000)
    assert site.stop(first) == 0
    site.wait_recorded(records)
    site.wait_until(lambda: [len(s.partitions) for s in site.statuses()] == [4], 90, "one worker for all")
    report = site.audit()
    assert report.passed, report.to_dict()
    site.wait_snapshot()
    shared = site.dump()
    site.close()
    site.redis.flushdb()
    site.group += "-again"
    site.start()
    site.wait_recorded(records)
    site.wait_snapshot()
    assert site.dump() == shared


def test_a_snapshot_that_failed_is_written_although_nothing_more_comes(deploy: Deploy) -> None:
    site = deploy(1, worker={"snapshot_seconds": 3.0})
    records = site.traffic(0, 200)
    site.start()
    site.wait_recorded(records)
    try:
        site.redis.execute_command("ACL", "SETUSER", "default", "-set")  # what writes chunks, and nothing else
        site.wait_until(lambda: "no permissions" in site.log().read_text(), 30, "the refusal")
        time.sleep(1.0)
        assert site.snapshot() is None
    finally:
        site.redis.execute_command("ACL", "SETUSER", "default", "+set")
    site.wait_snapshot()


def test_dead_letters_keep_bytes_headers_and_reason(deploy: Deploy) -> None:
    site = deploy(1)
    site.send(b"\x00\xffbroken", "one", headers=[("x-trace", b"abc")])
    rows = [[1.0] * WIDTH, [1e999] * WIDTH, [2.0] * WIDTH]
    site.send(event(1, inputs=rows, outputs=[[0.1, 0.9, 0.0]] * 3), "one")
    site.send(event(2, inputs=[1.0]), "one")
    site.send(event(3), "one")
    site.producer().flush()
    site.start()
    site.wait_recorded(4)
    report = site.audit()
    assert report.passed, report.to_dict()
    letters = {dict(record.headers)["vedette-source"].decode(): record for record in site.dead()}
    whole = letters[f"{site.topic}/0/0"]
    assert (whole.value, whole.key) == (b"\x00\xffbroken", b"one")
    headers = dict(whole.headers)
    assert headers["x-trace"] == b"abc"
    assert (headers["vedette-rows"], headers["vedette-reason"]) == (b"*", b"not-decodable")
    assert headers["vedette-detail"]
    assert dict(letters[f"{site.topic}/0/2"].headers)["vedette-reason"] == b"wrong-shape"
    assert f"{site.topic}/0/3" not in letters


def test_a_changed_number_of_features_degrades_with_a_clear_log(deploy: Deploy) -> None:
    site = deploy(1)
    for number in range(20):
        site.send(event(number, inputs=[1.0] * (WIDTH + 1)), "one")
    site.producer().flush()
    site.start()
    site.wait_recorded(20)
    assert site.totals()["invalid"] == 20
    said = site.log().read_text()
    assert "every event of the last fetch is a dead letter" in said
    assert "wrong-shape" in said
    status, text = site.get("/metrics")
    assert status == 200
    assert 'vedette_dead_letters_total{model="digits",reason="wrong-shape"} 20' in text
    for number in range(5):
        site.send(event(number), "one")
    site.producer().flush()
    site.wait_recorded(25)
    assert site.totals()["scored"] == 5


def test_metrics_health_and_status_tell_how_it_stands(deploy: Deploy) -> None:
    site = deploy(2)
    site.traffic(0, 500)
    worker = site.start()
    site.wait_recorded(500)
    site.wait_until(lambda: site.statuses() and site.statuses()[0].rows == 500, 60, "the status to follow")
    (status,) = site.statuses()
    assert status.partitions == [0, 1]
    assert status.lag == 0
    assert status.rss_bytes > 10_000_000
    assert status.web.startswith("127.0.0.1:")
    code, text = site.get("/health")
    assert (code, json.loads(text)["status"]) == (200, "ok")
    code, text = site.get("/metrics")
    assert 'vedette_records_total{model="digits"} 500' in text
    assert "vedette_record_seconds_bucket" in text
    assert site.stop(worker) == 0
    assert site.statuses() == []


def test_a_new_bundle_decides_from_an_offset_that_a_replay_finds_again(deploy: Deploy) -> None:
    site = deploy(1)
    site.traffic(0, 500)
    worker = site.start()
    site.wait_recorded(500)
    old = site.redis.hget(site.keys().watermark, "bundle")
    path = save(site.directory / "next.json", width=WIDTH, classes=CLASSES, name="next")
    digest = _digest(path)
    site.redis.hset(ModelKeys(MODEL).bundle, mapping={"path": str(path), "digest": digest, "from": "0"})
    site.wait_until(lambda: (s := site.statuses()) and s[0].bundle == digest, 60, "the worker to load it")
    site.traffic(500, 900)
    site.wait_recorded(900)
    stored = site.redis.hgetall(site.keys().watermark)
    assert (stored[b"bundle"], stored[b"bundle_from"]) == (digest.encode(), b"500")
    assert old != stored[b"bundle"]
    assert {s.bundle for s in site.signals() if s.offset >= 500} == {digest}
    site.wait_snapshot()
    state = site.snapshot()
    site.stop(worker, signal.SIGKILL)
    site.redis.delete(site.keys().snapshots)
    site.start()
    site.wait_until(lambda: "has caught up" in site.log().read_text(), 90, "the replay")
    assert "its state is built from offset 500" in site.log().read_text()
    site.traffic(900, 901)
    site.wait_recorded(901)
    site.wait_snapshot()
    again = site.snapshot()
    assert again[0] == 901
    assert again[1]["real.keys"] == state[1]["real.keys"]
    assert site.audit().passed


def _digest(path: Any) -> str:
    from tests.streams.worker.counting import load

    return load(path).digest


def test_markers_of_transactions_are_passed(deploy: Deploy) -> None:
    """They take offsets and are no records; the watermark reaches the topic's end all the same."""
    site = deploy(1)
    producer = KafkaProducer(bootstrap_servers=site.kafka, transactional_id=site.topic)
    producer.init_transactions()
    for first in (0, 10):
        producer.begin_transaction()
        for number in range(first, first + 10):
            producer.send(site.topic, value=event(number), key=b"one", partition=0)
        producer.commit_transaction()
    producer.close()
    site.start()
    site.wait_recorded(22)
    assert site.totals()["records"] == 20
    report = site.audit()
    assert report.passed, report.to_dict()
    site.traffic(20, 30)
    site.wait_recorded(32)
    assert site.totals()["records"] == 30


def test_records_that_the_broker_threw_away_unread_are_told_and_counted(deploy: Deploy) -> None:
    site = deploy(1)
    site.traffic(0, 200)
    worker = site.start()
    site.wait_recorded(200)
    site.wait_snapshot()
    site.stop(worker)
    site.traffic(200, 500)
    admin = KafkaAdminClient(bootstrap_servers=site.kafka)
    admin.delete_records({TopicPartition(site.topic, 0): 350})
    admin.close()
    site.start()
    site.wait_recorded(500)
    totals = site.totals()
    assert (totals["expired"], totals["records"]) == (150, 350)
    assert "the broker threw away 150 records before they were read, up to offset 350" in site.log().read_text()
    assert 'vedette_expired_records_total{model="digits"} 150' in site.get("/metrics")[1]


def test_a_record_of_too_many_rows_is_one_invalid_row(deploy: Deploy) -> None:
    site = deploy(1, worker={"max_record_rows": 5})
    for rows in (5, 6, 1):
        site.send(event(0, inputs=[[1.0] * WIDTH] * rows, outputs=[[0.1, 0.9, 0.0]] * rows), "one")
    site.producer().flush()
    site.start()
    site.wait_recorded(3)
    report = site.audit()
    assert report.passed, report.to_dict()
    assert (report.rows, report.total("scored"), report.total("invalid")) == (7, 6, 1)
    assert dict(site.dead()[0].headers)["vedette-reason"] == b"too-large"


class _NotUtf8(str):
    """A header's name that producers send as bytes that are no UTF-8."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def test_a_record_that_the_client_cannot_take_apart_ends_the_worker_with_its_place(deploy: Deploy) -> None:
    """Nothing before it is lost, and deleting it as the sentence says lets the next worker go on."""
    site = deploy(2)
    for number in range(60):
        site.send(event(number), "one", partition=0)
        site.send(event(number), "two", partition=1)
    site.send(event(60), "one", partition=0, headers=[(_NotUtf8("name"), b"value")])
    for number in range(61, 65):
        site.send(event(number), "one", partition=0)
    site.producer().flush()
    for number in range(65, 70):
        site.send(event(number), "one", partition=0)
    site.producer().flush()
    worker = site.start()
    assert worker.wait(90) == UnreadableRecord.exit_code
    told = site.log().read_text()
    assert f"the first record of {site.topic}/0 from offset 60 on cannot be read" in told
    assert site.watermark(0) == 60
    with pytest.raises(UnreadableRecord, match="cannot be read"):
        site.audit(0)
    behind = int(re.search(r"records before offset (\d+) with", told)[1])  # depends on what the producer sent together
    assert 60 < behind <= 70
    admin = KafkaAdminClient(bootstrap_servers=site.kafka)
    admin.delete_records({TopicPartition(site.topic, 0): behind})
    admin.close()
    site.start()
    site.wait_recorded(70 + 60, 40)
    totals = site.totals()
    assert (totals["expired"], totals["records"]) == (behind - 60, 130 - (behind - 60))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_soon_and_cleanly(deploy: Deploy, how: signal.Signals) -> None:
    site = deploy(1)
    site.traffic(0, 300)
    worker = site.start()
    site.wait_recorded(100)
    assert site.stop(worker, how) == 0
    assert site.statuses() == []
    messages = [msgspec.json.decode(m) for m in site.redis.hvals(ModelKeys(MODEL).workers)]
    assert messages == []


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_compressed_records_are_read_by_the_worker_and_the_audit(deploy: Deploy, codec: str) -> None:
    site = deploy(1)
    with KafkaProducer(bootstrap_servers=site.kafka, compression_type=codec) as producer:
        for number in range(50):
            producer.send(site.topic, event(number), key=b"one", partition=0)
    site.start()
    site.wait_recorded(50)
    assert site.totals()["scored"] == 50
    assert site.audit().passed
