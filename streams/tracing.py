"""Traces from event to page: one trace a signal, with a span of the worker, one of the correlator, one a notification.

Ids follow from the signal's id, so that processes which never meet make spans of one trace, and a replay makes the same
span again. Only signals are traced, not events: quiet traffic costs nothing. Off unless `tracing.endpoint` is set.

The attributes are those of OpenTelemetry's semantic conventions for messaging, where there are any.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from streams.config import Settings
from streams.errors import ConfigError
from streams.store.messages import Alert, IncidentChange, Notice, SignalMessage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("vedette.tracing")

Role = Literal["worker", "correlator", "notifier"]

#: Spans wait so long for company before they are sent, and one sending may take so long.
DELAY_MILLISECONDS, SEND_SECONDS = 1_000, 2
#: Spans that wait at most; further ones are dropped.
WAITING = 2_048
#: Signals of one batch that are traced; a flood is told by counters.
SIGNALS_A_BATCH = 32
#: The spans at the end of a process get so long.
CLOSE_MILLISECONDS = 1_500

Attribute = str | int | float | bool


def trace_id(signal: str) -> int:
    """The trace of a signal, 128 bits."""
    return int.from_bytes(hashlib.blake2b(signal.encode(), digest_size=16, person=b"vedette trace").digest()) or 1


def span_id(stage: str, signal: str) -> int:
    """The span of one stage of a signal's way, 64 bits."""
    told = f"{stage}\n{signal}".encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8, person=b"vedette span").digest()) or 1


class Tracing:
    """Makes the spans of one process and sends them in a thread of its own.

    Parameters
    ----------
    exporter : opentelemetry.sdk.trace.export.SpanExporter
    role : {"worker", "correlator", "notifier"}
    """

    def __init__(self, exporter: SpanExporter, role: Role) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):
            """Hands out what is set."""

            trace, span = 1, 1

            def generate_trace_id(self) -> int:
                return self.trace

            def generate_span_id(self) -> int:
                return self.span

        self._ids = Ids()
        self._lock = threading.Lock()
        resource = Resource.create(
            {
                "service.namespace": "vedette",
                "service.name": f"vedette-{role}",
                "service.version": version("vedette"),
            }
        )
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=WAITING, schedule_delay_millis=DELAY_MILLISECONDS)
        )
        self._tracer = self._provider.get_tracer("vedette", version("vedette"))

    def scored(self, signals: Sequence[SignalMessage], rows: int) -> None:
        """From the broker time of the event that completed a signal to its record in Redis.

        Parameters
        ----------
        signals
            Of one batch.
        rows : int
            Rows of the batch.
        """
        for signal in signals[:SIGNALS_A_BATCH]:
            self._span(
                "score",
                signal.id,
                "worker",
                None,
                min(signal.time, signal.at) * 1000,
                signal.at * 1000,
                {
                    "messaging.system": "kafka",
                    "messaging.operation.type": "process",
                    "messaging.destination.name": signal.topic,
                    "messaging.destination.partition.id": str(signal.partition),
                    "messaging.kafka.offset": signal.offset,
                    "messaging.batch.message_count": rows,
                    "vedette.model": signal.model,
                    "vedette.rule": signal.rule,
                    "vedette.level": signal.level,
                    "vedette.technique": signal.technique,
                },
            )

    def folded(self, changes: Iterable[IncidentChange], began: int, ended: int) -> None:
        """What signals did to incidents; microseconds since the epoch."""
        for change in changes:
            if change.signal:
                said: dict[str, Attribute] = {
                    "vedette.model": change.model,
                    "vedette.incident": change.incident,
                    "vedette.change": change.change,
                    "vedette.level": change.level,
                }
                self._span("correlate", change.signal, "correlator", "worker", began * 1000, ended * 1000, said)

    def told(self, destination: str, alert: Alert, notice: Notice, ending: str, began: int, ended: int) -> None:
        """One attempt to tell a destination of what a signal changed; microseconds since the epoch."""
        if not alert.signal:
            return
        said: dict[str, Attribute] = {
            "vedette.model": alert.model,
            "vedette.incident": alert.incident,
            "vedette.destination": destination,
            "vedette.notice": notice.id,
            "vedette.action": notice.action,
            "vedette.outcome": ending,
        }
        stage = f"notifier\n{destination}\n{notice.id}\n{began}"
        self._span(
            "notify", alert.signal, stage, "correlator", began * 1000, ended * 1000, said, failed=ending != "delivered"
        )

    def close(self) -> None:
        """Send what waits, for a bounded time."""
        self._provider.force_flush(CLOSE_MILLISECONDS)
        self._provider.shutdown()

    def _span(
        self,
        name: str,
        signal: str,
        stage: str,
        parent: str | None,
        began: int,
        ended: int,
        said: Mapping[str, Attribute],
        failed: bool = False,
    ) -> None:
        """One span, nanoseconds since the epoch; None for `parent` begins the trace."""
        from opentelemetry.context import Context
        from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
        from opentelemetry.trace.propagation import set_span_in_context

        context = Context()
        if parent is not None:
            above = SpanContext(trace_id(signal), span_id(parent, signal), True, TraceFlags(TraceFlags.SAMPLED))
            context = set_span_in_context(NonRecordingSpan(above), context)
        kind = {"score": SpanKind.CONSUMER, "notify": SpanKind.CLIENT}.get(name, SpanKind.INTERNAL)
        with self._lock:
            self._ids.trace, self._ids.span = trace_id(signal), span_id(stage, signal)
            span = self._tracer.start_span(
                name, context, kind, {"vedette.signal": signal, **said}, start_time=min(began, ended)
            )
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)


def tracing(settings: Settings, role: Role) -> Tracing | None:
    """What traces the process; None where no endpoint is set.

    Raises
    ------
    ConfigError
        The extra `otel` is not installed, or the endpoint is no address.
    """
    endpoint = settings.tracing.endpoint
    if not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"tracing.endpoint: {endpoint!r} is no address; write http://127.0.0.1:4318/v1/traces")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(
            "tracing.endpoint is set, and OpenTelemetry is missing: pip install 'vedette[otel]'"
        ) from None
    return Tracing(OTLPSpanExporter(endpoint=endpoint, timeout=SEND_SECONDS), role)
