"""A destination that answers over real HTTP, fails, is slow, asks for pauses; alerts as the correlator writes them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from streams.config import DestinationSettings, NotifySettings, RouteSettings
from streams.store.keys import ModelKeys
from streams.store.messages import Alert, Notice, NoticeIncident

SECOND = 1_000_000
HOUR = 3600 * SECOND
START = 1_700_000_000 * SECOND
SECRET = "a-secret-of-the-destination-0123456789"


@dataclass(frozen=True)
class Received:
    """A request that reached the server."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int
    """What it was answered; 0 where the connection was cut."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Destination:
    """A local HTTP server. `answer` decides what a request gets: a status, headers, a delay in seconds."""

    answer: Callable[[str, bytes], tuple[int, dict[str, str], float]] = lambda *_: (200, {}, 0.0)
    received: list[Received] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def accepted(self) -> list[Received]:
        return [one for one in self.received if 200 <= one.status < 300]

    def always(self, status: int, headers: dict[str, str] | None = None, delay: float = 0.0) -> None:
        """One answer for everything; status 0 cuts the connection."""
        self.answer = lambda *_: (status, headers or {}, delay)


def start(destination: Destination) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, delay = destination.answer(self.path, body)
            threading.Event().wait(delay)
            told = {name.lower(): value for name, value in self.headers.items()}
            destination.received.append(Received(self.path, told, body, status))
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                return  # the other side has gone

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    destination.port = server.server_address[1]
    return server


@pytest.fixture
def destination() -> Iterator[Callable[[], Destination]]:
    """Start a destination."""
    servers = []

    def make() -> Destination:
        one = Destination()
        servers.append(start(one))
        return one

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return str(path)


def alert(incident: str = "1f00000000000001", number: int = 1, change: str = "opened", **changes: Any) -> Alert:
    """As the correlator announces it."""
    plain = Alert(
        id=f"{incident}#{number}",
        incident=incident,
        model="digits",
        change=change,  # type: ignore[arg-type]  # of a test's own table
        level="page",
        state="resolved" if change == "resolved" else "in_progress" if change == "acknowledged" else "new",
        technique="AML.T0043.001",
        entity="client",
        entity_id="3fa1b2c4d5e6f708",
        title="Query-based evasion by client 3fa1…: 24 near-identical queries seeking a decision boundary",
        first_seen=START,
        last_seen=START + 5 * SECOND,
        at=START + 6 * SECOND,
        severity="high",
        by="vedette",
        what="opened as page",
    )
    return msgspec.structs.replace(plain, **changes)


def notice(action: str = "trigger", **changes: Any) -> Notice:
    plain = Notice(
        id="vedette/digits/1f00000000000001#1",
        key="vedette/digits/1f00000000000001",
        action=action,  # type: ignore[arg-type]  # of a test's own table
        reason={"trigger": "opened", "acknowledge": "acknowledged"}.get(action, "resolved"),  # type: ignore[arg-type]  # of a test's own table
        model="digits",
        level="page",
        severity="high",
        technique="AML.T0043.001",
        technique_name="Query-based evasion",
        atlas_version="5.6.0",
        entity="client",
        title="Query-based evasion by client 3fa1…",
        advice="Look at the client's recent traffic and its purpose.",
        by="ada",
        what="opened as page",
        count=1,
        incidents=(
            NoticeIncident(
                id="1f00000000000001", title="Query-based evasion", level="page", severity="high", state="new"
            ),
        ),
        group={"model": "digits", "technique": "AML.T0043.001", "entity": "client"},
        first_seen=START,
        last_seen=START + SECOND,
        at=START + SECOND,
        url="https://vedette.example/incidents/1f00000000000001?model=digits",
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def announce(redis: Redis) -> Callable[[Alert], None]:
    """Put an alert on the public stream."""

    def append(message: Alert) -> None:
        redis.xadd(ModelKeys(message.model).alerts, {"m": msgspec.json.encode(message)})

    return append


def webhook(name: str, url: str, secret_file: str, **changes: Any) -> DestinationSettings:
    plain = DestinationSettings(name=name, kind="webhook", url=url, secret_file=secret_file, timeout_seconds=2.0)
    return msgspec.structs.replace(plain, **changes)


def to(*names: str, **changes: Any) -> RouteSettings:
    return RouteSettings(destinations=names, **changes)


def notify(destinations: list[DestinationSettings], routes: list[RouteSettings], **changes: Any) -> NotifySettings:
    return NotifySettings(destinations=tuple(destinations), routes=tuple(routes), **changes)


def wall() -> float:
    return time.monotonic()
