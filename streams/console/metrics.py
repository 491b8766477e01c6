"""Prometheus' text format (exposition format 0.0.4) of what the console knows."""

from __future__ import annotations

from collections.abc import Sequence

from streams.console.data import Overview

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]


def exposition(looks: Sequence[Overview]) -> str:
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
        ("vedette_probe_recall", "gauge", "Share of probes detected; of controls: paged falsely.", _recall(looks)),
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


def _recall(looks: Sequence[Overview]) -> list[Sample]:
    return [
        ({"model": look.model, "attack": probe.attack, "kind": probe.kind}, probe.recall)
        for look in looks
        for probe in look.probes
    ]


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
