"""`vedette notifier --check`: one test notification to every destination, and `--status`: what waits where."""

from __future__ import annotations

import asyncio
import secrets
import time

import click
import msgspec
from redis import Redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.config import Settings
from streams.errors import ConfigError, DeliveryError
from streams.notify.contract import Notifier, Outcome
from streams.notify.outbox import Health
from streams.notify.routing import Routing
from streams.notify.transport import HttpTransport, Transport
from streams.store.client import connect
from streams.store.keys import ModelKeys
from streams.store.messages import Notice, NoticeAction


class Checked(msgspec.Struct, frozen=True):
    """What came of a test notification."""

    destination: str
    kind: str
    arrived: bool
    text: str
    milliseconds: float


class Waiting(msgspec.Struct, frozen=True):
    """What waits at one destination for one model."""

    model: str
    destination: str
    threads: int
    """Incidents, or groups, that the destination knows of or is to be told of."""
    oldest_seconds: float
    """How long the longest overdue one waits; 0: none does."""
    dead: int
    """Dead letters that are kept."""
    failures: int
    """In a row."""
    problem: str


def test_notice(key: str, model: str, action: NoticeAction, at: int) -> Notice:
    """A notice that says that it is none."""
    return Notice(
        id=f"{key}#{1 if action == 'trigger' else 2}",
        key=key,
        action=action,
        reason="test" if action == "trigger" else "resolved",
        model=model,
        level="page",
        severity="low",
        technique="",
        technique_name="",
        atlas_version="",
        entity="monitoring",
        title="Test notification of Vedette: no incident, nothing is to be done",
        advice="If you can read this, notifications of Vedette reach you.",
        by="vedette",
        what="sent by vedette notifier --check" if action == "trigger" else "the test is over",
        count=1,
        incidents=(),
        group={"model": model},
        first_seen=at,
        last_seen=at,
        at=at,
    )


def check(settings: Settings, model: str, only: str | None, as_json: bool = False) -> int:
    """Send a test to every destination, or to the one that `only` names, and print what came of it.

    A test is triggered and resolved at once, in one attempt each.

    Raises
    ------
    ConfigError
        When the settings make no sense.
    DeliveryError
        When some destination did not take it.
    """
    routing = Routing.of(settings.notify)
    wanted = [one for one in settings.notify.destinations if only in (None, one.name)]
    if not wanted:
        declared = ", ".join(routing.notifiers) or "none"
        raise ConfigError(f"notify.destinations: no destination {only!r}; declared: {declared}" if only else
                          "notify.destinations: none is declared; see docs/notifications.md")  # fmt: skip
    key = f"vedette/{model}/test-{secrets.token_hex(4)}"

    async def main() -> list[Checked]:
        found = []
        for one in wanted:
            transport = HttpTransport(one)
            began = time.monotonic()
            outcome = await _try(routing.notifiers[one.name], transport, key, model)
            await transport.close()
            took = 1000 * (time.monotonic() - began)
            found.append(Checked(one.name, one.kind, outcome.kind == "delivered", outcome.text, took))
        return found

    found = asyncio.run(main())
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)))
    else:
        table = Table("destination", "kind", "", "took", "what it said", box=None, pad_edge=False)
        for each in found:
            mark = Text("arrived", "green") if each.arrived else Text("did not arrive", "bold red")
            table.add_row(each.destination, each.kind, mark, f"{each.milliseconds:.0f} ms", Text(each.text))
        Console().print(table)
    lost = [each.destination for each in found if not each.arrived]
    if lost:
        raise DeliveryError(f"the test notification did not arrive at {', '.join(lost)}")
    return 0


async def _try(notifier: Notifier, transport: Transport, key: str, model: str) -> Outcome:
    outcome = Outcome("refused")
    actions: tuple[NoticeAction, ...] = ("trigger", "resolve")
    for action in actions:
        now = time.time_ns() // 1000
        try:
            call = notifier.call(test_notice(key, model, action, now), now)
        except ConfigError as error:
            return Outcome("refused", text=str(error))
        if call is not None:
            outcome = notifier.judge(await transport.send(call), now)
            if outcome.kind != "delivered":
                return outcome
    return outcome


def status(settings: Settings, models: list[str], as_json: bool = False) -> int:
    """Print what waits at every destination.

    Raises
    ------
    ConfigError, StoreError
    """
    redis = connect(settings.redis)
    now = time.time_ns() // 1000
    names = [one.name for one in settings.notify.destinations]
    found = [waiting(redis, ModelKeys(model), name, now) for model in models for name in names]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)))
        return 0
    table = Table("model", "destination", "known", "overdue", "dead", "failures", "problem", box=None, pad_edge=False)
    for one in found:
        overdue = f"{one.oldest_seconds:,.0f} s" if one.oldest_seconds else "–"
        cells = (one.model, one.destination, f"{one.threads:,}", overdue, f"{one.dead:,}", str(one.failures))
        table.add_row(*cells, Text(one.problem), style="bold red" if one.failures else "")
    Console().print(table)
    return 0


def waiting(redis: Redis, keys: ModelKeys, destination: str, now: int) -> Waiting:
    """What waits at one destination."""
    pipe = redis.pipeline(transaction=False)
    pipe.hlen(keys.notices(destination))
    pipe.zrange(keys.notices_due(destination), 0, 0, withscores=True)
    pipe.xlen(keys.notices_dead(destination))
    pipe.hget(keys.notice_health, destination)
    threads, due, dead, text = pipe.execute()
    health = msgspec.json.decode(text, type=Health) if text else Health()
    late = max(0.0, now / 1e6 - float(due[0][1])) if due else 0.0
    since = (now - health.since) / 1e6 if health.since else 0.0
    return Waiting(keys.model, destination, int(threads), max(late, since), int(dead), health.failures, health.problem)
