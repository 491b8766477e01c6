"""A sample of the newest records of a topic, and whose they are: what `vedette doctor` concludes about a topic's keys.

Identities are read by a small parser of its own, so that a topic can be examined before there is a bundle.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition

from streams.audit import ARROW, OIP_HEADER, Unreadable, count_rows

#: Newest records that a sample takes, over all partitions; enough to see a client of one in a thousand in two places.
SAMPLE_RECORDS = 20_000
#: Bytes of record values that a sample holds at most.
SAMPLE_BYTES = 64 * 1024 * 1024
#: A sample ends after so long, with what it has.
SAMPLE_SECONDS = 20.0
#: Milliseconds that one poll of the broker may take.
POLL_MILLISECONDS = 500

Identity = bytes | int | None
"""Who sent a row: the raw id, its keyed hash where the record carries only that, or None for nobody."""


@dataclass(frozen=True, slots=True)
class SampledRecord:
    """One record of the topic; it fits `streams.events.batch.Record`. `timestamp` is in milliseconds."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None = field(repr=False)
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(slots=True)
class Clients:
    """Whose rows a sample holds."""

    rows: Counter[bytes | int] = field(default_factory=Counter)
    """Rows of each identified client."""
    partitions: dict[bytes | int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Where each client's rows lie."""
    anonymous: int = 0
    """Rows without a client."""
    unreadable: int = 0
    """Records in which no rows were found."""

    @property
    def identified(self) -> int:
        """Rows that have a client."""
        return self.rows.total()

    @property
    def total(self) -> int:
        """All rows."""
        return self.identified + self.anonymous

    @property
    def split(self) -> list[bytes | int]:
        """Clients whose rows lie in several partitions, the busiest first."""
        return [client for client, _ in self.rows.most_common() if len(self.partitions[client]) > 1]

    @property
    def repeating(self) -> int:
        """Clients with two rows or more: only these can show that a topic is mixed."""
        return sum(count > 1 for count in self.rows.values())


def newest(
    consumer: KafkaConsumer, topic: str, partitions: Iterable[int], records: int = SAMPLE_RECORDS
) -> list[SampledRecord]:
    """The newest records of each partition, the same number of each, in order; fewer when time or memory is up.

    Parameters
    ----------
    consumer : kafka.KafkaConsumer
        Without a group.
    """
    places = [TopicPartition(topic, partition) for partition in partitions]
    starts, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
    share = max(1, records // max(1, len(places)))
    open_places = {place for place in places if ends[place] > starts[place]}
    if not open_places:
        return []
    consumer.assign(sorted(open_places))
    for place in open_places:
        consumer.seek(place, max(starts[place], ends[place] - share))
    found: list[SampledRecord] = []
    size = 0
    deadline = time.monotonic() + SAMPLE_SECONDS
    while open_places and size < SAMPLE_BYTES and time.monotonic() < deadline:
        for place, batch in consumer.poll(timeout_ms=POLL_MILLISECONDS, max_records=5_000).items():
            for record in batch:
                if record.offset < ends[place]:
                    size += len(record.value or b"")
                    headers = tuple(record.headers or ())
                    found.append(
                        SampledRecord(
                            place.partition, record.offset, record.timestamp, record.key, record.value, headers
                        )
                    )
        done = {place for place in open_places if consumer.position(place) >= ends[place]}
        open_places -= done
        if open_places and done:
            consumer.pause(*done)
    found.sort(key=lambda record: (record.partition, record.offset))
    return found


def whose(records: Iterable[SampledRecord], client_path: str) -> Clients:
    """Count rows by client; `client_path` as in the setting `models.client`."""
    clients = Clients()
    for record in records:
        try:
            ids = identities(record, client_path)
        except Unreadable:
            clients.unreadable += 1
            continue
        for identity, rows in ids:
            if identity is None:
                clients.anonymous += rows
            else:
                clients.rows[identity] += rows
                clients.partitions[identity].add(record.partition)
    return clients


def identities(record: SampledRecord, client_path: str) -> list[tuple[Identity, int]]:
    """(client, number of rows) of one record.

    Raises
    ------
    Unreadable
        When no rows can be found in it.
    """
    value = record.value or b""
    if value.startswith(ARROW):
        return _arrow_identities(value)
    rows, _ = count_rows(value, record.headers)
    return [(_identity(record, value, client_path), rows)]


def _identity(record: SampledRecord, value: bytes, client_path: str) -> bytes | None:
    place, _, name = client_path.partition(":")
    if place == "key":
        return record.key or None
    if place == "header":
        return next((text for header, text in record.headers if header.lower() == name.lower()), None) or None
    length = next((text for header, text in record.headers if header.lower() == OIP_HEADER), None)
    document: Any = json.loads(value if length is None else value[: int(length)])
    if place == "parameter":
        document = document.get("request", document).get("parameters")
    found = document.get(name) if isinstance(document, dict) else None
    if found is None or found == "" or isinstance(found, (dict, list, bool)):
        return None
    return str(found).encode()


def _arrow_identities(value: bytes) -> list[tuple[Identity, int]]:
    try:
        with pa.ipc.open_stream(io.BytesIO(value)) as stream:
            table = stream.read_all()
        if "client" not in table.column_names:
            return [(None, table.num_rows)]
        counted = Counter(table.column("client").to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"no Arrow stream: {error}") from None
    return list(counted.items())
