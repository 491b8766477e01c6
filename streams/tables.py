"""Rows from files: Parquet, CSV, npz and JSON lines, for `vedette fit` and `vedette score`.

Columns of Parquet and CSV: one per feature, under the schema's names; the model's answer as `label` (a class name or
number) or as `output_0 ... output_k-1`; optional `truth` (true class), `client` (text or number) and `time` (ISO 8601
or seconds since the epoch), in Parquet a list column `embedding`. npz files hold the arrays `inputs` and `labels` or
`outputs`, and optionally `truth`, `clients`, `times` (microseconds), `embeddings`, `families` (the attack of each
crafted row; in tables the column `family`). JSON lines are native events (docs/formats.md).
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from detectors.errors import SchemaError
from detectors.schema import Feature, FeatureSchema
from streams.errors import ConfigError

#: Suffixes of Parquet files.
PARQUET = (".parquet", ".pq")
#: Column names that are not features.
RESERVED = ("label", "truth", "client", "time", "id")
#: Columns of scores, numbered from 0; any other name is a feature's.
SCORE = re.compile(r"output_(\d+)")
#: What pandas calls the columns of a data frame's index: in Parquet, and in CSV where it has no name.
PARQUET_INDEX, CSV_INDEX = re.compile(r"__index_level_\d+__"), re.compile(r"|Unnamed: \d+")
#: Seconds since the epoch beyond which no time lies: the year 10000. Milliseconds since 1978 lie beyond it.
LATEST_SECONDS = 253_402_300_800.0
#: What files that are damaged, or something else, make their readers raise.
UNREADABLE = (pa.ArrowException, OSError, ValueError, EOFError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error)
#: Column of Parquet files with the embedding, a list of numbers in each row; a feature where it holds single numbers.
EMBEDDING = "embedding"
#: What pandas makes of clients' numbers in a CSV file where some are missing.
FLOAT_CLIENT = re.compile(r"-?\d+\.0|-?\d(\.\d+)?e\+\d+")
#: Floats hold every whole number below this.
EXACT = 2.0**53
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
    if path.is_dir() and kind not in PARQUET:
        raise ConfigError(f"{path}: is a folder; name a file")
    try:
        if kind == ".npz":
            return _read_npz(path, schema, client_key)
        if kind in (".jsonl", ".ndjson"):
            if schema is None:
                raise ConfigError(f"{path}: JSON lines need a schema; pass --schema FILE")
            return _read_jsonl(path, schema, client_key), schema
        return _from_table(_table(path), path, schema, client_key)
    except SchemaError as wrong:
        raise ConfigError(f"{path}: no schema follows from it: {wrong}; state one with --schema FILE") from None


def _table(path: Path) -> pa.Table:
    """A Parquet or CSV file with at least a row, each of its columns named once."""
    kind = path.suffix.lower()
    try:
        if kind in PARQUET:
            table = pyarrow.parquet.read_table(path)
        elif kind == ".csv":
            # Names of clients are text: `007` is another client than `7`.
            texts = pyarrow.csv.ConvertOptions(column_types={"client": pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=texts)
        else:
            raise ConfigError(f"{path}: unknown kind {kind!r}; use .parquet, .csv, .npz or .jsonl")
        names = table.column_names
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: its names of columns are not UTF-8") from None
    except UNREADABLE as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    if table.num_rows == 0:
        raise ConfigError(f"{path}: holds no rows")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: columns are named once; given twice: {', '.join(twice[:8])}")
    return table


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


def _read_npz(path: Path, schema: FeatureSchema | None, client_key: bytes) -> tuple[Rows, FeatureSchema]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except UNREADABLE as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    if "inputs" not in arrays or not ({"labels", "outputs"} & set(arrays)):
        held = ", ".join(sorted(arrays))
        raise ConfigError(f"{path}: needs the arrays `inputs` and `labels` or `outputs`; has {held}")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" + {"families": "U", "clients": "U", "times": "M"}.get(name, ""):
            raise ConfigError(f"{path}: `{name}` is not numeric, but of {array.dtype}")
    inputs = np.ascontiguousarray(arrays["inputs"], dtype=np.float64)
    if inputs.ndim != 2:
        raise ConfigError(f"{path}: inputs must be (rows, features), got shape {inputs.shape}")
    if not len(inputs):
        raise ConfigError(f"{path}: holds no rows")
    outputs = np.asarray(arrays["outputs"], dtype=np.float64) if "outputs" in arrays else None
    if outputs is not None and outputs.ndim != 2:
        raise ConfigError(f"{path}: outputs must be (rows, classes), got shape {outputs.shape}")
    labels = _whole(arrays["labels"], path, "labels") if "labels" in arrays else _answers(outputs, path)
    if schema is None:
        k = outputs.shape[1] if outputs is not None else _count(labels, path)
        schema = infer_schema(inputs, [f"feature_{i}" for i in range(inputs.shape[1])], [str(c) for c in range(k)])
    n = len(inputs)
    stated = "embeddings" in arrays and schema.embedding_width is not None
    rows = Rows(
        inputs=inputs,
        labels=_places(labels, schema, path, "label"),
        outputs=outputs,
        truth=_places(_whole(arrays["truth"], path, "truth"), schema, path, "truth") if "truth" in arrays else None,
        clients=_hashes(arrays.get("clients", np.zeros(n, dtype=np.uint64)), path, client_key),
        times=_microseconds(arrays.get("times", np.arange(n)), path),
        embeddings=arrays["embeddings"].astype(np.float64) if stated else None,
        families=arrays["families"].astype(np.str_) if "families" in arrays else None,
    )
    return _checked(rows, schema, path), schema


def _whole(values: NDArray[Any], path: Path, name: str, what: str = "whole numbers") -> NDArray[Any]:
    """Whole numbers as such, also where they are stored as floats; anything else is refused."""
    if values.dtype.kind in "iu":
        return values
    wrong = np.flatnonzero(~np.isfinite(values) | (values != np.rint(values)) | (np.abs(values) >= EXACT))
    if len(wrong):
        row = int(wrong[0])
        raise ConfigError(f"{path}: `{name}` are {what}; row {row} holds {values.flat[row]:g}")
    return np.asarray(values, dtype=np.int64)


def _hashes(clients: NDArray[Any], path: Path, client_key: bytes) -> NDArray[np.uint64]:
    """Hashes of clients as they stand, names of clients hashed."""
    if clients.dtype.kind != "U":
        return _whole(clients, path, "clients").astype(np.uint64)
    from streams.events.identity import hash_clients

    names, places = np.unique(clients, return_inverse=True)
    hashes = hash_clients([str(name).encode() for name in names], client_key)
    return np.asarray(hashes[places.reshape(clients.shape)], dtype=np.uint64)


def _microseconds(times: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Times of an npz file: numbers are microseconds since the epoch, dates of NumPy what they say."""
    if times.dtype.kind != "M":
        return _whole(times, path, "times", "whole microseconds since 1970, or NumPy's datetime64").astype(np.int64)
    if np.isnat(times).any():
        raise ConfigError(f"{path}: `times` is empty in row {int(np.flatnonzero(np.isnat(times))[0])}")
    return times.astype("datetime64[us]").astype(np.int64)


