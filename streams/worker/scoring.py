"""What happens to a fetch of one partition in the scoring thread: decode, recognise, score, count.

A function of the log and the bundle: no clock, no network, no Redis. Everything that is remembered between fetches
belongs to the partition and stands in its snapshots.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import ANONYMOUS, Batch, Level, PartitionState, Scorer, Signal, Verdicts
from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.events import decoder, options_for
from streams.events.batch import Codec, DeadLetter, DecodeOptions, InferenceBatch, Record
from streams.store.approvals import NOBODY, Approvals
from streams.store.keys import RULES
from streams.store.messages import LevelName, ProbeVerdict, ReasonMessage, SignalMessage
from streams.store.partition import Plan
from streams.worker.clock import Clock
from streams.worker.probes import Found, Probe, ProbeUses, find
from streams.worker.sources import Sources
from streams.worker.tally import Counters, Histograms

#: Probe clients are fresh and short-lived: the overlay that holds their history is small.
OVERLAY_CLIENTS = 256
OVERLAY_INDEX_ROWS = 256

_REAL, _PROBE, _EXCLUDED, _DUPLICATE, _EARLIER = 0, 1, 2, 3, 4
_KINDS = ("scored", "probes", "probes_excluded", "duplicates")


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """What scoring needs to know of the deployment."""

    topic: str
    model: str
    decode: DecodeOptions
    codec: Codec
    probe_key: bytes = field(repr=False)
    probe_ttl_us: int
    clients: int
    index_rows: int
    max_rows: int
    """Rows that are scored at once."""

    @classmethod
    def of(
        cls, settings: Settings, model: ModelSettings, schema: FeatureSchema, client_key: bytes, probe_key: bytes
    ) -> Self:
        """From the settings.

        Raises
        ------
        ConfigError
            No format is called as the model's.
        """
        return cls(
            topic=model.topic,
            model=model.name,
            decode=options_for(model, settings.worker, schema, client_key),
            codec=decoder(model.format),
            probe_key=probe_key,
            probe_ttl_us=round(settings.probes.mark_ttl_seconds * 1e6),
            clients=settings.worker.clients_per_partition,
            index_rows=settings.worker.index_rows,
            max_rows=settings.worker.max_batch_rows,
        )


@dataclass(slots=True)
class StageSeconds:
    """Cpu seconds of the scoring thread."""

    decode: float = 0.0
    score: float = 0.0
    count: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What one fetch did: `plan` is to be recorded, `dead` to be written to the dead-letter topic before."""

    plan: Plan
    last_time: int
    """Broker time of the last record, microseconds."""
    rows: int = 0
    records: int = 0
    signals: list[SignalMessage] = field(default_factory=list)
    verdicts: list[tuple[str, ProbeVerdict]] = field(default_factory=list)
    """With their entry ids in the stream."""
    dead: list[tuple[Record, DeadLetter]] = field(default_factory=list)
    seconds: StageSeconds = field(default_factory=StageSeconds)


