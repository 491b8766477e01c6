"""Probes and re-delivered rows, on a real worker."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from streams.models.marked import CLIENT, Marks
from streams.probes import marks
from tests.streams.worker.conftest import CLASSES, MODEL, PROBE_KEY, WIDTH, Deployment, event
from tests.streams.worker.counting import PAGE_AT, TICKET_EVERY

Deploy = Callable[..., Deployment]
CAMPAIGN = bytes(range(8))


def now_us() -> int:
    return time.time_ns() // 1000


def send_probe(site: Deployment, counter: int, client: str = "probe", issued: int | None = None) -> tuple[bytes, bytes]:
    """A record with a header mark; returns its value and its mark."""
    value = event(counter)
    issued = now_us() if issued is None else issued
    mark = marks.sign_header(PROBE_KEY, site.topic, 0, CAMPAIGN, counter, issued, client.encode(), value)
    site.send(value, client, 0, [(marks.HEADER, mark)])
    return value, mark


def front_door(site: Deployment, counter: int, client: str, inputs: list[float], issued: int | None = None) -> bytes:
    """A native event as the endpoint would log it."""
    rows = np.array([inputs])
    issued = now_us() if issued is None else issued
    name = marks.sign_request(PROBE_KEY, site.topic, CAMPAIGN, counter, issued, client.encode(), rows)
    return json.dumps({"id": name, "model": MODEL, "inputs": inputs, "outputs": [0.2, 0.7, 0.1]}).encode()


def test_probes_get_verdicts_and_leave_traffic_as_it_was(deploy: Deploy) -> None:
    site = deploy(1)
    for number in range(10):
        site.send(event(number), "probe")  # an ordinary client of the same name
    for counter in range(PAGE_AT + 2):
        send_probe(site, counter)
    for number in range(10, 14):
        site.send(event(number), "probe")
    site.producer().flush()
    site.start()
    site.wait_recorded(14 + PAGE_AT + 2)
    totals = site.totals()
    assert (totals["probes"], totals["scored"], totals["rows"]) == (PAGE_AT + 2, 14, 16 + PAGE_AT)
    assert "probes_excluded" not in totals
    # The client's own history saw 14 rows: two tickets, no page, whatever the probes did.
    assert [s.statistic for s in site.signals()] == [TICKET_EVERY, 2 * TICKET_EVERY]
    said = site.verdicts()
    assert [v.probe for v in said] == [marks.probe_id(CAMPAIGN, n) for n in range(PAGE_AT + 2)]
    assert {v.status for v in said} == {"scored"}
    assert [v.level for v in said].index(2) == PAGE_AT - 1
    assert said[PAGE_AT - 1].ratio == 1.0
    assert said[4].pvalues["count"] == 1 / 5
    assert all(v.at >= v.time > v.issued - 1_000_000 for v in said)
    assert site.redis.hlen(site.keys().probe_uses) == PAGE_AT + 2
    assert site.audit().passed


def test_marks_that_are_expired_replayed_or_wrong(deploy: Deploy) -> None:
    site = deploy(1)
    value, mark = send_probe(site, 0)
    site.send(value, "probe", 0, [(marks.HEADER, mark)])  # the whole record again: replayed
    send_probe(site, 1, issued=0)  # an aside: valid and long expired
    site.send(value, "mallory", 0, [(marks.HEADER, mark)])  # under another account
    site.send(event(5), "mallory", 0, [(marks.HEADER, b"v1.nonsense")])
    inputs = [0.25, 0.5, 0.75, 1.0]
    body = front_door(site, 7, "anna", inputs)
    site.send(body, "anna", 0)
    site.send(body, "anna", 0)
    site.send(front_door(site, 8, "anna", inputs, issued=0), "anna", 0)
    site.send(body, "bob", 0)
    site.producer().flush()
    site.start()
    site.wait_recorded(9)
    totals = site.totals()
    assert (totals["probes"], totals["probes_excluded"]) == (2, 4)
    assert (totals["scored"], totals["invalid_marks"]) == (3, 3)
    statuses = [(v.offset, v.status) for v in site.verdicts()]
    assert statuses == [
        (0, "scored"),
        (1, "replayed"),
        (2, "expired"),
        (5, "scored"),
        (6, "replayed"),
        (7, "expired"),
    ]
    excluded = [v for v in site.verdicts() if v.status != "scored"]
    assert all((v.level, v.ratio, v.pvalues) == (0, 0.0, {}) for v in excluded)
    assert site.audit().passed


def test_questions_of_the_escalation_tier_are_in_no_history(deploy: Deploy) -> None:
    site = deploy(1)
    ids = Marks(PROBE_KEY, site.topic)
    for number in range(PAGE_AT + 4):
        inputs = [0.01 * number, 0.5, 0.75, 1.0]
        logged = {"id": ids(np.array([inputs])), "model": MODEL, "inputs": inputs, "outputs": [0.2, 0.7, 0.1]}
        site.send(json.dumps(logged).encode(), CLIENT, 0)
        if number % 5 == 0:
            site.send(event(number), CLIENT, 0)  # somebody else of that name
    site.producer().flush()
    site.start()
    site.wait_recorded(PAGE_AT + 4 + 5)
    totals = site.totals()
    assert (totals["probes_excluded"], totals["scored"]) == (PAGE_AT + 4, 5)
    assert "invalid_marks" not in totals
    assert site.signals() == []
    assert site.audit().passed


def test_a_replay_after_a_kill_judges_probes_the_same(deploy: Deploy) -> None:
    site = deploy(1, worker={"max_batch_rows": 10})
    copies = []
    for counter in range(60):
        copies.append((*send_probe(site, counter), "probe"))
        site.send(event(counter), "real")
        if counter % 4 == 3:
            value, mark, client = copies[counter // 2]
            site.send(value, client, 0, [(marks.HEADER, mark)])
    site.producer().flush()
    records = 60 * 2 + 15
    worker = site.start()
    site.wait_recorded(records)
    site.wait_snapshot()
    site.stop(worker)
    once = site.dump()
    site.redis.flushdb()
    site.group += "-again"
    worker = site.start()
    site.wait_recorded(40)
    site.stop(worker, signal.SIGKILL)
    site.start()
    site.wait_recorded(records)
    site.wait_snapshot()
    assert site.dump() == once
    assert site.totals()["probes_excluded"] == 15


def compact(rows: list[tuple[int, int, int]], client: int) -> bytes:
    """A compact record with these source coordinates."""
    n = len(rows)
    values = pa.array([0.5] * (n * WIDTH), pa.float64())
    outputs = pa.array([0.2, 0.7, 0.1] * n, pa.float32())
    columns = {
        "source_partition": pa.array([r[0] for r in rows], pa.int32()),
        "source_offset": pa.array([r[1] for r in rows], pa.int64()),
        "source_row": pa.array([r[2] for r in rows], pa.int32()),
        "time": pa.array([now_us()] * n, pa.timestamp("us", "UTC")),
        "client": pa.array([client] * n, pa.uint64()),
        "inputs": pa.FixedSizeListArray.from_arrays(values, WIDTH),
        "outputs": pa.FixedSizeListArray.from_arrays(outputs, CLASSES),
    }
    table = pa.table(columns)
    metadata = {b"vedette.version": b"1", b"model": MODEL.encode(), b"model_version": b"1"}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def test_rows_that_were_delivered_again_are_counted_and_not_scored(deploy: Deploy) -> None:
    site = deploy(1, format="compact", worker={"max_batch_rows": 8})
    first = compact([(0, offset, row) for offset in range(5) for row in range(2)], 7)
    second = compact([(1, offset, 0) for offset in range(4)], 8)
    overlap = compact([(0, offset, row) for offset in range(3, 8) for row in range(2)], 7)
    for value in (first, second, first, overlap, second):
        site.send(value, "key", 0)
    site.producer().flush()
    worker = site.start()
    site.wait_recorded(5)
    totals = site.totals()
    assert (totals["rows"], totals["scored"], totals["duplicates"]) == (38, 20, 18)
    report = site.audit()
    assert report.passed, report.to_dict()
    site.wait_snapshot()
    site.stop(worker)
    site.start()  # the coordinates stand in the snapshot
    site.send(overlap, "key", 0)
    site.producer().flush()
    site.wait_recorded(6)
    assert site.totals()["duplicates"] == 28
    assert site.audit().passed
