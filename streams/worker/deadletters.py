"""The dead-letter topic: what cannot be scored, with its bytes, its headers and the reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from streams.audit import ROWS_HEADER, SOURCE_HEADER
from streams.config import KafkaSettings
from streams.events.batch import DeadLetter, Record
from streams.topics import DEAD_SUFFIX
from streams.worker.broker import async_options
from streams.worker.peers import Peer

log = logging.getLogger("vedette.worker")

#: Headers beside those that the audit reads.
REASON_HEADER, DETAIL_HEADER, TRUNCATED_HEADER = "vedette-reason", "vedette-detail", "vedette-truncated"
#: Headers of a shortened letter: length of the record's key, if cut, and number of its headers, if left out.
TRUNCATED_KEY_HEADER, DROPPED_HEADERS_HEADER = "vedette-truncated-key", "vedette-dropped-headers"
#: Bytes that a header's text is cut to.
DETAIL_BYTES = 500
#: Bytes kept of the value and of the key of a record that the dead-letter topic does not take whole.
TRUNCATED_BYTES, TRUNCATED_KEY_BYTES = 64 * 1024, 1024
#: Refused rows that one letter names; a record with more of them has more letters.
ROWS_A_LETTER = 2_000
#: Room for our headers beyond the record's own size.
HEADER_ROOM_BYTES = 64 * 1024
#: How the client and the broker say that a letter does not fit the topic: its message limit, its segments.
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class Form(IntEnum):
    """What a letter holds. Each form is tried when the one before is too large."""

    WHOLE = 0
    CUT = 1
    """The first bytes of value and key, and our headers."""
    BARE = 2
    """Our headers."""


@dataclass(slots=True)
class Letter:
    """A dead letter on its way."""

    record: Record
    ours: list[tuple[str, bytes]]
    form: Form = Form.WHOLE

    def content(self) -> dict[str, Any]:
        """Key, value and headers in the present form; ours come last, so that the record's own cannot pass for them."""
        key, value, headers = self.record.key, self.record.value, self.record.headers
        if self.form is Form.WHOLE:
            if key is None and value is None:
                value = b""  # the client sends no record without both
            return {"key": key, "value": value, "headers": [*headers, *self.ours]}
        marks = [(TRUNCATED_HEADER, str(len(value or b"")).encode())]
        kept = None if key is None or self.form is Form.BARE else key[:TRUNCATED_KEY_BYTES]
        if kept != key:
            marks.append((TRUNCATED_KEY_HEADER, str(len(key or b"")).encode()))
        if headers:
            marks.append((DROPPED_HEADERS_HEADER, str(len(headers)).encode()))
        text = b"" if self.form is Form.BARE else (value or b"")[:TRUNCATED_BYTES]
        return {"key": kept, "value": text, "headers": [*self.ours, *marks]}


