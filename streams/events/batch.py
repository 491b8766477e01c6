"""Inference events as columns, and the contract of every codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Batch
from detectors.schema import FeatureSchema


class Record(Protocol):
    """What a codec reads of a Kafka record; aiokafka's and kafka-python's records both fit."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Broker time, milliseconds since the epoch."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Reason(StrEnum):
    """Why a record or some of its rows cannot be scored. The value is what dead letters and counters say."""

    EMPTY = "empty"
    TOO_LARGE = "too-large"
    NOT_DECODABLE = "not-decodable"
    DUPLICATE_KEY = "duplicate-key"
    MISSING_FIELD = "missing-field"
    WRONG_TYPE = "wrong-type"
    WRONG_SHAPE = "wrong-shape"
    NON_FINITE = "non-finite"
    LABEL_OUT_OF_RANGE = "label-out-of-range"
    UNDECLARED_MODEL = "undeclared-model"
    UNKNOWN_VERSION = "unknown-version"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record, or some rows of it, that could not become rows of a batch.

    `rows` is None when the record as a whole is unreadable (it counts as one invalid row), else the places of the rows
    that were refused while the others were scored.
    """

    offset: int
    reason: Reason
    detail: str
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class InferenceBatch:
    """The rows of some consecutive records of one partition, in order.

    Attributes
    ----------
    inputs : float64 (n, d), C order, finite
    outputs : float64 (n, k) or None
        None when no record of the batch carried scores; rows without scores hold NaN.
    labels : int32 (n,)
        Stated label, else arg max of the outputs.
    clients : uint64 (n,)
        Keyed hash; 0 = anonymous.
    times : int64 (n,)
        Broker time of the record in microseconds.
    offsets : int64 (n,); rows : int32 (n,)
        Coordinates of each row.
    marks : int32 (n,)
        Index into `requests` for rows whose record may be a probe, else -1. The codec only finds candidates (a probe
        header, or a request id of the front door's form); the worker verifies them.
    requests : tuple of ProbeCandidate
    source_partitions : int32 (n,), source_offsets : int64 (n,), source_rows : int32 (n,) or None
        Source coordinates, where the records carry them (compact records): rows that were delivered again are
        recognised by these. -1 for rows of other records in the same batch.
    embeddings : float64 (n, e) or None
        None when no record of the batch carried an embedding, or the schema states none; NaN in rows without one.
    dead : tuple of DeadLetter
    records : int
        Number of records decoded, dead ones included.
    """

    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64] | None
    labels: NDArray[np.int32]
    clients: NDArray[np.uint64]
    times: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    marks: NDArray[np.int32]
    requests: tuple[ProbeCandidate, ...] = ()
    source_partitions: NDArray[np.int32] | None = None
    source_offsets: NDArray[np.int64] | None = None
    source_rows: NDArray[np.int32] | None = None
    embeddings: NDArray[np.float64] | None = None
    dead: tuple[DeadLetter, ...] = ()
    records: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def to_batch(self) -> Batch:
        """The columns that detectors see."""
        return Batch(
            inputs=self.inputs,
            labels=self.labels,
            clients=self.clients,
            times=self.times,
            offsets=self.offsets,
            rows=self.rows,
            outputs=self.outputs,
            embeddings=self.embeddings,
        )


@dataclass(frozen=True, slots=True)
class ProbeCandidate:
    """A record that claims to be a probe; nothing here is trusted yet.

    `header` is the value of the `vedette-probe` header, or `request_id` an id of the front door's form. `payload` is
    the record's value for a header mark; for the front door the digest is taken over the inputs (see
    `streams.probes.marks`). `client` is the name as it stands in the record; a compact record holds only a hash, whose
    eight bytes (little endian) stand here instead.
    """

    offset: int
    header: bytes | None
    request_id: str | None
    client: bytes | None
    payload: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What a codec needs to know of the deployment.

    `client_path` says where the client's identity stands: ``key``, ``header:NAME``, ``field:NAME`` (top-level field of
    the record's JSON object) or ``parameter:NAME`` (OIP request parameters). `client_key` is the 16-byte secret of the
    keyed hash (SipHash-2-4; 0 becomes 1). `max_record_bytes` refuses larger records unread, `max_record_rows` those of
    more rows.
    """

    model: str
    schema: FeatureSchema
    client_path: str
    client_key: bytes = field(repr=False)
    max_record_bytes: int = 16 * 1024 * 1024
    max_record_rows: int = 65_536


@runtime_checkable
class Codec(Protocol):
    """Turns records into columns. Never raises for what a record holds: that becomes a `DeadLetter`."""

    name: str

    def decode(self, records: Sequence[Record], options: DecodeOptions) -> InferenceBatch:
        """Decode consecutive records of one partition, in order."""
