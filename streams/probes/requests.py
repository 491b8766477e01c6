"""Probes on demand: a request is left in Redis, the active prober starts what it asks for."""

from __future__ import annotations

import secrets
import time

from streams.config import Settings, threat
from streams.errors import ConfigError
from streams.probes.catalogue import kind_of
from streams.probes.schedules import schedules
from streams.probes.store import ProbeStore
from streams.store.messages import ProbeOutcome, ProbeRequest

#: Probes that one request may ask for.
MOST_PROBES = 50
#: Characters of a name.
NAME_LENGTH = 80


def ask(
    store: ProbeStore,
    settings: Settings,
    *,
    attack: str,
    by: str,
    kind: str = "",
    threat_name: str = "",
    count: int = 1,
    now: int | None = None,
) -> ProbeRequest:
    """Leave a request for probes of one attack.

    Raises
    ------
    ConfigError
        There is no such attack or threat model, or the request makes no sense; nothing is left.
    Conflict
        Too many requests wait already.
    """
    sent_as = kind_of(attack, kind)
    if threat_name and sent_as not in ("burst", "campaign"):
        raise ConfigError(f"{attack} knows no threat model; leave {threat_name!r} out")
    if threat_name:
        threat(settings, threat_name)
    if not 1 <= count <= MOST_PROBES:
        raise ConfigError(f"{count} probes: ask for 1 to {MOST_PROBES}")
    name = " ".join(by.split())[:NAME_LENGTH]
    if not name:
        raise ConfigError("say who asks for the probes")
    request = ProbeRequest(
        id=secrets.token_hex(8),
        model=store.keys.model,
        attack=attack,
        by=name,
        at=time.time_ns() // 1000 if now is None else now,
        threat=threat_name,
        kind=kind,  # type: ignore[arg-type]  # `kind_of` knows it
        count=count,
    )
    store.ask(request)
    return request


def scheduled(settings: Settings) -> list[str]:
    """Every attack of an enabled schedule, each once."""
    return list(dict.fromkeys(attack for schedule in schedules(settings.probes) for attack in schedule.attacks))


def answers(store: ProbeStore, request: str) -> list[ProbeOutcome]:
    """Finished probes of a request, oldest first."""
    return [outcome for outcome in store.outcomes() if outcome.request == request]
