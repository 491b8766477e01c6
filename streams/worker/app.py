"""`vedette worker`: a Faust app that consumes events, scores them, and records verdicts in Redis.

Faust gives the life cycle: services that start in order, are watched, and stop in order. The app has no agents, tables
or consumer of its own; the event topic is read by `EventReader`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faust
from redis.exceptions import RedisError

from detectors.kernels import limit_blas_threads
from streams.config import Settings, secret
from streams.errors import ConfigError, StoreError, VedetteError
from streams.events import decoder, warm_up
from streams.lease import process_name
from streams.store.approvals import Approvals
from streams.store.client import connect, connect_async
from streams.store.keys import ModelKeys
from streams.store.partition import Scripts
from streams.tracing import tracing
from streams.worker.broker import topic_id
from streams.worker.deadletters import DeadLetters
from streams.worker.keyed import verify_keyed_by_client
from streams.worker.metrics import Metrics
from streams.worker.partition import Control, Crew
from streams.worker.peers import Peer
from streams.worker.reader import EventReader
from streams.worker.scoring import ScoringOptions
from streams.worker.status import LoadBundle, Status, load_bundle, pilot_mode
from streams.worker.watchdog import Watchdog
from streams.worker.web import Web

log = logging.getLogger("vedette.worker")

#: The scoring thread must get the interpreter back soon after the event loop took it.
SWITCH_INTERVAL_SECONDS = 0.0005
#: Beats of the event loop, for the watchdog.
BEAT_SECONDS = 0.5
#: Records are short-lived and hold no cycles: collecting them often only costs time.
GC_THRESHOLDS = (50_000, 20, 50)
#: What other libraries say in our log. aiokafka tells every failed attempt; we tell once that the broker is away.
CHATTY = {
    "aiokafka": logging.CRITICAL,
    "kafka": logging.CRITICAL,
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "mode.timers": logging.ERROR,
    "streams": logging.WARNING,
}
#: Exit code of a shutdown that had to be cut short.
CUT_SHORT = 1


def nowhere(_: str) -> None:
    """Fault points do nothing in production."""


def run(
    settings: Settings,
    model_name: str,
    *,
    points: Callable[[str], None] = nowhere,
    scripts: Scripts | None = None,
    load: LoadBundle | None = None,
) -> int:
    """Run a worker until SIGTERM or SIGINT; returns the exit code.

    Parameters
    ----------
    settings : Settings
    model_name : str
    points : callable
        Called with the name of each fault point that is reached: ``after-score``, ``record-sent``,
        ``between-record-and-commit``, ``during-snapshot``, ``during-rebalance``. Tests end the process there.
    scripts : Scripts, optional
        The Lua that writes; tests leave parts of it out.
    load : callable, optional
        Loads a bundle; default `detectors.bundle.load`.

    Raises
    ------
    ConfigError, StoreError, BrokerError, MissingTopic, BundleMismatch, NotKeyedByClient
        Before anything is consumed.
    TopicRecreated, WatermarkMissing
        When a partition is taken.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty, level in CHATTY.items():
        logging.getLogger(chatty).setLevel(level)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    limit_blas_threads()
    return Worker(settings, model_name, points, scripts or Scripts(), load or _load).run()


def _load(path: Path) -> Any:
    from detectors.bundle import load

    return load(path)


