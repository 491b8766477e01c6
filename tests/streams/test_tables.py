from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from detectors.schema import Feature, FeatureSchema
from streams import tables
from streams.errors import ConfigError
from streams.events.identity import hash_clients

KEY = bytes(range(16))
SCHEMA = FeatureSchema((Feature("height"), Feature("width")), ("no", "yes"))
COLUMNS: dict[str, list[Any]] = {
    "height": [1.5, 2.5, 3.5, 4.5],
    "width": [1, 2, 3, 4],
    "label": ["yes", "no", "no", "yes"],
    "client": ["ann", None, "bob", "ann"],
    "time": [3.0, 1.0, 2.0, 4.0],
}


def written(path: Path, columns: dict[str, list[Any]]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


@pytest.fixture(params=["rows.parquet", "rows.pq", "rows.csv", "ROWS.CSV"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    target: Path = tmp_path / request.param
    if target.suffix == ".CSV":
        written(tmp_path / "rows.csv", COLUMNS).rename(target)
        return target
    return written(target, COLUMNS)


def test_columns_of_a_table_become_rows(path: Path) -> None:
    rows, schema = tables.read(path, None, KEY)
    assert schema.classes == ("no", "yes")
    assert [feature.name for feature in schema.features] == ["height", "width"]
    assert [feature.integral for feature in schema.features] == [False, True]
    np.testing.assert_array_equal(rows.inputs, [[1.5, 1], [2.5, 2], [3.5, 3], [4.5, 4]])
    assert rows.inputs.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(rows.labels, [1, 0, 0, 1])
    assert rows.labels.dtype == np.int32
    np.testing.assert_array_equal(rows.times, [3_000_000, 1_000_000, 2_000_000, 4_000_000])
    ann, bob = hash_clients([b"ann", b"bob"], KEY)
    np.testing.assert_array_equal(rows.clients, [ann, 0, bob, ann])


def test_events_of_a_file_come_in_order_of_time(path: Path) -> None:
    rows, _ = tables.read(path, None, KEY)
    batch = rows.batch()
    np.testing.assert_array_equal(batch.inputs[:, 0], [2.5, 3.5, 1.5, 4.5])
    np.testing.assert_array_equal(batch.times, [1_000_000, 2_000_000, 3_000_000, 4_000_000])
    np.testing.assert_array_equal(batch.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(batch.offsets, [0, 1, 2, 3])
    assert batch.clients[0] == 0
    reference = rows.reference()
    np.testing.assert_array_equal(reference.inputs, rows.inputs)


def test_given_schema_chooses_and_orders_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", {**COLUMNS, "colour": ["r", "g", "b", "r"]})
    schema = FeatureSchema((Feature("width"), Feature("height")), ("yes", "no"))
    rows, found = tables.read(path, schema, KEY)
    assert found is schema
    np.testing.assert_array_equal(rows.inputs[0], [1, 1.5])
    np.testing.assert_array_equal(rows.labels, [0, 1, 1, 0])


def test_scores_are_in_order_of_their_number_and_give_the_label(tmp_path: Path) -> None:
    outputs = {f"output_{k}": [0.0, 0.0] for k in range(12)}
    outputs["output_10"], outputs["output_2"] = [0.9, 0.1], [0.1, 0.9]
    rows, schema = tables.read(written(tmp_path / "rows.csv", {"x": [1.0, 2.0], **outputs}), None, KEY)
    np.testing.assert_array_equal(rows.labels, [10, 2])
    assert len(schema.classes) == 12
    assert rows.outputs is not None
    assert rows.outputs[0, 10] == 0.9


def test_times_may_be_iso_dates(tmp_path: Path) -> None:
    stamps = ["2026-01-02T03:04:05.000006Z", "2026-01-02T03:04:06Z"]
    path = written(tmp_path / "rows.csv", {"x": [1.0, 2.0], "label": [0, 1], "time": stamps})
    rows, _ = tables.read(path, None, KEY)
    assert rows.times[1] - rows.times[0] == 999_994


NOON = 1_767_355_200


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON, NOON + 1]),
        pa.array([NOON * 10**9 + 7, (NOON + 1) * 10**9 + 9], pa.timestamp("ns")),
        pa.array([NOON * 10**9 + 7, (NOON + 1) * 10**9 + 9], pa.timestamp("ns", "Europe/Berlin")),
        pa.array(["2026-01-02T12:00:00Z", "2026-01-02T12:00:01.000000700Z"]),
        pa.array(["2026-01-02 13:00:00+01:00", "2026-01-02 13:00:01+01:00"]),
        pa.array(["2026-01-02T12:00:00", "2026-01-02T12:00:01"]),
    ],
)
def test_times_are_read_in_every_way_data_frames_write_them(tmp_path: Path, suffix: str, times: Any) -> None:
    path = written(tmp_path / f"rows.{suffix}", {"x": [1.0, 2.0], "label": [0, 1], "time": times})
    np.testing.assert_array_equal(tables.read(path, None, KEY)[0].times, [NOON * 10**6, (NOON + 1) * 10**6])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("times", "told"),
    [
        ([1_767_355_200_000, 1_767_355_201_000], "row 0: 1767355200000 is no number of seconds since 1970"),
        ([1.0, None], "row 1: is empty"),
        (["2026-01-02T12:00:00Z", None], "is"),
        (["02.01.2026 12:00", "02.01.2026 12:01"], "neither ISO 8601 nor seconds since 1970; it begins with '02.01."),
        ([True, False], "neither ISO 8601 nor seconds"),
    ],
)
def test_times_that_are_something_else_are_refused(tmp_path: Path, suffix: str, times: list[Any], told: str) -> None:
    path = written(tmp_path / f"rows.{suffix}", {"x": [1.0, 2.0], "label": [0, 1], "time": times})
    with pytest.raises(ConfigError, match=r"column 'time'") as refused:
        tables.read(path, None, KEY)
    assert told in str(refused.value)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [False, True]])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_labels_may_be_floats_or_truth_values(tmp_path: Path, suffix: str, labels: list[Any]) -> None:
    path = written(tmp_path / f"rows.{suffix}", {"x": [1.0, 2.0], "label": labels})
    rows, schema = tables.read(path, None, KEY)
    assert schema.classes == ("0", "1")
    np.testing.assert_array_equal(rows.labels, [0, 1])


