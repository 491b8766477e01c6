"""Client-weeks: the units that thresholds are counted in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.contract import ANONYMOUS

#: Benign events need so many clients and rows, or there is too little to calibrate on.
LEAST_CLIENTS, LEAST_ROWS = 20, 600
#: A last week that is covered to at least this share counts as one.
LEAST_COVERED = 0.9


@dataclass(frozen=True, slots=True)
class ClientWeeks:
    """Weeks of clients, in order of client and week.

    Attributes
    ----------
    clients : uint64 (m,)
    weeks : int64 (m,)
        From 0.
    unit : int64 (n,)
        Client-week of each row; -1 where the row belongs to none (anonymous, or after the last whole week).
    whole_weeks : int
    """

    clients: NDArray[np.uint64]
    weeks: NDArray[np.int64]
    unit: NDArray[np.int64]
    whole_weeks: int

    def __len__(self) -> int:
        return len(self.clients)

    def maxima(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m,) largest value among the rows (n,) of each client-week; values are not negative."""
        found = np.zeros(len(self))
        inside = self.unit >= 0
        np.maximum.at(found, self.unit[inside], values[inside])
        return found

    def clients_a_week(self) -> int:
        """Most clients seen in one week."""
        return int(np.bincount(self.weeks).max()) if len(self) else 0


def whole_weeks(times: NDArray[np.int64], week_us: int) -> int:
    """Whole weeks between the first and the last row; the last counts from `LEAST_COVERED` on."""
    if len(times) == 0:
        return 0
    span = (int(times.max()) - int(times.min())) / week_us
    return int(span) + (1 if span - int(span) >= LEAST_COVERED else 0)


def client_weeks(
    clients: NDArray[np.uint64], times: NDArray[np.int64], start: int, week_us: int, weeks: int
) -> ClientWeeks:
    """Cut rows (n,) into client-weeks, of `weeks` weeks of `week_us` microseconds from `start` on."""
    week = (times - start) // week_us
    inside = (week >= 0) & (week < weeks) & (clients != ANONYMOUS)
    names, member = np.unique(clients[inside], return_inverse=True)
    key = member.astype(np.int64) * max(weeks, 1) + week[inside]
    found, unit_of = np.unique(key, return_inverse=True)
    unit = np.full(len(clients), -1, dtype=np.int64)
    unit[inside] = unit_of
    return ClientWeeks(names[found // max(weeks, 1)], found % max(weeks, 1), unit, weeks)