def _places(classes: NDArray[Any], schema: FeatureSchema, path: Path, name: str) -> NDArray[np.int32]:
    """Places of classes as 32 bits, if the schema has them."""
    k = len(schema.classes)
    wrong = np.flatnonzero((classes < 0) | (classes >= k))
    if len(wrong):
        row = int(wrong[0])
        raise ConfigError(
            f"{path}: row {row} has {name} {int(classes.flat[row])}; the schema has {k} classes, numbered from 0"
        )
    return np.ascontiguousarray(classes, dtype=np.int32)


def _answers(outputs: NDArray[np.float64] | None, path: Path) -> NDArray[np.int64]:
    """The class of the greatest score, the first of equals."""
    if outputs is None:
        raise ConfigError(f"{path}: the model's answer is missing: neither labels nor outputs are there")
    if not outputs.shape[1]:
        raise ConfigError(f"{path}: outputs have no columns")
    silent = np.flatnonzero(np.isnan(outputs).any(axis=1))
    if len(silent):
        raise ConfigError(f"{path}: row {int(silent[0])} has neither a label nor all scores ({len(silent)} such rows)")
    return np.argmax(outputs, axis=1).astype(np.int64)


def _count(labels: NDArray[Any], path: Path) -> int:
    """Number of classes where they are whole numbers that nobody has named: those from 0 to the greatest."""
    greatest, least = int(labels.max()), int(labels.min())
    if least < 0 or greatest >= max(2, len(labels)):
        raise ConfigError(
            f"{path}: labels reach from {least} to {greatest}; without a schema they are places of classes, from 0; "
            "state the classes with --schema FILE"
        )
    return max(2, greatest + 1)


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
    return Rows(
        inputs=np.concatenate([part.inputs for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        outputs=stacked([part.outputs for part in parts], [len(part) for part in parts]),
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
    except msgspec.DecodeError as wrong:
        if str(wrong).endswith("`$.time`"):
            raise ConfigError(f"{path}, line {number + 1}: time: {wrong}") from None
        return None  # its codec says better what is wrong with it
    except (ValueError, OverflowError) as wrong:
        raise ConfigError(f"{path}, line {number + 1}: time: {wrong}") from None
    if time is None:
        return None
    if not abs(time) < LATEST_SECONDS:
        raise ConfigError(f"{path}, line {number + 1}: time: {_not_seconds(time)}")
    return round(time * 1e3)


def _not_seconds(time: float) -> str:
    return f"{time:.15g} is no number of seconds since 1970; are they milliseconds? Divide by 1,000, or write ISO 8601"


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
                if stamped != (stamp is not None):
                    found, others = ("no time", "have one") if stamped else ("a time", "have none")
                    raise ConfigError(f"{path}, line {number + 1}: has {found} although earlier lines {others}")
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
    known = () if schema is None else [f.name for f in schema.features]
    if EMBEDDING in names and EMBEDDING not in known and schema is not None and schema.embedding_width is not None:
        embeddings = _embeddings(table.column(EMBEDDING), schema.embedding_width, path)
    output_names = sorted((n for n in names if SCORE.fullmatch(n) and n not in known), key=lambda n: (len(n), n))
    if schema is None:
        features = [n for n in names if n not in RESERVED and n not in output_names and not (n == EMBEDDING and lists)]
        features = [n for n in features if not PARQUET_INDEX.fullmatch(n)]
    else:
        features = [f.name for f in schema.features]
    missing = [n for n in features if n not in names]
    if missing or not features:
        raise ConfigError(f"{path}: lacks feature columns: {', '.join(missing[:8]) or 'there are none at all'}")
    if "label" not in names and not output_names:
        raise ConfigError(
            f"{path}: needs the model's answer: a column `label`, or output_0, output_1, ...; has {_some(names)}"
        )
    index = [n for n in features if schema is None and CSV_INDEX.fullmatch(n)]
    if index:
        raise ConfigError(
            f"{path}: column {index[0]!r} looks like the index of a data frame, not like a feature; write the file "
            "without it (index=False), or state the features with --schema FILE"
        )
    if output_names != [f"output_{place}" for place in range(len(output_names))]:
        raise ConfigError(
            f"{path}: columns of scores are output_0, output_1, ... without a gap; has {_some(output_names)}"
        )
    inputs = np.column_stack([_numbers(table, n, path) for n in features])
    outputs = np.column_stack([_numbers(table, n, path) for n in output_names]) if output_names else None
    classes = list(schema.classes) if schema is not None else _classes(table, output_names, path)
    labels = _codes(table.column("label"), classes, path, "label") if "label" in names else _answers(outputs, path)
    truth = _codes(table.column("truth"), classes, path, "truth") if "truth" in names else None
    if schema is None:
        schema = infer_schema(inputs, features, classes)
    rows = Rows(
        inputs=np.ascontiguousarray(inputs),
        labels=_places(labels, schema, path, "label"),
        outputs=outputs,
        truth=_places(truth, schema, path, "truth") if truth is not None else None,
        clients=_clients(table, path, client_key),
        times=_times(table, path),
        embeddings=embeddings,
        families=_families(table) if "family" in names and "family" not in features else None,
    )
    return _checked(rows, schema, path), schema


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _numbers(table: pa.Table, name: str, path: Path) -> NDArray[np.float64]:
    try:
        column = pc.cast(table.column(name), pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        kind = table.column(name).type
        raise ConfigError(
            f"{path}: column {name!r} is not numeric, but of {kind}; write what the model gets, one number a column"
        ) from None
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_list(kind: Any) -> bool:
    return any(is_one(kind) for is_one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _embeddings(column: Any, width: int, path: Path) -> NDArray[np.float64] | None:
    """A column of lists of `width` numbers as (n, width), NaN where it is null; None where it is null throughout."""
    there = column.is_valid().to_numpy()
    if not there.any():
        return None
    if not _is_list(column.type):
        raise ConfigError(
            f"{path}: column {EMBEDDING!r} is of {column.type}, not of lists of {width} numbers; write embeddings as "
            "Parquet, npz or JSON lines (CSV holds no lists), or leave the column out"
        )
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


def _classes(table: pa.Table, output_names: list[str], path: Path) -> list[str]:
    if output_names:
        return [str(i) for i in range(len(output_names))]
    column = _class_numbers(table.column("label"))
    if column.null_count:
        raise ConfigError(f"{path}: column 'label' is empty in {column.null_count} rows")
    if pa.types.is_integer(column.type):
        return [str(i) for i in range(_count(column.to_numpy(), path))]
    return sorted(str(v) for v in pc.unique(column).to_pylist())


def _class_numbers(column: Any) -> Any:
    """A column of classes as whole numbers where it holds numbers or truth values, else as text."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_boolean(column.type):
        return pc.cast(column, pa.int64())
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        try:
            return pc.cast(column, pa.int64())
        except pa.ArrowInvalid:
            pass
    return column if pa.types.is_integer(column.type) else pc.cast(column, pa.string())


def _codes(column: Any, classes: list[str], path: Path, name: str) -> NDArray[np.int64]:
    """Places of classes, from their names or from the places themselves.

    Whole numbers may be either, where the names are whole numbers too; both ways must not say different things.
    """
    if column.null_count:
        raise ConfigError(f"{path}: column {name!r} is empty in {column.null_count} rows")
    named = pc.index_in(_class_texts(column), pa.array(classes))
    places = _class_numbers(column)
    if not pa.types.is_integer(places.type):
        if named.null_count:
            first = _class_texts(column).filter(pc.is_null(named))[0].as_py()
            raise ConfigError(
                f"{path}: column {name!r} names a class that the schema lacks: {first!r}; classes: {_some(classes)}. "
                "State the classes in their order with --schema FILE"
            )
        return np.asarray(named.to_numpy(zero_copy_only=False), dtype=np.int64)
    numbers = np.asarray(places.to_numpy(zero_copy_only=False))
    if named.null_count:
        return numbers
    by_name = np.asarray(named.to_numpy(zero_copy_only=False), dtype=np.int64)
    if (numbers >= 0).all() and (numbers < len(classes)).all() and not np.array_equal(numbers, by_name):
        raise ConfigError(
            f"{path}: column {name!r} holds whole numbers that are names of classes and places of others "
            f"({_some(classes)}); give the classes names that are no numbers, in the schema and in the file"
        )
    return by_name


def _class_texts(column: Any) -> Any:
    """A column of classes as the texts that name them."""
    numbers = _class_numbers(column)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return pc.cast(column, pa.string()) if pa.types.is_boolean(kind) else pc.cast(numbers, pa.string())


def _clients(table: pa.Table, path: Path, client_key: bytes) -> NDArray[np.uint64]:
    if "client" not in table.column_names:
        return np.zeros(len(table), dtype=np.uint64)
    from streams.events.identity import hash_clients

    column = table.column("client").combine_chunks()
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values = coded.dictionary.to_pylist()
    _whole_clients(values, path)
    texts = [_client_text(value) for value in values]
    hashes = np.append(hash_clients(texts, client_key), np.uint64(0))
    index = coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return np.asarray(hashes[index], dtype=np.uint64)


def _whole_clients(values: Sequence[Any], path: Path) -> None:
    """Refuse names that pandas made of whole numbers, where some are missing, and that are other clients' now."""
    texts = [value for value in values if isinstance(value, str) and value] if path.suffix.lower() == ".csv" else []
    if texts and all(FLOAT_CLIENT.fullmatch(text) for text in texts):
        raise ConfigError(
            f"{path}: column 'client' holds {texts[0]!r}, and only such names: pandas writes whole numbers so where "
            "some are missing, and in events those clients are called otherwise; write the column as whole numbers "
            "(astype('Int64')), or, where clients are called so, as text in Parquet"
        )
    beyond = [value for value in values if isinstance(value, float) and abs(value) >= EXACT]
    if beyond:
        raise ConfigError(
            f"{path}: column 'client' holds {beyond[0]:.17g} as a float, where whole numbers are no longer exact; "
            "write the column as whole numbers (astype('Int64')) or as text"
        )


def _client_text(value: Any) -> bytes:
    """What is hashed of a client: pandas makes floats of whole numbers where some are missing."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, float):
        return b"" if np.isnan(value) else f"{value:.0f}".encode() if value.is_integer() else str(value).encode()
    return b"" if value is None else str(value).encode()


def _families(table: pa.Table) -> NDArray[np.str_]:
    column = pc.cast(table.column("family"), pa.string())
    return np.array(pc.fill_null(column, "").to_pylist(), dtype=np.str_)


def _times(table: pa.Table, path: Path) -> NDArray[np.int64]:
    """Microseconds since the epoch, of seconds, of dates, or of ISO 8601 text, which is UTC where it names no zone."""
    if "time" not in table.column_names:
        return np.arange(len(table), dtype=np.int64)
    column, kind = table.column("time"), table.schema.field("time").type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        seconds = np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        wrong = np.flatnonzero(~(np.abs(seconds) < LATEST_SECONDS))
        if len(wrong):
            row = int(wrong[0])
            told = "is empty" if np.isnan(seconds[row]) else _not_seconds(float(seconds[row]))
            raise ConfigError(f"{path}: column 'time', row {row}: {told}")
        return np.asarray(seconds * 1e6, dtype=np.int64)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ConfigError(f"{path}: column 'time', row {row}: is empty ({column.null_count} such rows)")
    stamps = _stamps(column)
    if stamps is None:
        raise ConfigError(
            f"{path}: column 'time' is neither ISO 8601 nor seconds since 1970; it begins with {column[0].as_py()!r}"
        )
    return np.asarray(pc.cast(stamps, pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _stamps(column: Any) -> Any:
    """Dates or ISO 8601 text as time stamps in microseconds; None where it is neither."""
    texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")) if texts else (column.type,):
        try:
            return pc.cast(pc.cast(column, kind), pa.timestamp("us", kind.tz if texts else None), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return None


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
    finite = np.isfinite(rows.inputs)
    bad = np.flatnonzero(~finite.all(axis=1))
    if len(bad):
        feature = schema.features[int(np.argmin(finite[bad[0]]))].name
        raise ConfigError(
            f"{path}: row {int(bad[0])} holds a value that is not finite ({len(bad)} such rows), feature {feature!r}"
        )
    k = len(schema.classes)
    if rows.outputs is not None:
        if rows.outputs.shape != (len(rows), k):
            raise ConfigError(f"{path}: outputs have shape {rows.outputs.shape}, expected {(len(rows), k)}")
        odd = np.flatnonzero(~np.isfinite(rows.outputs).all(axis=1) & ~np.isnan(rows.outputs).all(axis=1))
        if len(odd):
            raise ConfigError(
                f"{path}: the scores of row {int(odd[0])} hold a value that is not finite ({len(odd)} such rows); "
                "a row without scores is empty, or NaN throughout, and has a label"
            )
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
    return rows
