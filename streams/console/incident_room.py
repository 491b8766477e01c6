"""Incidents: the list with its filters and bulk actions, one incident with its evidence, and what people do with it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from detectors.schema import FeatureSchema
from streams.config import ModelSettings
from streams.console.data import Dossier, Watch
from streams.console.front import Front, clean_name, form_of, name_of, status_of
from streams.console.index import Order, StateFilter
from streams.console.queries import Coordinates, Queries, coordinates, of_evidence, read
from streams.console.repeater_room import DAYS, propose
from streams.console.silence_room import LENGTHS, make_silence, matcher_for
from streams.errors import BrokerError, ConfigError, Conflict, UnknownIncident
from streams.incidents.service import IncidentService
from streams.store.messages import Incident, LevelName, SignalMessage

log = logging.getLogger("vedette.console")

#: Incidents on one page of the list, and most that one bulk action changes.
PAGE_ROWS, BULK_ROWS = 50, 200
#: Other incidents that an incident's page names.
NEAR = 8
#: Longest search text.
SEARCH_LENGTH = 200

STATES: dict[StateFilter, str] = {
    "open": "not resolved",
    "new": "new",
    "in_progress": "in progress",
    "suppressed": "suppressed",
    "resolved": "resolved",
    "all": "all",
}
ORDERS: dict[Order, str] = {
    "urgency": "most urgent first",
    "last_seen": "last seen",
    "first_seen": "first seen",
    "signals": "signals",
    "strength": "strength",
}

#: What a form can do with one incident.
ACTIONS = ("acknowledge", "assign", "note", "silence", "repeater", "resolve", "reopen", "approve-verdict")


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What a list of incidents shows; what cannot be understood is left at its default."""

    state: StateFilter = "open"
    level: LevelName | None = None
    text: str = ""
    order: Order = "urgency"
    ascending: bool = False
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> ListQuery:
        """From an address."""
        page = query.get("page", "")
        return cls(
            state=next((state for state in STATES if state == query.get("state")), "open"),
            level=next((level for level in get_args(LevelName) if level == query.get("level")), None),
            text=query.get("q", "").strip()[:SEARCH_LENGTH],
            order=next((order for order in ORDERS if order == query.get("order")), "urgency"),
            ascending=query.get("ascending") == "1",
            page=max(1, int(page)) if page.isdecimal() and len(page) < 7 else 1,
        )

    def address(self, **changes: Any) -> str:
        """The same as part of an address, changed."""
        one = replace(self, **changes)
        parts = {
            "state": one.state,
            "level": one.level or "",
            "q": one.text,
            "order": one.order,
            "ascending": "1" if one.ascending else "",
            "page": str(one.page) if one.page > 1 else "",
        }
        plain = {"state": "open", "order": "urgency"}
        return urlencode({name: value for name, value in parts.items() if value and value != plain.get(name)})


