"""A client for the public `alerts` stream: consumer groups with acknowledgement, take-over and dead letters.

Delivery is at least once. An alert's `id` is the same at every delivery, so a receiver that remembers ids has each
once. Alerts of one incident are in order in the stream; with several consumers in a group they may overtake each other.

Examples
--------
::

    consumer = AlertConsumer(Redis.from_url("redis://127.0.0.1:6379/0"), "digits", group="ticketing")
    for delivery in consumer:
        open_ticket(delivery.alert)       # an exception leaves the alert pending: it is delivered again
        consumer.acknowledge(delivery)
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from streams.errors import ConfigError
from streams.lease import process_name
from streams.store.keys import ModelKeys
from streams.store.messages import Alert

log = logging.getLogger("vedette.alerts")

#: Deliveries of one alert before it becomes a dead letter.
MAX_DELIVERIES = 5
#: An alert that its consumer has neither acknowledged nor extended for so long is taken over.
RECLAIM_SECONDS = 60.0
#: Seconds between two looks for alerts to take over.
RECLAIM_EVERY_SECONDS = 5.0
#: How long a read waits; below the time limit of common clients' sockets.
BLOCK_SECONDS = 2.0
#: Alerts of one read.
BATCH = 50
#: An alert that was handed out so often comes alone: one that kills its consumer uses up no other alert's deliveries.
ALONE_FROM = 2
#: Dead letters kept of one group.
DEAD_KEPT = 10_000
#: Pause after Redis could not be reached: first, and at most.
AWAY_SECONDS, AWAY_MOST_SECONDS = 0.5, 10.0

GROUP_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCRIPT = Path(__file__).with_name("dead_letter.lua").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert, handed to this consumer until it is acknowledged."""

    alert: Alert
    entry: str
    """Id of the stream's entry."""
    deliveries: int
    """1 at first; more when it was handed out before and not acknowledged."""


@dataclass(frozen=True, slots=True)
class DeadAlert:
    """An alert that this group gave up."""

    entry: str
    """Id of the entry in the alerts stream."""
    reason: str
    deliveries: int
    body: str
    """The alert as it stands in the stream, JSON unless that is what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind."""

    pending: int
    """Handed out and not acknowledged."""
    waiting: int | None
    """Not handed out yet; None where Redis cannot tell (before version 7, or after entries were deleted)."""
    length: int
    """Entries in the stream. When `pending` and `waiting` come near it, entries will soon be lost to trimming."""


