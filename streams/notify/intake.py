"""Takes alerts in: decides who is to be told of each, and queues it there."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from streams.notify import thread as threads
from streams.notify.outbox import GROUP, Outbox, Outdated, Place, Write
from streams.notify.routing import Routing
from streams.notify.thread import OPENING
from streams.store.messages import Alert, Incident, LevelName

log = logging.getLogger("vedette.notifier")

#: How long a read waits for alerts; far below the client's own time limit.
BLOCK_MILLISECONDS = 1000
#: Attempts of a write against the couriers, which change the same threads.
ATTEMPTS = 50
#: Incidents that one write of a reconciliation takes in.
RECONCILE_STEP = 100


class Intake:
    """Takes one model's alerts in.

    Parameters
    ----------
    outbox : Outbox
    routing : Routing
    refreshes : dict
        Destination -> microseconds after which what is open is told again; 0: never.
    """

    def __init__(self, outbox: Outbox, routing: Routing, refreshes: dict[str, int]) -> None:
        self.outbox = outbox
        self._routing = routing
        self._refreshes = refreshes

    async def step(self, token: int | None, now: int, block_milliseconds: int = BLOCK_MILLISECONDS) -> int:
        """Take in what is new, waiting for so long if nothing is; returns the number of alerts.

        Raises
        ------
        Fenced
            Another notifier has taken over.
        """
        position = await self.outbox.position()
        if position is None:
            # The first start, or Redis was restored: pages that are open and that nobody has are told of.
            position = await self.outbox.newest()
            await self.reconcile(token, now, ("page",))
            await self.outbox.begin(position)
        entries = await self.outbox.read(position, block_milliseconds)
        if not entries:
            return 0
        alerts = [alert for _, alert in entries if alert is not None]
        lost = [one for one in alerts if one.change == "trimmed-from" and one.entity_id == GROUP]
        await self.take([one for one in alerts if one.change != "trimmed-from"], token, now, entries[-1][0])
        if lost:
            log.error("alerts were trimmed before they were taken in; looking at all incidents instead")
            await self.reconcile(token, now)
        return len(entries)

    async def take(self, alerts: Sequence[Alert], token: int | None, now: int, upto: str = "") -> None:
        """Queue what is to be told of these alerts.

        Raises
        ------
        Fenced
        """
        for _ in range(ATTEMPTS):
            try:
                await self._take(alerts, token, now, upto)
            except Outdated:
                continue
            return
        raise Outdated(f"threads of model {self.outbox.keys.model!r} change too fast")

    async def _take(self, alerts: Sequence[Alert], token: int | None, now: int, upto: str) -> None:
        known = await self.outbox.places(alert.incident for alert in alerts)
        fresh = [self._routing.places(alert) if alert.change in OPENING else {} for alert in alerts]
        wanted = {place for places in known.values() for place in places}
        wanted |= {(name, thread.key) for routed in fresh for name, thread in routed.items()}
        stored = await self.outbox.threads(place for place in sorted(wanted) if place[0] in self._routing.notifiers)
        state = {place: one.thread for place, one in stored.items()}
        places: dict[str, list[Place]] = {}
        changed: set[Place] = set()
        for alert, routed in zip(alerts, fresh, strict=True):
            here = places.get(alert.incident, known.get(alert.incident, []))
            for name, empty in routed.items():
                place = (name, empty.key)
                if place not in here:
                    here = [*here, place]
                if state[place] is None:
                    state[place] = threads.begun(empty, now)
            for place in here:
                before = state.get(place)
                if before is None:
                    continue  # the destination is declared no more, or gave the incident up
                state[place] = threads.planned(before, alert, now)
                changed.add(place)
            places[alert.incident] = [] if alert.change == "resolved" else here
        writes = []
        for place in sorted(changed):
            thread = state[place]
            if thread is not None and thread.over:
                thread = None
            due = threads.due(thread, self._refreshes.get(place[0], 0)) if thread else None
            writes.append(Write(place, stored[place].base, thread, due))
        moved = {name: where for name, where in places.items() if where != known.get(name, [])}
        await self.outbox.write(token, writes, places=moved, upto=upto)

    async def reconcile(self, token: int | None, now: int, levels: Sequence[LevelName] = ("page", "ticket")) -> None:
        """Bring what destinations know in line with the incidents themselves, after alerts were lost.

        Parameters
        ----------
        levels
            Of incidents that nobody knows of yet.

        Raises
        ------
        Fenced
        """
        known = await self.outbox.known()
        opened = {one.id: one for one in await self.outbox.open_incidents()}
        alerts = [
            alert_of(one, "opened")
            for name, one in opened.items()
            if name not in known and one.state == "new" and one.level in levels
        ]
        ended = await self.outbox.states(name for name in known if name not in opened)
        alerts += [alert_of(one, "resolved") for one in ended.values() if one is not None]
        for start in range(0, len(alerts), RECONCILE_STEP):
            await self.take(alerts[start : start + RECONCILE_STEP], token, now)


def alert_of(incident: Incident, change: str) -> Alert:
    """An alert that says how an incident stands."""
    last = incident.history[-1] if incident.history else None
    return Alert(
        id=f"{incident.id}#{change}",
        incident=incident.id,
        model=incident.model,
        change="resolved" if change == "resolved" else "opened",
        level=incident.level,
        state=incident.state,
        technique=incident.technique,
        entity=incident.entity,
        entity_id=incident.entity_id,
        title=incident.title,
        first_seen=incident.first_seen,
        last_seen=incident.last_seen,
        at=last.at if last else incident.opened_at,
        severity=incident.severity,
        by=last.by if last else "",
        what=last.what if last else "",
    )
