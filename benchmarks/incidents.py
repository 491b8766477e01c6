"""Incidents under an attack by very many clients, and the console with very many incidents.

    python -m benchmarks.incidents [--json] [--check] [--quick]

1. 10,000 attacking clients in one campaign, over four partitions: each is ticketed, then pages, from either side of
   one decision boundary (two corners of the input space). Counted: incidents that are open at the end, alerts that
   would call somebody (a page opened, raised or re-opened), and what a notifier told a destination over HTTP meanwhile.
2. The list, the live page, the API's list and incident pages over HTTP, with 10,000 incidents and 1,000,000 entries in
   the alerts stream, while 50 signals a second arrive: 95 % quantiles of the time to the last byte, one visitor at a
   time.

Redis is the embedded one (``appendfsync always``), or the empty database that REDIS names.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import numpy as np
from aiohttp import web
from redis import Redis

from benchmarks.report import Figure, Target, arguments, finish, median_figure, progress
from streams import embedded
from streams.config import (
    DestinationSettings,
    ModelSettings,
    NotifySettings,
    RedisSettings,
    RouteSettings,
    Settings,
)
from streams.console.app import Console
from streams.incidents.correlator import Correlator
from streams.incidents.ledger import as_text
from streams.lease import Lease
from streams.notify.outbox import GROUP
from streams.notify.service import serve
from streams.store.client import connect_async
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Alert, Incident, Notice, ReasonMessage, SignalMessage, WorkerStatus

MODEL, TOPIC = "digits", "events"
KEYS = ModelKeys(MODEL)
PARTITIONS = 4
CLIENTS, INCIDENTS, ALERTS = 10_000, 10_000, 1_000_000
#: Clients whose signals one step of the first part sends.
WAVE = 500
#: Requests of each page, and signals a second that arrive meanwhile.
REQUESTS, SIGNALS_A_SECOND = 200, 50.0
SECOND, MINUTE = 1_000_000, 60_000_000
#: Incidents of the second part open a minute and partition, below the flood's bound.
OPENINGS = 15
FEATURES = 64

TARGETS = (
    Target("open_incidents", "<=", 5),
    Target("page_alerts", "<=", 5),
    Target("notifications", "<=", 5),
    *(Target(f"{page}_p95_ms", "<=", 200.0) for page in ("list", "live", "incident", "api_list")),
)


def signal(partition: int, offset: int, client: str, at: int, corner: float, page: bool) -> SignalMessage:
    """As a worker records it."""
    rng = np.random.default_rng([partition, offset])
    rule = "query-intent" if page else "query-cluster"
    return SignalMessage(
        id=f"{TOPIC}/{partition}/{offset}/0/{rule}",
        model=MODEL,
        topic=TOPIC,
        partition=partition,
        offset=offset,
        row=0,
        time=at,
        at=at,
        rule=rule,
        level="page" if page else "ticket",
        technique="AML.T0043.001",
        entity="client",
        entity_id=client,
        statistic=12.0,
        threshold=10.0,
        reasons=[ReasonMessage("client_history", 0.001, "an earlier query of this client lies near")],
        members=[(max(offset - back, 0), 0) for back in range(20, 0, -1)],
        clients=[client],
        input=rng.uniform(size=FEATURES).round(3).tolist(),
        nearest=[corner] * FEATURES,
        label=int(corner) % 2,
        nearest_label=int(corner) % 2,
        measures={"size": 24.0, "gate": 40.0, "wide_share": 0.9, "progress": 2.9, "score": 1.3},
        bundle="b1",
    )


class Site:
    """Redis with a correlator, filled as workers fill it."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.now = time.time_ns() // 1000 // MINUTE * MINUTE
        lease = Lease(redis, KEYS, "correlator", seconds=3600)
        if not lease.acquire():
            raise RuntimeError("somebody else holds the correlator's lease: name an empty database in REDIS")
        self.correlator = Correlator(redis, MODEL, TOPIC, lease)
        self._offsets = [0] * PARTITIONS
        self._lock = threading.Lock()
        for partition in range(PARTITIONS):
            redis.hset(PartitionKeys(TOPIC, partition).watermark, "w", 1)
        self.correlator.load()

    def record(self, wanted: list[tuple[int, str, int, float, bool]]) -> None:
        """Append signals of (partition, client, time, corner, is a page)."""
        with self._lock:
            pipe = self.redis.pipeline(transaction=False)
            for partition, client, at, corner, page in wanted:
                offset = self._offsets[partition]
                self._offsets[partition] += 1
                message = signal(partition, offset, client, at, corner, page)
                pipe.xadd(
                    PartitionKeys(TOPIC, partition).signals, {"m": msgspec.json.encode(message)}, id=f"{offset + 1}-0"
                )
            pipe.execute()

    def correlate(self) -> None:
        """Apply everything that was recorded."""
        while self.correlator.step(1):
            continue

    def alive(self) -> None:
        """A worker speaks."""
        status = WorkerStatus(
            "bench:1", time.time_ns() // 1000, list(range(PARTITIONS)), 3, 1, 900.0, 20.0, 1, 9.0, "b1", ""
        )
        self.redis.hset(KEYS.workers, "bench:1", msgspec.json.encode(status))

    def open_incidents(self) -> list[Incident]:
        """All of them."""
        names = [as_text(name) for name in self.redis.hvals(KEYS.open_incidents)]
        bodies = [self.redis.hget(KEYS.incident(name), "m") for name in names]
        return [msgspec.json.decode(body, type=Incident) for body in bodies if body is not None]


