"""What probes of one model must show, beside that they are seen (`outcome.blindness`). Pure: no I/O, no clock.

An objective is breached when the newest probes leave little doubt: shares by the end of their 95 % interval that is
kind to the model, times by their quantile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from streams.config import ObjectiveSettings
from streams.probes.outcome import RECENT_UNITS, answer_ms, faults, robustness, together, wilson
from streams.store.messages import ProbeOutcome

Objective = Literal["latency", "robust-accuracy", "model-errors", "model-latency", "false-alarms"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

#: Controls that the rate of false alarms is taken from.
RECENT_CONTROLS = 50
#: Probes whose calls to the model are judged together.
RECENT_PROBES = 20


def breaches(outcomes: Sequence[ProbeOutcome], wanted: ObjectiveSettings, min_units: int) -> dict[Objective, str]:
    """Objectives that are missed, each with what was found, in plain words.

    Parameters
    ----------
    outcomes : sequence of ProbeOutcome
        Oldest first.
    wanted : ObjectiveSettings
    min_units : int
        Probes before anything is judged.
    """
    sent = [outcome for outcome in outcomes if not outcome.abandoned]
    judged: dict[Objective, str | None] = {
        "latency": _latency(sent, wanted, min_units),
        "robust-accuracy": _robustness(sent, wanted, min_units),
        "model-errors": _errors(outcomes, wanted, min_units),
        "model-latency": _answers(outcomes, wanted, min_units),
        "false-alarms": _alarms(sent, wanted, min_units),
    }
    return {objective: reason for objective, reason in judged.items() if reason is not None}


def _latency(sent: Sequence[ProbeOutcome], wanted: ObjectiveSettings, least: int) -> str | None:
    times = [outcome.latency_ms for outcome in sent if outcome.latency_ms is not None][-RECENT_UNITS:]
    if wanted.latency_ms is None or len(times) < least:
        return None
    slow = sum(time > wanted.latency_ms for time in times)
    if 2 * slow <= len(times):
        return None
    return f"{slow} of the last {len(times)} detected probes took longer than {wanted.latency_ms:g} ms to their alert"


def _robustness(sent: Sequence[ProbeOutcome], wanted: ObjectiveSettings, least: int) -> str | None:
    if wanted.robust_accuracy is None:
        return None
    worst: tuple[float, str] | None = None
    kinds = {(outcome.attack, outcome.threat) for outcome in sent if outcome.fooled is not None}
    for attack, threat in sorted(kinds):
        units = [one for one in sent if (one.attack, one.threat) == (attack, threat) and one.fooled is not None]
        units = units[-RECENT_UNITS:]
        held = robustness(units)
        if held is None or len(units) < least:
            continue
        low, high = wilson(*held)
        if high < wanted.robust_accuracy and (worst is None or high < worst[0]):
            share = (
                f"{held[0] / held[1]:.0%} of {held[1]} rows crafted by {attack} under {threat!r} are answered as "
                f"before (95 % interval {low:.0%} to {high:.0%}, objective {wanted.robust_accuracy:.0%})"
            )
            worst = high, share
    return None if worst is None else worst[1]


def _errors(outcomes: Sequence[ProbeOutcome], wanted: ObjectiveSettings, least: int) -> str | None:
    asked = [outcome for outcome in outcomes if outcome.answers.calls][-RECENT_PROBES:]
    if wanted.model_error_rate is None or len(asked) < least:
        return None
    whole = together(outcome.answers for outcome in asked)
    failed = min(faults(whole), whole.calls)
    if wilson(failed, whole.calls)[0] <= wanted.model_error_rate:
        return None
    return (
        f"the model failed {failed} of {whole.calls} calls of probes ({whole.crashes} crashes, {whole.timeouts} too "
        f"late, {whole.not_finite} not finite, {whole.unusable} unusable, {whole.wrong} wrong; objective "
        f"{wanted.model_error_rate:.1%})"
    )


def _answers(outcomes: Sequence[ProbeOutcome], wanted: ObjectiveSettings, least: int) -> str | None:
    asked = [outcome for outcome in outcomes if outcome.answers.calls][-RECENT_PROBES:]
    if wanted.model_latency_ms is None or len(asked) < least:
        return None
    p99 = answer_ms(together(outcome.answers for outcome in asked).times, 0.99)
    if p99 is None or p99 <= wanted.model_latency_ms:
        return None
    return f"99 % of the model's answers to probes took up to {p99:.0f} ms (objective {wanted.model_latency_ms:g} ms)"


def _alarms(sent: Sequence[ProbeOutcome], wanted: ObjectiveSettings, least: int) -> str | None:
    controls = [outcome for outcome in sent if outcome.kind == "control"][-RECENT_CONTROLS:]
    if wanted.false_alarm_rate is None or len(controls) < least:
        return None
    paged = sum(control.detected for control in controls)
    if wilson(paged, len(controls))[0] <= wanted.false_alarm_rate:
        return None
    return f"{paged} of the last {len(controls)} benign controls were paged (objective {wanted.false_alarm_rate:.0%})"
