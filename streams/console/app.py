"""The web console: live page, incident page, a small REST API, server-sent events, Prometheus metrics.

Stateless: everything stands in Redis, so any number of consoles may run. It binds to loopback unless a token is set.
Every page escapes; state changes need a CSRF token bound to the visitor's session.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from jinja2 import Environment, PackageLoader, select_autoescape
from redis.asyncio import Redis
from redis.exceptions import RedisError

from detectors import bundle
from detectors.errors import DetectorError
from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.console import data, pictures
from streams.errors import ConfigError, VedetteError
from streams.incidents import service
from streams.store.client import connect, connect_async

log = logging.getLogger("vedette.console")

#: Seconds between two looks at Redis for the live page, whatever the number of viewers.
REFRESH_SECONDS = 1.0
#: Looks that a slow viewer may fall behind before the oldest is dropped.
VIEWER_QUEUE = 4
#: A comment line keeps idle proxies from closing the stream.
HEARTBEAT_SECONDS = 15.0
#: Wrong tokens from everywhere per minute before log-in is refused for the rest of that minute.
LOGIN_ATTEMPTS_PER_MINUTE = 10

SESSION_COOKIE = "vedette_session"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Console:
    """Routes and what they share: settings, Redis, templates, the live viewers."""

    def __init__(self, settings: Settings, redis: Redis, token: str | None) -> None:
        self.settings = settings
        self.redis = redis
        self.token = token
        self._secret = hashlib.sha256(b"vedette console" + (token or secrets.token_hex(32)).encode()).digest()
        self._schemas: dict[str, FeatureSchema | None] = {}
        self._viewers: dict[str, set[asyncio.Queue[bytes]]] = {model.name: set() for model in settings.models}
        self._wrong: list[float] = []
        self.templates = Environment(
            loader=PackageLoader("streams.console"), autoescape=select_autoescape(default=True), enable_async=False
        )
        self.templates.filters.update(moment=moment, duration=duration, figure=figure)

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 1024)
        app.add_routes(
            [
                web.get("/", self.live),
                web.get("/incidents/{incident}", self.incident),
                web.post("/incidents/{incident}/{action}", self.act),
                web.get("/login", self.login_page),
                web.post("/login", self.login),
                web.get("/events", self.events),
                web.get("/api/v1/overview", self.api_overview),
                web.get("/api/v1/incidents", self.api_incidents),
                web.get("/api/v1/incidents/{incident}", self.api_incident),
                web.get("/metrics", self.metrics),
                web.get("/health", self.health),
                web.static("/static", Path(__file__).parent / "static"),
            ]
        )
        app.cleanup_ctx.append(self._broadcasting)
        return app

    # Access -----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        open_paths = request.path in ("/login", "/health") or request.path.startswith("/static/")
        if self.token is not None and not open_paths and not self._known(request):
            if request.path.startswith("/api/") or request.path in ("/events", "/metrics"):
                raise web.HTTPUnauthorized(text="a token is needed: Authorization: Bearer TOKEN", headers=HEADERS)
            raise web.HTTPSeeOther("/login", headers=HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            answer.headers.update(HEADERS)
            raise
        except RedisError as error:
            log.warning("redis does not answer: %s", error)
            return self._page(request, "problem.html", 503, title="Redis does not answer", text=str(error))
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _known(self, request: web.Request) -> bool:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if self.token is not None and bearer and hmac.compare_digest(bearer.encode(), self.token.encode()):
            return True
        session = request.cookies.get(SESSION_COOKIE, "")
        name, _, mark = session.partition(".")
        return bool(mark) and hmac.compare_digest(mark, self._sign("session", name))

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()

    def _session(self, request: web.Request) -> tuple[str, bool]:
        session = request.cookies.get(SESSION_COOKIE, "")
        name, _, mark = session.partition(".")
        if mark and hmac.compare_digest(mark, self._sign("session", name)):
            return name, False
        return secrets.token_urlsafe(16), True

    def _page(self, request: web.Request, template: str, status: int = 200, **values: Any) -> web.Response:
        name, fresh = self._session(request)
        text = self.templates.get_template(template).render(
            csrf=self._sign("csrf", name), models=[model.name for model in self.settings.models], **values
        )
        response = web.Response(text=text, status=status, content_type="text/html")
        if fresh and self.token is None:
            self._remember(request, response, name)
        return response

    def _remember(self, request: web.Request, response: web.StreamResponse, name: str) -> None:
        response.set_cookie(
            SESSION_COOKIE, f"{name}.{self._sign('session', name)}", httponly=True, samesite="Strict", secure=request.secure
        )

    async def login_page(self, request: web.Request) -> web.Response:
        """The form that takes the token."""
        return self._page(request, "login.html", wrong=False)

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Exchange the token for a session."""
        now = time.monotonic()
        self._wrong = [at for at in self._wrong if now - at < 60.0]
        if len(self._wrong) >= LOGIN_ATTEMPTS_PER_MINUTE:
            raise web.HTTPTooManyRequests(text="too many wrong tokens; wait a minute")
        given = str((await request.post()).get("token", ""))
        if self.token is None or not hmac.compare_digest(given.encode(), self.token.encode()):
            self._wrong.append(now)
            return self._page(request, "login.html", 403, wrong=True)
        response = web.HTTPSeeOther("/")
        self._remember(request, response, secrets.token_urlsafe(16))
        return response

    # Pages ------------------------------------------------------------------------------------------------------

    def _model(self, request: web.Request) -> ModelSettings:
        try:
            return self.settings.model(request.query.get("model") or self.settings.models[0].name)
        except ConfigError as error:
            raise web.HTTPNotFound(text=str(error)) from None

    async def live(self, request: web.Request) -> web.Response:
        """What happens now."""
        model = self._model(request)
        look = await data.overview(self.redis, model)
        plot = pictures.bars([rows for _, rows, _, _ in look.minutes])
        return self._page(request, "live.html", look=look, model=model, plot=plot)

    async def incident(self, request: web.Request) -> web.Response:
        """One incident with its evidence."""
        model = self._model(request)
        found = await data.incident(self.redis, model, request.match_info["incident"])
        if found is None:
            return self._page(request, "problem.html", 404, title="No such incident", text="It may have expired.")
        shown, version, signals = found
        schema = self._schema(model)
        return self._page(
            request,
            "incident.html",
            incident=shown,
            version=version,
            model=model,
            signals=signals,
            exhibits=[self._exhibit(schema, signal) for signal in signals[:3]],
            classes=schema.classes if schema is not None else (),
            problem=request.query.get("problem", ""),
        )

    def _exhibit(self, schema: FeatureSchema | None, signal: Any) -> dict[str, Any]:
        if schema is None or len(signal.input) != schema.width:
            return {"signal": signal, "panels": [], "features": []}
        titles = (
            f"input, answered “{schema.classes[signal.label]}”",
            f"nearest reference of “{schema.classes[signal.nearest_label]}”",
        )
        return {
            "signal": signal,
            "panels": pictures.panels(schema, signal.input, signal.nearest, titles),
            "features": [] if schema.image_shape else pictures.changed_features(schema, signal.input, signal.nearest),
        }

    def _schema(self, model: ModelSettings) -> FeatureSchema | None:
        if model.name not in self._schemas:
            try:
                self._schemas[model.name] = bundle.load(model.bundle).schema
            except (DetectorError, OSError) as error:
                log.warning("no pictures for %s: bundle %s: %s", model.name, model.bundle, error)
                self._schemas[model.name] = None
        return self._schemas[model.name]

    async def act(self, request: web.Request) -> web.StreamResponse:
        """Acknowledge or resolve, by a form with a CSRF token, or by a bearer token."""
        model = self._model(request)
        name, action = request.match_info["incident"], request.match_info["action"]
        form = await request.post()
        session, _ = self._session(request)
        if not hmac.compare_digest(str(form.get("csrf", "")), self._sign("csrf", session)):
            raise web.HTTPForbidden(text="the form is too old or not ours; load the page again")
        by = str(form.get("by", "")).strip()[:80] or "console"
        note = str(form.get("note", "")).strip()[:500]
        try:
            await asyncio.to_thread(self._apply, model, name, action, by, note, str(form.get("verdict", "")))
        except VedetteError as error:
            target = request.url.with_path(f"/incidents/{name}").with_query(model=model.name, problem=str(error))
            raise web.HTTPSeeOther(target.relative()) from None
        raise web.HTTPSeeOther(request.url.with_path(f"/incidents/{name}").with_query(model=model.name).relative())

    def _apply(self, model: ModelSettings, name: str, action: str, by: str, note: str, verdict: str) -> None:
        desk = service.IncidentService(connect(self.settings.redis), model.name)
        if action == "acknowledge":
            desk.acknowledge(name, by)
        elif action == "resolve":
            desk.resolve(name, by, verdict or "true", note)
        elif action == "reopen":
            desk.reopen(name, by)
        else:
            raise ConfigError(f"no such action: {action}; there are acknowledge, resolve and reopen")

    # Live stream ------------------------------------------------------------------------------------------------

    async def _broadcasting(self, app: web.Application) -> Any:
        tasks = [asyncio.create_task(self._broadcast(model)) for model in self.settings.models]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _broadcast(self, model: ModelSettings) -> None:
        while True:
            started = time.monotonic()
            viewers = self._viewers[model.name]
            if viewers:
                try:
                    message = self._message(await data.overview(self.redis, model))
                except (RedisError, msgspec.MsgspecError) as error:
                    text = msgspec.json.encode({"problem": f"Redis does not answer: {error}"}).decode()
                    message = f"event: problem\ndata: {text}\n\n".encode()
                for queue in viewers:
                    if queue.full():
                        queue.get_nowait()
                    queue.put_nowait(message)
            await asyncio.sleep(max(0.05, REFRESH_SECONDS - (time.monotonic() - started)))

    def _message(self, look: data.Overview) -> bytes:
        rows = self.templates.get_template("incident_rows.html").render(look=look)
        probes = self.templates.get_template("probe_rows.html").render(look=look)
        figures = {
            "rows_per_second": figure(look.rows_per_second),
            "rows": figure(look.totals["rows"]),
            "lag": figure(look.lag),
            "workers": len(look.workers),
            "gone": len(look.gone),
            "open_pages": look.open_pages,
            "open_tickets": look.open_tickets,
            "mode": look.mode,
            "at": moment(int(look.at * 1e6)),
        }
        plot = pictures.bars([count for _, count, _, _ in look.minutes])
        text = msgspec.json.encode({"figures": figures, "incidents": rows, "probes": probes, "plot": plot}).decode()
        return f"event: overview\ndata: {text}\n\n".encode()

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: one overview a second, shared by all viewers of a model."""
        model = self._model(request)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue(VIEWER_QUEUE)
        self._viewers[model.name].add(queue)
        try:
            while True:
                try:
                    message = await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    message = b": still here\n\n"
                await response.write(message)
        except (ConnectionResetError, asyncio.CancelledError):
            return response
        finally:
            self._viewers[model.name].discard(queue)

    # For programs -----------------------------------------------------------------------------------------------

    async def api_overview(self, request: web.Request) -> web.Response:
        """The live page as JSON."""
        look = await data.overview(self.redis, self._model(request))
        return web.Response(body=msgspec.json.encode(look), content_type="application/json")

    async def api_incidents(self, request: web.Request) -> web.Response:
        """Incidents as JSON, open ones first."""
        look = await data.overview(self.redis, self._model(request))
        return web.Response(body=msgspec.json.encode(look.incidents), content_type="application/json")

    async def api_incident(self, request: web.Request) -> web.Response:
        """One incident with its evidence as JSON."""
        found = await data.incident(self.redis, self._model(request), request.match_info["incident"])
        if found is None:
            raise web.HTTPNotFound(text="no such incident")
        shown, version, signals = found
        document = {"incident": shown, "version": version, "evidence": signals}
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus metrics of incidents and probes, for every declared model."""
        lines: list[str] = []
        for model in self.settings.models:
            look = await data.overview(self.redis, model)
            label = f'{{model="{model.name}"}}'
            lines += [
                f"vedette_rows_total{label} {look.totals['rows']}",
                f"vedette_rows_invalid_total{label} {look.totals['invalid']}",
                f"vedette_lag_records{label} {look.lag}",
                f"vedette_workers{label} {len(look.workers)}",
                f'vedette_incidents_open{{model="{model.name}",level="page"}} {look.open_pages}',
                f'vedette_incidents_open{{model="{model.name}",level="ticket"}} {look.open_tickets}',
            ]
            lines += [
                f'vedette_probe_recall{{model="{model.name}",attack="{probe.attack}"}} {probe.recall}'
                for probe in look.probes
            ]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain", charset="utf-8")

    async def health(self, request: web.Request) -> web.Response:
        """200 while Redis answers."""
        try:
            await self.redis.ping()
        except RedisError as error:
            return web.json_response({"status": "redis does not answer", "detail": str(error)}, status=503)
        return web.json_response({"status": "ok"})


