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
        self.seconds_per_row = 1.0 / rows_per_second
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
            self._next = start + rows * self.seconds_per_row
        if stop.wait(max(0.0, start - now)):
            raise Stopped


class CpuBudget:
    """At most a share of one core over all threads that share it: who has used more waits before going on.

    Parameters
    ----------
    share : float
        Of one core, above 0 and at most 1.
    clock, used : callable
        Monotonic seconds; cpu seconds of the calling thread.
    """

    def __init__(
        self,
        share: float,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._clock = clock
        self._used = used
        self._paid_at = clock()
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._thread.used = used()  # what this thread did before is not on the budget

    def pay(self, stop: threading.Event) -> None:
        """Wait until what the calling thread has used since its last call is within the budget.

        Raises
        ------
        Stopped
            When `stop` is set before or meanwhile.
        """
        used = self._used()
        spent = used - getattr(self._thread, "used", 0.0)
        self._thread.used = used
        with self._lock:
            now = self._clock()
            self._paid_at = max(self._paid_at, now - spent) + spent / self._share
            owed = self._paid_at - now
        if stop.wait(max(0.0, owed)):
            raise Stopped
