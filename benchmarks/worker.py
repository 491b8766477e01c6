"""The real worker as a process of a benchmark: started on a topic, watched until it has recorded all of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

from streams import children, embedded
from streams.store.keys import PartitionKeys

MODEL = "bench"
CLIENT_KEY, PROBE_KEY = bytes(range(16)), bytes(range(32))
#: Seconds between two looks at the watermark.
LOOK_SECONDS = 0.01
#: A worker that has not recorded everything by then has failed.
LIMIT_SECONDS = 180.0
_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


class WorkerFailed(RuntimeError):
    """A worker of the benchmark ended, or was too slow."""


@dataclass(slots=True)
class Worker:
    """One `vedette worker` process."""

    directory: Path
    kafka: str
    redis_url: str
    topic: str
    bundle: Path
    group: str = "bench"
    settings: Mapping[str, float] = field(default_factory=dict)
    _port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        (self._port,) = embedded.free_ports(1)
        config = self.directory / "vedette.toml"
        more = "".join(f"{name} = {value}\n" for name, value in self.settings.items())
        config.write_text(
            f'[kafka]\nbootstrap = "{self.kafka}"\ngroup = "{self.group}"\n'
            f'[redis]\nurl = "{self.redis_url}"\n'
            f"[worker]\nweb_port = {self._port}\n{more}"
            f'[[models]]\nname = "{MODEL}"\ntopic = "{self.topic}"\nbundle = "{self.bundle}"\n',
            encoding="utf-8",
        )
        environ = {"VEDETTE_CLIENT_KEY": CLIENT_KEY.hex(), "VEDETTE_PROBE_KEY": PROBE_KEY.hex()}
        command = [sys.executable, "-m", "streams.cli", "--config", str(config), "worker"]
        self._process = children.spawn(command, self.log, environ)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            children.stop([self._process])

    @property
    def log(self) -> Path:
        """Where the process writes."""
        return self.directory / "worker.log"

    @property
    def pid(self) -> int:
        """Process id."""
        if self._process is None:
            raise WorkerFailed("the worker was not started")
        return self._process.pid

    def check(self) -> None:
        """Raise `WorkerFailed` with its last words when it has ended."""
        if self._process is None or self._process.poll() is not None:
            raise WorkerFailed(f"the worker ended; its last words:\n{children.tail(self.log)}")

    def cpu_seconds(self) -> float:
        """User and system time of the process."""
        return cpu_seconds(self.pid)

    def scrape(self) -> dict[str, float]:
        """Its metrics: ``name`` or ``name{label=value}`` (the model left out) to value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as page:
            text = page.read().decode()
        found = {}
        for name, labels, value in _SAMPLE.findall(text):
            kept = [label.replace('"', "") for label in labels.split(",") if not label.startswith("model=")]
            found[name + ("{" + ",".join(kept) + "}" if kept else "")] = float(value)
        return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True, slots=True)
class Moment:
    """How a worker stood at one moment."""

    at: float
    watermark: int
    cpu: float
    redis_cpu: float
    broker_cpu: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Pace:
    """A stretch of a topic, worked off by a worker that had all of it to read.

    Attributes
    ----------
    records_per_second, rows_per_second : float
    cpu_us : mapping
        Cpu microseconds a row: the process as a whole, its scoring thread by stage, Redis and the broker beside it.
    """

    records_per_second: float
    rows_per_second: float
    cpu_us: Mapping[str, float]
    record_ms: float
    resident_mb: float


def work_off(worker: Worker, redis: Redis, broker_pid: int, begin: int, end: int, rows_a_record: float) -> Pace:
    """Measure from the first watermark at or beyond `begin` until it reaches `end`."""
    key = PartitionKeys(worker.topic, 0).watermark
    deadline = time.monotonic() + LIMIT_SECONDS
    first: Moment | None = None
    seen = -1
    while True:
        worker.check()
        found = redis.hget(key, "w")
        mark = -1 if found is None else int(found)
        now = time.perf_counter()
        if mark != seen:
            seen = mark
            if first is None and begin <= mark < end:
                first = _moment(worker, redis, broker_pid, mark, now)
            if mark >= end:
                break
        if time.monotonic() > deadline:
            raise WorkerFailed(
                f"recorded {mark} of {end} records in {LIMIT_SECONDS:.0f} s:\n{children.tail(worker.log)}"
            )
        time.sleep(LOOK_SECONDS)
    if first is None:
        raise WorkerFailed(f"the worker passed from before {begin} to {end} in one step")
    last = _moment(worker, redis, broker_pid, mark, now)
    _verify(last.metrics)
    seconds, records = last.at - first.at, last.watermark - first.watermark
    rows = records * rows_a_record
    told = _stages(first.metrics, last.metrics)
    cpu = {
        "process": (last.cpu - first.cpu) / rows * 1e6,
        **told,
        "redis": (last.redis_cpu - first.redis_cpu) / rows * 1e6,
        "broker": (last.broker_cpu - first.broker_cpu) / rows * 1e6,
    }
    calls = last.metrics["vedette_record_seconds_count"] - first.metrics["vedette_record_seconds_count"]
    spent = last.metrics["vedette_record_seconds_sum"] - first.metrics["vedette_record_seconds_sum"]
    return Pace(
        records_per_second=records / seconds,
        rows_per_second=rows / seconds,
        cpu_us=cpu,
        record_ms=spent / max(calls, 1) * 1000,
        resident_mb=last.metrics["vedette_resident_memory_bytes"] / 2**20,
    )


def _moment(worker: Worker, redis: Redis, broker_pid: int, watermark: int, now: float) -> Moment:
    cpu, broker = worker.cpu_seconds(), cpu_seconds(broker_pid)
    info = redis.info("cpu")
    return Moment(now, watermark, cpu, info["used_cpu_user"] + info["used_cpu_sys"], broker, worker.scrape())


def _stages(first: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    """Cpu microseconds a row of the scoring thread's stages, between two scrapes."""
    rows = _rows(last) - _rows(first)
    start = "vedette_stage_cpu_seconds_total{stage="
    names = [name for name in last if name.startswith(start)]
    return {name[len(start) : -1]: (last[name] - first.get(name, 0.0)) / max(rows, 1) * 1e6 for name in names}


def _rows(metrics: Mapping[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("vedette_rows_total{"))


def _verify(metrics: Mapping[str, float]) -> None:
    """Every row must have been scored: a worker that refuses rows is quick for nothing."""
    others = {name: value for name, value in metrics.items() if name.startswith("vedette_rows_total{") and value}
    others.pop("vedette_rows_total{outcome=scored}", None)
    if others:
        raise WorkerFailed(f"rows were not scored: {others}")
