"""What the console shows, read from Redis: merged over partitions, a fixed number of calls whatever the traffic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis

from streams.config import ModelSettings
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Incident, ProbeSummary, SignalMessage, WorkerStatus

#: A worker that has not spoken for so long is shown as gone.
WORKER_STALE_SECONDS = 10.0
#: Incidents on the live page.
LISTED_INCIDENTS = 50
#: Evidence signals read for an incident page.
SHOWN_EVIDENCE = 40
#: Minutes of traffic in the live page's plot.
PLOTTED_MINUTES = 30

_SUMMED = ("rows", "scored", "probes", "probes_excluded", "invalid", "duplicates", "tickets", "pages", "anonymous")


@dataclass(frozen=True, slots=True)
class Overview:
    """One look at one model."""

    model: str
    at: float
    mode: str
    workers: list[WorkerStatus]
    gone: list[WorkerStatus]
    totals: dict[str, int]
    minutes: list[tuple[int, int, int, int]]
    """(minute since the epoch, rows, tickets, pages), oldest first."""
    incidents: list[Incident]
    open_pages: int
    open_tickets: int
    probes: list[ProbeSummary]

    @property
    def lag(self) -> int:
        """Records not yet recorded, over all living workers."""
        return sum(worker.lag for worker in self.workers)

    @property
    def rows_per_second(self) -> float:
        """Rows recorded a second, over all living workers."""
        return sum(worker.rows_per_second for worker in self.workers)


async def overview(redis: Redis, model: ModelSettings, now: float | None = None) -> Overview:
    """Everything that the live page shows, in three round trips."""
    now = time.time() if now is None else now
    keys = ModelKeys(model.name)
    first = redis.pipeline(transaction=False)
    first.hgetall(keys.workers)
    first.get(keys.mode)
    first.zrevrange(keys.incidents, 0, LISTED_INCIDENTS - 1)
    first.hgetall(keys.probe_results)
    first.hvals(keys.open_incidents)
    statuses, mode, listed, results, open_ids = await first.execute()
    said = [msgspec.json.decode(value, type=WorkerStatus) for value in statuses.values()]
    partitions = sorted({p for status in said for p in status.partitions})
    living = [s for s in said if now - s.at / 1e6 <= WORKER_STALE_SECONDS]
    wanted = list(dict.fromkeys([*map(_text, open_ids), *map(_text, listed)]))
    incidents = await _incidents(redis, keys, wanted)
    totals, minutes = await _traffic(redis, model.topic, partitions, now)
    is_open = [i for i in incidents if i.state in ("new", "in_progress")]
    shown = sorted(incidents, key=lambda i: (i.state == "resolved", i.level != "page", -i.last_seen))
    return Overview(
        model=model.name,
        at=now,
        mode=_text(mode) if mode else "paging",
        workers=living,
        gone=[s for s in said if s not in living],
        totals=totals,
        minutes=minutes,
        incidents=shown[:LISTED_INCIDENTS],
        open_pages=sum(i.level == "page" for i in is_open),
        open_tickets=sum(i.level == "ticket" for i in is_open),
        probes=sorted((msgspec.json.decode(v, type=ProbeSummary) for v in results.values()), key=lambda s: s.attack),
    )


async def incident(redis: Redis, model: ModelSettings, name: str) -> tuple[Incident, int, list[SignalMessage]] | None:
    """One incident, its version for compare-and-set, and its evidence, newest first."""
    keys = ModelKeys(model.name)
    pipe = redis.pipeline(transaction=False)
    pipe.hgetall(keys.incident(name))
    pipe.lrange(keys.evidence(name), -SHOWN_EVIDENCE, -1)
    stored, evidence = await pipe.execute()
    if not stored:
        return None
    signals = [msgspec.json.decode(value, type=SignalMessage) for value in reversed(evidence)]
    return msgspec.json.decode(stored[b"m"], type=Incident), int(stored.get(b"version", 0)), signals


async def _incidents(redis: Redis, keys: ModelKeys, names: Sequence[str]) -> list[Incident]:
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hget(keys.incident(name), "m")
    return [msgspec.json.decode(value, type=Incident) for value in await pipe.execute() if value]


async def _traffic(
    redis: Redis, topic: str, partitions: Sequence[int], now: float
) -> tuple[dict[str, int], list[tuple[int, int, int, int]]]:
    this = int(now // 60)
    span = range(this - PLOTTED_MINUTES + 1, this + 1)
    pipe = redis.pipeline(transaction=False)
    for partition in partitions:
        pipe.hgetall(PartitionKeys(topic, partition).totals)
    for minute in span:
        for partition in partitions:
            pipe.hmget(PartitionKeys(topic, partition).minute(minute), "rows", "tickets", "pages")
    answers: list[Any] = await pipe.execute()
    totals = dict.fromkeys(_SUMMED, 0)
    for stored in answers[: len(partitions)]:
        for name in _SUMMED:
            totals[name] += int(stored.get(name.encode(), 0))
    minutes = []
    rest = answers[len(partitions) :]
    for place, minute in enumerate(span):
        parts = rest[place * len(partitions) : (place + 1) * len(partitions)]
        rows, tickets, pages = (sum(int(part[column] or 0) for part in parts) for column in range(3))
        minutes.append((minute, rows, tickets, pages))
    return totals, minutes


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
