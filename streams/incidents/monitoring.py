"""The incident that says that Vedette itself no longer sees: opened and resolved by the prober."""

from __future__ import annotations

import msgspec
from redis import Redis

from streams.errors import Conflict
from streams.incidents.grouping import Draft, group_key, incident_id
from streams.incidents.ledger import ATTEMPTS, Ledger, Outdated
from streams.incidents.silences import silence_of
from streams.store.keys import ModelKeys
from streams.store.messages import Incident, LevelName

#: Not an ATLAS technique: no attack is claimed.
TECHNIQUE = "monitoring-blind"
ENTITY = "probes"
GROUP = group_key(TECHNIQUE, "monitoring", ENTITY)
PROBER = "prober"


def open_blind(
    redis: Redis, keys: ModelKeys, reason: str, now: int, *, token: int | None = None, level: LevelName = "page"
) -> Incident:
    """Open the `monitoring blind` incident, or bring the open one up to date.

    Parameters
    ----------
    reason : str
        What is wrong, in plain words; stands in the title.
    now : int
        Microseconds since the epoch.
    token : int, optional
        Fencing token of the prober's lease.

    Raises
    ------
    Fenced
        Another prober has taken over.
    """
    ledger = Ledger(redis, keys)
    for _ in range(ATTEMPTS):
        stored = ledger.open_incident(GROUP)
        if stored is None:
            draft = Draft(_new(keys.model, reason, now, level), GROUP, 0, 0, "")
            draft.record("opened", PROBER, reason, now)
            silence = silence_of(draft.incident, ledger.silences(), now)
            if silence is not None:
                draft.hush(silence, PROBER, now)
            draft.announce("opened", now)
        else:
            old = stored.incident
            draft = Draft(old, GROUP, stored.version, stored.version, old.id)
            news = _title(reason) != old.title
            raised = level == "page" and old.level == "ticket"
            draft.incident = msgspec.structs.replace(
                old,
                title=_title(reason),
                level="page" if raised else old.level,
                last_seen=max(now, old.last_seen),
                signals=old.signals + 1,
            )
            draft.record("raised" if raised else "signal", PROBER, reason, now, keep=news or raised)
            if raised:
                draft.announce("raised", now)
        try:
            ledger.apply([draft], "prober", token=token)
        except Outdated:
            continue
        return draft.incident
    raise Conflict("the monitoring incident changes too fast; try again")


def resolve_blind(redis: Redis, keys: ModelKeys, now: int, *, token: int | None = None) -> Incident | None:
    """Resolve the open `monitoring blind` incident; None when there is none.

    Raises
    ------
    Fenced
        Another prober has taken over.
    """
    ledger = Ledger(redis, keys)
    for _ in range(ATTEMPTS):
        stored = ledger.open_incident(GROUP)
        if stored is None:
            return None
        old = stored.incident
        draft = Draft(old, GROUP, stored.version, stored.version, old.id)
        draft.incident = msgspec.structs.replace(old, state="resolved", resolved_at=now, verdict="true")
        draft.record("resolved", PROBER, "probes are seen again", now)
        draft.announce("resolved", now)
        try:
            ledger.apply([draft], "prober", token=token)
        except Outdated:
            continue
        return draft.incident
    raise Conflict("the monitoring incident changes too fast; try again")


def _title(reason: str) -> str:
    return f"Monitoring is blind: {reason}"


def _new(model: str, reason: str, now: int, level: LevelName) -> Incident:
    return Incident(
        id=incident_id(model, GROUP, str(now)),
        model=model,
        technique=TECHNIQUE,
        entity="monitoring",
        entity_id=ENTITY,
        title=_title(reason),
        level=level,
        state="new",
        first_seen=now,
        last_seen=now,
        opened_at=now,
        signals=1,
        rules={"probes": 1},
        clients=[],
        partitions=[],
        max_ratio=0.0,
        severity="high" if level == "page" else "low",
    )
