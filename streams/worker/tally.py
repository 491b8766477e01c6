"""What a batch adds to counters and histograms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Verdicts

#: Microseconds of a minute.
MINUTE_US = 60_000_000
MINUTES_AN_HOUR = 60

#: Buckets of a histogram of p-values, and how many of them a decade of p has.
BUCKETS = 64
BUCKETS_A_DECADE = 8
#: Bits of the mantissa that choose a bucket: p is looked up with its other bits cut off.
_MANTISSA_BITS = 6
_SHIFT = 52 - _MANTISSA_BITS
#: Octaves below 1 in the table of buckets; anything smaller falls in the last bucket.
_OCTAVES = 28
_LARGEST_COUNT = 2**32 - 1
#: Name under which the fused p-value has its histogram.
FUSED = "fused"


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
    """Running histograms of a partition's p-values, one a detector and one of the fused."""

    def __init__(self, packed: Mapping[str, bytes]) -> None:
        self._counts = {name: np.frombuffer(content, dtype="<u4").astype(np.int64) for name, content in packed.items()}
        self._names: tuple[str, ...] = ()
        self._stack = np.zeros((0, BUCKETS), dtype=np.int64)

    def add(self, verdicts: Verdicts) -> None:
        """Count a batch."""
        names = (*verdicts.detectors, FUSED)
        if names != self._names:
            self._keep()
            empty = np.zeros(BUCKETS, dtype=np.int64)
            self._names = names
            self._stack = np.stack([self._counts.get(name, empty) for name in names])
        found = buckets(np.column_stack([verdicts.pvalues, verdicts.fused]))
        found += np.arange(len(names), dtype=np.int64) * BUCKETS
        self._stack += np.bincount(found.ravel(), minlength=len(names) * BUCKETS).reshape(len(names), BUCKETS)

    def packed(self) -> dict[str, bytes]:
        """Little-endian uint32 counts of the detectors that spoke last."""
        whole = np.minimum(self._stack, _LARGEST_COUNT).astype("<u4")
        return {name: whole[place].tobytes() for place, name in enumerate(self._names)}

    def _keep(self) -> None:
        for place, name in enumerate(self._names):
            self._counts[name] = self._stack[place].copy()


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