@pytest.mark.parametrize(
    ("classes", "labels", "places"),
    [
        (("1", "2", "3"), [1, 2, 3], [0, 1, 2]),  # only names
        (("3", "5"), [0, 1], [0, 1]),  # only places
        (("-1", "1"), [-1, 1], [0, 1]),
        (("0", "1"), [0, 1], [0, 1]),
        (("false", "true"), [False, True], [0, 1]),
    ],
)
def test_whole_numbers_are_names_or_places_of_classes(
    tmp_path: Path, classes: tuple[str, ...], labels: list[Any], places: list[int]
) -> None:
    schema = FeatureSchema((Feature("x"),), classes)
    path = written(tmp_path / "rows.parquet", {"x": [float(n) for n in range(len(labels))], "label": labels})
    np.testing.assert_array_equal(tables.read(path, schema, KEY)[0].labels, places)


def test_labels_that_could_be_names_or_places_are_refused(tmp_path: Path) -> None:
    schema = FeatureSchema((Feature("x"),), ("1", "0"))
    path = written(tmp_path / "rows.parquet", {"x": [1.0, 2.0], "label": [0, 1]})
    with pytest.raises(ConfigError, match="names of classes and places of others"):
        tables.read(path, schema, KEY)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"x": [1.0, 2.0], "label": ["a", "a"]}, "at least two classes, got 1; state one with --schema FILE"),
        ({"x": [1.0, 2.0], "label": [1, -1]}, "labels reach from -1 to 1"),
        ({"x": [1.0, 2.0], "label": [0, 5_000_000]}, "labels reach from 0 to 5000000"),
        ({"x": [1.0, 2.0], "output_0": [0.1, 0.2], "output_2": [0.9, 0.8]}, "without a gap; has output_0, output_2"),
        (
            {"x": [1.0, 2.0], "output_0": [0.1, None], "output_1": [0.9, 0.8]},
            "row 1 has neither a label nor all scores",
        ),
        ({"": [0, 1], "x": [1.0, 2.0], "label": [0, 1]}, "looks like the index of a data frame"),
        ({"x": [1.0, 2.0], "label": [0, 1], "truth": [0, 2]}, "row 1 has truth 2; the schema has 2 classes"),
        ({"x": [1.0, 2.0], "label": [0, 1], "output_0": [0.1, None], "output_1": [0.9, 0.8]}, "the scores of row 1"),
    ],
)
def test_what_no_schema_follows_from_is_told(tmp_path: Path, columns: dict[str, list[Any]], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        tables.read(written(tmp_path / "rows.parquet", columns), None, KEY)
    assert told in str(refused.value)


def test_labels_beyond_32_bits_are_no_classes(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", {**COLUMNS, "label": [2**32, 0, 0, 1]})
    with pytest.raises(ConfigError, match="row 0 has label 4294967296"):
        tables.read(path, SCHEMA, KEY)


def test_a_feature_may_be_called_like_a_score(tmp_path: Path) -> None:
    columns = {"output_voltage": [1.0, 2.0], "output_1": [3.0, 4.0], "label": [0, 1]}
    path = written(tmp_path / "rows.parquet", columns)
    schema = FeatureSchema((Feature("output_voltage"), Feature("output_1")), ("no", "yes"))
    rows, _ = tables.read(path, schema, KEY)
    np.testing.assert_array_equal(rows.inputs, [[1, 3], [2, 4]])
    assert rows.outputs is None
    del columns["output_1"]
    _, found = tables.read(written(path, columns), None, KEY)
    assert [feature.name for feature in found.features] == ["output_voltage"]


def test_the_index_of_a_data_frame_is_no_feature(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", {**COLUMNS, "__index_level_0__": [3, 1, 2, 0]})
    assert [feature.name for feature in tables.read(path, None, KEY)[1].features] == ["height", "width"]


def test_columns_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,x,label\n1,2,0\n")
    with pytest.raises(ConfigError, match="given twice: x"):
        tables.read(tmp_path / "rows.csv", None, KEY)


def test_clients_are_hashed_as_events_hash_them(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,label,client\n1,0,007\n2,1,7\n")
    np.testing.assert_array_equal(
        tables.read(tmp_path / "rows.csv", None, KEY)[0].clients, hash_clients([b"007", b"7"], KEY)
    )
    path = written(tmp_path / "rows.parquet", {"x": [1.0, 2.0], "label": [0, 1], "client": [17.0, float("nan")]})
    np.testing.assert_array_equal(tables.read(path, None, KEY)[0].clients, [hash_clients([b"17"], KEY)[0], 0])
    np.savez(tmp_path / "rows.npz", inputs=np.eye(2), labels=[0, 1], clients=["ann", "bob"])
    np.testing.assert_array_equal(
        tables.read(tmp_path / "rows.npz", None, KEY)[0].clients, hash_clients([b"ann", b"bob"], KEY)
    )


@pytest.mark.parametrize("name", ["17.0", "-3.0", "3.602879701896406e+16"])
def test_clients_that_pandas_made_floats_of_are_refused_in_csv(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"x,label,client\n1,0,{name}\n2,1,\n3,1,21.0\n")
    with pytest.raises(ConfigError, match=r"column 'client' holds '.*', and only such names: .*astype\('Int64'\)"):
        tables.read(path, None, KEY)
    path.write_text(f"x,label,client\n1,0,{name}\n2,1,\n3,1,ann\n")
    assert tables.read(path, None, KEY)[0].clients[0] == hash_clients([name.encode()], KEY)[0]
    path = written(tmp_path / "rows.parquet", {"x": [1.0, 2.0], "label": [0, 1], "client": [name, None]})
    assert tables.read(path, None, KEY)[0].clients[0] == hash_clients([name.encode()], KEY)[0]


def test_clients_beyond_what_floats_hold_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", {"x": [1.0, 2.0], "label": [0, 1], "client": [2.0**53, float("nan")]})
    with pytest.raises(ConfigError, match="column 'client' holds 9007199254740992 as a float"):
        tables.read(path, None, KEY)


def test_rows_without_clients_are_anonymous_and_without_times_keep_their_order(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", {"x": [1.0, 2.0, 3.0], "label": [0, 1, 0]})
    rows, _ = tables.read(path, None, KEY)
    assert not rows.clients.any()
    np.testing.assert_array_equal(rows.batch().inputs[:, 0], [1, 2, 3])


def test_true_classes_are_read_beside_labels(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", {"x": [1.0, 2.0], "label": ["a", "b"], "truth": ["b", "b"]})
    rows, _ = tables.read(path, None, KEY)
    assert rows.truth is not None
    np.testing.assert_array_equal(rows.truth, [1, 1])


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"height": [1.0], "label": ["yes"]}, "lacks feature columns: width"),
        ({"height": [1.0], "width": [1.0]}, "needs the model's answer"),
        ({"height": ["tall"], "width": [1.0], "label": ["yes"]}, "column 'height' is not numeric"),
        ({"height": [1.0], "width": [1.0], "label": ["maybe"]}, "column 'label' names a class that the schema lacks"),
        ({"height": [1.0], "width": [1.0], "label": [2]}, "row 0 has label 2; the schema has 2 classes"),
        ({"height": [1.0], "width": [1.0], "label": [-1]}, "row 0 has label -1"),
        (
            {"height": [1.0, float("nan")], "width": [1.0, 1.0], "label": [0, 0]},
            "row 1 holds a value that is not finite",
        ),
        ({"height": [1.0], "width": [None], "label": [0]}, "row 0 holds a value that is not finite"),
        ({"height": [1.0], "width": [1.0], "label": [None]}, "column 'label'"),
        ({"height": [1.0], "width": [1.0], "output_0": [0.5]}, "outputs have shape"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, columns: dict[str, list[Any]], told: str) -> None:
    types = {"width": pa.float64()} if columns.get("width") == [None] else {}
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    if columns.get("label") == [None]:
        table = table.set_column(table.column_names.index("label"), "label", pa.array([None], pa.int64()))
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ConfigError) as refused:
        tables.read(tmp_path / "rows.parquet", SCHEMA, KEY)
    assert told in str(refused.value)
    assert "rows.parquet" in str(refused.value)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([], pa.float64()), "label": pa.array([], pa.int64())})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="holds no rows"):
        tables.read(tmp_path / "rows.parquet", None, KEY)


