"""The REST API under /api/v1: one table of operations makes the routes and the OpenAPI document.

Errors are problem documents (RFC 9457). Changes need the token, or a session with its CSRF mark in ``X-CSRF-Token``;
without a token the console answers on loopback only, and a JSON body (which no form of another page can send) suffices.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from streams.console.accounting_room import ENDS, Account, AccountingRoom
from streams.console.data import Minute, Overview, Range, Watch
from streams.console.front import Front, body_of
from streams.console.incident_room import IncidentRoom
from streams.console.index import IncidentRow, Order, StateFilter
from streams.console.probe_room import ProbeRoom
from streams.errors import ConfigError
from streams.incidents.service import IncidentService
from streams.probes.regression import Comparison
from streams.probes.requests import MOST_PROBES
from streams.store.messages import (
    Incident,
    InquiryMessage,
    LevelName,
    Matcher,
    ProbeOutcome,
    ProbeRequest,
    ProbeSummary,
    Repeater,
    SignalMessage,
    Silence,
    Verdict,
    WorkerStatus,
)

ROOT = "/api/v1"
#: Version of the interface; fields and operations are only added within one.
API_VERSION = "1.0.0"
#: Most incidents of one answer.
LARGEST_PAGE = 200

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=80, pattern=r"\S")]
Note = Annotated[str, msgspec.Meta(max_length=500)]
IncidentId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
SilenceId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]
#: Microseconds since the epoch, up to the year 9999.
Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_000_000)]


class _Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: str = ""
    """Name of a declared model; default: the first one."""


class ListQuery(_Query, frozen=True):
    """Which incidents."""

    state: StateFilter = "open"
    level: LevelName | None = None
    technique: str = ""
    assignee: str = ""
    q: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """Words that must occur in title, id, technique, entity, assignee or a client's hash."""
    order: Order = "urgency"
    ascending: bool = False
    offset: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_PAGE)] = 50


class TrafficQuery(_Query, frozen=True):
    """How far to look back."""

    range: Range = "hour"
    """By minute, by hour, or by three hours."""


class SilenceQuery(_Query, frozen=True):
    """Which silences."""

    ended: bool = False
    """Those that ended within a week too."""


class RepeaterQuery(_Query, frozen=True):
    """Which repeaters."""

    ended: bool = False
    """Those that ended within a week too."""


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    by: Name
    """Who acts."""


class ByBody(_Body, frozen=True):
    """Who acts."""


class AssignBody(_Body, frozen=True):
    """To whom."""

    to: Name


class NoteBody(_Body, frozen=True):
    """What to write into the history."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=r"\S")]


class ResolveBody(_Body, frozen=True):
    """What it was."""

    verdict: Verdict
    note: Note = ""


class SilenceBody(_Body, frozen=True, kw_only=True):
    """What to keep quiet, and until when."""

    matcher: Matcher = Matcher()
    ends: Moment
    starts: Moment | None = None
    """Default: now."""
    comment: Note = ""
    kind: Literal["silence", "maintenance"] = "silence"


class RepeaterBody(_Body, frozen=True, kw_only=True):
    """Whose near-duplicates should not page, why, and until when."""

    client: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=r"\S")]
    ends: Moment


class RevokeBody(_Body, frozen=True):
    """Why."""

    comment: Note = ""


class ProbeBody(_Body, frozen=True, kw_only=True):
    """Which probes to start now."""

    attack: str
    kind: Literal["", "burst", "campaign"] = ""
    """Default: as the attack goes."""
    threat: str = ""
    """Name of a threat model; default: the attack's own."""
    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_PROBES)] = 1


class IncidentList(msgspec.Struct, frozen=True):
    """Some of the incidents that fit."""

    incidents: list[IncidentRow]
    total: int


class IncidentDocument(msgspec.Struct, frozen=True):
    """One incident with its evidence, newest first."""

    incident: Incident
    change: int
    """Number of its changes."""
    evidence: list[SignalMessage]
    kept: int
    """Signals that are kept; more than are given where inputs are wide."""
    inquiries: list[InquiryMessage]
    """What the watched model said when it was asked again about some of their rows, newest first."""


class SilenceList(msgspec.Struct, frozen=True):
    """Silences and maintenance windows, oldest first."""

    silences: list[Silence]


class RepeaterList(msgspec.Struct, frozen=True):
    """Repeaters, oldest proposal first."""

    repeaters: list[Repeater]


class ModelDocument(msgspec.Struct, frozen=True):
    """A declared model."""

    name: str
    topic: str


class ModelList(msgspec.Struct, frozen=True):
    """The declared models."""

    models: list[ModelDocument]


