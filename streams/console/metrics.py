"""Prometheus' text format (exposition format 0.0.4) of what the console knows."""

from __future__ import annotations

from collections.abc import Sequence

from streams.console.data import Overview
from streams.console.deliveries import Deliveries
from streams.probes.outcome import together
from streams.store.messages import INQUIRY_OUTCOMES, QUESTIONS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]


def exposition(looks: Sequence[Overview], out: Sequence[Deliveries] = ()) -> str:
    """One text over all models; no label is unbounded."""
    families: list[tuple[str, str, str, list[Sample]]] = [
        ("vedette_rows_total", "counter", "Rows that workers recorded, by what became of them.", _rows(looks)),
        ("vedette_lag_records", "gauge", "Records not yet recorded, over all living workers.", _lags(looks)),
        ("vedette_workers", "gauge", "Living workers.", [({"model": look.model}, len(look.workers)) for look in looks]),
        (
            "vedette_partitions_without_worker",
            "gauge",
            "Partitions that no living worker holds.",
            [({"model": look.model}, len(look.orphans)) for look in looks],
        ),
        ("vedette_incidents_open", "gauge", "Incidents that nobody has resolved.", _open(looks)),
        (
            "vedette_monitoring_blind",
            "gauge",
            "1 while probes are not seen.",
            [({"model": look.model}, float(look.blind is not None)) for look in looks],
        ),
        (
            "vedette_pages_week",
            "gauge",
            "Pages about traffic within the last week, by whether they were false alarms.",
            [
                ({"model": look.model, "false": false}, count)
                for look in looks
                for false, count in (
                    ("true", look.week_false_pages),
                    ("false", look.week_pages - look.week_false_pages),
                )
            ],
        ),
        (
            "vedette_page_budget",
            "gauge",
            "False pages a week that the bundle in force was calibrated for.",
            [({"model": look.model}, look.page_budget) for look in looks if look.page_budget is not None],
        ),
        (
            "vedette_calibration_stale",
            "gauge",
            "1 while the calibration of the bundle in force is marked as stale.",
            [({"model": look.model}, float(look.calibration is not None and look.calibration.stale)) for look in looks],
        ),
        (
            "vedette_calibration_drift_evidence",
            "gauge",
            "Decimal logarithm of the largest wealth of the drift watch in its week; the mark is raised at 1.7.",
            [({"model": look.model}, look.calibration.log10_wealth) for look in looks if look.calibration is not None],
        ),
        (
            "vedette_calibration_clients",
            "gauge",
            "Clients of the week that crossed a threshold; more than `limit` raise the mark.",
            _crossings(looks),
        ),
        ("vedette_probe_recall", "gauge", "Share of probes detected; of controls: paged falsely.", _recall(looks)),
        (
            "vedette_probe_robust_accuracy",
            "gauge",
            "Share of crafted rows that the model answers as before.",
            [(labels, value) for labels, value in _probes(looks, "robust_accuracy") if value is not None],
        ),
        (
            "vedette_probe_finished_timestamp_seconds",
            "gauge",
            "When a probe finished last.",
            [
                ({"model": look.model}, max(probe.updated for probe in look.probes) / 1e6)
                for look in looks
                if look.probes
            ],
        ),
        (
            "vedette_probe_model_calls",
            "gauge",
            "Calls to the model's endpoint by the probes that recall is taken from, by how they ended.",
            _answers(looks),
        ),
        ("vedette_recorded_signals_total", "counter", "Signals that workers recorded, by level.", _signals(looks)),
        (
            "vedette_escalation_rows_total",
            "counter",
            "Rows that the watched model was to be asked again about, by what became of them.",
            _escalated(looks),
        ),
        (
            "vedette_escalation_questions_total",
            "counter",
            "Rows that the escalation tier asked the watched model about.",
            [({"model": look.model}, look.escalation[QUESTIONS]) for look in looks if QUESTIONS in look.escalation],
        ),
        ("vedette_alerts_length", "gauge", "Entries in the public stream of alerts.", _alerts(out)),
        ("vedette_alert_group_pending", "gauge", "Alerts handed out and not acknowledged.", _groups(out, "pending")),
        ("vedette_alert_group_waiting", "gauge", "Alerts that a group has not read yet.", _groups(out, "waiting")),
        ("vedette_notifications_total", "counter", "Attempts to notify, by how they ended.", _attempts(out)),
        ("vedette_notifications_open", "gauge", "Incidents, or groups, a destination knows.", _told(out, "known")),
        (
            "vedette_notifications_overdue_seconds",
            "gauge",
            "How long the oldest notification waits to be delivered.",
            _told(out, "overdue"),
        ),
        ("vedette_notifications_dead", "gauge", "Dead letters of notifications that are kept.", _told(out, "dead")),
        ("vedette_notifications_failures", "gauge", "Failures of a destination in a row.", _told(out, "failures")),
    ]
    lines = []
    for name, kind, text, samples in families:
        if samples:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{{{_labels(labels)}}} {value:.15g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _rows(looks: Sequence[Overview]) -> list[Sample]:
    kinds = ("scored", "probes", "probes_excluded", "invalid", "duplicates")
    return [({"model": look.model, "as": kind}, look.totals[kind]) for look in looks for kind in kinds]


def _lags(looks: Sequence[Overview]) -> list[Sample]:
    return [({"model": look.model}, look.lag) for look in looks if look.lag is not None]


def _open(looks: Sequence[Overview]) -> list[Sample]:
    return [
        ({"model": look.model, "level": level}, count)
        for look in looks
        for level, count in (("page", look.open_pages), ("ticket", look.open_tickets))
    ]


def _crossings(looks: Sequence[Overview]) -> list[Sample]:
    found: list[Sample] = []
    for look in looks:
        if look.calibration is None:
            continue
        now = look.calibration
        for level, count, limit in (
            ("ticket", now.ticketed, now.ticket_limit),
            ("page", now.paged, now.page_limit),
        ):
            found.append(({"model": look.model, "level": level, "what": "count"}, count))
            if limit is not None:
                found.append(({"model": look.model, "level": level, "what": "limit"}, limit))
    return found


def _recall(looks: Sequence[Overview]) -> list[Sample]:
    return _probes(looks, "recall")


def _probes(looks: Sequence[Overview], which: str) -> list[Sample]:
    return [
        ({"model": look.model, "attack": probe.attack, "kind": probe.kind}, getattr(probe, which))
        for look in looks
        for probe in look.probes
    ]


def _answers(looks: Sequence[Overview]) -> list[Sample]:
    kinds = ("calls", "refused", "crashes", "timeouts", "not_finite", "unusable", "wrong")
    found = []
    for look in looks:
        whole = together(probe.answers for probe in look.probes)
        if whole.calls:
            found += [({"model": look.model, "ended": kind}, float(getattr(whole, kind))) for kind in kinds]
    return found


def _signals(looks: Sequence[Overview]) -> list[Sample]:
    kinds = (("page", "pages"), ("ticket", "tickets"))
    return [({"model": look.model, "level": level}, look.totals[name]) for look in looks for level, name in kinds]


def _escalated(looks: Sequence[Overview]) -> list[Sample]:
    return [
        ({"model": look.model, "outcome": outcome}, look.escalation.get(outcome, 0))
        for look in looks
        if look.escalation
        for outcome in INQUIRY_OUTCOMES
    ]


def _alerts(out: Sequence[Deliveries]) -> list[Sample]:
    return [({"model": one.model}, one.alerts) for one in out]


def _groups(out: Sequence[Deliveries], which: str) -> list[Sample]:
    return [
        ({"model": one.model, "group": group.name}, getattr(group, which))
        for one in out
        for group in one.groups
        if getattr(group, which) is not None
    ]


def _attempts(out: Sequence[Deliveries]) -> list[Sample]:
    return [
        ({"model": one.model, "destination": there.name, "outcome": outcome}, count)
        for one in out
        for there in one.destinations
        for outcome, count in there.attempts.items()
    ]


def _told(out: Sequence[Deliveries], which: str) -> list[Sample]:
    return [
        ({"model": one.model, "destination": there.name}, getattr(there, which))
        for one in out
        for there in one.destinations
    ]


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
