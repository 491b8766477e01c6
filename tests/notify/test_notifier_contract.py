"""Every registered notifier keeps the contract, and says what its destination takes."""

from __future__ import annotations

import asyncio
import json
import socketserver
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import msgspec
import pytest

from streams.config import DestinationSettings
from streams.errors import ConfigError
from streams.notify import registry
from streams.notify.contract import Answer, Call, Notifier
from streams.notify.transport import HttpTransport
from streams.notify.webhook import SIGNATURE, verify
from streams.store.messages import Notice
from streams.store.schemas import schema
from tests.notify.conftest import SECOND, SECRET, START, Destination, notice
from tests.notify.schemas import ALERTMANAGER, OPSGENIE, OPSGENIE_ACTION, PAGERDUTY, SLACK

KINDS = registry.names()
NOW = START + 60 * SECOND
LONG = "<!channel> & \U0001f680 \u202e " + "x" * 20_000

NOTICES: dict[str, Notice] = {
    "opened": notice(),
    "raised": notice(reason="raised"),
    "repeat": notice(reason="repeat", id="vedette/digits/1f00000000000001#4"),
    "group": notice(
        reason="joined",
        count=12,
        incidents=notice().incidents * 10,
        group={"model": "digits"},
        key="vedette/digits/all",
    ),
    "acknowledged": notice("acknowledge"),
    "resolved": notice("resolve", what="resolved as true: blocked", severity="critical"),
    "no link": notice(url=""),
    "monitoring": notice(technique="monitoring-blind", technique_name="", atlas_version="", entity="monitoring"),
    "hostile": notice(title=LONG, advice=LONG, what=LONG, by=LONG, technique_name=LONG),
    "hostile end": notice("resolve", title=LONG, what=LONG, by=LONG),
    **{f"severity {name}": notice(severity=name) for name in ("low", "medium", "critical")},
}


def make(kind: str, url: str | None, secret_file: str | None, **changes: Any) -> Notifier:
    settings = DestinationSettings(name="there", kind=kind, url=url, secret_file=secret_file)
    return registry.create(msgspec.structs.replace(settings, **changes))


def published(kind: str, call: Call) -> dict[str, Any]:
    """The schema of what the destination says it takes."""
    if kind == "opsgenie":
        return OPSGENIE if call.url.endswith("/v2/alerts") else OPSGENIE_ACTION
    known = {"alertmanager": ALERTMANAGER, "pagerduty": PAGERDUTY, "slack": SLACK, "webhook": schema(Notice)}
    assert kind in known, f"write down what {kind} takes"
    return known[kind]


@pytest.mark.parametrize("case", NOTICES)
@pytest.mark.parametrize("kind", KINDS)
def test_payload_fits_the_published_schema_and_arrives(
    kind: str, case: str, destination: Callable[[], Destination], secret_file: str
) -> None:
    server = destination()
    notifier = make(kind, server.url, secret_file)
    call = notifier.call(NOTICES[case], NOW)
    if call is None:
        assert NOTICES[case].action == "acknowledge"
        return
    answer = send(call)
    assert notifier.judge(answer, NOW).kind == "delivered"
    (received,) = server.received
    assert received.headers["content-type"].startswith("application/json")
    jsonschema.validate(received.json, published(kind, call), jsonschema.Draft202012Validator)
    assert len(received.body) < 250_000


@pytest.mark.parametrize("kind", KINDS)
def test_key_is_the_same_from_trigger_to_resolution_at_every_attempt(kind: str, secret_file: str) -> None:
    notifier = make(kind, "http://127.0.0.1:1", secret_file)
    keys = set()
    for each in (NOTICES["opened"], NOTICES["repeat"], NOTICES["resolved"]):
        for now in (NOW, NOW + 3600 * SECOND):
            call = notifier.call(each, now)
            assert call is not None
            keys.add(key_of(kind, call))
    assert len(keys) == 1


