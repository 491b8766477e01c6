"""Dead letters at a real broker: each arrives in some form, whatever its record holds."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from streams.audit import ROWS_HEADER, SOURCE_HEADER
from streams.config import KafkaSettings
from streams.errors import Stalled
from streams.events.batch import DeadLetter, Reason
from streams.topics import DEAD_SUFFIX
from streams.worker import deadletters
from streams.worker.deadletters import (
    DROPPED_HEADERS_HEADER,
    REASON_HEADER,
    ROWS_A_LETTER,
    TRUNCATED_BYTES,
    TRUNCATED_HEADER,
    TRUNCATED_KEY_BYTES,
    TRUNCATED_KEY_HEADER,
    DeadLetters,
)
from streams.worker.peers import Peer
from tests.streams.worker.conftest import Deployment

MAX_RECORD_BYTES = 16 * 1024 * 1024
#: What a broker takes unless it is told otherwise, and more than that.
MESSAGE_BYTES, LARGE = 1_048_588, 1_200_000
SECONDS = 30.0

Topic = Callable[..., str]
Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Sent:
    """A record as the worker read it."""

    offset: int
    value: bytes | None = b"{broken"
    key: bytes | None = b"client"
    headers: Any = ()
    timestamp: int = 0


def refused(record: Sent, rows: tuple[int, ...] | None = None) -> tuple[Sent, DeadLetter]:
    return record, DeadLetter(record.offset, Reason.NOT_DECODABLE, "not JSON", rows)


def run(kafka: str, topic: str, use: Callable[[DeadLetters], Awaitable[None]]) -> Peer:
    """Use the letters of a topic within `SECONDS`."""
    peer = Peer("the dead-letter topic")

    async def within() -> None:
        letters = DeadLetters(KafkaSettings(bootstrap=kafka), topic, MAX_RECORD_BYTES, peer)
        try:
            await asyncio.wait_for(use(letters), SECONDS)
        finally:
            await letters.stop()

    asyncio.run(within())
    return peer


def write(kafka: str, topic: str, *records: tuple[Sent, DeadLetter]) -> Peer:
    return run(kafka, topic, lambda letters: letters.write(0, records))


def dead(kafka: str, topic: str) -> list[Any]:
    """Every letter of the topic."""
    consumer = KafkaConsumer(bootstrap_servers=kafka, group_id=None, max_partition_fetch_bytes=2 * LARGE)
    place = TopicPartition(topic + DEAD_SUFFIX, 0)
    consumer.assign([place])
    end = consumer.end_offsets([place])[place]
    consumer.seek_to_beginning(place)
    found: list[Any] = []
    until = time.monotonic() + SECONDS
    while consumer.position(place) < end and time.monotonic() < until:
        found += consumer.poll(timeout_ms=200).get(place, [])
    consumer.close()
    return found


def limit(kafka: str, topic: str, size: int) -> None:
    """Change what the dead-letter topic takes."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    configs = {"max.message.bytes": str(size)}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic + DEAD_SUFFIX, configs=configs)])
    admin.close()


