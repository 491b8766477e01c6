"""Rows from files: Parquet, CSV, npz and JSON lines, for `vedette fit` and `vedette score`.

Columns of Parquet and CSV: one per feature, under the schema's names; the model's answer as `label` (a class name or
number) or as `output_0 ... output_k-1`; optional `truth` (true class), `client` (text or number) and `time` (ISO 8601
or seconds since the epoch), in Parquet a list column `embedding`. npz files hold the arrays `inputs` and `labels` or
`outputs`, and optionally `truth`, `clients`, `times` (microseconds), `embeddings`, `families` (the attack of each
crafted row; in tables the column `family`). JSON lines are native events (docs/formats.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from detectors.contract import Batch, Reference
from detectors.schema import Feature, FeatureSchema
from streams.errors import ConfigError

#: Column names that are not features.
RESERVED = ("label", "truth", "client", "time", "id")
#: Column of Parquet files with the embedding, a list of numbers in each row; a feature where it holds single numbers.
EMBEDDING = "embedding"
#: Rows of JSON lines that are decoded at once.
JSONL_CHUNK_RECORDS = 5000

ClientHash = Callable[[Sequence[bytes]], NDArray[np.uint64]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a file as columns: inputs (n, d) float64, labels (n,) int32, clients (n,) uint64, times (n,) int64 us.

    embeddings (n, e) float64 are NaN in rows without one; None where the schema states none, or no row has one.
    `families` (n,) names the attack that made each row, where the file says so.
    """

    inputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    outputs: NDArray[np.float64] | None
    truth: NDArray[np.int32] | None
    clients: NDArray[np.uint64]
    times: NDArray[np.int64]
    embeddings: NDArray[np.float64] | None = None
    families: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def reference(self) -> Reference:
        """The rows as reference for a fit."""
        return Reference(self.inputs, self.labels, self.outputs, self.truth, self.embeddings)

    def batch(self) -> Batch:
        """The rows as events, in order of time; offsets are row numbers of the file."""
        order = np.argsort(self.times, kind="stable")
        return Batch(
            inputs=np.ascontiguousarray(self.inputs[order]),
            labels=self.labels[order],
            clients=self.clients[order],
            times=self.times[order],
            offsets=np.arange(len(order), dtype=np.int64),
            rows=np.zeros(len(order), dtype=np.int32),
            outputs=None if self.outputs is None else self.outputs[order],
            embeddings=None if self.embeddings is None else self.embeddings[order],
        )


@dataclass(frozen=True, slots=True)
class _LineRecord:
    """One line of a file in the shape of a Kafka record."""

    offset: int
    value: bytes
    timestamp: int = 0
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def read(path: str | Path, schema: FeatureSchema | None, client_key: bytes) -> tuple[Rows, FeatureSchema]:
    """Read rows and, where none is given, infer a schema from them.

    Raises
    ------
    ConfigError
        Names the file, the column or line, and what is expected there.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    kind = path.suffix.lower()
    if kind == ".npz":
        return _read_npz(path, schema)
    if kind in (".jsonl", ".ndjson"):
        if schema is None:
            raise ConfigError(f"{path}: JSON lines need a schema; pass --schema FILE")
        return _read_jsonl(path, schema, client_key), schema
    try:
        if kind in (".parquet", ".pq"):
            table = pyarrow.parquet.read_table(path)
        elif kind == ".csv":
            table = pyarrow.csv.read_csv(path)
        else:
            raise ConfigError(f"{path}: unknown kind {kind!r}; use .parquet, .csv, .npz or .jsonl")
    except (pa.ArrowInvalid, OSError) as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    if table.num_rows == 0:
        raise ConfigError(f"{path}: holds no rows")
    return _from_table(table, path, schema, client_key)


def read_schema(path: str | Path) -> FeatureSchema:
    """A schema from its JSON file (docs/formats.md)."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise ConfigError(f"{path}: not a readable schema: {wrong}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: not a readable schema: no JSON object")
    try:
        return FeatureSchema.from_dict(data)
    except ValueError as wrong:
        raise ConfigError(f"{path}: {wrong}") from None


