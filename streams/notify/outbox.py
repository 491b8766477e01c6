"""Notices in Redis: what is still to be told survives every restart. One script writes, under the notifier's lease.

Alerts are read as the consumer group ``notifier``, so the stream is not trimmed before they are taken in. Nothing is
handed out to a consumer: the group's place moves in the very script that queues what is to be told, so an alert is
taken in once, in order, whatever is killed when.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streams.errors import Fenced
from streams.notify.thread import Thread
from streams.store.keys import ModelKeys
from streams.store.messages import Alert, CalibrationStatus, Incident, Notice

log = logging.getLogger("vedette.notifier")

GROUP = "notifier"
#: Alerts that one script takes in.
BATCH = 100
#: Dead letters kept of one destination.
DEAD_KEPT = 1_000
#: Incidents whose state is looked up before a repeat.
STATES_MOST = 500
#: Open incidents that a reconciliation reads in one round trip.
RECONCILE_STEP = 500

_SCRIPT = Path(__file__).with_name("write.lua").read_text(encoding="utf-8")

Place = tuple[str, str]
"""(destination, deduplication key)."""


class Outdated(Exception):
    """A thread was changed meanwhile: read it again. Nothing was written."""


class Health(msgspec.Struct, frozen=True):
    """How a destination fares."""

    until: int = 0
    """It is left alone until then, microseconds."""
    failures: int = 0
    """In a row."""
    since: int = 0
    """Since when it fails, microseconds; 0: it does not."""
    problem: str = ""
    delivered: int = 0
    """When it last took a notice, microseconds."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A thread as Redis holds it; `base` is its text there, empty for none."""

    thread: Thread | None
    base: str = ""


@dataclass(slots=True)
class Write:
    """A changed thread."""

    place: Place
    base: str
    thread: Thread | None
    """None: it is over."""
    due: int | None
    """Microseconds."""
    dead: list[tuple[Notice, str]] = field(default_factory=list)


class _Write(msgspec.Struct):
    key: str
    base: str
    body: str
    due: str
    dead: list[tuple[str, str]]


class _Plan(msgspec.Struct):
    token: str
    upto: str
    writes: list[_Write]
    places: list[tuple[str, str]]
    counts: list[tuple[str, int]]
    health: list[tuple[str, str]]


