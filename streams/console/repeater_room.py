"""Repeaters: clients whose near-duplicates do not page; proposed by one person and approved by another here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from aiohttp import web

from streams.config import ModelSettings
from streams.console.front import Front, form_of, status_of
from streams.errors import ConfigError, Conflict
from streams.incidents.people import same_person
from streams.incidents.repeaters import Repeaters, standing
from streams.store.messages import Repeater

#: Lengths that forms offer: days -> name.
DAYS = {"1": "1 day", "7": "7 days", "30": "30 days", "90": "90 days"}
MICROSECONDS_PER_DAY = 24 * 3_600_000_000


class RepeaterRoom:
    """Routes of the page."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/repeaters", self.show),
            web.post("/repeaters", self.propose),
            web.post("/repeaters/{client:[0-9a-f]{16}}/{action:approve|revoke}", self.act),
        ]

    async def show(self, request: web.Request) -> web.Response:
        """Who is proposed and who is approved."""
        return await self._page(request, self.front.model(request), "")

    async def _page(self, request: web.Request, model: ModelSettings, problem: str, status: int = 200) -> web.Response:
        kept = await asyncio.to_thread(lambda: self.front.desk(model).repeaters.all())
        now = time.time_ns() // 1000
        order = ("proposed", "approved", "ended")
        me = self.front.actor(request, "")
        return self.front.page(
            request,
            "repeaters.html",
            status,
            model=model,
            problem=problem,
            repeaters=sorted(((standing(one, now), one) for one in kept), key=lambda found: order.index(found[0])),
            own={one.client for one in kept if me and same_person(one.proposed_by, me)},
            days=DAYS,
        )

    async def propose(self, request: web.Request) -> web.Response:
        """Propose one from a form."""
        return await self._change(request, propose)

    async def act(self, request: web.Request) -> web.Response:
        """Approve or revoke one."""
        client, action = request.match_info["client"], request.match_info["action"]

        def change(desk: Repeaters, form: Mapping[str, str], by: str) -> Repeater:
            if action == "approve":
                return desk.approve(client, by)
            return desk.revoke(client, by, form.get("comment", ""))

        return await self._change(request, change)

    async def _change(
        self, request: web.Request, change: Callable[[Repeaters, Mapping[str, str], str], Repeater]
    ) -> web.Response:
        model = self.front.model(request)
        form = await form_of(request)
        self.front.check_change(request, form)
        by = self.front.actor(request, form.get("by", ""))
        try:
            await asyncio.to_thread(lambda: change(self.front.desk(model).repeaters, form, by))
        except (ConfigError, Conflict) as error:
            return await self._page(request, model, str(error), status_of(error)[0])
        response = web.Response(status=303, headers={"Location": self.front.pages.link("/repeaters", model)})
        self.front.remember_name(request, response, by)
        return response


def propose(desk: Repeaters, form: Mapping[str, str], by: str) -> Repeater:
    """Propose the client that a form names.

    Raises
    ------
    ConfigError, Conflict
    """
    days = form.get("days", "")
    if days not in DAYS:
        raise ConfigError(f"no such length: {days!r}; there are {', '.join(DAYS.values())}")
    now = time.time_ns() // 1000
    ends = now + int(days) * MICROSECONDS_PER_DAY
    return desk.propose(form.get("client", "").strip(), by, ends, form.get("reason", ""), now=now)
