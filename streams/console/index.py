"""Incidents in memory: one short row each, kept up to date from the incident log, so that no page reads them all.

Redis stays the truth. Any number of consoles hold an index each; a look costs what has changed since the last one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from streams.store.keys import ModelKeys
from streams.store.messages import Incident, LevelName, Severity, State, Verdict

#: Newest incidents (by last-seen) that are held.
HELD = 20_000
#: Incidents fetched in one round trip.
FETCH = 500
#: Selections that are remembered until the next change: several viewers look at the same lists.
REMEMBERED = 32
#: Log entries read in one round trip.
READ = 1_000
#: Incidents are at the same time when they are so near.
NEAR_MICROSECONDS = 10 * 60 * 1_000_000
#: Seconds between two full comparisons with Redis: forgetting old incidents leaves no entry in the log.
COMPARE_SECONDS = 60.0

Order = Literal["urgency", "last_seen", "first_seen", "signals", "strength"]
StateFilter = Literal["open", "new", "in_progress", "suppressed", "resolved", "all"]


class IncidentRow(msgspec.Struct, frozen=True):
    """What lists show and search of an incident; the fields are those of `messages.Incident`."""

    id: str
    technique: str
    entity: str
    entity_id: str
    title: str
    level: LevelName
    state: State
    first_seen: int
    last_seen: int
    opened_at: int
    signals: int
    max_ratio: float
    clients: list[str]
    assignee: str | None = None
    verdict: Verdict | None = None
    pilot: bool = False
    severity: Severity = "low"
    silence: str = ""
    change: int = 0
    """Number of its changes, for comparison."""

    @property
    def is_open(self) -> bool:
        """Whether somebody has to do something about it."""
        return self.state in ("new", "in_progress")


class IncidentIndex:
    """The newest incidents of one model.

    Parameters
    ----------
    redis : redis.asyncio.Redis
        A client that returns bytes.
    keys : ModelKeys
    clock : callable
        Seconds that never go back.
    """

    def __init__(self, redis: Redis, keys: ModelKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._keys = keys
        self._clock = clock
        self._rows: dict[str, IncidentRow] = {}
        self._said: dict[str, str] = {}
        """What a search looks at, in lower case; words hold no white space, so they cannot reach over a line's end."""
        self._selected: dict[tuple[Any, ...], list[IncidentRow]] = {}
        """Answers since the last change."""
        self._selected_at = -1
        self._last: str | None = None
        """Id of the last entry of the log that was read; None before the first look."""
        self._compared = 0.0
        self.revision = 0
        """Grows with every change of a row."""
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, incident: str) -> bool:
        return incident in self._rows

    @property
    def rows(self) -> Iterable[IncidentRow]:
        """Every row, in no order."""
        return self._rows.values()

    def get(self, incident: str) -> IncidentRow | None:
        """One row."""
        return self._rows.get(incident)

    async def refresh(self) -> None:
        """Take in what has changed in Redis since the last call."""
        async with self._lock:
            now = self._clock()
            if self._last is None or now - self._compared >= COMPARE_SECONDS or await self._lost_entries():
                await self._compare()
                self._compared = now
                return
            while entries := await self._redis.xrange(self._keys.log, f"({self._last}", "+", READ):
                await self._fetch({name for name in map(_incident_of, entries) if name})
                self._last = _text(entries[-1][0])

    def count(self, level: LevelName) -> int:
        """Open incidents of one level."""
        return sum(row.level == level and row.is_open for row in self._rows.values())

    def select(
        self,
        state: StateFilter = "all",
        level: LevelName | None = None,
        text: str = "",
        technique: str = "",
        assignee: str = "",
        order: Order = "urgency",
        ascending: bool = False,
    ) -> list[IncidentRow]:
        """Rows that fit, the most urgent (or newest, largest) first.

        Parameters
        ----------
        text : str
            Every word must occur in title, id, technique, entity, assignee or a client's hash.
        """
        if self._selected_at != self.revision or len(self._selected) >= REMEMBERED:
            self._selected, self._selected_at = {}, self.revision
        question = (state, level, text, technique, assignee, order, ascending)
        if question not in self._selected:
            self._selected[question] = self._select(*question)
        return list(self._selected[question])

    def _select(
        self,
        state: StateFilter,
        level: LevelName | None,
        text: str,
        technique: str,
        assignee: str,
        order: Order,
        ascending: bool,
    ) -> list[IncidentRow]:
        words = text.lower().split()
        said = self._said
        found = [
            row
            for name, row in self._rows.items()
            if _fits_state(row, state)
            and (level is None or row.level == level)
            and (not technique or row.technique == technique)
            and (not assignee or (row.assignee or "") == assignee)
            and (not words or _mentions(said[name], words))
        ]
        found.sort(key=_ORDERS[order], reverse=not ascending)
        return found

    def near(self, incident: Incident, most: int) -> list[tuple[IncidentRow, str]]:
        """Other incidents that may belong to the same attack, with the reason: those that share a client first.

        Parameters
        ----------
        most : int
            How many at most.
        """
        clients = set(incident.clients)
        shared, same = [], []
        for row in self._rows.values():
            if row.id == incident.id or row.entity in ("population", "monitoring"):
                continue
            common = len(clients.intersection(row.clients))
            if common:
                shared.append((row, f"{common} of its clients {'is' if common == 1 else 'are'} here too"))
            elif (
                row.technique == incident.technique
                and row.first_seen <= incident.last_seen + NEAR_MICROSECONDS
                and row.last_seen >= incident.first_seen - NEAR_MICROSECONDS
            ):
                same.append((row, "the same technique at the same time"))
        shared.sort(key=lambda pair: -pair[0].last_seen)
        same.sort(key=lambda pair: abs(pair[0].first_seen - incident.first_seen))
        return [*shared, *same][:most]

    async def _lost_entries(self) -> bool:
        """Whether the log was trimmed beyond what was read of it, or began anew."""
        newest, oldest = await self._ends()
        if self._last == "0-0":
            return False
        return (
            newest is None or _place(newest) < _place(self._last or "0-0") or _place(oldest) > _place(self._last or "")
        )

    async def _ends(self) -> tuple[str | None, str | None]:
        pipe = self._redis.pipeline(transaction=False)
        pipe.xrevrange(self._keys.log, count=1)
        pipe.xrange(self._keys.log, count=1)
        newest, oldest = await pipe.execute()
        return (_text(newest[0][0]) if newest else None, _text(oldest[0][0]) if oldest else None)

    async def _compare(self) -> None:
        newest, _ = await self._ends()
        names = [_text(name) for name in await self._redis.zrevrange(self._keys.incidents, 0, HELD - 1)]
        kept = set(names)
        for gone in [name for name in self._rows if name not in kept]:
            del self._rows[gone], self._said[gone]
            self.revision += 1
        await self._fetch(names)
        self._last = newest or "0-0"

    async def _fetch(self, names: Iterable[str]) -> None:
        wanted = list(names)
        for start in range(0, len(wanted), FETCH):
            part = wanted[start : start + FETCH]
            pipe = self._redis.pipeline(transaction=False)
            for name in part:
                pipe.hmget(self._keys.incident(name), "m", "version")
            for name, (body, version) in zip(part, await pipe.execute(), strict=True):
                row, before = _row(body, version), self._rows.get(name)
                if row is None:
                    self._rows.pop(name, None)
                    self._said.pop(name, None)
                else:
                    self._rows[name] = row
                    if before is None or _spoken(row) != _spoken(before):
                        self._said[name] = "\n".join(_spoken(row)).lower()
                if row != before:
                    self.revision += 1


