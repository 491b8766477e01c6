"""What a batch adds to counters and histograms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.drift import BLOCKS, block_of
from detectors.calibration.examination import FUSED
from detectors.contract import ANONYMOUS, Batch, Verdicts
from streams.store.hours import hour_field, pack_hour, unpack_hour

#: Microseconds of a minute.
MINUTE_US = 60_000_000
MINUTES_AN_HOUR = 60
HOUR_US = MINUTE_US * MINUTES_AN_HOUR

#: Buckets of a histogram of p-values, and how many of them a decade of p has.
BUCKETS = 64
BUCKETS_A_DECADE = 8
#: Bits of the mantissa that choose a bucket: p is looked up with its other bits cut off.
_MANTISSA_BITS = 6
_SHIFT = 52 - _MANTISSA_BITS
#: Octaves below 1 in the table of buckets; anything smaller falls in the last bucket.
_OCTAVES = 28
_LARGEST_COUNT = 2**32 - 1


def _table() -> NDArray[np.int64]:
    cells = np.arange(_OCTAVES << _MANTISSA_BITS)
    bits = (np.array(1.0).view(np.int64) >> _SHIFT) - cells
    values = (bits << _SHIFT).view(np.float64)
    return np.minimum(np.floor(BUCKETS_A_DECADE * -np.log10(values)), BUCKETS - 1).astype(np.int64)


_ONE = int(np.array(1.0).view(np.int64)) >> _SHIFT
_BUCKET_OF = _table()


def buckets(pvalues: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of each p-value: floor(8 * -log10 p'), p' being p with its mantissa cut to six bits; at most 63.

    Found by a table on the bits of p, so that it is the same on every machine and costs no logarithm.
    """
    cells = _ONE - (np.ascontiguousarray(pvalues).view(np.int64) >> _SHIFT)
    np.clip(cells, 0, len(_BUCKET_OF) - 1, out=cells)
    return np.asarray(_BUCKET_OF[cells])


class Histograms:
    """Running histograms of a partition's p-values, one a detector and one of the fused; and `BlockHours`."""

    def __init__(self, packed: Mapping[str, bytes]) -> None:
        self._counts = {
            name: np.frombuffer(content, dtype="<u4").astype(np.int64)
            for name, content in packed.items()
            if len(content) == 4 * BUCKETS
        }
        self._names: tuple[str, ...] = ()
        self._stack = np.zeros((0, BUCKETS), dtype=np.int64)
        self._hours = BlockHours(packed)

    def add(self, verdicts: Verdicts, batch: Batch | None = None) -> None:
        """Count a batch; without its rows' clients and times no hour is counted."""
        names = (*verdicts.detectors, FUSED)
        if names != self._names:
            self._keep()
            empty = np.zeros(BUCKETS, dtype=np.int64)
            self._names = names
            self._stack = np.stack([self._counts.get(name, empty) for name in names])
        found = buckets(np.column_stack([verdicts.pvalues, verdicts.fused]))
        if batch is not None:
            self._hours.add(batch, found[:, -1])
        found += np.arange(len(names), dtype=np.int64) * BUCKETS
        self._stack += np.bincount(found.ravel(), minlength=len(names) * BUCKETS).reshape(len(names), BUCKETS)

    def packed(self) -> dict[str, bytes]:
        """Everything: little-endian uint32 counts of the detectors that spoke last, and hours (`pack_hour`)."""
        return self._packed() | self._hours.packed()

    def changed(self) -> dict[str, bytes]:
        """The same, but only those hours that changed since the last call."""
        return self._packed() | self._hours.changed()

    def _packed(self) -> dict[str, bytes]:
        whole = np.minimum(self._stack, _LARGEST_COUNT).astype("<u4")
        return {name: whole[place].tobytes() for place, name in enumerate(self._names)}

    def _keep(self) -> None:
        for place, name in enumerate(self._names):
            self._counts[name] = self._stack[place].copy()


class BlockHours:
    """Rows and oddness of each block of clients, hour by hour of broker time: what the drift watch reads.

    Oddness of a row is the bucket of its fused p-value. Rows without a client count nowhere. Hours a day apart share a
    place: the newer one takes it.
    """

    def __init__(self, packed: Mapping[str, bytes]) -> None:
        self._hours: dict[str, tuple[int, NDArray[np.int64]]] = {}
        for name, content in packed.items():
            found = unpack_hour(content)
            if found is not None and name == hour_field(found[0]):
                self._hours[name] = found
        self._touched: set[str] = set()

    def add(self, batch: Batch, fused: NDArray[np.int64]) -> None:
        """Count a batch, in order of time; `fused` (n,) holds the bucket of each row."""
        if len(batch) == 0:
            return
        first, last = int(batch.times[0]) // HOUR_US, int(batch.times[-1]) // HOUR_US
        if first == last:
            self._add(first, batch.clients, fused)
            return
        hours = batch.times // HOUR_US
        for hour in np.unique(hours).tolist():
            inside = hours == hour
            self._add(hour, batch.clients[inside], fused[inside])

    def _add(self, hour: int, clients: NDArray[np.uint64], fused: NDArray[np.int64]) -> None:
        name = hour_field(hour)
        known = self._hours.get(name)
        if known is None or known[0] != hour:
            known = self._hours[name] = (hour, np.zeros((2, BLOCKS), dtype=np.int64))
        blocks = block_of(clients)
        blocks[clients == ANONYMOUS] = BLOCKS
        known[1][0] += np.bincount(blocks, minlength=BLOCKS + 1)[:BLOCKS]
        # Sums of whole numbers below 2 ** 53: exact in any order.
        known[1][1] += np.bincount(blocks, weights=fused, minlength=BLOCKS + 1)[:BLOCKS].astype(np.int64)
        self._touched.add(name)

    def packed(self) -> dict[str, bytes]:
        """All of them."""
        return {name: pack_hour(*found) for name, found in self._hours.items()}

    def changed(self) -> dict[str, bytes]:
        """Those that changed since the last call."""
        found = {name: pack_hour(*self._hours[name]) for name in self._touched}
        self._touched.clear()
        return found


class Counters:
    """Counts of one batch, by minute of broker time; hours and totals are sums of them."""

    def __init__(self) -> None:
        self.minutes: dict[int, dict[str, int]] = {}

    def add(self, name: str, times: NDArray[np.int64], which: NDArray[np.bool_] | None = None) -> None:
        """Count rows or records at their times; `which` selects some of them."""
        if len(times) == 0:
            return
        first, last = int(times.min()) // MINUTE_US, int(times.max()) // MINUTE_US
        if first == last:
            self.add_one(name, first * MINUTE_US, len(times) if which is None else int(np.count_nonzero(which)))
            return
        chosen = times if which is None else times[which]
        for minute, count in zip(*np.unique(chosen // MINUTE_US, return_counts=True), strict=True):
            self.add_one(name, int(minute) * MINUTE_US, int(count))

    def add_one(self, name: str, time_us: int, count: int = 1) -> None:
        """Count at one moment."""
        if count:
            minute = self.minutes.setdefault(time_us // MINUTE_US, {})
            minute[name] = minute.get(name, 0) + count

    def hours(self) -> dict[int, dict[str, int]]:
        """Sums by hour since the epoch."""
        found: dict[int, dict[str, int]] = {}
        for minute, counts in self.minutes.items():
            _add(found.setdefault(minute // MINUTES_AN_HOUR, {}), counts)
        return found

    def totals(self) -> dict[str, int]:
        """Sums over everything."""
        found: dict[str, int] = {}
        for counts in self.minutes.values():
            _add(found, counts)
        return found


def _add(into: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count
