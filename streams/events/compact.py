"""Vedette's compact record: one Arrow IPC stream, rows of one model and one partition (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.events.assembly import PROBE_REQUEST_PREFIX, assemble
from streams.events.batch import DecodeOptions, InferenceBatch, Reason, Record
from streams.events.refusal import Refusal, quoted
from streams.events.rows import EMBEDDING, Faults, Layout, Rows, add_faults, settle

#: First bytes of an Arrow IPC stream: the continuation marker.
MARKER = b"\xff\xff\xff\xff"
#: Its last bytes. Arrow's readers can do without; here it shows that no batch was cut off.
END = MARKER + bytes(4)
#: The version of the record that this reader knows, in the schema's metadata.
VERSION_KEY, VERSION = b"vedette.version", b"1"
MODEL_KEY = b"model"

_REQUIRED = {
    "source_partition": pa.int32(),
    "source_offset": pa.int64(),
    "source_row": pa.int32(),
    "time": pa.timestamp("us", "UTC"),
    "client": pa.uint64(),
}
_OPTIONAL = {"request_id": pa.string(), "label": pa.int32()}
_CLAIM = PROBE_REQUEST_PREFIX.encode("ascii")
_VECTORS = ("inputs", "outputs", EMBEDDING)
# Slots of flatbuffers tables, by the order of their fields in Arrow's format/Message.fbs, and a value of an enum there.
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _DICTIONARY_DATA, _BATCH_COMPRESSION = 1, 2, 1, 3
_DICTIONARY_BATCH = 2
_SOURCES = ("source_partition", "source_offset", "source_row")


class CompactCodec:
    """Arrow IPC stream, many rows a record, clients hashed already."""

    name = "compact"

    def decode(self, records: Sequence[Record], options: DecodeOptions) -> InferenceBatch:
        return assemble(records, options, read)


def read(record: Record, value: bytes, layout: Layout) -> Rows:
    """The rows of one record.

    Raises
    ------
    Refusal
    """
    if not value.startswith(MARKER):
        raise Refusal(Reason.NOT_DECODABLE, "not an Arrow IPC stream: it does not begin with the continuation marker")
    if not value.endswith(END):
        raise Refusal(Reason.NOT_DECODABLE, "the Arrow IPC stream does not end with its end-of-stream marker")
    try:
        batches = _batches(value, layout)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as wrong:
        raise Refusal(Reason.NOT_DECODABLE, f"not a sound Arrow IPC stream: {_first_line(wrong)}") from None
    if not batches:
        raise Refusal(Reason.EMPTY, "the stream holds no row")
    return _rows({name: [batch[name] for batch in batches] for name in batches[0]}, layout)


def _batches(value: bytes, layout: Layout) -> list[dict[str, Any]]:
    """The columns that are read, batch by batch.

    Arrow's stream reader is safe with bytes from strangers, but takes what it should not: a compressed body says by
    itself how much memory it wants, so a small record could ask for all there is; bytes behind the end would be lost.
    So the messages are looked at first. Writers repeat themselves, so what was found out about a message is kept.
    """
    source = pa.BufferReader(value)
    start = b""
    for message in pa.ipc.MessageReader.open_stream(source):
        described = message.metadata.to_pybytes()
        start = start or described
        if described not in layout.uncompressed:
            if message.type in ("record batch", "dictionary") and _is_compressed(memoryview(described)):
                raise Refusal(Reason.NOT_DECODABLE, "the stream's bodies are compressed; let Kafka compress instead")
            layout.uncompressed.add(described)
    if source.tell() != len(value):
        raise Refusal(Reason.NOT_DECODABLE, "bytes stand behind the end of the Arrow IPC stream")
    with pa.ipc.open_stream(pa.py_buffer(value)) as stream:
        places = layout.schemas.get(start)
        if places is None:
            places = layout.schemas[start] = _columns(stream.schema, layout)
        batches = [batch for batch in stream if batch.num_rows]
        layout.check_rows(sum(batch.num_rows for batch in batches))
        return [_checked(batch, places) for batch in batches]


def _first_line(error: Exception) -> str:
    return quoted((str(error) or type(error).__name__).splitlines()[0])


def _is_compressed(metadata: memoryview) -> bool:
    """Whether the message's RecordBatch table has the field `compression` (Arrow's format/Message.fbs)."""
    message = int.from_bytes(metadata[:4], "little")
    batch = _field(metadata, message, _MESSAGE_HEADER)
    if batch and metadata[_field(metadata, message, _MESSAGE_HEADER_TYPE)] == _DICTIONARY_BATCH:
        batch = _follow(metadata, batch)
        batch = _field(metadata, batch, _DICTIONARY_DATA)
    if not batch:
        return False
    return _field(metadata, _follow(metadata, batch), _BATCH_COMPRESSION) != 0


def _follow(data: memoryview, at: int) -> int:
    return at + int.from_bytes(_span(data, at, 4), "little")


def _field(data: memoryview, table: int, slot: int) -> int:
    """Where a field of a flatbuffers table stands; 0 when it is absent."""
    vtable = table - int.from_bytes(_span(data, table, 4), "little", signed=True)
    entry = 4 + 2 * slot
    if entry >= int.from_bytes(_span(data, vtable, 2), "little"):
        return 0
    offset = int.from_bytes(_span(data, vtable + entry, 2), "little")
    return table + offset if offset else 0


def _span(data: memoryview, at: int, size: int) -> memoryview:
    if at < 0 or at + size > len(data):
        raise ValueError("an offset leads out of the message")
    return data[at : at + size]


def _columns(schema: pa.Schema, layout: Layout) -> dict[str, int]:
    """Place of each column that is read, after its type and the stream's metadata have been checked."""
    metadata = schema.metadata or {}
    version = metadata.get(VERSION_KEY)
    if version is None:
        raise Refusal(Reason.MISSING_FIELD, "the schema's metadata lack 'vedette.version'")
    if version != VERSION:
        shown = quoted(version.decode("utf-8", "replace"))
        raise Refusal(
            Reason.UNKNOWN_VERSION, f"version {shown} of compact records is unknown; known: {VERSION.decode()}"
        )
    model = metadata.get(MODEL_KEY)
    if model is None:
        raise Refusal(Reason.MISSING_FIELD, "the schema's metadata lack 'model'")
    layout.check_model(model.decode("utf-8", "replace"))
    places: dict[str, int] = {}
    kinds = dict(zip(schema.names, schema.types, strict=True))
    for place, name in enumerate(schema.names):
        if name not in _REQUIRED and name not in _OPTIONAL and name not in _VECTORS:
            continue
        if name == EMBEDDING and layout.embedding_width is None:
            continue
        if name in places:
            raise Refusal(Reason.DUPLICATE_KEY, f"the column {name!r} stands twice in the stream")
        places[name] = place
    for name, kind in (_REQUIRED | _OPTIONAL).items():
        if name in places and kinds[name] != kind:
            raise Refusal(Reason.WRONG_TYPE, f"column {name!r} is of {kinds[name]}, not {kind}")
    for name, width in (("inputs", layout.width), ("outputs", layout.k), (EMBEDDING, layout.embedding_width)):
        if name in places and width is not None:
            _check_vectors(kinds[name], name, width)
    lacking = [name for name in (*_REQUIRED, "inputs") if name not in places]
    if lacking:
        raise Refusal(Reason.MISSING_FIELD, f"the stream lacks the column {lacking[0]!r}")
    return places