class OverviewDocument(msgspec.Struct, frozen=True):
    """How things stand with one model."""

    model: str
    at: float
    """Seconds since the epoch."""
    mode: str
    workers: list[WorkerStatus]
    orphans: list[int]
    """Partitions that no living worker holds."""
    lag: int | None
    """Records not yet recorded; null when no worker is alive to say."""
    rows_per_second: float
    totals: dict[str, int]
    minutes: list[Minute]
    open_pages: int
    open_tickets: int
    blind: bool
    """Whether probes are not seen."""
    week_pages: int
    """Pages about traffic that began within the last week (of the settings' length)."""
    week_false_pages: int
    page_budget: int | None
    """False pages a week that the bundle in force was calibrated for; null where nobody can tell."""
    probes: list[ProbeSummary]
    incidents: list[IncidentRow]
    """The most urgent ones."""


class TrafficDocument(msgspec.Struct, frozen=True):
    """Traffic over time; the last part is under way."""

    minutes: list[Minute]


class ProbeDocument(msgspec.Struct, frozen=True):
    """How well Vedette sees."""

    objective: float
    summaries: list[ProbeSummary]
    outcomes: list[ProbeOutcome]
    """Newest first."""
    breakdown: list[ProbeSummary]
    """By attack, threat model and model version."""
    comparisons: list[Comparison]
    """The newest model version against the one before, on matched probes."""
    requests: list[ProbeRequest]
    """What was asked for and has not been started."""
    prober: str
    """Who probes; empty: nobody."""


class AccountDocument(msgspec.Struct, frozen=True):
    """Where the rows of one partition went."""

    partition: int
    holder: str
    watermark: int
    epoch: int
    totals: dict[str, int]
    missing: int
    """Rows that were counted and ended as nothing."""


class AccountingDocument(msgspec.Struct, frozen=True):
    """Where every row went."""

    ends: list[str]
    partitions: list[AccountDocument]
    adds_up: bool


