"""Why a record cannot be read, on its way from where it is found to the dead letter."""

from __future__ import annotations

from typing import Any

from streams.events.batch import Reason

#: Characters of a stranger's text that a dead letter repeats.
QUOTED_CHARACTERS = 40

_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}


class Refusal(Exception):
    """A record as a whole cannot become rows."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "an object")


def quoted(text: str) -> str:
    """A stranger's text, short and in printable ASCII."""
    shown = ascii(text[: QUOTED_CHARACTERS + 1])
    return shown if len(shown) <= QUOTED_CHARACTERS + 2 else shown[: QUOTED_CHARACTERS + 1] + "..." + shown[0]
