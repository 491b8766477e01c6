"""The prober: sends probes on a schedule and follows each to its verdict.

One prober per model is active (a lease); others stand by. What is under way stands in Redis as plans, written before
the first record of a probe is sent, so a standby follows to the end what its predecessor had sent in full, and abandons
what it had not. Probes are made in threads; the main thread alone talks to Redis.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import signal as signals
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from redis import Redis
from redis.exceptions import RedisError
from threadpoolctl import threadpool_limits

from detectors.contract import Level
from streams.config import ObjectiveSettings, ProbeSettings, Settings, secret
from streams.errors import BrokerError, ConfigError, Fenced, VedetteError
from streams.incidents.monitoring import (
    objective,
    open_blind,
    open_incident,
    regression,
    resolve_blind,
    resolve_incident,
)
from streams.lease import Lease
from streams.probes import marks
from streams.probes.answers import AnswerTally
from streams.probes.objectives import OBJECTIVES, breaches
from streams.probes.outcome import blindness, break_down, judge, summarise
from streams.probes.pace import Stopped
from streams.probes.regression import Comparison, compare, sentence
from streams.probes.schedules import Timetable, schedules
from streams.probes.store import START, ProbeStore
from streams.store.keys import ModelKeys
from streams.store.messages import ProbeKind, ProbeOutcome, ProbePlan, ProbeRequest, ProbeVerdict

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
#: Requests that nobody served for so long are dropped.
REQUEST_SECONDS = 3600
#: Counter of the aside that tells a client's partition.
HELLO = f"{marks.HELLO:08x}"
#: Name under which probes on demand are counted.
ON_DEMAND = ""

Kind = ProbeKind
Seeds = Callable[[str], int]
"""From the name of a probe (attack, threat model, number) to its seed."""
MakeCrafter = Callable[[ProbeRequest], "Crafter"]
"""The crafter that a request asks for; raises `ConfigError` when there can be none."""


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
    fooled, fooled_rows : int or None, str
        Crafted rows that changed the model's answer, and which (see `ProbePlan`).
    number, seed : int
        See `ProbePlan`.
    model_version : str
    home : int or None
        Partition in which the client's records arrive.
    homeless : bool
        Do not ask for it.
    tally : AnswerTally
    agreement : float or None
        Of an extracted copy.
    """

    campaign: bytes
    client: str
    stop: threading.Event = field(default_factory=threading.Event)
    sent: int = 0
    inputs: int = 0
    fooled: int | None = None
    fooled_rows: str = ""
    number: int = 0
    seed: int = 0
    model_version: str = ""
    home: int | None = None
    homeless: bool = False
    tally: AnswerTally = field(default_factory=AnswerTally)
    agreement: float | None = None

    def rng(self) -> np.random.Generator:
        """Its random numbers, from the beginning."""
        return np.random.default_rng(self.seed)


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

    schedule: str
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
        One for each attack of the schedule.
    partitions : callable
        Number of partitions of the event topic now; may raise `BrokerError`.
    rng : numpy.random.Generator
        Names of campaigns and clients.
    clock : callable
        Microseconds since the epoch; everything but the lease goes by it.
    objectives : ObjectiveSettings
    version : callable
        The watched model's version now, empty where it is not known; must not block.
    make : callable, optional
        Serves requests; without it they are refused.
    seeds : callable
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
        *,
        objectives: ObjectiveSettings | None = None,
        version: Callable[[], str] = lambda: "",
        make: MakeCrafter | None = None,
        seeds: Seeds | None = None,
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
        self._objectives = objectives or ObjectiveSettings()
        self._version = version
        self._make = make
        self._seeds = seeds or seeds_under(b"")
        self._numbers: Counter[tuple[str, str, str]] = Counter()
        self._timetables: list[Timetable] = []
        self._missed: dict[str, str] | None = None
        self._compared: set[tuple[str, str, str, str, int]] = set()
        self._renew_at = 0.0

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
        self.begin()
        while not stop.is_set():
            self.tick()
            if not self._positions:
                stop.wait(BLOCK_MILLISECONDS / 1000)

    def begin(self) -> None:
        """Take over what is under way, and see when what is due next. The lease must be held."""
        self._renew_at = 0.0
        self._take_over()
        last: dict[str, int] = {}
        for done in self._outcomes:
            last[done.schedule] = max(last.get(done.schedule, 0), done.issued)
        version = next((done.model_version for done in reversed(self._outcomes) if done.model_version), "")
        now = self._clock()
        self._timetables = [
            Timetable(schedule, self._crafters[schedule.name], now, last.get(schedule.name, 0), version)
            for schedule in schedules(self.settings)
            if self._crafters.get(schedule.name)
        ]

    def tick(self, block_milliseconds: int = BLOCK_MILLISECONDS) -> None:
        """One look: start what is due or asked for, take note of what was sent and said, finish what is complete.

        Raises
        ------
        Fenced
            Another prober has taken over.
        """
        moment = time.monotonic()
        if moment >= self._renew_at:
            if not self.lease.renew():
                raise Fenced(f"another prober holds the lease of model {self.store.keys.model!r}")
            self._renew_at = moment + self.lease.renew_every
        now, version = self._clock(), self._version()
        for table in self._timetables:
            if table.due(now, version) and self._busy(table.schedule.name) < table.room:
                for crafter in table.draw(self._rng):
                    self._start(table.schedule.name, crafter)
                table.started(now, version)
        self._serve()
        self._gather()
        for verdict in self.store.verdicts(self._positions, block_milliseconds):
            self._note(verdict)
        self._finish()

    @property
    def under_way(self) -> int:
        """Probes that are being made or whose verdicts are awaited."""
        return len(self._watches)

    def _busy(self, schedule: str) -> int:
        return sum(watch.job is not None and watch.job.schedule == schedule for watch in self._watches.values())

    def _serve(self) -> None:
        """Start what was asked for, as far as there is room."""
        for request in self.store.requests():
            if self._clock() - request.at > REQUEST_SECONDS * 1_000_000:
                self._refuse(request, f"nobody served the request for {REQUEST_SECONDS // 60} minutes")
                continue
            try:
                if self._make is None:
                    raise ConfigError("this prober serves no requests")
                crafter = self._make(request)
            except VedetteError as error:
                self._refuse(request, str(error))
                continue
            left = request
            while left.count > 0 and self._busy(ON_DEMAND) < self.settings.requests_at_once:
                if not self._start(ON_DEMAND, crafter, left):
                    break
                left = msgspec.structs.replace(left, count=left.count - 1)

    def _refuse(self, request: ProbeRequest, reason: str) -> None:
        """Answer a request by an outcome that says why there is none."""
        now = self._clock()
        plan = ProbePlan(
            campaign=self._rng.bytes(8).hex(),
            attack=request.attack,
            kind=request.kind or "burst",
            threat=request.threat,
            client="",
            sent=0,
            inputs=0,
            issued=now,
            deadline=now,
            request=request.id,
        )
        if self.store.put_plan(plan, self.lease.token, msgspec.structs.replace(request, count=1)):
            log.warning("request %s by %s is refused: %s", request.id, request.by, reason)
            self._watches[plan.campaign] = _Watch(plan, None)
            self._close(self._watches[plan.campaign], reason)

    def _take_over(self) -> None:
        """Load outcomes and plans; abandon plans that nobody is sending any more."""
        plans = self.store.plans()
        self._outcomes = self.store.outcomes()
        self._reason, self._missed = None, None
        self._compared = {_look(found) for found in compare(self._outcomes, self.settings.significance)}
        self._numbers.clear()
        everything: list[ProbeOutcome | ProbePlan] = [*self._outcomes, *plans]
        for known in everything:
            series = known.attack, known.threat, known.model_version
            self._numbers[series] = max(self._numbers[series], known.number)
        self._positions = {}
        self._discover()
        self._positions = self.store.tails(self._positions)
        for plan in plans:
            for partition, after in plan.since.items():
                place = int(partition)
                self._positions[place] = min(self._positions.get(place, after), after, key=_stream_id)
            self._watches[plan.campaign] = _Watch(plan, None)
        for watch in list(self._watches.values()):
            if not watch.plan.complete:
                self._close(watch, "the prober that made it ended")
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

    def _start(self, schedule: str, crafter: Crafter, request: ProbeRequest | None = None) -> bool:
        self._discover()
        now, version = self._clock(), self._version()
        series = crafter.attack, crafter.threat, version
        number = self._numbers[series] + 1
        probe = Probe(self._rng.bytes(8), self._rng.bytes(16).hex(), number=number, model_version=version)
        probe.seed = self._seeds(f"{crafter.attack}|{crafter.threat}|{number}")
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
            schedule=schedule,
            request="" if request is None else request.id,
            number=number,
            seed=f"{probe.seed:016x}",
            model_version=version,
        )
        if not self.store.put_plan(plan, self.lease.token, request):
            return False
        self._numbers[series] = number
        job = _Job(schedule, probe)
        job.thread = threading.Thread(target=_make, args=(crafter, job), name=f"probe-{crafter.attack}", daemon=True)
        self._watches[plan.campaign] = _Watch(plan, job)
        job.thread.start()
        log.info("started %s probe %s", plan.attack, plan.campaign)
        return True

    def _gather(self) -> None:
        """Take note of probes that have been sent in full, or failed."""
        for watch in list(self._watches.values()):
            job = watch.job
            if job is None or job.thread.is_alive():
                continue
            watch.job = None
            watch.plan = self._told(watch.plan, job.probe)
            if job.error:
                self._close(watch, job.error)
                continue
            deadline = self._clock() + round(self.settings.timeout_seconds * 1e6)
            watch.plan = msgspec.structs.replace(watch.plan, complete=True, deadline=deadline)
            self.store.put_plan(watch.plan, self.lease.token)

    def _told(self, plan: ProbePlan, probe: Probe) -> ProbePlan:
        """The plan with what the crafter has told so far."""
        same = self._version() == plan.model_version
        return msgspec.structs.replace(
            plan,
            sent=probe.sent,
            inputs=probe.inputs,
            fooled=probe.fooled,
            fooled_rows=probe.fooled_rows,
            answers=probe.tally.message(),
            agreement=probe.agreement,
            model_version=plan.model_version if same else "",
        )

    def _note(self, verdict: ProbeVerdict) -> None:
        campaign, _, counter = verdict.probe.partition("-")
        watch = self._watches.get(campaign)
        if watch is None:
            return
        if counter == HELLO:
            if watch.job is not None and watch.job.probe.home is None:
                watch.job.probe.home = verdict.partition
            return
        if verdict.status == "replayed":
            log.warning("a copy of probe record %s stands at %d:%d", verdict.probe, verdict.partition, verdict.offset)
            return
        if verdict.probe not in watch.verdicts:
            watch.rows += verdict.rows
        watch.verdicts[verdict.probe] = verdict
        if verdict.status == "scored" and verdict.level >= Level.PAGE and not watch.paged:
            watch.paged = True
            if watch.job is not None and watch.plan.kind in ("campaign", "extraction"):
                watch.job.probe.stop.set()

    def _finish(self) -> None:
        now = self._clock()
        for watch in list(self._watches.values()):
            if watch.job is not None and now >= watch.plan.deadline:
                watch.job.probe.stop.set()
                watch.plan = self._told(watch.plan, watch.job.probe)
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
        self.store.finish(outcome, summarise(outcomes, now), self.lease.token, break_down(outcomes, now))
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
        self._report_objectives(now)
        self._report_regressions(now)

    def _report_sight(self, now: int) -> None:
        wanted = self._objectives
        least = self.settings.min_recall if wanted.recall is None else wanted.recall
        reason = blindness(self._outcomes, least, self.settings.min_units, wanted.recall_of)
        if reason is None:
            if resolve_blind(self.store.redis, self.store.keys, now, token=self.lease.token) is not None:
                log.info("monitoring sees again")
        elif reason != self._reason:
            log.error("monitoring is blind: %s", reason)
            open_blind(self.store.redis, self.store.keys, reason, now, token=self.lease.token)
        self._reason = reason

    def _report_objectives(self, now: int) -> None:
        missed = breaches(self._outcomes, self._objectives, self.settings.min_units)
        before = dict.fromkeys(OBJECTIVES, "") if self._missed is None else self._missed
        for name in OBJECTIVES:
            if name in missed and missed[name] != before.get(name):
                log.warning("objective %s missed: %s", name, missed[name])
                open_incident(
                    self.store.redis, self.store.keys, objective(name), missed[name], now, token=self.lease.token
                )
            elif name not in missed and name in before:
                resolve_incident(self.store.redis, self.store.keys, objective(name), now, token=self.lease.token)
        self._missed = {str(name): reason for name, reason in missed.items()}

    def _report_regressions(self, now: int) -> None:
        """Open an incident at the look that finds one; whoever works on it resolves it."""
        for found in compare(self._outcomes, self.settings.significance):
            if found.worse and _look(found) not in self._compared:
                self._compared.add(_look(found))
                log.warning("regression: %s", sentence(found))
                open_incident(
                    self.store.redis,
                    self.store.keys,
                    regression(found.attack),
                    sentence(found),
                    now,
                    token=self.lease.token,
                )

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


def _look(found: Comparison) -> tuple[str, str, str, str, int]:
    return found.attack, found.threat, found.measure, found.after, found.probes


def seeds_under(key: bytes) -> Seeds:
    """Seeds that only the holder of a key can foresee: a keyed hash of the probe's name."""

    def seed(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(), key=key, digest_size=8).digest(), "big")

    return seed


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
    if settings.probes.memory_mb is not None:
        bound_memory(settings.probes.memory_mb)
    stop = threading.Event()
    for number in (signals.SIGTERM, signals.SIGINT):
        signals.signal(number, lambda *_: stop.set())
    with threadpool_limits(1), workshop(settings, model, key) as shop:
        store = ProbeStore(redis, model.name, model.topic)
        lease = Lease(redis, ModelKeys(model.name), "prober")
        shop.sender.partitions()
        Prober(
            store,
            settings.probes,
            lease,
            shop.crafters,
            shop.sender.partitions,
            rng,
            objectives=model.objectives,
            version=shop.version,
            make=shop.make,
            seeds=seeds_under(key),
        ).run(stop)
    return 0


def bound_memory(megabytes: int) -> None:
    """Bound the private memory of this process; a probe that needs more fails with a `MemoryError`."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = megabytes << 20
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
