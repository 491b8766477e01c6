"""Signals to incidents: one attack, one incident.

Everything here is a pure function of the signals of a partition, in order, and of what Redis held before them. It does
not matter how the stream is cut into batches, when it is read, or by whom: a replay makes the same incidents, ids and
change numbers. Only `opened_at` and the alerts' `at` are the clock's, and `stale` is what was known at that moment.

A group is (technique, entity). Signals of an account-oblivious cluster whose members all come from one client belong
to that client; a cluster of several clients joins the open incident of a cluster that it shares most of its clients
with. So an attacker who spreads over accounts and starts cluster after cluster is one incident a partition.

Clients whose signals come from the same corner of the input space (the same nearest reference row) at about the same
time, with the same technique and at the same level, act as one campaign: from the second client of a partition on they
are one incident of the whole campaign, over all partitions, and the first client's own incident is merged into it.
Tickets and pages make campaigns of their own, so that a client who was only ticketed is never named by a page; the
pages of one campaign of tickets are one campaign too.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from streams.incidents.silences import reason, silence_of
from streams.incidents.titles import CLIENTS_KEPT, queries_of, title
from streams.store.keys import ModelKeys
from streams.store.messages import (
    Alert,
    Change,
    Incident,
    IncidentChange,
    LevelName,
    Severity,
    SignalMessage,
    Silence,
)

Entity = Literal["client", "cluster", "population"]
AlertChange = Literal["opened", "raised", "updated", "acknowledged", "resolved", "reopened"]
LogChange = Literal[
    "opened",
    "raised",
    "signal",
    "acknowledged",
    "assigned",
    "noted",
    "silenced",
    "unsilenced",
    "merged",
    "resolved",
    "reopened",
    "verdict-approved",
]

#: Who made a change that no person made.
VEDETTE = "vedette"
#: Client hash of rows without a known sender (16 hex digits); they are not one client.
ANONYMOUS = "0" * 16
#: Incidents that signals of one partition open or re-open in one minute of broker time; more fold into the flood.
#: One person can't look at more, and a page storm is what an attacker who wants to hide would make.
OPENINGS_PER_PARTITION_MINUTE = 20
#: Technique of the flood incident: Spamming AI System with Chaff Data.
FLOOD_TECHNIQUE = "AML.T0046"
FLOOD_ENTITY = "flood"
#: Broker time for which new signals re-open a resolved incident instead of opening another.
REOPEN_MICROSECONDS = 24 * 3600 * 1_000_000
#: Clients that two clusters must share to be one attack.
SHARED_CLIENTS = 2
#: Signals of clients who act as one campaign come within so much broker time of one another.
CAMPAIGN_MICROSECONDS = 10 * 60 * 1_000_000
#: A campaign's group holds the day, so that the next attack on the same corner is another incident.
DAY_MICROSECONDS = 24 * 3600 * 1_000_000
#: Level of a signal -> levels of the campaigns that it may join, in order.
MEMBER_LEVELS: dict[LevelName, tuple[LevelName, ...]] = {"page": ("page",), "ticket": ("page", "ticket")}
LEVELS: tuple[LevelName, ...] = ("page", "ticket")
#: How the entity of a campaign begins.
CAMPAIGN = "near-"
#: Clients from which on an incident is more than one customer's trouble.
MANY_CLIENTS = 10
#: Changes that an incident's history keeps: the first one and the newest.
HISTORY_KEPT = 100
#: Evidence entries kept of an incident, and how many of them are its first ones.
EVIDENCE_KEPT, EVIDENCE_FIRST = 64, 8
#: Bytes of evidence that an incident may hold; wide inputs keep fewer entries.
EVIDENCE_BYTES = 4 * 1024 * 1024
#: Fewest entries kept, however wide the inputs.
EVIDENCE_LEAST = 12
#: `updated` alerts are sent when the number of signals reaches a power of two, from this on.
UPDATES_FROM = 8
ID_BYTES = 8
MICROSECONDS_PER_MINUTE = 60_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """An incident as Redis holds it; `version` counts its changes."""

    incident: Incident
    version: int
    group: str


@dataclass(frozen=True, slots=True)
class Opening:
    """How many incidents were opened in a partition's minute of broker time."""

    minute: int = -1
    count: int = 0

    def __str__(self) -> str:
        return f"{self.minute}:{self.count}"

    @classmethod
    def parse(cls, text: str) -> Opening:
        """The inverse of `str`."""
        minute, _, count = text.partition(":")
        return cls(int(minute), int(count))


