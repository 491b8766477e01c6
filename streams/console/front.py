"""What every room of the console shares: access, errors told as pages or as problem documents, the frame of pages."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote, urlencode

import msgspec
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.console.access import MINUTE_SECONDS, Access
from streams.console.data import Watch
from streams.console.pages import Pages
from streams.console.schemas import Schemas
from streams.console.tokens import Tokens
from streams.errors import ConfigError, Conflict, UnknownIncident, VedetteError
from streams.incidents.people import NAME_LENGTH, shown_name
from streams.incidents.service import IncidentService
from streams.store.client import connect

log = logging.getLogger("vedette.console")

#: Remembers the visitor's name for forms; nothing else.
NAME_COOKIE = "vedette_name"
NAME_COOKIE_SECONDS = 365 * 24 * 3600

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

#: Where log-in may lead: a path of this console, and nothing that a browser takes for another host.
_OURS = re.compile(r"/(?![/\\])[!-\[\]-~]{0,1999}")
#: What forms about one incident begin with.
_INCIDENT = re.compile(r"/incidents/[0-9a-f]{16}(?=/)")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """Settings, Redis, access, pages and one watch a model.

    Parameters
    ----------
    settings : Settings
    redis : redis.asyncio.Redis
        A client that returns bytes.
    token : str or None
        None, and no `tokens`: whoever reaches the socket may come in.
    schemas : Schemas
    tokens : Tokens, optional
    """

    def __init__(
        self, settings: Settings, redis: Redis, token: str | None, schemas: Schemas, tokens: Tokens | None = None
    ) -> None:
        self.settings = settings
        self.redis = redis
        self.access = Access(token, tokens)
        self.pages = Pages(settings)
        self.schemas = schemas
        self.watches = {
            model.name: Watch(redis, model, week_seconds=settings.week_seconds) for model in settings.models
        }
        self._desks: dict[str, IncidentService] = {}

    def model(self, request: web.Request) -> ModelSettings:
        """The model that the request asks for; without one, the first of the settings."""
        try:
            return self.settings.model(request.query.get("model") or self.settings.models[0].name)
        except ConfigError as error:
            raise web.HTTPNotFound(text=str(error)) from None

    def watch(self, request: web.Request) -> Watch:
        """The watch of the model that the request asks for."""
        return self.watches[self.model(request).name]

    def desk(self, model: ModelSettings) -> IncidentService:
        """Where incidents are changed; blocks, so it belongs in a thread.

        Raises
        ------
        StoreError
            When Redis does not answer at the first use.
        """
        if model.name not in self._desks:
            self._desks[model.name] = IncidentService(connect(self.settings.redis), model.name)
        return self._desks[model.name]

    async def schema(self, watch: Watch) -> FeatureSchema | None:
        """The schema of a model's inputs, from the bundle in force."""
        look = await watch.look()
        return await asyncio.to_thread(self.schemas.of, look.bundle)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Lets known visitors in, and tells every error as what it is."""
        try:
            response = await self._admitted(request, handler)
        except web.HTTPException as answer:
            if answer.status < HTTPStatus.BAD_REQUEST:
                answer.headers.update(self.headers(request))
                raise
            response = self._problem(request, answer.status, answer.reason, answer.text or "")
            for name in ("Allow", "Retry-After"):
                if name in answer.headers:
                    response.headers[name] = answer.headers[name]
        except RedisError as error:
            log.warning("redis does not answer: %s", error)
            response = self._problem(
                request, 503, "Redis does not answer", "Nothing can be shown or changed until it does."
            )
        except (VedetteError, msgspec.MsgspecError) as error:
            log.warning("%s %s: %s", request.method, request.path, error)
            response = self._problem(request, *status_of(error), str(error))
        except Exception:  # the outermost boundary of a request: logged with its trace, told without it
            log.exception("%s %s failed", request.method, request.path)
            response = self._problem(request, 500, "Something went wrong here", "The console's log says what.")
        if not response.prepared:
            response.headers.update(self.headers(request))
        return response

    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self.access.admits_host(request):
            raise web.HTTPMisdirectedRequest(
                text="without a token the console answers only under a loopback name; set console.tokens_file"
            )
        open_to_all = request.path in ("/login", "/health") or request.path.startswith("/static/")
        if not open_to_all or request.path == "/login":
            await self.access.prepare(request)
        if not open_to_all and not self.access.known(request):
            if _for_programs(request):
                if self.access.refuses_now(request):
                    raise web.HTTPTooManyRequests(
                        text="too many wrong tokens; wait a minute", headers={"Retry-After": f"{MINUTE_SECONDS:.0f}"}
                    )
                raise web.HTTPUnauthorized(text="a token is needed: Authorization: Bearer TOKEN")
            wanted = request.path_qs if request.method in ("GET", "HEAD") else _page_of_form(request)
            raise web.HTTPSeeOther("/login" if wanted == "/" else f"/login?next={quote(wanted, safe='')}")
        return await handler(request)

    def headers(self, request: web.Request) -> dict[str, str]:
        """Headers of every answer."""
        keep = "no-cache" if request.path.startswith("/static/") else "no-store"
        return {**HEADERS, "Cache-Control": keep}

    def _problem(self, request: web.Request, status: int, title: str, text: str) -> web.Response:
        if _for_programs(request):
            document = {"type": "about:blank", "title": title, "status": status, "detail": text}
            return web.Response(
                body=msgspec.json.encode(document), status=status, content_type="application/problem+json"
            )
        return self.page(request, "problem.html", status, title=title, text=text)

    def page(
        self, request: web.Request, template: str, status: int = 200, model: ModelSettings | None = None, **values: Any
    ) -> web.Response:
        session = self.access.session(request)
        holder = self.access.holder(request)
        known = holder is not None
        text = self.pages.render(
            template,
            model=model or (self.settings.models[0] if known else None),
            here=request.path,
            csrf=self.access.csrf(session),
            guarded=self.access.guarded,
            may_change=self.access.may_change(request),
            nav=known,
            me=name_of(request) or (holder.name if holder else ""),
            holder=holder.name if holder else "",
            **values,
        )
        response = web.Response(text=text, status=status, content_type="text/html")
        if session.fresh and not self.access.guarded:
            self.access.remember(request, response, session)
        return response

    def check_change(self, request: web.Request, form: Mapping[str, str]) -> None:
        """Refuse a change by who may only read, or that does not come from a page of ours and carries no token."""
        self.check_form(request, form)
        self.check_role(request)

    def check_form(self, request: web.Request, form: Mapping[str, str]) -> None:
        """Refuse what does not come from a page of ours, and carries no token."""
        if not self.access.allows_change(request, form.get("csrf", "")):
            raise web.HTTPForbidden(text="The form is too old or not ours; load the page again.")

    def check_role(self, request: web.Request) -> None:
        """Refuse a change by somebody who may only read."""
        if not self.access.may_change(request):
            raise web.HTTPForbidden(text="A viewer reads; changes need a responder's token.")

    def actor(self, request: web.Request, given: str) -> str:
        """Who acts: the holder of a named token, whatever the form says; else the name that is given."""
        holder = self.access.holder(request)
        return holder.name if holder is not None and holder.name else clean_name(given)

    def remember_name(self, request: web.Request, response: web.StreamResponse, name: str) -> None:
        """Fill in the visitor's name next time."""
        response.set_cookie(
            NAME_COOKIE,
            quote(name),
            max_age=NAME_COOKIE_SECONDS,
            httponly=True,
            samesite="Lax",
            secure=request.secure,
        )


