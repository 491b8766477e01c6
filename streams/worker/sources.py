"""Rows that were delivered again, recognised by their source coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streams.events.batch import InferenceBatch

#: Coordinates that fit one number are compared at once; others one by one.
_ROW_BITS = 23
_OFFSET_LIMIT = 1 << 40


class Sources:
    """The newest (offset, row) seen of each source partition; coordinates grow within one."""

    def __init__(self) -> None:
        self._newest: dict[int, tuple[int, int]] = {}

    def repeated(self, batch: InferenceBatch) -> NDArray[np.bool_] | None:
        """(n,) which rows are not newer than one before them; None when no record carries coordinates. Moves on."""
        if batch.source_partitions is None or batch.source_offsets is None or batch.source_rows is None:
            return None
        again = np.zeros(len(batch), dtype=np.bool_)
        for source in np.unique(batch.source_partitions).tolist():
            if source < 0:
                continue  # the record carries none
            mine = np.flatnonzero(batch.source_partitions == source)
            again[mine] = self._judge(source, batch.source_offsets[mine], batch.source_rows[mine])
        return again

    def _judge(self, source: int, offsets: NDArray[np.int64], rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        newest = self._newest.get(source, (-1, -1))
        fits = int(offsets.min()) >= 0 and int(offsets.max()) < _OFFSET_LIMIT and newest[0] < _OFFSET_LIMIT
        fits = fits and int(rows.min()) >= 0 and int(rows.max()) < 1 << _ROW_BITS and newest[1] < 1 << _ROW_BITS
        if fits:
            places = (offsets << _ROW_BITS) + rows
            before = -1 if newest[0] < 0 else (newest[0] << _ROW_BITS) + newest[1]
            seen = np.maximum.accumulate(np.concatenate([np.array([before], dtype=np.int64), places]))
            last = int(seen[-1])
            if last >= 0:
                self._newest[source] = (last >> _ROW_BITS, last & ((1 << _ROW_BITS) - 1))
            return np.asarray(places <= seen[:-1])
        again = []
        for place in zip(offsets.tolist(), rows.tolist(), strict=True):
            again.append(place <= newest)
            newest = max(newest, place)
        self._newest[source] = newest
        return np.array(again, dtype=np.bool_)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything, as (s,) arrays: source partitions, offsets, rows."""
        names = sorted(self._newest)
        return {
            "partitions": np.array(names, dtype=np.int64),
            "offsets": np.array([self._newest[name][0] for name in names], dtype=np.int64),
            "rows": np.array([self._newest[name][1] for name in names], dtype=np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """The inverse of `arrays`."""
        columns = (arrays[name].tolist() for name in ("partitions", "offsets", "rows"))
        self._newest = {source: (offset, row) for source, offset, row in zip(*columns, strict=True)}
