"""`vedette replay`: an incident's events, read again from Kafka, through any bundle: what would have paged?

Answers two questions: was it real, and would the new bundle see it? The worker's own scoring runs over every record
from some way before the first query in evidence up to the last one, so probes, duplicates and other clients count as
they did then. Nothing is written anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detectors import bundle as bundles
from detectors.contract import ANONYMOUS
from detectors.errors import BundleError, DetectorError
from detectors.kernels import limit_blas_threads
from streams import config
from streams.config import ModelSettings, Settings
from streams.errors import BrokerError, BundleMismatch, ConfigError
from streams.events import warm_up
from streams.incidents.service import IncidentService, IncidentView
from streams.store.client import connect
from streams.store.messages import Incident, LevelName, SignalMessage
from streams.topics import client_options
from streams.training.telling import Telling
from streams.worker.scoring import PartitionScoring, ScoringOptions

#: Records before the first query in evidence that are read too: what the client and others did before counts.
WARM_UP_RECORDS = 2_000
#: Records of a partition that are read at most: the newest of them.
MOST_RECORDS = 200_000
BOOTSTRAP_MILLISECONDS = 5_000
#: A broker that gives nothing for so long is given up.
PATIENCE_SECONDS = 20.0
#: Signals that are listed at most.
SHOWN_SIGNALS = 20

Would = Literal["page", "ticket", "nothing"]


class Crossing(msgspec.Struct, frozen=True):
    """Where a level was reached first."""

    partition: int
    offset: int
    row: int
    time: int
    """Broker time, microseconds."""
    rule: str
    query: int
    """Which query of the incident's clients it was, from 1 on, over those that were read."""


