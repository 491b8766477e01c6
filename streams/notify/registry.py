"""Kinds of destinations by name: Vedette's own, and those of entry points in the group ``vedette.notifiers``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from streams.config import DestinationSettings
from streams.errors import ConfigError
from streams.notify.alertmanager import Alertmanager
from streams.notify.contract import Notifier
from streams.notify.opsgenie import Opsgenie
from streams.notify.pagerduty import PagerDuty
from streams.notify.slack import Slack
from streams.notify.webhook import Webhook

Factory = Callable[[DestinationSettings], Notifier]

_OWN: dict[str, Factory] = {
    "alertmanager": Alertmanager,
    "opsgenie": Opsgenie,
    "pagerduty": PagerDuty,
    "slack": Slack,
    "webhook": Webhook,
}
GROUP = "vedette.notifiers"


def names() -> list[str]:
    """Every kind that a destination may have."""
    return sorted({*_OWN, *(point.name for point in entry_points(group=GROUP))})


def create(settings: DestinationSettings) -> Notifier:
    """The notifier of a destination.

    Raises
    ------
    ConfigError
        When its kind is unknown.
    """
    if settings.kind in _OWN:
        return _OWN[settings.kind](settings)
    for point in entry_points(group=GROUP):
        if point.name == settings.kind:
            factory: Factory = point.load()
            return factory(settings)
    raise ConfigError(
        f"notify.destinations.{settings.name}.kind: no such kind {settings.kind!r}; there are {', '.join(names())}"
    )
