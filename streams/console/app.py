"""The web console: its rooms, log-in, server-sent events, and the process that serves them.

Stateless: everything stands in Redis, so any number of consoles may run. It binds to loopback unless a token is set.
Every page escapes; state changes need a CSRF mark bound to the visitor's session, or the token itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, get_args

import msgspec
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from streams.config import Settings
from streams.console import metrics
from streams.console.access import ANYBODY, read_token, read_tokens
from streams.console.accounting_room import AccountingRoom
from streams.console.api import ApiRoom
from streams.console.data import Overview, Range, Watch
from streams.console.dead_letter_room import DeadLetterRoom
from streams.console.deliveries import deliveries
from streams.console.detector_room import DetectorRoom
from streams.console.front import Front, form_of, next_of
from streams.console.incident_room import IncidentRoom
from streams.console.live import MOST_VIEWERS, Broadcast
from streams.console.probe_room import ProbeRoom
from streams.console.repeater_room import RepeaterRoom
from streams.console.schemas import Schemas
from streams.console.silence_room import SilenceRoom
from streams.console.tokens import Tokens
from streams.errors import ConfigError
from streams.store.client import connect_async

log = logging.getLogger("vedette.console")

#: Largest body that a form of ours can have.
BODY_BYTES = 64 * 1024
#: Longest wait for streams and requests under way at the end.
SHUTDOWN_SECONDS = 2.0


class Room(Protocol):
    """Some pages that belong together."""

    def routes(self) -> list[web.RouteDef]:
        """Their routes."""


class Console:
    """All rooms, and the live viewers.

    Parameters
    ----------
    settings : Settings
    redis : redis.asyncio.Redis
        A client that returns bytes; it is closed when the application ends.
    token : str or None
        The one token of responders. None, and no `tokens`: whoever reaches the socket may come in.
    schemas : Schemas, optional
        Where the schemas of the models' inputs come from; default: their bundles.
    tokens : Tokens, optional
        Named tokens with roles.
    """

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        token: str | None,
        schemas: Schemas | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self.front = Front(settings, redis, token, schemas or Schemas(), tokens)
        incidents, probes, accounting = IncidentRoom(self.front), ProbeRoom(self.front), AccountingRoom(self.front)
        self.rooms: tuple[Room, ...] = (
            incidents,
            probes,
            DetectorRoom(self.front),
            DeadLetterRoom(self.front),
            accounting,
            SilenceRoom(self.front),
            RepeaterRoom(self.front),
            ApiRoom(self.front, incidents, probes, accounting),
        )
        self.broadcasts = {name: Broadcast(watch, self._event) for name, watch in self.front.watches.items()}

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self.front.guard], client_max_size=BODY_BYTES)
        app.add_routes(
            [
                web.get("/", self.live),
                web.get("/login", self.login_page),
                web.post("/login", self.login),
                web.post("/logout", self.logout),
                web.get("/events", self.events, allow_head=False),
                web.get("/events/last", self.last_event),
                web.get("/metrics", self.metrics),
                web.get("/health", self.health),
                web.static("/static", Path(__file__).parent / "static"),
                *(route for room in self.rooms for route in room.routes()),
            ]
        )
        app.cleanup_ctx.append(self._running)
        app.on_shutdown.append(self._end_streams)
        return app

    async def login_page(self, request: web.Request) -> web.Response:
        """The form that takes the token."""
        return self.front.page(request, "login.html", problem="", wanted=next_of(request))

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Exchange the token for a session."""
        form, wanted = await form_of(request), next_of(request)
        access, given = self.front.access, form.get("token", "").strip()
        await access.prepare(request, given)
        if access.must_wait(request):
            holder = access.remembered(given)
            if holder is None:
                return self.front.page(
                    request, "login.html", 429, problem="Too many wrong tokens. Wait a minute.", wanted=wanted
                )
        else:
            holder = access.check(request, given) if access.guarded else ANYBODY
        if holder is None:
            return self.front.page(request, "login.html", 403, problem="That is not a token of ours.", wanted=wanted)
        response = web.Response(status=303, headers={"Location": wanted})
        access.remember(request, response, access.new_session(holder))
        return response

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """Forget the session."""
        self.front.check_form(request, await form_of(request))
        response = web.Response(status=303, headers={"Location": "/login"})
        self.front.access.forget(response)
        return response

    async def live(self, request: web.Request) -> web.Response:
        """What happens now."""
        model = self.front.model(request)
        watch = self.front.watches[model.name]
        back: Range = next((name for name in get_args(Range) if name == request.query.get("range")), "hour")
        look, course = await watch.look(), await watch.course(back)
        return self.front.page(request, "live.html", model=model, **self.front.pages.live(look, course, back))

    # Live stream ------------------------------------------------------------------------------------------------

    async def _running(self, app: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(broadcast.run()) for broadcast in self.broadcasts.values()]
        # Incidents are read once at the start, so that the first visitor does not wait for them.
        tasks += [asyncio.create_task(self._first_look(watch)) for watch in self.front.watches.values()]
        yield
        await self._end_streams(app)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=SHUTDOWN_SECONDS)
        await self.front.redis.aclose()

    async def _first_look(self, watch: Watch) -> None:
        try:
            await watch.look()
        except RedisError as error:
            log.warning("redis does not answer yet: %s", error)

    async def _end_streams(self, _: web.Application) -> None:
        for broadcast in self.broadcasts.values():
            broadcast.stop()

    def _event(self, look: Overview, topic: str) -> bytes:
        index = self.front.watches[look.model].index
        if topic == "":
            return self.front.pages.event(look, self.front.settings.model(look.model))
        if topic == "list":
            return msgspec.json.encode({"revision": index.revision})
        row = index.get(topic)
        return msgspec.json.encode({"change": row.change if row else None})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: a look a second.

        With ``topic=list`` only the number of changes of the list of incidents, with ``topic=ID`` of one incident.
        """
        broadcast = self.broadcasts[self.front.model(request).name]
        if sum(map(len, self.broadcasts.values())) >= MOST_VIEWERS:
            raise web.HTTPServiceUnavailable(text="too many live pages are open")
        response = web.StreamResponse(headers={**self.front.headers(request), "Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            await broadcast.serve(
                response, request.query.get("topic", "")[:32], lambda: self.front.access.known(request)
            )
        except ConnectionResetError:
            log.debug("a viewer has left")
        return response

    async def last_event(self, request: web.Request) -> web.Response:
        """The same look once, for tabs that nobody sees."""
        model = self.front.model(request)
        look = await self.front.watches[model.name].look()
        return web.Response(body=self.front.pages.event(look, model), content_type="application/json")

    # For programs -----------------------------------------------------------------------------------------------

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus metrics of incidents, probes and notifications, for every declared model."""
        looks = [await watch.look() for watch in self.front.watches.values()]
        names = [one.name for one in self.front.settings.notify.destinations]
        out = [await deliveries(self.front.redis, look.model, names, look.at) for look in looks]
        return web.Response(text=metrics.exposition(looks, out), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def health(self, _: web.Request) -> web.Response:
        """200 while Redis answers."""
        try:
            await self.front.redis.ping()
        except RedisError:
            return web.json_response({"status": "redis does not answer"}, status=503)
        return web.json_response({"status": "ok"})


def run(settings: Settings) -> int:
    """The `vedette console` command: serve until SIGTERM or SIGINT; returns the exit code.

    Raises
    ------
    ConfigError
        When it should listen beyond loopback without a token, or cannot listen.
    """
    token, tokens = read_token(settings.console), read_tokens(settings.console)
    host, port = settings.console.host, settings.console.port
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    log.info("console on http://%s:%s/", f"[{host}]" if ":" in host else host, port)

    async def serve() -> web.Application:
        return Console(settings, connect_async(settings.redis), token, tokens=tokens).application()

    try:
        web.run_app(serve(), host=host, port=port, print=None, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    except OSError as error:
        raise ConfigError(f"console.port: cannot listen on {host}:{port}: {error.strerror or error}") from None
    return 0
