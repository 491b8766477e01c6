"""Incidents in Redis: what the correlator, the service and the prober read, and the one script by which they write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from redis import Redis

from streams.errors import Conflict, Fenced, UnknownIncident
from streams.incidents.grouping import (
    EVIDENCE_FIRST,
    EVIDENCE_KEPT,
    FLOOD_GROUP,
    REOPEN_MICROSECONDS,
    Book,
    Draft,
    Fold,
    Opening,
    Stored,
    aliases_of,
    campaign_group,
    campaign_names,
    cell_of,
    direct_group,
    evidence_kept,
    group_of_alias,
    is_campaign,
    page_campaign,
)
from streams.lease import Role
from streams.store.keys import ModelKeys
from streams.store.messages import Incident, SignalMessage, Silence

log = logging.getLogger("vedette.incidents")

#: Evidence is forgotten so long after the incident's last signal.
EVIDENCE_TTL_SECONDS = 30 * 24 * 3600
#: Redis' clock may run apart from broker time; the names outlive the window in which they are needed.
RECENT_TTL_SECONDS = 2 * REOPEN_MICROSECONDS // 1_000_000
#: A place that no evidence list has.
LISTLESS = EVIDENCE_KEPT + 1
#: Attempts of a change against others who change the same incident at the same time.
ATTEMPTS = 20

SCRIPT = Path(__file__).with_name("apply.lua").read_text(encoding="utf-8")


def as_text(reply: object) -> str:
    """A Redis reply as text; empty for none."""
    if isinstance(reply, bytes):
        return reply.decode()
    return "" if reply is None else str(reply)


class Outdated(Exception):
    """What a plan was made from has changed meanwhile: read again and plan again. Nothing was written."""

    def __init__(self, what: str, stored: str) -> None:
        super().__init__(f"{what} is now {stored!r}")
        self.what = what
        self.stored = stored


class _Evidence(msgspec.Struct):
    body: str
    page: int


class _Write(msgspec.Struct):
    id: str
    group: str
    base: int
    version: int
    was_open: str
    open: int
    seen: float
    body: str
    kept: int
    firsts: int
    evidence: list[_Evidence]
    log: list[str]
    alerts: list[str]


class _Plan(msgspec.Struct):
    token: str
    place: str
    base: str
    upto: str
    openings: str
    writes: list[_Write]
    aliases: list[str]


class Step(msgspec.Struct, frozen=True):
    """How far the correlator has read one partition: from which entry it started, and up to which it has folded."""

    place: str
    """``topic:partition``."""
    base: str
    upto: str
    opening: Opening | None = None


class Ledger:
    """Reads and writes one model's incidents."""

    def __init__(self, redis: Redis, keys: ModelKeys) -> None:
        self.redis = redis
        self.keys = keys
        self._script = redis.register_script(SCRIPT)

    def incident(self, name: str) -> Stored:
        """One incident.

        Raises
        ------
        UnknownIncident
        """
        found = self.incidents([name])
        if not found:
            raise UnknownIncident(f"no incident {name!r} of model {self.keys.model!r}; it may have expired")
        return found[name]

    def incidents(self, names: Iterable[str]) -> dict[str, Stored]:
        """Those of the named incidents that exist."""
        wanted = list(dict.fromkeys(names))
        pipe = self.redis.pipeline(transaction=False)
        for name in wanted:
            pipe.hmget(self.keys.incident(name), "m", "version", "group")
        found = {}
        for name, (body, version, group) in zip(wanted, pipe.execute(), strict=True):
            if body is not None:
                decoded = msgspec.json.decode(body, type=Incident)
                found[name] = Stored(decoded, int(version), as_text(group))
        return found

    def book(self, place: str, signals: Sequence[SignalMessage]) -> Book:
        """Everything that folding these signals may need, in three round trips; five where clients are near others."""
        names = sorted({name for signal in signals for name in (*aliases_of(signal), *campaign_names(signal))})
        aliases = self._texts([self.keys.alias(name) for name in names])
        book = Book(aliases={name: group for name, group in zip(names, aliases, strict=True) if group})
        reached = {
            FLOOD_GROUP,
            *map(direct_group, signals),
            *(campaign_group(signal) for signal in signals if cell_of(signal)),
            *(group_of_alias(name, value) for name, value in book.aliases.items()),
        }
        # Whoever joins a campaign of tickets in this very batch may page in it too.
        groups = sorted(reached | {page_campaign(group) for group in reached if is_campaign(group)})
        pipe = self.redis.pipeline(transaction=False)
        pipe.hmget(self.keys.open_incidents, groups)
        pipe.mget([self.keys.recent(group) for group in groups])
        pipe.hget(self.keys.openings, place)
        pipe.hvals(self.keys.silences)
        opened, recent, opening, silences = pipe.execute()
        book.silences = decoded_silences(silences)
        book.open = {group: as_text(name) for group, name in zip(groups, opened, strict=True) if name}
        book.recent = {group: as_text(name) for group, name in zip(groups, recent, strict=True) if name}
        book.incidents = self.incidents([*book.open.values(), *book.recent.values()])
        if opening:
            book.opening = Opening.parse(as_text(opening))
        near = {group_of_alias(name, value) for name, value in book.aliases.items() if "|near|" in name}
        alone = [book.open[group] for group in sorted(near) if group in book.open and not is_campaign(group)]
        book.proof = self._proof([name for name in alone if name in book.incidents])
        return book

    def _proof(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Each incident's first evidence entry, and its first page."""
        if not names:
            return {}
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.hget(self.keys.incident(name), "page_at")
        places = [as_text(place) for place in pipe.execute()]
        for name, place in zip(names, places, strict=True):
            pipe.lindex(self.keys.evidence(name), 0)
            pipe.lindex(self.keys.evidence(name), int(place) if place.isdecimal() else LISTLESS)
        entries = [as_text(entry) for entry in pipe.execute()]
        return {name: (entries[2 * at], entries[2 * at + 1]) for at, name in enumerate(names)}

    def silences(self) -> list[Silence]:
        """Silences that are kept, ended ones among them, oldest first."""
        return decoded_silences(self.redis.hvals(self.keys.silences))

    def open_incident(self, group: str) -> Stored | None:
        """The group's open incident."""
        name = as_text(self.redis.hget(self.keys.open_incidents, group))
        return self.incidents([name]).get(name) if name else None

    def apply(
        self,
        drafts: Iterable[Draft],
        role: Role = "correlator",
        *,
        token: int | None = None,
        step: Step | None = None,
        aliases: dict[str, str] | None = None,
    ) -> None:
        """Write all drafts and the progress, or nothing.

        Parameters
        ----------
        role, token
            Whose lease must still be ours. None: no lease is needed (a person acts).
        step
            The correlator's progress, compared and set in the same script.

        Raises
        ------
        Fenced
            Another process took the lease over.
        Outdated
            An incident or the progress changed since it was read.
        """
        aliases = aliases or {}
        writes = [_write(draft) for draft in drafts]
        plan = _Plan(
            token="" if token is None else str(token),
            place=step.place if step else "",
            base=step.base if step else "",
            upto=step.upto if step else "",
            openings=str(step.opening) if step and step.opening else "",
            writes=writes,
            aliases=list(aliases.values()),
        )
        keys = self.keys
        touched = [keys.fence(role), keys.progress, keys.openings, keys.incidents]
        touched += [keys.open_incidents, keys.log, keys.alerts]
        for write in writes:
            touched += [keys.incident(write.id), keys.evidence(write.id), keys.recent(write.group)]
        touched += [keys.alias(name) for name in aliases]
        packed = msgspec.msgpack.encode(plan)
        answer = self._script(keys=touched, args=[packed, EVIDENCE_TTL_SECONDS, RECENT_TTL_SECONDS])
        verdict, *detail = map(as_text, answer)
        if verdict == "fenced":
            raise Fenced(f"another {role} holds the lease of model {keys.model!r} now; nothing was written")
        if verdict != "ok":
            raise Outdated(verdict, detail[0])

    def change(self, name: str, alter: Callable[[Draft], None]) -> Incident:
        """Change one incident, again and again until nobody else changed it meanwhile.

        `alter` changes the draft, or leaves it as it is where nothing is to do, or raises. It may run several times.
        """
        for _ in range(ATTEMPTS):
            stored = self.incident(name)
            opened = as_text(self.redis.hget(self.keys.open_incidents, stored.group))
            draft = Draft(stored.incident, stored.group, stored.version, stored.version, opened)
            alter(draft)
            if draft.version == draft.base:
                return draft.incident
            try:
                self.apply([draft])
            except Outdated:
                continue
            return draft.incident
        raise Conflict(f"incident {name} changes too fast; try again")

    def _texts(self, keys: list[str]) -> list[str | None]:
        return [as_text(value) or None for value in (self.redis.mget(keys) if keys else [])]


def fold(model: str, book: Book, entries: Iterable[tuple[SignalMessage, str]], now: int) -> Fold:
    """Fold decoded signals with their JSON, in order."""
    folded = Fold(model, book, now)
    for signal, text in entries:
        folded.add(signal, text)
    return folded


def decoded_silences(texts: Iterable[object]) -> list[Silence]:
    """Silences as Redis holds them, oldest first; what another version wrote is left out."""
    found = []
    for text in texts:
        try:
            found.append(msgspec.json.decode(as_text(text), type=Silence))
        except msgspec.MsgspecError as error:
            log.warning("a silence cannot be read and is passed over: %s", error)
    return sorted(found, key=lambda silence: (silence.created, silence.id))


def _write(draft: Draft) -> _Write:
    texts = [text for text, _ in draft.evidence]
    kept = evidence_kept(texts) if texts else EVIDENCE_KEPT
    return _Write(
        id=draft.incident.id,
        group=draft.group,
        base=draft.base,
        version=draft.version,
        was_open=draft.was_open,
        open=int(draft.is_open),
        seen=draft.incident.last_seen / 1e6,
        body=_text(draft.incident),
        kept=kept,
        firsts=min(EVIDENCE_FIRST, kept // 2),
        evidence=[_Evidence(text, int(page)) for text, page in draft.evidence],
        log=[_text(entry) for entry in draft.log],
        alerts=[_text(entry) for entry in draft.alerts],
    )


def _text(message: msgspec.Struct) -> str:
    return msgspec.json.encode(message).decode()
