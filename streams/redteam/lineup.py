"""Which attacks a threat model permits against a model, with which parameters, and why others are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attacks import registry
from attacks.contract import Access, Attack
from attacks.errors import AttackError
from attacks.threat import ThreatModel
from streams.errors import ConfigError
from streams.redteam.subject import Subject

Target = Literal["model", "surrogate"]

#: Parameters that campaigns use instead of an attack's defaults.
PARAMETERS: Mapping[str, Mapping[str, Any]] = {"pgd": {"restarts": 5}, "transfer_pgd": {"restarts": 5}}
#: Below so many queries some attacks that ask refuse to begin.
LEAST_QUERIES = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One attack of a campaign, and whom it reads: the model, or a surrogate that has learned the model's answers."""

    name: str
    attack: Attack
    target: Target
    parameters: dict[str, Any]

    @property
    def access(self) -> Access:
        """What it reads."""
        return self.attack.access


@dataclass(frozen=True, slots=True)
class Lineup:
    """Attacks in the order in which they run, and the others with the reason, a sentence each."""

    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...]


def lineup(
    subject: Subject,
    threat: ThreatModel,
    image_shape: tuple[int, ...] | None = None,
    only: Sequence[str] | None = None,
) -> Lineup:
    """All attacks that the threat model permits, or of them those that `only` names.

    Raises
    ------
    ConfigError
        `only` names an attack that there is not, or one that the threat model does not permit; or none is left.
    """
    names = registry.names() if only is None else list(dict.fromkeys(only))
    if not names:
        raise ConfigError(f"--attacks: names no attack; there are {', '.join(registry.names())}")
    entries, left_out = [], []
    for name in names:
        try:
            kind = registry.kind(name)
        except AttackError as unknown:
            raise ConfigError(f"--attacks: {unknown}") from None
        target, reason = _fits(kind, subject, threat)
        if reason:
            left_out.append((name, reason))
            continue
        parameters = dict(PARAMETERS.get(name, {}))
        if name == "square" and image_shape is not None:
            parameters["shape"] = tuple(image_shape)
        entries.append(Entry(name, kind(**parameters), target, parameters))
    if only is not None and left_out:
        name, reason = left_out[0]
        raise ConfigError(f"--attacks: {name} cannot be used under {threat.name!r}: {reason}")
    if not entries:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out[:4])
        raise ConfigError(f"no attack fits the threat model {threat.name!r} ({reasons} ...)")
    return Lineup(tuple(entries), tuple(left_out))


def _fits(kind: type[Attack], subject: Subject, threat: ThreatModel) -> tuple[Target, str]:
    """Whom the attack reads, and why it can't be used; empty when it can."""
    if threat.norm not in kind.norms:
        return "model", f"it keeps {', '.join(sorted(kind.norms))}, not {threat.norm}"
    if kind.needs_eps and threat.eps is None:
        return "model", "it needs a bound on the distance"
    if threat.goal != "any" and not kind.targeted:
        return "model", "it cannot aim at a class"
    if kind.access in ("labels", "scores"):
        if threat.budget < LEAST_QUERIES:
            return "model", f"the budget is {threat.budget} queries, it takes {LEAST_QUERIES} or more"
        return "model", ""
    if threat.knowledge == "black-box":
        return "model", f"it reads {kind.access}, knowledge is black-box"
    if kind.access in ("trees", "leaves"):
        if threat.knowledge != "white-box":
            return "model", f"it reads {kind.access} of the model itself, knowledge is {threat.knowledge}"
        if subject.in_hand(kind.access) is not None:
            return "model", ""
        if subject.trees is not None:
            return "model", "it reads leaves as boxes of inputs, and this model prepares its inputs before its trees"
        return "model", "it reads a tree ensemble, and this model is none that can be read"
    transfer = kind.name == "transfer_pgd"
    if threat.knowledge == "transfer" or subject.gradients is None:
        if kind.name == "pgd":
            return "surrogate", "transfer_pgd is the same on a surrogate"
        if threat.knowledge == "white-box" and not transfer:
            return "surrogate", "it reads gradients, and this model has none that can be read"
        return "surrogate", ""
    return "model", "pgd reads the model itself" if transfer else ""
