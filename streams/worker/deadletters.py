"""The dead-letter topic: what cannot be scored, with its bytes, its headers and the reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from streams.audit import ROWS_HEADER, SOURCE_HEADER
from streams.config import KafkaSettings
from streams.events.batch import DeadLetter, Record
from streams.topics import DEAD_SUFFIX
from streams.worker.broker import async_options
from streams.worker.peers import Peer

log = logging.getLogger("vedette.worker")

#: Headers beside those that the audit reads.
REASON_HEADER, DETAIL_HEADER, TRUNCATED_HEADER = "vedette-reason", "vedette-detail", "vedette-truncated"
#: Bytes that a header's text is cut to.
DETAIL_BYTES = 500
#: Bytes kept of a record that the dead-letter topic does not take whole.
TRUNCATED_BYTES = 64 * 1024
#: Room for our headers beyond the record's own size.
HEADER_ROOM_BYTES = 64 * 1024


class DeadLetters:
    """Writes dead letters; returns when the broker has all of them.

    A letter may be written twice after a crash. Its source coordinates tell: distinct coordinates are what counts.
    """

    def __init__(self, kafka: KafkaSettings, topic: str, max_record_bytes: int, broker: Peer) -> None:
        self.topic = topic
        self._broker = broker
        self._options: dict[str, Any] = {
            **async_options(kafka),
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 2,
            "request_timeout_ms": 10_000,
            "max_request_size": max_record_bytes + HEADER_ROOM_BYTES,
            "client_id": "vedette-worker",
        }
        self._producer: AIOKafkaProducer | None = None

    async def write(self, partition: int, letters: Sequence[tuple[Record, DeadLetter]]) -> None:
        """Send letters of one partition again and again until they are acknowledged."""
        while True:
            try:
                with self._broker.call():
                    await self._write_once(partition, letters)
            except KafkaError as error:
                self._broker.failed(error)
                await self.stop()
                await self._broker.pause()
            else:
                self._broker.answered()
                return

    async def _write_once(self, partition: int, letters: Sequence[tuple[Record, DeadLetter]]) -> None:
        producer = await self._started()
        sending = []
        for record, letter in letters:
            value, headers = record.value, self._headers(partition, record, letter)
            sending.append(await self._send(producer, record.key, value, headers))
        for failure in await asyncio.gather(*sending, return_exceptions=True):
            if isinstance(failure, BaseException):
                raise failure

    async def _send(
        self, producer: AIOKafkaProducer, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> Any:
        try:
            sent = await producer.send(self.topic + DEAD_SUFFIX, value=value, key=key, headers=headers)
            return asyncio.ensure_future(self._whole_or_cut(producer, sent, key, value, headers))
        except MessageSizeTooLargeError:
            return await producer.send(self.topic + DEAD_SUFFIX, **_cut(key, value, headers))

    async def _whole_or_cut(
        self, producer: AIOKafkaProducer, sent: Any, key: bytes | None, value: bytes | None, headers: Any
    ) -> None:
        try:
            await sent
        except MessageSizeTooLargeError:
            await producer.send_and_wait(self.topic + DEAD_SUFFIX, **_cut(key, value, headers))

    def _headers(self, partition: int, record: Record, letter: DeadLetter) -> list[tuple[str, bytes]]:
        rows = "*" if letter.rows is None else ",".join(map(str, letter.rows))
        return [
            *record.headers,
            (SOURCE_HEADER, f"{self.topic}/{partition}/{record.offset}".encode()),
            (ROWS_HEADER, rows.encode()),
            (REASON_HEADER, str(letter.reason).encode()),
            (DETAIL_HEADER, letter.detail.encode(errors="replace")[:DETAIL_BYTES]),
        ]

    async def _started(self) -> AIOKafkaProducer:
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
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await producer.stop()
            except KafkaError as error:
                log.warning("the producer of dead letters did not close well: %s", error)


def _cut(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> dict[str, Any]:
    whole = value or b""
    ours = [(name, text) for name, text in headers if name.startswith("vedette-")]
    return {
        "value": whole[:TRUNCATED_BYTES],
        "key": key,
        "headers": [*ours, (TRUNCATED_HEADER, str(len(whole)).encode())],
    }
