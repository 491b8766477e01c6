"""What can be sent as a probe, by name: registered attacks, extractions, fuzz, benign controls."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from streams.errors import ConfigError
from streams.store.messages import ProbeKind

FUZZ = "fuzz"
CONTROLS = ("control_direct", "control_front_door")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name.

    Attributes
    ----------
    attack : str
    kinds : tuple of str
        How it can be sent; the first one is used where none is asked for.
    """

    attack: str
    kinds: tuple[ProbeKind, ...]


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Everything that can be sent, by name.

    Attacks on trees need the model itself, which the prober has not got; attacks by gradients have only a surrogate's.
    """
    from attacks import extraction, registry  # not at the start of every process that may ask for a probe

    found = [Entry(name, ("control",)) for name in CONTROLS]
    found.append(Entry(FUZZ, ("fuzz",)))
    found += [Entry(name, ("extraction",)) for name in extraction.names()]
    for name in registry.names():
        access = registry.kind(name).access
        if access == "gradients":
            found.append(Entry(name, ("burst",)))
        elif access in ("labels", "scores"):
            found.append(Entry(name, ("campaign", "burst")))
    return tuple(sorted(found, key=lambda entry: entry.attack))


def kind_of(attack: str, wanted: str = "") -> ProbeKind:
    """How an attack is sent.

    Raises
    ------
    ConfigError
        There is no such attack, or it cannot go that way.
    """
    known = {entry.attack: entry for entry in entries()}
    if attack not in known:
        raise ConfigError(f"no attack {attack!r} can be sent as a probe; there are {', '.join(known)}")
    kinds = known[attack].kinds
    for kind in kinds:
        if wanted in ("", kind):
            return kind
    raise ConfigError(f"{attack} cannot be sent as {wanted}; it goes as {' or '.join(kinds)}")
