"""Who acts: names as they are stored, and whether two of them are the same person."""

from __future__ import annotations

from streams.errors import ConfigError

#: Longest name that is stored.
NAME_LENGTH = 80


def person(by: str) -> str:
    """A name as it is stored.

    Raises
    ------
    ConfigError
        When it is empty.
    """
    name = " ".join(by.split())[:NAME_LENGTH]
    if not name:
        raise ConfigError("who acts must be named")
    return name


def same_person(one: str, other: str) -> bool:
    """Whether two names mean one person: case and spaces make no second one."""
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