class Replay(msgspec.Struct, frozen=True):
    """What a bundle makes of an incident's events."""

    incident: str
    model: str
    title: str
    level: LevelName
    """As it was recorded."""
    recorded_bundle: str
    recorded_signals: int
    bundle: str
    digest: str
    would: Would
    pages: int
    tickets: int
    """Signals about the incident's clients."""
    rules: dict[str, dict[str, int]]
    """Rule -> level -> signals about the incident's clients."""
    first_ticket: Crossing | None
    first_page: Crossing | None
    strongest: float
    """Largest statistic over its threshold among them; 0 without any."""
    queries: int
    """Rows of the incident's clients that were scored."""
    other_pages: int
    other_tickets: int
    """Signals about others in the same stretch of the log."""
    records: int
    signals: list[SignalMessage]
    """About the incident's clients, in the order of the log."""
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive offsets of one partition, `end` excluded."""

    partition: int
    start: int
    end: int
    first: int
    """Offset of the first query in evidence."""


def run(
    settings: Settings,
    model_name: str,
    incident: str,
    bundle: str | None = None,
    *,
    before: int = WARM_UP_RECORDS,
    most: int = MOST_RECORDS,
    as_json: bool = False,
) -> int:
    """The `vedette replay` command; returns 0.

    Raises
    ------
    UnknownIncident
    ConfigError
        The incident has no evidence that names records, or the client key is not set.
    BundleMismatch, BrokerError, StoreError
    """
    limit_blas_threads()
    model = settings.model(model_name)
    redis = connect(settings.redis)
    try:
        view = IncidentService(redis, model.name).show(incident)
    finally:
        redis.close()
    with Telling() as telling:
        found = replay(settings, model, view, bundle or model.bundle, before=before, most=most, telling=telling)
    if as_json:
        from streams.cli import print_json

        print_json(msgspec.to_builtins(found))
    else:
        _show(found, Console())
    return 0


def replay(
    settings: Settings,
    model: ModelSettings,
    view: IncidentView,
    bundle: str,
    *,
    before: int = WARM_UP_RECORDS,
    most: int = MOST_RECORDS,
    telling: Telling | None = None,
) -> Replay:
    """Score the events of an incident again.

    Parameters
    ----------
    bundle : str
        Path of the bundle that decides.
    before : int
        Records before the first query in evidence that are read too.
    most : int
        Records of each partition that are read at most.

    Raises
    ------
    ConfigError, BundleMismatch, BrokerError
    """
    tell = telling or (lambda *_: None)
    incident = view.incident
    wanted = stretches(view.evidence, before, most)
    if not wanted:
        raise ConfigError(
            f"incident {incident.id} has no evidence that names records: it expired, or it is about monitoring"
        )
    notes: list[str] = []
    tell("loading the bundle", 0.0)
    try:
        scorer = bundles.load(bundle)
    except BundleError as refusal:
        raise BundleMismatch(str(refusal)) from None
    scorer.warm_up()
    warm_up(model.format, scorer.schema)
    options = ScoringOptions.of(
        settings, model, scorer.schema, config.secret(settings, "client"), _probe_key(settings, notes)
    )
    about = _About(incident)
    signals: list[SignalMessage] = []
    others: list[SignalMessage] = []
    records = 0
    for place, stretch in enumerate(wanted):
        scoring = PartitionScoring(scorer, options, stretch.partition, model.topic, 0)
        for batch in _records(settings, model.topic, stretch, notes):
            tell(f"scoring partition {stretch.partition}", (place + 0.5) / len(wanted))
            try:
                outcome = scoring.step(batch, batch[0].offset, pilot=False)
            except DetectorError as refusal:
                raise BundleMismatch(f"{bundle} does not fit the events: {refusal}") from None
            records += len(batch)
            for signal in outcome.signals:
                (signals if about.concerns(signal) else others).append(signal)
            about.count(scoring, batch)
    if about.clients and not about.queries and records:
        notes.append("no row of the incident's clients was found: is the client key the one of then?")
    told = dict(incident.rules)
    return Replay(
        incident=incident.id,
        model=model.name,
        title=incident.title,
        level=incident.level,
        recorded_bundle=incident.bundle,
        recorded_signals=sum(told.values()),
        bundle=bundle,
        digest=scorer.digest,
        would=_would(signals),
        pages=_levels(signals, "page"),
        tickets=_levels(signals, "ticket"),
        rules=_rules(signals),
        first_ticket=about.crossing(signals, ("ticket", "page")),
        first_page=about.crossing(signals, ("page",)),
        strongest=max((_ratio(signal) for signal in signals), default=0.0),
        queries=about.queries,
        other_pages=_levels(others, "page"),
        other_tickets=_levels(others, "ticket"),
        records=records,
        signals=signals,
        notes=notes,
    )


def stretches(signals: Iterable[SignalMessage], before: int, most: int) -> list[Stretch]:
    """Which records to read, a stretch for each partition."""
    places: dict[int, list[int]] = {}
    for signal in signals:
        places.setdefault(signal.partition, []).extend([signal.offset, *(offset for offset, _ in signal.members)])
    found = []
    for partition, offsets in sorted(places.items()):
        first, end = min(offsets), max(offsets) + 1
        found.append(Stretch(partition, max(0, first - before, end - most), end, first))
    return found


class _About:
    """Which signals and rows belong to the incident."""

    def __init__(self, incident: Incident) -> None:
        self._incident = incident
        self.clients = {int(client, 16) for client in incident.clients if _is_hash(client)}
        self._places: dict[int, list[tuple[int, int]]] = {}

    @property
    def queries(self) -> int:
        """Rows of the incident's clients."""
        return sum(map(len, self._places.values()))

    def concerns(self, signal: SignalMessage) -> bool:
        """Whether a signal is about the incident's clients, or about nobody that is known where the incident is too."""
        known = {int(client, 16) for client in signal.clients}
        if signal.entity == "client" and _is_hash(signal.entity_id):
            known.add(int(signal.entity_id, 16))
        if self.clients:
            return bool(known & self.clients)
        return signal.entity == self._incident.entity

    def count(self, scoring: PartitionScoring, records: Sequence[Any]) -> None:
        """Count the incident's rows among records, for what number a query has."""
        decoded = scoring.options.codec.decode(records, scoring.options.decode)
        wanted = np.array(sorted(self.clients or {ANONYMOUS}), dtype=np.uint64)
        mine = np.isin(decoded.clients, wanted)
        places = zip(decoded.offsets[mine].tolist(), decoded.rows[mine].tolist(), strict=True)
        self._places.setdefault(scoring.partition, []).extend(places)

    def crossing(self, signals: Sequence[SignalMessage], levels: Sequence[LevelName]) -> Crossing | None:
        """The first signal of these levels, by broker time."""
        fitting = [signal for signal in signals if signal.level in levels]
        if not fitting:
            return None
        first = min(fitting, key=lambda signal: (signal.time, signal.partition, signal.offset, signal.row))
        places = self._places.get(first.partition, [])
        query = sum(place <= (first.offset, first.row) for place in places)
        return Crossing(first.partition, first.offset, first.row, first.time, first.rule, query)