def _row(body: bytes | None, version: bytes | None) -> IncidentRow | None:
    """A row of what Redis holds; None where it holds nothing that can be read."""
    if body is None:
        return None
    try:
        row = msgspec.json.decode(body, type=IncidentRow)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return msgspec.structs.replace(row, change=int(version or 0))


def _fits_state(row: IncidentRow, state: StateFilter) -> bool:
    if state == "all":
        return True
    return row.state != "resolved" if state == "open" else row.state == state


def _spoken(row: IncidentRow) -> list[str]:
    """What a search looks at."""
    return [row.title, row.id, row.technique, f"{row.entity} {row.entity_id}", row.assignee or "", *row.clients]


def _mentions(said: str, words: Sequence[str]) -> bool:
    return all(word in said for word in words)


_ORDERS: dict[Order, Callable[[IncidentRow], Any]] = {
    "urgency": lambda row: (row.is_open, row.state != "resolved", row.level == "page", row.last_seen, row.id),
    "last_seen": lambda row: (row.last_seen, row.id),
    "first_seen": lambda row: (row.first_seen, row.id),
    "signals": lambda row: (row.signals, row.id),
    "strength": lambda row: (row.max_ratio, row.id),
}


def _incident_of(entry: tuple[Any, Any]) -> str | None:
    try:
        return msgspec.json.decode(entry[1].get(b"m", b""), type=_Entry).incident
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class _Entry(msgspec.Struct):
    incident: str


def _place(name: str | None) -> tuple[int, int]:
    milliseconds, _, sequence = (name or "0-0").partition("-")
    return int(milliseconds), int(sequence)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
