"""Broker time of a partition, made non-decreasing.

Under LogAppendTime the broker stamps records, and its clock is trusted. Under CreateTime the stamp is the logger's
clock: it may run backwards, and a single stamp from the far future must not carry the partition's time away, so it
moves time forward by a bounded jump at most. Time is a function of the log alone.

There are two clocks. Marks of probes expire by the one that all records move; traffic is stamped by the one that probes
do not move, or a prober whose clock is ahead would push all other rows forward.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from streams.events.batch import Record

#: The most by which one record that the broker did not stamp moves time forward.
MAX_JUMP_US = 3600 * 1_000_000
#: Kafka's number of LogAppendTime.
_LOG_APPEND_TIME = 1


class Clock:
    """Time of one partition: microseconds since the epoch, -1 before the first record.

    Parameters
    ----------
    last : int
        Of all records.
    traffic : int, optional
        Of all records but probes; default: the same.
    """

    def __init__(self, last: int = -1, traffic: int | None = None) -> None:
        self.last = last
        self.traffic = last if traffic is None else traffic
        self._apart = self.traffic != last

    def stamp(self, records: Sequence[Record]) -> NDArray[np.int64]:
        """(n,) times of consecutive records, and move on. Any cut of the log gives the same times."""
        self._apart = self.traffic != self.last
        times = _stamped(records, self.last)
        self.last = int(times[-1])
        return times

    def without(
        self, records: Sequence[Record], times: NDArray[np.int64], probes: Collection[int]
    ) -> NDArray[np.int64]:
        """Times (n,) of the records just stamped, those of traffic as if the probes were not there; moves on.

        Parameters
        ----------
        records : sequence of Record
        times : int64 (n,)
            What `stamp` gave; returned itself where probes change nothing.
        probes : collection of int
            Offsets of records that are probes; they keep their times.
        """
        if not probes and not self._apart:
            self.traffic = self.last
            return times
        places = [place for place, record in enumerate(records) if record.offset not in probes]
        if not places:
            return times
        times = times.copy()
        times[places] = _stamped([records[place] for place in places], self.traffic)
        self.traffic = int(times[places[-1]])
        return times


def _stamped(records: Sequence[Record], last: int) -> NDArray[np.int64]:
    stamps = np.array([record.timestamp for record in records], dtype=np.int64) * 1000
    first = max(int(stamps[0]), 0) if last < 0 else last
    steady = np.maximum(np.maximum.accumulate(stamps), first)
    return steady if int(steady[-1]) - first <= MAX_JUMP_US else _bounded(records, stamps, last)


def _bounded(records: Sequence[Record], stamps: NDArray[np.int64], last: int) -> NDArray[np.int64]:
    times = []
    for record, stamp in zip(records, stamps.tolist(), strict=True):
        trusted = last < 0 or getattr(record, "timestamp_type", 0) == _LOG_APPEND_TIME
        last = max(last, 0, stamp if trusted else min(stamp, last + MAX_JUMP_US))
        times.append(last)
    return np.array(times, dtype=np.int64)