class Outbox:
    """Reads and writes one model's notices.

    Parameters
    ----------
    redis : redis.asyncio.Redis
        A client that returns bytes.
    keys : ModelKeys
    """

    def __init__(self, redis: Redis, keys: ModelKeys) -> None:
        self.redis = redis
        self.keys = keys
        self._script = redis.register_script(_SCRIPT)

    async def position(self) -> str | None:
        """Id of the last alert that was taken in; None where the group has not begun, or has vanished."""
        try:
            groups: Any = await self.redis.xinfo_groups(self.keys.alerts)
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            return None
        return next((_text(one["last-delivered-id"]) for one in groups if _text(one["name"]) == GROUP), None)

    async def newest(self) -> str:
        """Id of the newest alert; that before the first one where there is none."""
        found: Any = await self.redis.xrevrange(self.keys.alerts, count=1)
        return _text(found[0][0]) if found else "0-0"

    async def begin(self, position: str) -> None:
        """Make the group, behind that alert."""
        try:
            await self.redis.xgroup_create(self.keys.alerts, GROUP, id=position, mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def read(self, position: str, block_milliseconds: int) -> list[tuple[str, Alert | None]]:
        """Alerts behind a place, waiting for so long if there are none; None for what is no alert."""
        streams: dict[Any, Any] = {self.keys.alerts: position}
        answer: Any = await self.redis.xread(streams, count=BATCH, block=block_milliseconds)
        entries = [entry for _, found in (answer.items() if isinstance(answer, dict) else answer) for entry in found]
        if entries and isinstance(entries[0], list):
            entries = [entry for part in entries for entry in part]
        return [(_text(name), self._decoded(name, fields)) for name, fields in entries]

    def _decoded(self, name: bytes, fields: Mapping[bytes, bytes]) -> Alert | None:
        try:
            return msgspec.json.decode(fields.get(b"m", b""), type=Alert)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.error("alert %s of model %s cannot be read and is passed over: %s", _text(name), self.keys.model, error)
            return None

    async def places(self, incidents: Iterable[str]) -> dict[str, list[Place]]:
        """Where each incident is known."""
        names = list(dict.fromkeys(incidents))
        if not names:
            return {}
        found = await self.redis.hmget(self.keys.notice_places, names)
        return {
            name: [(one[0], one[1]) for one in msgspec.json.decode(text, type=list[tuple[str, str]])]
            for name, text in zip(names, found, strict=True)
            if text
        }

    async def threads(self, places: Iterable[Place]) -> dict[Place, Stored]:
        """The threads as they stand; one that cannot be read counts as none, and is written anew."""
        wanted = list(dict.fromkeys(places))
        pipe = self.redis.pipeline(transaction=False)
        for destination, key in wanted:
            pipe.hget(self.keys.notices(destination), key)
        return {place: self._stored(place, text) for place, text in zip(wanted, await pipe.execute(), strict=True)}

    def _stored(self, place: Place, text: bytes | None) -> Stored:
        if text is None:
            return Stored(None)
        try:
            return Stored(msgspec.json.decode(text, type=Thread), text.decode())
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.error("what %s knows of %s cannot be read and begins anew: %s", *place, error)
            return Stored(None, _text(text))

    async def due(self, destination: str, now: int, most: int) -> list[str]:
        """Keys of threads of which something is due, longest due first."""
        found = await self.redis.zrangebyscore(self.keys.notices_due(destination), "-inf", now / 1e6, start=0, num=most)
        return [_text(key) for key in found]

    async def next_due(self, destination: str) -> int | None:
        """When the next thread is due, microseconds."""
        found: Any = await self.redis.zrange(self.keys.notices_due(destination), 0, 0, withscores=True)
        return round(float(found[0][1]) * 1e6) if found else None

    async def health(self, destination: str) -> Health:
        """How a destination fares."""
        text = await self.redis.hget(self.keys.notice_health, destination)
        if not text:
            return Health()
        try:
            return msgspec.json.decode(text, type=Health)
        except msgspec.MsgspecError:
            return Health()

    async def states(self, incidents: Iterable[str]) -> dict[str, Incident | None]:
        """The incidents as they are now, at most `STATES_MOST` of them; None for those that are no more."""
        names = list(incidents)[:STATES_MOST]
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.hget(self.keys.incident(name), "m")
        found = await pipe.execute()
        return {
            name: msgspec.json.decode(text, type=Incident) if text else None
            for name, text in zip(names, found, strict=True)
        }

    async def open_groups(self) -> list[str]:
        """Grouping keys (technique|entity|id) of all open incidents."""
        return [_text(group) for group in await self.redis.hkeys(self.keys.open_incidents)]

    async def calibration_is_stale(self) -> bool:
        """Whether the mark stands."""
        stored: Any = await self.redis.hget(self.keys.calibration, "m")
        try:
            return stored is not None and msgspec.json.decode(stored, type=CalibrationStatus).stale
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False  # of another version: nothing is held back for what cannot be read

    async def known(self) -> dict[str, list[Place]]:
        """Every incident that some destination knows of."""
        found = await self.redis.hgetall(self.keys.notice_places)
        return {
            _text(name): [(one[0], one[1]) for one in msgspec.json.decode(text, type=list[tuple[str, str]])]
            for name, text in found.items()
        }

    async def open_incidents(self) -> list[Incident]:
        """All of them."""
        names = [_text(name) for name in await self.redis.hvals(self.keys.open_incidents)]
        found: list[Incident] = []
        for start in range(0, len(names), RECONCILE_STEP):
            states = await self.states(names[start : start + RECONCILE_STEP])
            found += [incident for incident in states.values() if incident is not None]
        return found

    async def write(
        self,
        token: int | None,
        writes: Sequence[Write] = (),
        *,
        places: Mapping[str, Sequence[Place]] | None = None,
        counts: Mapping[str, int] | None = None,
        health: Mapping[str, Health] | None = None,
        upto: str = "",
    ) -> None:
        """Write all of it, or nothing.

        Parameters
        ----------
        token
            Fencing token of the notifier's lease.
        places
            Incident -> where it is known now; empty where nowhere.
        upto
            Up to which alert everything has been taken in; empty: as before.

        Raises
        ------
        Fenced
            Another notifier has taken over.
        Outdated
            A thread changed since it was read.
        """
        keys = self.keys
        touched = [keys.fence("notifier"), keys.alerts, keys.notice_places, keys.notice_totals, keys.notice_health]
        for one in writes:
            destination = one.place[0]
            touched += [keys.notices(destination), keys.notices_due(destination), keys.notices_dead(destination)]
        plan = _Plan(
            token=str(token),
            upto=upto,
            writes=[
                _Write(
                    key=one.place[1],
                    base=one.base,
                    body="" if one.thread is None else _json(one.thread),
                    due="" if one.due is None else f"{one.due / 1e6:.6f}",
                    dead=[(_json(letter), reason) for letter, reason in one.dead],
                )
                for one in writes
            ],
            places=[(name, _json(where) if where else "") for name, where in (places or {}).items()],
            counts=list((counts or {}).items()),
            health=[(name, _json(one)) for name, one in (health or {}).items()],
        )
        answer: Any = await self._script(keys=touched, args=[msgspec.msgpack.encode(plan), GROUP, DEAD_KEPT])
        verdict = _text(answer[0])
        if verdict == "fenced":
            raise Fenced(f"another notifier holds the lease of model {keys.model!r} now; nothing was written")
        if verdict != "ok":
            raise Outdated(_text(answer[1]))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
