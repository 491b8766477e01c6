"""Benign client-weeks, replayed: how far each statistic has come in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import repeaters
from detectors.calibration.alarms import FalseAlarm
from detectors.calibration.weeks import ClientWeeks, client_weeks, whole_weeks
from detectors.contract import ANONYMOUS, Progress
from detectors.errors import FitError
from detectors.queries import walk as walking
from detectors.queries.intent import IntentTest
from detectors.queries.memory import POOL_PLACES, Memory
from detectors.queries.walk import Columns, Tables
from detectors.signals import OWN_SHARE, judge, member_order, next_check, own_cluster

#: Multiplier of Fibonacci hashing (Knuth 6.4), to deal clients out to partitions.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def take(columns: Columns, which: NDArray[np.bool_]) -> Columns:
    """The rows that `which` selects."""
    return Columns(np.ascontiguousarray(columns.inputs[which]), columns.rows[which])


def memory_for(columns: Columns, index_rows: int, pool: int = 1) -> Memory:
    """An empty state in which every client of these rows has room."""
    return Memory(columns.inputs.shape[1], max(2, len(np.unique(columns.rows["client"]))), index_rows, pool)


def measure(columns: Columns, tables: Tables, index_rows: int) -> NDArray[Any]:
    """Walk over rows with an empty state and see what each measured."""
    trace = walking.empty_trace(len(columns.rows))
    for _ in walking.stops(columns, tables.packed(), memory_for(columns, index_rows), trace):
        pass
    return trace


#: More weeks than this are taken for a wrong time, or a wrong length of a week.
MOST_WEEKS = 1_000_000
#: Stands for the client-week of rows whose clients set no thresholds.
OTHERS = -2


@dataclass(frozen=True, slots=True)
class Intentions:
    """How clearly the intent test spoke at most (`IntentVerdict.ratio`); 0 where it never did.

    Attributes
    ----------
    own : float64 (m,)
        In each client-week, of the client's own clusters.
    together : float64 (m,)
        In each client-week, of clusters of several accounts, at its rows.
    index, shared : float64 (u,)
        In each partition-week, of clusters of the index of one account, and of several.
    elsewhere : float
        Of clusters of several accounts, at rows of clients that are none of the m client-weeks'.
    """

    own: NDArray[np.float64]
    together: NDArray[np.float64]
    index: NDArray[np.float64]
    shared: NDArray[np.float64]
    elsewhere: float


@dataclass(frozen=True, slots=True)
class History:
    """The clients that set thresholds.

    Attributes
    ----------
    weeks : ClientWeeks
        m units.
    same, opposite, sequence, oddest : float64 (m,)
        Largest evidence of clusters (A and B), of the sequential test, and the largest fused score of one row.
    index : float64 (u,)
        Largest evidence of the index in each partition-week.
    repeating : bool (m,)
        Units of clients that repeat themselves.
    parts : tuple of (Columns, int64 (n,), int64 (n,))
        Rows of all clients in each simulated partition; the client-week of each row, -1 where its client has one of the
        m but not in that week, `OTHERS` where it has none; and the week.
    clients_a_week : int
        Most clients, of all pools, that a week saw.
    start, week_us : int
        When the first week begins, and how long one is, microseconds.
    alarm : bool (m,)
        Units that rest on approved false alarms: they set no ticket threshold.
    spoke : float64 (m,)
        Of those: how clearly the intent test spoke, as `intentions` tells it.
    counted : int
        Units that the replayed rows made; the ranks of thresholds follow from their number.
    """

    weeks: ClientWeeks
    same: NDArray[np.float64]
    opposite: NDArray[np.float64]
    sequence: NDArray[np.float64]
    oddest: NDArray[np.float64]
    index: NDArray[np.float64]
    repeating: NDArray[np.bool_]
    parts: tuple[tuple[Columns, NDArray[np.int64], NDArray[np.int64]], ...]
    index_rows: int
    clients_a_week: int
    start: int
    week_us: int
    alarm: NDArray[np.bool_]
    spoke: NDArray[np.float64]
    counted: int

    @classmethod
    def replay(
        cls,
        columns: Columns,
        times: NDArray[np.int64],
        chosen: NDArray[np.bool_],
        tables: Tables,
        index_rows: int,
        week_us: int,
        partitions: int,
        repeating: NDArray[np.bool_],
    ) -> Self:
        """Replay the rows that `chosen` selects, with tables that cross nothing.

        `times` (n,) and `repeating` (n,), rows of clients known to repeat themselves, are of all rows of `columns`.
        Where there is not a whole week, everything counts as one. The others' rows are replayed too, as the index
        compares with them, but their statistics count for nothing.

        Raises
        ------
        FitError
            When there are more than `MOST_WEEKS`.
        """
        count = whole_weeks(times, week_us)
        start = int(times.min()) if len(times) else 0
        if count == 0:
            count, week_us = 1, max(1, int(times.max()) - start + 1) if len(times) else 1
        if count > MOST_WEEKS:
            raise FitError(
                f"the events reach over {count:,} weeks of {week_us / 1e6:g} seconds; at most {MOST_WEEKS:,} are "
                "counted: look whether all times are right, or make a week longer"
            )
        seen = _weeks_seen([(times - start) // week_us], count)
        everyone = client_weeks(columns.rows["client"], times, start, week_us, count)
        units = client_weeks(columns.rows["client"][chosen], times[chosen], start, week_us, count)
        unit_of = np.full(len(times), OTHERS, dtype=np.int64)
        unit_of[chosen] = units.unit
        partition = _partition_of(columns.rows["client"], partitions)
        same, opposite, sequence, oddest = (np.zeros(len(units)) for _ in range(4))
        index: list[NDArray[np.float64]] = []
        parts = []
        for part in range(int(partition.max()) + 1 if len(partition) else 0):
            inside = partition == part
            here, unit = take(columns, inside), unit_of[inside]
            week = (times[inside] - start) // week_us
            trace = measure(here, tables, index_rows)
            for found, values in (
                (same, trace["evidence_a"]),
                (opposite, trace["evidence_b"]),
                (sequence, trace["sequence"]),
                (oddest, here.rows["oddness"]),
            ):
                np.maximum.at(found, unit[unit >= 0], values[unit >= 0])
            index.append(_week_maxima(trace["index_shared"], week, seen))
            parts.append((here, unit, week))
        known = np.unique(columns.rows["client"][repeating])
        evident = repeaters.evident(np.maximum(same, opposite))
        known = np.union1d(known, units.clients[evident])
        return cls(
            weeks=units,
            same=same,
            opposite=opposite,
            sequence=sequence,
            oddest=oddest,
            index=np.concatenate([*index, np.empty(0)]),
            repeating=np.isin(units.clients, known),
            parts=tuple(parts),
            index_rows=index_rows,
            clients_a_week=everyone.clients_a_week(),
            start=start,
            week_us=week_us,
            alarm=np.zeros(len(units), dtype=np.bool_),
            spoke=np.zeros(len(units)),
            counted=len(units),
        )

    @property
    def weeks_seen(self) -> int:
        """Whole weeks in which any event stands."""
        return len(_weeks_seen([week for _, _, week in self.parts], self.weeks.whole_weeks))

    def holds(self, client: int, time: int) -> bool:
        """Whether the client-week of that time was replayed."""
        week = (time - self.start) // self.week_us
        return bool(np.any((self.weeks.clients == np.uint64(client)) & (self.weeks.weeks == week)))

    def with_alarms(self, alarms: Sequence[FalseAlarm]) -> History:
        """The same with approved false alarms, one a client and week, as client-weeks that were not replayed."""
        clients = np.array([alarm.client for alarm in alarms], dtype=np.uint64)
        weeks = np.array([(alarm.time - self.start) // self.week_us for alarm in alarms], dtype=np.int64)

        def grown(name: str) -> NDArray[np.float64]:
            said = np.array([getattr(alarm, name) for alarm in alarms])
            return np.concatenate([getattr(self, name), said])

        return replace(
            self,
            weeks=replace(
                self.weeks,
                clients=np.concatenate([self.weeks.clients, clients]),
                weeks=np.concatenate([self.weeks.weeks, weeks]),
            ),
            same=grown("same"),
            opposite=grown("opposite"),
            sequence=grown("sequence"),
            oddest=np.concatenate([self.oddest, np.zeros(len(alarms))]),
            spoke=grown("spoke"),
            alarm=np.concatenate([self.alarm, np.ones(len(alarms), dtype=np.bool_)]),
            repeating=np.concatenate([self.repeating, np.zeros(len(alarms), dtype=np.bool_)]),
        )

    def intentions(
        self, tables: Tables, intent: IntentTest, progress: Progress, excused: Sequence[int] = ()
    ) -> Intentions:
        """How clearly the intent test spoke. It runs as it does in production, but goes on after a page.

        It is asked about clients' clusters beyond their ticket thresholds, and about clusters of the index from
        `INDEX_EXAMINED` on, where it counts for the client at whose row it was asked. Of clusters of the index most of
        which clients sent that are `excused`, it isn't.
        """
        quiet = np.array(list(excused), dtype=np.uint64)
        own, together, elsewhere = self.spoke.copy(), np.zeros(len(self.spoke)), 0.0
        of_one, of_several, packed = [], [], tables.packed()
        seen = _weeks_seen([week for _, _, week in self.parts], self.weeks.whole_weeks)
        for done, (columns, unit, week) in enumerate(self.parts):
            trace = walking.empty_trace(len(unit))
            memory = memory_for(columns, self.index_rows, POOL_PLACES)
            pool, index, shared = memory.pool, np.zeros(len(unit)), np.zeros(len(unit))
            for row, events in walking.stops(columns, packed, memory, trace):
                for kind, place, owner in events:
                    if kind in (walking.CLUSTER_CHECK, walking.INDEX_CHECK) and pool.heads["owner"][place] == owner:
                        size = int(pool.heads["size"][place])
                        pool.heads["check"][place] = next_check(size)
                        if kind == walking.CLUSTER_CHECK and unit[row] < 0:
                            continue
                        several, client = False, int(columns.rows["client"][row])
                        if kind == walking.INDEX_CHECK:
                            senders = pool.members["client"][place, member_order(size)]
                            several = not own_cluster(senders, client)
                            if np.mean(np.isin(senders, quiet)) >= OWN_SHARE:
                                continue
                            strong = np.array([trace[row]["evidence_a"], trace[row]["evidence_b"]])
                            if not several and np.any(strong > tables.thresholds[:2]):
                                continue
                        clear = judge(intent, memory, int(place)).ratio
                        if kind == walking.INDEX_CHECK:
                            (shared if several else index)[row] = clear
                        if unit[row] >= 0:
                            found = together if several else own
                            found[unit[row]] = max(found[unit[row]], clear)
                        elif several and unit[row] == OTHERS and client != ANONYMOUS:
                            elsewhere = max(elsewhere, clear)
                if row % 64 == 0:
                    progress("trying the intent test on benign clusters", (done + row / len(unit)) / len(self.parts))
            of_one.append(_week_maxima(index, week, seen))
            of_several.append(_week_maxima(shared, week, seen))
        index, shared = (np.concatenate([*parts, np.empty(0)]) for parts in (of_one, of_several))
        return Intentions(own, together, index, shared, elsewhere)


def _partition_of(clients: NDArray[np.uint64], partitions: int) -> NDArray[np.int64]:
    """A partition for each row: by client; anonymous rows go round."""
    found = ((clients * _SPREAD) >> np.uint64(32)).astype(np.int64) % partitions
    anonymous = np.flatnonzero(clients == ANONYMOUS)
    found[anonymous] = np.arange(len(anonymous)) % partitions
    return found


def _weeks_seen(weeks: Sequence[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """The whole weeks, of `count`, in which any row stands: others tell nothing of the index."""
    found = np.unique(np.concatenate([*weeks, np.empty(0, dtype=np.int64)]))
    return found[(found >= 0) & (found < count)]


def _week_maxima(values: NDArray[np.float64], week: NDArray[np.int64], seen: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest value of each week of `seen`, 0 where this partition has no row."""
    found = np.zeros(len(seen))
    inside = np.isin(week, seen)
    np.maximum.at(found, np.searchsorted(seen, week[inside]), values[inside])
    return found
