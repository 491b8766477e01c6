"""Native events of a whole fetch in one compiled call; what it leaves is read record by record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.events import kernels
from streams.events.decimals import PADDING
from streams.events.rows import Layout


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
    clients, requests : int64 (r, 2)
        Where in `data` the client's name and a front-door id begin and end; equal where there is none.
    """

    data: NDArray[np.uint8]
    counts: NDArray[np.int64]
    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    scored: bool
    clients: NDArray[np.int64]
    requests: NDArray[np.int64]

    def text(self, span: NDArray[np.int64]) -> bytes | None:
        """The bytes of one client's name or request id; None for an empty span."""
        return self.data[span[0] : span[1]].tobytes() or None


def scan(values: Sequence[bytes], layout: Layout) -> Scan:
    """Read the records that are native events of the usual form.

    Parameters
    ----------
    values : sequence of bytes
        Their values.
    """
    place = layout.place
    names = [layout.options.model, place.name if place.kind == "field" else "", *layout.options.schema.classes]
    texts = [name.encode("utf-8", "surrogatepass") for name in names]
    parts = [*values, b"".join(texts), bytes(PADDING)]
    data = np.frombuffer(bytearray(b"\0").join(parts), dtype=np.uint8)
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    stops = np.cumsum(lengths + 1) - 1
    starts = stops - lengths
    r = len(values)
    bounds = starts[r] + np.cumsum([0, *map(len, texts)])
    counts, scored = np.zeros(r, dtype=np.int64), np.zeros(r, dtype=np.bool_)
    spans = np.zeros((r, 2), dtype=np.int64), np.zeros((r, 2), dtype=np.int64)
    room = r + 1
    inputs, outputs = np.empty((room, layout.width)), np.empty((room, len(layout.classes)))
    labels = np.empty(room, dtype=np.int32)
    record = row = 0
    while True:
        record, row = kernels.events(
            data,
            starts[:r],
            stops[:r],
            record,
            row,
            (int(bounds[0]), int(bounds[1])),
            (int(bounds[1]), int(bounds[2])),
            bounds[2:],
            inputs,
            outputs,
            labels,
            counts,
            scored,
            *spans,
        )
        if record == r:
            break
        room *= 2
        inputs, outputs, labels = (_grown(column, row, room) for column in (inputs, outputs, labels))
    return Scan(data, counts, inputs[:row], outputs[:row], labels[:row], bool(scored.any()), *spans)


def _grown(column: NDArray[Any], used: int, room: int) -> NDArray[Any]:
    grown = np.empty((room, *column.shape[1:]), dtype=column.dtype)
    grown[:used] = column[:used]
    return grown