class AlertConsumer:
    """One consumer of a group; a group shares the alerts of one model among its consumers.

    Parameters
    ----------
    redis : redis.Redis
        Either kind, bytes or text; its socket time limit must be above `block_seconds`.
    model : str
        Name of the model.
    group : str
        Everybody who shares one name shares the work; another name gets every alert again.
    consumer : str, optional
        Name of this consumer. One that restarts under its old name gets at once what it left pending; a fresh name
        (the default: host, process, a random part) leaves it to be taken over after `reclaim_seconds`.
    start : {"new", "beginning"}
        Where a group begins that does not exist yet: at alerts to come, or at everything still kept.
    max_deliveries : int
        An alert that has been handed out so often without acknowledgement becomes a dead letter.
    reclaim_seconds : float
        See `RECLAIM_SECONDS`; longer than handling one batch may take, or `extend` while it takes.
    block_seconds : float
        How long a read waits for alerts.
    batch : int
        Alerts handed out to this consumer at once; one by one where `max_deliveries` is 1.

    Raises
    ------
    ConfigError
        When a name or a number makes no sense.
    """

    def __init__(
        self,
        redis: Redis,
        model: str,
        group: str,
        *,
        consumer: str | None = None,
        start: Literal["new", "beginning"] = "new",
        max_deliveries: int = MAX_DELIVERIES,
        reclaim_seconds: float = RECLAIM_SECONDS,
        block_seconds: float = BLOCK_SECONDS,
        batch: int = BATCH,
    ) -> None:
        if not GROUP_NAME.fullmatch(group):
            raise ConfigError(f"group {group!r} must match {GROUP_NAME.pattern}")
        if start not in ("new", "beginning"):
            raise ConfigError(f"start must be 'new' or 'beginning', not {start!r}")
        if max_deliveries < 1 or batch < 1 or reclaim_seconds <= 0 or block_seconds <= 0:
            raise ConfigError("max_deliveries, batch, reclaim_seconds and block_seconds must be positive")
        self.group = group
        self.consumer = consumer or process_name()
        self._redis = redis
        self._keys = ModelKeys(model)
        self._start = "$" if start == "new" else "0"
        self._max_deliveries = max_deliveries
        self._reclaim_ms = max(1, round(reclaim_seconds * 1000))
        self._reclaim_every = min(RECLAIM_EVERY_SECONDS, reclaim_seconds)
        self._block_ms = max(1, round(block_seconds * 1000))
        self._batch = batch if max_deliveries > 1 else 1
        self._alone_from = min(ALONE_FROM, max_deliveries - 1)
        self._move = redis.register_script(_SCRIPT)
        self._stop = threading.Event()
        self._created = False
        self._own_from: str | None = "-"
        """From where our own pending alerts are still to be handed out again; None when all are."""
        self._next_reclaim = 0.0

    def __iter__(self) -> Iterator[Delivery]:
        """Alerts until `stop`; waits for Redis while it is away."""
        pause = AWAY_SECONDS
        while not self._stop.is_set():
            try:
                deliveries = self.poll()
            except RedisError as error:
                log.warning("group %s: Redis is away or refuses, waiting: %s", self.group, error)
                self._stop.wait(pause)
                pause = min(2 * pause, AWAY_MOST_SECONDS)
                continue
            pause = AWAY_SECONDS
            for delivery in deliveries:
                yield delivery
                if self._stop.is_set():
                    return

    def stop(self) -> None:
        """End the iteration after the alert at hand; safe to call from a signal handler or another thread."""
        self._stop.set()

    def poll(self) -> list[Delivery]:
        """The next alerts, or none after `block_seconds`.

        First what this consumer has pending from an earlier life, then what it takes over from the dead, then new
        ones. Alerts beyond `max_deliveries`, and what is no alert, become dead letters.

        Raises
        ------
        redis.exceptions.RedisError
        """
        try:
            self._create()
            return self._own() or self._reclaimed() or self._new()
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            # Redis was emptied or restored: begin at what is kept, so that nothing is missed.
            log.warning("group %s has gone; it begins again at the oldest alert that is kept", self.group)
            self._created, self._start, self._own_from = False, "0", "-"
            return []

    def acknowledge(self, *deliveries: Delivery) -> int:
        """Tell that alerts are done with; returns how many were still pending."""
        if not deliveries:
            return 0
        return int(self._redis.xack(self._keys.alerts, self.group, *(each.entry for each in deliveries)))

    def extend(self, *deliveries: Delivery) -> None:
        """Keep alerts from being taken over while they are being handled; counts as no delivery."""
        if deliveries:
            entries: list[Any] = [each.entry for each in deliveries]
            self._redis.xclaim(self._keys.alerts, self.group, self.consumer, 0, entries, idle=0, justid=True)

    def give_up(self, delivery: Delivery, reason: str) -> bool:
        """Make a dead letter of an alert at once; False when it was no longer pending."""
        body = msgspec.json.encode(delivery.alert).decode()
        return self._bury(delivery.entry, body, reason, delivery.deliveries)

    def dead_letters(self, limit: int = 100) -> list[DeadAlert]:
        """What this group gave up, newest first."""
        entries: Any = self._redis.xrevrange(self._keys.dead_alerts(self.group), count=limit)
        found = []
        for _, raw in entries:
            fields = {_text(name): _text(value) for name, value in raw.items()}
            found.append(DeadAlert(fields["entry"], fields["reason"], int(fields["deliveries"]), fields["m"]))
        return found

    def lag(self) -> Lag:
        """How far the group is behind."""
        self._create()
        length = int(self._redis.xlen(self._keys.alerts))
        for group in self._redis.xinfo_groups(self._keys.alerts):
            if _text(group["name"]) == self.group:
                waiting = group.get("lag")
                return Lag(int(group["pending"]), None if waiting is None else int(waiting), length)
        return Lag(0, None, length)

    def close(self) -> None:
        """Take this consumer out of its group unless it has alerts pending: those are taken over under its name."""
        try:
            pending: Any = self._redis.xpending_range(
                self._keys.alerts, self.group, "-", "+", 1, consumername=self.consumer
            )
            if not pending:
                self._redis.xgroup_delconsumer(self._keys.alerts, self.group, self.consumer)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):  # it never read, or Redis was emptied: nothing to leave
                raise

    def _create(self) -> None:
        if self._created:
            return
        try:
            self._redis.xgroup_create(self._keys.alerts, self.group, id=self._start, mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._created = True

    def _own(self) -> list[Delivery]:
        """Handed out to us before and never acknowledged: a restart under the same name."""
        while self._own_from is not None:
            left: Any = self._redis.xpending_range(
                self._keys.alerts, self.group, self._own_from, "+", self._batch, consumername=self.consumer
            )
            names = self._together(left)
            if not names:
                self._own_from = None
                break
            self._own_from = f"({names[-1]}"
            found = self._take(names, 0)
            if found:
                return found
        return []

    def _reclaimed(self) -> list[Delivery]:
        """Handed out to others, or to us, and silent for too long."""
        while time.monotonic() >= self._next_reclaim:
            idle: Any = self._redis.xpending_range(
                self._keys.alerts, self.group, "-", "+", self._batch, idle=self._reclaim_ms
            )
            names = self._together(idle)
            if len(names) == len(idle) < self._batch:
                self._next_reclaim = time.monotonic() + self._reclaim_every
            found = self._take(names, self._reclaim_ms)
            if found:
                return found
        return []

    def _together(self, pending: list[dict[str, Any]]) -> list[str]:
        """Entries that may be handed out at once: those before the first that was handed out often, or it alone."""
        often = [int(entry["times_delivered"]) >= self._alone_from for entry in pending]
        count = max(1, often.index(True)) if True in often else len(pending)
        return [_text(entry["message_id"]) for entry in pending[:count]]

    def _take(self, names: list[str], min_idle_ms: int) -> list[Delivery]:
        """Make pending entries ours, counting a delivery; of several who try at once one gets each."""
        if not names:
            return []
        wanted: list[Any] = list(names)
        claimed: Any = self._redis.xclaim(self._keys.alerts, self.group, self.consumer, min_idle_ms, wanted)
        ours = [(_text(name), fields) for name, fields in claimed if name is not None]
        self._drop_trimmed(set(names) - {name for name, _ in ours})
        return self._checked(ours)

    def _new(self) -> list[Delivery]:
        answer: Any = self._redis.xreadgroup(
            self.group, self.consumer, {self._keys.alerts: ">"}, count=self._batch, block=self._block_ms
        )
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or ()]
        entries = [(_text(name), fields) for stream in streams for name, fields in _flat(stream)]
        return self._checked(entries, first=True)

    def _drop_trimmed(self, missing: set[str]) -> None:
        """Acknowledge what was trimmed from the stream before it was handled; the stream itself tells of the loss."""
        pipe = self._redis.pipeline(transaction=False)
        for name in sorted(missing):
            pipe.xrange(self._keys.alerts, name, name)
        gone = [name for name, kept in zip(sorted(missing), pipe.execute(), strict=True) if not kept]
        if gone:
            log.error("group %s: %d pending alerts were trimmed from the stream", self.group, len(gone))
            self._redis.xack(self._keys.alerts, self.group, *gone)

    def _checked(self, entries: list[tuple[str, dict[Any, Any]]], first: bool = False) -> list[Delivery]:
        """Deliveries of entries that are ours by now; bad ones and those of too many deliveries are dead letters."""
        if not entries:
            return []
        counts = dict.fromkeys((name for name, _ in entries), 1) if first else self._counts([n for n, _ in entries])
        found = []
        for name, fields in entries:
            if name not in counts:
                continue  # acknowledged meanwhile by who had it before
            body = next((value for key, value in (fields or {}).items() if _text(key) == "m"), b"")
            try:
                alert = msgspec.json.decode(body, type=Alert)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._bury(name, _text(body), f"cannot be read: {error}", counts[name])
                continue
            if alert.change == "trimmed-from" and alert.entity_id != self.group:
                self._redis.xack(self._keys.alerts, self.group, name)
            elif counts[name] > self._max_deliveries:
                reason = f"not acknowledged after {self._max_deliveries} deliveries"
                self._bury(name, _text(body), reason, counts[name] - 1)
            else:
                found.append(Delivery(alert, name, counts[name]))
        return found

    def _counts(self, names: list[str]) -> dict[str, int]:
        """How often each pending entry has been handed out."""
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.xpending_range(self._keys.alerts, self.group, name, name, 1)
        counts = {}
        for answer in pipe.execute():
            for entry in answer:
                counts[_text(entry["message_id"])] = int(entry["times_delivered"])
        return counts

    def _bury(self, name: str, body: str, reason: str, deliveries: int) -> bool:
        keys = [self._keys.alerts, self._keys.dead_alerts(self.group)]
        moved = self._move(keys=keys, args=[self.group, name, body or "{}", reason, deliveries, DEAD_KEPT])
        if moved:
            log.error("group %s: alert %s is a dead letter: %s", self.group, name, reason)
        return bool(moved)


def _flat(entries: Any) -> list[tuple[Any, dict[Any, Any]]]:
    """Entries of one stream, whichever protocol version wraps them."""
    if entries and isinstance(entries[0], list):
        return [entry for part in entries for entry in part]
    return list(entries)


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
