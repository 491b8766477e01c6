"""From records to one columnar batch: every codec's frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.events.batch import DeadLetter, DecodeOptions, InferenceBatch, ProbeCandidate, Reason, Record
from streams.events.identity import hash_clients
from streams.events.refusal import Refusal
from streams.events.rows import Layout, Rows

#: Header of records that say they are probes, and how front-door ids begin (`streams.probes.marks` verifies both).
PROBE_HEADER = "vedette-probe"
PROBE_REQUEST_PREFIX = "vp1."
#: Broker time comes in milliseconds and is kept in microseconds.
MICROSECONDS = 1000

Read = Callable[[Record, bytes, Layout], Rows]
"""Reads the rows of one record, whose value is passed beside it; raises `Refusal` when there are none."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one record and where they go."""

    record: int
    rows: Rows


def assemble(records: Sequence[Record], options: DecodeOptions, read: Read) -> InferenceBatch:
    """Decode records one by one with `read` and lay their rows out as columns, in order."""
    layout = Layout(options)
    dead: list[DeadLetter] = []
    blocks: list[_Block] = []
    for place, record in enumerate(records):
        try:
            rows = read(record, _value(record, options), layout)
        except Refusal as refusal:
            dead.append(DeadLetter(record.offset, refusal.reason, refusal.detail))
            continue
        dead.extend(DeadLetter(record.offset, part.reason, part.detail, part.rows) for part in rows.refused)
        if len(rows):
            blocks.append(_Block(place, rows))
    return _lay_out(records, options, layout, blocks, dead)


def _value(record: Record, options: DecodeOptions) -> bytes:
    value = record.value
    if not value:
        raise Refusal(Reason.EMPTY, "the record has no value")
    if len(value) > options.max_record_bytes:
        detail = f"the record has {len(value):,} bytes; {options.max_record_bytes:,} are allowed"
        raise Refusal(Reason.TOO_LARGE, detail)
    return value


def _lay_out(
    records: Sequence[Record],
    options: DecodeOptions,
    layout: Layout,
    blocks: Sequence[_Block],
    dead: Sequence[DeadLetter],
) -> InferenceBatch:
    counts = np.array([len(block.rows) for block in blocks], dtype=np.int64)
    stops = np.cumsum(counts)
    total = int(stops[-1]) if len(blocks) else 0
    starts = stops - counts
    inputs = np.empty((total, layout.width))
    labels = np.empty(total, dtype=np.int32)
    outputs: NDArray[np.float64] | None = None
    if any(block.rows.outputs is not None for block in blocks):
        outputs = np.full((total, len(layout.classes)), np.nan)
    offsets = np.array([records[block.record].offset for block in blocks], dtype=np.int64)
    times = np.array([records[block.record].timestamp for block in blocks], dtype=np.int64) * MICROSECONDS
    places = np.arange(total, dtype=np.int64) - np.repeat(starts, counts)
    clients = np.repeat(hash_clients([block.rows.client or b"" for block in blocks], options.client_key), counts)
    marks = np.full(total, -1, dtype=np.int32)
    sources: tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]] | None = None
    requests: list[ProbeCandidate] = []
    for block, start, stop in zip(blocks, starts.tolist(), stops.tolist()):
        rows = block.rows
        inputs[start:stop] = rows.inputs
        labels[start:stop] = rows.labels
        if outputs is not None and rows.outputs is not None:
            outputs[start:stop] = rows.outputs
        if rows.places is not None:
            places[start:stop] = rows.places
        if rows.clients is not None:
            clients[start:stop] = rows.clients
        if rows.sources is not None:
            if sources is None:
                ids, none = np.full(total, -1, dtype=np.int64), np.full(total, -1, dtype=np.int32)
                sources = none, ids, none.copy()
            sources[0][start:stop], sources[1][start:stop], sources[2][start:stop] = rows.sources
        for candidate, first, last in candidates(records[block.record], rows):
            marks[start + first : start + last] = len(requests)
            requests.append(candidate)
    return InferenceBatch(
        inputs=inputs,
        outputs=outputs,
        labels=labels,
        clients=clients,
        times=np.repeat(times, counts),
        offsets=np.repeat(offsets, counts),
        rows=places.astype(np.int32),
        marks=marks,
        requests=tuple(requests),
        source_partitions=None if sources is None else sources[0],
        source_offsets=None if sources is None else sources[1],
        source_rows=None if sources is None else sources[2],
        dead=tuple(dead),
        records=len(records),
    )


def candidates(record: Record, rows: Rows) -> list[tuple[ProbeCandidate, int, int]]:
    """What in a record claims to be a probe, with its first row and the one behind its last."""
    mark = next((value for name, value in record.headers or () if name == PROBE_HEADER), None)
    request_id = rows.request_id
    if request_id is not None and not request_id.startswith(PROBE_REQUEST_PREFIX):
        request_id = None
    if mark is not None or request_id is not None:
        payload = b"" if mark is None else record.value or b""
        return [(ProbeCandidate(record.offset, mark, request_id, rows.client, payload), 0, len(rows))]
    return [
        (ProbeCandidate(record.offset, None, claim, _hashed(rows, first)), first, last)
        for claim, first, last in rows.claims
    ]


def _hashed(rows: Rows, row: int) -> bytes | None:
    """A client that is only known by its hash: the hash's bytes, little endian."""
    if rows.clients is None or rows.clients[row] == 0:
        return None
    return int(rows.clients[row]).to_bytes(8, "little")