@dataclass(slots=True)
class Book:
    """What Redis holds about the groups that some signals may belong to."""

    aliases: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    recent: dict[str, str] = field(default_factory=dict)
    incidents: dict[str, Stored] = field(default_factory=dict)
    opening: Opening = field(default_factory=Opening)
    silences: list[Silence] = field(default_factory=list)
    proof: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Incident id -> its first evidence entry and its first page, empty for none; of those a campaign may take in."""


@dataclass(slots=True)
class Draft:
    """An incident with changes that are not written yet."""

    incident: Incident
    group: str
    base: int
    """Version in Redis, 0 for a new incident."""
    version: int
    was_open: str
    """Id that the group's open incident has in Redis, empty if none."""
    evidence: list[tuple[str, bool]] = field(default_factory=list)
    """(SignalMessage JSON, is a page)."""
    log: list[IncidentChange] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether it is the group's open incident after the changes."""
        return self.incident.state != "resolved"

    def record(
        self, change: LogChange, by: str, what: str, at: int, *, signal: str | None = None, keep: bool = True
    ) -> None:
        """Count one change, write it to the log and (if `keep`) into the incident's history."""
        self.version += 1
        now = self.incident
        if keep:
            history = [*now.history, Change(at=at, by=by, what=what)]
            if len(history) > HISTORY_KEPT:
                history = [history[0], *history[-(HISTORY_KEPT - 1) :]]
            self.incident = now = msgspec.structs.replace(now, history=history)
        name = f"{now.id}#{self.version}"
        self.log.append(
            IncidentChange(
                id=name,
                incident=now.id,
                model=now.model,
                change=change,
                by=by,
                what=what,
                level=now.level,
                state=now.state,
                at=at,
                signal=signal,
            )
        )

    def announce(self, change: AlertChange, at: int) -> None:
        """Put the last recorded change on the public stream, unless the incident is suppressed."""
        now = self.incident
        if now.state == "suppressed":
            return
        self.alerts.append(
            Alert(
                id=f"{now.id}#{self.version}",
                incident=now.id,
                model=now.model,
                change=change,
                level=now.level,
                state=now.state,
                technique=now.technique,
                entity=now.entity,
                entity_id=now.entity_id,
                title=now.title,
                first_seen=now.first_seen,
                last_seen=now.last_seen,
                at=at,
                severity=now.severity,
                by=self.log[-1].by if self.log else "",
                what=self.log[-1].what if self.log else "",
                signal=(self.log[-1].signal or "") if self.log else "",
                stale=now.stale,
            )
        )

    def hush(self, silence: Silence, by: str, at: int) -> None:
        """Suppress the incident by a silence."""
        self.incident = msgspec.structs.replace(self.incident, state="suppressed", silence=silence.id)
        self.record("silenced", by, reason(silence), at)


def group_key(technique: str, entity: str, entity_id: str) -> str:
    """The grouping key of an incident."""
    return f"{technique}|{entity}|{entity_id}"


def incident_id(model: str, group: str, first_signal: str) -> str:
    """Short stable id. Groups that span partitions have one incident for ever, so they pass no first signal."""
    return hashlib.blake2b(f"{model}\n{group}\n{first_signal}".encode(), digest_size=ID_BYTES).hexdigest()


FLOOD_GROUP = group_key(FLOOD_TECHNIQUE, "population", FLOOD_ENTITY)


def known_clients(signal: SignalMessage) -> list[str]:
    """The members' clients without the anonymous one."""
    return [client for client in signal.clients if client != ANONYMOUS]


def direct_group(signal: SignalMessage) -> str:
    """The group of a signal when no other cluster is considered."""
    if signal.entity == "cluster":
        if len(signal.clients) == 1 and known_clients(signal):
            return group_key(signal.technique, "client", signal.clients[0])
        return group_key(signal.technique, "cluster", f"{signal.partition}:{signal.entity_id}")
    return group_key(signal.technique, signal.entity, signal.entity_id)


def aliases_of(signal: SignalMessage) -> tuple[str, ...]:
    """Names under which a cluster's incident can be found again: the cluster, then its clients."""
    if signal.entity != "cluster":
        return ()
    where = f"{signal.technique}|{signal.partition}"
    clients = known_clients(signal)
    return (f"{where}|cluster|{signal.entity_id}", *(f"{where}|client|{client}" for client in clients))