def key_of(kind: str, call: Call) -> str:
    """What the destination deduplicates by."""
    body = json.loads(call.body)
    if kind == "alertmanager":
        return json.dumps(body[0]["labels"], sort_keys=True)
    if kind == "opsgenie":
        return str(body.get("alias") or unquote(call.url.split("/v2/alerts/")[1].split("/")[0]))
    if kind == "slack":  # Slack has no such thing: people read it
        return str(body["blocks"][2]["elements"][0]["text"]).rpartition(" · ")[2].partition("#")[0]
    return str(body["dedup_key" if kind == "pagerduty" else "key"])


@pytest.mark.parametrize("kind", KINDS)
def test_same_notice_at_the_same_time_is_the_same_request(kind: str, secret_file: str) -> None:
    notifier = make(kind, "http://127.0.0.1:1", secret_file)
    assert notifier.call(NOTICES["opened"], NOW) == notifier.call(NOTICES["opened"], NOW)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "headers", "wanted", "wait"),
    [
        (200, {}, "delivered", None),
        (202, {}, "delivered", None),
        (301, {}, "again", None),
        (400, {}, "refused", None),
        (401, {}, "again", None),
        (404, {}, "again", None),
        (408, {}, "again", None),
        (413, {}, "refused", None),
        (422, {}, "refused", None),
        (429, {"retry-after": "7"}, "again", 7.0),
        (429, {"retry-after": formatdate(NOW / 1e6 + 90, usegmt=True)}, "again", 90.0),
        (429, {"retry-after": "soon"}, "again", None),
        (429, {"retry-after": "999999999"}, "again", 3600.0),
        (429, {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, "again", 0.0),
        (500, {}, "again", None),
        (503, {"retry-after": "120"}, "again", 120.0),
        (0, {}, "again", None),
    ],
)
def test_answers_mean_the_same_everywhere(
    kind: str, status: int, headers: dict[str, str], wanted: str, wait: float | None, secret_file: str
) -> None:
    outcome = make(kind, "http://127.0.0.1:1", secret_file).judge(Answer(status, headers, "x" * 5000), NOW)
    assert (outcome.kind, outcome.wait_seconds) == (wanted, wait)
    assert len(outcome.text) < 300


@pytest.mark.parametrize("kind", KINDS)
def test_secret_shows_in_no_representation_and_no_error(kind: str, secret_file: str, tmp_path: Path) -> None:
    notifier = make(kind, "http://127.0.0.1:1", secret_file)
    notifier.call(NOTICES["opened"], NOW)
    assert SECRET not in repr(notifier) + repr(vars(notifier))
    Path(secret_file).write_text("https://hooks.example/" + SECRET)
    hidden = make(kind, None, secret_file, url_file=secret_file)
    call = hidden.call(NOTICES["opened"], NOW)
    assert call is not None
    answer = send(Call(call.url.replace("hooks.example", "127.0.0.1:1"), call.body, call.headers))
    assert answer.status == 0
    assert SECRET not in answer.text
    Path(secret_file).write_text("ftp://" + SECRET)
    with pytest.raises(ConfigError) as refused:
        hidden.call(NOTICES["opened"], NOW)
    assert SECRET not in str(refused.value)
    assert "notify.destinations.there" in str(refused.value)


@pytest.mark.parametrize("kind", ["pagerduty", "opsgenie", "webhook"])
def test_missing_secret_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"notify\.destinations\.there.*secret_file"):
        make(kind, "http://127.0.0.1:1", None).call(NOTICES["opened"], NOW)
    missing = make(kind, "http://127.0.0.1:1", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="cannot read"):
        missing.call(NOTICES["opened"], NOW)


def test_unknown_kind_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"there\.kind: no such kind 'pager'; there are alertmanager, opsgenie"):
        registry.create(DestinationSettings(name="there", kind="pager"))


def test_webhook_signature_is_verified_and_a_changed_body_is_not(secret_file: str) -> None:
    Path(secret_file).write_text(f"{SECRET}-new\n{SECRET}\n")
    call = make("webhook", "http://127.0.0.1:1", secret_file).call(NOTICES["opened"], NOW)
    assert call is not None
    header, now = call.headers[SIGNATURE], NOW / 1e6
    assert verify(call.body, header, SECRET, now)
    assert verify(call.body, header, SECRET + "-new", now)
    assert not verify(call.body + b" ", header, SECRET, now)
    assert not verify(call.body, header, SECRET + "-old", now)
    assert not verify(call.body, header, SECRET, now + 301)
    assert not verify(call.body, "t=1", SECRET, now)
    assert not verify(call.body, header.replace("t=", "t=1"), SECRET, now)