@pytest.mark.parametrize("name", ["rows.xlsx", "rows"])
def test_unknown_kinds_are_refused_with_those_that_are_known(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ConfigError, match=r"use \.parquet, \.csv, \.npz or \.jsonl"):
        tables.read(tmp_path / name, None, KEY)


@pytest.mark.parametrize("name", ["rows.npz", "rows.csv", "rows.jsonl"])
def test_a_folder_is_no_file_of_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        tables.read(tmp_path / name, SCHEMA, KEY)


def test_names_of_columns_that_are_not_utf_8_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("gr\u00f6sse,label\n1,0\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        tables.read(tmp_path / "rows.csv", None, KEY)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_npz_files_that_are_none_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rows.npz"
    if content is None:
        with path.open("wb") as out:
            np.save(out, np.eye(2))
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        tables.read(path, SCHEMA, KEY)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.npz", "rows.csv"])
def test_damaged_and_missing_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        tables.read(tmp_path / name, None, KEY)
    (tmp_path / name).write_bytes(b"\x00\xff\x00")
    with pytest.raises(ConfigError, match=name):
        tables.read(tmp_path / name, None, KEY)


def test_arrays_become_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    inputs = np.arange(6, dtype=np.float32).reshape(3, 2)
    outputs = np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    np.savez(path, inputs=inputs, outputs=outputs, clients=np.array([5, 0, 5], np.uint64), times=np.array([3, 1, 2]))
    rows, schema = tables.read(path, None, KEY)
    assert schema.width == 2
    np.testing.assert_array_equal(rows.labels, [1, 0, 1])
    np.testing.assert_array_equal(rows.clients, [5, 0, 5])
    np.testing.assert_array_equal(rows.batch().times, [1, 2, 3])
    assert rows.inputs.dtype == np.float64


def test_large_client_hashes_survive_npz(tmp_path: Path) -> None:
    big = np.array([2**64 - 1, 2**63 + 1], dtype=np.uint64)
    np.savez(tmp_path / "rows.npz", inputs=np.zeros((2, 1)), labels=[0, 1], clients=big)
    rows, _ = tables.read(tmp_path / "rows.npz", None, KEY)
    np.testing.assert_array_equal(rows.clients, big)


def test_times_of_npz_may_be_dates(tmp_path: Path) -> None:
    times = np.array(["2026-01-02T12:00:00.000001"], "datetime64[ns]")
    np.savez(tmp_path / "rows.npz", inputs=np.eye(1), labels=[0], times=times)
    assert tables.read(tmp_path / "rows.npz", None, KEY)[0].times.tolist() == [NOON * 10**6 + 1]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": [0]}, "needs the arrays `inputs` and `labels` or `outputs`; has labels"),
        ({"inputs": [[1.0]]}, "has inputs"),
        ({"inputs": [1.0], "labels": [0]}, "inputs must be (rows, features)"),
        ({"inputs": [[1.0, 1.0]], "labels": [0], "clients": [1, 2]}, "`clients` has shape (2,) beside 1 rows"),
        ({"inputs": [[1.0, 1.0]], "labels": [0, 1]}, "`labels` has shape (2,) beside 1 rows"),
        ({"inputs": [[1.0, 1.0]], "outputs": [0.5]}, "outputs must be (rows, classes)"),
        ({"inputs": [[1.0, np.inf]], "labels": [0]}, "not finite"),
        ({"inputs": np.array([["a", "b"]]), "labels": [0]}, "`inputs` is not numeric"),
        ({"inputs": np.array([[None]], dtype=object), "labels": [0]}, "cannot be read"),
        ({"inputs": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "holds no rows"),
        ({"inputs": [[1.0, 1.0]], "labels": [0.5]}, "`labels` are whole numbers; row 0 holds 0.5"),
        ({"inputs": [[1.0, 1.0]], "labels": [np.nan]}, "`labels` are whole numbers; row 0 holds nan"),
        ({"inputs": [[1.0, 1.0]], "labels": [0], "truth": [9]}, "row 0 has truth 9"),
        ({"inputs": [[1.0, 1.0]], "labels": [0], "times": [np.nan]}, "`times` are whole microseconds"),
        ({"inputs": [[1.0, 1.0]], "outputs": [[np.nan, np.nan]]}, "row 0 has neither a label nor all scores"),
        ({"inputs": [[1.0, 1.0]], "labels": [0], "outputs": [[0.5, np.inf]]}, "the scores of row 0"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    np.savez(tmp_path / "rows.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    with pytest.raises(ConfigError) as refused:
        tables.read(tmp_path / "rows.npz", SCHEMA if "inputs" in arrays else None, KEY)
    assert told in str(refused.value)


def events(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_json_lines_are_native_events(tmp_path: Path) -> None:
    path = events(
        tmp_path / "events.jsonl",
        {"inputs": [1.0, 2.0], "outputs": [0.1, 0.9], "client": "ann"},
        "",
        {"inputs": [[3.0, 4.0], [5.0, 6.0]], "outputs": [[0.8, 0.2], [0.3, 0.7]], "client": "bob"},
    )
    rows, _ = tables.read(path, SCHEMA, KEY)
    np.testing.assert_array_equal(rows.inputs, [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(rows.labels, [1, 0, 1])
    ann, bob = hash_clients([b"ann", b"bob"], KEY)
    np.testing.assert_array_equal(rows.clients, [ann, bob, bob])
    np.testing.assert_array_equal(rows.batch().inputs, rows.inputs)


def test_json_lines_are_read_in_chunks_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "JSONL_CHUNK_RECORDS", 3)
    path = events(tmp_path / "events.ndjson", *({"inputs": [float(n), 0.0], "label": n % 2} for n in range(8)))
    rows, _ = tables.read(path, SCHEMA, KEY)
    np.testing.assert_array_equal(rows.inputs[:, 0], np.arange(8))
    assert rows.outputs is None


def test_scores_of_some_json_lines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "JSONL_CHUNK_RECORDS", 2)
    bare = [{"inputs": [float(n), 0.0], "label": 1} for n in range(3)]
    path = events(tmp_path / "events.jsonl", *bare, {"inputs": [3.0, 0.0], "outputs": [0.1, 0.9]})
    outputs = tables.read(path, SCHEMA, KEY)[0].outputs
    assert outputs is not None
    np.testing.assert_array_equal(outputs, [[np.nan] * 2] * 3 + [[0.1, 0.9]])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"inputs": [1.0', "line 2: not-decodable"),
        ({"inputs": [1.0], "label": 0}, "line 2: wrong-shape"),
        ({"inputs": [1.0, 2.0], "label": 7}, "line 2: label-out-of-range"),
        ({"label": 0}, "line 2: missing-field"),
        ({"inputs": [1.0, 2.0], "label": 0, "time": 5}, "line 2: has a time although earlier lines have none"),
        ({"inputs": [1.0, 2.0], "label": 0, "time": True}, "line 2: time: Expected"),
        ({"inputs": [1.0, 2.0], "label": 0, "time": 1767355200000}, "line 2: time: 1767355200000 is no number of"),
        ({"inputs": [1.0, 2.0], "label": 0, "time": 1e300}, "line 2: time: 1e+300 is no number of"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: dict[str, Any] | str, told: str) -> None:
    path = events(tmp_path / "events.jsonl", {"inputs": [1.0, 2.0], "label": 0}, line)
    with pytest.raises(ConfigError) as refused:
        tables.read(path, SCHEMA, KEY)
    assert f"events.jsonl, {told}" in str(refused.value)


def test_json_lines_need_a_schema_and_events(tmp_path: Path) -> None:
    path = events(tmp_path / "events.jsonl", "")
    with pytest.raises(ConfigError, match="pass --schema FILE"):
        tables.read(path, None, KEY)
    with pytest.raises(ConfigError, match="holds no events"):
        tables.read(path, SCHEMA, KEY)


def test_schema_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA.to_dict()))
    assert tables.read_schema(path) == SCHEMA


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"features": [], "classes": ["a", "b"]}', '{"feature": 1}'])
def test_wrong_schema_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"schema\.json"):
        tables.read_schema(path)
    with pytest.raises(ConfigError, match=r"none\.json"):
        tables.read_schema(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"features": ["x"]}, 'write an object with its name, as {"name": "age"}'),
        ({"features": [{"name": 7}]}, "feature 0 is"),
        ({"features": [{"name": "x", "low": "a"}]}, "low is 'a'; it must be a number or null"),
        ({"features": [{"name": "x", "high": float("nan")}]}, "high is nan"),
        ({"features": [{"name": "x", "integral": "yes"}]}, "integral is 'yes'; it must be true or false"),
        ({"classes": "ab"}, "`classes` is 'ab'; it must be a list"),
        ({"classes": ["a", "a"]}, "classes must have names of their own"),
    ],
)
def test_what_a_schema_must_not_hold_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"features": [{"name": "x"}], "classes": ["a", "b"], **change}))
    with pytest.raises(ConfigError) as refused:
        tables.read_schema(path)
    assert told in str(refused.value)