@dataclass
class Called:
    """What reached the on-call engineer's destination."""

    notices: list[Notice] = field(default_factory=list)

    @property
    def triggers(self) -> int:
        """Notices that call somebody, each counted once."""
        return len({notice.id for notice in self.notices if notice.action == "trigger"})


@contextmanager
def notified(url: str, redis: Redis) -> Iterator[Called]:
    """A notifier that tells a destination of pages over HTTP; at the end everything that is due has been told."""
    called = Called()
    loop, stop, port = asyncio.new_event_loop(), asyncio.Event(), embedded.free_ports(1)[0]

    async def take(request: web.Request) -> web.Response:
        called.notices.append(msgspec.json.decode(await request.read(), type=Notice))
        return web.Response()

    async def main(settings: Settings) -> None:
        application = web.Application()
        application.router.add_post("/", take)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await serve(settings, [MODEL], stop)
        await runner.cleanup()

    with tempfile.TemporaryDirectory() as directory:
        secret = Path(directory) / "secret"
        secret.write_text(secrets.token_hex(16))
        settings = Settings(
            models=(ModelSettings(name=MODEL, topic=TOPIC, bundle="none"),),
            redis=RedisSettings(url=url),
            notify=NotifySettings(
                destinations=(
                    DestinationSettings(
                        name="oncall", kind="webhook", url=f"http://127.0.0.1:{port}/", secret_file=str(secret)
                    ),
                ),
                routes=(RouteSettings(destinations=("oncall",)),),
            ),
        )
        thread = threading.Thread(target=loop.run_until_complete, args=(main(settings),))
        thread.start()
        try:
            _wait(lambda: bool(_group(redis)))
            yield called
            _wait(lambda: _group(redis) == _newest(redis))
            _wait(lambda: not redis.zcount(KEYS.notices_due("oncall"), "-inf", time.time()))
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


def _group(redis: Redis) -> bytes:
    """Up to which alert the notifier has read; empty before it began."""
    if not redis.exists(KEYS.alerts):
        return b""
    found: Any = redis.xinfo_groups(KEYS.alerts)
    return next((group["last-delivered-id"] for group in found if group["name"] == GROUP.encode()), b"")


def _newest(redis: Redis) -> bytes:
    """Id of the newest alert."""
    found: Any = redis.xrevrange(KEYS.alerts, count=1)
    return bytes(found[0][0])


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError("the notifier does not come to an end")
        time.sleep(0.02)


def campaign(site: Site, clients: int, rng: np.random.Generator) -> list[Figure]:
    """The first part."""
    names = [secrets.token_hex(8) for _ in range(clients)]
    began = time.perf_counter()
    signals = 0
    for first in range(0, clients, WAVE):
        wave = names[first : first + WAVE]
        at = site.now + first * SECOND // 20
        for page in (False, True):
            wanted = [
                (int(name, 16) % PARTITIONS, name, at + place * 1000, float(rng.integers(2)), page)
                for place, name in enumerate(wave)
            ]
            site.record(wanted)
            site.correlate()
            signals += len(wanted)
    seconds = time.perf_counter() - began
    stored: Any = site.redis.xrange(KEYS.alerts)
    calls = [
        alert
        for _, fields in stored
        if (alert := msgspec.json.decode(fields[b"m"], type=Alert)).level == "page"
        and alert.change in ("opened", "raised", "reopened")
    ]
    opened = site.open_incidents()
    for incident in opened:
        progress(f"  {incident.level}: {incident.title} ({incident.signals:,} signals)")
    return [
        Figure("open_incidents", len(opened)),
        Figure("page_alerts", len(calls)),
        Figure("signals_a_second", signals / seconds, unit="1/s"),
    ]


