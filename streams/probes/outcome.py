"""From verdicts to outcomes, from outcomes to recall. Pure: no I/O, no clock.

A **unit** is what is independent: a burst (all inputs of one probe client) or a query campaign. A burst's inputs are
detected together or not at all, so its recall is stated over inputs, and its interval over bursts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from detectors.contract import Level
from streams.probes.sight import lost_sight
from streams.store.messages import (
    Answers,
    DetectorRecall,
    ProbeKind,
    ProbeOutcome,
    ProbePlan,
    ProbeSummary,
    ProbeVerdict,
)

Key = TypeVar("Key", bound=Hashable)

#: Units per attack that a summary looks back over.
SUMMARY_UNITS = 200
#: Units per attack that decide whether monitoring is blind: fewer react sooner, more tell chance from loss of sight. At
#: a true recall of .95, three or more misses among ten have a probability of 1.2 %.
RECENT_UNITS = 10
#: A probe of whose rows fewer came back counts as one that did not arrive.
ARRIVED_SHARE = 0.5
#: p-value at which a detector alone speaks.
SPEAKS_AT = 0.01
#: Parts of the breakdown that are kept: those with the newest probes.
PARTS_KEPT = 64
#: Buckets of the histogram of answer times in a decade.
BUCKETS_A_DECADE = 20
#: Kinds whose "detected" means that something is wrong.
ALARMS: tuple[ProbeKind, ...] = ("control", "fuzz")
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
    records = 0
    spoke: Counter[str] = Counter()
    for verdict in said:
        if verdict.status != "scored":
            excluded += verdict.rows
            continue
        arrived += verdict.rows
        records += 1
        spoke.update(name for name, p in verdict.pvalues.items() if corrected(p, verdict.rows) <= SPEAKS_AT)
        spoke.update(dict.fromkeys(verdict.pvalues, 0))
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
        detected=faults(plan.answers) > 0 if plan.kind == "fuzz" else page is not None,
        ticketed=ticket is not None,
        queries_to_ticket=ticket,
        queries_to_page=page,
        latency_ms=latency,
        finished=now,
        abandoned=abandoned,
        excluded=excluded,
        fooled=plan.fooled,
        fooled_rows=plan.fooled_rows,
        schedule=plan.schedule,
        request=plan.request,
        number=plan.number,
        seed=plan.seed,
        issued=plan.issued,
        model_version=plan.model_version,
        answers=plan.answers,
        agreement=plan.agreement,
        records=records,
        spoke=dict(spoke),
    )


def corrected(pvalue: float, rows: int) -> float:
    """The smallest p-value of a record, corrected for the number of its rows (Šidák 1967)."""
    return 1 - (1 - min(max(pvalue, 0.0), 1.0)) ** max(rows, 1)


def faults(answers: Answers) -> int:
    """Calls that the model's endpoint failed, those that it refused with reason left out."""
    return answers.crashes + answers.timeouts + answers.not_finite + answers.unusable + answers.wrong


def together(parts: Iterable[Answers]) -> Answers:
    """Sums of several."""
    whole = dict.fromkeys(Answers.__struct_fields__, 0)
    times: Counter[int] = Counter()
    for part in parts:
        times.update(part.times)
        for name in whole:
            if name != "times":
                whole[name] += getattr(part, name)
    return Answers(**{**whole, "times": dict(sorted(times.items()))})  # type: ignore[arg-type]  # counts, and times


def answer_ms(times: Mapping[int, int], share: float) -> float | None:
    """Quantile of a histogram of answer times: the upper edge of its bucket, milliseconds."""
    left = share * sum(times.values())
    for bucket, count in sorted(times.items()):
        left -= count
        if left <= 0:
            return float(10 ** ((bucket + 1) / BUCKETS_A_DECADE) / 1000)
    return None


def beyond_chance(hits: int, n: int, share: float) -> float:
    """P(Binomial(n, share) >= hits)."""
    return max(0.0, 1 - sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits)))


def seen_by(outcome: ProbeOutcome) -> set[str]:
    """Detectors that alone see a probe: they speak on more of its records than chance explains (p <= `SPEAKS_AT`)."""
    n = outcome.records
    return {
        name
        for name, hits in outcome.spoke.items()
        if hits and beyond_chance(hits, n, SPEAKS_AT) <= SPEAKS_AT * (1 + 1e-9)
    }


def summarise(outcomes: Sequence[ProbeOutcome], now: int) -> list[ProbeSummary]:
    """One summary per attack over its newest units, abandoned probes left out.

    For controls "detected" means a false alarm, so their recall is the rate of those; for fuzz that the model's
    endpoint failed.

    Parameters
    ----------
    outcomes : sequence of ProbeOutcome
        Oldest first.
    now : int
        Microseconds since the epoch.
    """
    summaries = []
    for _, units in sorted(_by_attack(outcomes).items()):
        units = units[-SUMMARY_UNITS:]
        threats = ", ".join(dict.fromkeys(unit.threat for unit in reversed(units)))
        summaries.append(_summary(units, threats, "", now))
    return summaries


def break_down(outcomes: Sequence[ProbeOutcome], now: int) -> list[ProbeSummary]:
    """One summary per attack, threat model and model version over its newest units; the newest `PARTS_KEPT` of them."""

    def part(outcome: ProbeOutcome) -> tuple[str, str, str, str]:
        return outcome.attack, outcome.kind, outcome.threat, outcome.model_version

    groups = sorted(_grouped(outcomes, part).values(), key=lambda units: units[-1].finished)
    return [
        _summary(units[-SUMMARY_UNITS:], units[-1].threat, units[-1].model_version, now)
        for units in groups[-PARTS_KEPT:]
    ]


