"""What a worker counts about itself, and its Prometheus text."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streams.worker.scoring import Outcome

#: Upper bounds of the buckets of durations, seconds.
BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Batches that percentiles are taken over.
RECENT_BATCHES = 1000
Labels = tuple[tuple[str, str], ...]

#: What may become of a row.
OUTCOMES = ("scored", "probes", "probes_excluded", "invalid", "duplicates")

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Durations:
    """A histogram of seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count one duration, so many times."""
        self.counts[bisect_left(BOUNDS_SECONDS, seconds)] += times
        self.total += seconds * times


@dataclass(slots=True)
class Metrics:
    """Counts since the start of the process; readers may look at them at any time."""

    rows: int = 0
    records: int = 0
    replayed: int = 0
    fenced: int = 0
    snapshots: int = 0
    snapshot_seconds: float = 0.0
    invalid_marks: int = 0
    expired: int = 0
    rows_by: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    dead: dict[str, int] = field(default_factory=dict)
    signals: dict[tuple[str, str], int] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "score": 0.0, "count": 0.0})
    record_seconds: Durations = field(default_factory=Durations)
    verdict_age: Durations = field(default_factory=Durations)
    signal_age: Durations = field(default_factory=Durations)
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_BATCHES))

    def recorded(self, outcome: Outcome, record_seconds: float, now_us: int) -> None:
        """Count a fetch that is recorded."""
        self.rows += outcome.rows
        self.records += outcome.records
        totals = outcome.plan.totals
        for name in self.rows_by:
            self.rows_by[name] += totals.get(name, 0)
        self.invalid_marks += totals.get("invalid_marks", 0)
        self.expired += totals.get("expired", 0)
        for _, letter in outcome.dead:
            reason = str(letter.reason)
            self.dead[reason] = self.dead.get(reason, 0) + 1
        for signal in outcome.signals:
            kind = (signal.rule, str(signal.level))
            self.signals[kind] = self.signals.get(kind, 0) + 1
            self.signal_age.add(max(0.0, (now_us - signal.time) / 1e6))
        seconds = outcome.seconds
        self.cpu_seconds["decode"] += seconds.decode
        self.cpu_seconds["score"] += seconds.score
        self.cpu_seconds["count"] += seconds.count
        self.record_seconds.add(record_seconds)
        if outcome.records:
            self.verdict_age.add(max(0.0, (now_us - outcome.last_time) / 1e6))
            self.recent_ms.append((record_seconds + seconds.decode + seconds.score + seconds.count) * 1000)

    def batch_ms_p99(self) -> float:
        """99th percentile of the time that a recent fetch took, waiting left out."""
        ordered = sorted(self.recent_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a worker stands now, beside its counts."""

    lag: Mapping[int, int]
    watermarks: Mapping[int, int]
    redis_up: bool
    broker_up: bool


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


def render(model: str, metrics: Metrics, standing: Standing) -> str:
    """Prometheus text, exposition format 0.0.4."""
    page = Page(model)
    counts = metrics
    page.family("vedette_records_total", "counter", "Records recorded.", {(): counts.records})
    page.family(
        "vedette_rows_total", "counter", "Rows recorded, by what became of them.", labelled("outcome", counts.rows_by)
    )
    page.family("vedette_dead_letters_total", "counter", "Dead letters written.", labelled("reason", counts.dead))
    marks = "Records whose probe mark is not right."
    page.family("vedette_invalid_marks_total", "counter", marks, {(): counts.invalid_marks})
    gone = "Records that the broker threw away before they were read."
    page.family("vedette_expired_records_total", "counter", gone, {(): counts.expired})
    signals: dict[Labels, float] = {}
    for (rule, level), count in sorted(counts.signals.items()):
        signals[("rule", rule), ("level", level)] = count
    page.family("vedette_signals_total", "counter", "Signals recorded.", signals)
    stages = labelled("stage", counts.cpu_seconds)
    page.family("vedette_stage_cpu_seconds_total", "counter", "Cpu time of the scoring thread.", stages)
    again = "Records read again to rebuild a state."
    page.family("vedette_replayed_records_total", "counter", again, {(): counts.replayed})
    page.family("vedette_fenced_total", "counter", "Record calls that were refused.", {(): counts.fenced})
    page.family("vedette_snapshots_total", "counter", "Snapshots published.", {(): counts.snapshots})
    writing = "Time from a snapshot's copy to its publication."
    page.family("vedette_snapshot_seconds_total", "counter", writing, {(): counts.snapshot_seconds})
    page.family("vedette_lag_records", "gauge", "Records not yet recorded.", labelled("partition", standing.lag))
    page.family(
        "vedette_watermark_offset", "gauge", "Next offset to record.", labelled("partition", standing.watermarks)
    )
    page.family("vedette_redis_up", "gauge", "Whether Redis answers.", {(): int(standing.redis_up)})
    page.family("vedette_broker_up", "gauge", "Whether the broker answers.", {(): int(standing.broker_up)})
    page.family("vedette_resident_memory_bytes", "gauge", "Resident memory.", {(): resident_bytes()})
    page.durations("vedette_record_seconds", "Time of a record call.", counts.record_seconds)
    age = "From broker time to record: the newest record of a fetch."
    page.durations("vedette_verdict_age_seconds", age, counts.verdict_age)
    page.durations("vedette_signal_age_seconds", "From broker time to record: rows of signals.", counts.signal_age)
    return page.text()


def labelled(label: str, counts: Mapping[str, float] | Mapping[int, int]) -> dict[Labels, float]:
    """Samples by one label."""
    return {((label, str(name)),): count for name, count in sorted(counts.items())}


class Page:
    """A page of metrics of one model, written family by family."""

    def __init__(self, model: str) -> None:
        self._lines: list[str] = []
        self._model = model

    def family(self, name: str, kind: str, text: str, samples: Mapping[Labels, float]) -> None:
        """Samples by their labels."""
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for labels, value in samples.items():
            self._sample(name, labels, value)

    def durations(self, name: str, text: str, found: Durations) -> None:
        """A histogram."""
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        count = 0
        for bound, here in zip((*BOUNDS_SECONDS, None), found.counts, strict=True):
            count += here
            self._sample(f"{name}_bucket", (("le", "+Inf" if bound is None else f"{bound:g}"),), count)
        self._sample(f"{name}_sum", (), found.total)
        self._sample(f"{name}_count", (), count)

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines) + "\n"

    def _sample(self, name: str, labels: Labels, value: float) -> None:
        spelled = ",".join(f'{label}="{text}"' for label, text in (("model", self._model), *labels))
        self._lines.append(f"{name}{{{spelled}}} {value!r}")
