"""Dead letters: why records could not be scored, with samples, read from Kafka when somebody asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from streams.audit import ROWS_HEADER, SOURCE_HEADER
from streams.config import KafkaSettings, ModelSettings
from streams.console.front import Front
from streams.errors import BrokerError
from streams.topics import DEAD_SUFFIX, client_options
from streams.worker.deadletters import DETAIL_HEADER, REASON_HEADER, TRUNCATED_HEADER

#: Newest letters that are read, and shown with their bytes.
READ, SHOWN = 500, 50
#: Bytes of a record that are shown.
SAMPLE_BYTES = 300
#: The broker may take so long; looks are at least so far apart.
READ_SECONDS, REFRESH_SECONDS = 5.0, 5.0
BOOTSTRAP_MILLISECONDS = 3_000


@dataclass(frozen=True, slots=True)
class Letter:
    """One record, or some of its rows, that could not be scored."""

    time: int
    """When it was refused: broker time, microseconds."""
    source: str
    """``topic/partition/offset``."""
    rows: str
    """Places of the refused rows, ``*`` for the record as a whole."""
    reason: str
    detail: str
    size: int
    sample: str
    """The first bytes as text; what is not text is shown as \\xNN."""


@dataclass(frozen=True, slots=True)
class Letters:
    """The newest dead letters of one model."""

    at: float
    kept: int
    """Letters that the topic holds."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Among those read."""
    newest: list[Letter] = field(default_factory=list)
    problem: str = ""

    @property
    def read(self) -> int:
        """Letters that were read."""
        return sum(self.reasons.values())


class DeadLetterRoom:
    """Route of the page."""

    def __init__(self, front: Front, clock: Callable[[], float] = time.monotonic) -> None:
        self.front = front
        self._clock = clock
        self._found: dict[str, Letters] = {}
        self._lock = threading.Lock()

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [web.get("/dead-letters", self.page)]

    async def page(self, request: web.Request) -> web.Response:
        """Reasons and samples."""
        watch = self.front.watch(request)
        look = await watch.look()
        letters = await asyncio.to_thread(self._look, watch.model)
        return self.front.page(
            request,
            "dead_letters.html",
            model=watch.model,
            look=look,
            letters=letters,
            topic=watch.model.topic + DEAD_SUFFIX,
        )

    def _look(self, model: ModelSettings) -> Letters:
        with self._lock:  # one reader at a time, whoever asks
            now = self._clock()
            kept = self._found.get(model.name)
            if kept is None or not 0 <= now - kept.at < REFRESH_SECONDS:
                try:
                    kept = read(self.front.settings.kafka, model.topic + DEAD_SUFFIX, now)
                except BrokerError as error:
                    kept = Letters(at=now, kept=0, problem=str(error))
                self._found[model.name] = kept
            return kept


def read(kafka: KafkaSettings, topic: str, at: float = 0.0) -> Letters:
    """The newest `READ` letters of a topic; a topic that does not exist holds none.

    Raises
    ------
    BrokerError
        When the broker does not answer in time.
    """
    try:
        consumer = KafkaConsumer(
            **client_options(kafka),
            group_id=None,
            enable_auto_commit=False,
            client_id="vedette-console",
            bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS,
        )
    except KafkaError as error:
        raise BrokerError(f"no Kafka broker answers at {kafka.bootstrap}: {error}") from None
    try:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic) or ()]
        if not places:
            return Letters(at=at, kept=0)
        consumer.assign(places)
        starts, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, max(starts[place], ends[place] - READ // len(places)))
        records: list[Any] = []
        until = time.monotonic() + READ_SECONDS
        while any(consumer.position(place) < ends[place] for place in places) and time.monotonic() < until:
            for batch in consumer.poll(timeout_ms=500).values():
                records += batch
    except KafkaError as error:
        raise BrokerError(f"cannot read {topic} at {kafka.bootstrap}: {error}") from None
    finally:
        consumer.close()
    letters = sorted(map(_letter, records), key=lambda letter: letter.time, reverse=True)
    reasons = Counter(letter.reason for letter in letters)
    return Letters(at, sum(ends[p] - starts[p] for p in places), dict(reasons.most_common()), letters[:SHOWN])


def _letter(record: Any) -> Letter:
    # Ours come after the record's own headers, so that these cannot take their place.
    headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    value = record.value or b""
    size = headers.get(TRUNCATED_HEADER, "")
    return Letter(
        time=record.timestamp * 1000,
        source=headers.get(SOURCE_HEADER, "unknown"),
        rows=headers.get(ROWS_HEADER, "*"),
        reason=headers.get(REASON_HEADER, "unknown"),
        detail=headers.get(DETAIL_HEADER, ""),
        size=int(size) if size.isdecimal() else len(value),
        sample=_shown(value[:SAMPLE_BYTES]),
    )


def _shown(value: bytes) -> str:
    text = value.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
