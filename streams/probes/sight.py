"""Sudden loss of sight: attacks that were detected before are missed. Pure: no I/O, no clock.

The recall of the last ten probes needs several misses before it falls below its objective. A detector that was switched
off is told sooner by a cumulative sum (Page, "Continuous Inspection Schemes", Biometrika 1954) of log-likelihood ratios
between two recalls: the one that the attack's own probes had so far, and that of a monitor that sees next to nothing.
While the recall is what it was, the sum reaches `THRESHOLD` on average once in exp(`THRESHOLD`) probes or more (Lorden,
"Procedures for reacting to a change in distribution", Annals of Mathematical Statistics 1971).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from streams.store.messages import ProbeOutcome

#: A sum above it tells the loss; chance alone takes about 1,100 probes to get there.
THRESHOLD = 7.0
#: What the sum never exceeds: two detected probes bring it below the threshold again.
CEILING = 10.0
#: Recall of a monitor that sees nothing; what it detects nevertheless are accidents.
BLIND_RECALL = 0.1
#: Recall that an attack is given before its first probe, and how many probes that is worth.
PRIOR_RECALL, PRIOR_UNITS = 0.95, 2.0
#: Finished probes of an attack before it says anything here.
LEAST_UNITS = 3
#: No recall counts as higher: a single miss must not tell the loss.
HIGHEST_RECALL = 0.98
#: An attack whose recall was no higher says nothing here.
LEAST_RECALL = 0.5
#: Probes that the recall so far is taken from, about.
MEMORY_UNITS = 200.0


@dataclass(slots=True)
class _Course:
    """One attack, or all together."""

    sum: float = 0.0
    missed: int = 0
    """Since the sum began to rise."""


@dataclass(slots=True)
class _Recall:
    """Recall so far; probes since the sum began to rise are held back, as they may belong to the loss."""

    detected: float = PRIOR_RECALL * PRIOR_UNITS
    units: float = PRIOR_UNITS
    held: list[bool] = field(default_factory=list)

    @property
    def value(self) -> float:
        return min(self.detected / self.units, HIGHEST_RECALL)

    def learn(self) -> None:
        for hit in self.held:
            fade = min(1.0, MEMORY_UNITS / (self.units + 1))
            self.detected, self.units = fade * (self.detected + hit), fade * (self.units + 1)
        self.held.clear()


def lost_sight(outcomes: Iterable[ProbeOutcome]) -> str | None:
    """That attacks are missed which were detected before, in words; None while they are seen.

    Parameters
    ----------
    outcomes : iterable of ProbeOutcome
        Of attacks that ought to be detected, oldest first, none abandoned.
    """
    recalls: dict[str, _Recall] = {}
    single: dict[str, _Course] = {}
    whole = _Course()
    for outcome in outcomes:
        recall = recalls.setdefault(outcome.attack, _Recall())
        course = single.setdefault(outcome.attack, _Course())
        before = recall.value
        step = 0.0
        if before > LEAST_RECALL and recall.units >= PRIOR_UNITS + LEAST_UNITS:
            blind = BLIND_RECALL if outcome.detected else 1 - BLIND_RECALL
            step = math.log(blind / (before if outcome.detected else 1 - before))
        for each in (course, whole):
            each.sum = min(max(each.sum + step, 0.0), CEILING)
            each.missed = 0 if each.sum == 0 else each.missed + (not outcome.detected)
        recall.held.append(outcome.detected)
        if course.sum == 0:
            recall.learn()
    for attack, course in sorted(single.items()):
        if course.sum >= THRESHOLD:
            seen = recalls[attack].value
            return f"the last {course.missed} {attack} probes were missed, and {seen:.0%} of those before detected"
    if whole.sum >= THRESHOLD:
        return f"the last {whole.missed} probes of all attacks were missed, and most of those before detected"
    return None
