"""Who acts: names as they are stored, and whether two of them are the same person."""

from __future__ import annotations

import unicodedata

from streams.errors import ConfigError

#: Longest name that is stored.
NAME_LENGTH = 80


def shown_name(text: str) -> str:
    """A name as people see it: compatible forms of a letter are one (NFKC), and what nobody sees is left out."""
    plain = unicodedata.normalize("NFKC", " ".join(text.split()))
    return " ".join("".join(c for c in plain if not unicodedata.category(c).startswith("C")).split())


def person(by: str) -> str:
    """A name as it is stored.

    Raises
    ------
    ConfigError
        When it is empty.
    """
    name = shown_name(by)[:NAME_LENGTH]
    if not name:
        raise ConfigError("who acts must be named")
    return name


def same_person(one: str, other: str) -> bool:
    """Whether two names mean one person: case, spaces and what nobody sees make no second one."""
    return shown_name(one).casefold() == shown_name(other).casefold()