class Problem(msgspec.Struct, frozen=True):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request, understood."""

    request: web.Request
    watch: Watch
    query: Any
    body: Any
    by: str
    """Who acts; empty where nothing is changed."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    run: Callable[[Call], Awaitable[Any]]
    answer: type
    query: type[_Query] = _Query
    body: type[msgspec.Struct] | None = None
    changes: bool = False
    failures: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the operation in the document."""
        parts = [part.strip("{}") for part in self.path.split("/") if part]
        return "-".join([self.method.lower(), *parts])


class ApiRoom:
    """Routes of the API."""

    def __init__(self, front: Front, incidents: IncidentRoom, probes: ProbeRoom, accounting: AccountingRoom) -> None:
        self.front = front
        self._incidents, self._probes, self._accounting = incidents, probes, accounting
        one = "/incidents/{incident}"
        change: dict[str, Any] = {"answer": Incident, "changes": True, "failures": (404, 409)}
        self.operations = [
            Operation("GET", "/models", "Declared models", self._models, ModelList),
            Operation("GET", "/overview", "How things stand", self._overview, OverviewDocument),
            Operation("GET", "/traffic", "Traffic over time", self._traffic, TrafficDocument, TrafficQuery),
            Operation("GET", "/incidents", "Incidents that fit", self._list, IncidentList, ListQuery),
            Operation("GET", one, "One incident with its evidence", self._one, IncidentDocument, failures=(404,)),
            Operation("POST", f"{one}/acknowledge", "Take it", self._acknowledge, body=ByBody, **change),
            Operation("POST", f"{one}/assign", "Give it to somebody", self._assign, body=AssignBody, **change),
            Operation("POST", f"{one}/note", "Write into its history", self._note, body=NoteBody, **change),
            Operation("POST", f"{one}/resolve", "Close it with a verdict", self._resolve, body=ResolveBody, **change),
            Operation(
                "POST",
                f"{one}/approve-verdict",
                "Vouch for a false alarm",
                self._approve_verdict,
                body=ByBody,
                **change,
            ),
            Operation("POST", f"{one}/reopen", "Take it up again", self._reopen, body=ByBody, **change),
            Operation(
                "GET", "/silences", "Silences and maintenance windows", self._silences, SilenceList, SilenceQuery
            ),
            Operation(
                "POST", "/silences", "Keep what fits quiet", self._silence, Silence, body=SilenceBody, changes=True
            ),
            Operation(
                "POST",
                "/silences/{silence}/end",
                "End a silence now",
                self._end_silence,
                Silence,
                body=ByBody,
                changes=True,
            ),
            Operation(
                "GET",
                "/repeaters",
                "Clients whose near-duplicates do not page",
                self._repeaters,
                RepeaterList,
                RepeaterQuery,
            ),
            Operation(
                "POST",
                "/repeaters",
                "Propose one",
                self._propose,
                Repeater,
                body=RepeaterBody,
                changes=True,
                failures=(409,),
            ),
            Operation(
                "POST",
                "/repeaters/{client}/approve",
                "Approve what somebody else has proposed",
                self._approve,
                Repeater,
                body=ByBody,
                changes=True,
                failures=(409,),
            ),
            Operation(
                "POST",
                "/repeaters/{client}/revoke",
                "End an approval, or refuse a proposal, now",
                self._revoke,
                Repeater,
                body=RevokeBody,
                changes=True,
                failures=(409,),
            ),
            Operation("GET", "/probes", "How well Vedette sees", self._probe_document, ProbeDocument),
            Operation(
                "POST",
                "/probes",
                "Start probes now",
                self._probe_now,
                ProbeRequest,
                body=ProbeBody,
                changes=True,
                failures=(409,),
            ),
            Operation("GET", "/accounting", "Where every row went", self._account_document, AccountingDocument),
        ]

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        document = web.get(f"{ROOT}/openapi.json", self.openapi)
        return [document, *(web.route(o.method, ROOT + o.path, partial(self._serve, o)) for o in self.operations)]

    async def openapi(self, _: web.Request) -> web.Response:
        """The OpenAPI document."""
        return web.Response(body=msgspec.json.encode(document(self.operations)), content_type="application/json")

    async def _serve(self, operation: Operation, request: web.Request) -> web.Response:
        if operation.changes and not self.front.access.allows_program_change(request):
            raise web.HTTPForbidden(text="changes need a token, or a session with its mark in X-CSRF-Token")
        if operation.changes:
            self.front.check_role(request)
        query = _understood(dict(request.query), operation.query, "query")
        body = None
        if operation.body is not None:
            if request.content_type != "application/json":
                raise web.HTTPUnsupportedMediaType(text="send the body as application/json")
            try:
                body = msgspec.json.decode(await body_of(request), type=operation.body)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise web.HTTPUnprocessableEntity(text=f"body: {error}") from None
        by = self.front.actor(request, getattr(body, "by", ""))
        call = Call(request, self.front.watch(request), query, body, by)
        return web.Response(body=msgspec.json.encode(await operation.run(call)), content_type="application/json")

    # Reading ----------------------------------------------------------------------------------------------------

    async def _models(self, _: Call) -> ModelList:
        return ModelList([ModelDocument(model.name, model.topic) for model in self.front.settings.models])

    async def _overview(self, call: Call) -> OverviewDocument:
        return overview(await call.watch.look())

    async def _traffic(self, call: Call) -> TrafficDocument:
        return TrafficDocument(await call.watch.course(call.query.range))

    async def _list(self, call: Call) -> IncidentList:
        await call.watch.look()
        wanted: ListQuery = call.query
        found = call.watch.index.select(
            state=wanted.state,
            level=wanted.level,
            text=wanted.q,
            technique=wanted.technique,
            assignee=wanted.assignee,
            order=wanted.order,
            ascending=wanted.ascending,
        )
        return IncidentList(found[wanted.offset : wanted.offset + wanted.limit], len(found))

    async def _one(self, call: Call) -> IncidentDocument:
        name = call.request.match_info["incident"]
        found = await self._incidents.dossier(call.request, call.watch, name)
        return IncidentDocument(found.incident, found.change, found.signals, found.kept, found.inquiries)

    async def _silences(self, call: Call) -> SilenceList:
        kept = await self._desk(call, lambda desk: desk.silences())
        now = time.time_ns() // 1000
        return SilenceList([silence for silence in kept if call.query.ended or silence.ends > now])

    async def _probe_document(self, call: Call) -> ProbeDocument:
        look, probes = await call.watch.look(), await self._probes.look(call.watch)
        own = call.watch.model.objectives.recall
        return ProbeDocument(
            self.front.settings.probes.min_recall if own is None else own,
            look.probes,
            probes.outcomes,
            probes.breakdown,
            probes.comparisons,
            probes.requests,
            probes.prober,
        )

    async def _account_document(self, call: Call) -> AccountingDocument:
        accounts = await self._accounting.look(call.watch)
        partitions = [_account(account) for account in accounts]
        return AccountingDocument(list(ENDS), partitions, not any(account.missing for account in accounts))

    # Changing ---------------------------------------------------------------------------------------------------

    async def _acknowledge(self, call: Call) -> Incident:
        return await self._change(call, lambda desk, name: desk.acknowledge(name, call.by))

    async def _assign(self, call: Call) -> Incident:
        return await self._change(call, lambda desk, name: desk.assign(name, call.by, call.body.to))

    async def _note(self, call: Call) -> Incident:
        return await self._change(call, lambda desk, name: desk.note(name, call.by, call.body.text))

    async def _resolve(self, call: Call) -> Incident:
        body: ResolveBody = call.body
        return await self._change(call, lambda desk, name: desk.resolve(name, call.by, body.verdict, body.note))

    async def _approve_verdict(self, call: Call) -> Incident:
        return await self._change(call, lambda desk, name: desk.approve_verdict(name, call.by))

    async def _reopen(self, call: Call) -> Incident:
        return await self._change(call, lambda desk, name: desk.reopen(name, call.by))

    async def _silence(self, call: Call) -> Silence:
        body: SilenceBody = call.body

        def make(desk: IncidentService) -> Silence:
            return desk.silence(body.matcher, call.by, body.ends, body.comment, starts=body.starts, kind=body.kind)

        return await self._desk(call, make)

    async def _repeaters(self, call: Call) -> RepeaterList:
        kept = await self._desk(call, lambda desk: desk.repeaters.all())
        now = time.time_ns() // 1000
        return RepeaterList([one for one in kept if call.query.ended or one.ends > now])

    async def _propose(self, call: Call) -> Repeater:
        body: RepeaterBody = call.body
        return await self._desk(call, lambda desk: desk.repeaters.propose(body.client, call.by, body.ends, body.reason))

    async def _approve(self, call: Call) -> Repeater:
        return await self._of_client(call, lambda desk, client: desk.repeaters.approve(client, call.by))

    async def _revoke(self, call: Call) -> Repeater:
        return await self._of_client(
            call, lambda desk, client: desk.repeaters.revoke(client, call.by, call.body.comment)
        )

    async def _of_client(self, call: Call, act: Callable[[IncidentService, str], Repeater]) -> Repeater:
        try:
            return await self._desk(call, lambda desk: act(desk, call.request.match_info["client"]))
        except ConfigError as error:
            raise web.HTTPNotFound(text=str(error)) from None

    async def _probe_now(self, call: Call) -> ProbeRequest:
        body: ProbeBody = call.body
        return await self._probes.ask(call.watch.model, body.attack, call.by, body.kind, body.threat, body.count)

    async def _end_silence(self, call: Call) -> Silence:
        name = call.request.match_info["silence"]
        try:
            return await self._desk(call, lambda desk: desk.end_silence(name, call.by))
        except ConfigError as error:
            raise web.HTTPNotFound(text=str(error)) from None

    async def _change(self, call: Call, act: Callable[[IncidentService, str], Incident]) -> Incident:
        changed = await self._desk(call, lambda desk: act(desk, call.request.match_info["incident"]))
        await call.watch.look(fresh=True)
        return changed

    async def _desk(self, call: Call, act: Callable[[IncidentService], Any]) -> Any:
        return await asyncio.to_thread(lambda: act(self.front.desk(call.watch.model)))


def overview(look: Overview) -> OverviewDocument:
    """A look as the API tells it."""
    return OverviewDocument(
        model=look.model,
        at=look.at,
        mode=look.mode or "paging",
        workers=look.workers,
        orphans=look.orphans,
        lag=look.lag,
        rows_per_second=look.rows_per_second,
        totals=look.totals,
        minutes=look.minutes,
        open_pages=look.open_pages,
        open_tickets=look.open_tickets,
        blind=look.blind is not None,
        week_pages=look.week_pages,
        week_false_pages=look.week_false_pages,
        page_budget=look.page_budget,
        probes=look.probes,
        incidents=look.incidents,
    )


def document(operations: list[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of some operations."""
    types: list[Any] = [Problem]
    for operation in operations:
        types += [operation.answer, operation.query, *([operation.body] if operation.body else [])]
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(ROOT + operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vedette",
            "version": API_VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("incident", "silence", "client")
        if f"{{{name}}}" in operation.path
    ]
    (query,), components = msgspec.json.schema_components([operation.query])
    shown: Mapping[str, Any] = components[query["$ref"].rpartition("/")[2]]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in shown["properties"].items()
    ]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {"200": {"description": operation.summary, "content": _content(operation.answer)}},
    }
    failures = {400, 401, 404, 422, 429, 503, *operation.failures}
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
        failures |= {403, 413, 415}
    for status in sorted(failures):
        problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        described["responses"][str(status)] = {"description": FAILURES[status], "content": problem}
    return described


FAILURES = {
    400: "The request is no HTTP request of ours",
    401: "A token is needed",
    403: "Changes need a responder's token, or a session with its mark",
    404: "There is no such model, incident or path",
    409: "Somebody was faster, or the state does not allow it",
    413: "The body is too large",
    415: "The body is no application/json",
    422: "The request cannot be understood, or makes no sense",
    429: "Too many wrong tokens came from this address, or from everywhere; `Retry-After` says when to come back",
    503: "Redis does not answer",
}


def _content(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}


def _understood(given: dict[str, str], kind: type[_Query], where: str) -> Any:
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise web.HTTPUnprocessableEntity(text=f"{where}: {error}") from None


def _account(account: Account) -> AccountDocument:
    return AccountDocument(
        account.partition, account.holder, account.watermark, account.epoch, account.totals, account.missing
    )