def infer_schema(inputs: NDArray[np.float64], names: Sequence[str], classes: Sequence[str]) -> FeatureSchema:
    """Names as given, whole numbers where every value is one; no ranges (those are learned by detectors)."""
    whole = np.all(inputs == np.rint(inputs), axis=0) & (np.ptp(inputs, axis=0) > 0)
    return FeatureSchema(tuple(Feature(n, integral=bool(w)) for n, w in zip(names, whole, strict=True)), tuple(classes))


def _read_npz(path: Path, schema: FeatureSchema | None) -> tuple[Rows, FeatureSchema]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    if "inputs" not in arrays or not ({"labels", "outputs"} & set(arrays)):
        held = ", ".join(sorted(arrays))
        raise ConfigError(f"{path}: needs the arrays `inputs` and `labels` or `outputs`; has {held}")
    for name, array in arrays.items():
        if array.dtype.kind not in ("biufU" if name == "families" else "biuf"):
            raise ConfigError(f"{path}: `{name}` is not numeric, but of {array.dtype}")
    inputs = np.ascontiguousarray(arrays["inputs"], dtype=np.float64)
    if inputs.ndim != 2:
        raise ConfigError(f"{path}: inputs must be (rows, features), got shape {inputs.shape}")
    outputs = np.asarray(arrays["outputs"], dtype=np.float64) if "outputs" in arrays else None
    if outputs is not None and outputs.ndim != 2:
        raise ConfigError(f"{path}: outputs must be (rows, classes), got shape {outputs.shape}")
    labels = np.asarray(arrays["labels"]) if "labels" in arrays else np.argmax(_present(outputs), axis=1)
    if schema is None:
        k = outputs.shape[1] if outputs is not None else int(labels.max(initial=1)) + 1
        schema = infer_schema(inputs, [f"feature_{i}" for i in range(inputs.shape[1])], [str(c) for c in range(k)])
    n = len(inputs)
    stated = "embeddings" in arrays and schema.embedding_width is not None
    rows = Rows(
        inputs=inputs,
        labels=labels.astype(np.int32),
        outputs=outputs,
        truth=arrays["truth"].astype(np.int32) if "truth" in arrays else None,
        clients=arrays.get("clients", np.zeros(n)).astype(np.uint64),
        times=arrays.get("times", np.arange(n)).astype(np.int64),
        embeddings=arrays["embeddings"].astype(np.float64) if stated else None,
        families=arrays["families"].astype(np.str_) if "families" in arrays else None,
    )
    return _checked(rows, schema, path), schema


