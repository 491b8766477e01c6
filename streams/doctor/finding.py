"""What the doctor says of one thing that was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streams.errors import VedetteError

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `error` is the kind of error that a process would end with; its exit code becomes the command's.
    """

    check: str
    status: Status
    text: str
    remedy: str = ""
    error: type[VedetteError] | None = None

    @property
    def exit_code(self) -> int:
        """0 unless it is a problem."""
        if self.status != "problem":
            return 0
        return VedetteError.exit_code if self.error is None else self.error.exit_code


Findings = Iterator[Finding]


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", text)


def warning(check: str, text: str, remedy: str = "") -> Finding:
    """Works, but something is lost or at risk."""
    return Finding(check, "warning", text, remedy)


def problem(check: str, text: str, remedy: str, error: type[VedetteError]) -> Finding:
    """A process would refuse to start, lose events, or decide wrongly."""
    return Finding(check, "problem", text, remedy, error)


def many(count: int, what: str) -> str:
    """A count and its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
