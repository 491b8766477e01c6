"""Writers of every wire format that share nothing with the codecs, and what a batch must then hold."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.kernels.siphash import hash_bytes
from detectors.schema import Feature, FeatureSchema
from streams.events.batch import DecodeOptions, InferenceBatch

CLIENT_KEY = bytes(range(16))
MODEL = "digits"
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Sent:
    """A Kafka record as a consumer hands it out."""

    offset: int
    value: bytes | None
    timestamp: int = 1_700_000_000_000
    key: bytes | None = b"somebody"
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True)
class Event:
    """The rows of one record: inputs (n, d), outputs (n, k) or None, labels (n,) or None, embeddings (n, e) or None."""

    inputs: NDArray[Any]
    outputs: NDArray[Any] | None = None
    labels: NDArray[Any] | None = None
    client: str | None = "somebody"
    request_id: str | None = None
    model: str | None = MODEL
    extra: dict[str, Any] = field(default_factory=dict)
    embeddings: NDArray[Any] | None = None


def options_for(
    width: int, classes: int, client: str = "key", model: str = MODEL, embedding: int | None = None, **more: Any
) -> DecodeOptions:
    schema = FeatureSchema(
        tuple(Feature(f"f{i}") for i in range(width)),
        tuple(f"class {i}" for i in range(max(classes, 2))),
        embedding_width=embedding,
    )
    return DecodeOptions(model, schema, client, CLIENT_KEY, **more)


def hashed(client: str | bytes | None) -> int:
    """The id of a client by the reference of one string."""
    if not client:
        return 0
    return hash_bytes(CLIENT_KEY, client.encode() if isinstance(client, str) else client) or 1


# --- native --------------------------------------------------------------------------------------------------------


def native_fields(event: Event, many: bool | None = None) -> dict[str, Any]:
    """The JSON object of an event; one row is written flat unless `many`."""
    many = len(event.inputs) > 1 if many is None else many

    def shaped(values: NDArray[Any]) -> Any:
        return values.tolist() if many else values[0].tolist()

    fields: dict[str, Any] = {}
    if event.request_id is not None:
        fields["id"] = event.request_id
    if event.model is not None:
        fields["model"] = event.model
    if event.client is not None:
        fields["client"] = event.client
    fields["inputs"] = shaped(event.inputs)
    if event.outputs is not None:
        fields["outputs"] = shaped(event.outputs)
    if event.labels is not None:
        fields["label"] = shaped(event.labels)
    if event.embeddings is not None:
        fields["embedding"] = shaped(event.embeddings)
    return fields | event.extra


def native(event: Event) -> tuple[bytes, Headers]:
    return json.dumps(native_fields(event), separators=(",", ":")).encode(), ()


def native_list(event: Event) -> tuple[bytes, Headers]:
    return json.dumps(native_fields(event, many=True), indent=1).encode(), ()


def native_base64(event: Event) -> tuple[bytes, Headers]:
    fields = native_fields(event, many=True)
    for name, values in (("inputs", event.inputs), ("outputs", event.outputs), ("embedding", event.embeddings)):
        if values is not None:
            raw = np.ascontiguousarray(values, dtype="<f8")
            data = base64.b64encode(raw.tobytes()).decode()
            fields[name] = {"shape": list(raw.shape), "dtype": "float64", "data": data}
    return json.dumps(fields).encode(), ()


# --- Open Inference Protocol ---------------------------------------------------------------------------------------

Headers = Sequence[tuple[str, bytes]]
_NAMES = {"b": "BOOL", "u": "UINT", "i": "INT", "f": "FP"}


def datatype_of(values: NDArray[Any]) -> str:
    name = _NAMES[values.dtype.kind]
    return name if name == "BOOL" else f"{name}{8 * values.dtype.itemsize}"


def _oip(event: Event, tensor: Callable[[str, NDArray[Any]], dict[str, Any]]) -> dict[str, Any]:
    request: dict[str, Any] = {"inputs": [tensor("input", event.inputs)]}
    if event.request_id is not None:
        request["id"] = event.request_id
    if event.client is not None:
        request["parameters"] = {"client": event.client}
    outputs = []
    if event.labels is not None:
        outputs.append(tensor("predict", event.labels))
    if event.outputs is not None:
        outputs.append(tensor("probabilities", event.outputs))
    if event.embeddings is not None:
        outputs.append(tensor("embedding", event.embeddings))
    response: dict[str, Any] = {"outputs": outputs}
    fields: dict[str, Any] = {"request": request, "response": response}
    if event.model is not None:
        fields["model_name"] = response["model_name"] = event.model
    return fields | event.extra


def oip_flat(event: Event) -> tuple[bytes, Headers]:
    def tensor(name: str, values: NDArray[Any]) -> dict[str, Any]:
        flat = values.ravel().tolist()
        return {"name": name, "shape": list(values.shape), "datatype": datatype_of(values), "data": flat}

    return json.dumps(_oip(event, tensor)).encode(), ()


def oip_nested(event: Event) -> tuple[bytes, Headers]:
    def tensor(name: str, values: NDArray[Any]) -> dict[str, Any]:
        return {"name": name, "shape": list(values.shape), "datatype": datatype_of(values), "data": values.tolist()}

    return json.dumps(_oip(event, tensor)).encode(), ()


def oip_binary(event: Event) -> tuple[bytes, Headers]:
    def tensor(name: str, values: NDArray[Any]) -> dict[str, Any]:
        raw = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
        tails[name] = raw
        head = {"name": name, "shape": list(values.shape), "datatype": datatype_of(values)}
        return head | {"parameters": {"binary_data_size": len(raw)}}

    tails: dict[str, bytes] = {}
    document = json.dumps(_oip(event, tensor)).encode()
    return document + b"".join(tails.values()), [(LENGTH, str(len(document)).encode())]


# --- compact -------------------------------------------------------------------------------------------------------


def compact_columns(event: Event, dtype: Any = None) -> dict[str, pa.Array]:
    """The columns of a compact record; source coordinates are (3, 100 + row, row)."""
    n = len(event.inputs)
    columns = {
        "source_partition": pa.array([3] * n, pa.int32()),
        "source_offset": pa.array(range(100, 100 + n), pa.int64()),
        "source_row": pa.array(range(n), pa.int32()),
        "time": pa.array([1_700_000_000_000_000] * n, pa.timestamp("us", "UTC")),
        "client": pa.array([hashed(event.client) or None] * n, pa.uint64()),
        "request_id": pa.array([event.request_id] * n, pa.string()),
        "inputs": vectors(event.inputs, dtype or pa.float64()),
    }
    if event.outputs is not None:
        columns["outputs"] = vectors(event.outputs, dtype or pa.float64())
    if event.labels is not None:
        columns["label"] = pa.array(event.labels.tolist(), pa.int32())
    if event.embeddings is not None:
        columns["embedding"] = vectors(event.embeddings, dtype or pa.float64())
    return columns


def vectors(values: NDArray[Any], kind: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), values.shape[1])


def compact_stream(
    columns: dict[str, pa.Array], metadata: dict[str, str], batches: int = 1, compression: Any = None
) -> bytes:
    """One Arrow IPC stream; `batches` cuts its rows."""
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=metadata)
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=max(1, -(-len(table) // batches)))
    return sink.getvalue()


def metadata_of(event: Event) -> dict[str, str]:
    """The schema metadata of a compact record."""
    return {"vedette.version": "1", "model_version": "7"} | ({} if event.model is None else {"model": event.model})


def compact(event: Event) -> tuple[bytes, Headers]:
    return compact_stream(compact_columns(event), metadata_of(event)), ()


def compact_chunked(event: Event) -> tuple[bytes, Headers]:
    return compact_stream(compact_columns(event), metadata_of(event), batches=3), ()


Encode = Callable[[Event], tuple[bytes, Headers]]

_NATIVE: list[Encode] = [native, native_list, native_base64]
_OIP: list[Encode] = [oip_flat, oip_nested, oip_binary]
_COMPACT: list[Encode] = [compact, compact_chunked]
#: Writers of each registered format.
ENCODERS: dict[str, list[Encode]] = {
    "native": _NATIVE,
    "oip": _OIP,
    "compact": _COMPACT,
    "auto": [*_NATIVE, *_OIP, *_COMPACT],
}
#: Where each format's client can stand.
CLIENT_PATHS = {"native": "field:client", "oip": "parameter:client", "compact": "key", "auto": "key"}

# --- batches -------------------------------------------------------------------------------------------------------

_COLUMNS = ("inputs", "labels", "clients", "times", "offsets", "rows", "marks")
_SOURCES = ("source_partitions", "source_offsets", "source_rows")


def assert_same(a: InferenceBatch, b: InferenceBatch) -> None:
    """Equal to the bit, dtypes included."""
    for column in fields(InferenceBatch):
        x, y = getattr(a, column.name), getattr(b, column.name)
        if isinstance(x, np.ndarray):
            assert isinstance(y, np.ndarray), column.name
            assert x.dtype == y.dtype and x.shape == y.shape, column.name
            assert x.tobytes() == y.tobytes(), (column.name, x, y)
        else:
            assert x == y, column.name


def assert_sound(batch: InferenceBatch, options: DecodeOptions) -> None:
    """What the contract says of shapes, dtypes and ranges."""
    n, d, k = len(batch), options.schema.width, len(options.schema.classes)
    kinds = (np.float64, np.int32, np.uint64, np.int64, np.int64, np.int32, np.int32)
    for name, kind in zip(_COLUMNS, kinds, strict=True):
        column = getattr(batch, name)
        assert column.dtype == kind and column.flags.c_contiguous, name
        assert column.shape == ((n, d) if name == "inputs" else (n,)), name
    assert np.isfinite(batch.inputs).all()
    assert ((batch.labels >= 0) & (batch.labels < k)).all()
    if batch.outputs is not None:
        assert batch.outputs.shape == (n, k) and batch.outputs.dtype == np.float64
        bad = ~np.isfinite(batch.outputs)
        assert (bad.all(axis=1) == bad.any(axis=1)).all()
    if batch.embeddings is not None:
        assert batch.embeddings.shape == (n, options.schema.embedding_width) and batch.embeddings.dtype == np.float64
        bad = ~np.isfinite(batch.embeddings)
        assert (bad.all(axis=1) == bad.any(axis=1)).all()
    assert ((batch.marks >= -1) & (batch.marks < len(batch.requests))).all()
    assert set(batch.marks.tolist()) - {-1} == set(range(len(batch.requests)))
    coordinates = list(zip(batch.offsets.tolist(), batch.rows.tolist(), strict=True))
    assert coordinates == sorted(set(coordinates))
    assert (np.diff(batch.marks[batch.marks >= 0]) >= 0).all()
    for name, kind in zip(_SOURCES, (np.int32, np.int64, np.int32), strict=True):
        column = getattr(batch, name)
        assert column is None or (column.dtype == kind and column.shape == (n,))
    assert [letter.offset for letter in batch.dead] == sorted(letter.offset for letter in batch.dead)


def joined(a: InferenceBatch, b: InferenceBatch, classes: int, embedding: int = 0) -> InferenceBatch:
    """The batch of two consecutive pieces."""

    def pair(name: str, empty: Any, shape: tuple[int, ...] = ()) -> Any:
        x, y = getattr(a, name), getattr(b, name)
        if x is None and y is None:
            return None
        kind = (y if x is None else x).dtype
        x = np.full((len(a), *shape), empty, kind) if x is None else x
        y = np.full((len(b), *shape), empty, kind) if y is None else y
        return np.concatenate([x, y])

    shifted = np.where(b.marks >= 0, b.marks + len(a.requests), -1).astype(np.int32)
    return InferenceBatch(
        **{name: pair(name, 0) for name in _COLUMNS if name != "marks"},
        marks=np.concatenate([a.marks, shifted]),
        outputs=pair("outputs", np.nan, (classes,)),
        embeddings=pair("embeddings", np.nan, (embedding,)),
        **{name: pair(name, -1) for name in _SOURCES},
        requests=a.requests + b.requests,
        dead=a.dead + b.dead,
        records=a.records + b.records,
    )
