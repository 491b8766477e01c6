"""Vedette's compact record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streams.events import decoder
from streams.events.batch import InferenceBatch, Reason
from tests.streams.events.encoders import (
    MODEL,
    Event,
    Sent,
    assert_sound,
    compact_columns,
    compact_stream,
    hashed,
    options_for,
    vectors,
)

R = Reason
KNOWN = {"vedette.version": "1", "model": MODEL}
EVENT = Event(np.arange(12.0).reshape(4, 3), np.tile([0.25, 0.75], (4, 1)), np.array([0, 1, 0, 1]))


def stream(metadata: dict[str, str] | None = None, batches: int = 1, **columns: Any) -> bytes:
    whole = {name: column for name, column in (compact_columns(EVENT) | columns).items() if column is not None}
    return compact_stream(whole, KNOWN if metadata is None else metadata, batches)


def read(value: bytes, name: str = "compact") -> InferenceBatch:
    options = options_for(3, 2)
    batch = decoder(name).decode([Sent(9, value)], options)
    assert_sound(batch, options)
    return batch


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("batches", [1, 2, 4])
def test_columns_are_read(kind: Any, batches: int) -> None:
    batch = read(compact_stream(compact_columns(EVENT, kind), KNOWN, batches))
    assert batch.inputs.tolist() == EVENT.inputs.tolist()
    assert batch.labels.tolist() == [0, 1, 0, 1]
    assert batch.clients.tolist() == [hashed("somebody")] * 4
    assert batch.source_partitions is not None and batch.source_offsets is not None and batch.source_rows is not None
    assert batch.source_partitions.tolist() == [3] * 4
    assert batch.source_offsets.tolist() == [100, 101, 102, 103]
    assert batch.source_rows.tolist() == [0, 1, 2, 3]
    assert batch.times.tolist() == [1_700_000_000_000_000] * 4


def test_clients_are_taken_row_by_row_and_null_is_nobody() -> None:
    clients = pa.array([5, None, 2**64 - 1, 0], pa.uint64())
    assert read(stream(client=clients)).clients.tolist() == [5, 0, 2**64 - 1, 0]


def test_unknown_columns_are_ignored() -> None:
    words = pa.array(["a", "b", "a", None]).dictionary_encode()
    more = {"embedding": vectors(np.ones((4, 5)), pa.float32()), "latency_ms": pa.array([1.5] * 4, pa.float32())}
    nested = pa.array([{"a": [1]}, None, {"a": []}, {"a": None}])
    assert len(read(stream(words=words, nested=nested, nothing=pa.nulls(4), **more))) == 4


def test_embeddings_may_be_null_row_by_row() -> None:
    column = pa.FixedSizeListArray.from_arrays(
        pa.array([1.0, 2.0, 0.0, 0.0, 5.0, None, 7.0, 8.0], pa.float32()), 2, mask=pa.array([False, True, False, False])
    )
    options = options_for(3, 2, embedding=2)
    batch = decoder("compact").decode([Sent(9, stream(embedding=column))], options)
    assert_sound(batch, options)
    assert batch.rows.tolist() == [0, 1, 3]
    assert batch.embeddings is not None
    assert batch.embeddings[[0, 2]].tolist() == [[1, 2], [7, 8]]
    assert np.isnan(batch.embeddings[1]).all()
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(R.WRONG_TYPE, (2,))]
    nothing = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 8), 2, mask=pa.array([True] * 4))
    assert decoder("compact").decode([Sent(9, stream(embedding=nothing))], options).embeddings is None
    (letter,) = decoder("compact").decode([Sent(9, stream(embedding=pa.array([1.0] * 4)))], options).dead
    assert letter.reason == R.WRONG_TYPE


def test_labels_and_outputs_may_lack() -> None:
    assert read(stream(label=None)).labels.tolist() == [1] * 4
    batch = read(stream(outputs=None))
    assert batch.outputs is None
    assert batch.labels.tolist() == [0, 1, 0, 1]
    batch = read(stream(label=pa.array([0, None, None, 1], pa.int32())))
    assert batch.labels.tolist() == [0, 1, 1, 1]
    some = pa.FixedSizeListArray.from_arrays(pa.array([0.1, 0.9, 0, 0] * 2), 2, mask=pa.array([False, True] * 2))
    batch = read(stream(outputs=some, label=pa.array([0, 0, None, None], pa.int32())))
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.outputs is not None
    assert np.isnan(batch.outputs[1]).all()
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(R.MISSING_FIELD, (3,))]


def test_nulls_refuse_their_row_alone() -> None:
    masked = pa.FixedSizeListArray.from_arrays(
        pa.array([1.0, None, 3.0, *range(9)], pa.float64()), 3, mask=pa.array([False, False, False, True])
    )
    batch = read(stream(inputs=masked, source_row=pa.array([0, 1, None, 3], pa.int32())))
    assert batch.rows.tolist() == [1]
    assert {(letter.reason, letter.rows) for letter in batch.dead} == {(R.WRONG_TYPE, (0,)), (R.MISSING_FIELD, (2, 3))}
    assert batch.source_offsets is not None
    assert batch.source_offsets.tolist() == [101]


@pytest.mark.parametrize("name", ["source_partition", "source_offset", "source_row"])
def test_source_coordinates_are_not_negative(name: str) -> None:
    column = pa.array([0, -1, 2, 3], compact_columns(EVENT)[name].type)
    batch = read(stream(**{name: column}))
    assert batch.rows.tolist() == [0, 2, 3]
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(R.WRONG_TYPE, (1,))]


@pytest.mark.parametrize("batches", [1, 2])
def test_rows_under_one_front_door_id_are_one_candidate(batches: int) -> None:
    ids = pa.array(["vp1.a", "vp1.a", "vp1.a", None], pa.string())
    batch = read(stream(request_id=ids, source_offset=pa.array([7, 7, 8, 8], pa.int64()), batches=batches))
    assert batch.marks.tolist() == [0, 0, 1, -1]
    assert [candidate.request_id for candidate in batch.requests] == ["vp1.a", "vp1.a"]
    assert batch.requests[0].client == hashed("somebody").to_bytes(8, "little")
    assert read(stream(request_id=ids, client=pa.nulls(4, pa.uint64()))).requests[0].client is None


def test_a_request_id_of_a_refused_row_moves_no_mark() -> None:
    ids = pa.array([None, "vp1.a", "vp1.b", "other"], pa.string())
    labels = pa.array([9, 0, 0, 0], pa.int32())
    batch = read(stream(request_id=ids, label=labels))
    assert batch.rows.tolist() == [1, 2, 3]
    assert batch.marks.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metadata": {}}, R.MISSING_FIELD),
        ({"metadata": {"vedette.version": "1"}}, R.MISSING_FIELD),
        ({"metadata": {"vedette.version": "2", "model": MODEL}}, R.UNKNOWN_VERSION),
        ({"metadata": {"vedette.version": "", "model": MODEL}}, R.UNKNOWN_VERSION),
        ({"metadata": {"vedette.version": "1", "model": "other"}}, R.UNDECLARED_MODEL),
        *(({name: None}, R.MISSING_FIELD) for name in ("inputs", "client", "time")),
        *(({name: None}, R.MISSING_FIELD) for name in ("source_partition", "source_offset", "source_row")),
        ({"client": pa.array(["a"] * 4)}, R.WRONG_TYPE),
        ({"client": pa.array([1] * 4, pa.int64())}, R.WRONG_TYPE),
        ({"time": pa.array([1] * 4, pa.timestamp("ms", "UTC"))}, R.WRONG_TYPE),
        ({"time": pa.array([1] * 4, pa.timestamp("us"))}, R.WRONG_TYPE),
        ({"label": pa.array([1] * 4, pa.int64())}, R.WRONG_TYPE),
        ({"request_id": pa.array([1] * 4)}, R.WRONG_TYPE),
        ({"inputs": pa.array([1.0] * 4)}, R.WRONG_TYPE),
        ({"inputs": pa.array([[1.0, 2.0, 3.0]] * 4)}, R.WRONG_TYPE),
        ({"inputs": vectors(np.ones((4, 3)), pa.int32())}, R.WRONG_TYPE),
        ({"inputs": vectors(np.ones((4, 3)), pa.float16())}, R.WRONG_TYPE),
        ({"inputs": vectors(np.ones((4, 4)), pa.float32())}, R.WRONG_SHAPE),
        ({"outputs": vectors(np.ones((4, 3)), pa.float32())}, R.WRONG_SHAPE),
        ({"outputs": pa.array([1.0] * 4)}, R.WRONG_TYPE),
    ],
)
def test_a_stream_that_is_none_of_ours_is_refused(change: dict[str, Any], reason: Reason) -> None:
    for name in ("compact", "auto"):
        batch = read(stream(**change), name)
        assert len(batch) == 0
        assert [(letter.reason, letter.rows) for letter in batch.dead] == [(reason, None)]
        assert batch.dead[0].detail.isascii()


def test_a_column_that_stands_twice_is_refused() -> None:
    columns = compact_columns(EVENT)
    names, arrays = [*columns, "label"], [*columns.values(), columns["label"]]
    schema = pa.schema([(name, array.type) for name, array in zip(names, arrays, strict=True)], metadata=KNOWN)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    assert read(sink.getvalue().to_pybytes()).dead[0].reason == R.DUPLICATE_KEY


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_body_is_refused_before_it_asks_for_memory(codec: str) -> None:
    for columns in (
        compact_columns(EVENT),
        compact_columns(EVENT) | {"words": pa.array(["a" * 1000, "b", "a", None]).dictionary_encode()},
    ):
        batch = read(compact_stream(columns, KNOWN, compression=codec))
        assert [letter.reason for letter in batch.dead] == [R.NOT_DECODABLE]
        assert "compressed" in batch.dead[0].detail


def test_a_stream_without_rows_is_refused() -> None:
    columns = {name: column.slice(0, 0) for name, column in compact_columns(EVENT).items()}
    assert [letter.reason for letter in read(compact_stream(columns, KNOWN)).dead] == [R.EMPTY]


def test_truncated_and_prolonged_streams_are_refused() -> None:
    value = stream(batches=2)
    for broken in (*(value[:length] for length in range(4, len(value), 3)), value + b"\0", value + value):
        assert [letter.reason for letter in read(broken).dead] == [R.NOT_DECODABLE]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_streams_never_raise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = pa.array(["a", "b", "a", None]).dictionary_encode()
    value = np.frombuffer(stream(words=words), dtype=np.uint8)
    for _ in range(400):
        damaged = value.copy()
        at = rng.integers(0, len(value), rng.integers(1, 5))
        damaged[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, *rng.integers(0, 256, 3)], len(at))
        batch = read(damaged.tobytes())
        assert len(batch) + len(batch.dead) > 0