def fill(site: Site, incidents: int, alerts: int) -> None:
    """Many incidents, each of a client and a corner of its own, and many alerts."""
    made = 0
    minute = 0
    while made < incidents:
        count = min(OPENINGS * PARTITIONS, incidents - made)
        at = site.now - (incidents // (OPENINGS * PARTITIONS) + 2 - minute) * MINUTE
        site.record(
            [
                (place % PARTITIONS, secrets.token_hex(8), at + place, 10.0 + made + place, (made + place) % 3 == 0)
                for place in range(count)
            ]
        )
        made += count
        minute += 1
        if minute % 20 == 0:
            site.correlate()
    site.correlate()
    newest: Any = site.redis.xrevrange(KEYS.alerts, count=1)
    entry = newest[0][1]
    for start in range(0, alerts, 5_000):
        pipe = site.redis.pipeline(transaction=False)
        for _ in range(min(5_000, alerts - start)):
            pipe.xadd(KEYS.alerts, entry)
        pipe.execute()


@contextmanager
def console(url: str) -> Iterator[str]:
    """The console in a thread of its own; gives its address."""
    settings = Settings(models=(ModelSettings(name=MODEL, topic=TOPIC, bundle="none"),), redis=RedisSettings(url=url))
    port = embedded.free_ports(1)[0]
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(Console(settings, connect_async(settings.redis), None).application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait(30)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def pages(site: Site, url: str, requests: int, rng: np.random.Generator) -> list[Figure]:
    """The second part."""
    names = [as_text(name) for name in site.redis.zrevrange(KEYS.incidents, 0, 999)]
    stop = threading.Event()

    def attack() -> None:
        clients = [secrets.token_hex(8) for _ in range(20)]
        while not stop.wait(1 / SIGNALS_A_SECOND):
            at = time.time_ns() // 1000
            which = int(rng.integers(len(clients)))
            site.record([(which % PARTITIONS, clients[which], at, 5.0 + which, False)])
            site.alive()
            site.correlate()

    thread = threading.Thread(target=attack)
    thread.start()
    figures = []
    try:
        with console(url) as base:
            began = time.perf_counter()
            _get(base + "/")
            figures.append(Figure("first_page_ms", 1000 * (time.perf_counter() - began), unit="ms"))
            words = ["evasion", "3fa", "client", "a", "page"]
            for name, paths in (
                ("live", ["/"]),
                ("list", [f"/incidents?state=all&q={word}&page={place}" for word in words for place in (1, 2, 50)]),
                ("api_list", ["/api/v1/incidents?limit=200&state=all&order=strength"]),
                ("incident", [f"/incidents/{incident}" for incident in names]),
            ):
                took = []
                for number in range(requests):
                    began = time.perf_counter()
                    _get(base + paths[number % len(paths)])
                    took.append(1000 * (time.perf_counter() - began))
                figures.append(median_figure(f"{name}_p50_ms", took, rng, "ms"))
                figures.append(Figure(f"{name}_p95_ms", float(np.quantile(took, 0.95)), unit="ms"))
    finally:
        stop.set()
        thread.join()
    return figures


def _get(address: str) -> bytes:
    with urlopen(address, timeout=60) as answer:
        return bytes(answer.read())


@contextmanager
def _redis() -> Iterator[tuple[str, Redis]]:
    """An empty database: the one that REDIS names, else the embedded server's."""
    named = os.environ.get("REDIS")
    if named:
        client = Redis.from_url(named, socket_timeout=60)
        if client.dbsize():
            raise SystemExit(f"REDIS={named} is not empty")
        try:
            yield named, client
        finally:
            client.flushdb()
            client.close()
        return
    with embedded.redis() as server:
        client = Redis.from_url(server.address, socket_timeout=60)
        yield server.address, client
        client.close()


def main(argv: list[str] | None = None) -> int:
    """Run both parts."""
    options = arguments(__doc__ or "").parse_args(argv)
    rng = np.random.default_rng(options.seed)
    share = 10 if options.quick else 1
    with _redis() as (url, redis):
        progress(f"{CLIENTS // share:,} attacking clients in one campaign")
        with notified(url, redis) as called:
            figures = campaign(Site(redis), CLIENTS // share, rng)
        figures.append(Figure("notifications", called.triggers))
        figures.append(Figure("resolutions_told", len(called.notices) - called.triggers))
        redis.flushdb()
        site = Site(redis)
        progress(f"{INCIDENTS // share:,} incidents, {ALERTS // share:,} alerts")
        fill(site, INCIDENTS // share, ALERTS // share)
        progress("pages")
        figures += pages(site, url, REQUESTS // share, rng)
        context = {
            "clients": CLIENTS // share,
            "partitions": PARTITIONS,
            "incidents": int(redis.zcard(KEYS.incidents)),
            "alerts": int(redis.xlen(KEYS.alerts)),
            "features": FEATURES,
            "requests": REQUESTS // share,
            "signals_a_second": SIGNALS_A_SECOND,
        }
    return finish(options, figures, TARGETS, context)


if __name__ == "__main__":
    sys.exit(main())
