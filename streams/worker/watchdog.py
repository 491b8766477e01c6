"""Ends the process when it makes no progress although there is lag, whatever its event loop is doing."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from streams.errors import Stalled
from streams.worker.peers import Peer
from streams.worker.reader import EventReader

log = logging.getLogger("vedette.worker")

TICK_SECONDS = 1.0
#: The group may take so long to give us partitions: it waits for members that died, and for those that are busy.
JOIN_SECONDS = 60.0
#: A tick that comes so late says that the whole process was stopped: nobody is to blame for what happened meanwhile.
SUSPENDED_SECONDS = 5.0


class Watchdog(threading.Thread):
    """A thread beside the event loop.

    It speaks when the event loop does not answer, when a partition with lag does not move, or when the group gives us
    no answer although the broker has one, for `limit` seconds each. While Redis or the broker are away the worker
    holds on purpose, and time does not count.

    Parameters
    ----------
    reader : EventReader
    peers : tuple of Peer
        Those whose absence excuses.
    limit : float
        Seconds.
    end : callable
        Called with the exit code; does not return.
    """

    def __init__(
        self, reader: EventReader, peers: tuple[Peer, ...], limit: float, end: Callable[[int], None] = os._exit
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.beat = time.monotonic()
        """When the event loop last ran."""
        self._reader = reader
        self._peers = peers
        self._limit = limit
        self._end = end
        self._done = threading.Event()
        self._excused = time.monotonic()

    def stop(self) -> None:
        """Stop watching."""
        self._done.set()

    def run(self) -> None:
        """Watch until stopped."""
        before = time.monotonic()
        while not self._done.wait(TICK_SECONDS):
            now = time.monotonic()
            if now - before > SUSPENDED_SECONDS or any(peer.away for peer in self._peers):
                self._excused = now
            before = now
            reason = self.reason(now)
            if reason is not None:
                log.critical("%s; the process ends so that its supervisor starts it again", reason)
                logging.shutdown()
                self._end(Stalled.exit_code)
                return

    def reason(self, now: float) -> str | None:
        """Why the process should end; None when all is well."""
        if now - max(self.beat, self._excused) > self._limit:
            return f"the event loop has not run for {now - self.beat:.0f} s"
        reader = self._reader
        patience = max(self._limit, JOIN_SECONDS)
        if reader.joined_at is None and now - max(reader.asked_at, self._excused) > patience:
            return f"the group has not answered for {now - reader.asked_at:.0f} s"
        for number, lag in list(reader.lag.items()):
            partition = reader.partitions.get(number)
            if lag and partition is not None and now - max(partition.moved_at, self._excused) > self._limit:
                stood = now - partition.moved_at
                return f"{partition.where} has {lag} records of lag and has not moved for {stood:.0f} s"
        return None
