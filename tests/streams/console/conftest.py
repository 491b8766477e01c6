"""A console over real Redis and real HTTP, filled as workers, correlator and prober fill it."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
from aiohttp import web
from playwright.sync_api import Browser, Page, expect, sync_playwright
from redis import Redis

from detectors.contract import Verdicts
from detectors.schema import Feature, FeatureSchema
from streams.config import (
    ConsoleSettings,
    IncidentSettings,
    KafkaSettings,
    ModelSettings,
    NotifySettings,
    ObjectiveSettings,
    ProbeSettings,
    RedisSettings,
    Settings,
)
from streams.console.app import Console
from streams.console.schemas import Schemas
from streams.console.tokens import Tokens
from streams.embedded import free_ports
from streams.incidents.correlator import Correlator
from streams.incidents.service import IncidentService
from streams.lease import Lease
from streams.store.client import connect_async
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import (
    Matcher,
    ProbeOutcome,
    ProbeSummary,
    ProbeVerdict,
    ReasonMessage,
    SignalMessage,
    Silence,
    WorkerStatus,
)
from streams.worker.tally import Histograms

SECOND = 1_000_000
#: How long a browser may take to show what must come, on a busy machine.
BROWSER_MILLISECONDS = 30_000
expect.set_options(timeout=BROWSER_MILLISECONDS)
MODEL, TOPIC = "digits", "events"
DIGITS = FeatureSchema.image((8, 8), [str(digit) for digit in range(10)], 0, 16)
LOANS = FeatureSchema(
    (
        Feature("income", 0, 200_000),
        Feature("age", 18, 99, integral=True),
        Feature("debt ratio", 0, None),
        Feature("<b>term</b>", 1, 30),
    ),
    ("refused", "granted"),
)


@dataclass
class Scene:
    """Fills Redis with what the console shows, through the real correlator where incidents are made."""

    redis: Redis
    model: str = MODEL
    topic: str = TOPIC
    now: int = field(default_factory=lambda: int(time.time()) * SECOND)
    _offsets: dict[int, int] = field(default_factory=dict)
    _correlator: Correlator | None = None

    @property
    def keys(self) -> ModelKeys:
        return ModelKeys(self.model)

    def worker(self, name: str = "host:1", partitions: tuple[int, ...] = (0, 1), **changes: Any) -> WorkerStatus:
        status = WorkerStatus(
            worker=name,
            at=int(time.time() * SECOND),
            partitions=list(partitions),
            lag=12,
            rows=480_000,
            rows_per_second=1234.0,
            batch_ms_p99=41.0,
            rss_bytes=412 * 2**20,
            oldest_verdict_age_ms=35.0,
            bundle="5f0c2a7be6d14f12",
            web="127.0.0.1:7001",
        )
        status = msgspec.structs.replace(status, **changes)
        self.redis.hset(self.keys.workers, name, msgspec.json.encode(status))
        for partition in partitions:
            self.redis.hset(PartitionKeys(self.topic, partition).watermark, "w", 1)
        return status

    def traffic(self, partition: int = 0, minutes: int = 30, rows: int = 4_000) -> None:
        """Counters of the last minutes, as the worker's script writes them."""
        keys = PartitionKeys(self.topic, partition)
        this = self.now // (60 * SECOND)
        total = 0
        for back in range(minutes):
            count = rows + 37 * (back * back % 11) * 10
            total += count
            self.redis.hset(
                keys.minute(this - back),
                mapping={"rows": count, "tickets": int(back % 7 == 3), "pages": int(back == 3)},
            )
        counters = {
            "records": total,
            "rows": total,
            "scored": total - 25,
            "probes": 15,
            "probes_excluded": 3,
            "invalid": 4,
            "duplicates": 3,
        }
        self.redis.hset(keys.totals, mapping=counters)

    def probe(self, attack: str = "transfer_pgd", kind: str = "burst", **changes: Any) -> None:
        summary = ProbeSummary(
            attack=attack,
            kind=kind,
            threat="transfer, Linf 0.2",
            n=240,
            units=12,
            detected=220,
            recall=11 / 12,
            low=0.65,
            high=0.99,
            latency_p50_ms=140.0,
            latency_p99_ms=610.0,
            updated=self.now,
            queries_to_page_p50=14.0,
        )
        summary = msgspec.structs.replace(summary, **changes)
        self.redis.hset(self.keys.probe_results, attack, msgspec.json.encode(summary))

    def history(self, units: int = 60) -> None:
        """Finished probes over six hours, their verdicts, and histograms of p-values."""
        rng = np.random.default_rng(3)
        attacks = {
            "transfer_pgd": ("burst", 0.9),
            "hop_skip_jump": ("campaign", 0.75),
            "control_direct": ("control", 0.02),
        }
        keys = PartitionKeys(self.topic, 0)
        for number in range(units):
            for place, (attack, (kind, chance)) in enumerate(attacks.items()):
                campaign, hit = f"{number * 8 + place:016x}", bool(rng.random() < chance)
                finished = self.now - (units - number) * 360 * SECOND
                outcome = ProbeOutcome(
                    campaign=campaign, attack=attack, kind=kind, threat="Linf 0.2", inputs=20, arrived=20, detected=hit,
                    ticketed=hit, queries_to_ticket=6 if hit else None, queries_to_page=14 if hit else None,
                    latency_ms=130.0 if hit else None, finished=finished, fooled=6 if kind == "burst" else None,
                )  # fmt: skip
                self.redis.xadd(self.keys.probe_log, {"m": msgspec.json.encode(outcome)})
                odd = kind != "control"
                verdict = ProbeVerdict(
                    probe=f"{campaign}-00000001", status="scored", partition=0, offset=number, rows=1, time=finished,
                    at=finished, issued=finished, level=0, ratio=0.2, fused=float(rng.random() ** (8 if odd else 1)),
                    pvalues={
                        "trust_ratio": float(rng.random() ** (6 if odd else 1)),
                        "pca_residual": float(rng.random() ** (3 if odd else 1)),
                        "isolation_forest": float(rng.random()),
                    },
                )  # fmt: skip
                self.redis.xadd(keys.probes, {"m": msgspec.json.encode(verdict)})
        pvalues = rng.uniform(size=(50_000, 3))
        pvalues[:, 0] **= 1.4
        packed = Histograms({})
        packed.add(
            Verdicts(
                detectors=("isolation_forest", "trust_ratio"), scores=pvalues[:, :2], pvalues=pvalues[:, :2],
                fused=pvalues[:, 2], tests=(), statistics=np.zeros((50_000, 0)),
                levels=np.zeros(50_000, dtype=np.uint8), signals=(),
            )
        )  # fmt: skip
        self.redis.hset(keys.histograms, mapping=packed.packed())

    def signal(
        self, client: str = "3fa1b2c4d5e6f708", partition: int = 0, width: int = 64, **changes: Any
    ) -> SignalMessage:
        """Record a signal, as a worker does; `correlate` makes incidents of what was recorded."""
        offset = self._offsets.get(partition, 0)
        self._offsets[partition] = offset + 1
        rng = np.random.default_rng(offset)
        digit = np.outer(np.hanning(8), np.hanning(8)).ravel()
        reference = np.rint(16 * digit)
        reference[-1] = zlib.crc32(client.encode()) / 2**32  # a corner of its own, or clients would be one campaign
        shown = np.clip(reference + 3 * np.sign(rng.standard_normal(64)), 0, 16)
        plain = SignalMessage(
            id=f"{self.topic}/{partition}/{offset}/0/query-cluster",
            model=self.model,
            topic=self.topic,
            partition=partition,
            offset=offset,
            row=0,
            time=self.now - 60 * SECOND + offset * SECOND // 2,
            at=self.now,
            rule="query-cluster",
            level="ticket",
            technique="AML.T0043.001",
            entity="client",
            entity_id=client,
            statistic=12.0 + offset,
            threshold=10.0,
            reasons=[
                ReasonMessage(
                    detector="trust_ratio", p=0.0021, text="nearer to rows answered “3” than to rows answered “8”"
                ),
                ReasonMessage(
                    detector="pca_residual", p=0.0004, text="does not look like other “8”s", extrapolated=True
                ),
            ],
            members=[(max(offset - place, 0), 0) for place in range(20, 0, -1)],
            clients=[client],
            input=shown.tolist()[:width],
            nearest=reference.tolist()[:width],
            label=8,
            nearest_label=3,
            measures={
                "size": 24.0,
                "touched": 58.0,
                "gate": 41.0,
                "wide_share": 0.92,
                "moved": 44.0,
                "cut_links": 0.0,
                "design": 0.0,
                "progress": 2.9,
                "following": -0.8,
                "following_p": 0.02,
                "bisection": 0.0,
                "halvings": 0.0,
                "by_scores": 2.6,
                "by_answers": 0.0,
                "score": 1.7,
                "page": 1.0,
            },
            bundle="5f0c2a7be6d14f12",
        )
        message = msgspec.structs.replace(plain, **changes)
        keys = PartitionKeys(self.topic, partition)
        self.redis.xadd(keys.signals, {"m": msgspec.json.encode(message)}, id=f"{offset + 1}-0")
        self.redis.hset(keys.watermark, "w", offset + 1)
        return message

    def correlate(self) -> list[str]:
        """Make incidents of all signals; returns their ids, last seen first."""
        if self._correlator is None:
            lease = Lease(self.redis, self.keys, "correlator", seconds=300)
            assert lease.acquire()
            self._correlator = Correlator(self.redis, self.model, self.topic, lease)
            self._correlator.load()
        self._correlator.discover()
        while self._correlator.step(1):
            continue
        return [name.decode() for name in self.redis.zrevrange(self.keys.incidents, 0, -1)]

    def tend(self) -> None:
        """Let the correlator look after open incidents."""
        self.correlate()
        assert self._correlator is not None
        self._correlator.tend()

    def repeaters(self) -> None:
        """One proposed and one approved."""
        desk, day = IncidentService(self.redis, self.model).repeaters, 24 * 3600 * SECOND
        desk.propose("3fa1b2c4d5e6f708", "ada", self.now + 30 * day, "vibration sensor of line 4", now=self.now)
        desk.propose("77aa000000000001", "ada", self.now + 7 * day, "retries of the night job", now=self.now)
        desk.approve("3fa1b2c4d5e6f708", "bob", now=self.now)

    def silence(self, client: str = "ee*") -> Silence:
        desk = IncidentService(self.redis, self.model)
        return desk.silence(Matcher(client=client), "ada", time.time_ns() // 1000 + 3600 * SECOND, "a known test")

    def attack(self, client: str = "3fa1b2c4d5e6f708", page: bool = True, **changes: Any) -> str:
        """Tickets of one client that become a page; returns the incident's id."""
        for _ in range(5):
            self.signal(client, **changes)
        if page:
            self.signal(client, rule="query-intent", level="page", **changes)
        self.correlate()
        open_ids = self.redis.hgetall(self.keys.open_incidents)
        return next(name.decode() for group, name in open_ids.items() if group.decode().endswith(client))


@dataclass(frozen=True)
class Served:
    """A console that answers."""

    url: str
    console: Console
    loop: asyncio.AbstractEventLoop

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=30, **options)