class PartitionScoring:
    """Scores one partition's records in order and remembers what must be remembered.

    Parameters
    ----------
    scorer : Scorer
    options : ScoringOptions
    partition : int
    topic_id : str
        Stands in the ids of signals: the broker's id of the topic, or its name.
    bundle_from : int
        Offset from which this bundle decides.
    histograms : mapping of str to bytes
        Packed running histograms at the watermark.
    """

    def __init__(
        self,
        scorer: Scorer,
        options: ScoringOptions,
        partition: int,
        topic_id: str,
        bundle_from: int,
        histograms: Mapping[str, bytes] | None = None,
    ) -> None:
        self.scorer = scorer
        self.options = options
        self.partition = partition
        self.topic_id = topic_id
        self.bundle_from = bundle_from
        self.state: PartitionState = scorer.new_state(options.clients, options.index_rows)
        self.overlay: PartitionState = scorer.new_state(OVERLAY_CLIENTS, OVERLAY_INDEX_ROWS)
        self.clock = Clock()
        self.sources = Sources()
        self.uses = ProbeUses()
        self.histograms = Histograms(histograms or {})
        self.moved: Callable[[], object] = int  # does nothing
        """Called in the scoring thread whenever some rows of a fetch are scored."""

    def follow(self, records: Sequence[Record]) -> None:
        """Advance the state over records whose effects are recorded already."""
        self._advance(records, StageSeconds())

    def step(self, records: Sequence[Record], base: int, *, pilot: bool, approvals: Approvals = NOBODY) -> Outcome:
        """Score records and tell what is to be recorded of them.

        Parameters
        ----------
        records : sequence of Record
            Consecutive, at least one.
        base : int
            Offset up to which the log was scored before.
        pilot : bool
            Pages are recorded as tickets that would have been pages.
        approvals : Approvals
            Repeaters whose near-duplicates are recorded as tickets. The state does not depend on them, nor on `pilot`.
        """
        seconds = StageSeconds()
        work = self._advance(records, seconds)
        began = time.thread_time()
        last = records[-1]
        plan = Plan(base, last.offset + 1)
        plan.mark = {
            "bundle": self.scorer.digest,
            "bundle_from": str(self.bundle_from),
            "identity": identity(last),
            "time": str(self.clock.traffic),
        }
        for part, verdicts in zip(work.parts, work.verdicts, strict=True):
            self.histograms.add(verdicts, part)
        signals = self._signals(work, pilot, approvals)
        counters = self._count(records, work, signals)
        plan.minutes, plan.hours, plan.totals = counters.minutes, counters.hours(), counters.totals()
        if work.verdicts:
            plan.histograms = self.histograms.changed()
        ttl = self.options.probe_ttl_us
        plan.uses = {
            probe.mark.id: f"{probe.offset}-{probe.row}:{probe.mark.issued + ttl}"
            for probe in work.found.probes
            if probe.status == "scored"
        }
        for gone in work.expired:
            plan.uses.pop(gone, None)
        plan.expired = work.expired
        seconds.count += time.thread_time() - began
        return Outcome(
            plan=plan,
            last_time=int(work.record_times[-1]),
            rows=len(work.batch) + sum(_rows(letter) for letter in work.batch.dead),
            records=len(records),
            signals=signals,
            verdicts=self._verdicts(work),
            dead=_dead_records(records, work.batch.dead),
            seconds=seconds,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything that is remembered, as named arrays (views where they can be)."""
        found: dict[str, NDArray[np.generic]] = {
            "clock": np.array([self.clock.last, self.clock.traffic], dtype=np.int64)
        }
        for prefix, part in self._parts().items():
            found |= {f"{prefix}.{name}": array for name, array in part.arrays().items()}
        return found

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """The inverse of `arrays`.

        Raises
        ------
        ValueError, KeyError
            The arrays do not fit this bundle or this version.
        """
        for name, part in (("real", self.state), ("overlay", self.overlay)):
            part.load(_part(arrays, name))
        self.load_ledger(arrays)

    def load_ledger(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Load only what does not depend on the bundle: time, source coordinates, uses of probes.

        Raises
        ------
        KeyError
        """
        self.sources.load(_part(arrays, "sources"))
        self.uses.load(_part(arrays, "uses"))
        self.clock = Clock(*arrays["clock"].tolist())

    @staticmethod
    def is_ledger(name: str) -> bool:
        """Whether `load_ledger` needs the array of that name."""
        return name.partition(".")[0] in ("clock", "sources", "uses")

    def _parts(self) -> dict[str, PartitionState | Sources | ProbeUses]:
        return {"real": self.state, "overlay": self.overlay, "sources": self.sources, "uses": self.uses}

    def _advance(self, records: Sequence[Record], seconds: StageSeconds) -> _Work:
        began = time.thread_time()
        options = self.options
        decoded = options.codec.decode(records, options.decode)
        record_times = self.clock.stamp(records)
        times = _row_times(decoded, records, record_times)
        decided = time.thread_time()
        seconds.decode += decided - began
        kinds = np.zeros(len(decoded), dtype=np.uint8)
        repeated = self.sources.repeated(decoded)
        if repeated is not None:
            kinds[repeated] = _DUPLICATE
        found = Found((), ())
        if decoded.requests:
            found = find(
                decoded, times, self.uses, options.topic, self.partition, options.probe_ttl_us, options.probe_key
            )
            for probe in found.probes:
                rows = kinds[probe.start : probe.stop]
                rows[rows == _REAL] = _PROBE if probe.status == "scored" else _EXCLUDED
        traffic_times = self.clock.without(records, record_times, found.offsets)
        if traffic_times is not record_times:
            record_times, times = traffic_times, _row_times(decoded, records, traffic_times)
        earlier = len(decoded) > 0 and int(decoded.offsets[0]) < self.bundle_from
        if earlier:  # another bundle decided there
            kinds[decoded.offsets < self.bundle_from] = _EARLIER
        work = _Work(decoded, kinds, times, record_times, found, self.uses.forget(self.clock.last))
        whole = Batch(
            inputs=decoded.inputs,
            labels=decoded.labels,
            clients=decoded.clients,
            times=times,
            offsets=decoded.offsets,
            rows=decoded.rows,
            outputs=decoded.outputs,
            embeddings=decoded.embeddings,
        )
        if found.probes or earlier or repeated is not None:
            work.real = whole.take(kinds == _REAL)
            crafted = whole.take(kinds == _PROBE)
            if len(crafted):
                work.probes = crafted, self.scorer.score(crafted, self.overlay)
        else:
            work.real = whole
        for start in range(0, len(work.real), options.max_rows):
            few = len(work.real) <= options.max_rows
            part = work.real if few else work.real.take(slice(start, start + options.max_rows))
            work.parts.append(part)
            work.verdicts.append(self.scorer.score(part, self.state))
            self.moved()
        seconds.score += time.thread_time() - decided
        return work

    def _signals(self, work: _Work, pilot: bool, approvals: Approvals) -> list[SignalMessage]:
        loudest: dict[tuple[int, int, int], SignalMessage] = {}
        for part, verdicts in zip(work.parts, work.verdicts, strict=True):
            for signal in sorted(verdicts.signals, key=lambda one: one.level):
                message = self._signal(part, signal, pilot, approvals)
                loudest[message.offset, message.row, RULES.index(message.rule)] = message
        return [loudest[place] for place in sorted(loudest)]

    def _signal(self, part: Batch, signal: Signal, pilot: bool, approvals: Approvals) -> SignalMessage:
        offset, row = int(part.offsets[signal.row]), int(part.rows[signal.row])
        excused = approvals.excuse(signal, int(part.times[signal.row]))
        pages = signal.level == Level.PAGE and not excused
        level: LevelName = "page" if pages and not pilot else "ticket"
        partition = self.partition
        # The anonymous stay in the list: a cluster of theirs in which one client stands is not that client's.
        clients = dict.fromkeys(f"{client:016x}" for client in signal.member_clients.tolist())
        return SignalMessage(
            id=f"{self.topic_id}/{partition}/{offset}/{row}/{signal.rule}",
            model=self.options.model,
            topic=self.options.topic,
            partition=partition,
            offset=offset,
            row=row,
            time=int(part.times[signal.row]),
            at=0,
            rule=signal.rule,
            level=level,
            technique=signal.technique,
            entity=signal.entity,
            entity_id=signal.entity_id,
            statistic=_finite(signal.statistic),
            threshold=_finite(signal.threshold),
            reasons=[
                ReasonMessage(detector=r.detector, p=_finite(r.pvalue), text=r.text, extrapolated=r.extrapolated)
                for r in signal.reasons
            ],
            members=[(int(offset), int(row)) for offset, row in signal.members.tolist()],
            clients=list(clients),
            input=[float(x) for x in signal.input],
            nearest=[float(x) for x in signal.nearest],
            label=int(signal.label),
            nearest_label=int(signal.nearest_label),
            measures={name: _finite(value) for name, value in signal.measures.items()},
            bundle=self.scorer.digest,
            pilot=pages and pilot,
            repeater=excused,
        )

    def _count(self, records: Sequence[Record], work: _Work, signals: Sequence[SignalMessage]) -> Counters:
        counters = Counters()
        counters.add("records", work.record_times)
        counters.add("rows", work.times)
        if work.real is not None and len(work.real) == len(work.kinds):
            counters.add("scored", work.times)
            counters.add("anonymous", work.times, work.batch.clients == ANONYMOUS)
        else:
            for kind, name in enumerate(_KINDS):
                counters.add(name, work.times, work.kinds == kind)
            counters.add("anonymous", work.times, (work.kinds == _REAL) & (work.batch.clients == ANONYMOUS))
        if work.batch.dead:
            time_of = {record.offset: int(at) for record, at in zip(records, work.record_times, strict=True)}
            for letter in work.batch.dead:
                counters.add_one("rows", time_of[letter.offset], _rows(letter))
                counters.add_one("invalid", time_of[letter.offset], _rows(letter))
        for row in work.found.invalid:
            counters.add_one("invalid_marks", int(work.times[row]))
        for probe in work.found.probes:
            if probe.status != "scored":
                rows = work.kinds[probe.start : probe.stop]
                counters.add_one(f"probes_{probe.status}", probe.time, int(np.count_nonzero(rows == _EXCLUDED)))
        for signal in signals:
            counters.add_one("signals", signal.time)
            counters.add_one("pages" if signal.level == "page" else "tickets", signal.time)
            if signal.pilot:
                counters.add_one("pilot_pages", signal.time)
            if signal.repeater:
                counters.add_one("repeater_pages", signal.time)
        return counters

    def _verdicts(self, work: _Work) -> list[tuple[str, ProbeVerdict]]:
        if not work.found.probes:
            return []
        messages = []
        scored_before = np.cumsum(np.concatenate([[0], work.kinds == _PROBE]))
        for probe in work.found.probes:
            if np.all(work.kinds[probe.start : probe.stop] == _DUPLICATE):
                continue
            first, last = int(scored_before[probe.start]), int(scored_before[probe.stop])
            messages.append((f"{probe.offset + 1}-{probe.row}", self._verdict(probe, work, first, last)))
        return messages

    def _verdict(self, probe: Probe, work: _Work, first: int, last: int) -> ProbeVerdict:
        level, ratio, fused = int(Level.SILENT), 0.0, 1.0
        pvalues: dict[str, float] = {}
        if last > first and work.probes is not None:
            verdicts = work.probes[1]
            # The index of all accounts would see the campaigns of earlier probes: only the client's own tests count.
            own = [place for place, test in enumerate(verdicts.tests) if not test.startswith("index-")]
            ratio = _finite(verdicts.statistics[first:last, own].max(initial=0.0))
            mine = (s.level for s in verdicts.signals if first <= s.row < last and not s.of_index)
            level = int(max(mine, default=Level.SILENT))
            fused = _finite(verdicts.fused[first:last].min())
            smallest = verdicts.pvalues[first:last].min(axis=0).tolist()
            pvalues = dict(zip(verdicts.detectors, smallest, strict=True))
        rows = int(np.count_nonzero(work.kinds[probe.start : probe.stop] != _DUPLICATE))
        return ProbeVerdict(
            probe=probe.mark.id,
            status=probe.status,
            partition=self.partition,
            offset=probe.offset,
            rows=rows,
            time=probe.time,
            at=0,
            issued=probe.mark.issued,
            level=level,
            ratio=ratio,
            pvalues=pvalues,
            fused=fused,
        )


@dataclass(slots=True)
class _Work:
    batch: InferenceBatch
    kinds: NDArray[np.uint8]
    times: NDArray[np.int64]
    record_times: NDArray[np.int64]
    found: Found
    expired: list[str]
    real: Batch | None = None
    probes: tuple[Batch, Verdicts] | None = None
    parts: list[Batch] = field(default_factory=list)
    verdicts: list[Verdicts] = field(default_factory=list)


def identity(record: Record) -> str:
    """What a record is recognised by: offset, timestamp, and checksum of its value."""
    return f"{record.offset}:{record.timestamp}:{zlib.crc32(record.value or b''):08x}"


def _row_times(batch: InferenceBatch, records: Sequence[Record], record_times: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(batch) == len(records) and not batch.dead and not batch.rows.any():
        return record_times  # one row a record
    offsets = np.array([record.offset for record in records], dtype=np.int64)
    return record_times[np.searchsorted(offsets, batch.offsets)]


def _part(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    start = f"{prefix}."
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}


def _finite(value: float) -> float:
    """A number that JSON can hold."""
    return float(np.nan_to_num(value))


def _rows(letter: DeadLetter) -> int:
    return 1 if letter.rows is None else len(letter.rows)


def _dead_records(records: Sequence[Record], dead: Sequence[DeadLetter]) -> list[tuple[Record, DeadLetter]]:
    if not dead:
        return []
    by_offset = {record.offset: record for record in records}
    return [(by_offset[letter.offset], letter) for letter in dead]
