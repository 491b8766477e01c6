"""Whether a topic is keyed by client: every client's events in one partition."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError

from detectors.contract import ANONYMOUS
from streams.config import KafkaSettings
from streams.errors import BrokerError, NotKeyedByClient
from streams.events.batch import Codec, DecodeOptions, Record
from streams.topics import client_options

#: The newest records of each partition that are looked at.
SAMPLE_RECORDS = 300
#: How long sampling may take.
SAMPLE_SECONDS = 5.0
#: Share of the clients with several events that may be found in several partitions (moved by a new partition count).
ALLOWED_SHARE = 0.01


def sample(kafka: KafkaSettings, topic: str, records: int = SAMPLE_RECORDS) -> dict[int, list[Record]]:
    """The newest records of each partition, as far as they come within a few seconds.

    Raises
    ------
    BrokerError
    """
    found: dict[int, list[Record]] = {}
    try:
        consumer = KafkaConsumer(
            **client_options(kafka), group_id=None, enable_auto_commit=False, client_id="vedette-sample"
        )
        try:
            places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
            first, end = consumer.beginning_offsets(places), consumer.end_offsets(places)
            places = [place for place in places if end[place] > first[place]]
            consumer.assign(places)
            for place in places:
                consumer.seek(place, max(first[place], end[place] - records))
            until = time.monotonic() + SAMPLE_SECONDS
            open_ = set(places)
            while open_ and time.monotonic() < until:
                try:
                    fetched = consumer.poll(timeout_ms=200)
                except CorruptRecordError:  # the reader meets it too, and tells where it is
                    break
                for place, newest in fetched.items():
                    found.setdefault(place.partition, []).extend(newest)
                open_ = {place for place in open_ if consumer.position(place) < end[place]}
        finally:
            consumer.close()
    except KafkaError as error:
        raise BrokerError(f"cannot sample {topic} at {kafka.bootstrap}: {error}") from None
    return found


def clients_of(records: Mapping[int, Sequence[Record]], codec: Codec, decode: DecodeOptions) -> dict[int, list[int]]:
    """Client hashes of each partition's rows, anonymous ones left out."""
    return {
        partition: [c for c in codec.decode(found, decode).clients.tolist() if c != ANONYMOUS]
        for partition, found in records.items()
        if found
    }


def mixed_clients(clients: Mapping[int, Iterable[int]]) -> tuple[int, int]:
    """How many clients were seen in several partitions, and how many at least twice anywhere."""
    pairs = [np.unique(np.array(list(ids), dtype=np.uint64), return_counts=True) for ids in clients.values()]
    if not pairs:
        return 0, 0
    names = np.concatenate([ids for ids, _ in pairs])
    counts = np.concatenate([count for _, count in pairs])
    unique, inverse = np.unique(names, return_inverse=True)
    partitions = np.bincount(inverse, minlength=len(unique))
    events = np.bincount(inverse, weights=counts, minlength=len(unique))
    return int(np.count_nonzero(partitions > 1)), int(np.count_nonzero(events > 1))


def verify_keyed_by_client(kafka: KafkaSettings, topic: str, codec: Codec, decode: DecodeOptions) -> None:
    """Look at the newest records.

    Raises
    ------
    NotKeyedByClient
    BrokerError
    """
    found = sample(kafka, topic)
    if len(found) < 2:
        return
    mixed, repeated = mixed_clients(clients_of(found, codec, decode))
    if mixed > ALLOWED_SHARE * repeated:
        raise NotKeyedByClient(
            f"{topic} is not keyed by client: of {repeated} clients with several events among the newest of each "
            f"partition, {mixed} have them in several partitions, so no worker sees their history; "
            "re-key the topic with `vedette ingest`, or correct models.client in the settings"
        )