class DeadLetters:
    """Writes dead letters; returns when the broker has all of them.

    A letter may be written twice: after a crash, and when an acknowledgement is lost. Its source coordinates tell:
    distinct coordinates are what counts. So the producer is not idempotent: the sequence numbers would only spare
    copies, and the client loses count of them when the broker refuses a letter for its size.
    """

    def __init__(self, kafka: KafkaSettings, topic: str, max_record_bytes: int, broker: Peer) -> None:
        self.topic = topic
        self._broker = broker
        self._options: dict[str, Any] = {
            **async_options(kafka),
            "acks": "all",
            "enable_idempotence": False,
            "linger_ms": 2,
            "request_timeout_ms": 10_000,
            "max_request_size": max_record_bytes + HEADER_ROOM_BYTES,
            "client_id": "vedette-worker",
        }
        self._producer: AIOKafkaProducer | None = None
        self._changing = asyncio.Lock()

    async def write(self, partition: int, letters: Sequence[tuple[Record, DeadLetter]]) -> None:
        """Send letters of one partition until each is acknowledged, those that the topic does not take in shorter form.

        A broker that is away is waited for, and excuses. One that refuses even our headers for their size answers: the
        watchdog's time goes on.
        """
        waiting = [part for record, letter in letters for part in self._parts(partition, record, letter)]
        while waiting:
            producer = None
            try:
                with self._broker.call():
                    producer = await self._started()
                    await self._write_once(producer, waiting)
            except TOO_LARGE as error:
                self._broker.answered()
                log.error(
                    "%s/%d: %s%s takes no dead letter, however short; raise its max.message.bytes: %s",
                    self.topic,
                    partition,
                    self.topic,
                    DEAD_SUFFIX,
                    error,
                )
                await self._broker.pause()
            except KafkaError as error:
                if self._producer is producer:  # else another partition met the failure first
                    self._broker.failed(error)
                    await self._close(producer)
                await self._broker.pause()
            else:
                self._broker.answered()

    async def _write_once(self, producer: AIOKafkaProducer, waiting: list[Letter]) -> None:
        """Send each letter once. What is acknowledged leaves `waiting`; what is too large takes its next form there.

        Raises
        ------
        KafkaError
            When a letter was not acknowledged for another reason, or has no shorter form.
        """
        sending = []
        for letter in waiting:
            answer = await self._send(producer, letter)
            if letter.form is not Form.WHOLE:  # alone in its batch: it is the batch that the broker measures
                await asyncio.wait([answer])
            sending.append(answer)
        answers = await asyncio.gather(*sending, return_exceptions=True)
        refused = [(letter, answer) for letter, answer in zip(waiting, answers, strict=True) if _failed(answer)]
        waiting[:] = [letter for letter, _ in refused]
        failures = []
        for letter, failure in refused:
            if isinstance(failure, TOO_LARGE) and letter.form is not Form.BARE:
                letter.form = Form(letter.form + 1)
            else:
                failures.append(failure)
        # A broker that does not answer comes first: it excuses what its size would not.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, TOO_LARGE)):
            raise failure

    async def _send(self, producer: AIOKafkaProducer, letter: Letter) -> asyncio.Future[Any]:
        """The answer to come."""
        answer: asyncio.Future[Any]
        try:
            answer = await producer.send(self.topic + DEAD_SUFFIX, **letter.content())
        except KafkaError as error:
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(error)
        return answer

    def _parts(self, partition: int, record: Record, letter: DeadLetter) -> Iterator[Letter]:
        """The letters of a refusal: the first with the record, others only name further rows."""
        places: Sequence[str] = ["*"] if letter.rows is None else [str(row) for row in letter.rows]
        for first in range(0, len(places), ROWS_A_LETTER):
            ours = [
                (SOURCE_HEADER, f"{self.topic}/{partition}/{record.offset}".encode()),
                (ROWS_HEADER, ",".join(places[first : first + ROWS_A_LETTER]).encode()),
                (REASON_HEADER, str(letter.reason).encode()),
                (DETAIL_HEADER, letter.detail.encode(errors="replace")[:DETAIL_BYTES]),
            ]
            yield Letter(record, ours, Form.BARE if first else Form.WHOLE)

    async def _started(self) -> AIOKafkaProducer:
        """The producer that all partitions share."""
        async with self._changing:
            if self._producer is None:
                producer = AIOKafkaProducer(**self._options)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def stop(self) -> None:
        """Close the producer."""
        async with self._changing:
            producer = self._producer
        await self._close(producer)

    async def _close(self, producer: AIOKafkaProducer | None) -> None:
        """Close this producer, unless another partition does or did."""
        if producer is None:
            return
        async with self._changing:
            present = self._producer is producer
            if present:
                self._producer = None
        if not present:
            return
        try:
            await producer.stop()
        except KafkaError as error:
            log.warning("the producer of dead letters did not close well: %s", error)


def _failed(answer: object) -> bool:
    return isinstance(answer, BaseException)
