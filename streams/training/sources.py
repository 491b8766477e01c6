"""What the commands that fit, calibrate and score read: rows of files, events of files or of the model's topic."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detectors.contract import ANONYMOUS, Batch
from detectors.schema import FeatureSchema
from streams import config, tables
from streams.config import ModelSettings, Settings
from streams.errors import BrokerError, ConfigError, MissingTopic
from streams.training.telling import Telling

#: What --benign says for the model's topic.
TOPIC = "topic"
#: Records of the topic that are read, unless told otherwise: the newest.
MOST_RECORDS = 1_000_000
#: Records that are decoded at once.
CHUNK_RECORDS = 5_000
#: Milliseconds that one poll of the broker may take, and polls in a row that may bring nothing.
POLL_MILLISECONDS, IDLE_POLLS = 500, 40
#: The first contact with the broker may take so long.
BOOTSTRAP_MILLISECONDS = 5_000
#: Microseconds since the epoch that are said to be odd: as seconds or milliseconds they lie between 2001 and 2128.
SUSPECT_MICROSECONDS = 1_000_000_000, 5_000_000_000_000
#: What is said where clients are hashed under a passing key.
UNKEYED = (
    "no client key is set, so clients are hashed under one of this run alone: their hashes match nothing outside, "
    "and a fit with the same seed deals clients out anew (VEDETTE_CLIENT_KEY)"
)
#: Partitions that are assumed where no topic tells, as `vedette topics` makes them.
PARTITIONS = 4


class Session(Protocol):
    """What the commands need of the command line's context object."""

    config: str | None
    model: str | None

    @property
    def settings(self) -> Settings: ...

    @property
    def model_settings(self) -> ModelSettings: ...


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a topic: broker times in milliseconds (None: no bound), and how many records at most, the newest."""

    begin: int | None = None
    end: int | None = None
    most: int = MOST_RECORDS


@dataclass(frozen=True, slots=True)
class Events:
    """Events in the order of their times.

    Attributes
    ----------
    batch : Batch
    partitions : int or None
        Of the topic they were read from.
    notes : tuple of str
        What a person should know of them.
    """

    batch: Batch
    partitions: int | None = None
    notes: tuple[str, ...] = ()


def settings_of(session: Session) -> Settings | None:
    """The settings; None where none were named and no vedette.toml lies about: files alone will do."""
    if session.config is None and "VEDETTE_CONFIG" not in os.environ and not Path("vedette.toml").exists():
        return None
    return session.settings


def client_key(settings: Settings | None) -> tuple[bytes, tuple[str, ...]]:
    """The secret that client names are hashed with; where none is set, one of this run alone and a note about it."""
    named = settings is not None and settings.secrets.client_key_file is not None
    if named or "VEDETTE_CLIENT_KEY" in os.environ:
        nobody = ModelSettings(name="none", topic="none", bundle="none")
        return config.secret(settings or Settings(models=(nobody,)), "client"), ()
    return secrets.token_bytes(config.KEY_BYTES["client"]), (UNKEYED,)


def moment(text: str | None, option: str) -> int | None:
    """Milliseconds since the epoch of ISO 8601 text (UTC unless it says otherwise) or of seconds."""
    if text is None:
        return None
    try:
        if text.replace(".", "", 1).isdigit():
            return round(float(text) * 1e3)
        stamp = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no time; write 2026-11-24T15:00 or seconds since 1970") from None
    return round((stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp() * 1e3)


def span_of(source: str | None, begin: str | None, end: str | None, most: int | None) -> Span:
    """The part of the topic that --from, --until and --at-most name; they mean nothing for a file."""
    if source != TOPIC and any(option is not None for option in (begin, end, most)):
        raise ConfigError("--from, --until and --at-most choose a part of the topic; they need --benign topic")
    return Span(moment(begin, "--from"), moment(end, "--until"), MOST_RECORDS if most is None else most)


def schema_of(path: str | None) -> FeatureSchema | None:
    """The schema that --schema names."""
    return None if path is None else tables.read_schema(path)


def untimed(batch: Batch) -> bool:
    """Whether the rows came from a file without times, so that their places stand for them."""
    return np.array_equal(batch.times, np.arange(len(batch)))


def events_of(source: str, session: Session, schema: FeatureSchema, key: bytes, span: Span, telling: Telling) -> Events:
    """Benign events of a file, or of the model's topic.

    Raises
    ------
    ConfigError
        Names the file or the topic and what it lacks.
    BrokerError, MissingTopic
    """
    if source == TOPIC:
        return from_topic(session.settings, session.model_settings, schema, key, span, telling)
    rows, _ = tables.read(source, schema, key)
    batch = rows.batch()
    notes: tuple[str, ...] = ()
    if not (batch.clients != ANONYMOUS).any():
        raise ConfigError(
            f"{source}: names no clients; benign events need them (a column `client`, or `clients` in npz), because "
            "what is promised counts clients a week"
        )
    if untimed(batch):
        notes = (f"{source} has no times, so its rows count as one week in the order of the file",)
    elif batch.times[0] >= SUSPECT_MICROSECONDS[0] and batch.times[-1] < SUSPECT_MICROSECONDS[1]:
        first, last = (datetime.fromtimestamp(time / 1e6, UTC) for time in (batch.times[0], batch.times[-1]))
        said = (
            f"times of {source} reach from {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S}: `times` of npz files "
            "are microseconds since 1970, and weeks are counted by them"
        )
        notes = (said,)
    return Events(batch, None, notes)


def from_topic(
    settings: Settings, model: ModelSettings, schema: FeatureSchema, key: bytes, span: Span, telling: Telling
) -> Events:
    """Events of a stretch of the model's topic, in the order of their broker times, probes left out."""
    from streams.events import decoder, options_for
    from streams.events.batch import InferenceBatch

    codec = decoder(model.format)
    options = options_for(model, settings.worker, schema, key)
    parts: list[InferenceBatch] = []
    refused = 0
    partitions = set()
    for partition, share, records in _records(settings, model.topic, span):
        telling(f"reading {model.topic}", share)
        partitions.add(partition)
        if not records:
            continue
        decoded = codec.decode(records, options)
        refused += sum(1 if letter.rows is None else len(letter.rows) for letter in decoded.dead)
        parts.append(decoded)
    batches = [part.to_batch().take(part.marks < 0) for part in parts]
    probes = sum(int((part.marks >= 0).sum()) for part in parts)
    batches = [batch for batch in batches if len(batch)]
    if not batches:
        raise ConfigError(f"topic {model.topic}: no readable events in that stretch ({refused} unreadable rows)")
    notes = [f"left out: {name}" for name in (_count(refused, "unreadable row"), _count(probes, "probe")) if name]
    return Events(_merged(batches), len(partitions), tuple(notes))


