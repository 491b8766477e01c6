"""What one destination knows of one incident (or group of incidents), and what it is still to be told, in order.

Pure: no I/O, no clock. Notices of a thread are sent one after the other; those of different threads may overtake each
other. What was not sent yet is brought up to date instead of piling up: a destination that was away for an hour hears
of each incident once, as it is by then, and of its end.
"""

from __future__ import annotations

import msgspec

from streams.store.messages import Alert, LevelName, Notice, NoticeAction, NoticeIncident, NoticeReason, Severity

#: Incidents that a notice names.
SHOWN = 10
#: Notices of a thread that wait at most; beyond it an end and the new beginning after it are left out.
QUEUE_MOST = 6
#: Changes of an alert that a destination hears of.
OPENING = ("opened", "raised", "reopened")
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")


class Entry(msgspec.Struct, frozen=True):
    """One notice to be sent."""

    seq: int
    action: NoticeAction
    reason: NoticeReason
    alert: Alert
    """The change that it tells of."""
    not_before: int
    """Microseconds since the epoch."""


class Rhythm(msgspec.Struct, frozen=True):
    """How often a thread speaks, microseconds; of the route that began it."""

    wait: int = 0
    interval: int = 300_000_000
    repeat: int = 4 * 3_600_000_000
    """0: never."""
    resolved: bool = True


class Thread(msgspec.Struct, frozen=True):
    """State of one deduplication key at one destination."""

    key: str
    group: dict[str, str]
    rhythm: Rhythm
    members: dict[str, str] = {}
    """Incident id -> state, of those that are not resolved."""
    shown: list[Alert] = []
    """Newest alerts of different incidents, newest first, bounded."""
    queue: list[Entry] = []
    seq: int = 0
    """Last number given to a notice; they grow, from one thread of a key to the next too."""
    open: bool = False
    """A trigger was delivered, and no resolution since."""
    sent: int = 0
    """When a trigger was last delivered, microseconds; 0: never."""
    attempts: int = 0
    """Failures in a row."""
    retry: int = 0
    """Not before, microseconds."""
    failing: int = 0
    """Since when, microseconds; 0: not failing."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to be told, now or later."""
        return not self.queue and not self.members


def begun(thread: Thread, now: int) -> Thread:
    """A thread whose notices have other numbers than those of an earlier one of the same key: they count from now."""
    return msgspec.structs.replace(thread, seq=now)


def planned(thread: Thread, alert: Alert, now: int) -> Thread:
    """Take an alert in: what is to be told of it is queued."""
    if alert.change in OPENING:
        return _opened(thread, alert, now)
    if alert.incident not in thread.members:
        return thread
    if alert.change == "updated":
        return msgspec.structs.replace(thread, shown=_shown(thread.shown, alert))
    if alert.change == "acknowledged":
        members = {**thread.members, alert.incident: "in_progress"}
        known = msgspec.structs.replace(thread, members=members, shown=_shown(thread.shown, alert))
        if "new" in members.values():
            return known
        return _queued(known, "acknowledge", "acknowledged", alert, now)
    if alert.change == "resolved":
        return _resolved(thread, alert, now)
    return thread


def _opened(thread: Thread, alert: Alert, now: int) -> Thread:
    known = alert.incident in thread.members
    first = not thread.open and not thread.queue
    thread = msgspec.structs.replace(
        thread,
        members={**thread.members, alert.incident: "new" if alert.state == "new" else "in_progress"},
        shown=_shown(thread.shown, alert),
    )
    reason: NoticeReason = "opened"
    if alert.change == "raised" or alert.change == "reopened":
        reason = alert.change
    if first:
        return _queued(thread, "trigger", reason, alert, now + thread.rhythm.wait)
    if known or len(thread.members) == 1:
        return _queued(thread, "trigger", reason, alert, now)
    return _queued(thread, "trigger", "joined", alert, max(now, thread.sent + thread.rhythm.interval))


def _resolved(thread: Thread, alert: Alert, now: int) -> Thread:
    members = {name: state for name, state in thread.members.items() if name != alert.incident}
    queue = thread.queue
    if members:
        shown = [one for one in thread.shown if one.incident != alert.incident] or [alert]
        return msgspec.structs.replace(thread, members=members, shown=shown)
    shown = _shown(thread.shown, alert)
    # What waits for company waits no longer: the end comes behind it.
    queue = [msgspec.structs.replace(entry, not_before=min(entry.not_before, now)) for entry in queue]
    thread = msgspec.structs.replace(thread, members=members, shown=shown, queue=queue)
    if not thread.rhythm.resolved:
        return thread
    return _queued(thread, "resolve", "resolved", alert, now)


def _queued(thread: Thread, action: NoticeAction, reason: NoticeReason, alert: Alert, not_before: int) -> Thread:
    """Put a notice behind the others; one of the same kind that waits already is brought up to date instead."""
    queue = list(thread.queue)
    if queue and queue[-1].action == action:
        last = queue.pop()
        first = {"joined": 0, "acknowledged": 0}
        reason = reason if last.reason in first else last.reason
        not_before = min(not_before, last.not_before)
    seq = thread.seq + 1
    queue.append(Entry(seq, action, reason, alert, not_before))
    while len(queue) > QUEUE_MOST and (place := _pair(queue)) is not None:
        del queue[place : place + 2]
    return msgspec.structs.replace(thread, queue=queue, seq=seq)


