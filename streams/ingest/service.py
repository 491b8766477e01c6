"""`vedette ingest`: takes CloudEvents of a model's logger by HTTP, joins them, writes records keyed by client.

An event is answered as soon as it is held in memory, as loggers do not wait and do not repeat. Memory is bounded:
beyond it senders get 503 with Retry-After. Records leave in the order in which they were completed, and are repeated
until the broker has them; so one may stand in the topic twice after an outage. What is held is lost with the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from streams.config import IngestSettings, ModelSettings, Settings
from streams.errors import ConfigError
from streams.ingest import payloads
from streams.ingest.cloudevents import Event, Unreadable, read
from streams.ingest.join import Join
from streams.worker.broker import async_options, topic_id
from streams.worker.metrics import Page, labelled, resident_bytes

log = logging.getLogger("vedette.ingest")

MEGABYTE = 1024 * 1024
#: Records that are under way at once; the next ones wait until all are there, so that order holds.
RECORDS_AT_ONCE = 500
#: What a record costs beside its value.
RECORD_BYTES = 256
#: Seconds after which senders that were turned away may come again.
RETRY_AFTER = "1"
#: A broker that has not answered for so long is said to be away.
HOLDING_SECONDS = 5.0
#: Pause between two tries while the broker is away, and time that one try may take.
AWAY_SECONDS, REQUEST_MILLISECONDS = 0.5, 10_000
#: At the end, records that are held get so long to leave.
FLUSH_SECONDS = 10.0
#: Seconds between two looks for halves that waited in vain.
SWEEP_SECONDS = 1.0
#: How the client and the broker say that a record does not fit the topic.
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

#: What may become of an event.
OUTCOMES = ("joined", "waiting", "other_type", "other_service", "unreadable", "refused")


@dataclass(slots=True)
class Tally:
    """Counts since the start."""

    events: Counter[str] = field(default_factory=Counter)
    records: int = 0
    too_large: int = 0
    retries: int = 0


class Ingest:
    """Everything between the HTTP server and the topic.

    Parameters
    ----------
    settings : IngestSettings
    model : ModelSettings
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self, settings: IngestSettings, model: ModelSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings, self.model = settings, model
        self.join = Join(settings.join_seconds)
        self.tally = Tally()
        self._service = settings.service or model.name
        self._clock = clock
        self._ready: deque[tuple[bytes | None, bytes]] = deque()
        self._ready_bytes = 0
        self._more = asyncio.Event()
        self._coming = 0
        """Bytes of requests that are being read."""
        self._asked: float | None = None
        """When the records that are under way were handed to the client; None where none are."""

    @property
    def held(self) -> int:
        """Bytes held: halves that wait, and records that the broker has not."""
        return self.join.size + self._ready_bytes + self._coming

    @property
    def broker_up(self) -> bool:
        """Whether the broker takes what it is given; the client repeats by itself, so only waiting tells."""
        return self._asked is None or self._clock() - self._asked < HOLDING_SECONDS

    @property
    def waiting_records(self) -> int:
        """Records that the broker has not."""
        return len(self._ready)

    async def take(self, request: web.Request) -> web.Response:
        """Answer one POST."""
        # A body that comes in chunks may be as long as any.
        known = request.content_length
        length = min(self.settings.max_event_mb, self.settings.memory_mb) * MEGABYTE if known is None else known
        if self.held + length > self.settings.memory_mb * MEGABYTE:
            self.tally.events["refused"] += 1
            return web.Response(status=503, text="too much is held\n", headers={"Retry-After": RETRY_AFTER})
        self._coming += length
        try:
            body = await request.read()
        finally:
            self._coming -= length
        try:
            events = read(request.headers, body)
        except Unreadable as wrong:
            self.tally.events["unreadable"] += 1
            return web.Response(status=400, text=f"{wrong}\n")
        for event in events:
            self._add(event)
        return web.Response(status=202)

    def _add(self, event: Event) -> None:
        events = self.tally.events
        if event.kind is None:
            events["other_type"] += 1
            return
        if event.service and event.service != self._service:
            events["other_service"] += 1
            return
        pair = self.join.add(event, event.kind, self._clock())
        if pair is None:
            events["waiting"] += 1
            return
        try:
            value = payloads.record(*pair)
        except Unreadable as wrong:
            events["unreadable"] += 1
            log.warning("inference %.60s is dropped: %s", event.id, wrong)
            return
        events["joined"] += 1
        key = payloads.client(self.settings.client, pair[0])
        self._ready.append((key, value))
        self._ready_bytes += len(value) + RECORD_BYTES
        self._more.set()

    async def sweep(self) -> None:
        """Drop what waits in vain, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.join.expire(self._clock())

    async def send(self, producer: AIOKafkaProducer) -> None:
        """Send what is ready, for ever; records that the broker did not take are sent again."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._ready:
                await self._send_some(producer)

    async def _send_some(self, producer: AIOKafkaProducer) -> None:
        group = [self._ready[place] for place in range(min(len(self._ready), RECORDS_AT_ONCE))]
        while group:
            if self._asked is None:
                self._asked = self._clock()
            answers = await asyncio.gather(*(self._written(producer, *one) for one in group))
            kept = [one for one, done in zip(group, answers, strict=True) if not done]
            for _ in group:
                self._ready.popleft()
            self._ready.extendleft(reversed(kept))
            size = sum(len(value) + RECORD_BYTES for _, value in group)
            self._ready_bytes -= size - sum(len(value) + RECORD_BYTES for _, value in kept)
            self.tally.records += len(group) - len(kept)
            if len(kept) < len(group):
                self._asked = None
            if kept:
                self.tally.retries += len(kept)
                await asyncio.sleep(AWAY_SECONDS)
            group = kept

    async def _written(self, producer: AIOKafkaProducer, key: bytes | None, value: bytes) -> bool:
        """Whether the broker has it, or never will."""
        try:
            await producer.send_and_wait(self.model.topic, value, key=key)
        except TOO_LARGE as error:
            self.tally.too_large += 1
            self.tally.records -= 1
            log.error("a record of %d bytes does not fit %s and is dropped: %s", len(value), self.model.topic, error)
        except KafkaError as error:
            log.warning("the broker is away or refuses, holding on: %s", error)
            return False
        return True

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status of `/health` and what it says."""
        full = self.held >= self.settings.memory_mb * MEGABYTE
        state = "full" if full else "ok" if self.broker_up else "holding"
        said = {
            "status": state,
            "broker": self.broker_up,
            "held_bytes": self.held,
            "records": len(self._ready),
            "halves": len(self.join),
        }
        return (503 if full else 200), said

    def metrics(self) -> str:
        """Prometheus text."""
        page, tally, dropped = Page(self.model.name), self.tally, self.join.dropped
        events = {name: tally.events[name] for name in OUTCOMES}
        page.family("vedette_ingest_events_total", "counter", "Events, by what became of them.", labelled("as", events))
        lost = {name: dropped[name] for name in ("request", "response", "replaced")}
        why = "Halves of inferences that were dropped: waited in vain, or replaced by another of the same id."
        page.family("vedette_ingest_unjoined_total", "counter", why, labelled("half", lost))
        page.family("vedette_ingest_records_total", "counter", "Records written.", {(): tally.records})
        page.family("vedette_ingest_retries_total", "counter", "Records sent again.", {(): tally.retries})
        page.family("vedette_ingest_too_large_total", "counter", "Records too large.", {(): tally.too_large})
        page.family("vedette_ingest_held_bytes", "gauge", "Bytes held.", {(): self.held})
        waiting = {"halves": len(self.join), "records": len(self._ready)}
        page.family("vedette_ingest_waiting", "gauge", "What is held.", labelled("what", waiting))
        page.family("vedette_broker_up", "gauge", "Whether the broker answers.", {(): int(self.broker_up)})
        page.family("vedette_resident_memory_bytes", "gauge", "Resident memory.", {(): resident_bytes()})
        return page.text()


def run(settings: Settings, model_name: str) -> int:
    """Take events until SIGTERM or SIGINT; returns the exit code, 1 when records could not be written at the end.

    Raises
    ------
    ConfigError, BrokerError, MissingTopic
        Before anything is taken.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    model = settings.model(model_name)
    if model.client != "key":
        raise ConfigError(f"models.{model.name}.client: {model.client!r}; `vedette ingest` writes it as the key: 'key'")
    if model.format != "auto":
        raise ConfigError(f"models.{model.name}.format: {model.format!r}; `vedette ingest` writes what 'auto' reads")
    topic_id(settings.kafka, model.topic)
    return asyncio.run(_serve(settings, model))


