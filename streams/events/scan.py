"""The usual records of a whole fetch in one compiled call; what it leaves is read record by record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.events import kernels
from streams.events.decimals import PADDING
from streams.events.rows import EMBEDDING, Layout

#: Parameter of a tensor that says how many raw bytes it has behind the JSON.
BINARY_SIZE = "binary_data_size"
#: What a record with an embedding holds, unless the name has escapes, which leave the record to the library path.
_EMBEDDING = f'"{EMBEDDING}"'.encode()


@dataclass(frozen=True, slots=True)
class Scan:
    """What the compiled reader made of some records.

    Attributes
    ----------
    data : uint8 (m,)
        The records' bytes one after another.
    counts : int64 (r,)
        Rows of each record; 0 for one that it left.
    inputs : float64 (n, d); outputs : float64 (n, k), NaN where there are none; labels : int32 (n,)
        Rows of the records in order.
    scored : bool
        Some row has outputs.
    embeddings : float64 (n, e) or None
        NaN in rows without one.
    clients, requests : int64 (r, 2)
        Where in `data` the client's name and a front-door id begin and end; equal where there is none.
    """

    data: NDArray[np.uint8]
    counts: NDArray[np.int64]
    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    scored: bool
    embeddings: NDArray[np.float64] | None
    clients: NDArray[np.int64]
    requests: NDArray[np.int64]

    def text(self, span: NDArray[np.int64]) -> bytes | None:
        """The bytes of one client's name or request id; None for an empty span."""
        return self.data[span[0] : span[1]].tobytes() or None


def scan(values: Sequence[bytes], json_lengths: NDArray[np.int64] | None, forms: int, layout: Layout) -> Scan:
    """Read the records that are of the usual form.

    Parameters
    ----------
    values : sequence of bytes
        Their values.
    json_lengths : int64 (r,) or None
        What a record's header says of its JSON's bytes, -1 for a record without that header.
    forms : int
        What they may be: `kernels.NATIVE`, `kernels.OIP` or both.
    layout : Layout
    """
    place = layout.place
    texts = [
        layout.options.model,
        place.name if place.kind == "field" else "",
        place.name if place.kind == "parameter" else "",
        BINARY_SIZE,
        *layout.options.schema.classes,
    ]
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    parts = [*values, b"".join(encoded), bytes(PADDING)]
    data = np.frombuffer(bytearray(b"\0").join(parts), dtype=np.uint8)
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    stops = np.cumsum(lengths + 1) - 1
    starts = stops - lengths
    r = len(values)
    bounds = (starts[r] + np.cumsum([0, *map(len, encoded)])).tolist()
    spans = list(itertools.pairwise(bounds))
    model, field, parameter, binary_size = spans[:4]
    names = kernels.Names(model, field, parameter, binary_size, np.array(bounds[4:], dtype=np.int64))
    starts, stops = starts[:r], stops[:r]
    if json_lengths is None:
        json_lengths = np.full(r, -1, dtype=np.int64)
    json_stops = np.where(json_lengths < 0, -1, starts + json_lengths)
    counts, scored = np.zeros(r, dtype=np.int64), np.zeros(r, dtype=np.bool_)
    found = np.zeros((r, 2), dtype=np.int64), np.zeros((r, 2), dtype=np.int64)
    room = r + 1
    inputs, outputs = np.empty((room, layout.width)), np.empty((room, layout.k))
    labels = np.empty(room, dtype=np.int32)
    record = row = 0
    while True:
        columns = inputs, outputs, labels, counts, scored, *found
        places = data, starts, json_stops, stops
        record, row = kernels.records(*places, *kernels.tried(forms), record, row, names, *columns)
        if record == r:
            break
        room *= 2
        inputs, outputs, labels = (_grown(column, row, room) for column in (inputs, outputs, labels))
    inputs, outputs, labels = inputs[:row], outputs[:row], labels[:row]
    left = counts > layout.options.max_record_rows  # the library path refuses them
    embeddings: NDArray[np.float64] | None = None
    if layout.embedding_width is not None:
        asked = np.fromiter((_EMBEDDING in value for value in values), dtype=np.bool_, count=r)
        if asked.any():
            embeddings, unread = np.full((row, layout.embedding_width), np.nan), np.zeros(r, dtype=np.bool_)
            kernels.embeddings(data, starts, asked, counts, embeddings, unread)
            left |= unread
    if left.any():
        keep = np.repeat(~left, counts)
        inputs, outputs, labels = inputs[keep], outputs[keep], labels[keep]
        embeddings = None if embeddings is None else embeddings[keep]
        counts[left], scored[left] = 0, False
        for spans_found in found:
            spans_found[left] = 0
    return Scan(data, counts, inputs, outputs, labels, bool(scored.any()), embeddings, *found)


def _grown(column: NDArray[Any], used: int, room: int) -> NDArray[Any]:
    grown = np.empty((room, *column.shape[1:]), dtype=column.dtype)
    grown[:used] = column[:used]
    return grown
