"""False alarms that people vouch for, as benign client-weeks, and how far they may move a threshold.

An attacker who is believed twice could raise thresholds with them, so three bounds hold: at most N of a week count, N
being the budget of false pages; at most j - 1 of all, j being the rank of the threshold; and the weakest come first.
A threshold at the j-th largest of the pilot's client-weeks and at most j - 1 others never passes the pilot's largest
one, and never falls.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.thresholds import CLEAR_POWER
from detectors.queries.intent import clearness
from detectors.queries.walk import INDEX_EXAMINED

#: Rules whose statistic belongs to one client.
CLUSTER_RULES = ("query-cluster", "query-intent")
SEQUENCE_RULE = "input-sequence"


@dataclass(frozen=True, slots=True)
class FalseAlarm:
    """The largest statistics of one client in the signals of one false alarm.

    Attributes
    ----------
    client : int
    time : int
        Broker time of its last signal, microseconds.
    same, opposite, sequence : float
        Evidence of clusters (A and B), and of the sequential test; 0 where none spoke.
    spoke : float
        How clearly the intent test spoke (`detectors.queries.intent.clearness`).
    """

    client: int
    time: int
    same: float = 0.0
    opposite: float = 0.0
    sequence: float = 0.0
    spoke: float = 0.0

    @classmethod
    def of(
        cls,
        client: int,
        time: int,
        said: Iterable[tuple[str, float, float, Mapping[str, float]]],
        tickets: NDArray[np.float64],
    ) -> Self:
        """From (rule, statistic, threshold, measures) of signals.

        The threshold tells evidence A from evidence B: it is the ticket threshold of one of them, `tickets` (2,), or
        what the index examines from. What crossed none of these, and rules of many clients, say nothing here.
        """
        most: dict[str, float] = {}
        for rule, statistic, threshold, measures in said:
            found = {}
            if rule == SEQUENCE_RULE:
                found["sequence"] = statistic
            elif rule in CLUSTER_RULES:
                crossed = np.isclose(threshold, tickets, rtol=1e-9)
                if crossed.any():
                    found["same" if crossed[0] else "opposite"] = statistic
                if crossed.any() or math.isclose(threshold, INDEX_EXAMINED):
                    found["spoke"] = clearness(measures)
            for name, value in found.items():
                most[name] = max(most.get(name, 0.0), value)
        return cls(client, time, **most)

    def strength(self, scales: NDArray[np.float64], intent: bool) -> float:
        """The largest of what pages, over the scales (3,) of evidence A, evidence B and ln(1 + sequence).

        Where the intent test is asked, that is how clearly it spoke, as `by_intent` counts it, instead of evidence.
        """
        sequence = float(np.log1p(self.sequence) / scales[2])
        if intent:
            return max(self.spoke**CLEAR_POWER, sequence)
        return max(self.same / float(scales[0]), self.opposite / float(scales[1]), sequence)

    def merged(self, other: FalseAlarm) -> FalseAlarm:
        """Both, of one client in one week, as one."""
        names = ("same", "opposite", "sequence", "spoke")
        return FalseAlarm(
            self.client,
            max(self.time, other.time),
            **{name: max(getattr(self, name), getattr(other, name)) for name in names},
        )


def admitted(
    alarms: Sequence[FalseAlarm],
    scales: NDArray[np.float64],
    start: int,
    week_us: int,
    budget: int,
    rank: int,
    *,
    intent: bool,
) -> list[FalseAlarm]:
    """Those that count: one a client and week, at most `budget` a week, and `rank` - 1 in all, the weakest first.

    `intent`: whether the intent test is asked before a cluster pages.
    """
    weeks: dict[tuple[int, int], FalseAlarm] = {}
    for alarm in alarms:
        place = (alarm.client, (alarm.time - start) // week_us)
        weeks[place] = alarm.merged(weeks[place]) if place in weeks else alarm
    order = sorted(weeks.items(), key=lambda item: (item[1].strength(scales, intent), item[1].time, item[1].client))
    taken: Counter[int] = Counter()
    found: list[FalseAlarm] = []
    for (_, week), alarm in order:
        if len(found) < max(0, rank - 1) and taken[week] < budget:
            taken[week] += 1
            found.append(alarm)
    return found
