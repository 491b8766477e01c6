"""Requests wait for their responses, and the other way round. Pure: times are passed in."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from streams.ingest.cloudevents import Event, Kind

Key = tuple[tuple[str, str, str, str], Kind]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One half, and since when it waits."""

    event: Event
    since: float


class Join:
    """Pairs halves of inferences by namespace, service, component, endpoint and id.

    A half whose id another half of its kind already waits under takes its place: ids are the callers', and a caller may
    use one twice.

    Parameters
    ----------
    seconds : float
        How long a half waits.

    Attributes
    ----------
    size : int
        Bytes held, about.
    dropped : Counter
        Halves that waited in vain, by kind, and those that were ``replaced``.
    """

    def __init__(self, seconds: float) -> None:
        self.size = 0
        self.dropped: Counter[str] = Counter()
        self._seconds = seconds
        self._waiting: OrderedDict[Key, Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: Event, kind: Kind, now: float) -> tuple[Event, Event] | None:
        """Request and response, when the other half was there."""
        self.expire(now)
        other: Kind = "response" if kind == "request" else "request"
        found = self._take((event.place, other))
        if found is not None:
            return (event, found.event) if kind == "request" else (found.event, event)
        if self._take((event.place, kind)) is not None:
            self.dropped["replaced"] += 1
        self._waiting[event.place, kind] = Waiting(event, now)
        self.size += event.size
        return None

    def expire(self, now: float) -> None:
        """Drop what has waited too long."""
        while self._waiting:
            key, oldest = next(iter(self._waiting.items()))
            if now - oldest.since < self._seconds:
                return
            self._take(key)
            self.dropped[key[1]] += 1

    def _take(self, key: Key) -> Waiting | None:
        found = self._waiting.pop(key, None)
        if found is not None:
            self.size -= found.event.size
        return found
