"""What people do with incidents: list, show, acknowledge, resolve, re-open. The terminal and the console call it.

Every change is a compare-and-set on the incident's version: of two people at once the second meets a clear `Conflict`,
or nothing happens where both did the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, cast, get_args

import msgspec
from redis import Redis

from streams.errors import ConfigError, Conflict
from streams.incidents.grouping import Draft
from streams.incidents.ledger import Ledger, as_text
from streams.store.keys import ModelKeys
from streams.store.messages import Incident, LevelName, SignalMessage, Verdict

StateFilter = Literal["open", "new", "in_progress", "suppressed", "resolved"]

#: Longest name and note that are stored.
NAME_LENGTH, NOTE_LENGTH = 80, 500
#: Incidents looked at per round trip while a list is filtered.
PAGE = 200


@dataclass(frozen=True, slots=True)
class IncidentView:
    """An incident with its evidence, newest signal first; `version` counts its changes."""

    incident: Incident
    version: int
    evidence: list[SignalMessage]


class IncidentService:
    """The incidents of one model.

    Parameters
    ----------
    redis : redis.Redis
        A client that returns bytes.
    model : str
        Name of the model.

    Raises
    ------
    ConfigError
        When the name is not a model name.
    """

    def __init__(self, redis: Redis, model: str) -> None:
        self._redis = redis
        self._keys = ModelKeys(model)
        self._ledger = Ledger(redis, self._keys)

    def list(self, state: StateFilter | None = None, level: LevelName | None = None, limit: int = 50) -> list[Incident]:
        """Incidents, last seen first; `state` "open" means all but resolved."""
        found: list[Incident] = []
        start = 0
        while len(found) < limit:
            names = [as_text(name) for name in self._redis.zrevrange(self._keys.incidents, start, start + PAGE - 1)]
            if not names:
                break
            start += len(names)
            read = self._ledger.incidents(names).values()
            found.extend(stored.incident for stored in read if _wanted(stored.incident, state, level))
        return found[:limit]

    def show(self, incident: str) -> IncidentView:
        """One incident with its evidence.

        Raises
        ------
        UnknownIncident
        """
        stored = self._ledger.incident(incident)
        texts = self._redis.lrange(self._keys.evidence(incident), 0, -1)
        evidence = [msgspec.json.decode(text, type=SignalMessage) for text in reversed(texts)]
        return IncidentView(stored.incident, stored.version, evidence)

    def acknowledge(self, incident: str, by: str, *, now: int | None = None) -> Incident:
        """Take the incident: it is in progress and `by` is its assignee.

        Raises
        ------
        UnknownIncident, Conflict
            Conflict when somebody else has it, or when it is resolved.
        """
        by, at = _name(by), _now(now)

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state == "resolved":
                raise Conflict(f"incident {incident} is resolved{_last(old)}; re-open it first")
            if old.state == "in_progress":
                if old.assignee == by:
                    return
                raise Conflict(f"incident {incident} is already acknowledged by {old.assignee}{_last(old)}")
            draft.incident = msgspec.structs.replace(old, state="in_progress", assignee=by)
            draft.record("acknowledged", by, "acknowledged", at)
            draft.announce("acknowledged", at)

        return self._ledger.change(incident, alter)

    def resolve(self, incident: str, by: str, verdict: str, note: str = "", *, now: int | None = None) -> Incident:
        """Close the incident with a verdict.

        Parameters
        ----------
        verdict : {"true", "false", "benign"}
            A real attack, a false alarm, or real but harmless (a test, a known client).

        Raises
        ------
        UnknownIncident, Conflict, ConfigError
            Conflict when it is resolved with another verdict or by somebody else; ConfigError for another verdict.
        """
        by, at, said = _name(by), _now(now), _verdict(verdict)
        note = note.strip()[:NOTE_LENGTH]

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state == "resolved":
                if old.verdict == said:
                    return
                raise Conflict(f"incident {incident} is already resolved as {old.verdict}{_last(old)}")
            draft.incident = msgspec.structs.replace(old, state="resolved", resolved_at=at, verdict=said)
            draft.record("resolved", by, f"resolved as {said}" + (f": {note}" if note else ""), at)
            draft.announce("resolved", at)

        return self._ledger.change(incident, alter)

    def reopen(self, incident: str, by: str, *, now: int | None = None) -> Incident:
        """Take a resolved incident up again; nothing happens to one that is open.

        Raises
        ------
        UnknownIncident, Conflict
            Conflict when a newer incident of the same entity is open.
        """
        by, at = _name(by), _now(now)

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state != "resolved":
                return
            if draft.was_open not in ("", incident):
                raise Conflict(f"incident {draft.was_open} of the same {old.entity} is open; work on that one")
            draft.incident = msgspec.structs.replace(old, state="new", assignee=None, resolved_at=None, verdict=None)
            draft.record("reopened", by, "re-opened", at)
            draft.announce("reopened", at)

        return self._ledger.change(incident, alter)


def _wanted(incident: Incident, state: StateFilter | None, level: LevelName | None) -> bool:
    if level is not None and incident.level != level:
        return False
    if state == "open":
        return incident.state != "resolved"
    return state is None or incident.state == state


def _verdict(text: str) -> Verdict:
    for allowed in get_args(Verdict):
        if text == allowed:
            return cast("Verdict", allowed)
    raise ConfigError(f"no such verdict: {text!r}; there are {', '.join(get_args(Verdict))}")


def _name(by: str) -> str:
    name = " ".join(by.split())[:NAME_LENGTH]
    if not name:
        raise ConfigError("who acts must be named")
    return name


def _last(incident: Incident) -> str:
    if not incident.history:
        return ""
    change = incident.history[-1]
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(change.at / 1e6))
    return f" ({change.what} by {change.by}, {moment} UTC)"


def _now(now: int | None) -> int:
    return time.time_ns() // 1000 if now is None else now