def cell_of(signal: SignalMessage) -> str:
    """The corner of the input space that a client's signal comes from: a name of its nearest reference row."""
    if signal.entity != "client" or not signal.nearest:
        return ""
    return hashlib.blake2b(array("d", signal.nearest).tobytes(), digest_size=6).hexdigest()


def campaign_group(signal: SignalMessage) -> str:
    """The group of the campaign that a client's signal would belong to."""
    name = f"{CAMPAIGN}{cell_of(signal)}-{signal.time // DAY_MICROSECONDS}-{signal.level}"
    return group_key(signal.technique, "cluster", name)


def is_campaign(group: str) -> bool:
    """Whether a group is a campaign's."""
    return group.split("|", 2)[1:2] == ["cluster"] and group.split("|", 2)[2].startswith(CAMPAIGN)


def page_campaign(tickets: str) -> str:
    """The group of the pages of those who are one campaign of tickets."""
    return tickets.removesuffix("-ticket") + "-page"


def near_name(signal: SignalMessage) -> str:
    """Name under which the last group of a corner is found: its value is the group, ``@`` and the signal's time."""
    return f"{signal.technique}|{signal.partition}|near|{signal.level}|{cell_of(signal)}"


def member_name(signal: SignalMessage, level: LevelName, client: str) -> str:
    """Name under which the campaign of a client is found."""
    return f"{signal.technique}|{signal.partition}|member|{level}|{client}"


def campaign_names(signal: SignalMessage) -> tuple[str, ...]:
    """Names that tell whether a client's signal belongs to a campaign."""
    if signal.entity != "client":
        return ()
    names = tuple(member_name(signal, level, signal.entity_id) for level in LEVELS)
    return (*names, near_name(signal)) if cell_of(signal) else names


def group_of_alias(name: str, value: str) -> str:
    """The group that an alias stands for."""
    return value.rpartition("@")[0] if "|near|" in name else value


def severity(incident: Incident) -> Severity:
    """How much it matters, from the evidence and how many clients it is about."""
    many = len(incident.clients) >= MANY_CLIENTS or incident.entity == "population"
    if incident.level == "page":
        both = "input-sequence" in incident.rules and any(rule.endswith("-intent") for rule in incident.rules)
        return "critical" if many or both else "high"
    return "medium" if many or incident.pilot else "low"


