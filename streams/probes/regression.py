"""Whether a new version of the watched model is worse than the one before. Pure: no I/O, no clock.

Probes of one attack and threat model are numbered within each model version, and equal numbers start from the same rows
and the same seed. So versions are compared by pairs: the probe was detected under one and not under the other, the row
was fooled under one and not under the other. Under equal versions a pair that differs goes either way with probability
1/2 (the exact test of McNemar, "Note on the sampling error of the difference between correlated proportions or
percentages", Psychometrika 1947).

The comparison is looked at again as pairs come in. It is judged only when their number of probes reaches one of
`LOOKS`, at a level that is halved from look to look, and divided by the number of comparisons: so the chance that equal
versions are ever told apart stays below the significance that was asked for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from streams.store.messages import ProbeOutcome

#: Matched probes at which versions are compared.
LOOKS = (5, 10, 20, 40, 80, 160)

Measure = Literal["detection", "robust accuracy"]


class Comparison(msgspec.Struct, frozen=True):
    """Two versions of the watched model on matched probes of one attack and threat model."""

    attack: str
    threat: str
    measure: Measure
    before: str
    after: str
    """Model versions."""
    probes: int
    """Matched probes."""
    n: int
    """Pairs: probes for detection, crafted rows for robust accuracy."""
    share_before: float
    share_after: float
    lost: int
    """Pairs that were good under the version before only."""
    gained: int
    pvalue: float
    """Exact McNemar, two-sided."""
    level: float | None
    """The p-value that counts as a difference at this number of probes; None between two looks."""
    worse: bool
    """The version after is worse, at that level."""


def exact(lost: int, gained: int) -> float:
    """Two-sided p-value of the exact McNemar test.

    Examples
    --------
    >>> exact(8, 0), exact(3, 3)
    (0.0078125, 1.0)
    """
    n, fewer = lost + gained, min(lost, gained)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def versions(outcomes: Iterable[ProbeOutcome]) -> tuple[str, str] | None:
    """The version before, and the newest one; None while only one is known."""
    seen = dict.fromkeys(outcome.model_version for outcome in outcomes if outcome.model_version)
    last: dict[str, int] = {}
    for place, outcome in enumerate(outcomes):
        if outcome.model_version in seen:
            last[outcome.model_version] = place
    ordered = sorted(last, key=lambda version: last[version])
    return (ordered[-2], ordered[-1]) if len(ordered) > 1 else None


def compare(outcomes: Sequence[ProbeOutcome], significance: float) -> list[Comparison]:
    """Every attack and threat model that both versions were probed with, the newest version against the one before.

    Parameters
    ----------
    outcomes : sequence of ProbeOutcome
        Oldest first.
    significance : float
        Chance that any of the comparisons ever names a regression between equal versions.
    """
    pair = versions(outcomes)
    if pair is None:
        return []
    units: dict[tuple[str, str], dict[str, dict[int, ProbeOutcome]]] = defaultdict(lambda: {pair[0]: {}, pair[1]: {}})
    for outcome in outcomes:
        judged = outcome.kind in ("burst", "campaign", "extraction") and not outcome.abandoned and outcome.number > 0
        if judged and outcome.model_version in pair:
            units[outcome.attack, outcome.threat][outcome.model_version].setdefault(outcome.number, outcome)
    found = []
    for (attack, threat), by_version in sorted(units.items()):
        before, after = by_version[pair[0]], by_version[pair[1]]
        matched = [(before[number], after[number]) for number in sorted(before.keys() & after.keys())]
        for measure, pairs in (("detection", _detected(matched)), ("robust accuracy", _held(matched))):
            if pairs:
                found.append((attack, threat, measure, len(matched), pairs))
    return [
        _judged(attack, threat, measure, pair, probes, pairs, significance / len(found))  # type: ignore[arg-type]
        for attack, threat, measure, probes, pairs in found  # the measure is one of the two literals above
    ]


def sentence(found: Comparison) -> str:
    """A comparison in plain words."""
    unit = "matched probes" if found.measure == "detection" else "matched rows"
    return (
        f"version {found.after} against version {found.before}: {found.measure} under {found.attack} ({found.threat}) "
        f"went from {found.share_before:.0%} to {found.share_after:.0%} on {found.n} {unit}, {found.lost} lost and "
        f"{found.gained} gained (exact McNemar p = {found.pvalue:.2g})"
    )


def _detected(matched: Iterable[tuple[ProbeOutcome, ProbeOutcome]]) -> list[tuple[bool, bool]]:
    return [(before.detected, after.detected) for before, after in matched]


def _held(matched: Iterable[tuple[ProbeOutcome, ProbeOutcome]]) -> list[tuple[bool, bool]]:
    pairs = []
    for before, after in matched:
        if before.fooled is None or after.fooled is None or before.inputs != after.inputs:
            continue
        one, other = _bits(before), _bits(after)
        pairs += [(not x, not y) for x, y in zip(one, other, strict=True)]
    return pairs


def _bits(outcome: ProbeOutcome) -> list[bool]:
    digits = bytes.fromhex(outcome.fooled_rows)
    return [bool(digits[row // 8] >> (7 - row % 8) & 1) for row in range(outcome.inputs)]


def _judged(
    attack: str,
    threat: str,
    measure: Measure,
    pair: tuple[str, str],
    probes: int,
    pairs: Sequence[tuple[bool, bool]],
    significance: float,
) -> Comparison:
    lost = sum(before and not after for before, after in pairs)
    gained = sum(after and not before for before, after in pairs)
    pvalue = exact(lost, gained)
    level = significance / 2 ** (LOOKS.index(probes) + 1) if probes in LOOKS else None
    return Comparison(
        attack=attack,
        threat=threat,
        measure=measure,
        before=pair[0],
        after=pair[1],
        probes=probes,
        n=len(pairs),
        share_before=sum(before for before, _ in pairs) / len(pairs),
        share_after=sum(after for _, after in pairs) / len(pairs),
        lost=lost,
        gained=gained,
        pvalue=pvalue,
        level=level,
        worse=level is not None and lost > gained and pvalue <= level,
    )
