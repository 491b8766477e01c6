"""From records to one columnar batch: every codec's frame."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.contract import ANONYMOUS
from streams.events.batch import DeadLetter, DecodeOptions, InferenceBatch, ProbeCandidate, Reason, Record
from streams.events.identity import find_header, hash_clients, hash_slices
from streams.events.kernels import OIP
from streams.events.refusal import Refusal
from streams.events.rows import Layout, Rows
from streams.events.scan import Scan, scan

#: Header of records that say they are probes, and how front-door ids begin (`streams.probes.marks` verifies both).
PROBE_HEADER = "vedette-probe"
PROBE_REQUEST_PREFIX = "vp1."
#: Record header of the Open Inference Protocol's binary extension: bytes of the JSON before the raw tensors.
LENGTH_HEADER = "Inference-Header-Content-Length"
#: Broker time comes in milliseconds and is kept in microseconds.
MICROSECONDS = 1000

Read = Callable[[Record, bytes, Layout], Rows]
"""Reads the rows of one record, whose value is passed beside it; raises `Refusal` when there are none."""

Sources = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]

_parts = attrgetter("offset", "timestamp", "key", "value", "headers")


#: First bytes of what may be a JSON object.
_OPENING = b"{ \t\r\n"


def assemble(records: Sequence[Record], options: DecodeOptions, read: Read, forms: int = 0) -> InferenceBatch:
    """Decode records and lay their rows out as columns, in order.

    Parameters
    ----------
    records : sequence of Record
    options : DecodeOptions
    read : Read
        Reads one record.
    forms : int
        What the compiled reader may try first, all in one call: `kernels.NATIVE`, `kernels.OIP`, both or nothing.
    """
    return _Assembly(records, Layout(options), read, forms).batch()


def json_length(stated: bytes, value: bytes) -> int:
    """What the length header says of the record's value; -1 when it is no length within it."""
    if not stated.isdigit() or len(stated) > len(str(len(value))) or int(stated) > len(value):
        return -1
    return int(stated)


