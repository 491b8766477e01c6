"""What a worker says of itself every second, and what it is told: pilot or paging, the bundle in force, repeaters."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mode
import msgspec
from redis.exceptions import RedisError

from detectors.contract import Scorer
from streams.errors import BundleMismatch
from streams.store.approvals import Approvals
from streams.store.keys import ModelKeys
from streams.store.messages import WorkerStatus
from streams.worker.metrics import Metrics, Standing, resident_bytes
from streams.worker.partition import Control
from streams.worker.peers import Peer
from streams.worker.reader import EventReader

log = logging.getLogger("vedette.worker")

STATUS_SECONDS = 1.0
#: Entries of workers that have not spoken for so long are removed.
FORGET_SECONDS = 600.0
#: A bundle that could not be loaded is tried again after so long.
RETRY_BUNDLE_SECONDS = 30.0

LoadBundle = Callable[[Path], Scorer]


class _Spoken(msgspec.Struct):
    """What every version's status has."""

    at: int = 0


def load_bundle(path: Path, load: LoadBundle) -> Scorer:
    """Load a bundle and compile what it needs.

    Raises
    ------
    BundleMismatch
    """
    try:
        scorer = load(path)
        scorer.warm_up()
    except FileNotFoundError:
        raise BundleMismatch(f"no bundle at {path}; `vedette fit` makes one") from None
    except BundleMismatch:
        raise
    except Exception as error:
        raise BundleMismatch(f"the bundle at {path} cannot be used: {error}") from error
    return scorer


