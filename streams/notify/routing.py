"""Which incidents go to which destinations, as the settings say; refused at the start where that makes no sense."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase

from streams.config import NotifySettings, RouteSettings
from streams.errors import ConfigError
from streams.notify import registry
from streams.notify.contract import Notifier
from streams.notify.thread import Rhythm, Thread
from streams.store.messages import Alert

#: Longest deduplication key of a group that is written out; longer ones are hashed.
KEY_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Routing:
    """Destinations by name, and the routes to them."""

    notifiers: dict[str, Notifier]
    routes: tuple[RouteSettings, ...]

    @classmethod
    def of(cls, settings: NotifySettings) -> Routing:
        """From the settings.

        Raises
        ------
        ConfigError
            With the path of what is wrong: an unknown kind or destination, a name given twice, a destination that no
            route leads to, or a route that sends tickets where somebody may be called out.
        """
        notifiers: dict[str, Notifier] = {}
        for destination in settings.destinations:
            if destination.name in notifiers:
                raise ConfigError(f"notify.destinations: the name {destination.name!r} is declared twice")
            notifiers[destination.name] = registry.create(destination)
        reached = set()
        for place, route in enumerate(settings.routes):
            where = f"notify.routes[{place}]"
            for name in route.destinations:
                if name not in notifiers:
                    declared = ", ".join(notifiers) or "none"
                    raise ConfigError(
                        f"{where}.destinations: no destination {name!r} is declared; declared: {declared}"
                    )
                if "ticket" in route.levels and notifiers[name].calls_people:
                    raise ConfigError(
                        f"{where}.levels: a ticket never pages, and {name!r} may call somebody out; send tickets to a "
                        "chat, or say chat = true of a destination that calls nobody"
                    )
            reached |= set(route.destinations)
        for name in notifiers:
            if name not in reached:
                raise ConfigError(f"notify.routes: no route leads to {name!r}")
        return cls(notifiers, settings.routes)

    def places(self, alert: Alert) -> dict[str, Thread]:
        """Destination -> the (empty) thread that the alert belongs to there; of several routes the first one counts."""
        found: dict[str, Thread] = {}
        for route in self.routes:
            if not fits(route, alert):
                continue
            for name in route.destinations:
                # The settings were checked; this line is what keeps tickets from paging whatever they say.
                if name not in found and (alert.level == "page" or not self.notifiers[name].calls_people):
                    group = group_of(route, alert)
                    found[name] = Thread(key_of(route, alert, group), group, rhythm_of(route))
        return found


def fits(route: RouteSettings, alert: Alert) -> bool:
    """Whether a route is about an alert."""
    return (
        alert.level in route.levels
        and (not route.severities or alert.severity in route.severities)
        and _any(route.models, alert.model)
        and _any(route.techniques, alert.technique)
    )


def group_of(route: RouteSettings, alert: Alert) -> dict[str, str]:
    """What the incidents of the alert's group have in common."""
    values = {"model": alert.model, "technique": alert.technique, "entity": alert.entity}
    if "incident" in route.group_by:
        return values
    return {name: value for name, value in values.items() if name in ("model", *route.group_by)}


def key_of(route: RouteSettings, alert: Alert, group: dict[str, str]) -> str:
    """The deduplication key: of an incident, or of a group."""
    if "incident" in route.group_by:
        return f"vedette/{alert.model}/{alert.incident}"
    rest = ",".join(f"{name}={value}" for name, value in sorted(group.items()) if name != "model")
    key = f"vedette/{alert.model}/all" + f",{rest}" * bool(rest)
    if len(key) <= KEY_LENGTH:
        return key
    digest = hashlib.blake2b(json.dumps(group, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"vedette/{alert.model}/group-{digest}"


def rhythm_of(route: RouteSettings) -> Rhythm:
    """The route's times in microseconds."""
    return Rhythm(
        wait=round(route.group_wait_seconds * 1e6),
        interval=round(route.group_interval_seconds * 1e6),
        repeat=round(route.repeat_hours * 3600e6),
        resolved=route.resolved,
    )


def _any(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)
