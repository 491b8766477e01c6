from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from click.testing import CliRunner
from redis import Redis
from rich.console import Console

from streams.config import ModelSettings, Settings, parse
from streams.errors import Conflict
from streams.incidents import terminal
from streams.incidents.ledger import Ledger, fold
from streams.incidents.runbook import Runbook
from streams.incidents.service import IncidentService
from streams.store.keys import ModelKeys
from streams.store.messages import Incident, SignalMessage

SignalFactory = Callable[..., SignalMessage]


@dataclass
class Shell:
    settings: Settings

    @property
    def model_settings(self) -> ModelSettings:
        return self.settings.model(None)


@pytest.fixture
def shell(redis_url: str) -> Shell:
    model = {"name": "digits", "topic": "events", "bundle": "none"}
    return Shell(parse({"models": [model], "redis": {"url": redis_url}}, "test"))


@pytest.fixture
def name(redis: Redis, make_signal: SignalFactory) -> str:
    hostile = "[red]bold[/red]\x1b[31m"
    signals = [make_signal(1), make_signal(2, level="page", rule="query-intent", bundle=hostile)]
    ledger = Ledger(redis, ModelKeys("digits"))
    entries = [(signal, msgspec.json.encode(signal).decode()) for signal in signals]
    drafts = list(fold("digits", ledger.book("events:0", signals), entries, now=1).drafts)
    ledger.apply(drafts)
    return drafts[0].incident.id


def printed(redis: Redis, command: Callable[..., int], *arguments: object) -> str:
    out = io.StringIO()
    assert command(IncidentService(redis, "digits"), Console(file=out, width=140), *arguments) == 0
    return out.getvalue()


def test_list_shows_what_matters_in_a_line(redis: Redis, name: str) -> None:
    assert printed(redis, terminal.list_command, None, "ticket") == "No such incidents.\n"
    (line,) = [line for line in printed(redis, terminal.list_command).splitlines() if name in line]
    for part in ("page", "new", "Query-based evasion by client 3fa1…"):
        assert part in line


def test_empty_list_says_so(redis: Redis) -> None:
    assert printed(redis, terminal.list_command) == "No incidents.\n"


def test_show_has_evidence_history_and_what_to_do(redis: Redis, name: str) -> None:
    text = printed(redis, terminal.show_command, name)
    for part in (
        "AML.T0043.001 Query-based evasion (MITRE ATLAS 5.6.0)",
        "query-cluster 1, query-intent 1",
        "raised to page by query-intent",
        "query-intent at events/0/2 row 0",
        "trust_ratio: nearer to another class (p = 0.01)",
        "[0] 0.5 -> 0",
        "what to do",
    ):
        assert part in text


def test_hostile_text_is_printed_not_obeyed(redis: Redis, name: str) -> None:
    text = printed(redis, terminal.show_command, name)
    assert "[red]bold[/red]" in text
    assert "\x1b" not in text


def test_commands_of_the_shell(shell: Shell, redis: Redis, name: str) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(
            terminal.incidents, arguments, obj=shell, catch_exceptions=False, standalone_mode=False
        )
        assert result.return_value == 0
        return result.output

    listed = msgspec.convert(json.loads(run("list", "--json")), list[Incident])
    assert [incident.id for incident in listed] == [name]
    shown = json.loads(run("show", name, "--json"))
    assert [signal["offset"] for signal in shown["evidence"]] == [2, 1]
    assert "in progress by ada" in run("ack", name, "--by", "ada")
    assert (
        json.loads(run("resolve", name, "--verdict", "benign", "--note", "ours", "--by", "ada", "--json"))["verdict"]
        == "benign"
    )
    assert "new" in run("reopen", name, "--by", "ada")
    run("resolve", name, "--verdict", "true", "--by", "ada")
    with pytest.raises(Conflict):
        CliRunner().invoke(
            terminal.incidents, ["ack", name, "--by", "bob"], obj=shell, catch_exceptions=False, standalone_mode=False
        )


def test_silence_list_and_unsilence_in_the_terminal(redis: Redis, shell: Shell, name: str) -> None:
    run = CliRunner()

    def call(*arguments: str) -> tuple[int, str]:
        result = run.invoke(terminal.incidents, list(arguments), obj=shell)
        return result.exit_code, result.output

    code, output = call(
        "silence", "--client", "3fa1*", "--for", "1.5h", "--comment", "a [red]test[/red]", "--by", "ada", "--json"
    )
    assert code == 0
    made = json.loads(output)
    assert made["ends"] - made["starts"] == 5_400_000_000
    code, output = call("silences")
    assert code == 0
    assert made["id"] in output
    assert "in force" in output
    assert call("unsilence", made["id"], "--by", "bob")[0] == 0
    assert call("silences")[1] == "No silences.\n"
    assert "ended" in call("silences", "--ended")[1]
    code, output = call("silence", "--client", "x", "--for", "soon", "--by", "ada")
    assert code == 2
    assert "is no length of time; write 90s, 30m, 2h or 1.5d" in output
    code, output = call("silence", "--client", "x", "--for", "9" * 400 + "d", "--by", "ada")
    assert code == 2
    assert "longer than a hundred years" in output
    code, output = call(
        "silence", "--maintenance", "--for", "2d", "--from", "2030-01-01T00:00:00", "--by", "ada", "--json"
    )
    assert json.loads(output)["starts"] == 1_893_456_000_000_000


def test_assign_and_note_in_the_terminal(redis: Redis, shell: Shell, name: str) -> None:
    run = CliRunner()
    assert run.invoke(terminal.incidents, ["assign", name, "bob", "--by", "ada"], obj=shell).exit_code == 0
    assert run.invoke(terminal.incidents, ["note", name, "asked the tenant", "--by", "ada"], obj=shell).exit_code == 0
    text = run.invoke(terminal.incidents, ["show", name], obj=shell).output
    assert "note: asked the tenant" in text
    assert "in progress, bob" in text
    assert "severity high" in text


def test_watch_prints_what_changes_and_waits_while_redis_is_away(redis: Redis, name: str, redis_url: str) -> None:
    out, stop = io.StringIO(), threading.Event()
    reader = Redis.from_url(redis_url, socket_timeout=5)
    keys = ModelKeys("digits")
    arguments = (reader, keys, Console(file=out, width=140), stop)
    thread = threading.Thread(target=terminal.watch_command, args=arguments)
    thread.start()
    service = IncidentService(redis, "digits")
    until = time.monotonic() + 20
    while "note: number" not in out.getvalue():  # what comes before it looks for the first time is not shown
        service.note(name, "ada", f"number {time.monotonic_ns()}")
        assert time.monotonic() < until
        stop.wait(0.05)
    redis.xadd(keys.log, {"m": "{"})
    service.acknowledge(name, "[red]ada")
    while "acknowledged ([red]ada)" not in out.getvalue():
        assert time.monotonic() < until, out.getvalue()
        stop.wait(0.02)
    stop.set()
    thread.join(10)
    reader.close()
    assert "opened" not in out.getvalue()
    assert name in out.getvalue()


def test_show_tells_the_runbook_of_the_settings(redis: Redis, name: str) -> None:
    runbook = Runbook({"AML.*": "too general", "AML.T0043.*": "Ask the\n\ntenant.", "AML.T0024*": "another"})
    assert "Ask the tenant." in printed(redis, terminal.show_command, name, False, runbook)
    assert runbook.text("AML.T0015", "client") == "too general"
    assert runbook.text("monitoring-blind", "monitoring").startswith("Check prober")
