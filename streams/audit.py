"""`vedette audit`: an independent reader counts the raw topic again and proves that no row was lost or counted twice.

Independent means: another Kafka client than the worker's, every record read from where recording began (nothing is
concluded from offsets), and rows counted by a small parser of its own instead of the codecs. Per partition

    rows = scored + probes + probes_excluded + invalid + duplicates

must hold between the topic, its dead letters and the totals in Redis, up to the watermark that was stored in the same
transaction as these totals.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError
from redis import Redis
from rich.console import Console
from rich.table import Table

from streams.config import Settings
from streams.errors import BrokerError, MissingTopic, StoreError, UnreadableRecord
from streams.store.keys import PartitionKeys
from streams.topics import DEAD_SUFFIX, client_options

#: The raw read ends with an error when the broker gives nothing for so long although records are missing.
IDLE_SECONDS = 30.0
#: Pause between two looks at the watermarks while waiting for the worker.
POLL_SECONDS = 0.1
#: Milliseconds that one poll of the broker may take.
POLL_MILLISECONDS = 500
#: The first contact with the broker may take so long.
BOOTSTRAP_MILLISECONDS = 5_000
#: First bytes of an Arrow IPC stream: the continuation marker.
ARROW = b"\xff\xff\xff\xff"
#: Record header of the Open Inference Protocol's binary extension: length of the JSON before the raw tensors.
OIP_HEADER = "inference-header-content-length"
#: Headers of a dead letter: where the record stood, and which of its rows were refused (all: ``*``).
SOURCE_HEADER, ROWS_HEADER = "vedette-source", "vedette-rows"
#: Totals in Redis that rows end in.
COUNTERS = ("records", "rows", "scored", "probes", "probes_excluded", "invalid", "duplicates")

Coordinates = list[tuple[int, int, int]]
"""(source partition, source offset, source row) of each row of a compact record."""


class Unreadable(Exception):
    """The audit's own parser finds no rows in a record."""


