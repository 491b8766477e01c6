"""Traces: three processes' spans of one signal are one trace, sent as OTLP over HTTP to a receiver of ours."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from redis import Redis
from redis import asyncio as aioredis

from streams import config
from streams.config import ModelSettings, RedisSettings, Settings, TracingSettings
from streams.errors import ConfigError
from streams.incidents.correlator import Correlator
from streams.lease import Lease
from streams.notify.outbox import GROUP
from streams.notify.routing import Routing
from streams.notify.service import ModelNotifier
from streams.notify.transport import HttpTransport
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Alert, SignalMessage
from streams.tracing import SIGNALS_A_BATCH, Role, Tracing, trace_id, tracing
from tests.notify.conftest import destination, notify, secret_file, to, webhook  # noqa: F401  fixtures
from tests.streams.incidents.conftest import make_signal, send  # noqa: F401  fixtures

KEYS = ModelKeys("digits")
SECOND = 1_000_000


class Receiver:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        """With the name of the service."""
        ours = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding"):
                    raise AssertionError("nothing was said of compression")
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    named = {one.key: one.value.string_value for one in group.resource.attributes}
                    ours.spans += [(named["service.name"], span) for scope in group.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, name: str) -> list[Span]:
        return [span for _, span in self.spans if span.name == name]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def trace(receiver: Receiver) -> Iterator[Callable[[Role], Tracing]]:
    made: list[Tracing] = []

    def start(role: Role) -> Tracing:
        found = tracing(deployment(receiver.endpoint), role)
        assert found is not None
        made.append(found)
        return found

    yield start
    for one in made:
        one.close()


def deployment(endpoint: str, **more: Any) -> Settings:
    models = (ModelSettings(name="digits", topic="events", bundle="none"),)
    return Settings(models=models, tracing=TracingSettings(endpoint), **more)


def said(span: Span) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_worker_correlator_and_notifier_make_one_trace_of_a_signal(
    redis: Redis,
    redis_url: str,
    receiver: Receiver,
    trace: Callable[[Role], Tracing],
    destination: Callable[[], Any],  # noqa: F811  the fixture
    secret_file: str,  # noqa: F811  the fixture
    make_signal: Callable[..., SignalMessage],  # noqa: F811  the fixture
    send: Callable[[SignalMessage], None],  # noqa: F811  the fixture
) -> None:
    worker, correlator, notifier = trace("worker"), trace("correlator"), trace("notifier")
    page = make_signal(7, level="page", rule="query-intent")
    worker.scored([page], rows=40)
    send(page)
    redis.hset(PartitionKeys("events", 0).watermark, "w", 1)
    redis.xgroup_create(KEYS.alerts, GROUP, "0", mkstream=True)  # the notifier is no newcomer
    lease = Lease(redis, KEYS, "correlator", seconds=300)
    assert lease.acquire()
    folding = Correlator(redis, "digits", "events", lease, tracing=correlator)
    folding.load()
    assert folding.step(1) == 1
    ((_, fields),) = redis.xrange(KEYS.alerts)
    assert msgspec.json.decode(fields[b"m"], type=Alert).signal == page.id
    server = destination()
    told = notify([webhook("a", server.url, secret_file)], [to("a")])

    async def tell() -> None:
        store = aioredis.Redis.from_url(redis_url, socket_timeout=5)
        transports = {one.name: HttpTransport(one) for one in told.destinations}
        every = Settings(
            models=(ModelSettings(name="digits", topic="events", bundle="none"),),
            redis=RedisSettings(url=redis_url),
            notify=told,
        )
        made = ModelNotifier(every, "digits", redis, store, Routing.of(told), transports, tracing=notifier)
        assert made._lease.acquire()
        token = made._lease.token
        await made._intake.step(token, made._clock(), 1)
        for courier in made.couriers:
            courier.token = token
            await courier.round()
        for transport in transports.values():
            await transport.close()
        await store.aclose()

    asyncio.run(tell())
    for one in (worker, correlator, notifier):
        one.close()
    (score,), (fold,), (notice,) = receiver.of("score"), receiver.of("correlate"), receiver.of("notify")
    assert {name for name, _ in receiver.spans} == {"vedette-worker", "vedette-correlator", "vedette-notifier"}
    assert {span.trace_id for _, span in receiver.spans} == {trace_id(page.id).to_bytes(16)}
    assert (score.parent_span_id, fold.parent_span_id, notice.parent_span_id) == (b"", score.span_id, fold.span_id)
    assert (score.start_time_unix_nano, score.end_time_unix_nano) == (page.time * 1000, page.at * 1000)
    known = said(score)
    assert (known["messaging.kafka.offset"], known["messaging.destination.name"]) == (7, "events")
    (incident,) = redis.zrange(KEYS.incidents, 0, -1)
    assert said(fold)["vedette.incident"] == said(notice)["vedette.incident"] == incident.decode()
    assert (said(notice)["vedette.destination"], said(notice)["vedette.outcome"]) == ("a", "delivered")
    assert {said(span)["vedette.signal"] for _, span in receiver.spans} == {page.id}
    assert len(server.accepted) == 1


def test_the_same_signal_makes_the_same_span_and_floods_are_bounded(
    receiver: Receiver,
    trace: Callable[[Role], Tracing],
    make_signal: Callable[..., SignalMessage],  # noqa: F811  the fixture
) -> None:
    one, again = trace("worker"), trace("worker")
    one.scored([make_signal(1)], rows=1)
    again.scored([make_signal(1, at=1)], rows=1)  # recorded before it happened, say two clocks
    again.scored([make_signal(number) for number in range(100, 200)], rows=100)
    one.close()
    again.close()
    first, second, *flood = receiver.of("score")
    assert (first.trace_id, first.span_id) == (second.trace_id, second.span_id)
    assert second.start_time_unix_nano <= second.end_time_unix_nano
    assert len(flood) == len({span.trace_id for span in flood}) == SIGNALS_A_BATCH


def test_a_refused_notice_is_an_error_and_what_people_do_is_no_span(
    receiver: Receiver, trace: Callable[[Role], Tracing]
) -> None:
    from tests.notify.conftest import alert, notice

    notifier = trace("notifier")
    notifier.told("a", alert(), notice(), "delivered", 1, 2)
    notifier.told("a", alert(signal="events/0/7/0/query-intent"), notice(), "again", SECOND, 2 * SECOND)
    notifier.close()
    (span,) = receiver.of("notify")
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.end_time_unix_nano - span.start_time_unix_nano == 10**9


def test_it_is_off_unless_configured_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing(deployment(""), "worker") is None
    with pytest.raises(ConfigError, match="no address"):
        tracing(deployment("localhost:4318"), "worker")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'vedette\[otel\]'"):
        tracing(deployment("http://127.0.0.1:1/v1/traces"), "worker")


def test_a_collector_that_is_away_holds_nobody_up(make_signal: Callable[..., SignalMessage]) -> None:  # noqa: F811
    found = tracing(deployment("http://127.0.0.1:9/v1/traces"), "worker")
    assert found is not None
    found.scored([make_signal(1)], rows=1)
    found.close()


def test_settings_name_the_endpoint() -> None:
    model = {"name": "digits", "topic": "events", "bundle": "none"}
    found = config.parse({"models": [model], "tracing": {"endpoint": "http://otel:4318/v1/traces"}}, "test")
    assert found.tracing.endpoint == "http://otel:4318/v1/traces"
