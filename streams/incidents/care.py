"""What time does to open incidents: silences begin and end, and what has been quiet for long is resolved.

Pure: no I/O, no clock. The correlator walks over the open incidents and writes what changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from streams.incidents.grouping import VEDETTE, Draft
from streams.incidents.silences import silence_of
from streams.store.messages import Silence

MICROSECONDS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Quiet:
    """How long an incident must have had no signal before it is resolved by itself, microseconds."""

    ticket: int = 24 * MICROSECONDS_PER_HOUR
    page: int = 7 * 24 * MICROSECONDS_PER_HOUR


def tend(draft: Draft, silences: Iterable[Silence], now: int, heard: int, quiet: Quiet) -> None:
    """Bring one open incident up to date.

    Parameters
    ----------
    draft : Draft
        Of an open incident; unchanged where nothing is to do.
    now : int
        The clock, microseconds.
    heard : int
        Broker time up to which events have been recorded: while nothing is recorded, nothing is quiet.
    quiet : Quiet
    """
    incident = draft.incident
    long = quiet.page if incident.level == "page" else quiet.ticket
    if incident.entity != "monitoring" and incident.state != "in_progress" and heard - incident.last_seen > long:
        draft.incident = msgspec.structs.replace(incident, state="resolved", resolved_at=now, silence="")
        draft.record("resolved", VEDETTE, f"no signal for {_hours(long)}", now)
        draft.announce("resolved", now)
        return
    silence = silence_of(incident, silences, now)
    if incident.state == "suppressed" and incident.silence and silence is None:
        draft.incident = msgspec.structs.replace(incident, state="new", silence="")
        draft.record("unsilenced", VEDETTE, "the silence has ended", now)
        draft.announce("reopened", now)
    elif incident.state == "new" and silence is not None:
        draft.hush(silence, VEDETTE, now)


def _hours(microseconds: int) -> str:
    hours = microseconds / MICROSECONDS_PER_HOUR
    return f"{hours / 24:.3g} days" if hours >= 48 else f"{hours:.3g} hours"
