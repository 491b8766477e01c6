"""What more benign data would buy, where order statistics of client-weeks say so by themselves."""

from __future__ import annotations

import math

from detectors.calibration import order_statistics
from detectors.calibration.decision import Decision


def prospects(decision: Decision, units: int, partition_weeks: int, partitions: int, share: float) -> tuple[str, ...]:
    """A sentence each: the first page, a lower budget, lower thresholds, the index.

    Parameters
    ----------
    decision : Decision
    units, partition_weeks : int
        Client-weeks m that set thresholds, and those of the index.
    partitions : int
        Of the event topic.
    share : float
        Of the clients that set thresholds; 1 for a pilot.
    """
    coming, most, risk = decision.coming, decision.split.clients, decision.split.clients_risk

    def wanted(needed: int) -> str:
        more, in_all = math.ceil(needed / share) - math.ceil(units / share), math.ceil(needed / share)
        if share == 1.0:
            return f"{needed:,} client-weeks ({more:,} more)"
        return f"{needed:,} client-weeks that set thresholds, about {in_all:,} in all ({more:,} more)"

    told = []
    if decision.policy.mode == "tickets":
        if share < 1.0:
            told.append(
                f"about {math.ceil(decision.needed / share)} client-weeks in all would do to page, as {share:.0%} of "
                "the clients set thresholds and the rest tables"
            )
        else:
            told.append(f"a pilot of {decision.needed} client-weeks would do to page")
        if units:
            least = order_statistics.least_budget(coming, units, risk)
            told.append(
                f"those {units:,} that set thresholds would page today with a budget of {least} a week for clients"
            )
        return tuple(told)
    if most < coming:
        least = order_statistics.least_budget(coming, units, risk)
        if least < most:
            told.append(f"these client-weeks bear a budget of {least} a week for clients already")
        if least > 0:
            needed = order_statistics.units_needed(coming, least - 1, risk)
            if needed < order_statistics.MOST_UNITS:
                told.append(f"a budget of {least - 1} a week for clients asks for {wanted(needed)}")
        rank = decision.count.rank + 1
        needed = order_statistics.units_needed(coming, most, risk, rank)
        if needed < order_statistics.MOST_UNITS:
            told.append(
                f"thresholds fall to rank j = {rank} with {wanted(needed)}: {coming * rank / (needed + 1):.2g} false "
                f"pages a week on average, and {order_statistics.most_expected(coming, most, risk):.2g} with endless "
                "data; the more the budget allows, the sooner attacks page"
            )
    missing = decision.index_needed - partition_weeks
    if missing > 0:
        weeks = math.ceil(missing / partitions)
        told.append(
            f"the index pages on a budget of its own with {missing:,} partition-weeks more, that is {weeks:,} "
            f"{'week' if weeks == 1 else 'weeks'} of {partitions} {'partition' if partitions == 1 else 'partitions'}"
        )
    return tuple(told)
