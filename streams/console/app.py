"""The web console: live page, incident page, a small REST API, server-sent events, Prometheus metrics.

Stateless: everything stands in Redis, so any number of consoles may run. It binds to loopback unless a token is set.
Every page escapes; state changes need a CSRF mark bound to the visitor's session, or the token itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.console import metrics
from streams.console.access import Access, read_token
from streams.console.data import Dossier, Overview, Watch
from streams.console.live import MOST_VIEWERS, Broadcast
from streams.console.pages import Pages
from streams.console.schemas import Schemas
from streams.errors import ConfigError, Conflict, UnknownIncident, VedetteError
from streams.incidents.service import NAME_LENGTH, IncidentService
from streams.store.client import connect, connect_async

log = logging.getLogger("vedette.console")

#: Largest body that a form of ours can have.
BODY_BYTES = 64 * 1024
#: Remembers the visitor's name for forms; nothing else.
NAME_COOKIE = "vedette_name"
NAME_COOKIE_SECONDS = 365 * 24 * 3600
#: Longest wait for streams and requests under way at the end.
SHUTDOWN_SECONDS = 2.0

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Console:
    """Routes and what they share: settings, Redis, pages, the live viewers.

    Parameters
    ----------
    settings : Settings
    redis : redis.asyncio.Redis
        A client that returns bytes; it is closed when the application ends.
    token : str or None
        None: whoever reaches the socket may come in.
    schemas : Schemas, optional
        Where the schemas of the models' inputs come from; default: their bundles.
    """

    def __init__(self, settings: Settings, redis: Redis, token: str | None, schemas: Schemas | None = None) -> None:
        self.settings = settings
        self.redis = redis
        self.access = Access(token)
        self.pages = Pages(settings)
        self.schemas = schemas or Schemas()
        self.watches = {model.name: Watch(redis, model) for model in settings.models}
        self.broadcasts = {name: Broadcast(watch, self._event) for name, watch in self.watches.items()}
        self._desks: dict[str, IncidentService] = {}

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES)
        app.add_routes(
            [
                web.get("/", self.live),
                web.get("/incidents/{incident:[0-9a-f]{16}}", self.incident),
                web.post("/incidents/{incident:[0-9a-f]{16}}/{action:acknowledge|resolve|reopen}", self.act),
                web.get("/login", self.login_page),
                web.post("/login", self.login),
                web.post("/logout", self.logout),
                web.get("/events", self.events, allow_head=False),
                web.get("/events/last", self.last_event),
                web.get("/api/v1/overview", self.api_overview),
                web.get("/api/v1/incidents", self.api_incidents),
                web.get("/api/v1/incidents/{incident}", self.api_incident),
                web.get("/metrics", self.metrics),
                web.get("/health", self.health),
                web.static("/static", Path(__file__).parent / "static"),
            ]
        )
        app.cleanup_ctx.append(self._running)
        app.on_shutdown.append(self._end_streams)
        return app

    # Access -----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await self._admitted(request, handler)
        except web.HTTPException as answer:
            if answer.status < HTTPStatus.BAD_REQUEST:
                answer.headers.update(self._headers(request))
                raise
            response = self._problem(request, answer.status, answer.reason, answer.text or "")
            if "Allow" in answer.headers:
                response.headers["Allow"] = answer.headers["Allow"]
        except RedisError as error:
            log.warning("redis does not answer: %s", error)
            response = self._problem(
                request, 503, "Redis does not answer", "Nothing can be shown or changed until it does."
            )
        except (VedetteError, msgspec.MsgspecError) as error:
            log.warning("%s %s: %s", request.method, request.path, error)
            response = self._problem(request, *_status_of(error), str(error))
        except Exception:  # the outermost boundary of a request: logged with its trace, told without it
            log.exception("%s %s failed", request.method, request.path)
            response = self._problem(request, 500, "Something went wrong here", "The console's log says what.")
        if not response.prepared:
            response.headers.update(self._headers(request))
        return response

    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self.access.admits_host(request):
            raise web.HTTPMisdirectedRequest(
                text="without a token the console answers only under a loopback name; set console.token_file"
            )
        open_to_all = request.path in ("/login", "/health") or request.path.startswith("/static/")
        if not open_to_all and not self.access.known(request):
            if _for_programs(request):
                raise web.HTTPUnauthorized(text="a token is needed: Authorization: Bearer TOKEN")
            raise web.HTTPSeeOther("/login")
        return await handler(request)

    def _headers(self, request: web.Request) -> dict[str, str]:
        keep = "no-cache" if request.path.startswith("/static/") else "no-store"
        return {**HEADERS, "Cache-Control": keep}

    def _problem(self, request: web.Request, status: int, title: str, text: str) -> web.Response:
        if _for_programs(request):
            document = {"type": "about:blank", "title": title, "status": status, "detail": text}
            return web.Response(
                body=msgspec.json.encode(document), status=status, content_type="application/problem+json"
            )
        return self._page(request, "problem.html", status, title=title, text=text)

    def _page(
        self, request: web.Request, template: str, status: int = 200, model: ModelSettings | None = None, **values: Any
    ) -> web.Response:
        session = self.access.session(request)
        known = self.access.known(request)
        text = self.pages.render(
            template,
            model=model or (self.settings.models[0] if known else None),
            here=request.path,
            csrf=self.access.csrf(session),
            guarded=self.access.token is not None,
            nav=known,
            me=_name_of(request),
            **values,
        )
        response = web.Response(text=text, status=status, content_type="text/html")
        if session.fresh and self.access.token is None:
            self.access.remember(request, response, session)
        return response

    async def login_page(self, request: web.Request) -> web.Response:
        """The form that takes the token."""
        return self._page(request, "login.html", problem="")

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Exchange the token for a session."""
        if self.access.must_wait(request):
            return self._page(request, "login.html", 429, problem="Too many wrong tokens. Wait a minute.")
        form = await _form(request)
        if self.access.token is not None and not self.access.check(request, form.get("token", "").strip()):
            return self._page(request, "login.html", 403, problem="That is not the token.")
        response = web.Response(status=303, headers={"Location": "/"})
        self.access.remember(request, response, self.access.new_session())
        return response

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """Forget the session."""
        self._check_change(request, await _form(request))
        response = web.Response(status=303, headers={"Location": "/login"})
        self.access.forget(response)
        return response

    def _check_change(self, request: web.Request, form: Mapping[str, str]) -> None:
        if not self.access.allows_change(request, form.get("csrf", "")):
            raise web.HTTPForbidden(text="The form is too old or not ours; load the page again.")

    # Pages ------------------------------------------------------------------------------------------------------

    def _model(self, request: web.Request) -> ModelSettings:
        try:
            return self.settings.model(request.query.get("model") or self.settings.models[0].name)
        except ConfigError as error:
            raise web.HTTPNotFound(text=str(error)) from None

    async def live(self, request: web.Request) -> web.Response:
        """What happens now."""
        model = self._model(request)
        look = await self.watches[model.name].look()
        return self._page(request, "live.html", model=model, **self.pages.live(look))

    async def incident(self, request: web.Request) -> web.Response:
        """One incident with its evidence."""
        return await self._incident_page(request, self._model(request), request.match_info["incident"])

    async def _incident_page(
        self, request: web.Request, model: ModelSettings, name: str, problem: str = "", status: int = 200
    ) -> web.Response:
        dossier = await self._dossier(request, model, name)
        schema = await self._schema(model) if dossier.signals else None
        return self._page(
            request, "incident.html", status, model=model, problem=problem, **self.pages.incident(dossier, schema)
        )

    async def _dossier(self, request: web.Request, model: ModelSettings, name: str) -> Dossier:
        found = await self.watches[model.name].incident(name)
        if found is None:
            raise UnknownIncident(f"No incident {name} of model {model.name}; it may have expired.")
        if found.signals:
            log.info("evidence of %s/%s read by %r from %s", model.name, name, _name_of(request), request.remote)
        return found

    async def _schema(self, model: ModelSettings) -> FeatureSchema | None:
        return await asyncio.to_thread(self.schemas.of, model)

    async def act(self, request: web.Request) -> web.StreamResponse:
        """Acknowledge, resolve or re-open: a form with a CSRF mark, or a request that carries the token."""
        model = self._model(request)
        name, action = request.match_info["incident"], request.match_info["action"]
        form = await _form(request)
        self._check_change(request, form)
        by = " ".join(form.get("by", "").split())[:NAME_LENGTH]
        try:
            await asyncio.to_thread(self._apply, model, name, action, by, form)
        except (Conflict, ConfigError) as error:
            return await self._incident_page(request, model, name, str(error), _status_of(error)[0])
        finally:
            await self.watches[model.name].look(fresh=True)
        response = web.Response(status=303, headers={"Location": self.pages.link(f"/incidents/{name}", model)})
        response.set_cookie(
            NAME_COOKIE, quote(by), max_age=NAME_COOKIE_SECONDS, httponly=True, samesite="Strict", secure=request.secure
        )
        return response

    def _apply(self, model: ModelSettings, name: str, action: str, by: str, form: Mapping[str, str]) -> None:
        desk = self._desk(model)
        if action == "acknowledge":
            desk.acknowledge(name, by)
        elif action == "resolve":
            desk.resolve(name, by, form.get("verdict", ""), form.get("note", ""))
        else:
            desk.reopen(name, by)

    def _desk(self, model: ModelSettings) -> IncidentService:
        if model.name not in self._desks:
            self._desks[model.name] = IncidentService(connect(self.settings.redis), model.name)
        return self._desks[model.name]

    # Live stream ------------------------------------------------------------------------------------------------

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(broadcast.run()) for broadcast in self.broadcasts.values()]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.redis.aclose()

    async def _end_streams(self, _: web.Application) -> None:
        for broadcast in self.broadcasts.values():
            broadcast.stop()

    def _event(self, look: Overview, incident: str) -> bytes:
        if not incident:
            return self.pages.event(look, self.settings.model(look.model))
        row = self.watches[look.model].index.get(incident)
        return msgspec.json.encode({"change": row.change if row else None})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: a look a second; with ``incident=ID`` only the number of that incident's changes."""
        broadcast = self.broadcasts[self._model(request).name]
        if sum(map(len, self.broadcasts.values())) >= MOST_VIEWERS:
            raise web.HTTPServiceUnavailable(text="too many live pages are open")
        response = web.StreamResponse(headers={**self._headers(request), "Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await broadcast.serve(response, request.query.get("incident", "")[:32])
        except ConnectionResetError:
            log.debug("a viewer has left")
        return response

    async def last_event(self, request: web.Request) -> web.Response:
        """The same look once, for tabs that nobody sees."""
        model = self._model(request)
        look = await self.watches[model.name].look()
        return web.Response(body=self.pages.event(look, model), content_type="application/json")

    # For programs -----------------------------------------------------------------------------------------------

    async def api_overview(self, request: web.Request) -> web.Response:
        """The live page as JSON."""
        look = await self.watches[self._model(request).name].look()
        document = msgspec.to_builtins(look) | {"lag": look.lag, "rows_per_second": look.rows_per_second}
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def api_incidents(self, request: web.Request) -> web.Response:
        """The most urgent incidents as JSON."""
        look = await self.watches[self._model(request).name].look()
        return web.Response(body=msgspec.json.encode(look.incidents), content_type="application/json")

    async def api_incident(self, request: web.Request) -> web.Response:
        """One incident with its evidence as JSON."""
        found = await self._dossier(request, self._model(request), request.match_info["incident"])
        document = {"incident": found.incident, "change": found.change, "evidence": found.signals}
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus metrics of incidents and probes, for every declared model."""
        looks = [await watch.look() for watch in self.watches.values()]
        return web.Response(text=metrics.exposition(looks), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def health(self, _: web.Request) -> web.Response:
        """200 while Redis answers."""
        try:
            await self.redis.ping()
        except RedisError:
            return web.json_response({"status": "redis does not answer"}, status=503)
        return web.json_response({"status": "ok"})


def _for_programs(request: web.Request) -> bool:
    return request.path.startswith(("/api/", "/events")) or request.path == "/metrics"


def _status_of(error: Exception) -> tuple[int, str]:
    if isinstance(error, UnknownIncident):
        return 404, "No such incident"
    if isinstance(error, Conflict):
        return 409, "Somebody was faster"
    if isinstance(error, ConfigError):
        return 422, "That cannot be done"
    if isinstance(error, VedetteError):
        return 503, "Not now"
    return 500, "Redis holds what this version cannot read"


async def _form(request: web.Request) -> dict[str, str]:
    """The fields of a plain form; files are refused."""
    if request.content_type not in ("application/x-www-form-urlencoded", "application/octet-stream"):
        raise web.HTTPUnsupportedMediaType(text="send a form as application/x-www-form-urlencoded")
    return {name: value for name, value in (await request.post()).items() if isinstance(value, str)}


def _name_of(request: web.Request) -> str:
    return unquote(request.cookies.get(NAME_COOKIE, ""))[:NAME_LENGTH]


def run(settings: Settings) -> int:
    """The `vedette console` command: serve until SIGTERM or SIGINT; returns the exit code.

    Raises
    ------
    ConfigError
        When it should listen beyond loopback without a token, or cannot listen.
    """
    token = read_token(settings.console)
    host, port = settings.console.host, settings.console.port
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    log.info("console on http://%s:%s/", f"[{host}]" if ":" in host else host, port)

    async def serve() -> web.Application:
        return Console(settings, connect_async(settings.redis), token).application()

    try:
        web.run_app(serve(), host=host, port=port, print=None, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    except OSError as error:
        raise ConfigError(f"console.port: cannot listen on {host}:{port}: {error.strerror or error}") from None
    return 0