def _pair(queue: list[Entry]) -> int | None:
    """Where an end is followed by a new beginning."""
    for place in range(len(queue) - 1):
        if queue[place].action == "resolve" and queue[place + 1].action == "trigger":
            return place
    return None


def due(thread: Thread, refresh: int) -> int | None:
    """When something is to be sent, microseconds; None: when something happens.

    Parameters
    ----------
    refresh : int
        What is open is told again so often because the destination forgets it, microseconds; 0: it does not.
    """
    if thread.queue:
        return max(thread.queue[0].not_before, thread.retry)
    if not thread.open or not thread.members:
        return None
    times = []
    if thread.rhythm.repeat and "new" in thread.members.values():
        times.append(thread.sent + thread.rhythm.repeat)
    if refresh:
        times.append(thread.sent + refresh)
    return max(min(times), thread.retry) if times else None


def head(thread: Thread, refresh: int, now: int) -> Entry | None:
    """What is to be sent now: the first of the queue, else a repeat; None where nothing is due."""
    when = due(thread, refresh)
    if when is None or when > now:
        return None
    if thread.queue:
        return thread.queue[0]
    repeat = thread.rhythm.repeat and "new" in thread.members.values() and now >= thread.sent + thread.rhythm.repeat
    return Entry(thread.seq + 1, "trigger", "repeat" if repeat else "refresh", thread.shown[0], 0)


def delivered(thread: Thread, entry: Entry, now: int) -> Thread:
    """After the destination took a notice."""
    return msgspec.structs.replace(
        thread,
        queue=[other for other in thread.queue if other.seq > entry.seq],
        seq=max(thread.seq, entry.seq),
        open=entry.action != "resolve",
        sent=now if entry.action == "trigger" else thread.sent,
        attempts=0,
        retry=0,
        failing=0,
    )


def failed(thread: Thread, now: int, wait: int) -> Thread:
    """After an attempt that is to be repeated."""
    return msgspec.structs.replace(
        thread, attempts=thread.attempts + 1, retry=now + wait, failing=thread.failing or now
    )


def postponed(thread: Thread, until: int) -> Thread:
    """Leave it alone until then; no failure."""
    return msgspec.structs.replace(thread, retry=until)


def dropped(thread: Thread, entry: Entry) -> Thread:
    """Without a notice that will never be taken; what follows from it is left out too.

    A destination that never heard of an incident does not hear of its end.
    """
    queue = [other for other in thread.queue if other.seq > entry.seq]
    if entry.action == "trigger" and not thread.open:
        while queue and queue[0].action != "trigger":
            queue.pop(0)
    members = thread.members if queue or thread.open else {}
    return msgspec.structs.replace(
        thread, queue=queue, members=members, seq=max(thread.seq, entry.seq), attempts=0, retry=0, failing=0
    )


def notice(thread: Thread, entry: Entry, console: str, names: dict[str, str], advice: str) -> Notice:
    """What is told of an entry.

    Parameters
    ----------
    console : str
        Address of the console, without a slash at its end; empty for none.
    names : dict
        Technique -> what it is called.
    advice : str
        What to do next.
    """
    alert = entry.alert
    shown = [alert, *(one for one in thread.shown if one.incident != alert.incident)][:SHOWN]
    if entry.action == "resolve":
        shown = shown[:1] if len(thread.shown) <= 1 else shown
    count = max(len(thread.members), 1) if entry.action == "trigger" else len(shown)
    if count == 1:
        shown = shown[:1]
    many = count > 1
    level: LevelName = "page" if any(one.level == "page" for one in shown) else "ticket"
    severity = max((one.severity for one in shown), key=SEVERITIES.index)
    link = f"?model={alert.model}"
    return Notice(
        id=f"{thread.key}#{entry.seq}",
        key=thread.key,
        action=entry.action,
        reason=entry.reason,
        model=alert.model,
        level=level,
        severity=severity,
        technique=alert.technique,
        technique_name=names.get(alert.technique, ""),
        atlas_version="5.6.0" if alert.technique.startswith("AML.") else "",
        entity=alert.entity,
        title=f"{count:,} incidents, the newest: {alert.title}" if many else alert.title,
        advice=advice,
        by=alert.by or "vedette",
        what=f"{alert.what} (calibration stale)" if alert.stale else alert.what,
        count=count,
        incidents=tuple(
            NoticeIncident(
                id=one.incident,
                title=one.title,
                level=one.level,
                severity=one.severity,
                state=one.state,
                url=f"{console}/incidents/{one.incident}{link}" if console else "",
            )
            for one in shown
        ),
        group=thread.group,
        first_seen=min(one.first_seen for one in shown),
        last_seen=max(one.last_seen for one in shown),
        at=alert.at,
        url=""
        if not console
        else f"{console}/incidents{link}"
        if many
        else f"{console}/incidents/{alert.incident}{link}",
    )


def _shown(shown: list[Alert], alert: Alert) -> list[Alert]:
    return [alert, *(one for one in shown if one.incident != alert.incident)][:SHOWN]
