"""How fast the worker is, beside a bare Faust agent and a bare consumer, on one broker and one Redis, in one run.

``python -m benchmarks.throughput [--json] [--check] [--quick]``. The worker does everything: it decodes, scores with
every default detector, keeps the history of 10,000 warm clients and a full index, and records in Redis with
`appendfsync always`. The others only count messages.

Rates are those of working off a topic that is already there, the start left out. Beside the ratios of rates stand those
of cpu time, which other load on the machine disturbs less. Latency is measured at half the rate
that was found for single-row JSON: from a row's broker time until its signal can be read from Redis by another process.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer
from redis import Redis

from benchmarks import bundles, wire
from benchmarks.report import (
    BOOTSTRAP_RESAMPLES,
    Figure,
    Target,
    Told,
    arguments,
    finish,
    median_figure,
    progress,
)
from benchmarks.traffic import CLASSES, FEATURES, WALK_ROWS, Events, Traffic
from benchmarks.wire import Encoded
from benchmarks.worker import CLIENT_KEY, MODEL, Pace, Worker, WorkerFailed, work_off
from streams import embedded
from streams.config import KafkaSettings
from streams.store.keys import PartitionKeys
from streams.store.messages import SignalMessage
from streams.topics import ensure

#: Rows of every client before the clock starts, and of the index.
WARM_CLIENTS, WARM_EACH, INDEX_ROWS = 10_000, 2, 10_000
#: Rows a record of the formats that carry many.
ROWS_A_RECORD = 256
#: Share of the measured stretch that is left out at its beginning.
LEAD_SHARE = 0.1
#: Seconds between two batches of the paced producer.
TICK_SECONDS = 0.005
#: Share of the paced rows that walkers send. Every walk is judged several times, at milliseconds each: an attack much
#: larger than that takes the worker's time, and is another question.
WALKER_SHARE = 0.02
#: Signals that may still be on their way when the producer has finished.
STRAGGLER_SECONDS = 5.0
FAUST_KINDS = ("faust", "faust-noack", "faust-take")
TARGETS = (
    Target("ratio_worker_vs_faust_agent", ">=", 8.0),
    Target("ratio_compact_rows_vs_faust_agent", ">=", 15.0),
    Target("signal_latency_p99_ms", "<=", 250.0),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    repetitions: int
    json_rows: int
    many_rows: int
    agent_messages: int
    latency_seconds: float


FULL = Effort(repetitions=4, json_rows=150_000, many_rows=256 * 1600, agent_messages=25_000, latency_seconds=20.0)
QUICK = Effort(repetitions=2, json_rows=80_000, many_rows=256 * 800, agent_messages=15_000, latency_seconds=8.0)


@dataclass(frozen=True, slots=True)
class Load:
    """A topic with a warm part and a part to measure."""

    topic: str
    warm: int
    records: int
    rows_a_record: int

    @property
    def end(self) -> int:
        return self.warm + self.records


class Bench:
    """Servers, topics and what was measured."""

    def __init__(self, directory: Path, kafka: embedded.Server, redis: embedded.Server, bundle: Path) -> None:
        self.directory, self.kafka, self.redis_server, self.bundle = directory, kafka, redis, bundle
        self.redis: Redis = Redis.from_url(redis.address, socket_timeout=10)
        self._groups = 0

    def load(self, form: str, warm: Sequence[Encoded], records: Sequence[Encoded], rows_a_record: int) -> Load:
        """Write a topic."""
        topic = f"bench-{form}"
        ensure(KafkaSettings(bootstrap=self.kafka.address), topic, 1)
        wire.produce(self.kafka.address, topic, chain(warm, records))
        return Load(topic, len(warm), len(records), rows_a_record)

    def count(self, kind: str, topic: str, messages: int) -> dict[str, float]:
        """Run a bare consumer in a process of its own."""
        command = [sys.executable, "-m", "benchmarks.consumers", kind, self.kafka.address, topic, str(messages)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if not done.stdout.strip():
            raise WorkerFailed(f"the consumer {kind} measured nothing:\n{done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    def worker(self, topic: str) -> Worker:
        """A worker in a group of its own, on an empty Redis."""
        self._groups += 1
        self.redis.flushall()
        directory = self.directory / f"worker-{self._groups}"
        directory.mkdir()
        return Worker(
            directory,
            self.kafka.address,
            self.redis_server.address,
            topic,
            self.bundle,
            f"bench-{self._groups}",
            {"index_rows": INDEX_ROWS},
        )

    def pace(self, load: Load) -> Pace:
        """Let a worker work a topic off."""
        with self.worker(load.topic) as worker:
            begin = load.warm + round(LEAD_SHARE * load.records)
            return work_off(worker, self.redis, self.kafka.process.pid, begin, load.end, load.rows_a_record)


# Rates ----------------------------------------------------------------------------------------------------------------


def encoded(form: str, events: Events, rows: int, first_offset: int = 0) -> Iterator[Encoded]:
    """Events in a format; those of many rows a record take `rows` of them."""
    if form == "native":
        return wire.native(events, MODEL)
    if form == "oip":
        return wire.oip_binary(events, MODEL, rows)
    return wire.compact(events, MODEL, rows, CLIENT_KEY, first_offset)


def loads(bench: Bench, traffic: Traffic, effort: Effort) -> dict[str, Load]:
    """The three topics; each begins with the same warm rows, as compact records."""
    made = {}
    warm = traffic.warm(WARM_CLIENTS, WARM_EACH)
    before = list(encoded("compact", warm, ROWS_A_RECORD))
    for form, rows in (("native", 1), ("oip", ROWS_A_RECORD), ("compact", ROWS_A_RECORD)):
        count = effort.json_rows if form == "native" else effort.many_rows
        progress(f"producing {count:,} rows as {form}")
        events = traffic.events(count, WARM_CLIENTS)
        made[form] = bench.load(form, before, list(encoded(form, events, rows, len(warm))), rows)
    return made


@dataclass(frozen=True, slots=True)
class Count:
    """What a bare consumer did: messages a second, and cpu microseconds a message."""

    messages_per_second: float
    cpu_us: float


def rates(bench: Bench, made: dict[str, Load], effort: Effort) -> tuple[dict[str, list[Count]], dict[str, list[Pace]]]:
    """The bare consumers' and the worker's pace, by repetition."""
    bare: dict[str, list[Count]] = {kind: [] for kind in (*FAUST_KINDS, "getmany")}
    paces: dict[str, list[Pace]] = {form: [] for form in made}
    native = made["native"]
    for repetition in range(effort.repetitions):
        for kind in bare:
            messages = native.end if kind == "getmany" else effort.agent_messages
            counted = bench.count(kind, native.topic, messages)
            count = Count(counted["messages"] / counted["seconds"], counted["cpu_seconds"] / counted["messages"] * 1e6)
            bare[kind].append(count)
            progress(
                f"{repetition + 1}/{effort.repetitions} {kind}: {count.messages_per_second:,.0f} messages/s, "
                f"{count.cpu_us:.1f} cpu us a message"
            )
        for form, load in made.items():
            paces[form].append(bench.pace(load))
            pace = paces[form][-1]
            spent = ", ".join(f"{name} {value:.1f}" for name, value in pace.cpu_us.items())
            progress(
                f"{repetition + 1}/{effort.repetitions} worker, {form}: {pace.records_per_second:,.0f} records/s, "
                f"{pace.rows_per_second:,.0f} rows/s; cpu us a row: {spent}"
            )
    return bare, paces


# Latency --------------------------------------------------------------------------------------------------------------


class SignalReader(threading.Thread):
    """Reads the signals of a partition as they come, as any consumer of Redis would."""

    def __init__(self, url: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.latencies_ms: list[float] = []
        self._key = PartitionKeys(topic, 0).signals
        self._redis: Redis = Redis.from_url(url, socket_timeout=10)
        self._done = threading.Event()

    def run(self) -> None:
        """Read until told to stop."""
        last: Any = "0-0"
        while not self._done.is_set():
            found: Any = self._redis.xread({self._key: last}, count=100, block=200)
            now = time.time_ns() / 1e6
            for _, entries in found or ():
                for entry, fields in entries:
                    last = entry
                    signal = msgspec.json.decode(fields[b"m"], type=SignalMessage)
                    self.latencies_ms.append(now - signal.time / 1000)
        self._redis.close()

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        self.join()


def latency(bench: Bench, traffic: Traffic, effort: Effort, rate: float) -> dict[str, Any]:
    """Milliseconds from broker time to a readable signal, at a paced rate of single-row JSON."""
    topic = "bench-paced"
    ensure(KafkaSettings(bootstrap=bench.kafka.address), topic, 1)
    warm = list(encoded("compact", traffic.warm(WARM_CLIENTS, WARM_EACH), ROWS_A_RECORD))
    wire.produce(bench.kafka.address, topic, warm)
    count = int(rate * effort.latency_seconds)
    walkers = max(1, int(count * WALKER_SHARE / WALK_ROWS))
    progress(f"latency: {count:,} events at {rate:,.0f} a second, {walkers:,} of their clients walk")
    events = list(encoded("native", traffic.with_walkers(count, WARM_CLIENTS, walkers), 1))
    with bench.worker(topic) as worker:
        key = PartitionKeys(topic, 0).watermark
        _reached(bench.redis, key, len(warm), worker)
        reader = SignalReader(bench.redis_server.address, topic)
        reader.start()
        try:
            achieved = asyncio.run(_paced(bench.kafka.address, topic, events, rate))
            _reached(bench.redis, key, len(warm) + count, worker)
            settled = time.monotonic() + STRAGGLER_SECONDS
            while time.monotonic() < settled and len(reader.latencies_ms) < bench.redis.xlen(
                PartitionKeys(topic, 0).signals
            ):
                time.sleep(0.05)
        finally:
            reader.stop()
        metrics = worker.scrape()
    if not reader.latencies_ms:
        raise WorkerFailed("no walker raised a signal, so there is no latency to tell")
    return {
        "asked_rate": rate,
        "achieved_rate": achieved,
        "events": count,
        "signals": len(reader.latencies_ms),
        "latencies_ms": reader.latencies_ms,
        "record_ms": metrics["vedette_record_seconds_sum"] / metrics["vedette_record_seconds_count"] * 1000,
    }


def _reached(redis: Redis, key: str, offset: int, worker: Worker) -> None:
    deadline = time.monotonic() + 120
    while int(redis.hget(key, "w") or 0) < offset:
        worker.check()
        if time.monotonic() > deadline:
            raise WorkerFailed(f"the worker did not reach offset {offset}")
        time.sleep(0.05)


async def _paced(bootstrap: str, topic: str, events: Sequence[Encoded], rate: float) -> float:
    """Send events in small batches, never faster than `rate`; returns the rate that came about.

    The batches are packed before the clock starts: the producers of a real deployment run on other machines.
    """
    sender: AIOKafkaProducer
    async with wire.producer(bootstrap) as sender:
        packed = [_pack(sender, events[start:stop]) for start, stop in _ticks(len(events), rate)]
        waiting: list[asyncio.Future[object]] = []
        began = time.perf_counter()
        sent = 0
        for batch in packed:
            sent += batch.record_count()
            await asyncio.sleep(max(0.0, began + sent / rate - time.perf_counter()))
            waiting.append(await sender.send_batch(batch, topic, partition=0))
        await asyncio.wait_for(asyncio.gather(*waiting), wire.SEND_SECONDS)
        return sent / (time.perf_counter() - began)


def _ticks(count: int, rate: float) -> Iterator[tuple[int, int]]:
    """The events of each tick, from and to."""
    each = max(1, round(rate * TICK_SECONDS))
    return ((start, min(count, start + each)) for start in range(0, count, each))


def _pack(sender: AIOKafkaProducer, events: Sequence[Encoded]) -> Any:
    batch = sender.create_batch()
    for event in events:
        if not batch.append(key=event.key, value=event.value, timestamp=None, headers=event.headers):
            raise WorkerFailed(f"{len(events)} events of a tick are more than one batch of the producer holds")
    return batch


# Report ---------------------------------------------------------------------------------------------------------------


def percentile_figure(name: str, values: Sequence[float], percent: float, rng: np.random.Generator) -> Figure:
    """A percentile with a bootstrap interval over the values."""
    sample = np.asarray(values)
    drawn = rng.choice(sample, (BOOTSTRAP_RESAMPLES // 4, len(sample)))
    low, high = np.percentile(np.percentile(drawn, percent, axis=1), [2.5, 97.5])
    return Figure(name, float(np.percentile(sample, percent)), float(low), float(high), "ms")


def figures(
    bare: dict[str, list[Count]], paces: dict[str, list[Pace]], waited: dict[str, Any], rng: np.random.Generator
) -> list[Figure]:
    """Everything that was measured, with intervals over repetitions."""
    found = []
    for kind, counts in bare.items():
        name = kind.replace("-", "_")
        found.append(median_figure(f"{name}_messages_per_second", [c.messages_per_second for c in counts], rng, "/s"))
        found.append(median_figure(f"{name}_cpu_us_a_message", [c.cpu_us for c in counts], rng, "us"))
    for form, measured in paces.items():
        found.append(median_figure(f"{form}_records_per_second", [p.records_per_second for p in measured], rng, "/s"))
        found.append(median_figure(f"{form}_rows_per_second", [p.rows_per_second for p in measured], rng, "/s"))
        found += [
            median_figure(f"{form}_cpu_us_a_row_{stage}", [p.cpu_us[stage] for p in measured], rng, "us")
            for stage in measured[0].cpu_us
        ]
        found.append(median_figure(f"{form}_record_call_ms", [p.record_ms for p in measured], rng, "ms"))
    rows = {form: np.array([p.rows_per_second for p in measured]) for form, measured in paces.items()}
    spent = {form: np.array([p.cpu_us["process"] for p in measured]) for form, measured in paces.items()}
    agent = np.array([count.messages_per_second for count in bare["faust"]])
    agent_cpu = np.array([count.cpu_us for count in bare["faust"]])
    getmany = np.array([count.messages_per_second for count in bare["getmany"]])
    found += [
        median_figure("ratio_worker_vs_faust_agent", list(rows["native"] / agent), rng),
        median_figure("ratio_compact_rows_vs_faust_agent", list(rows["compact"] / agent), rng),
        median_figure("ratio_oip_rows_vs_faust_agent", list(rows["oip"] / agent), rng),
        median_figure("ratio_worker_vs_getmany", list(rows["native"] / getmany), rng),
        median_figure("ratio_cpu_worker_vs_faust_agent", list(agent_cpu / spent["native"]), rng),
        median_figure("ratio_cpu_compact_rows_vs_faust_agent", list(agent_cpu / spent["compact"]), rng),
        percentile_figure("signal_latency_p50_ms", waited["latencies_ms"], 50, rng),
        percentile_figure("signal_latency_p99_ms", waited["latencies_ms"], 99, rng),
    ]
    return found


def main() -> int:
    """Measure, and report."""
    options = arguments("Throughput and latency of the worker beside bare consumers.").parse_args()
    effort = QUICK if options.quick else FULL
    sizes = bundles.Sizes()
    traffic = Traffic(options.seed)
    bundle = bundles.fitted(options.seed, sizes)
    index_rows = min(INDEX_ROWS, bundles.index_rows(bundle))
    with (
        tempfile.TemporaryDirectory(prefix="vedette-benchmark-") as name,
        embedded.kafka(Told()) as kafka,
        embedded.redis() as redis,
    ):
        bench = Bench(Path(name), kafka, redis, bundle)
        made = loads(bench, traffic, effort)
        bare, paces = rates(bench, made, effort)
        rate = float(np.median([p.records_per_second for p in paces["native"]])) / 2
        waited = latency(bench, traffic, effort, rate)
    found = figures(bare, paces, waited, np.random.default_rng(options.seed))
    context = {
        "features": FEATURES,
        "classes": CLASSES,
        "event_bytes": wire.JSON_BYTES,
        "rows_a_record": ROWS_A_RECORD,
        "bundle": asdict(sizes),
        "warm_clients": WARM_CLIENTS,
        "index_rows": index_rows,
        "effort": asdict(effort),
        "resident_mb": {form: max(p.resident_mb for p in measured) for form, measured in paces.items()},
        "latency": {key: value for key, value in waited.items() if key != "latencies_ms"},
        "redis": "appendfsync always",
        "partitions": 1,
        "seed": options.seed,
    }
    return finish(options, found, TARGETS, context)


if __name__ == "__main__":
    sys.exit(main())