class _Assembly:
    """The records of a fetch, the rows that were found in them, and where these go."""

    def __init__(self, records: Sequence[Record], layout: Layout, read: Read, forms: int) -> None:
        self.records = records
        self.layout = layout
        columns: list[Any] = list(zip(*map(_parts, records), strict=True)) if records else [()] * 5
        self.offsets: Sequence[int] = columns[0]
        self.timestamps: Sequence[int] = columns[1]
        self.keys: Sequence[bytes | None] = columns[2]
        self.values: Sequence[bytes | None] = columns[3]
        self.headers: Sequence[Sequence[tuple[str, bytes]]] = columns[4]
        #: Rows of each record.
        self.counts = np.zeros(len(records), dtype=np.int64)
        #: Places of the records that were scanned, and what became of them; other records' rows by place.
        self.tried: list[int] = []
        self.scanned: Scan | None = None
        self.blocks: dict[int, Rows] = {}
        self.dead: list[DeadLetter] = []
        if forms:
            self._scan(forms)
        self._read(read)
        stops = np.cumsum(self.counts)
        self.total = int(stops[-1]) if len(stops) else 0
        self.starts = stops - self.counts

    def _scan(self, forms: int) -> None:
        limit = self.layout.options.max_record_bytes
        self.tried = [
            place for place, value in enumerate(self.values) if value and value[0] in _OPENING and len(value) <= limit
        ]
        lengths: dict[int, int] = {}
        for place, headers in enumerate(self.headers):
            if headers and (stated := find_header(headers, LENGTH_HEADER)) is not None:
                lengths[place] = json_length(stated, self.values[place] or b"") if forms & OIP else -1
        if lengths:
            self.tried = [place for place in self.tried if lengths.get(place, 0) >= 0]
        if self.tried:
            of_json = np.array([lengths.get(place, -1) for place in self.tried], dtype=np.int64) if lengths else None
            self.scanned = scan([self.values[place] or b"" for place in self.tried], of_json, forms, self.layout)
            self.counts[self.tried] = self.scanned.counts

    def _read(self, read: Read) -> None:
        """Read the records that have no rows yet, one by one."""
        for place in np.flatnonzero(self.counts == 0).tolist():
            record = self.records[place]
            try:
                rows = read(record, self._value(place), self.layout)
            except Refusal as refusal:
                self.dead.append(DeadLetter(record.offset, refusal.reason, refusal.detail))
                continue
            self.dead.extend(
                DeadLetter(record.offset, refused.reason, refused.detail, refused.rows) for refused in rows.refused
            )
            if len(rows):
                self.blocks[place] = rows
                self.counts[place] = len(rows)

    def _value(self, place: int) -> bytes:
        value: bytes | None = self.values[place]
        if not value:
            raise Refusal(Reason.EMPTY, "the record has no value")
        limit = self.layout.options.max_record_bytes
        if len(value) > limit:
            raise Refusal(Reason.TOO_LARGE, f"the record has {len(value):,} bytes; {limit:,} are allowed")
        return value

    def batch(self) -> InferenceBatch:
        """Everything as columns."""
        counts = self.counts
        inputs, outputs, labels = self._answers()
        places = np.arange(self.total, dtype=np.int64) - np.repeat(self.starts, counts)
        clients = np.repeat(self._clients(), counts)
        sources: Sources | None = None
        for place, rows in self.blocks.items():
            where = self._where(place)
            if rows.places is not None:
                places[where] = rows.places
            if rows.clients is not None:
                clients[where] = rows.clients
            if rows.sources is not None:
                if sources is None:
                    sources = _no_sources(self.total)
                sources[0][where], sources[1][where], sources[2][where] = rows.sources
        marks, requests = self._claims()
        return InferenceBatch(
            inputs=inputs,
            outputs=outputs,
            labels=labels,
            clients=clients,
            times=np.repeat(np.array(self.timestamps, dtype=np.int64) * MICROSECONDS, counts),
            offsets=np.repeat(np.array(self.offsets, dtype=np.int64), counts),
            rows=places.astype(np.int32),
            marks=marks,
            requests=requests,
            source_partitions=None if sources is None else sources[0],
            source_offsets=None if sources is None else sources[1],
            source_rows=None if sources is None else sources[2],
            embeddings=self._embeddings(),
            dead=tuple(self.dead),
            records=len(self.records),
        )

    def _where(self, place: int) -> slice:
        return slice(int(self.starts[place]), int(self.starts[place] + self.counts[place]))

    def _answers(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.int32]]:
        """Inputs, outputs and labels of all rows."""
        scanned, blocks = self.scanned, self.blocks
        if scanned is not None and not blocks:
            return scanned.inputs, scanned.outputs if scanned.scored else None, scanned.labels
        inputs, labels = np.empty((self.total, self.layout.width)), np.empty(self.total, dtype=np.int32)
        outputs: NDArray[np.float64] | None = None
        if (scanned is not None and scanned.scored) or any(rows.outputs is not None for rows in blocks.values()):
            outputs = np.full((self.total, self.layout.k), np.nan)
        if scanned is not None and len(scanned.inputs):
            rows_of_scan = self._scanned_rows(scanned)
            inputs[rows_of_scan] = scanned.inputs
            labels[rows_of_scan] = scanned.labels
            if outputs is not None:
                outputs[rows_of_scan] = scanned.outputs
        for place, rows in blocks.items():
            where = self._where(place)
            inputs[where] = rows.inputs
            labels[where] = rows.labels
            if outputs is not None and rows.outputs is not None:
                outputs[where] = rows.outputs
        return inputs, outputs, labels

    def _embeddings(self) -> NDArray[np.float64] | None:
        """Embeddings of all rows, NaN where there are none."""
        width = self.layout.embedding_width
        if width is None:
            return None
        embeddings = np.full((self.total, width), np.nan)
        if self.scanned is not None and self.scanned.embeddings is not None:
            embeddings[self._scanned_rows(self.scanned)] = self.scanned.embeddings
        for place, rows in self.blocks.items():
            if rows.embeddings is not None:
                embeddings[self._where(place)] = rows.embeddings
        return None if np.isnan(embeddings).all() else embeddings

    def _scanned_rows(self, scanned: Scan) -> NDArray[np.bool_]:
        """Which rows the compiled reader read."""
        own = np.zeros(len(self.records), dtype=np.bool_)
        own[self.tried] = scanned.counts > 0
        return np.repeat(own, self.counts)

    def _clients(self) -> NDArray[np.uint64]:
        """The client of each record."""
        key, kind = self.layout.options.client_key, self.layout.place.kind
        if kind == "key":
            return hash_clients([name or b"" for name in self.keys], key)
        out = np.zeros(len(self.records), dtype=np.uint64)
        if self.scanned is not None and kind in ("field", "parameter"):
            starts, stops = np.ascontiguousarray(self.scanned.clients.T)
            out[self.tried] = hash_slices(self.scanned.data, starts, stops, key)
        elif self.scanned is not None and kind == "header":
            outside = self.layout.place.outside
            out[self.tried] = hash_clients([outside(self.records[place]) or b"" for place in self.tried], key)
        if self.blocks:
            out[list(self.blocks)] = hash_clients([rows.client or b"" for rows in self.blocks.values()], key)
        return out

    def _claims(self) -> tuple[NDArray[np.int32], tuple[ProbeCandidate, ...]]:
        """What claims to be a probe, and the mark of each row. Records without a row claim nothing."""
        marked = {
            place: mark
            for place, headers in enumerate(self.headers)
            if headers and (mark := next((text for name, text in headers if name == PROBE_HEADER), None)) is not None
        }
        claiming = {place for place, rows in self.blocks.items() if rows.claims or _is_front_door(rows.request_id)}
        if self.scanned is not None:
            spans = self.scanned.requests
            claiming |= {self.tried[at] for at in np.flatnonzero(spans[:, 1] > spans[:, 0]).tolist()}
        marks = np.full(self.total, -1, dtype=np.int32)
        found: list[ProbeCandidate] = []
        for place in sorted(claiming | {place for place in marked if self.counts[place]}):
            offset, start, mark = self.offsets[place], int(self.starts[place]), marked.get(place)
            client, request_id = self._identity(place)
            runs = [(request_id if _is_front_door(request_id) else None, client, 0, int(self.counts[place]))]
            if mark is None and place in self.blocks and self.blocks[place].claims:
                rows = self.blocks[place]
                runs = [(claim, _hashed(rows, first), first, last) for claim, first, last in rows.claims]
            for claim, name, first, last in runs:
                marks[start + first : start + last] = len(found)
                found.append(
                    ProbeCandidate(offset, mark, claim, name, b"" if mark is None else self.values[place] or b"")
                )
        return marks, tuple(found)

    def _identity(self, place: int) -> tuple[bytes | None, str | None]:
        """The client's name and the request id of a record."""
        rows = self.blocks.get(place)
        if rows is not None:
            return rows.client, rows.request_id
        assert self.scanned is not None
        at = bisect_left(self.tried, place)
        request_id = self.scanned.text(self.scanned.requests[at])
        if self.layout.place.kind in ("field", "parameter"):
            client = self.scanned.text(self.scanned.clients[at])
        else:
            client = self.layout.place.outside(self.records[place])
        return client, None if request_id is None else request_id.decode("utf-8")


def _no_sources(n: int) -> Sources:
    none = np.full(n, -1, dtype=np.int32)
    return none, np.full(n, -1, dtype=np.int64), none.copy()


def _is_front_door(request_id: str | None) -> bool:
    return request_id is not None and request_id.startswith(PROBE_REQUEST_PREFIX)


def _hashed(rows: Rows, row: int) -> bytes | None:
    """A client that is only known by its hash: the hash's bytes, little endian."""
    if rows.clients is None or rows.clients[row] == ANONYMOUS:
        return None
    return int(rows.clients[row]).to_bytes(8, "little")
