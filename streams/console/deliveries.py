"""How alerts get out: consumer groups of the public stream, and notifications by destination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streams.notify.courier import ENDINGS
from streams.notify.outbox import Health
from streams.store.keys import ModelKeys

#: Consumer groups that metrics name at most: a label must not grow without bound.
MOST_GROUPS = 50


@dataclass(frozen=True, slots=True)
class Group:
    """One consumer group of the public stream."""

    name: str
    pending: int
    """Handed out and not acknowledged."""
    waiting: int | None
    """Not handed out yet; None where Redis cannot tell."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Notifications of one destination."""

    name: str
    attempts: dict[str, int]
    """How many attempts ended how: delivered, retried, refused, given_up, muted."""
    known: int
    """Incidents, or groups of them, that it knows of or is to be told of."""
    overdue: float
    """How long the oldest of them waits for what is due, seconds; 0: nothing is overdue."""
    dead: int
    """Dead letters that are kept."""
    failures: int
    """Failures in a row."""


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Of one model."""

    model: str
    alerts: int = 0
    """Entries in the public stream."""
    groups: list[Group] = field(default_factory=list)
    destinations: list[Destination] = field(default_factory=list)


async def deliveries(redis: Redis, model: str, destinations: Sequence[str], now: float) -> Deliveries:
    """Look at them.

    Parameters
    ----------
    now : float
        Seconds since the epoch.
    """
    keys = ModelKeys(model)
    pipe = redis.pipeline(transaction=False)
    pipe.xlen(keys.alerts)
    pipe.hgetall(keys.notice_totals)
    pipe.hgetall(keys.notice_health)
    for name in destinations:
        pipe.hlen(keys.notices(name))
        pipe.zrange(keys.notices_due(name), 0, 0, withscores=True)
        pipe.xlen(keys.notices_dead(name))
    alerts, totals, states, *rest = await pipe.execute()
    try:
        groups: Any = await redis.xinfo_groups(keys.alerts)
    except ResponseError:  # no alert has ever been written
        groups = []
    found = []
    for place, name in enumerate(destinations):
        known, due, dead = rest[3 * place : 3 * place + 3]
        health = health_of(states.get(name.encode()))
        late = max(0.0, now - float(due[0][1])) if due else 0.0
        since = max(0.0, now - health.since / 1e6) if health.since else 0.0
        attempts: dict[str, int] = {ending: int(totals.get(f"{name}|{ending}".encode(), 0)) for ending in ENDINGS}
        found.append(Destination(name, attempts, int(known), max(late, since), int(dead), health.failures))
    return Deliveries(model, int(alerts), [_group(one) for one in groups[:MOST_GROUPS]], found)


def health_of(text: bytes | None) -> Health:
    """How a destination fares, as Redis holds it."""
    try:
        return msgspec.json.decode(text, type=Health) if text else Health()
    except msgspec.MsgspecError:
        return Health()


def _group(info: dict[str, Any]) -> Group:
    name, waiting = info["name"], info.get("lag")
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return Group(text, int(info["pending"]), None if waiting is None else int(waiting))
