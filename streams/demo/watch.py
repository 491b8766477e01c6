"""What the demo's stage sees of Vedette: the same keys in Redis that the console and alert consumers read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis import Redis

from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Incident, IncidentChange, LevelName, ProbeSummary, WorkerStatus

#: Entries that one look takes of a stream.
STEP = 500
#: Signals and changes that are remembered, so that a demo may run for days.
REMEMBERED = 20_000
#: A worker that has not spoken for so long is gone.
STALE_SECONDS = 5.0


class SignalSeen(msgspec.Struct, frozen=True):
    """What is read of a signal (`streams.store.messages.SignalMessage`)."""

    id: str
    partition: int
    offset: int
    time: int
    rule: str
    level: LevelName
    entity: str
    entity_id: str
    members: list[tuple[int, int]]
    clients: list[str]
    pilot: bool


@dataclass(slots=True)
class Watch:
    """Reads on from where it was; every look is a fixed number of calls.

    Parameters
    ----------
    redis : redis.Redis
    model, topic : str
    partitions : int
    """

    redis: Redis
    model: str
    topic: str
    partitions: int
    signals: list[SignalSeen] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    workers: list[WorkerStatus] = field(default_factory=list)
    probes: list[ProbeSummary] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    """From the broker's time of a signal's row to the change of its incident, in order of the changes."""
    _after: dict[int, str] = field(default_factory=dict)
    _log_after: str = "0-0"

    def look(self) -> list[SignalSeen]:
        """Take in everything new; returns the new signals."""
        keys = ModelKeys(self.model)
        parts = [PartitionKeys(self.topic, partition) for partition in range(self.partitions)]
        pipe = self.redis.pipeline(transaction=False)
        for part in parts:
            pipe.xrange(part.signals, f"({self._after.get(part.partition, '0-0')}", "+", count=STEP)
        for part in parts:
            pipe.hgetall(part.totals)
        pipe.xrange(keys.log, f"({self._log_after}", "+", count=STEP)
        pipe.hvals(keys.open_incidents)
        pipe.hgetall(keys.workers)
        pipe.hgetall(keys.probe_results)
        answers: list[Any] = pipe.execute()
        fresh = self._take_signals(answers[: self.partitions])
        totals: dict[str, int] = {}
        for stored in answers[self.partitions : 2 * self.partitions]:
            for name, count in stored.items():
                totals[name.decode()] = totals.get(name.decode(), 0) + int(count)
        self.totals = totals
        log, open_ids, workers, probes = answers[2 * self.partitions :]
        self._take_log(log)
        self.incidents = self._open(keys, open_ids)
        oldest = (time.time() - STALE_SECONDS) * 1e6
        said = [msgspec.json.decode(value, type=WorkerStatus) for value in workers.values()]
        self.workers = [status for status in said if status.at >= oldest]
        self.probes = [msgspec.json.decode(value, type=ProbeSummary) for value in probes.values()]
        return fresh

    @property
    def assigned(self) -> int:
        """Partitions that living workers hold."""
        return len({partition for status in self.workers for partition in status.partitions})

    @property
    def lag(self) -> int:
        """Records not yet recorded."""
        return sum(status.lag for status in self.workers)

    @property
    def rows_per_second(self) -> float:
        """Rows recorded a second."""
        return sum(status.rows_per_second for status in self.workers)

    def settled(self) -> bool:
        """Whether the correlator has applied every signal that is there, and all of it has been taken in."""
        keys = ModelKeys(self.model)
        progress: dict[bytes, bytes] = self.redis.hgetall(keys.progress)  # type: ignore[assignment]  # not asyncio
        for partition in range(self.partitions):
            newest: Any = self.redis.xrevrange(PartitionKeys(self.topic, partition).signals, count=1)
            if newest and progress.get(f"{self.topic}:{partition}".encode()) != newest[0][0]:
                return False
        before = (len(self.signals), self._log_after)
        self.look()
        return (len(self.signals), self._log_after) == before

    def evidence(self, incident: str) -> list[SignalSeen]:
        """The evidence of one incident, oldest first."""
        stored: Any = self.redis.lrange(ModelKeys(self.model).evidence(incident), 0, -1)
        return [msgspec.json.decode(value, type=SignalSeen) for value in stored]

    def _take_signals(self, answers: Sequence[Any]) -> list[SignalSeen]:
        fresh = []
        for partition, entries in enumerate(answers):
            for _, fields in entries:
                fresh.append(msgspec.json.decode(fields[b"m"], type=SignalSeen))
            if entries:
                self._after[partition] = entries[-1][0].decode()
        self.signals = [*self.signals, *fresh][-REMEMBERED:]
        return fresh

    def _take_log(self, entries: Sequence[Any]) -> None:
        times = {signal.id: signal.time for signal in self.signals}
        for name, fields in entries:
            change = msgspec.json.decode(fields[b"m"], type=IncidentChange)
            if change.signal in times:
                written = int(name.partition(b"-")[0])
                self.latencies_ms.append(max(0.0, written - times[change.signal] / 1000))
        if entries:
            self._log_after = entries[-1][0].decode()
        self.latencies_ms = self.latencies_ms[-REMEMBERED:]

    def _open(self, keys: ModelKeys, names: Sequence[bytes]) -> list[Incident]:
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.hget(keys.incident(name.decode()), "m")
        found = [msgspec.json.decode(value, type=Incident) for value in pipe.execute() if value]
        return sorted(found, key=lambda one: (one.level != "page", -one.last_seen))
