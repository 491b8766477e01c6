"""The budget of N false pages a week, split between clients, the index and the population."""

from __future__ import annotations

from dataclasses import dataclass

from detectors.calibration.order_statistics import RISK, best_rank

#: Share of the budget, and of the risk of exceeding it, that the index gets once its partition-weeks can bear it.
INDEX_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Split:
    """Who may page how often a week, and with which chance of more.

    `population` is 0: no test of the whole population pages.
    """

    clients: int
    index: int
    population: int
    clients_risk: float
    index_risk: float
    index_pages: bool


def split(budget: int, partitions: int, partition_weeks: int) -> Split:
    """Split N. The index gets nothing of its own until its partition-weeks are enough."""
    index = int(INDEX_SHARE * budget)
    index_risk = INDEX_SHARE * RISK
    if partition_weeks > 0 and best_rank(partitions, partition_weeks, index, index_risk) > 0:
        return Split(budget - index, index, 0, RISK - index_risk, index_risk, index_pages=True)
    return Split(budget, 0, 0, RISK, 0.0, index_pages=False)