@dataclass(slots=True)
class PartitionAudit:
    """One partition: what the topic holds, what Redis says, and what is wrong."""

    partition: int
    watermark: int
    """Every record below this offset must be accounted for,"""
    since: int = 0
    """and from this one on: where recording began."""
    records: int = 0
    rows: int = 0
    """Rows in the topic; a wholly unreadable record counts as one."""
    dead: int = 0
    """Rows found in the dead-letter topic, each once."""
    repeated: int = 0
    """Rows whose source coordinates came before."""
    pending: int = 0
    """Records from the watermark on that the worker should have reached."""
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    rows_lost: int = 0
    rows_double_counted: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def processed(self) -> int:
        """Rows that Redis says were scored, or recognised as probes."""
        return self.totals["scored"] + self.totals["probes"] + self.totals["probes_excluded"]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The audit of one model's topic."""

    model: str
    topic: str
    partitions: tuple[PartitionAudit, ...]
    waited_seconds: float

    @property
    def rows(self) -> int:
        """Rows counted in the topic."""
        return sum(part.rows for part in self.partitions)

    @property
    def rows_lost(self) -> int:
        """Rows in the topic that were neither scored, nor a probe, nor invalid, nor a duplicate."""
        return sum(part.rows_lost for part in self.partitions)

    @property
    def rows_double_counted(self) -> int:
        """Rows that Redis counts and the topic does not hold."""
        return sum(part.rows_double_counted for part in self.partitions)

    @property
    def complete(self) -> bool:
        """Whether the worker reached the end of the topic that stood when the audit began."""
        return not any(part.pending for part in self.partitions)

    @property
    def passed(self) -> bool:
        """Whether everything is accounted for."""
        return self.complete and not any(part.findings for part in self.partitions)

    def total(self, name: str) -> int:
        """One of Redis' totals over all partitions."""
        return sum(part.totals[name] for part in self.partitions)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for programs."""
        return {
            "model": self.model,
            "topic": self.topic,
            "passed": self.passed,
            "complete": self.complete,
            "rows": self.rows,
            "rows_lost": self.rows_lost,
            "rows_double_counted": self.rows_double_counted,
            **{name: self.total(name) for name in COUNTERS if name != "rows"},
            "waited_seconds": round(self.waited_seconds, 3),
            "partitions": [asdict(part) for part in self.partitions],
        }

    def print(self, console: Console) -> None:
        """A table for people."""
        table = Table(box=None, pad_edge=False)
        names = ("partition", "up to", "records", "rows", "scored", "probes", "excluded", "invalid", "duplicates")
        for name in (*names, "lost", "twice"):
            table.add_column(name, justify="right")
        for part in self.partitions:
            t = part.totals
            ends = [t[name] for name in ("scored", "probes", "probes_excluded", "invalid", "duplicates")]
            figures = [part.watermark, part.records, part.rows, *ends, part.rows_lost, part.rows_double_counted]
            style = "bold red" if part.findings or part.pending else ""
            table.add_row(str(part.partition), *(f"{figure:,}" for figure in figures), style=style)
        console.print(table)
        for part in self.partitions:
            for finding in part.findings:
                console.print(f"partition {part.partition}: {finding}", markup=False)
            if part.pending:
                console.print(
                    f"partition {part.partition}: {part.pending:,} records from offset {part.watermark:,} on were not "
                    f"reached within {self.waited_seconds:.0f} s; is a worker running?"
                )
        verdict = "every row is accounted for" if self.passed else "NOT every row is accounted for"
        counts = f"{self.rows:,} rows, {self.rows_lost:,} lost, {self.rows_double_counted:,} counted twice"
        console.print(f"{self.topic}: {counts}: {verdict}", markup=False)


def run(settings: Settings, model_name: str, *, as_json: bool = False, wait_seconds: float = 30.0) -> int:
    """The `vedette audit` command; returns 0 when everything is accounted for, else 1."""
    from streams.store.client import connect

    redis = connect(settings.redis)
    try:
        report = audit(settings, model_name, redis, wait_seconds=wait_seconds)
    finally:
        redis.close()
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        report.print(Console())
    return 0 if report.passed else 1


def audit(
    settings: Settings,
    model_name: str,
    redis: Redis,
    *,
    until: Mapping[int, int] | None = None,
    wait_seconds: float = 30.0,
) -> AuditReport:
    """Count the model's topic again and compare it with the totals in Redis.

    Parameters
    ----------
    until : mapping of partition to offset, optional
        What the worker must have reached; default: the topic's end now. It is waited for, then everything up to the
        watermark that the worker has reached by then is compared.
    wait_seconds : float
        How long to wait; what was not reached then is `pending` and fails the audit.

    Raises
    ------
    BrokerError, MissingTopic, StoreError, UnreadableRecord
    """
    model = settings.model(model_name)
    try:
        with _Reader(client_options(settings.kafka), model.topic) as reader:
            ends = reader.ends()
            wanted = ends if until is None else {p: min(until.get(p, 0), end) for p, end in ends.items()}
            began = time.monotonic()
            parts = _wait(redis, model.topic, wanted, wait_seconds)
            waited = time.monotonic() - began
            ends = reader.ends()
            dead = reader.dead_letters()
            starts = reader.starts()
            for part in parts:
                start, end = starts[part.partition], ends[part.partition]
                refused = dead.get(part.partition, {})
                _count(part, reader, refused, wanted[part.partition], start, end, model.format)
                _judge(part, start, end)
    except CorruptRecordError as error:
        raise UnreadableRecord(f"a record of {model.topic} cannot be read: {error}") from None
    except KafkaError as error:
        raise BrokerError(f"cannot read {model.topic} at {settings.kafka.bootstrap}: {error}") from None
    return AuditReport(model.name, model.topic, tuple(parts), waited)


def count_rows(value: bytes, headers: Iterable[tuple[str, bytes]], form: str = "auto") -> tuple[int, Coordinates]:
    """Rows of one raw record, and the source coordinates of each where the record carries them.

    `form` is the model's declared format: what a record of another one would mean does not count.

    Raises
    ------
    Unreadable
        When no rows can be found in it.
    """
    if value.startswith(ARROW) and form not in ("native", "oip"):
        return _count_arrow(value)
    length = next((text for name, text in headers if name.lower() == OIP_HEADER), None) if form != "native" else None
    try:
        document = json.loads(value if length is None else value[: int(length)])
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON: {error}") from None
    if not isinstance(document, dict):
        raise Unreadable("not a JSON object")
    try:
        if "request" in document and (form == "oip" or "inputs" not in document):
            return int(document["request"]["inputs"][0]["shape"][0]), []
        inputs = document["inputs"]
        shape = inputs["shape"] if isinstance(inputs, dict) else _shape(inputs)
        return (int(shape[0]) if len(shape) > 1 else 1), []
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unreadable(f"no inputs: {error!r}") from None


def _shape(inputs: list[Any]) -> tuple[int, ...]:
    return (len(inputs), len(inputs[0])) if isinstance(inputs[0], list) else (len(inputs),)


def _count_arrow(value: bytes) -> tuple[int, Coordinates]:
    try:
        with pa.ipc.open_stream(io.BytesIO(value)) as stream:
            table = stream.read_all()
        names = ("source_partition", "source_offset", "source_row")
        if not set(names) <= set(table.column_names):
            return table.num_rows, []
        columns = [table.column(name).to_pylist() for name in names]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"no Arrow stream: {error}") from None
    return table.num_rows, list(zip(*columns, strict=True))


class _Reader:
    """Reads whole partitions of a topic and of its dead letters with kafka-python; joins no group, commits nothing."""

    def __init__(self, options: Mapping[str, Any], topic: str) -> None:
        self.topic = topic
        self._consumer = KafkaConsumer(
            **options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS,
            client_id="vedette-audit",
        )

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def ends(self) -> dict[int, int]:
        """The next offset of each partition."""
        return {place.partition: end for place, end in self._consumer.end_offsets(self._places(self.topic)).items()}

    def starts(self) -> dict[int, int]:
        """The oldest offset of each partition that the broker still has."""
        found = self._consumer.beginning_offsets(self._places(self.topic))
        return {place.partition: start for place, start in found.items()}

    def records(self, topic: str, partition: int, begin: int, end: int) -> Iterable[Any]:
        """Every record of one partition from `begin` on and below `end`; `begin` is one that the broker still has."""
        place = TopicPartition(topic, partition)
        self._consumer.assign([place])
        self._consumer.seek(place, begin)
        idle = time.monotonic()
        before = -1
        while (position := self._consumer.position(place)) < end:
            if position != before:
                before, idle = position, time.monotonic()
            elif time.monotonic() - idle > IDLE_SECONDS:
                raise BrokerError(f"{topic}/{partition}: nothing came for {IDLE_SECONDS:.0f} s at offset {position}")
            for record in self._consumer.poll(timeout_ms=POLL_MILLISECONDS, max_records=5_000).get(place, ()):
                if record.offset < end:
                    yield record

    def dead_letters(self) -> dict[int, dict[int, set[int] | None]]:
        """Source partition -> source offset -> places of the refused rows; None: the record as a whole."""
        topic = self.topic + DEAD_SUFFIX
        found: dict[int, dict[int, set[int] | None]] = {}
        if not self._consumer.partitions_for_topic(topic):
            return found
        places = self._places(topic)
        starts, ends = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        for place in places:
            for record in self.records(topic, place.partition, starts[place], ends[place]):
                headers = {name: (text or b"").decode(errors="replace") for name, text in record.headers}
                source, _, offset = headers.get(SOURCE_HEADER, "").rpartition("/")
                name, _, partition = source.rpartition("/")
                if name != self.topic or not (partition.isdigit() and offset.isdigit()):
                    continue
                letters = found.setdefault(int(partition), {})
                rows = headers.get(ROWS_HEADER, "*").split(",")
                before = letters.get(int(offset), set())
                if before is None or not all(row.isdigit() for row in rows):
                    letters[int(offset)] = None
                else:
                    letters[int(offset)] = before | {int(row) for row in rows}
        return found

    def _places(self, topic: str) -> list[TopicPartition]:
        partitions = self._consumer.partitions_for_topic(topic)
        if not partitions:
            raise MissingTopic(f"no topic {topic} at the broker; `vedette topics` creates it")
        return [TopicPartition(topic, partition) for partition in sorted(partitions)]


def _wait(redis: Redis, topic: str, wanted: Mapping[int, int], seconds: float) -> list[PartitionAudit]:
    """Wait until every watermark has reached what is wanted; each with its totals, read in one transaction."""
    deadline = time.monotonic() + seconds
    while True:
        parts = [_stored(redis, topic, partition) for partition in sorted(wanted)]
        if all(part.watermark >= wanted[part.partition] for part in parts) or time.monotonic() >= deadline:
            return parts
        time.sleep(POLL_SECONDS)


def _stored(redis: Redis, topic: str, partition: int) -> PartitionAudit:
    keys = PartitionKeys(topic, partition)
    pipe = redis.pipeline(transaction=True)
    pipe.hmget(keys.watermark, "w", "since")
    pipe.hmget(keys.totals, list(COUNTERS))
    (watermark, since), totals = pipe.execute()
    part = PartitionAudit(partition, int(watermark or 0), int(since or 0))
    try:
        part.totals = {name: int(value or 0) for name, value in zip(COUNTERS, totals, strict=True)}
    except ValueError:
        raise StoreError(f"{keys.totals} holds something else than counts: {totals!r}") from None
    return part


def _count(
    part: PartitionAudit,
    reader: _Reader,
    dead: Mapping[int, set[int] | None],
    wanted: int,
    start: int,
    end: int,
    form: str,
) -> None:
    newest: dict[int, tuple[int, int]] = {}
    until = min(max(part.watermark, wanted), end)
    for record in reader.records(reader.topic, part.partition, max(part.since, start), until):
        if record.offset >= part.watermark:
            part.pending += 1
            continue
        part.records += 1
        refused = dead.get(record.offset, set())
        if refused is None:
            part.rows += 1
            part.dead += 1
            continue
        try:
            rows, coordinates = count_rows(record.value or b"", record.headers or (), form)
        except Unreadable as problem:
            part.rows += 1
            part.findings.append(f"offset {record.offset} is no event ({problem}) and there is no dead letter of it")
            continue
        part.rows += rows
        part.dead += len(refused)
        for place, (source, *coordinate) in enumerate(coordinates):
            if place in refused or source < 0:
                continue
            offset, row = coordinate
            if (offset, row) <= newest.get(source, (-1, -1)):
                part.repeated += 1
            else:
                newest[source] = (offset, row)


def _judge(part: PartitionAudit, start: int, end: int) -> None:
    totals = part.totals
    if part.watermark > end:
        part.findings.append(
            f"the watermark {part.watermark:,} lies beyond the topic's end {end:,}: the topic was created anew"
        )
        return
    if part.since < start and part.since < part.watermark:
        part.findings.append(f"records below offset {start:,} have expired, so they can't be counted again")
        return
    expected = part.rows - part.dead - part.repeated
    part.rows_lost = max(0, expected - part.processed)
    part.rows_double_counted = max(0, part.processed - expected)
    if part.rows_lost:
        part.findings.append(f"{part.rows_lost:,} rows were lost: {expected:,} to be scored, {part.processed:,} were")
    if part.rows_double_counted:
        part.findings.append(
            f"{part.rows_double_counted:,} rows were counted twice: {expected:,} to be scored, {part.processed:,} were"
        )
    compared: Sequence[tuple[str, int, str]] = (
        ("records", part.records, "records in the topic"),
        ("rows", part.rows, "rows in the topic"),
        ("invalid", part.dead, "rows in the dead letters"),
        ("duplicates", part.repeated, "rows whose source coordinates came before"),
    )
    for name, counted, what in compared:
        if totals[name] != counted:
            part.findings.append(f"Redis says {totals[name]:,} {name}, but there are {counted:,} {what}")
    accounted = part.processed + totals["invalid"] + totals["duplicates"]
    if totals["rows"] != accounted:
        part.findings.append(f"Redis' own totals differ: {totals['rows']:,} rows, {accounted:,} accounted for")