def _summary(units: Sequence[ProbeOutcome], threat: str, version: str, now: int) -> ProbeSummary:
    burst = units[-1].kind == "burst"
    weights = [unit.inputs if burst else 1 for unit in units]
    found = [unit.detected for unit in units]
    detected = sum(weight for weight, hit in zip(weights, found, strict=True) if hit)
    n = sum(weights)
    low, high = wilson(sum(found), len(units))
    latencies = [unit.latency_ms for unit in units if unit.latency_ms is not None]
    queries = [unit.queries_to_page for unit in units if unit.queries_to_page is not None]
    robust = robustness(units)
    answers = together(unit.answers for unit in units)
    return ProbeSummary(
        attack=units[-1].attack,
        kind=units[-1].kind,
        threat=threat,
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
        robust_accuracy=robust[0] / robust[1] if robust else None,
        robust_low=wilson(*robust)[0] if robust else None,
        robust_high=wilson(*robust)[1] if robust else None,
        model_version=version,
        answers=answers,
        model_p50_ms=answer_ms(answers.times, 0.5),
        model_p99_ms=answer_ms(answers.times, 0.99),
        detectors=_by_detector(units),
        agreement=_quantile([unit.agreement for unit in units if unit.agreement is not None], 0.5),
    )


def robustness(units: Iterable[ProbeOutcome]) -> tuple[int, int] | None:
    """Crafted rows that the model still answered as before, of how many; None where it was not asked."""
    asked = [unit for unit in units if unit.fooled is not None and unit.inputs]
    inputs = sum(unit.inputs for unit in asked)
    return (inputs - sum(unit.fooled or 0 for unit in asked), inputs) if asked else None


def _by_detector(units: Sequence[ProbeOutcome]) -> dict[str, DetectorRecall]:
    asked: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for unit in units:
        if unit.records:
            asked.update(unit.spoke.keys())
            seen.update(seen_by(unit))
    return {name: DetectorRecall(n, seen[name], *wilson(seen[name], n)) for name, n in sorted(asked.items())}


def blindness(
    outcomes: Sequence[ProbeOutcome], min_recall: float, min_units: int, recall_of: Mapping[str, float] | None = None
) -> str | None:
    """Why monitoring cannot be trusted now, in plain words; None when it sees.

    Four ways to be blind: verdicts stay away, probes cannot be sent, attacks that were detected before are missed
    suddenly (`streams.probes.sight`), or an attack's recall over its last units is below the objective.

    Parameters
    ----------
    outcomes : sequence of ProbeOutcome
        Oldest first.
    min_recall : float
        The objective for bursts and campaigns.
    min_units : int
        Units of an attack before its recall is judged. Also the number of newest probes that must all have come back
        for verdicts to count as arriving, so that a worker that answers now and then does not open and close the
        incident over and over.
    recall_of : mapping of attack to float, optional
        Objectives of their own; extractions are judged only where they have one.
    """
    own = recall_of or {}
    sent = [outcome for outcome in outcomes if not outcome.abandoned and outcome.kind != "fuzz"]
    for outcome in reversed(sent[-min_units:]):
        if outcome.arrived < ARRIVED_SHARE * outcome.inputs:
            missing = f"{outcome.arrived} of {outcome.inputs} rows of a {outcome.attack} probe came back with a verdict"
            if outcome.excluded:
                return (
                    f"{missing}, {outcome.excluded} as expired or replayed (compare the clocks of prober and broker; "
                    "is the topic keyed by client?)"
                )
            return missing
    recent: dict[str, list[ProbeOutcome]] = {}
    for outcome in outcomes:
        recent.setdefault(outcome.attack, []).append(outcome)
    for attack, units in sorted(recent.items()):
        last = units[-min_units:]
        if len(last) == min_units and all(unit.abandoned for unit in last):
            return f"the last {min_units} probes of {attack} could not be sent: {last[-1].abandoned}"
    judged = [outcome for outcome in outcomes if outcome.kind in ("burst", "campaign") or outcome.attack in own]
    lost = lost_sight([outcome for outcome in judged if not outcome.abandoned])
    if lost is not None:
        return lost
    for attack, units in sorted(_by_attack(judged).items()):
        last = units[-RECENT_UNITS:]
        if len(last) < min_units:
            continue
        detected, objective = sum(unit.detected for unit in last), own.get(attack, min_recall)
        if detected < objective * len(last):
            return f"{detected} of the last {len(last)} {attack} probes were detected (objective: {objective:.0%})"
    return None


def _by_attack(outcomes: Iterable[ProbeOutcome]) -> dict[str, list[ProbeOutcome]]:
    return _grouped(outcomes, lambda outcome: outcome.attack)


def _grouped(outcomes: Iterable[ProbeOutcome], key: Callable[[ProbeOutcome], Key]) -> dict[Key, list[ProbeOutcome]]:
    groups: dict[Key, list[ProbeOutcome]] = {}
    for outcome in outcomes:
        if not outcome.abandoned:
            groups.setdefault(key(outcome), []).append(outcome)
    return groups


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share, method="higher")) if values else None