def _read_jsonl(path: Path, schema: FeatureSchema, client_key: bytes) -> Rows:
    from streams.events import decoder
    from streams.events.batch import DecodeOptions, InferenceBatch

    decode = decoder("native")
    options = DecodeOptions("", schema, "field:client", client_key)
    parts: list[InferenceBatch] = []
    for chunk in _chunks(path):
        decoded = decode.decode(chunk, options)
        if decoded.dead:
            worst = decoded.dead[0]
            raise ConfigError(f"{path}, line {worst.offset + 1}: {worst.reason}: {worst.detail}")
        parts.append(decoded)
    if not parts:
        raise ConfigError(f"{path}: holds no events")
    outputs = [part.outputs for part in parts if part.outputs is not None]
    return Rows(
        inputs=np.concatenate([part.inputs for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        outputs=np.concatenate(outputs) if len(outputs) == len(parts) else None,
        truth=None,
        clients=np.concatenate([part.clients for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        embeddings=stacked([part.embeddings for part in parts], [len(part) for part in parts]),
    )


def stacked(parts: Sequence[NDArray[np.float64] | None], lengths: Sequence[int]) -> NDArray[np.float64] | None:
    """Rows (n, w) of parts that are each (length, w) or None, which counts as rows of NaN; None where all are."""
    width = max((part.shape[1] for part in parts if part is not None), default=0)
    if not width:
        return None
    return np.concatenate(
        [np.full((n, width), np.nan) if part is None else part for part, n in zip(parts, lengths, strict=True)]
    )


class _Stamped(msgspec.Struct):
    """The one field of a native event that its codec leaves to the broker."""

    time: float | str | None = None


def _stamp(path: Path, number: int, line: bytes) -> int | None:
    """Milliseconds since the epoch that an event says it has; None where it says nothing."""
    try:
        time = msgspec.json.decode(line, type=_Stamped).time
        if isinstance(time, str):
            stamp = datetime.fromisoformat(time)
            time = (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    except msgspec.DecodeError:
        return None  # its codec says better what is wrong with it
    except (ValueError, OverflowError) as wrong:
        raise ConfigError(f"{path}, line {number + 1}: time: {wrong}") from None
    return None if time is None else round(time * 1e3)


def _chunks(path: Path) -> Iterator[list[_LineRecord]]:
    """Lines as records, stamped with their events' times, or where the first has none with their numbers."""
    chunk: list[_LineRecord] = []
    stamped: bool | None = None
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if line.strip():
                stamp = _stamp(path, number, line)
                if stamped is None:
                    stamped = stamp is not None
                if stamped and stamp is None:
                    raise ConfigError(f"{path}, line {number + 1}: has no time although earlier lines have one")
                chunk.append(_LineRecord(number, line, stamp if stamped and stamp is not None else number))
            if len(chunk) == JSONL_CHUNK_RECORDS:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _from_table(
    table: pa.Table, path: Path, schema: FeatureSchema | None, client_key: bytes
) -> tuple[Rows, FeatureSchema]:
    names = list(table.column_names)
    lists = EMBEDDING in names and _is_list(table.schema.field(EMBEDDING).type)
    embeddings = None
    if lists and schema is not None and schema.embedding_width is not None:
        embeddings = _embeddings(table.column(EMBEDDING), schema.embedding_width, path)
    output_names = sorted((n for n in names if n.startswith("output_")), key=lambda n: (len(n), n))
    if schema is None:
        features = [n for n in names if n not in RESERVED and n not in output_names and not (n == EMBEDDING and lists)]
    else:
        features = [f.name for f in schema.features]
    missing = [n for n in features if n not in names]
    if missing or not features:
        raise ConfigError(f"{path}: lacks feature columns: {', '.join(missing[:8]) or 'there are none at all'}")
    if "label" not in names and not output_names:
        raise ConfigError(f"{path}: needs the model's answer: a column `label`, or output_0, output_1, ...")
    inputs = np.column_stack([_numbers(table, n, path) for n in features])
    outputs = np.column_stack([_numbers(table, n, path) for n in output_names]) if output_names else None
    classes = list(schema.classes) if schema is not None else _classes(table, output_names)
    labels = (
        _codes(table.column("label"), classes, path, "label")
        if "label" in names
        else np.argmax(_present(outputs), axis=1).astype(np.int32)
    )
    if schema is None:
        schema = infer_schema(inputs, features, classes)
    rows = Rows(
        inputs=np.ascontiguousarray(inputs),
        labels=labels,
        outputs=outputs,
        truth=_codes(table.column("truth"), classes, path, "truth") if "truth" in names else None,
        clients=_clients(table, client_key),
        times=_times(table),
        embeddings=embeddings,
        families=_families(table) if "family" in names and "family" not in features else None,
    )
    return _checked(rows, schema, path), schema


def _numbers(table: pa.Table, name: str, path: Path) -> NDArray[np.float64]:
    try:
        return np.asarray(pc.cast(table.column(name), pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ConfigError(f"{path}: column {name!r} is not numeric") from None


def _is_list(kind: Any) -> bool:
    return any(is_one(kind) for is_one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _embeddings(column: Any, width: int, path: Path) -> NDArray[np.float64] | None:
    """A column of lists of `width` numbers as (n, width), NaN where it is null; None where it is null throughout."""
    there = column.is_valid().to_numpy()
    if not there.any():
        return None
    lists = column.drop_null()
    lengths = pc.list_value_length(lists).to_numpy()
    wrong = np.flatnonzero(lengths != width)
    if len(wrong):
        row = int(np.flatnonzero(there)[wrong[0]])
        raise ConfigError(f"{path}: row {row} has an embedding of {lengths[wrong[0]]} values; {width} are expected")
    try:
        values = pc.cast(pc.list_flatten(lists), pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ConfigError(f"{path}: column {EMBEDDING!r} does not hold lists of numbers") from None
    found = np.full((len(there), width), np.nan)
    found[there] = values.reshape(-1, width)
    return found


def _classes(table: pa.Table, output_names: list[str]) -> list[str]:
    if output_names:
        return [str(i) for i in range(len(output_names))]
    values = pc.unique(table.column("label")).to_pylist()
    if all(isinstance(v, int) for v in values):
        return [str(i) for i in range(max(2, max(values) + 1))]
    return sorted(str(v) for v in values)


def _codes(column: Any, classes: list[str], path: Path, name: str) -> NDArray[np.int32]:
    if column.null_count:
        raise ConfigError(f"{path}: column {name!r} is empty in {column.null_count} rows")
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), dtype=np.int32)
    index = pc.index_in(pc.cast(column, pa.string()), pa.array(classes))
    if index.null_count:
        raise ConfigError(f"{path}: column {name!r} names a class that the schema lacks; classes: {', '.join(classes)}")
    return np.asarray(index.to_numpy(zero_copy_only=False), dtype=np.int32)


def _clients(table: pa.Table, client_key: bytes) -> NDArray[np.uint64]:
    if "client" not in table.column_names:
        return np.zeros(len(table), dtype=np.uint64)
    from streams.events.identity import hash_clients

    coded = table.column("client").combine_chunks().dictionary_encode()
    texts = [b"" if value is None else str(value).encode() for value in coded.dictionary.to_pylist()]
    hashes = np.append(hash_clients(texts, client_key), np.uint64(0))
    index = coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return np.asarray(hashes[index], dtype=np.uint64)


def _families(table: pa.Table) -> NDArray[np.str_]:
    column = pc.cast(table.column("family"), pa.string())
    return np.array(pc.fill_null(column, "").to_pylist(), dtype=np.str_)


def _times(table: pa.Table) -> NDArray[np.int64]:
    if "time" not in table.column_names:
        return np.arange(len(table), dtype=np.int64)
    column = table.column("time")
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return np.asarray(np.asarray(column.to_numpy(), dtype=np.float64) * 1e6, dtype=np.int64)
    stamps = pc.cast(column, pa.timestamp("us"))
    return np.asarray(pc.cast(stamps, pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _present(outputs: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if outputs is None:
        raise ConfigError("the model's answer is missing: neither labels nor outputs are there")
    return outputs


def _checked(rows: Rows, schema: FeatureSchema, path: Path) -> Rows:
    if len(rows) == 0:
        raise ConfigError(f"{path}: holds no rows")
    if rows.inputs.shape[1] != schema.width:
        raise ConfigError(f"{path}: rows have {rows.inputs.shape[1]} features, the schema has {schema.width}")
    columns: tuple[tuple[str, NDArray[Any] | None], ...] = (
        ("labels", rows.labels),
        ("truth", rows.truth),
        ("clients", rows.clients),
        ("times", rows.times),
        ("families", rows.families),
    )
    for name, column in columns:
        if column is not None and column.shape != (len(rows),):
            raise ConfigError(f"{path}: `{name}` has shape {column.shape} beside {len(rows)} rows")
    bad = np.flatnonzero(~np.isfinite(rows.inputs).all(axis=1))
    if len(bad):
        raise ConfigError(f"{path}: row {int(bad[0])} holds a value that is not finite ({len(bad)} such rows)")
    k = len(schema.classes)
    wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= k))
    if len(wrong):
        row = int(wrong[0])
        raise ConfigError(f"{path}: row {row} has label {int(rows.labels[row])}; the schema has {k} classes")
    if rows.outputs is not None and rows.outputs.shape != (len(rows), k):
        raise ConfigError(f"{path}: outputs have shape {rows.outputs.shape}, expected {(len(rows), k)}")
    if rows.embeddings is not None:
        width = schema.embedding_width
        if rows.embeddings.shape != (len(rows), width):
            raise ConfigError(f"{path}: embeddings have shape {rows.embeddings.shape}, expected {(len(rows), width)}")
        finite = np.isfinite(rows.embeddings)
        odd = np.flatnonzero(~finite.all(axis=1) & ~np.isnan(rows.embeddings).all(axis=1))
        if len(odd):
            raise ConfigError(
                f"{path}: the embedding of row {int(odd[0])} holds a value that is not finite ({len(odd)} such rows); "
                "a row without one is null, or NaN throughout"
            )
    return replace(rows, labels=np.ascontiguousarray(rows.labels, dtype=np.int32))
