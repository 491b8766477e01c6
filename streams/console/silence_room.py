"""Silences and maintenance windows: what is kept quiet, until when, on whose word; made and ended here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from aiohttp import web

from streams.config import ModelSettings
from streams.console.front import Front, form_of, status_of
from streams.errors import ConfigError
from streams.incidents.silences import active, describe
from streams.store.messages import Incident, Matcher

#: Lengths that forms offer: hours -> name.
LENGTHS = {"1": "1 hour", "4": "4 hours", "24": "1 day", "168": "7 days", "720": "30 days"}
MICROSECONDS_PER_HOUR = 3_600_000_000

Entity = Literal["", "client", "cluster", "population", "monitoring"]
Level = Literal["", "ticket", "page"]


class SilenceRoom:
    """Routes of the page."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/silences", self.show),
            web.post("/silences", self.make),
            web.post("/silences/{silence:[0-9a-f]{8}}/end", self.end),
        ]

    async def show(self, request: web.Request) -> web.Response:
        """What is kept quiet."""
        return await self._page(request, self.front.model(request), "")

    async def _page(self, request: web.Request, model: ModelSettings, problem: str, status: int = 200) -> web.Response:
        kept = await asyncio.to_thread(lambda: self.front.desk(model).silences())
        now = time.time_ns() // 1000
        index = self.front.watches[model.name].index
        await self.front.watches[model.name].look(fresh=True)
        held = [row for row in index.rows if row.state == "suppressed"]
        return self.front.page(
            request,
            "silences.html",
            status,
            model=model,
            problem=problem,
            now=now,
            in_force={silence.id for silence in active(kept, now)},
            silences=[
                (silence, describe(silence.matcher), sum(row.silence == silence.id for row in held))
                for silence in sorted(kept, key=lambda one: (one.ends <= now, one.starts > now, one.ends))
            ],
            lengths=LENGTHS,
            entities=get_args(Entity)[1:],
        )

    async def make(self, request: web.Request) -> web.Response:
        """Make one from a form."""
        model = self.front.model(request)
        form = await form_of(request)
        self.front.check_change(request, form)
        by = self.front.actor(request, form.get("by", ""))
        try:
            await asyncio.to_thread(make_silence, self.front.desk(model), form, matcher_of(form), by)
        except ConfigError as error:
            return await self._page(request, model, str(error), status_of(error)[0])
        return self._back(request, model, by)

    async def end(self, request: web.Request) -> web.Response:
        """End one now."""
        model = self.front.model(request)
        form = await form_of(request)
        self.front.check_change(request, form)
        by = self.front.actor(request, form.get("by", ""))
        try:
            await asyncio.to_thread(self.front.desk(model).end_silence, request.match_info["silence"], by)
        except ConfigError as error:
            return await self._page(request, model, str(error), status_of(error)[0])
        return self._back(request, model, by)

    def _back(self, request: web.Request, model: ModelSettings, by: str) -> web.Response:
        response = web.Response(status=303, headers={"Location": self.front.pages.link("/silences", model)})
        self.front.remember_name(request, response, by)
        return response


def matcher_of(form: Mapping[str, str]) -> Matcher:
    """What a form wants to be quiet.

    Raises
    ------
    ConfigError
    """
    return Matcher(
        technique=form.get("technique", "").strip(),
        entity=_one_of(form.get("entity", ""), get_args(Entity), "entity"),
        level=_one_of(form.get("level", ""), get_args(Level), "level"),
        rule=form.get("rule", "").strip(),
        client=form.get("client", "").strip(),
    )


def matcher_for(incident: Incident) -> Matcher:
    """What silences an incident and what its entity does next in the same way."""
    if incident.entity == "client":
        return Matcher(technique=incident.technique, client=incident.entity_id)
    if incident.entity == "cluster" and len(incident.clients) == 1:
        return Matcher(technique=incident.technique, client=incident.clients[0])
    return Matcher(technique=incident.technique, entity=incident.entity)


def make_silence(desk: Any, form: Mapping[str, str], matcher: Matcher, by: str) -> None:
    """Make a silence as long as a form says.

    Raises
    ------
    ConfigError
    """
    hours = _one_of(form.get("hours", ""), tuple(LENGTHS), "length")
    now = time.time_ns() // 1000
    starts = _moment(form.get("starts", ""), now)
    kind = "maintenance" if form.get("maintenance") == "1" else "silence"
    ends = starts + int(hours) * MICROSECONDS_PER_HOUR
    desk.silence(matcher, by, ends, form.get("comment", ""), starts=starts, kind=kind, now=now)


def _moment(text: str, now: int) -> int:
    """UTC as a form's field gives it; empty for now."""
    if not text.strip():
        return now
    try:
        given = datetime.fromisoformat(text.strip())
        return round((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is no time; write 2030-01-31T18:00") from None


def _one_of(value: str, allowed: tuple[str, ...], what: str) -> Any:
    if value not in allowed:
        raise ConfigError(f"no such {what}: {value!r}; there are {', '.join(filter(None, allowed))}")
    return value
