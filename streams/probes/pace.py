"""The bound on how fast the prober asks the watched model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Stopped(Exception):
    """The prober wants this probe to end."""


class Pace:
    """At most so many rows a second over all threads that share it, without saving up for a rush.

    Parameters
    ----------
    rows_per_second : float
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, rows_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_per_row = 1.0 / rows_per_second
        self._clock = clock
        self._next = clock()
        self._lock = threading.Lock()

    def take(self, rows: int, stop: threading.Event) -> None:
        """Wait until `rows` more rows may be sent.

        Raises
        ------
        Stopped
            When `stop` is set before or meanwhile.
        """
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + rows * self._seconds_per_row
        if stop.wait(max(0.0, start - now)):
            raise Stopped


class Schedule:
    """When each kind of probe is due. A kind that was held up does not catch up: it is due once, then on.

    Parameters
    ----------
    every : dict of str to float
        Seconds between two starts of each kind.
    now : float
        Monotonic seconds; everything is due at once.
    """

    def __init__(self, every: dict[str, float], now: float) -> None:
        self._every = dict(every)
        self._due = dict.fromkeys(every, now)

    def due(self, kind: str, now: float) -> bool:
        """Whether to start one now."""
        return now >= self._due[kind]

    def started(self, kind: str, now: float) -> None:
        """Note the start."""
        late = now - self._due[kind]
        self._due[kind] = now + self._every[kind] if late >= self._every[kind] else self._due[kind] + self._every[kind]
