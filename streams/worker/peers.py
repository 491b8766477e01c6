"""Redis and the broker as the worker finds them: answering, or away and waited for."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("vedette.worker")

#: Pause after a call failed.
PAUSE_SECONDS = 0.25
MAX_PAUSE_SECONDS = 2.0
#: A call that has had no answer for so long says that the server is away, before the call itself gives up.
SILENT_SECONDS = 2.0


class Peer:
    """One server. Says once that it is away, and once that it answers again.

    Parameters
    ----------
    name : str
        How people call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.away_since: float | None = None
        self._pause = PAUSE_SECONDS
        self._numbers = itertools.count()
        self._calls: dict[int, float] = {}

    @property
    def away(self) -> bool:
        """Whether the last call failed, or one is without an answer for long."""
        if self.away_since is not None:
            return True
        return time.monotonic() - min(list(self._calls.values()), default=float("inf")) > SILENT_SECONDS

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call that the server should answer soon."""
        number = next(self._numbers)
        self._calls[number] = time.monotonic()
        try:
            yield
        finally:
            del self._calls[number]

    def answered(self) -> None:
        """A call succeeded."""
        if self.away_since is not None:
            log.info("%s answers again after %.1f s", self.name, time.monotonic() - self.away_since)
            self.away_since = None
            self._pause = PAUSE_SECONDS

    def failed(self, error: BaseException) -> None:
        """A call failed: everything is kept and tried again."""
        if self.away_since is None:
            self.away_since = time.monotonic()
            log.warning("%s is away or refuses, holding on: %s", self.name, error or type(error).__name__)

    async def pause(self) -> None:
        """Wait before the next try, longer each time."""
        pause, self._pause = self._pause, min(self._pause * 1.5, MAX_PAUSE_SECONDS)
        await asyncio.sleep(pause)