def test_constant_columns_are_not_called_whole_numbers() -> None:
    schema = tables.infer_schema(np.array([[1.0, 0.0], [2.0, 0.0]]), ["a", "b"], ["0", "1"])
    assert [feature.integral for feature in schema.features] == [True, False]


WITH_EMBEDDING = replace(SCHEMA, embedding_width=2)
LISTS: list[Any] = [[1.0, 2.0], None, [5.0, 6.0], [7.0, 8.0]]
NUMBERS = [[1.0, 2.0], [np.nan] * 2, [5.0, 6.0], [7.0, 8.0]]


def embedded_file(path: Path) -> Path:
    if path.suffix == ".npz":
        inputs = np.column_stack([COLUMNS["height"], COLUMNS["width"]])
        np.savez(path, inputs=inputs, labels=[1, 0, 0, 1], times=[3, 1, 2, 4], embeddings=NUMBERS)
        return path
    if path.suffix == ".jsonl":
        events = [
            {"inputs": [h, w], "label": label, "time": time, "embedding": layer}
            for h, w, label, time, layer in zip(
                *(COLUMNS[name] for name in ("height", "width", "label", "time")), LISTS, strict=True
            )
        ]
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        return path
    return written(path, {**COLUMNS, "embedding": LISTS})


@pytest.mark.parametrize("name", ["rows.parquet", "rows.npz", "rows.jsonl"])
def test_embeddings_come_along_where_the_schema_states_them(tmp_path: Path, name: str) -> None:
    path = embedded_file(tmp_path / name)
    rows, _ = tables.read(path, WITH_EMBEDDING, KEY)
    np.testing.assert_array_equal(rows.embeddings, NUMBERS)
    np.testing.assert_array_equal(rows.reference().embeddings, NUMBERS)
    np.testing.assert_array_equal(rows.batch().embeddings, np.array(NUMBERS)[[1, 2, 0, 3]])
    assert tables.read(path, SCHEMA, KEY)[0].embeddings is None
    if path.suffix != ".jsonl":
        found, schema = tables.read(path, None, KEY)
        assert found.embeddings is None
        assert (schema.width, schema.embedding_width) == (2, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], None, [5.0], [7.0, 8.0]], "row 2 has an embedding of 1 values; 2 are expected"),
        ([[1.0, 2.0], None, [5.0, None], [7.0, 8.0]], "the embedding of row 2 holds a value that is not finite"),
        ([["a", "b"]] * 4, "column 'embedding' does not hold lists of numbers"),
        ([1.0, 2.0, 3.0, 4.0], "column 'embedding' is of double, not of lists of 2 numbers"),
        (["[1.0 2.0]"] * 4, "column 'embedding' is of string, not of lists of 2 numbers"),
    ],
)
def test_embeddings_of_a_table_that_do_not_fit_are_named(tmp_path: Path, values: list[Any], message: str) -> None:
    path = written(tmp_path / "rows.parquet", {**COLUMNS, "embedding": values})
    with pytest.raises(ConfigError, match=message):
        tables.read(path, WITH_EMBEDDING, KEY)


