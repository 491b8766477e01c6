"""What the console shows of one model, read from Redis: merged over partitions, at most once a second whoever asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec
from redis.asyncio import Redis

from streams.audit import COUNTERS
from streams.config import ModelSettings
from streams.console.budgets import Budgets
from streams.console.deliveries import health_of
from streams.console.index import IncidentIndex, IncidentRow
from streams.incidents.monitoring import BLIND
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import (
    CalibrationStatus,
    Incident,
    InquiryMessage,
    ProbeSummary,
    SignalMessage,
    WorkerStatus,
)

Range = Literal["hour", "day", "week"]
"""How far a plot of the live page looks back."""

#: Looks at Redis are at least so far apart; several viewers and pages share one.
REFRESH_SECONDS = 1.0
#: A worker that has not spoken for so long is shown as gone, and after a while no longer.
WORKER_STALE_SECONDS, WORKER_FORGOTTEN_SECONDS = 10.0, 3600.0
#: Incidents on the live page.
LISTED_INCIDENTS = 25
#: Minutes of traffic in the live page's plot.
PLOTTED_MINUTES = 60
#: Longer looks back, from hourly counters: hours in all, and hours of one bar.
RANGES: dict[Range, tuple[int, int]] = {"day": (24, 1), "week": (168, 3)}
#: They are read again after so long.
RANGE_SECONDS = 30.0
#: Minutes that are read at every look. Older ones change only while a worker catches up, and are read less often.
FRESH_MINUTES, OLD_MINUTES_EVERY_SECONDS = 2, 10.0
#: Bytes of evidence that one incident page reads; wide inputs show fewer signals.
EVIDENCE_BYTES = 4 * 1024 * 1024
#: Signals that are read however wide they are.
EVIDENCE_LEAST = 3

#: A destination of notifications that has failed for so long is told of.
DEAF_SECONDS = 60.0
#: Counters that are shown, of the beginning and of each minute.
TOTALS = (*COUNTERS, "tickets", "pages", "anonymous")
BY_MINUTE = ("rows", "tickets", "pages")

_Message = TypeVar("_Message", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Minute:
    """Traffic of one minute of broker time, or of some, over all partitions."""

    minute: int
    """Minutes since the epoch; the first one of several."""
    rows: int = 0
    tickets: int = 0
    pages: int = 0
    length: int = 1
    """Minutes that it is about."""


@dataclass(frozen=True, slots=True)
class Overview:
    """One look at one model."""

    model: str
    at: float
    """Seconds since the epoch."""
    mode: str
    """``pilot``, ``paging``, or empty where nobody has set it."""
    workers: list[WorkerStatus]
    gone: list[WorkerStatus]
    """Workers that fell silent within the last hour."""
    orphans: list[int]
    """Partitions that no living worker holds."""
    totals: dict[str, int]
    minutes: list[Minute]
    """Oldest first; the last one is under way."""
    incidents: list[IncidentRow]
    open_pages: int
    open_tickets: int
    probes: list[ProbeSummary]
    blind: IncidentRow | None
    """The open incident that says that probes are not seen."""
    bundle: str
    """Path of the bundle in force."""
    deaf: list[tuple[str, str]] = field(default_factory=list)
    """Destinations of notifications that have failed for a while, and why."""
    week_pages: int = 0
    """Pages about traffic that began within the last week (of the settings' length)."""
    week_false_pages: int = 0
    """Those of them that were resolved as false alarms."""
    page_budget: int | None = None
    """False pages a week that the bundle in force was calibrated for; None where nobody can tell."""
    calibration: CalibrationStatus | None = None
    """What the correlator says of the calibration; None while it has not looked."""
    escalation: dict[str, int] = field(default_factory=dict)
    """What became of rows that the model was to be asked again about, and the questions; empty: none were."""

    @property
    def lag(self) -> int | None:
        """Records not yet recorded, over all living workers; None when there is no worker that could say."""
        return sum(worker.lag for worker in self.workers) if self.workers else None

    @property
    def rows_per_second(self) -> float:
        """Rows recorded a second, over all living workers."""
        return sum(worker.rows_per_second for worker in self.workers)


@dataclass(frozen=True, slots=True)
class Dossier:
    """One incident with its evidence."""

    incident: Incident
    change: int
    """Number of its changes, for compare-and-set."""
    signals: list[SignalMessage]
    """Newest first."""
    kept: int
    """Signals that Redis holds; more than are shown where inputs are wide."""
    inquiries: list[InquiryMessage]
    """What the watched model said when it was asked again, newest first."""


@dataclass(slots=True)
class _Traffic:
    minutes: dict[int, Minute] = field(default_factory=dict)
    read_all: float = 0.0
    partitions: list[int] = field(default_factory=list)


class Watch:
    """Looks at one model and remembers the last look.

    Parameters
    ----------
    redis : redis.asyncio.Redis
        A client that returns bytes.
    model : ModelSettings
    clock : callable
        Seconds since the epoch.
    week_seconds : float
        Length of the period that the page budget is stated for.
    budgets : Budgets, optional
    """

    def __init__(
        self,
        redis: Redis,
        model: ModelSettings,
        clock: Callable[[], float] = time.time,
        week_seconds: float = 604_800.0,
        budgets: Budgets | None = None,
    ) -> None:
        self.model = model
        self._week_seconds = week_seconds
        self._budgets = budgets or Budgets()
        self.keys = ModelKeys(model.name)
        self.index = IncidentIndex(redis, self.keys)
        self._redis = redis
        self._clock = clock
        self._traffic = _Traffic()
        self._courses: dict[Range, tuple[float, list[Minute]]] = {}
        """Longer looks back, and when they were read."""
        self._last: Overview | None = None
        self._lock = asyncio.Lock()

    async def look(self, fresh: bool = False) -> Overview:
        """The last look, or a new one when it is older than `REFRESH_SECONDS`, or when `fresh` is asked for."""
        async with self._lock:
            now = self._clock()
            if self._last is None or fresh or not 0 <= now - self._last.at < REFRESH_SECONDS:
                self._last = await self._take(now)
            return self._last

    async def incident(self, name: str) -> Dossier | None:
        """One incident with its evidence, or None; reads at most about `EVIDENCE_BYTES` of it."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hmget(self.keys.incident(name), "m", "version")
        pipe.llen(self.keys.evidence(name))
        pipe.lrange(self.keys.evidence(name), -1, -1)
        pipe.hvals(self.keys.inquiries(name))
        (body, change), kept, last, said = await pipe.execute()
        if body is None:
            return None
        signals: list[SignalMessage] = []
        if last:
            most = max(EVIDENCE_LEAST, EVIDENCE_BYTES // max(len(last[0]), 1))
            texts = await self._evidence(name, kept, most)
            signals = decoded(reversed(texts), SignalMessage)
        inquiries = sorted(decoded(said, InquiryMessage), key=lambda one: (one.at, one.signal), reverse=True)
        return Dossier(msgspec.json.decode(body, type=Incident), int(change or 0), signals, int(kept), inquiries)

    async def course(self, back: Range) -> list[Minute]:
        """Traffic of the last hour by minute, of the last day by hour, or of the last week by three hours."""
        look = await self.look()
        if back not in RANGES:
            return look.minutes
        at, found = self._courses.get(back, (-RANGE_SECONDS, []))
        if not 0 <= look.at - at < RANGE_SECONDS:
            found = await self._hours(*RANGES[back], look.at)
            self._courses[back] = look.at, found
        return found

    async def _hours(self, hours: int, step: int, now: float) -> list[Minute]:
        """Hourly counters summed over partitions and over `step` hours; the last bar is under way."""
        this = int(now // 3600) // step
        bars = range(this - hours // step + 1, this + 1)
        pipe = self._redis.pipeline(transaction=False)
        keys = [PartitionKeys(self.model.topic, partition) for partition in self._traffic.partitions]
        for bar in bars:
            for hour in range(bar * step, bar * step + step):
                for place in keys:
                    pipe.hmget(place.hour(hour), list(BY_MINUTE))
        answers: list[Any] = await pipe.execute() if keys else []
        wide = step * len(keys)
        parts = [answers[place * wide : (place + 1) * wide] for place in range(len(bars))]
        return [
            Minute(bar * step * 60, rows, tickets, pages, step * 60)
            for bar, part in zip(bars, parts, strict=True)
            for rows, tickets, pages in [_summed(part, len(BY_MINUTE))]
        ]

    async def partitions(self) -> list[int]:
        """Partitions that a worker has held or the correlator has read."""
        await self.look()
        return self._traffic.partitions

    async def _evidence(self, name: str, kept: int, most: int) -> list[Any]:
        """The newest entries and, when not all are wanted, the first one: what it began with explains the most."""
        key = self.keys.evidence(name)
        if kept <= most:
            return list(await self._redis.lrange(key, 0, -1))
        first = await self._redis.lrange(key, 0, 0)
        return [*first, *await self._redis.lrange(key, -(most - 1), -1)]

    async def _take(self, now: float) -> Overview:
        await self.index.refresh()
        pipe = self._redis.pipeline(transaction=False)
        pipe.hvals(self.keys.workers)
        pipe.get(self.keys.mode)
        pipe.hvals(self.keys.probe_results)
        pipe.hkeys(self.keys.progress)
        pipe.hget(self.keys.bundle, "path")
        pipe.hgetall(self.keys.notice_health)
        pipe.hmget(self.keys.calibration, "m")
        pipe.hgetall(self.keys.inquiry_totals)
        statuses, mode, results, places, bundle, healths, calibration, asked = await pipe.execute()
        said = sorted(decoded(statuses, WorkerStatus), key=lambda status: status.worker)
        living = [status for status in said if now - status.at / 1e6 <= WORKER_STALE_SECONDS]
        held = {partition for status in living for partition in status.partitions}
        known = {partition for status in said for partition in status.partitions} | self._partitions(places)
        totals = await self._count(sorted(known), now)
        in_force = text(bundle) if bundle else self.model.bundle
        since = (now - self._week_seconds) * 1e6
        paged = [
            row
            for row in self.index.rows
            if row.level == "page" and row.entity != "monitoring" and row.first_seen >= since
        ]
        about_sight = (row for row in self.index.rows if row.technique == BLIND.technique)
        blind = next((row for row in about_sight if row.state != "resolved"), None)
        return Overview(
            model=self.model.name,
            at=now,
            mode=text(mode) if mode else "",
            workers=living,
            gone=[
                status for status in said if WORKER_STALE_SECONDS < now - status.at / 1e6 <= WORKER_FORGOTTEN_SECONDS
            ],
            orphans=sorted(known - held),
            totals=totals,
            minutes=[self._traffic.minutes[minute] for minute in sorted(self._traffic.minutes)],
            incidents=self.index.select()[:LISTED_INCIDENTS],
            open_pages=self.index.count("page"),
            open_tickets=self.index.count("ticket"),
            probes=sorted(decoded(results, ProbeSummary), key=lambda summary: (summary.kind, summary.attack)),
            blind=blind,
            bundle=in_force,
            week_pages=len(paged),
            week_false_pages=sum(row.verdict == "false" for row in paged),
            page_budget=await asyncio.to_thread(self._budgets.of, in_force),
            calibration=next(iter(decoded(filter(None, calibration), CalibrationStatus)), None),
            escalation={text(what): int(count) for what, count in asked.items()},
            deaf=[
                (text(name), health.problem)
                for name, said in sorted(healths.items())
                if (health := health_of(said)).since and now - health.since / 1e6 > DEAF_SECONDS
            ],
        )

    def _partitions(self, places: Iterable[bytes]) -> set[int]:
        """Partitions of the model's topic that the correlator has read signals of."""
        found = set()
        for place in map(text, places):
            topic, _, partition = place.rpartition(":")
            if topic == self.model.topic and partition.isdigit():
                found.add(int(partition))
        return found

    async def _count(self, partitions: Sequence[int], now: float) -> dict[str, int]:
        """Totals over all partitions; the minutes are brought up to date in `_traffic`."""
        traffic = self._traffic
        this = int(now // 60)
        first = this - PLOTTED_MINUTES + 1
        all_of_them = now - traffic.read_all >= OLD_MINUTES_EVERY_SECONDS or traffic.partitions != list(partitions)
        span = range(first if all_of_them else max(first, this - FRESH_MINUTES + 1), this + 1)
        pipe = self._redis.pipeline(transaction=False)
        keys = [PartitionKeys(self.model.topic, partition) for partition in partitions]
        for place in keys:
            pipe.hmget(place.totals, list(TOTALS))
        for minute in span:
            for place in keys:
                pipe.hmget(place.minute(minute), list(BY_MINUTE))
        answers: list[Any] = await pipe.execute() if partitions else []
        totals = dict(zip(TOTALS, _summed(answers[: len(keys)], len(TOTALS)), strict=True))
        for row, minute in enumerate(span):
            at = len(keys) * (row + 1)
            traffic.minutes[minute] = Minute(minute, *_summed(answers[at : at + len(keys)], len(BY_MINUTE)))
        traffic.minutes = {m: traffic.minutes.get(m, Minute(m)) for m in range(first, this + 1)}
        if all_of_them:
            traffic.read_all, traffic.partitions = now, list(partitions)
        return totals


def decoded(texts: Iterable[bytes], kind: type[_Message]) -> list[_Message]:
    """Those of the messages that can be read; one that another version wrote must not hide the others."""
    found = []
    for each in texts:
        try:
            found.append(msgspec.json.decode(each, type=kind))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found


def text(value: bytes | str) -> str:
    """A Redis reply as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _summed(parts: Sequence[Sequence[bytes | None]], width: int) -> list[int]:
    return [sum(int(part[column] or 0) for part in parts) for column in range(width)]
