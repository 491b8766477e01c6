"""Server-sent events: one look a second at each model that somebody watches, shared by all who watch it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from redis.exceptions import RedisError

from streams.console.data import REFRESH_SECONDS, Overview, Watch

log = logging.getLogger("vedette.console")

#: Looks that a slow viewer may fall behind before the oldest is dropped.
VIEWER_QUEUE = 4
#: A comment line keeps idle proxies from closing the stream.
HEARTBEAT_SECONDS = 15.0
#: Streams that one console serves; each costs a connection.
MOST_VIEWERS = 200
#: A browser that lost its stream tries again after so long.
RETRY_MILLISECONDS = 2000

Render = Callable[[Overview, str], bytes]
"""(look, topic) -> the data line of an ``overview`` event, JSON without line breaks."""


@dataclass(eq=False, slots=True)
class Viewer:
    """One open stream; `topic` is what it asks for: everything (empty), ``list``, or an incident's id."""

    topic: str
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(VIEWER_QUEUE))

    def give(self, message: bytes | None) -> None:
        """Queue a message; the oldest makes room. None ends the stream."""
        if self.queue.full():
            self.queue.get_nowait()
        self.queue.put_nowait(message)


class Broadcast:
    """Renders looks at one model and hands them to its viewers; while nobody looks, Redis is not asked."""

    def __init__(self, watch: Watch, render: Render) -> None:
        self.watch = watch
        self._render = render
        self._viewers: set[Viewer] = set()
        self._somebody = asyncio.Event()
        self._stopped = False

    async def run(self) -> None:
        """Until `stop`; a cancellation alone could be lost in a client's read."""
        while True:
            await self._somebody.wait()
            if self._stopped:
                return
            started = time.monotonic()
            await self._once()
            await asyncio.sleep(max(0.05, REFRESH_SECONDS - (time.monotonic() - started)))

    def stop(self) -> None:
        """End every stream, for good."""
        self._stopped = True
        self._somebody.set()
        for viewer in self._viewers:
            viewer.give(None)

    async def serve(
        self, response: web.StreamResponse, topic: str, admitted: Callable[[], bool] = lambda: True
    ) -> None:
        """Send looks until the viewer leaves, may look no longer, or the console stops.

        Parameters
        ----------
        admitted
            Whether the viewer may still look; asked before each message.

        Raises
        ------
        ConnectionResetError
            The viewer has left.
        """
        viewer = Viewer(topic)
        self._viewers.add(viewer)
        self._somebody.set()
        try:
            await response.write(f"retry: {RETRY_MILLISECONDS}\n\n".encode())
            while not self._stopped:
                message: bytes | None = b": still here\n\n"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        message = await viewer.queue.get()
                if message is None or not admitted():
                    return
                await response.write(message)
        finally:
            self._viewers.discard(viewer)
            if not self._viewers and not self._stopped:
                self._somebody.clear()

    def __len__(self) -> int:
        return len(self._viewers)

    async def _once(self) -> None:
        try:
            look = await self.watch.look()
            messages = {
                name: b"event: overview\ndata: " + self._render(look, name) + b"\n\n"
                for name in {viewer.topic for viewer in self._viewers}
            }
        except RedisError as error:
            log.warning("redis does not answer: %s", error)
            messages = {}
        except Exception:  # the stream of all viewers must outlive one look that cannot be shown; it is told and logged
            log.exception("a look at model %s failed", self.watch.model.name)
            messages = {}
        lost = b'event: problem\ndata: {"problem": "Redis does not answer, or holds what cannot be read"}\n\n'
        for viewer in list(self._viewers):
            viewer.give(messages.get(viewer.topic, lost) if messages else lost)
