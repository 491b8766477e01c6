"""What people do with incidents: list, show, acknowledge, assign, note, silence, resolve, re-open.

The terminal and the console call it.

Every change is a compare-and-set on the incident's version: of two people at once the second meets a clear `Conflict`,
or nothing happens where both did the same.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Literal, cast, get_args

import msgspec
from redis import Redis

from streams.errors import ConfigError, Conflict
from streams.incidents.grouping import Draft
from streams.incidents.ledger import Ledger, as_text
from streams.incidents.people import person, same_person
from streams.incidents.repeaters import Repeaters
from streams.incidents.silences import COMMENT_LENGTH, PATTERN_LENGTH, check, describe
from streams.store.keys import ModelKeys
from streams.store.messages import (
    Incident,
    IncidentChange,
    InquiryMessage,
    LevelName,
    Matcher,
    SignalMessage,
    Silence,
    Verdict,
)

StateFilter = Literal["open", "new", "in_progress", "suppressed", "resolved"]

#: Longest note that is stored.
NOTE_LENGTH = 500
#: Incidents looked at per round trip while a list is filtered.
PAGE = 200


@dataclass(frozen=True, slots=True)
class IncidentView:
    """An incident with its evidence, newest signal first; `version` counts its changes."""

    incident: Incident
    version: int
    evidence: list[SignalMessage]
    inquiries: list[InquiryMessage]
    """What the watched model said when it was asked again about some of the rows, newest first."""


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
        self.repeaters = Repeaters(redis, self._keys)
        """Clients whose near-duplicates do not page."""

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
        said = [
            msgspec.json.decode(text, type=InquiryMessage) for text in self._redis.hvals(self._keys.inquiries(incident))
        ]
        said.sort(key=lambda one: (one.at, one.signal), reverse=True)
        return IncidentView(stored.incident, stored.version, evidence, said)

    def acknowledge(self, incident: str, by: str, *, now: int | None = None) -> Incident:
        """Take the incident: it is in progress and `by` is its assignee.

        Raises
        ------
        UnknownIncident, Conflict
            Conflict when somebody else has it, or when it is resolved.
        """
        by, at = person(by), _now(now)

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state == "resolved":
                raise Conflict(f"incident {incident} is resolved{_last(old)}; re-open it first")
            if old.state == "in_progress":
                if old.assignee == by:
                    return
                raise Conflict(f"incident {incident} is already acknowledged by {old.assignee}{_last(old)}")
            draft.incident = msgspec.structs.replace(old, state="in_progress", assignee=by, silence="")
            draft.record("acknowledged", by, "acknowledged", at)
            draft.announce("acknowledged", at)

        return self._ledger.change(incident, alter)

    def assign(self, incident: str, by: str, to: str, *, now: int | None = None) -> Incident:
        """Give an open incident to somebody, who may be somebody else than who has it; it is in progress then.

        Raises
        ------
        UnknownIncident, Conflict
            Conflict when it is resolved.
        """
        by, to, at = person(by), person(to), _now(now)

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state == "resolved":
                raise Conflict(f"incident {incident} is resolved{_last(old)}; re-open it first")
            if old.state == "in_progress" and old.assignee == to:
                return
            first = old.state != "in_progress"
            draft.incident = msgspec.structs.replace(old, state="in_progress", assignee=to, silence="")
            draft.record("assigned", by, f"assigned to {to}", at)
            if first:
                draft.announce("acknowledged", at)

        return self._ledger.change(incident, alter)

    def note(self, incident: str, by: str, text: str, *, now: int | None = None) -> Incident:
        """Write into the incident's history.

        Raises
        ------
        UnknownIncident, ConfigError
        """
        by, at = person(by), _now(now)
        text = text.strip()[:NOTE_LENGTH]
        if not text:
            raise ConfigError("a note must say something")

        def alter(draft: Draft) -> None:
            draft.record("noted", by, f"note: {text}", at)

        return self._ledger.change(incident, alter)

    def silences(self) -> tuple[Silence, ...]:
        """Silences and maintenance windows: to come, in force, and those that ended within a week."""
        return tuple(self._ledger.silences())

    def silence(
        self,
        matcher: Matcher,
        by: str,
        ends: int,
        comment: str = "",
        *,
        starts: int | None = None,
        kind: Literal["silence", "maintenance"] = "silence",
        now: int | None = None,
    ) -> Silence:
        """Keep what fits quiet from `starts` (default: now) up to `ends`, microseconds since the epoch.

        Open incidents that fit and that nobody works on are suppressed when it begins, within seconds, and announced
        when it ends.

        Raises
        ------
        ConfigError
            When it makes no sense: no end after its start, longer than 90 days, a silence of everything.
        """
        by, at = person(by), _now(now)
        for pattern in (matcher.technique, matcher.rule, matcher.client):
            if len(pattern) > PATTERN_LENGTH:
                raise ConfigError(f"a pattern has at most {PATTERN_LENGTH} characters")
        made = Silence(
            id=secrets.token_hex(4),
            model=self._keys.model,
            matcher=matcher,
            starts=at if starts is None else starts,
            ends=ends,
            by=by,
            comment=comment.strip()[:COMMENT_LENGTH],
            created=at,
            kind=kind,
        )
        check(made, [other for other in self.silences() if other.ends > at])
        if ends <= at:
            raise ConfigError("a silence must end later than now; times are UTC")
        self._write_silence(made, "silence-made", by, f"{kind} of {describe(matcher)}", at)
        return made

    def end_silence(self, name: str, by: str, *, now: int | None = None) -> Silence:
        """End a silence now; nothing happens to one that has ended.

        Raises
        ------
        ConfigError
            When there is none of that id.
        """
        by, at = person(by), _now(now)
        found = next((silence for silence in self.silences() if silence.id == name), None)
        if found is None:
            raise ConfigError(f"no silence {name!r}; it may have ended long ago")
        if found.ends <= at:
            return found
        ended = msgspec.structs.replace(found, ends=at, starts=min(found.starts, at))
        self._write_silence(ended, "silence-ended", by, f"{found.kind} of {describe(found.matcher)} ended", at)
        return ended

    def _write_silence(
        self, silence: Silence, change: Literal["silence-made", "silence-ended"], by: str, what: str, at: int
    ) -> None:
        entry = IncidentChange(
            id=silence.id, incident="", model=silence.model, change=change, by=by, what=what, level="ticket",
            state="suppressed", at=at,
        )  # fmt: skip
        pipe = self._redis.pipeline(transaction=True)
        pipe.hset(self._keys.silences, silence.id, msgspec.json.encode(silence))
        pipe.xadd(self._keys.log, {"m": msgspec.json.encode(entry)})
        pipe.execute()

    def resolve(self, incident: str, by: str, verdict: str, note: str = "", *, now: int | None = None) -> Incident:
        """Close the incident with a verdict, or give one to an incident that ended by itself.

        Parameters
        ----------
        verdict : {"true", "false", "benign"}
            A real attack, a false alarm, or real but harmless (a test, a known client).

        Raises
        ------
        UnknownIncident, Conflict, ConfigError
            Conflict when it is resolved with another verdict or by somebody else; ConfigError for another verdict.
        """
        by, at, said = person(by), _now(now), _verdict(verdict)
        note = note.strip()[:NOTE_LENGTH]

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state == "resolved":
                if old.verdict == said:
                    if note and not same_person(old.verdict_by, by):  # two people agree; both may say why
                        draft.record("noted", by, f"note: {note}", at)
                    return
                if old.merged_into:
                    raise Conflict(f"incident {incident} is part of incident {old.merged_into}; judge that one")
                if old.verdict:
                    text = f"incident {incident} is already resolved as {old.verdict}{_last(old)}; re-open it first"
                    raise Conflict(text)
                draft.incident = msgspec.structs.replace(old, verdict=said, verdict_by=by)
                draft.record("resolved", by, f"judged as {said}" + (f": {note}" if note else ""), at)
                return
            draft.incident = msgspec.structs.replace(
                old, state="resolved", resolved_at=at, verdict=said, verdict_by=by, silence=""
            )
            draft.record("resolved", by, f"resolved as {said}" + (f": {note}" if note else ""), at)
            draft.announce("resolved", at)

        return self._ledger.change(incident, alter)

    def approve_verdict(self, incident: str, by: str, *, now: int | None = None) -> Incident:
        """Vouch for a false alarm, so that `vedette calibrate` may count it; nothing happens to one that is approved.

        Raises
        ------
        UnknownIncident, Conflict, ConfigError
            Conflict when `by` gave the verdict; ConfigError when it is no false alarm that somebody resolved.
        """
        by, at = person(by), _now(now)

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state != "resolved" or old.verdict != "false" or not old.verdict_by:
                raise ConfigError(f"incident {incident} is not resolved as a false alarm by anybody")
            if old.verdict_approved_by:
                return
            if same_person(old.verdict_by, by):
                raise Conflict(f"{old.verdict_by} has resolved incident {incident}; somebody else must approve that")
            draft.incident = msgspec.structs.replace(old, verdict_approved_by=by)
            draft.record("verdict-approved", by, "false alarm approved; it may count in the calibration", at)

        return self._ledger.change(incident, alter)

    def reopen(self, incident: str, by: str, *, now: int | None = None) -> Incident:
        """Take a resolved incident up again; nothing happens to one that is open.

        Raises
        ------
        UnknownIncident, Conflict
            Conflict when a newer incident of the same entity is open.
        """
        by, at = person(by), _now(now)

        def alter(draft: Draft) -> None:
            old = draft.incident
            if old.state != "resolved":
                return
            if draft.was_open not in ("", incident):
                raise Conflict(f"incident {draft.was_open} of the same {old.entity} is open; work on that one")
            draft.incident = msgspec.structs.replace(
                old,
                state="new",
                assignee=None,
                resolved_at=None,
                verdict=None,
                verdict_by="",
                verdict_approved_by="",
                merged_into="",
            )
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


def _last(incident: Incident) -> str:
    if not incident.history:
        return ""
    change = next(
        (one for one in reversed(incident.history) if not one.what.startswith("note: ")), incident.history[-1]
    )
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(change.at / 1e6))
    return f" ({change.what} by {change.by}, {moment} UTC)"


def _now(now: int | None) -> int:
    return time.time_ns() // 1000 if now is None else now