def _records(settings: Settings, topic: str, stretch: Stretch, notes: list[str]) -> Iterator[list[Any]]:
    """Records of a stretch in order, some at a time; what is no longer kept is told."""
    try:
        consumer = KafkaConsumer(
            **client_options(settings.kafka),
            group_id=None,
            enable_auto_commit=False,
            bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS,
            client_id="vedette-replay",
            max_poll_records=settings.worker.max_batch_rows,
        )
    except KafkaError as error:
        raise BrokerError(f"no Kafka broker answers at {settings.kafka.bootstrap}: {error}") from None
    try:
        if stretch.partition not in (consumer.partitions_for_topic(topic) or ()):
            notes.append(f"partition {stretch.partition} of topic {topic} is gone")
            return
        place = TopicPartition(topic, stretch.partition)
        consumer.assign([place])
        oldest, newest = consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]
        if oldest > stretch.first:
            notes.append(f"partition {stretch.partition}: records before offset {oldest} are no longer kept")
        position, end = max(stretch.start, oldest), min(stretch.end, newest)
        consumer.seek(place, position)
        until = time.monotonic() + PATIENCE_SECONDS
        while position < end:
            batch = [one for one in consumer.poll(timeout_ms=500).get(place, ()) if one.offset < end]
            position = consumer.position(place)
            if batch:
                until = time.monotonic() + PATIENCE_SECONDS
                yield batch
            elif time.monotonic() >= until:
                raise BrokerError(f"the broker gives no record of {topic}/{stretch.partition} from {position} on")
    except KafkaError as error:
        raise BrokerError(f"cannot read {topic} at {settings.kafka.bootstrap}: {error}") from None
    finally:
        consumer.close()


def _probe_key(settings: Settings, notes: list[str]) -> bytes:
    try:
        return config.secret(settings, "probe")
    except ConfigError:
        if settings.secrets.probe_key_file is not None:
            raise
        notes.append("no probe key is set, so probes in this stretch count as traffic")
        return bytes(config.KEY_BYTES["probe"])


def _would(signals: Sequence[SignalMessage]) -> Would:
    levels = {signal.level for signal in signals}
    return "page" if "page" in levels else "ticket" if levels else "nothing"


def _levels(signals: Iterable[SignalMessage], level: LevelName) -> int:
    return sum(signal.level == level for signal in signals)


def _rules(signals: Iterable[SignalMessage]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for signal in signals:
        counts = found.setdefault(signal.rule, {})
        counts[signal.level] = counts.get(signal.level, 0) + 1
    return found


def _ratio(signal: SignalMessage) -> float:
    return signal.statistic / signal.threshold if signal.threshold > 0 else signal.statistic


def _is_hash(text: str) -> bool:
    return len(text) == 16 and all(digit in "0123456789abcdef" for digit in text)


def _show(found: Replay, console: Console) -> None:
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    words = {"page": "page", "ticket": "open a ticket, not page", "nothing": "stay silent"}
    verdict = Text(f"this bundle would {words[found.would]}", style="bold red" if found.would == "page" else "bold")
    rows: list[tuple[str, str | Text]] = [
        ("incident", f"{found.incident}: {found.title}"),
        ("recorded", f"{found.level}, {found.recorded_signals:,} signals, bundle {found.recorded_bundle[:12]}"),
        ("bundle", f"{found.bundle} ({found.digest[:12]})" + same(found)),
        ("read", f"{found.records:,} records, {found.queries:,} queries of the incident's clients"),
        ("now", verdict),
        ("first ticket", _crossing(found.first_ticket)),
        ("first page", _crossing(found.first_page)),
        ("signals", ", ".join(_counted(rule, counts) for rule, counts in found.rules.items()) or "none"),
        ("strongest", f"{found.strongest:.2f} times its threshold" if found.signals else "–"),
        ("about others", f"{found.other_pages:,} pages, {found.other_tickets:,} tickets in the same stretch"),
        *(("note", note) for note in found.notes),
    ]
    for name, value in rows:
        facts.add_row(name, value if isinstance(value, Text) else Text(value))
    console.print(facts)
    if not found.signals:
        return
    table = Table("when (UTC)", "level", "rule", "place", "strength", "why", box=None, pad_edge=False)
    for signal in found.signals[:SHOWN_SIGNALS]:
        why = "; ".join(reason.text for reason in signal.reasons)
        cells = (_moment(signal.time), signal.level, signal.rule, f"{signal.partition}/{signal.offset}/{signal.row}")
        style = "bold red" if signal.level == "page" else "yellow"
        table.add_row(*cells, f"{_ratio(signal):.2f}", Text(why, overflow="ellipsis", no_wrap=True), style=style)
    console.print(table)
    if len(found.signals) > SHOWN_SIGNALS:
        console.print(f"and {len(found.signals) - SHOWN_SIGNALS:,} more (--json lists all)")


def same(found: Replay) -> str:
    """Whether it is the bundle that decided then."""
    return ", the one that decided then" if found.digest == found.recorded_bundle else ", another than then"


def _counted(rule: str, counts: dict[str, int]) -> str:
    return f"{rule}: " + " and ".join(f"{count:,} {level}s" for level, count in sorted(counts.items()))


def _crossing(one: Crossing | None) -> str:
    if one is None:
        return "none"
    where = f"{one.partition}/{one.offset}/{one.row}"
    return f"at query {one.query:,} of the incident's clients, by {one.rule}, {_moment(one.time)} UTC, {where}"


def _moment(microseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(microseconds / 1e6))