def _for_programs(request: web.Request) -> bool:
    return request.path.startswith(("/api/", "/events")) or request.path == "/metrics"


def status_of(error: Exception) -> tuple[int, str]:
    """How an error is told: HTTP status and title."""
    if isinstance(error, UnknownIncident):
        return 404, "No such incident"
    if isinstance(error, Conflict):
        return 409, "Somebody was faster"
    if isinstance(error, ConfigError):
        return 422, "That cannot be done"
    if isinstance(error, VedetteError):
        return 503, "Not now"
    return 500, "Redis holds what this version cannot read"


async def form_of(request: web.Request) -> dict[str, str]:
    """The fields of a plain form in UTF-8; files are refused."""
    if request.content_type not in ("application/x-www-form-urlencoded", "application/octet-stream"):
        raise web.HTTPUnsupportedMediaType(text="send a form as application/x-www-form-urlencoded")
    try:
        fields = (await request.post()).items()
        # Browsers count a line's end as one character, and send two.
        return {name: value.replace("\r\n", "\n") for name, value in fields if isinstance(value, str)}
    except (LookupError, ValueError, web.RequestPayloadError):
        # Its charset is none, its bytes are not of it, it has too many fields, or is not compressed as it says.
        raise web.HTTPBadRequest(text="the form cannot be read; send it in UTF-8") from None


async def body_of(request: web.Request) -> bytes:
    """The body of a request; one that is not encoded as its Content-Encoding says is refused."""
    try:
        return await request.read()
    except web.RequestPayloadError:
        raise web.HTTPBadRequest(text="the body is not encoded as Content-Encoding says") from None


def _page_of_form(request: web.Request) -> str:
    """Where a form whose session has ended goes on: at its incident or list, or where forms of its kind lead to."""
    if request.path == "/logout":
        return "/"
    if request.path == "/incidents/bulk":
        return f"/incidents?{request.query_string}"
    incident = _INCIDENT.match(request.path)
    page = incident.group() if incident else "/" + request.path.split("/")[1]
    model = request.query.get("model")
    return page if model is None else f"{page}?{urlencode({'model': model})}"


def name_of(request: web.Request) -> str:
    """The name that the visitor gave last."""
    return unquote(request.cookies.get(NAME_COOKIE, ""))[:NAME_LENGTH]


def next_of(request: web.Request) -> str:
    """The page of ours that log-in goes on to: the one that was asked for."""
    wanted = request.query.get("next", "")
    return wanted if _OURS.fullmatch(wanted) else "/"


def clean_name(text: str) -> str:
    """A name as it is stored."""
    return shown_name(text)[:NAME_LENGTH]