def _count(number: int, what: str) -> str:
    return "" if number == 0 else f"{number} {what}{'' if number == 1 else 's'}"


def _merged(batches: list[Batch]) -> Batch:
    """One batch in the order of times; where some carry no scores or embeddings, rows hold NaN there."""
    whole = Batch(
        inputs=np.concatenate([batch.inputs for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
        clients=np.concatenate([batch.clients for batch in batches]),
        times=np.concatenate([batch.times for batch in batches]),
        offsets=np.concatenate([batch.offsets for batch in batches]),
        rows=np.concatenate([batch.rows for batch in batches]),
        outputs=tables.stacked([batch.outputs for batch in batches], [len(batch) for batch in batches]),
        embeddings=tables.stacked([batch.embeddings for batch in batches], [len(batch) for batch in batches]),
    )
    order = np.argsort(whole.times, kind="stable")
    return replace(whole.take(order), offsets=np.arange(len(whole), dtype=np.int64))


def _records(settings: Settings, topic: str, span: Span) -> Iterator[tuple[int, float, list[Any]]]:
    """Partition, share of the work done, and some of its records; every partition comes at least once."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    from streams.topics import client_options

    try:
        consumer = KafkaConsumer(
            **client_options(settings.kafka),
            group_id=None,
            enable_auto_commit=False,
            bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS,
            client_id="vedette-training",
        )
    except KafkaError as error:
        raise BrokerError(f"no Kafka broker answers at {settings.kafka.bootstrap}: {error}") from None
    try:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise MissingTopic(f"topic {topic} does not exist on {settings.kafka.bootstrap}")
        places = [TopicPartition(topic, number) for number in sorted(numbers)]
        ranges = _ranges(consumer, places, span)
        whole, done = sum(end - begin for begin, end in ranges.values()), 0
        for place, (begin, end) in ranges.items():
            yield place.partition, done / max(1, whole), []
            for records in _stretch(consumer, place, begin, end):
                done += len(records)
                yield place.partition, min(1.0, done / max(1, whole)), records
    except KafkaError as error:
        raise BrokerError(f"cannot read {topic} at {settings.kafka.bootstrap}: {error}") from None
    finally:
        consumer.close()


def _ranges(consumer: Any, places: list[Any], span: Span) -> dict[Any, tuple[int, int]]:
    """First offset and the one after the last, of each partition."""
    begins, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
    for bound, moments in ((span.begin, begins), (span.end, ends)):
        if bound is not None:
            found = consumer.offsets_for_times(dict.fromkeys(places, bound))
            for place in places:
                moments[place] = ends[place] if found[place] is None else found[place].offset
    each = max(1, span.most // len(places))
    return {place: (max(begins[place], ends[place] - each), ends[place]) for place in places}


def _stretch(consumer: Any, place: Any, begin: int, end: int) -> Iterator[list[Any]]:
    if begin >= end:
        return
    consumer.assign([place])
    consumer.seek(place, begin)
    idle, kept = 0, []
    while (position := consumer.position(place)) < end:
        found = consumer.poll(timeout_ms=POLL_MILLISECONDS, max_records=CHUNK_RECORDS).get(place, [])
        kept += [record for record in found if record.offset < end]
        if len(kept) >= CHUNK_RECORDS:
            yield kept
            kept = []
        idle = 0 if consumer.position(place) != position else idle + 1
        if idle == IDLE_POLLS:
            raise BrokerError(f"{place.topic}/{place.partition}: nothing came at offset {position}, the end is {end}")
    if kept:
        yield kept
