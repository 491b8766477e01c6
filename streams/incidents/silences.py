"""Silences and maintenance windows: which incidents stay quiet, until when, and on whose word.

A silenced incident is counted and shown, in the state ``suppressed``; it is not announced to consumers. When the
silence ends and the incident is still open, it is announced then. Pure: no I/O, no clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from streams.errors import ConfigError
from streams.store.messages import Incident, Matcher, Silence

#: Silences of one model that are kept at once.
SILENCES_KEPT = 200
#: Longest silence: what should be quiet for longer is a matter of calibration.
LONGEST_MICROSECONDS = 90 * 24 * 3600 * 1_000_000
#: Ended silences are forgotten after so long; the log keeps who made and ended them.
ENDED_MICROSECONDS = 7 * 24 * 3600 * 1_000_000
#: Longest pattern and comment.
PATTERN_LENGTH, COMMENT_LENGTH = 200, 500


def matches(matcher: Matcher, incident: Incident) -> bool:
    """Whether every given pattern fits; ``*`` and ``?`` stand for any text and any character.

    A pattern for clients fits when every client of the incident fits: an incident of several clients is not silenced
    because one of them is known.
    """
    if matcher.technique and not fnmatchcase(incident.technique, matcher.technique):
        return False
    if matcher.entity and incident.entity != matcher.entity:
        return False
    if matcher.level and incident.level != matcher.level:
        return False
    if matcher.rule and not all(fnmatchcase(rule, matcher.rule) for rule in incident.rules):
        return False
    if matcher.client:
        return bool(incident.clients) and all(fnmatchcase(client, matcher.client) for client in incident.clients)
    return True


def active(silences: Iterable[Silence], now: int) -> list[Silence]:
    """Those that hold now."""
    return [silence for silence in silences if silence.starts <= now < silence.ends]


def silence_of(incident: Incident, silences: Iterable[Silence], now: int) -> Silence | None:
    """The silence that keeps an incident quiet now: of several the one that lasts longest."""
    found = [silence for silence in active(silences, now) if matches(silence.matcher, incident)]
    return max(found, key=lambda silence: (silence.ends, silence.id), default=None)


def reason(silence: Silence) -> str:
    """Why an incident is quiet, for its history."""
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(silence.ends / 1e6))
    what = "maintenance" if silence.kind == "maintenance" else "silence"
    comment = f": {silence.comment}" if silence.comment else ""
    return f"quiet until {until} UTC by {what} {silence.id} of {silence.by}{comment}"


def describe(matcher: Matcher) -> str:
    """What a silence is about, for people."""
    parts = [
        f"{name} {value}"
        for name, value in (
            ("technique", matcher.technique),
            ("entity", matcher.entity),
            ("level", matcher.level),
            ("rule", matcher.rule),
            ("client", matcher.client),
        )
        if value
    ]
    return ", ".join(parts) or "everything"


def check(silence: Silence, others: Sequence[Silence]) -> None:
    """Refuse a silence that makes no sense.

    Raises
    ------
    ConfigError
    """
    if silence.ends <= silence.starts:
        raise ConfigError("a silence must end after it starts")
    if silence.ends - silence.starts > LONGEST_MICROSECONDS:
        raise ConfigError("a silence lasts at most 90 days; recalibrate, or approve the client as a repeater")
    if silence.kind == "silence" and _says_nothing(silence.matcher):
        raise ConfigError("say what to silence; only a maintenance window is about everything")
    if len(others) >= SILENCES_KEPT:
        raise ConfigError(f"there are {len(others)} silences already; end some first")


def _says_nothing(matcher: Matcher) -> bool:
    """Whether it is about everything: no pattern, or patterns of ``*`` and ``?`` alone."""
    patterns = (matcher.technique, matcher.rule, matcher.client)
    return not matcher.entity and not matcher.level and not "".join(patterns).strip("*?")