Serve = Callable[..., Served]


@pytest.fixture
def scene(redis: Redis) -> Scene:
    return Scene(redis)


@pytest.fixture(scope="session")
def loans() -> FeatureSchema:
    """Inputs that are no pictures."""
    return LOANS


@pytest.fixture
def serve(redis_url: str) -> Iterator[Serve]:
    """Start a console in a thread of its own; all are stopped afterwards."""
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, threading.Thread]] = []

    def start(
        token: str | None = None,
        schema: FeatureSchema | None = DIGITS,
        models: tuple[str, ...] = (MODEL,),
        redis: str = "",
        kafka: str = "127.0.0.1:1",
        topic: str = TOPIC,
        host: str = "127.0.0.1",
        runbook: dict[str, str] | None = None,
        notify: NotifySettings | None = None,
        tokens: Path | None = None,
        objectives: ObjectiveSettings | None = None,
    ) -> Served:
        settings = Settings(
            models=tuple(
                ModelSettings(name=name, topic=topic, bundle="none", objectives=objectives or ObjectiveSettings())
                for name in models
            ),
            redis=RedisSettings(url=redis or redis_url),
            kafka=KafkaSettings(bootstrap=kafka),
            console=ConsoleSettings(),
            probes=ProbeSettings(),
            incidents=IncidentSettings(runbook=runbook or {}),
            notify=notify or NotifySettings(),
        )

        def read(path: str) -> FeatureSchema:
            if schema is None:
                raise FileNotFoundError(path)
            return schema

        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        ready: list[Any] = []
        port = free_ports(1)[0]

        async def main() -> None:
            console = Console(
                settings, connect_async(settings.redis), token, Schemas(read), Tokens(tokens) if tokens else None
            )
            runner = web.AppRunner(console.application(), access_log=None, shutdown_timeout=2.0)
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
            ready.append(console)
            started.set()
            await stop.wait()
            await runner.cleanup()

        started = threading.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
        thread.start()
        assert started.wait(30), "the console did not start"
        running.append((loop, stop, thread))
        return Served(f"http://{host}:{port}", ready[0], loop)

    yield start
    for loop, stop, thread in running:
        loop.call_soon_threadsafe(stop.set)
        thread.join(15)
        if thread.is_alive():
            faulthandler.dump_traceback()
            for task in asyncio.all_tasks(loop):
                task.print_stack()
            pytest.fail("the console did not stop; its threads and tasks stand in the output")
        loop.close()


@contextmanager
def visiting(browser: Browser) -> Iterator[tuple[Callable[..., Page], list[str]]]:
    """What opens a page in a context of its own, and the list of what the browser complains of, dialogs included."""
    contexts = []
    complaints: list[str] = []

    def open_page(url: str, **options: Any) -> Page:
        context = browser.new_context(timezone_id="Europe/Berlin", locale="en-GB", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(BROWSER_MILLISECONDS)
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        return page

    yield open_page, complaints
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Without it browser tests are skipped on a desk and fail in CI.

    Not for the whole session: while it lives, no other test can run an event loop in this thread.
    """
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("browser tests need chromium on PATH")
        pytest.skip("no chromium on PATH: browser tests did not run")
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pictures_directory() -> Path | None:
    """Where screenshots go, if anybody wants them: VEDETTE_SCREENSHOTS names a directory."""
    wanted = os.environ.get("VEDETTE_SCREENSHOTS")
    return Path(wanted) if wanted else None
