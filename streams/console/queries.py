"""The queries behind an incident: read again from Kafka by their coordinates, and drawn in two dimensions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from numpy.typing import NDArray

from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.errors import BrokerError
from streams.events import decoder, options_for
from streams.store.messages import SignalMessage
from streams.topics import client_options

#: Newest queries that are read, and the longest that the broker may take.
READ, READ_SECONDS = 200, 6.0
BOOTSTRAP_MILLISECONDS = 3_000
#: A gap of more records than this is jumped over instead of read through.
JUMP_RECORDS = 500
#: Bytes of records after which reading stops.
READ_BYTES = 64 * 1024 * 1024
#: The hash of the sender is not shown here, so that any key will do.
_NO_KEY = bytes(16)

Coordinates = tuple[int, int, int]
"""(partition, offset, row)."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries in the order of the log.

    Attributes
    ----------
    inputs : float64 (m, d)
    labels : int64 (m,)
        The model's answers.
    times : int64 (m,)
        Broker time, microseconds.
    where : list of (partition, offset, row)
    wanted : int
        Queries that were asked for.
    problem : str
        Why some could not be had; empty where all could.
    """

    inputs: NDArray[np.float64]
    labels: NDArray[np.int64]
    times: NDArray[np.int64]
    where: list[Coordinates]
    wanted: int
    problem: str = ""

    def __len__(self) -> int:
        return len(self.labels)


def coordinates(signals: Iterable[SignalMessage]) -> list[Coordinates]:
    """Where the queries of some signals stand, the newest `READ` of them, in the order of the log."""
    found = {
        (signal.partition, offset, row)
        for signal in signals
        for offset, row in [*signal.members, (signal.offset, signal.row)]
    }
    newest = sorted(found, key=lambda where: (where[1], where[2], where[0]))[-READ:]
    return sorted(newest)


def of_evidence(signals: Sequence[SignalMessage], wanted: int, problem: str) -> Queries:
    """The queries whose inputs stand in the evidence itself: one a signal."""
    width = max((len(signal.input) for signal in signals), default=0)
    unique = {
        (signal.partition, signal.offset, signal.row): signal
        for signal in signals
        if len(signal.input) == width and width
    }
    shown = [unique[where] for where in sorted(unique)]
    return Queries(
        inputs=np.array([signal.input for signal in shown], dtype=np.float64).reshape(len(shown), width),
        labels=np.array([signal.label for signal in shown], dtype=np.int64),
        times=np.array([signal.time for signal in shown], dtype=np.int64),
        where=sorted(unique),
        wanted=wanted,
        problem=problem,
    )


def read(settings: Settings, model: ModelSettings, schema: FeatureSchema, wanted: Sequence[Coordinates]) -> Queries:
    """Read queries from the event topic.

    Parameters
    ----------
    wanted
        Sorted coordinates.

    Raises
    ------
    BrokerError
        When the broker does not answer.
    """
    try:
        consumer = KafkaConsumer(
            **client_options(settings.kafka),
            group_id=None,
            enable_auto_commit=False,
            client_id="vedette-console",
            bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS,
        )
    except KafkaError as error:
        raise BrokerError(f"no Kafka broker answers at {settings.kafka.bootstrap}: {error}") from None
    until = time.monotonic() + READ_SECONDS
    codec = decoder(model.format)
    options = options_for(model, settings.worker, schema, _NO_KEY)
    parts, where = [], []
    problem = ""
    try:
        for partition in sorted({place[0] for place in wanted}):
            offsets = sorted({offset for p, offset, _ in wanted if p == partition})
            records, problem = _records(consumer, TopicPartition(model.topic, partition), offsets, until)
            if not records:
                continue
            batch = codec.decode(records, options)
            rows = {
                (partition, int(o), int(r)): at for at, (o, r) in enumerate(zip(batch.offsets, batch.rows, strict=True))
            }
            found = [place for place in wanted if place in rows]
            parts.append(batch.to_batch().take(np.array([rows[place] for place in found], dtype=np.intp)))
            where += found
    except KafkaError as error:
        raise BrokerError(f"cannot read {model.topic} at {settings.kafka.bootstrap}: {error}") from None
    finally:
        consumer.close()
    if not problem and len(where) < len(wanted):
        problem = "some records are no longer kept"
    if not parts:
        return Queries(
            np.zeros((0, schema.width)), np.zeros(0, np.int64), np.zeros(0, np.int64), [], len(wanted), problem
        )
    return Queries(
        inputs=np.concatenate([part.inputs for part in parts]),
        labels=np.concatenate([part.labels for part in parts]).astype(np.int64),
        times=np.concatenate([part.times for part in parts]),
        where=where,
        wanted=len(wanted),
        problem=problem,
    )


def _records(consumer: Any, place: TopicPartition, offsets: Sequence[int], until: float) -> tuple[list[Any], str]:
    """Records at ascending offsets of one partition; those that are gone are left out."""
    if place.partition not in (consumer.partitions_for_topic(place.topic) or ()):
        return [], "the topic is gone"
    consumer.assign([place])
    start, end = consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]
    wanted = [offset for offset in offsets if start <= offset < end]
    found: list[Any] = []
    size = 0
    position = -1
    rest = list(reversed(wanted))
    while rest:
        if time.monotonic() >= until:
            return found, "Kafka was too slow to give all of them"
        if size > READ_BYTES:
            return found, "the records are too large to read all of them"
        if not position <= rest[-1] < position + JUMP_RECORDS:
            consumer.seek(place, rest[-1])
        for record in consumer.poll(timeout_ms=500).get(place, ()):
            while rest and rest[-1] < record.offset:  # a compacted or transactional gap
                rest.pop()
            if rest and record.offset == rest[-1]:
                rest.pop()
                found.append(record)
                size += len(record.value or b"")
        position = consumer.position(place)
    return found, ""


def plane(rows: NDArray[np.float64], schema: FeatureSchema | None) -> tuple[NDArray[np.float64], float]:
    """Rows in the plane of their two largest principal components.

    Parameters
    ----------
    rows : float64 (m, d)
        In the units of the schema; scaled by the ranges that the schema states, or that the rows show.

    Returns
    -------
    float64 (m, 2), float
        Coordinates, and the share of the rows' variance that the plane shows.
    """
    if len(rows) < 2:
        return np.zeros((len(rows), 2)), 1.0
    ranges = np.ptp(rows, axis=0)
    if schema is not None and schema.width == rows.shape[1]:
        stated = schema.highs() - schema.lows()
        ranges = np.where(np.isfinite(stated) & (stated > 0), stated, ranges)
    scaled = (rows - rows.mean(axis=0)) / np.where(ranges > 0, ranges, 1.0)
    values, vectors = np.linalg.eigh(scaled @ scaled.T)  # as few as there are rows, however many features
    values = np.clip(values[::-1], 0.0, None)
    found = vectors[:, ::-1][:, :2] * np.sqrt(values[:2])
    total = float(values.sum())
    flipped = np.where(np.abs(found).max(axis=0) > np.abs(found.min(axis=0)), 1.0, -1.0)
    return found * flipped, float(values[:2].sum()) / total if total > 0 else 1.0