class Fold:
    """Folds the signals of one partition, in order, into drafts of incidents."""

    def __init__(self, model: str, book: Book, now: int) -> None:
        self.keys = ModelKeys(model)
        self.model = model
        self.now = now
        self.opening = book.opening
        self.aliases: dict[str, str] = {}
        """Names to be written: alias -> group."""
        self._book = book
        self._drafts: dict[str, Draft] = {}
        self._retired: list[Draft] = []

    @property
    def drafts(self) -> Iterator[Draft]:
        """Every incident that changed."""
        return iter([*self._retired, *self._drafts.values()])

    def add(self, signal: SignalMessage, text: str) -> None:
        """Fold one signal; `text` is its JSON, kept as evidence."""
        group = self._group(signal)
        first = self._first_of(group, signal)
        if first is not None:
            signal = msgspec.structs.replace(signal, clients=[*signal.clients, *first.incident.clients])
        draft = self._find(group, signal)
        if draft is None and not is_campaign(group):  # each campaign follows an opening that was counted
            minute = signal.time // MICROSECONDS_PER_MINUTE
            count = self.opening.count if self.opening.minute == minute else 0
            if count >= OPENINGS_PER_PARTITION_MINUTE:
                group = FLOOD_GROUP
                draft = self._find(group, signal)
            else:
                self.opening = Opening(minute, count + 1)
        if draft is None:
            draft = self._open(group, signal)
        else:
            self._merge(draft, signal)
        draft.evidence.append((text, signal.level == "page"))
        if draft.incident.entity == "cluster":
            self.aliases.update(dict.fromkeys(aliases_of(signal), group))
        if group != FLOOD_GROUP and cell_of(signal):
            self.aliases[near_name(signal)] = f"{group}@{signal.time}"
        if is_campaign(group):
            self.aliases[member_name(signal, signal.level, signal.entity_id)] = group
            if first is not None:
                self._take_in(first, draft, signal)

    def _group(self, signal: SignalMessage) -> str:
        direct = direct_group(signal)
        if signal.entity not in ("client", "cluster") or self._is_open(direct):
            return direct
        if signal.entity == "client":
            return self._campaign(direct, signal)
        names = aliases_of(signal)
        groups = [self._alias(name) for name in names]
        if len(names) == 2 and groups[1] and len(signal.clients) == 1:
            return groups[1] if self._is_open(groups[1]) else direct
        if groups[0]:
            return groups[0]
        shared = Counter(group for group in groups[1:] if group and self._is_open(group))
        for group, count in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
            draft = self._draft(group)
            smaller = min(len(names) - 1, len(draft.incident.clients) if draft else 0)
            if count >= SHARED_CLIENTS and 2 * count >= smaller:
                return group
        return direct

    def _campaign(self, direct: str, signal: SignalMessage) -> str:
        """The campaign that a client belongs to, else the client's own group."""
        for level in MEMBER_LEVELS[signal.level]:
            group = self._alias(member_name(signal, level, signal.entity_id))
            if group and self._is_open(group):
                return group
        if signal.level == "page":
            tickets = self._alias(member_name(signal, "ticket", signal.entity_id))
            if tickets and self._is_open(tickets):
                return page_campaign(tickets)
        near = self._near(signal)
        if near is None or near.group == direct:
            return direct
        return near.group if is_campaign(near.group) else campaign_group(signal)

    def _near(self, signal: SignalMessage) -> Draft | None:
        """The open incident that the last signal from the same corner went to, when it was lately and as loud."""
        if not cell_of(signal):
            return None
        group, _, at = self._alias(near_name(signal)).rpartition("@")
        if not group or signal.time - int(at) > CAMPAIGN_MICROSECONDS:
            return None
        draft = self._draft(group)
        return draft if draft is not None and draft.is_open and draft.incident.level == signal.level else None

    def _first_of(self, group: str, signal: SignalMessage) -> Draft | None:
        """The incident of another client alone that a campaign takes in, when nobody works on it yet."""
        near = self._near(signal) if is_campaign(group) else None
        if near is None or near.incident.entity != "client" or near.incident.state not in ("new", "suppressed"):
            return None
        return near

    def _alias(self, name: str) -> str:
        return self.aliases.get(name) or self._book.aliases.get(name) or ""

    def _take_in(self, first: Draft, campaign: Draft, signal: SignalMessage) -> None:
        name = campaign.incident.id
        page = first.incident.level == "page"
        stored = self._book.proof.get(first.incident.id, ("", ""))[page]
        proof = stored or next((text for text, is_page in first.evidence if is_page or not page), "")
        if proof:
            campaign.evidence.insert(-1, (proof, page))
        self._drafts[first.group] = first
        first.incident = msgspec.structs.replace(
            first.incident, state="resolved", resolved_at=signal.time, merged_into=name, silence=""
        )
        first.record("merged", VEDETTE, f"merged into {name}: other clients do the same", signal.time)
        first.announce("resolved", self.now)
        self.aliases[member_name(signal, signal.level, first.incident.entity_id)] = campaign.group

    def _is_open(self, group: str) -> bool:
        draft = self._draft(group)
        return draft is not None and draft.is_open

    def _draft(self, group: str) -> Draft | None:
        """The group's open incident, else its newest one."""
        if group not in self._drafts:
            was_open = self._book.open.get(group, "")
            stored = self._book.incidents.get(was_open or self._book.recent.get(group, ""))
            if stored is None:
                return None
            return Draft(stored.incident, group, stored.version, stored.version, was_open)
        return self._drafts[group]

    def _find(self, group: str, signal: SignalMessage) -> Draft | None:
        draft = self._draft(group)
        if draft is None:
            return None
        spans = draft.incident.entity == "population" or is_campaign(group)
        if not draft.is_open and not spans and signal.time - draft.incident.last_seen > REOPEN_MICROSECONDS:
            return None
        self._drafts[group] = draft
        return draft

    def _open(self, group: str, signal: SignalMessage) -> Draft:
        technique, entity, entity_id = group.split("|", 2)
        first = "" if entity == "population" or is_campaign(group) else signal.id
        incident = Incident(
            id=incident_id(self.model, group, first),
            model=self.model,
            technique=technique,
            entity=_entity(entity),
            entity_id=entity_id,
            title="",
            level=signal.level,
            state="new",
            first_seen=signal.time,
            last_seen=signal.time,
            opened_at=self.now,
            signals=1,
            rules={signal.rule: 1},
            clients=_clients((), signal.clients),
            partitions=[signal.partition],
            max_ratio=_ratio(signal),
            bundle=signal.bundle,
            queries=queries_of(signal),
            pilot=signal.pilot,
            repeater=signal.repeater,
            stale=signal.stale,
        )
        incident = msgspec.structs.replace(incident, title=title(incident), severity=severity(incident))
        if group in self._drafts:  # resolved, changed by late signals, and too old to re-open
            self._retired.append(self._drafts[group])
        draft = self._drafts[group] = Draft(incident, group, 0, 0, self._book.open.get(group, ""))
        draft.record("opened", VEDETTE, f"opened as {incident.level}", signal.time, signal=signal.id)
        self._announce(draft, "opened", signal)
        return draft

    def _announce(self, draft: Draft, change: AlertChange, signal: SignalMessage) -> None:
        """Announce a change, unless a silence keeps the incident quiet."""
        silence = silence_of(draft.incident, self._book.silences, self.now)
        if silence is not None:
            draft.hush(silence, VEDETTE, signal.time)
        draft.announce(change, self.now)

    def _merge(self, draft: Draft, signal: SignalMessage) -> None:
        old = draft.incident
        rules = dict(old.rules)
        rules[signal.rule] = rules.get(signal.rule, 0) + 1
        raised = old.level == "ticket" and signal.level == "page"
        late = old.resolved_at is not None and signal.time <= old.resolved_at and not raised
        reopened = old.state == "resolved" and not late
        spoken = (
            raised and old.state == "suppressed" and bool(old.silence)
        )  # a silence of the ticket is none of the page
        merged = msgspec.structs.replace(
            old,
            level=signal.level if reopened or raised else old.level,
            state="new" if reopened or spoken else old.state,
            silence="" if reopened or spoken else old.silence,
            merged_into="" if reopened else old.merged_into,
            first_seen=min(old.first_seen, signal.time),
            last_seen=max(old.last_seen, signal.time),
            signals=old.signals + 1,
            rules=dict(sorted(rules.items())),
            clients=_clients(old.clients, signal.clients),
            partitions=sorted({*old.partitions, signal.partition}),
            max_ratio=max(old.max_ratio, _ratio(signal)),
            bundle=signal.bundle,
            queries=max(old.queries, queries_of(signal)),
            pilot=old.pilot or signal.pilot,
            repeater=old.repeater or signal.repeater,
            stale=old.stale or signal.stale,
            assignee=None if reopened else old.assignee,
            resolved_at=None if reopened else old.resolved_at,
            verdict=None if reopened else old.verdict,
            verdict_by="" if reopened else old.verdict_by,
            verdict_approved_by="" if reopened else old.verdict_approved_by,
        )
        draft.incident = msgspec.structs.replace(merged, title=title(merged), severity=severity(merged))
        if reopened:
            draft.record("reopened", VEDETTE, f"re-opened by a new {signal.level}", signal.time, signal=signal.id)
            self._announce(draft, "reopened", signal)
        elif raised:
            draft.record("raised", VEDETTE, f"raised to page by {signal.rule}", signal.time, signal=signal.id)
            if draft.incident.state == "new":
                self._announce(draft, "raised", signal)
            else:
                draft.announce("raised", self.now)
        else:
            draft.record("signal", VEDETTE, f"{signal.rule} again", signal.time, signal=signal.id, keep=False)
            if draft.is_open and merged.signals >= UPDATES_FROM and merged.signals.bit_count() == 1:
                draft.announce("updated", self.now)


def evidence_kept(texts: Iterable[str]) -> int:
    """How many evidence entries an incident may keep, given the newest ones."""
    widest = max((len(text) for text in texts), default=1)
    return max(EVIDENCE_LEAST, min(EVIDENCE_KEPT, EVIDENCE_BYTES // widest))


def _clients(before: Iterable[str], new: Iterable[str]) -> list[str]:
    """The union, bounded: the smallest hashes stay, whatever the order in which they came."""
    return sorted({*before, *(client for client in new if client != ANONYMOUS)})[:CLIENTS_KEPT]


def _ratio(signal: SignalMessage) -> float:
    return signal.statistic / signal.threshold if signal.threshold > 0 else signal.statistic


def _entity(name: str) -> Entity:
    if name == "client":
        return "client"
    return "cluster" if name == "cluster" else "population"