def moment(microseconds: int) -> str:
    """Broker time as ISO 8601 in UTC; the page's script shows it in the reader's zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(microseconds / 1e6))


def duration(microseconds: int) -> str:
    """A length of time in the largest sensible unit."""
    seconds = microseconds / 1e6
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def figure(value: float) -> str:
    """A number for people."""
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"


def _token(settings: Settings) -> str | None:
    path = settings.console.token_file
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigError(f"console.token_file: cannot read {path}") from None
    if len(token) < 16:
        raise ConfigError(f"console.token_file: {path} must hold at least 16 characters")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(settings: Settings) -> int:
    """Serve until SIGTERM.

    Raises
    ------
    ConfigError
        When it should listen beyond loopback without a token.
    """
    token = _token(settings)
    host, port = settings.console.host, settings.console.port
    if token is None and not _is_loopback(host):
        raise ConfigError(f"console.host: {host} is not loopback; set console.token_file first, so that nobody reads evidence unasked")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    async def serve() -> web.Application:
        console = Console(settings, connect_async(settings.redis), token)
        log.info("console on http://%s:%s/", host, port)
        return console.application()

    try:
        web.run_app(serve(), host=host, port=port, print=None, access_log=None, shutdown_timeout=2.0)
    except OSError as error:
        raise ConfigError(f"console.port: cannot listen on {host}:{port}: {error.strerror or error}") from None
    return 0