@pytest.fixture
def dead_topic(kafka: str) -> Iterator[Topic]:
    """Make a dead-letter topic that takes messages of a size, a broker's usual one unless told."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    made: list[str] = []

    def make(size: int = MESSAGE_BYTES) -> str:
        name = f"vedette-test-{secrets.token_hex(4)}"
        configs = {"max.message.bytes": str(size)}
        admin.create_topics([NewTopic(name + DEAD_SUFFIX, 1, 1, topic_configs=configs)])
        made.append(name + DEAD_SUFFIX)
        admin.wait_for_topics(made)
        return name

    yield make
    admin.delete_topics(made)
    admin.close()


def test_a_small_letter_before_a_large_one(kafka: str, dead_topic: Topic) -> None:
    name = dead_topic()
    small, large = Sent(0, b"small"), Sent(1, b"x" * LARGE, headers=[("trace", b"abc")])
    peer = write(kafka, name, refused(small), refused(large), refused(Sent(2, b"after")))
    assert peer.away_since is None
    letters = {dict(record.headers)[SOURCE_HEADER].decode(): record for record in dead(kafka, name)}
    assert sorted(letters) == [f"{name}/0/{offset}" for offset in range(3)]
    assert len(dead(kafka, name)) == 3, "an ordinary letter was written again"
    assert letters[f"{name}/0/0"].value == b"small"
    cut = letters[f"{name}/0/1"]
    headers = dict(cut.headers)
    assert (cut.key, cut.value) == (b"client", b"x" * TRUNCATED_BYTES)
    assert headers[TRUNCATED_HEADER] == str(LARGE).encode()
    assert headers[DROPPED_HEADERS_HEADER] == b"1"
    assert "trace" not in headers
    assert TRUNCATED_KEY_HEADER not in headers


def test_many_large_letters_in_a_row(kafka: str, dead_topic: Topic) -> None:
    name = dead_topic()
    records = [Sent(offset, b"x" * (LARGE if offset % 2 else 10)) for offset in range(12)]
    write(kafka, name, *map(refused, records))
    write(kafka, name, refused(Sent(12)))
    assert len(dead(kafka, name)) == 13


def test_a_giant_key(kafka: str, dead_topic: Topic) -> None:
    name = dead_topic()
    write(kafka, name, refused(Sent(0, b"value", b"k" * LARGE)))
    (letter,) = dead(kafka, name)
    assert (letter.key, letter.value) == (b"k" * TRUNCATED_KEY_BYTES, b"value")
    assert dict(letter.headers)[TRUNCATED_KEY_HEADER] == str(LARGE).encode()


@pytest.mark.parametrize("header", ["vedette-x", SOURCE_HEADER, REASON_HEADER, TRUNCATED_HEADER, "other"])
def test_a_giant_header(kafka: str, dead_topic: Topic, header: str) -> None:
    name = dead_topic()
    write(kafka, name, refused(Sent(0, b"value", headers=((header, b"h" * LARGE), ("null", None)))))
    (letter,) = dead(kafka, name)
    headers = dict(letter.headers)
    assert letter.value == b"value"
    assert headers[SOURCE_HEADER] == f"{name}/0/0".encode()
    assert headers[REASON_HEADER] == b"not-decodable"
    assert headers[DROPPED_HEADERS_HEADER] == b"2"
    assert sum(len(text) for text in headers.values()) < 1000


def test_larger_than_the_client_sends(kafka: str, dead_topic: Topic) -> None:
    name = dead_topic()
    write(kafka, name, refused(Sent(0, b"x" * (MAX_RECORD_BYTES + deadletters.HEADER_ROOM_BYTES))))
    (letter,) = dead(kafka, name)
    assert letter.value == b"x" * TRUNCATED_BYTES


def test_a_record_of_nulls(kafka: str, dead_topic: Topic) -> None:
    name = dead_topic()
    write(kafka, name, refused(Sent(0, None, None, (("null", None),))), refused(Sent(1, None)))
    nothing, keyed = dead(kafka, name)
    assert (nothing.key, nothing.value) == (None, b"")
    assert (keyed.key, keyed.value) == (b"client", None)


def test_many_refused_rows(kafka: str, dead_topic: Topic) -> None:
    name = dead_topic()
    rows = tuple(range(0, 300_000, 2))
    write(kafka, name, refused(Sent(0, b"rows"), rows))
    found = [dict(letter.headers)[ROWS_HEADER] for letter in dead(kafka, name)]
    assert len(found) == -(-len(rows) // ROWS_A_LETTER)
    assert sorted(int(row) for part in found for row in part.split(b",")) == list(rows)
    assert [letter.value for letter in dead(kafka, name) if letter.value] == [b"rows"]


def test_a_topic_that_takes_only_our_headers(kafka: str, dead_topic: Topic) -> None:
    name = dead_topic(900)
    write(kafka, name, *(refused(Sent(offset, b"x" * 2000, b"k" * 2000)) for offset in range(5)))
    letters = dead(kafka, name)
    assert sorted(dict(letter.headers)[SOURCE_HEADER] for letter in letters) == [
        f"{name}/0/{offset}".encode() for offset in range(5)
    ]
    for letter in letters:
        headers = dict(letter.headers)
        assert (letter.key, letter.value) == (None, b"")
        assert (headers[TRUNCATED_HEADER], headers[TRUNCATED_KEY_HEADER]) == (b"2000", b"2000")


def test_a_topic_that_takes_nothing_does_not_excuse(
    kafka: str, dead_topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    name = dead_topic(50)

    async def use(letters: DeadLetters) -> None:
        writing = asyncio.create_task(letters.write(0, [refused(Sent(0))]))
        while "raise its max.message.bytes" not in caplog.text:
            assert not letters._broker.away
            await asyncio.sleep(0.02)
        assert not letters._broker.away
        assert not writing.done()
        await asyncio.to_thread(limit, kafka, name, 1_000_000)
        await writing

    with caplog.at_level(logging.ERROR, "vedette.worker"):
        run(kafka, name, use)
    (letter,) = dead(kafka, name)
    assert dict(letter.headers)[SOURCE_HEADER] == f"{name}/0/0".encode()


def test_partitions_that_write_at_once_share_a_producer(
    kafka: str, dead_topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = dead_topic()
    made: list[AIOKafkaProducer] = []

    def counted(**options: Any) -> AIOKafkaProducer:
        made.append(AIOKafkaProducer(**options))
        return made[-1]

    monkeypatch.setattr(deadletters, "AIOKafkaProducer", counted)

    async def use(letters: DeadLetters) -> None:
        await asyncio.gather(*(letters.write(partition, [refused(Sent(7))]) for partition in range(8)))
        assert len(made) == 1
        # The one partition's failure ends neither the producer that the other has started since, nor its letters.
        await letters._close(made[0])
        await letters.write(0, [refused(Sent(8))])
        await letters._close(made[0])
        assert letters._producer is made[1]
        await asyncio.gather(letters.write(1, [refused(Sent(8))]), letters._close(made[1]))

    run(kafka, name, use)
    assert all(producer._closed for producer in made)
    found = {dict(letter.headers)[SOURCE_HEADER].decode() for letter in dead(kafka, name)}
    assert found == {f"{name}/{partition}/7" for partition in range(8)} | {f"{name}/0/8", f"{name}/1/8"}


def test_the_watchdog_ends_a_worker_whose_topic_takes_nothing(kafka: str, deploy: Callable[..., Deployment]) -> None:
    site = deploy(1, worker={"watchdog_seconds": 3.0})
    limit(kafka, site.topic, 50)
    site.send(b"{broken", "one")
    site.producer().flush()
    worker = site.start()
    assert worker.wait(90) == Stalled.exit_code
    said = site.log().read_text()
    assert "raise its max.message.bytes" in said
    assert "has not moved" in said
    limit(kafka, site.topic, MESSAGE_BYTES)
    site.start()
    site.wait_recorded(1)
    report = site.audit()
    assert report.passed, report.to_dict()