def test_alertmanager_forgets_nothing_that_is_open_and_ends_what_is_resolved(secret_file: str) -> None:
    one = make("alertmanager", "http://127.0.0.1:1", secret_file)
    assert 0 < one.refresh_seconds <= 60
    opened, ended = one.call(NOTICES["opened"], NOW), one.call(NOTICES["resolved"], NOW)
    assert opened is not None
    assert ended is not None
    assert json.loads(opened.body)[0]["endsAt"] > json.loads(ended.body)[0]["endsAt"] > "2023"
    labels = json.loads(opened.body)[0]["labels"]
    assert labels["technique"] == "AML.T0043.001"
    assert "3fa1" not in json.dumps(labels), "no client in labels"


def test_ticket_alert_ends_when_it_is_raised_to_a_page(secret_file: str) -> None:
    chat = make("alertmanager", "http://127.0.0.1:1", secret_file, chat=True)
    ticket, page = chat.call(notice(level="ticket"), NOW), chat.call(notice(reason="raised"), NOW)
    assert ticket is not None
    assert page is not None
    (before,) = json.loads(ticket.body)
    first, second = json.loads(page.body)
    assert first["labels"]["severity"] == "page"
    assert second["labels"] == before["labels"]
    assert second["endsAt"] <= first["endsAt"]


def test_slack_mentions_nobody(secret_file: str) -> None:
    call = make("slack", "http://127.0.0.1:1", secret_file).call(NOTICES["hostile"], NOW)
    assert call is not None
    body = json.loads(call.body)
    assert "<!channel>" not in body["text"]
    assert "<!channel>" not in body["blocks"][1]["text"]["text"]


@pytest.mark.parametrize(
    ("status", "delay", "text"), [(0, 0.0, "cannot be reached"), (200, 5.0, "no answer within 0.3 s")]
)
def test_transport_ends_in_time_whatever_the_other_side_does(
    destination: Callable[[], Destination], status: int, delay: float, text: str
) -> None:
    server = destination()
    server.always(status, delay=delay)
    began = time.monotonic()
    answer = send(Call(server.url, b"{}", {}), timeout_seconds=0.3)
    assert time.monotonic() - began < 3
    assert answer.status == 0
    assert text in answer.text


def test_transport_follows_no_redirect(destination: Callable[[], Destination]) -> None:
    first, second = destination(), destination()
    first.always(307, {"Location": second.url})
    assert send(Call(first.url, b"{}", {"Authorization": "Bearer x"})).status == 307
    assert second.received == []


@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.parametrize(
    "rest", [b"Content-Length: 100\r\n\r\n", b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone"]
)
def test_what_was_taken_is_taken_whatever_becomes_of_the_answers_body(rest: bytes, hangs: bool) -> None:
    over = threading.Event()

    class Broken(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(b"HTTP/1.1 202 Accepted\r\nRetry-After: 7\r\n" + rest)
            if hangs:
                over.wait(10)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        answer = send(Call(f"http://127.0.0.1:{server.server_address[1]}", b"{}", {}), timeout_seconds=0.5)
        over.set()
        server.shutdown()
    assert (answer.status, answer.headers["retry-after"]) == (202, "7")


def test_transport_reports_a_bad_certificate_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there\.ca_file: cannot read certificates"):
        HttpTransport(DestinationSettings(name="there", kind="webhook", ca_file=str(tmp_path / "none")))


def send(call: Call, **changes: Any) -> Answer:
    settings = DestinationSettings(name="there", kind="webhook", timeout_seconds=5.0)

    async def main() -> Answer:
        transport = HttpTransport(msgspec.structs.replace(settings, **changes))
        try:
            return await transport.send(call)
        finally:
            await transport.close()

    return asyncio.run(main())
