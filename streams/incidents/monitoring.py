"""Incidents that the prober opens and resolves: that Vedette no longer sees, that an objective is missed, that a new
version of the model is worse. That there is no prober is said by the correlator (`streams.incidents.absence`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from redis import Redis

from streams.errors import Conflict
from streams.incidents.grouping import Draft, group_key, incident_id
from streams.incidents.ledger import ATTEMPTS, Ledger, Outdated
from streams.incidents.silences import silence_of
from streams.lease import Role
from streams.store.keys import ModelKeys
from streams.store.messages import Incident, LevelName

#: Not ATLAS techniques: no attack is claimed.
TECHNIQUE = "monitoring-blind"
OBJECTIVE_MISSED = "objective-missed"
MODEL_REGRESSION = "model-regression"
ENTITY = "probes"
GROUP = group_key(TECHNIQUE, "monitoring", ENTITY)
PROBER = "prober"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an incident of the prober is about.

    Attributes
    ----------
    technique, entity_id : str
        One incident of each pair is open at a time.
    heading : str
        What its title begins with.
    level : {"ticket", "page"}
    mended : str
        Said in its history when it is resolved.
    """

    technique: str
    entity_id: str
    heading: str
    level: LevelName
    mended: str

    @property
    def group(self) -> str:
        """Key by which the open incident is found."""
        return group_key(self.technique, "monitoring", self.entity_id)


BLIND = Subject(TECHNIQUE, ENTITY, "Monitoring is blind", "page", "probes are seen again")


def objective(name: str) -> Subject:
    """That an objective of that name is missed."""
    return Subject(OBJECTIVE_MISSED, name, f"Objective missed ({name})", "ticket", "the objective is met again")


def regression(attack: str) -> Subject:
    """That the newest version of the model bears an attack worse than the one before."""
    mended = "no regression is seen any more"
    return Subject(MODEL_REGRESSION, attack, "The new model version is worse", "ticket", mended)


def open_blind(
    redis: Redis, keys: ModelKeys, reason: str, now: int, *, token: int | None = None, level: LevelName = "page"
) -> Incident:
    """Open the `monitoring blind` incident, or bring the open one up to date; see `open_incident`."""
    return open_incident(redis, keys, replace(BLIND, level=level), reason, now, token=token)


def resolve_blind(redis: Redis, keys: ModelKeys, now: int, *, token: int | None = None) -> Incident | None:
    """Resolve the open `monitoring blind` incident; see `resolve_incident`."""
    return resolve_incident(redis, keys, BLIND, now, token=token)


def open_incident(
    redis: Redis,
    keys: ModelKeys,
    subject: Subject,
    reason: str,
    now: int,
    *,
    token: int | None = None,
    role: Role = "prober",
    by: str = PROBER,
) -> Incident:
    """Open the incident of a subject, or bring the open one up to date.

    Parameters
    ----------
    reason : str
        What is wrong, in plain words; stands in the title.
    now : int
        Microseconds since the epoch.
    token : int, optional
        Fencing token of the lease of `role`.
    role : {"prober", "correlator"}
        Who writes, and `by` what its history says.

    Raises
    ------
    Fenced
        Another process of that role has taken over.
    """
    ledger, group, title = Ledger(redis, keys), subject.group, f"{subject.heading}: {reason}"
    for _ in range(ATTEMPTS):
        stored = ledger.open_incident(group)
        if stored is None:
            draft = Draft(_new(keys.model, subject, title, now), group, 0, 0, "")
            draft.record("opened", by, reason, now)
            silence = silence_of(draft.incident, ledger.silences(), now)
            if silence is not None:
                draft.hush(silence, by, now)
            draft.announce("opened", now)
        else:
            old = stored.incident
            draft = Draft(old, group, stored.version, stored.version, old.id)
            news = title != old.title
            raised = subject.level == "page" and old.level == "ticket"
            draft.incident = msgspec.structs.replace(
                old,
                title=title,
                level="page" if raised else old.level,
                last_seen=max(now, old.last_seen),
                signals=old.signals + 1,
            )
            draft.record("raised" if raised else "signal", by, reason, now, keep=news or raised)
            if raised:
                draft.announce("raised", now)
        try:
            ledger.apply([draft], role, token=token)
        except Outdated:
            continue
        return draft.incident
    raise Conflict("the monitoring incident changes too fast; try again")


def resolve_incident(
    redis: Redis, keys: ModelKeys, subject: Subject, now: int, *, token: int | None = None
) -> Incident | None:
    """Resolve the open incident of a subject; None when there is none.

    Raises
    ------
    Fenced
        Another prober has taken over.
    """
    ledger = Ledger(redis, keys)
    for _ in range(ATTEMPTS):
        stored = ledger.open_incident(subject.group)
        if stored is None:
            return None
        old = stored.incident
        draft = Draft(old, subject.group, stored.version, stored.version, old.id)
        draft.incident = msgspec.structs.replace(old, state="resolved", resolved_at=now, verdict="true")
        draft.record("resolved", PROBER, subject.mended, now)
        draft.announce("resolved", now)
        try:
            ledger.apply([draft], "prober", token=token)
        except Outdated:
            continue
        return draft.incident
    raise Conflict("the monitoring incident changes too fast; try again")


def _new(model: str, subject: Subject, title: str, now: int) -> Incident:
    return Incident(
        id=incident_id(model, subject.group, str(now)),
        model=model,
        technique=subject.technique,
        entity="monitoring",
        entity_id=subject.entity_id,
        title=title,
        level=subject.level,
        state="new",
        first_seen=now,
        last_seen=now,
        opened_at=now,
        signals=1,
        rules={"probes": 1},
        clients=[],
        partitions=[],
        max_ratio=0.0,
        severity="high" if subject.level == "page" else "low",
    )