async def _serve(settings: Settings, model: ModelSettings) -> int:
    options = settings.ingest
    ingest = Ingest(options, model)
    producer = AIOKafkaProducer(
        **async_options(settings.kafka),
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        request_timeout_ms=REQUEST_MILLISECONDS,
        max_request_size=2 * options.max_event_mb * MEGABYTE,
        client_id="vedette-ingest",
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await producer.start()
    runner = web.AppRunner(application(ingest), access_log=None, handle_signals=False, shutdown_timeout=2.0)
    tasks = [asyncio.create_task(ingest.send(producer)), asyncio.create_task(ingest.sweep())]
    try:
        await runner.setup()
        site = web.TCPSite(runner, options.host, options.port)
        try:
            await site.start()
        except OSError as error:
            where = f"{options.host}:{options.port}"
            raise ConfigError(f"ingest.port: cannot listen on {where}: {error.strerror or error}") from None
        log.info("taking events of %s on %s:%d", model.name, options.host, runner.addresses[0][1])
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
    finally:
        await runner.cleanup()
        failed = next((task for task in tasks if task.done() and not task.cancelled() and task.exception()), None)
        until = time.monotonic() + FLUSH_SECONDS
        while failed is None and ingest.waiting_records and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await producer.stop()
    if failed is not None:
        await failed
    if ingest.waiting_records:
        log.error("%d records could not be written and are lost", ingest.waiting_records)
        return 1
    log.info("%d records written; %d halves waited still", ingest.tally.records, len(ingest.join))
    return 0


def application(ingest: Ingest) -> web.Application:
    """The HTTP side: POST / (any path), GET /health, GET /metrics."""

    async def health(_: web.Request) -> web.Response:
        status, said = ingest.health()
        return web.Response(text=json.dumps(said), status=status, content_type="application/json")

    async def metrics(_: web.Request) -> web.Response:
        content = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=ingest.metrics().encode(), headers=content)

    app = web.Application(client_max_size=ingest.settings.max_event_mb * MEGABYTE)
    app.add_routes([web.get("/health", health), web.get("/metrics", metrics), web.post("/{path:.*}", ingest.take)])
    return app