def test_embeddings_of_an_npz_file_that_do_not_fit_are_named(tmp_path: Path) -> None:
    arrays = {"inputs": np.ones((3, 2)), "labels": [0, 1, 0]}
    for embeddings, message in (
        (np.ones((3, 5)), r"embeddings have shape \(3, 5\), expected \(3, 2\)"),
        (np.ones((2, 2)), r"embeddings have shape \(2, 2\), expected \(3, 2\)"),
        ([[1, 2], [np.nan, 2], [3, 4]], "the embedding of row 1 holds a value that is not finite"),
    ):
        np.savez(tmp_path / "rows.npz", **arrays, embeddings=embeddings)
        with pytest.raises(ConfigError, match=message):
            tables.read(tmp_path / "rows.npz", WITH_EMBEDDING, KEY)


def test_a_column_of_numbers_called_embedding_is_a_feature(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", {**COLUMNS, "embedding": [1.0, 2.0, 3.0, 4.0]})
    _, schema = tables.read(path, None, KEY)
    assert [feature.name for feature in schema.features] == ["height", "width", "embedding"]


def test_parts_without_vectors_are_rows_of_nan_among_others() -> None:
    one, other = np.ones((2, 3)), np.zeros((1, 3))
    np.testing.assert_array_equal(
        tables.stacked([one, None, other], [2, 1, 1]), np.concatenate([one, np.full((1, 3), np.nan), other])
    )
    assert tables.stacked([None, None], [2, 1]) is None
