"""What every destination's notifier does: make a request of a notice, and judge the answer.

A notifier is pure: no I/O, no clock. Who sends, when, and how often is the courier's concern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, Protocol

from streams.store.messages import Notice

#: Answers that say that the notice itself is wrong: sending it again would change nothing.
REFUSALS = frozenset({400, 405, 411, 413, 414, 415, 422})
#: Longest pause that a destination may ask for.
MOST_WAIT_SECONDS = 3600.0
#: Characters of an answer that are kept, to say what was wrong.
SHOWN_ANSWER = 200


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request."""

    url: str
    body: bytes
    headers: Mapping[str, str]
    method: Literal["POST", "PUT"] = "POST"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    """HTTP status; 0 where there was no answer."""
    headers: Mapping[str, str]
    """Names in lower case."""
    text: str
    """Beginning of the body, or why there was no answer. Never holds a secret."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an answer means."""

    kind: Literal["delivered", "again", "refused"]
    """`again`: the destination is away, busy, or must be mended; `refused`: it will never take this notice."""
    wait_seconds: float | None = None
    """How long the destination wants to be left alone; None where it didn't say."""
    text: str = ""


class Notifier(Protocol):
    """One destination."""

    @property
    def calls_people(self) -> bool:
        """Whether it may call somebody out: tickets never go there."""

    @property
    def refresh_seconds(self) -> float:
        """What is open is told again so often, because the destination forgets it otherwise; 0: it does not."""

    def call(self, notice: Notice, now: int) -> Call | None:
        """The request that tells of a notice; None where the destination has no word for it.

        The deduplication key of a notice must reach the destination as it is, and depend on nothing else.

        Parameters
        ----------
        now : int
            The clock, microseconds; for signatures and ends, never for identity.

        Raises
        ------
        ConfigError
            When a secret cannot be read.
        """

    def judge(self, answer: Answer, now: int) -> Outcome:
        """What an answer means."""


def judge(answer: Answer, now: int) -> Outcome:
    """What HTTP says of an answer.

    Wrong credentials and unknown addresses are tried again: somebody mends them, and a page must not be lost meanwhile.
    """
    if 200 <= answer.status < 300:
        return Outcome("delivered")
    shown = " ".join(answer.text.split())[:SHOWN_ANSWER]
    text = f"HTTP {answer.status}" + f": {shown}" * bool(shown) if answer.status else shown or "no answer"
    if answer.status in REFUSALS:
        return Outcome("refused", text=text)
    return Outcome("again", retry_after(answer, now), text)


def retry_after(answer: Answer, now: int) -> float | None:
    """Seconds that ``Retry-After`` asks for (RFC 9110, section 10.2.3), bounded; None where it asks for none."""
    given = answer.headers.get("retry-after", "").strip()
    if not given:
        return None
    try:
        seconds = float(given) if given.isdecimal() else parsedate_to_datetime(given).timestamp() - now / 1e6
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MOST_WAIT_SECONDS)


def shortened(text: str, most: int) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