class Worker:
    """One worker process."""

    def __init__(
        self,
        settings: Settings,
        model_name: str,
        points: Callable[[str], None],
        scripts: Scripts,
        load: LoadBundle,
    ) -> None:
        self.settings = settings
        self.model = settings.model(model_name)
        self.keys = ModelKeys(self.model.name)
        self.name = process_name()
        self._points = points
        self._scripts = scripts
        self._load = load
        self._hard_end: threading.Timer | None = None

    def run(self) -> int:
        """Check everything that can be checked before consuming, then consume until told to stop."""
        settings, model = self.settings, self.model
        client_key, probe_key = secret(settings, "client"), secret(settings, "probe")
        decoder(model.format)  # a format that there is not stops the start before the broker is asked
        topic_id(settings.kafka, model.topic)
        pilot, bundle, approvals = self._pointers()
        scorer = load_bundle(Path(bundle or model.bundle), self._load)
        options = ScoringOptions.of(settings, model, scorer.schema, client_key, probe_key)
        warm_up(model.format, scorer.schema)
        verify_keyed_by_client(settings.kafka, model.topic, options.codec, options.decode)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        log.info("model %s, bundle %s, %s mode", model.name, scorer.digest[:12], "pilot" if pilot else "paging")
        with tempfile.TemporaryDirectory(prefix="vedette-worker-") as directory:
            failure = asyncio.run(self._serve(options, Control(scorer, pilot, approvals), Path(directory)))
        if self._hard_end is not None:
            self._hard_end.cancel()
        if failure is None:
            return 0
        if isinstance(failure, VedetteError):
            raise failure
        raise RuntimeError(f"the worker ended with {type(failure).__name__}: {failure}") from failure

    def _pointers(self) -> tuple[bool, str, Approvals]:
        """Pilot or paging, the path of the bundle in force, where Redis names one, and approved repeaters."""
        redis = connect(self.settings.redis)
        try:
            mode_name, path = redis.get(self.keys.mode), redis.hget(self.keys.bundle, "path")
            repeaters: Any = redis.hgetall(self.keys.repeaters)
        except RedisError as error:
            raise StoreError(f"Redis refuses to be read: {error}") from None
        finally:
            redis.close()
        pilot = pilot_mode(mode_name)
        if pilot is None:
            raise ConfigError(f"{self.keys.mode} in Redis holds {mode_name!r}; allowed: pilot, paging")
        return pilot, path.decode() if isinstance(path, bytes) else "", Approvals.decoded(repeaters)

    async def _serve(self, options: ScoringOptions, control: Control, directory: Path) -> BaseException | None:
        settings, model = self.settings, self.model
        tracer = tracing(settings, "worker")
        redis = connect_async(settings.redis, repeat=False)
        store, broker, letters_peer = Peer("Redis"), Peer("the broker"), Peer("the dead-letter topic")
        app = _app(self.name, settings.kafka.bootstrap, directory)
        metrics = Metrics()
        letters = DeadLetters(settings.kafka, model.topic, settings.worker.max_record_bytes, letters_peer)
        reader = EventReader(settings.kafka, model.topic, redis, self._scripts, broker, beacon=app.beacon)
        scoring = ThreadPoolExecutor(1, "vedette-score")
        reader.crew = Crew(
            control=control,
            options=options,
            scoring=scoring,
            redis=store,
            broker=reader,
            letters=letters,
            metrics=metrics,
            points=self._points,
            wake=reader.wake,
            snapshot_seconds=settings.worker.snapshot_seconds,
            snapshot_turn=asyncio.Semaphore(1),
            tracing=tracer,
        )
        limit = settings.worker.watchdog_seconds
        status = Status(
            self.name, self.keys, redis, store, reader, control, metrics, self._load, limit, beacon=app.beacon
        )
        web = Web(settings.worker.web_host, settings.worker.web_port, model.name, metrics, status, beacon=app.beacon)
        for service in (web, status, reader):
            app.service(service)
        watchdog = Watchdog(reader, (store, broker, letters_peer), limit)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, stop)
        beating = asyncio.create_task(_beat(watchdog))
        try:
            await app.start()
            watchdog.start()
            log.info("worker %s is up; /metrics and /health on %s", self.name, status.web)
            waiting = [asyncio.create_task(stop.wait()), asyncio.create_task(app.wait_until_stopped())]
            await asyncio.wait([*waiting, reader.failed], return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        except VedetteError as error:
            return error
        finally:
            self._bound_shutdown()
            watchdog.stop()
            await app.stop()
            beating.cancel()
            await letters.stop()
            await redis.aclose()
            scoring.shutdown(wait=False, cancel_futures=True)
            if tracer is not None:
                await asyncio.to_thread(tracer.close)
        if reader.failed.done():
            return reader.failed.result()
        reason: BaseException | None = app.crash_reason
        return reason

    def _told_to_stop(self, stop: asyncio.Event) -> None:
        log.info("told to stop")
        self._bound_shutdown()
        stop.set()

    def _bound_shutdown(self) -> None:
        """From now on the process has a limited time to end by itself."""
        if self._hard_end is None:
            seconds = self.settings.worker.shutdown_seconds
            self._hard_end = threading.Timer(seconds, _end, (seconds,))
            self._hard_end.daemon = True
            self._hard_end.start()


def _end(seconds: float) -> None:
    log.critical("the shutdown took more than %g s and is cut short; nothing that is recorded is lost", seconds)
    logging.shutdown()
    os._exit(CUT_SHORT)


async def _beat(watchdog: Watchdog) -> None:
    while True:
        watchdog.beat = asyncio.get_running_loop().time()
        await asyncio.sleep(BEAT_SECONDS)


def _app(name: str, bootstrap: str, directory: Path) -> faust.App:
    """A Faust app in which every default is chosen, and which talks to no broker itself."""
    app: Any = faust.App(
        f"vedette-{name}",
        broker=f"kafka://{bootstrap}",
        autodiscover=False,
        datadir=directory,
        store="memory://",
        cache="memory://",
        web_enabled=False,
        web_in_thread=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        processing_guarantee="at_least_once",
        stream_wait_empty=False,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_request_timeout=10.0,
        worker_redirect_stdouts=False,
    )
    app.producer_only = True
    app.boot_strategy.enable_kafka = False
    app.boot_strategy.enable_kafka_producer = False
    app.boot_strategy.enable_kafka_consumer = False
    app.boot_strategy.enable_web = False
    return app