def _check_vectors(kind: Any, name: str, width: int) -> None:
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in (pa.float32(), pa.float64()):
        shown = quoted(str(kind))
        raise Refusal(Reason.WRONG_TYPE, f"column {name!r} is of {shown}, not a fixed-size list of float or double")
    if kind.list_size != width:
        detail = f"column {name!r} has {kind.list_size} values a row; {width} are expected"
        raise Refusal(Reason.WRONG_SHAPE, detail)


def _checked(batch: pa.RecordBatch, places: dict[str, int]) -> dict[str, Any]:
    """The columns that are read; their buffers are verified, for they come from strangers."""
    columns = {name: batch.column(place) for name, place in places.items()}
    for column in columns.values():
        column.validate(full=True)
    return columns


def _rows(columns: dict[str, list[Any]], layout: Layout) -> Rows:
    faults: Faults = {}
    client, _ = _values(columns["client"])
    sources = []
    for name in _SOURCES:
        values, valid = _values(columns[name])
        if valid is not None:
            add_faults(faults, np.flatnonzero(~valid), Reason.MISSING_FIELD, f"{name!r} is null")
        if values.min() < 0:
            add_faults(faults, np.flatnonzero(values < 0), Reason.WRONG_TYPE, f"{name!r} is below 0")
        sources.append(values)
    inputs, present = _vectors(columns["inputs"], layout.width, "inputs", faults)
    if present is not None:
        add_faults(faults, np.flatnonzero(~present), Reason.MISSING_FIELD, "'inputs' are null")
    outputs = scored = labels = stated = None
    if "outputs" in columns:
        outputs, scored = _vectors(columns["outputs"], layout.k, "outputs", faults)
        if scored is not None and not scored.any():
            outputs = scored = None
    if "label" in columns:
        labels, stated = _values(columns["label"])
    embeddings = embedded = None
    if layout.embedding_width is not None and EMBEDDING in columns:
        embeddings, embedded = _vectors(columns[EMBEDDING], layout.embedding_width, "embeddings", faults)
        if embedded is not None and not embedded.any():
            embeddings = embedded = None
    rows = settle(layout, inputs, outputs, scored, labels, stated, faults, embeddings, embedded)
    if rows.places is not None:
        client = client[rows.places]
        sources = [values[rows.places] for values in sources]
    rows.clients = client
    rows.sources = (sources[0], sources[1], sources[2])
    if "request_id" in columns:
        rows.claims = _claims(columns["request_id"], rows.places, sources[0], sources[1])
    return rows


