"""From verdicts to outcomes, from outcomes to recall. Pure: no I/O, no clock.

A **unit** is what is independent: a burst (all inputs of one probe client) or a query campaign. A burst's inputs are
detected together or not at all, so its recall is stated over inputs, and its interval over bursts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from detectors.contract import Level
from streams.store.messages import ProbeOutcome, ProbePlan, ProbeSummary, ProbeVerdict

#: Units per attack that a summary looks back over.
SUMMARY_UNITS = 200
#: Units per attack that decide whether monitoring is blind: fewer react sooner, more tell chance from loss of sight. At
#: a true recall of .95, three or more misses among ten have a probability of 1.2 %.
RECENT_UNITS = 10
#: A probe of whose rows fewer came back counts as one that did not arrive.
ARRIVED_SHARE = 0.5
#: Two-sided 95 % quantile of the normal distribution.
NORMAL_95 = 1.959963984540054


def wilson(detected: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927); (0, 1) when there is nothing to judge by.

    Examples
    --------
    >>> low, high = wilson(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = detected / n, NORMAL_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if detected == 0 else max(0.0, middle - half)
    high = 1.0 if detected == n else min(1.0, middle + half)
    return low, high


def judge(plan: ProbePlan, verdicts: Iterable[ProbeVerdict], now: int, abandoned: str = "") -> ProbeOutcome:
    """The outcome of one probe.

    Parameters
    ----------
    plan : ProbePlan
    verdicts : iterable of ProbeVerdict
        All that came back for the plan's campaign, in any order.
    now : int
        Microseconds since the epoch.
    abandoned : str
        Why it was not sent in full, if it was not.
    """
    said = sorted(verdicts, key=lambda verdict: (verdict.partition, verdict.offset))
    arrived = excluded = 0
    ticket: int | None = None
    page: int | None = None
    latency: float | None = None
    for verdict in said:
        if verdict.status != "scored":
            excluded += verdict.rows
            continue
        arrived += verdict.rows
        if ticket is None and verdict.level >= Level.TICKET:
            ticket = arrived
        if page is None and verdict.level >= Level.PAGE:
            page = arrived
            latency = (verdict.at - verdict.time) / 1000
    return ProbeOutcome(
        campaign=plan.campaign,
        attack=plan.attack,
        kind=plan.kind,
        threat=plan.threat,
        inputs=plan.inputs,
        arrived=arrived,
        detected=page is not None,
        ticketed=ticket is not None,
        queries_to_ticket=ticket,
        queries_to_page=page,
        latency_ms=latency,
        finished=now,
        abandoned=abandoned,
        excluded=excluded,
        fooled=plan.fooled,
    )


def summarise(outcomes: Sequence[ProbeOutcome], now: int) -> list[ProbeSummary]:
    """One summary per attack over its newest units, abandoned probes left out.

    For controls "detected" means a false alarm, so their recall is the rate of those.

    Parameters
    ----------
    outcomes : sequence of ProbeOutcome
        Oldest first.
    now : int
        Microseconds since the epoch.
    """
    summaries = []
    for attack, units in sorted(_by_attack(outcomes).items()):
        units = units[-SUMMARY_UNITS:]
        burst = units[-1].kind == "burst"
        weights = [unit.inputs if burst else 1 for unit in units]
        found = [unit.detected for unit in units]
        detected = sum(weight for weight, hit in zip(weights, found, strict=True) if hit)
        n = sum(weights)
        low, high = wilson(sum(found), len(units))
        latencies = [unit.latency_ms for unit in units if unit.latency_ms is not None]
        queries = [unit.queries_to_page for unit in units if unit.queries_to_page is not None]
        asked = [unit for unit in units if unit.fooled is not None and unit.inputs]
        summaries.append(
            ProbeSummary(
                attack=attack,
                kind=units[-1].kind,
                threat=units[-1].threat,
                n=n,
                units=len(units),
                detected=detected,
                recall=detected / n if n else 0.0,
                low=low,
                high=high,
                latency_p50_ms=_quantile(latencies, 0.5),
                latency_p99_ms=_quantile(latencies, 0.99),
                updated=now,
                queries_to_page_p50=_quantile(queries, 0.5),
                robust_accuracy=(
                    1 - sum(unit.fooled or 0 for unit in asked) / sum(unit.inputs for unit in asked) if asked else None
                ),
            )
        )
    return summaries


def blindness(outcomes: Sequence[ProbeOutcome], min_recall: float, min_units: int) -> str | None:
    """Why monitoring cannot be trusted now, in plain words; None when it sees.

    Three ways to be blind: verdicts stay away, probes cannot be sent, or an attack's recall over its last units is
    below the objective.

    Parameters
    ----------
    outcomes : sequence of ProbeOutcome
        Oldest first.
    min_recall : float
        The objective for every attack.
    min_units : int
        Units of an attack before its recall is judged. Also the number of newest probes that must all have come back
        for verdicts to count as arriving, so that a worker that answers now and then does not open and close the
        incident over and over.
    """
    sent = [outcome for outcome in outcomes if not outcome.abandoned]
    for outcome in reversed(sent[-min_units:]):
        if outcome.arrived < ARRIVED_SHARE * outcome.inputs:
            missing = f"{outcome.arrived} of {outcome.inputs} rows of a {outcome.attack} probe came back with a verdict"
            if outcome.excluded:
                return f"{missing}, {outcome.excluded} as expired or replayed (compare the clocks of prober and broker)"
            return missing
    recent: dict[str, list[ProbeOutcome]] = {}
    for outcome in outcomes:
        recent.setdefault(outcome.attack, []).append(outcome)
    for attack, units in sorted(recent.items()):
        last = units[-min_units:]
        if len(last) == min_units and all(unit.abandoned for unit in last):
            return f"the last {min_units} probes of {attack} could not be sent: {last[-1].abandoned}"
    for attack, units in sorted(_by_attack(outcomes).items()):
        last = units[-RECENT_UNITS:]
        if last[-1].kind == "control" or len(last) < min_units:
            continue
        detected = sum(unit.detected for unit in last)
        if detected < min_recall * len(last):
            return f"{detected} of the last {len(last)} {attack} probes were detected (objective: {min_recall:.0%})"
    return None


def _by_attack(outcomes: Iterable[ProbeOutcome]) -> dict[str, list[ProbeOutcome]]:
    groups: dict[str, list[ProbeOutcome]] = {}
    for outcome in outcomes:
        if not outcome.abandoned:
            groups.setdefault(outcome.attack, []).append(outcome)
    return groups


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share, method="higher")) if values else None
