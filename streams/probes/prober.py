"""The prober: sends probes on a schedule and follows each to its verdict.

One prober per model is active (a lease); others stand by. What is under way stands in Redis as plans, written before
the first record of a probe is sent, so a standby follows to the end what its predecessor had sent in full, and abandons
what it had not. Probes are made in threads; the main thread alone talks to Redis.
"""

from __future__ import annotations

import logging
import os
import signal as signals
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
import numpy as np
from redis import Redis
from redis.exceptions import RedisError
from threadpoolctl import threadpool_limits

from detectors.contract import Level
from streams.config import ProbeSettings, Settings, secret
from streams.errors import BrokerError, Fenced, VedetteError
from streams.incidents.monitoring import open_blind, resolve_blind
from streams.lease import Lease
from streams.probes.outcome import blindness, judge, summarise
from streams.probes.pace import Schedule, Stopped
from streams.probes.store import START, ProbeStore
from streams.store.keys import ModelKeys
from streams.store.messages import ProbeOutcome, ProbePlan, ProbeVerdict

log = logging.getLogger("vedette.prober")

#: How long a read waits for verdicts; also how late a stop or the end of a probe is noticed.
BLOCK_MILLISECONDS = 100
#: Outcomes in memory; recall looks back over fewer units than this of every attack.
OUTCOMES_KEPT = 5_000
#: Pause after Redis or the broker could not be reached.
AWAY_SECONDS = 1.0
#: The prober gives way to everything else on its machine.
NICENESS = 10
#: How long threads that make probes are waited for at the end; they are daemons and cannot hold the process.
JOIN_SECONDS = 3.0

Kind = Literal["burst", "campaign", "control"]


@dataclass(slots=True)
class Probe:
    """One probe while it is made: what a crafter needs, and what it tells.

    Attributes
    ----------
    campaign : bytes
        8 bytes; part of every mark.
    client : str
        The fresh client that sends it.
    stop : threading.Event
        Set when the probe shall end: it has paged, or the prober ends.
    sent, inputs : int
        Records and rows sent so far.
    fooled : int or None
        Crafted rows that changed the model's answer.
    """

    campaign: bytes
    client: str
    stop: threading.Event = field(default_factory=threading.Event)
    sent: int = 0
    inputs: int = 0
    fooled: int | None = None


class Crafter(Protocol):
    """Makes and sends one kind of probe."""

    attack: str
    kind: Kind
    threat: str

    def seconds(self) -> float:
        """How long sending one takes at most."""

    def run(self, probe: Probe) -> None:
        """Make and send one probe; blocks.

        Raises
        ------
        Stopped
            When `probe.stop` was set before the end.
        VedetteError
            When the endpoint or the broker failed: the probe is abandoned.
        """


@dataclass(slots=True)
class _Job:
    """A probe that is being made, in a thread."""

    kind: str
    probe: Probe
    thread: threading.Thread = field(default_factory=threading.Thread)
    error: str = ""


@dataclass(slots=True)
class _Watch:
    """A probe whose verdicts are awaited."""

    plan: ProbePlan
    job: _Job | None
    verdicts: dict[str, ProbeVerdict] = field(default_factory=dict)
    paged: bool = False
    rows: int = 0