def _values(chunks: list[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """A column's values (n,), 0 where it is null, and which are there, if not all."""
    if not any(chunk.null_count for chunk in chunks):
        return _joined([chunk.to_numpy() for chunk in chunks]), None
    values = _joined([chunk.fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks])
    return values, _valid(chunks)


def _vectors(chunks: list[Any], width: int, what: str, faults: Faults) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """A column of fixed-size lists as (n, width), 0 where it is null, and which rows are there, if not all."""
    flat = [chunk.values.slice(chunk.offset * width, len(chunk) * width) for chunk in chunks]
    values, filled = _values(flat)
    rows = values.reshape(-1, width)
    if not any(chunk.null_count for chunk in chunks):
        there = None
    else:
        there = _valid(chunks)
        rows = np.where(there[:, None], rows, 0)
    if filled is not None:
        holes = ~filled.reshape(-1, width).all(axis=1)
        if there is not None:
            holes &= there
        add_faults(faults, np.flatnonzero(holes), Reason.WRONG_TYPE, f"{what} hold null where a number belongs")
    return rows, there


def _valid(chunks: list[Any]) -> NDArray[np.bool_]:
    return _joined([chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in chunks])


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _claims(
    chunks: list[Any], places: NDArray[np.int32] | None, partitions: NDArray[np.int32], offsets: NDArray[np.int64]
) -> tuple[tuple[str, int, int], ...]:
    """Runs of rows of one source record under one front-door id."""
    if not any(_may_claim(chunk) for chunk in chunks):
        return ()
    texts = [text for chunk in chunks for text in chunk.to_pylist()]
    if places is not None:
        texts = [texts[place] for place in places.tolist()]
    identities = list(zip(texts, partitions.tolist(), offsets.tolist()))
    claims = []
    start = 0
    for stop in range(1, len(texts) + 1):
        if stop < len(texts) and identities[stop] == identities[start]:
            continue
        text = texts[start]
        if text is not None and text.startswith(PROBE_REQUEST_PREFIX):
            claims.append((text, start, stop))
        start = stop
    return tuple(claims)


def _may_claim(chunk: Any) -> bool:
    """Whether a front-door id may be among the texts; one byte is searched for first, which is much faster."""
    buffer = chunk.buffers()[2]
    if buffer is None:
        return False
    texts = buffer.to_pybytes()
    return _CLAIM[:1] in texts and _CLAIM in texts