class Status(mode.Service):
    """Writes the worker's status to Redis, reads what every worker must see, and knows how the worker stands."""

    def __init__(
        self,
        worker: str,
        keys: ModelKeys,
        redis: Any,
        peer: Peer,
        reader: EventReader,
        control: Control,
        metrics: Metrics,
        load: LoadBundle,
        watchdog_seconds: float,
        **service: Any,
    ) -> None:
        super().__init__(**service)
        self.worker = worker
        self.web = ""
        """host:port of the web server, once it listens."""
        self._keys = keys
        self._redis = redis
        self._peer = peer
        self._reader = reader
        self._control = control
        self._metrics = metrics
        self._load = load
        self._watchdog_seconds = watchdog_seconds
        self._rates: list[tuple[float, int]] = []
        self._loading: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._strange_mode: bytes | None = None
        self._repeaters: dict[bytes, bytes] | None = None
        """As last read; None before the first read."""

    def standing(self) -> Standing:
        """How the worker stands."""
        partitions = self._reader.partitions.values()
        return Standing(
            lag=dict(self._reader.lag),
            watermarks={partition.number: partition.recorded for partition in partitions},
            redis_up=not self._peer.away,
            broker_up=not self._reader.broker.away,
        )

    def stuck(self) -> list[int]:
        """Partitions with lag that have not moved for half the watchdog's time."""
        if self._peer.away or self._reader.broker.away:
            return []
        long_ago = time.monotonic() - self._watchdog_seconds / 2
        partitions = self._reader.partitions
        return [
            n for n, lag in self._reader.lag.items() if lag and n in partitions and partitions[n].moved_at < long_ago
        ]

    def message(self) -> WorkerStatus:
        """The status as Redis holds it."""
        now = time.time_ns() // 1000
        partitions = self._reader.partitions
        behind = [partitions[n].last_time for n, lag in self._reader.lag.items() if lag and n in partitions]
        ages = [(now - seen) / 1000 for seen in behind if seen]
        return WorkerStatus(
            worker=self.worker,
            at=now,
            partitions=sorted(partitions),
            lag=sum(self._reader.lag.values()),
            rows=self._metrics.rows,
            rows_per_second=self._rate(),
            batch_ms_p99=self._metrics.batch_ms_p99(),
            rss_bytes=resident_bytes(),
            oldest_verdict_age_ms=max(ages, default=0.0),
            bundle=self._control.scorer.digest,
            web=self.web,
        )

    async def on_started(self) -> None:
        """Forget workers that are long gone."""
        try:
            said: dict[bytes, bytes] = await self._redis.hgetall(self._keys.workers)
            long_ago = (time.time() - FORGET_SECONDS) * 1e6
            gone = [name for name, body in said.items() if msgspec.json.decode(body, type=_Spoken).at < long_ago]
            if gone:
                await self._redis.hdel(self._keys.workers, *gone)
        except RedisError as error:
            self._peer.failed(error)
        await self._say()

    async def on_stop(self) -> None:
        """Take the entry back."""
        try:
            await asyncio.wait_for(self._redis.hdel(self._keys.workers, self.worker), 1.0)
        except (RedisError, TimeoutError, OSError) as error:
            log.info("the status of this worker stays in Redis until it is stale: %s", error)

    @mode.Service.timer(STATUS_SECONDS)
    async def _tick(self) -> None:
        await self._say()

    async def _say(self) -> None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(self._keys.workers, self.worker, msgspec.json.encode(self.message()))
        pipe.get(self._keys.mode)
        pipe.hgetall(self._keys.bundle)
        pipe.hgetall(self._keys.repeaters)
        try:
            with self._peer.call():
                _, mode_name, bundle, repeaters = await pipe.execute()
        except (RedisError, OSError) as error:
            self._peer.failed(error)
            return
        self._peer.answered()
        pilot = pilot_mode(mode_name)
        if pilot is None:
            if mode_name != self._strange_mode:
                log.error(
                    "%s holds %r, which is no mode; allowed: pilot, paging. The mode stays", self._keys.mode, mode_name
                )
            self._strange_mode = mode_name
            pilot = self._control.pilot
        if pilot != self._control.pilot:
            log.info("now in %s mode", "pilot" if pilot else "paging")
            self._control.pilot = pilot
        if repeaters != self._repeaters:
            approvals = Approvals.decoded(repeaters)
            if approvals != self._control.approvals:
                log.info("approved as repeaters: %d clients", len(approvals.spans))
            self._repeaters, self._control.approvals = repeaters, approvals
        digest, path = bundle.get(b"digest", b"").decode(), bundle.get(b"path", b"").decode()
        busy = self._loading is not None and not self._loading.done()
        if path and digest not in ("", self._control.scorer.digest) and not busy and time.monotonic() > self._retry_at:
            self._loading = asyncio.create_task(self._switch(Path(path), digest), name="bundle")

    async def _switch(self, path: Path, digest: str) -> None:
        try:
            scorer = await asyncio.to_thread(self._load_this, path, digest)
        except BundleMismatch as error:
            log.error("%s; bundle %s goes on", error, self._control.scorer.digest[:12])
            self._retry_at = time.monotonic() + RETRY_BUNDLE_SECONDS
        else:
            self._control.scorer = scorer

    def _load_this(self, path: Path, digest: str) -> Scorer:
        scorer = load_bundle(path, self._load)
        if scorer.digest != digest:
            raise BundleMismatch(f"the bundle at {path} is {scorer.digest[:12]}, and {digest[:12]} is in force")
        if scorer.schema.to_dict() != self._control.scorer.schema.to_dict():
            raise BundleMismatch(
                f"the bundle at {path} is for another schema than the one that records are decoded by; restart the "
                "workers to change the schema"
            )
        return scorer

    def _rate(self) -> float:
        now = time.monotonic()
        self._rates = [*self._rates[-5:], (now, self._metrics.rows)]
        (then, before), (last, rows) = self._rates[0], self._rates[-1]
        return (rows - before) / (last - then) if last > then else 0.0


def pilot_mode(stored: bytes | str | None) -> bool | None:
    """Whether the stored mode is pilot; paging is the mode where none is stored. None for anything else."""
    modes: dict[bytes | str | None, bool] = {None: False, b"paging": False, b"pilot": True}
    return modes.get(stored)