class Prober:
    """Probes one model while its lease lasts.

    Parameters
    ----------
    store : ProbeStore
    settings : ProbeSettings
    lease : Lease
        Of the role ``prober``.
    crafters : mapping of schedule name to crafters
        ``burst``, ``campaign`` and ``control``; every crafter of a name is started when the name is due.
    partitions : callable
        Number of partitions of the event topic now; may raise `BrokerError`.
    rng : numpy.random.Generator
        Names of campaigns and clients.
    clock : callable
        Microseconds since the epoch.
    """

    def __init__(
        self,
        store: ProbeStore,
        settings: ProbeSettings,
        lease: Lease,
        crafters: Mapping[str, tuple[Crafter, ...]],
        partitions: Callable[[], int],
        rng: np.random.Generator,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.lease = lease
        self._crafters = crafters
        self._partitions = partitions
        self._rng = rng
        self._clock = clock or (lambda: time.time_ns() // 1000)
        self._watches: dict[str, _Watch] = {}
        self._positions: dict[int, str] = {}
        self._outcomes: list[ProbeOutcome] = []
        self._reason: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Stand by for the lease and probe, until `stop` is set. Holds on while Redis is away."""
        away = False
        while not stop.is_set():
            try:
                if not self.lease.acquire():
                    stop.wait(self.lease.renew_every)
                    continue
                if away:
                    log.info("Redis answers again")
                away = False
                log.info("active for model %s with token %s", self.store.keys.model, self.lease.token)
                self._active(stop)
            except Fenced as error:
                log.warning("standing by: %s", error)
                self.lease.drop()
            except RedisError as error:
                if not away:
                    log.warning("Redis is away or refuses, holding on: %s", error)
                away = True
                stop.wait(AWAY_SECONDS)
            finally:
                self._cancel()
        try:
            self.lease.release()
        except RedisError as error:
            log.warning("lease not released, it ends by itself: %s", error)

    def _active(self, stop: threading.Event) -> None:
        self._take_over()
        settings = self.settings
        now = time.monotonic()
        schedule = Schedule(
            {
                "control": settings.control_every_seconds,
                "burst": settings.burst_every_seconds,
                "campaign": settings.campaign_every_seconds,
            },
            now,
        )
        renew = now
        while not stop.is_set():
            now = time.monotonic()
            if now >= renew:
                if not self.lease.renew():
                    raise Fenced(f"another prober holds the lease of model {self.store.keys.model!r}")
                renew = now + self.lease.renew_every
            for kind, crafters in self._crafters.items():
                at_once = settings.concurrent_campaigns if kind == "campaign" else 1
                if schedule.due(kind, now) and self._busy(kind) < at_once * len(crafters):
                    for crafter in crafters:
                        self._start(kind, crafter)
                    schedule.started(kind, now)
            self._gather()
            if not self._positions:
                stop.wait(BLOCK_MILLISECONDS / 1000)
            for verdict in self.store.verdicts(self._positions, BLOCK_MILLISECONDS):
                self._note(verdict)
            self._finish()

    def _busy(self, kind: str) -> int:
        return sum(watch.job is not None and watch.job.kind == kind for watch in self._watches.values())

    def _take_over(self) -> None:
        """Load outcomes and plans; abandon plans that nobody is sending any more."""
        plans = self.store.plans()
        self._outcomes = self.store.outcomes()
        self._reason = None
        self._positions = {}
        self._discover()
        self._positions = self.store.tails(self._positions)
        for plan in plans:
            for partition, after in plan.since.items():
                place = int(partition)
                self._positions[place] = min(self._positions.get(place, after), after, key=_stream_id)
            self._watches[plan.campaign] = _Watch(plan, None)
            if not plan.complete:
                self._close(self._watches[plan.campaign], "the prober that made it ended")
        if plans:
            log.info("took over %d probes under way", len(plans))

    def _discover(self) -> None:
        """Take in new partitions. A broker that is away is the probes' matter: they fail, and that is told."""
        try:
            partitions = self._partitions()
        except BrokerError as error:
            log.warning("partitions not known: %s", error)
            return
        for partition in range(partitions):
            self._positions.setdefault(partition, START)

    def _start(self, kind: str, crafter: Crafter) -> None:
        self._discover()
        now = self._clock()
        probe = Probe(self._rng.bytes(8), self._rng.bytes(16).hex())
        plan = ProbePlan(
            campaign=probe.campaign.hex(),
            attack=crafter.attack,
            kind=crafter.kind,
            threat=crafter.threat,
            client=probe.client,
            sent=0,
            inputs=0,
            issued=now,
            deadline=now + round((crafter.seconds() + self.settings.timeout_seconds) * 1e6),
            since={str(partition): after for partition, after in self._positions.items()},
        )
        self.store.put_plan(plan, self.lease.token)
        job = _Job(kind, probe)
        job.thread = threading.Thread(target=_make, args=(crafter, job), name=f"probe-{crafter.attack}", daemon=True)
        self._watches[plan.campaign] = _Watch(plan, job)
        job.thread.start()
        log.info("started %s probe %s", plan.attack, plan.campaign)

    def _gather(self) -> None:
        """Take note of probes that have been sent in full, or failed."""
        for watch in list(self._watches.values()):
            job = watch.job
            if job is None or job.thread.is_alive():
                continue
            watch.job = None
            watch.plan = msgspec.structs.replace(
                watch.plan, sent=job.probe.sent, inputs=job.probe.inputs, fooled=job.probe.fooled
            )
            if job.error:
                self._close(watch, job.error)
                continue
            deadline = self._clock() + round(self.settings.timeout_seconds * 1e6)
            watch.plan = msgspec.structs.replace(watch.plan, complete=True, deadline=deadline)
            self.store.put_plan(watch.plan, self.lease.token)

    def _note(self, verdict: ProbeVerdict) -> None:
        watch = self._watches.get(verdict.probe.partition("-")[0])
        if watch is None:
            return
        if verdict.status == "replayed":
            log.warning("a copy of probe record %s stands at %d:%d", verdict.probe, verdict.partition, verdict.offset)
            return
        if verdict.probe not in watch.verdicts:
            watch.rows += verdict.rows
        watch.verdicts[verdict.probe] = verdict
        if verdict.status == "scored" and verdict.level >= Level.PAGE and not watch.paged:
            watch.paged = True
            if watch.job is not None and watch.plan.kind == "campaign":
                watch.job.probe.stop.set()

    def _finish(self) -> None:
        now = self._clock()
        for watch in list(self._watches.values()):
            if watch.job is not None and now >= watch.plan.deadline:
                watch.job.probe.stop.set()
                watch.job = None
                self._close(watch, "making and sending it took too long")
                continue
            done = watch.rows >= watch.plan.inputs or now >= watch.plan.deadline
            if watch.plan.complete and done:
                self._close(watch, "")

    def _close(self, watch: _Watch, abandoned: str) -> None:
        """Turn a probe into its outcome, write it with the summaries, and say whether monitoring sees."""
        now = self._clock()
        outcome = judge(watch.plan, watch.verdicts.values(), now, abandoned)
        outcomes = [*self._outcomes[-OUTCOMES_KEPT + 1 :], outcome]
        self.store.finish(outcome, summarise(outcomes, now), self.lease.token)
        self._outcomes = outcomes
        del self._watches[watch.plan.campaign]
        log.info(
            "%s probe %s: %s",
            outcome.attack,
            outcome.campaign,
            f"abandoned: {abandoned}"
            if abandoned
            else f"{outcome.arrived} of {outcome.inputs} rows came back, "
            + (f"paged after {outcome.queries_to_page}" if outcome.detected else "not paged"),
        )
        if outcome.kind == "control" and outcome.detected:
            log.warning("control %s was paged: benign rows look like an attack", outcome.campaign)
        self._report_sight(now)

    def _report_sight(self, now: int) -> None:
        reason = blindness(self._outcomes, self.settings.min_recall, self.settings.min_units)
        if reason is None:
            if resolve_blind(self.store.redis, self.store.keys, now, token=self.lease.token) is not None:
                log.info("monitoring sees again")
        elif reason != self._reason:
            log.error("monitoring is blind: %s", reason)
            open_blind(self.store.redis, self.store.keys, reason, now, token=self.lease.token)
        self._reason = reason

    def _cancel(self) -> None:
        """Stop everything that is being made; what is under way stays in Redis for whoever holds the lease next."""
        jobs = [watch.job for watch in self._watches.values() if watch.job is not None]
        for job in jobs:
            job.probe.stop.set()
        limit = time.monotonic() + JOIN_SECONDS
        for job in jobs:
            job.thread.join(max(0.0, limit - time.monotonic()))
        self._watches.clear()


def _make(crafter: Crafter, job: _Job) -> None:
    """Thread body: whatever goes wrong abandons this probe and nothing else."""
    try:
        crafter.run(job.probe)
    except Stopped:
        return
    except VedetteError as error:
        job.error = str(error)
    except Exception as error:  # the outermost boundary of the thread: told in the outcome, with its trace in the log
        log.exception("a %s probe failed", crafter.attack)
        job.error = f"{type(error).__name__}: {error}"


def _stream_id(name: str) -> tuple[int, int]:
    first, _, second = name.partition("-")
    return int(first), int(second or 0)


def run(settings: Settings, model_name: str) -> int:
    """The `vedette prober` command: probe until SIGTERM or SIGINT; returns the exit code.

    Raises
    ------
    ConfigError
        When the endpoint, the rows to start from or the probe key are missing or unusable.
    BrokerError, MissingTopic, StoreError
        When the broker, the topic or Redis is not there at the start. Later it holds on until they are back.
    """
    from streams.probes.workshop import workshop
    from streams.store.client import connect

    model = settings.model(model_name)
    key = secret(settings, "probe")
    rng = np.random.default_rng()
    redis: Redis = connect(settings.redis)
    os.nice(NICENESS)
    stop = threading.Event()
    for number in (signals.SIGTERM, signals.SIGINT):
        signals.signal(number, lambda *_: stop.set())
    with threadpool_limits(1), workshop(settings, model, key, rng.spawn(1)[0]) as shop:
        store = ProbeStore(redis, model.name, model.topic)
        lease = Lease(redis, ModelKeys(model.name), "prober")
        shop.sender.partitions()
        Prober(store, settings.probes, lease, shop.crafters, shop.sender.partitions, rng).run(stop)
    return 0
