"""Broker time of a partition, made non-decreasing.

Under LogAppendTime the broker stamps records, and its clock is trusted. Under CreateTime the stamp is the logger's
clock: it may run backwards, and a single stamp from the far future must not carry the partition's time away, so it
moves time forward by a bounded jump at most. Time is a function of the log alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streams.events.batch import Record

#: The most by which one record that the broker did not stamp moves time forward.
MAX_JUMP_US = 3600 * 1_000_000
#: Kafka's number of LogAppendTime.
_LOG_APPEND_TIME = 1


class Clock:
    """Time of one partition: microseconds since the epoch; `last` is -1 before the first record."""

    def __init__(self, last: int = -1) -> None:
        self.last = last

    def stamp(self, records: Sequence[Record]) -> NDArray[np.int64]:
        """(n,) times of consecutive records, and move on. Any cut of the log gives the same times."""
        stamps = np.array([record.timestamp for record in records], dtype=np.int64) * 1000
        first = max(int(stamps[0]), 0) if self.last < 0 else self.last
        steady = np.maximum(np.maximum.accumulate(stamps), first)
        if int(steady[-1]) - first > MAX_JUMP_US:
            steady = self._bounded(records, stamps)
        self.last = int(steady[-1])
        return steady

    def _bounded(self, records: Sequence[Record], stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        times = []
        last = self.last
        for record, stamp in zip(records, stamps.tolist(), strict=True):
            trusted = last < 0 or getattr(record, "timestamp_type", 0) == _LOG_APPEND_TIME
            last = max(last, 0, stamp if trusted else min(stamp, last + MAX_JUMP_US))
            times.append(last)
        return np.array(times, dtype=np.int64)
