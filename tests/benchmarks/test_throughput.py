from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pytest

from benchmarks import throughput, wire
from benchmarks.report import Figure, Target, finish, median_figure
from benchmarks.throughput import TARGETS, Count, figures
from benchmarks.traffic import CLASSES, FEATURES, WALK_ROWS, Events, Traffic
from benchmarks.worker import CLIENT_KEY, MODEL, Pace, WorkerFailed, _stages, _verify
from streams.audit import count_rows
from streams.doctor.sampling import SampledRecord
from streams.events import decoder
from streams.events.batch import DecodeOptions, InferenceBatch


def decoded(records: list[wire.Encoded], schema: Any, form: str = "auto") -> InferenceBatch:
    options = DecodeOptions(MODEL, schema, "key", CLIENT_KEY)
    given = [SampledRecord(0, n, 0, r.key or None, r.value, tuple(r.headers)) for n, r in enumerate(records)]
    return decoder(form).decode(given, options)


@pytest.mark.parametrize("form", ["native", "oip", "compact"])
def test_every_format_carries_the_same_events(form: str) -> None:
    traffic = Traffic(1)
    events = traffic.events(70, 20)
    if form == "oip":  # a record is one client's
        events = Events(events.inputs, events.outputs, np.repeat(events.clients[::32], 32)[:70])
    records = list(throughput.encoded(form, events, 32))
    batch = decoded(records, traffic.schema)
    assert not batch.dead
    assert sum(record.rows for record in records) == len(batch) == 70
    assert sum(count_rows(record.value, record.headers)[0] for record in records) == 70
    np.testing.assert_allclose(batch.inputs, events.inputs, atol=1e-5)
    assert batch.outputs is not None
    np.testing.assert_allclose(batch.outputs, events.outputs, atol=1e-5)
    native = decoded(list(wire.native(events, MODEL)), traffic.schema)
    np.testing.assert_array_equal(batch.clients, native.clients)


def test_single_rows_have_the_stated_size_and_agree_with_their_own_codec() -> None:
    traffic = Traffic(1)
    records = list(wire.native(traffic.events(50, 10_000), MODEL))
    assert {len(record.value) for record in records} == {wire.JSON_BYTES}
    assert {len(json.loads(record.value)["inputs"]) for record in records} == {FEATURES}
    np.testing.assert_array_equal(
        decoded(records, traffic.schema).inputs, decoded(records, traffic.schema, "native").inputs
    )


def test_source_coordinates_of_compact_records_grow() -> None:
    traffic = Traffic(1)
    records = [
        *wire.compact(traffic.warm(10, 2), MODEL, 8, CLIENT_KEY),
        *wire.compact(traffic.events(9, 10), MODEL, 4, CLIENT_KEY, 20),
    ]
    batch = decoded(records, traffic.schema)
    assert batch.source_offsets is not None
    assert np.all(np.diff(batch.source_offsets) > 0)


def test_every_client_is_warm_and_walkers_are_new_clients_close_to_themselves() -> None:
    traffic = Traffic(1)
    warm = traffic.warm(100, 2)
    assert np.all(np.bincount(warm.clients) == 2)
    events = traffic.with_walkers(4000, 100, 10)
    walks = events.clients >= 100
    assert 9 * WALK_ROWS < np.count_nonzero(walks) <= 10 * WALK_ROWS, "two walkers may want the same place"
    for walker in range(100, 110):
        rows = events.inputs[events.clients == walker]
        assert len(rows) > WALK_ROWS // 2
        near = np.linalg.norm(np.diff(rows, axis=0), axis=1)
        assert np.median(near) < 0.2 * np.median(np.linalg.norm(np.diff(events.inputs[~walks], axis=0), axis=1))


def test_traffic_is_a_function_of_its_seed() -> None:
    first, second = Traffic(3).events(50, 10), Traffic(3).events(50, 10)
    np.testing.assert_array_equal(first.inputs, second.inputs)
    assert first.outputs.shape == (50, CLASSES)
    assert not np.array_equal(first.inputs, Traffic(4).events(50, 10).inputs)


def pace(rows: float, cpu: float) -> Pace:
    return Pace(rows, rows, {"process": cpu, "decode": 1.0, "score": 5.0}, 1.0, 300.0)


def test_every_target_has_its_figure_and_ratios_are_paired_by_repetition() -> None:
    bare = {kind: [Count(5_000, 160.0), Count(2_500, 160.0)] for kind in (*throughput.FAUST_KINDS, "getmany")}
    paces = {form: [pace(50_000, 20.0), pace(25_000, 20.0)] for form in ("native", "oip", "compact")}
    waited = {"latencies_ms": list(np.linspace(10, 110, 101))}
    found = {figure.name: figure for figure in figures(bare, paces, waited, np.random.default_rng(0))}
    assert {target.figure for target in TARGETS} <= set(found)
    ratio = found["ratio_worker_vs_faust_agent"]
    assert (ratio.value, ratio.low, ratio.high) == (10.0, 10.0, 10.0), "a slow moment slows both alike"
    assert found["ratio_cpu_worker_vs_faust_agent"].value == 8.0
    assert found["signal_latency_p50_ms"].value == 60.0
    assert found["signal_latency_p99_ms"].value == 109.0


def test_stages_are_those_between_two_looks() -> None:
    def metrics(rows: float, decode: float) -> dict[str, float]:
        return {"vedette_rows_total{outcome=scored}": rows, "vedette_stage_cpu_seconds_total{stage=decode}": decode}

    assert _stages(metrics(1000, 1.0), metrics(3000, 1.006)) == {"decode": pytest.approx(3.0)}
    _verify(metrics(5, 0.0))
    with pytest.raises(WorkerFailed, match="invalid"):
        _verify({**metrics(5, 0.0), "vedette_rows_total{outcome=invalid}": 1.0})


@pytest.mark.parametrize(
    ("check", "value", "code"), [(True, 7.9, 1), (True, 8.0, 0), (False, 7.9, 0), (True, float("nan"), 1)]
)
def test_check_fails_when_a_target_is_missed(
    check: bool, value: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(json=True, check=check)
    assert finish(options, [Figure("ratio", value)], [Target("ratio", ">=", 8.0)], {"sizes": 1}) == code
    document = json.loads(capsys.readouterr().out)
    assert document["context"] == {"sizes": 1}
    assert document["targets"][0]["met"] is (value >= 8.0)


def test_intervals_hold_the_median() -> None:
    figure = median_figure("x", [1.0, 2.0, 3.0, 4.0, 100.0], np.random.default_rng(0))
    assert figure.value == 3.0
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= 3.0 <= figure.high