class IncidentRoom:
    """Routes of incidents."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self._reading = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        one = "/incidents/{incident:[0-9a-f]{16}}"
        return [
            web.get("/incidents", self.show_list),
            web.get("/incidents/rows", self.rows),
            web.post("/incidents/bulk", self.bulk),
            web.get("/incidents/bulk", self.back_to_list),
            web.get(one, self.incident),
            web.get(one + "/queries", self.queries),
            web.post(one + f"/{{action:{'|'.join(ACTIONS)}}}", self.act),
            web.get(one + f"/{{action:{'|'.join(ACTIONS)}}}", self.back),
        ]

    # The list ---------------------------------------------------------------------------------------------------

    async def show_list(self, request: web.Request) -> web.Response:
        """Incidents that fit, with filters and bulk actions."""
        return await self._list_page(request, self.front.model(request), [])

    async def rows(self, request: web.Request) -> web.Response:
        """The changing parts of the list as JSON, for its script."""
        model = self.front.model(request)
        values = await self._found(self.front.watches[model.name], ListQuery.of(request.query))
        render = self.front.pages.render
        document = {
            "rows": render("incident_rows.html", model=model, pick=True, nothing=NOTHING, **values),
            "count": values["count"],
            "pager": render("pager.html", model=model, **values),
            "revision": values["revision"],
        }
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def _list_page(
        self, request: web.Request, model: ModelSettings, notices: list[tuple[bool, str]], status: int = 200
    ) -> web.Response:
        values = await self._found(self.front.watches[model.name], ListQuery.of(request.query))
        return self.front.page(
            request,
            "incidents.html",
            status,
            model=model,
            notices=notices,
            states=STATES,
            orders=ORDERS,
            pick=True,
            nothing=NOTHING,
            **values,
        )

    async def _found(self, watch: Watch, query: ListQuery) -> dict[str, Any]:
        await watch.look()
        found = watch.index.select(
            state=query.state, level=query.level, text=query.text, order=query.order, ascending=query.ascending
        )
        pages = max(1, math.ceil(len(found) / PAGE_ROWS))
        query = replace(query, page=min(query.page, pages))
        start = (query.page - 1) * PAGE_ROWS
        shown = found[start : start + PAGE_ROWS]
        count = f"{len(found):,} incident{'' if len(found) == 1 else 's'}"
        if pages > 1:
            count += f", {start + 1:,} to {start + len(shown):,} shown"
        return {"rows": shown, "query": query, "last_page": pages, "count": count, "revision": watch.index.revision}

    async def bulk(self, request: web.Request) -> web.Response:
        """One action on many incidents; each is tried, and what could not be done is told."""
        model = self.front.model(request)
        form = await form_of(request)
        self.front.check_change(request, form)
        chosen = [name for name in (await request.post()).getall("incident", []) if isinstance(name, str)]
        by, action = self.front.actor(request, form.get("by", "")), form.get("action", "")
        if not chosen or len(chosen) > BULK_ROWS:
            text = f"Choose incidents first, at most {BULK_ROWS}."
            return await self._list_page(request, model, [(False, text)], 422)
        if action not in DONE:
            text = f"No such action for many; there are {', '.join(DONE)}."
            return await self._list_page(request, model, [(False, text)], 422)
        try:
            done, refused = await asyncio.to_thread(self._apply_all, model, chosen, action, by, form)
        except ConfigError as error:
            return await self._list_page(request, model, [(False, str(error))], 422)
        await self.front.watches[model.name].look(fresh=True)
        notices = [(False, text) for text in refused]
        if done:
            notices.insert(0, (True, f"{done} incident{'' if done == 1 else 's'}: {DONE[action]}."))
        response = await self._list_page(request, model, notices)
        self.front.remember_name(request, response, by)
        return response

    async def back_to_list(self, request: web.Request) -> web.Response:
        """The list, for whoever copies the address that a bulk action leaves."""
        address = self.front.pages.link("/incidents", self.front.model(request), ListQuery.of(request.query).address())
        return web.Response(status=303, headers={"Location": address})

    def _apply_all(
        self, model: ModelSettings, names: list[str], action: str, by: str, form: Mapping[str, str]
    ) -> tuple[int, list[str]]:
        done, refused = 0, []
        for name in names:
            try:
                self._apply(model, name, action, by, form)
            except (Conflict, UnknownIncident) as error:
                refused.append(str(error))
            else:
                done += 1
        return done, refused

    # One incident -----------------------------------------------------------------------------------------------

    async def incident(self, request: web.Request) -> web.Response:
        """One incident with its evidence."""
        return await self._incident_page(request, self.front.model(request), request.match_info["incident"])

    async def _incident_page(
        self, request: web.Request, model: ModelSettings, name: str, problem: str = "", status: int = 200
    ) -> web.Response:
        watch = self.front.watches[model.name]
        dossier = await self.dossier(request, watch, name)
        schema = await self.front.schema(watch) if dossier.signals else None
        near = watch.index.near(dossier.incident, NEAR) if dossier.incident.entity in ("client", "cluster") else []
        values = self.front.pages.incident(dossier, schema, near)
        return self.front.page(
            request, "incident.html", status, model=model, problem=problem, lengths=LENGTHS, days=DAYS, **values
        )

    async def dossier(self, request: web.Request, watch: Watch, name: str) -> Dossier:
        """One incident with its evidence; who read it is logged.

        Raises
        ------
        UnknownIncident
        """
        found = await watch.incident(name)
        if found is None:
            raise UnknownIncident(f"No incident {name[:32]} of model {watch.model.name}; it may have expired.")
        if found.signals:
            log.info("evidence of %s/%s read by %r from %s", watch.model.name, name, name_of(request), request.remote)
        return found

    async def queries(self, request: web.Request) -> web.Response:
        """The incident's queries in two dimensions, read again from Kafka; else those that the evidence holds."""
        watch = self.front.watch(request)
        dossier = await self.dossier(request, watch, request.match_info["incident"])
        schema = await self.front.schema(watch)
        wanted = coordinates(dossier.signals)
        async with self._reading:  # the broker serves one reader of ours at a time
            found = await asyncio.to_thread(self._read, watch.model, schema, dossier.signals, wanted)
        fragment = request.headers.get("X-Requested-With") == "fragment"
        values = self.front.pages.queries(found, schema)
        if not fragment:
            return self.front.page(request, "queries_page.html", model=watch.model, incident=dossier.incident, **values)
        text = self.front.pages.render("queries.html", model=watch.model, **values)
        return web.Response(text=text, content_type="text/html")

    def _read(
        self,
        model: ModelSettings,
        schema: FeatureSchema | None,
        signals: list[SignalMessage],
        wanted: list[Coordinates],
    ) -> Queries:
        if schema is None:
            return of_evidence(signals, len(wanted), "the bundle that says how to read records is not there")
        try:
            found = read(self.front.settings, model, schema, wanted)
        except BrokerError as error:
            return of_evidence(signals, len(wanted), str(error))
        return found if len(found) else of_evidence(signals, len(wanted), found.problem)

    async def act(self, request: web.Request) -> web.Response:
        """What people do with an incident: a form with a CSRF mark, or a request that carries the token."""
        model = self.front.model(request)
        name, action = request.match_info["incident"], request.match_info["action"]
        form = await form_of(request)
        self.front.check_change(request, form)
        by = self.front.actor(request, form.get("by", ""))
        try:
            await asyncio.to_thread(self._apply, model, name, action, by, form)
        except (Conflict, ConfigError) as error:
            return await self._incident_page(request, model, name, str(error), status_of(error)[0])
        finally:
            await self.front.watches[model.name].look(fresh=True)
        address = self.front.pages.link(f"/incidents/{name}", model)
        if action in NOTING:
            address += "#noted"  # the script keeps what is written until then
        response = web.Response(status=303, headers={"Location": address})
        self.front.remember_name(request, response, by)
        return response

    async def back(self, request: web.Request) -> web.Response:
        """The page of an incident, for whoever reloads or copies the address that a refused change leaves."""
        model, name = self.front.model(request), request.match_info["incident"]
        return web.Response(status=303, headers={"Location": self.front.pages.link(f"/incidents/{name}", model)})

    def _apply(self, model: ModelSettings, name: str, action: str, by: str, form: Mapping[str, str]) -> None:
        desk = self.front.desk(model)
        actions: dict[str, Callable[[], object]] = {
            "acknowledge": lambda: desk.acknowledge(name, by),
            "resolve": lambda: desk.resolve(name, by, form.get("verdict", ""), form.get("note", "")),
            "reopen": lambda: desk.reopen(name, by),
            "approve-verdict": lambda: desk.approve_verdict(name, by),
            "assign": lambda: desk.assign(name, by, clean_name(form.get("to", ""))),
            "note": lambda: desk.note(name, by, form.get("note", "")),
            "silence": lambda: make_silence(desk, form, matcher_for(desk.show(name).incident), by),
            "repeater": lambda: propose_client(desk, desk.show(name).incident, form, by),
        }
        if action not in actions:
            raise ConfigError(f"no such action; there are {', '.join(actions)}")
        actions[action]()


def propose_client(desk: IncidentService, incident: Incident, form: Mapping[str, str], by: str) -> None:
    """Propose the client of an incident as a repeater; its history says so.

    Raises
    ------
    ConfigError, Conflict
    """
    if incident.entity != "client":
        raise ConfigError("only the client of an incident about one client can be proposed as a repeater")
    made = propose(desk.repeaters, {**form, "client": incident.entity_id}, by)
    desk.note(incident.id, by, f"proposed as a repeater: {made.reason}")


NOTHING = "No incident fits."
#: Actions that take the note of their form.
NOTING = ("note", "resolve")
DONE = {"acknowledge": "acknowledged", "resolve": "resolved", "reopen": "re-opened"}
