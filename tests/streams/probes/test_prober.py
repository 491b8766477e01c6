"""The prober's loop on real Redis, with scripted probes: schedule, outcomes, takeover, blindness."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from streams.config import ProbeSettings
from streams.errors import BrokerError
from streams.incidents.ledger import Ledger
from streams.incidents.monitoring import GROUP
from streams.lease import Lease
from streams.probes import marks
from streams.probes import prober as prober_module
from streams.probes.pace import CpuBudget, Pace, Stopped
from streams.probes.prober import Crafter, Kind, Probe, Prober
from streams.probes.store import ProbeStore
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Incident, ProbeOutcome, ProbePlan, ProbeSummary, ProbeVerdict

KEYS = ModelKeys("digits")
TOPIC = "events"
PARTITIONS = 3
NEVER = 1e6

WaitUntil = Callable[..., Any]


def verdict(probe: str, level: int = 0, status: Any = "scored") -> ProbeVerdict:
    return ProbeVerdict(
        probe=probe,
        status=status,
        partition=1,
        offset=0,
        rows=1,
        time=5_000,
        at=9_000,
        issued=0,
        level=level,
        ratio=0.1,
        pvalues={},
        fused=1.0,
    )


class Worker:
    """Says what a worker would say of probe records; pages a client at its `pages_at`-th record, if at all."""

    def __init__(self, redis: Redis, pages_at: int | None, silent: bool = False) -> None:
        self._redis = redis
        self._offset = 0
        self.pages_at = pages_at
        self.silent = silent

    def see(self, campaign: bytes, counter: int) -> None:
        self._offset += 1
        if self.silent:
            return
        level = 2 if self.pages_at is not None and counter + 1 >= self.pages_at else 0
        said = msgspec.structs.replace(verdict(marks.probe_id(campaign, counter), level), offset=self._offset)
        self._redis.xadd(PartitionKeys(TOPIC, 1).probes, {"m": msgspec.json.encode(said)})


@dataclass
class Scripted:
    """A crafter that sends `records` records straight to a worker; paced so that a stop is noticed."""

    worker: Worker
    attack: str = "hop_skip_jump"
    kind: Kind = "campaign"
    records: int = 20
    pause: float = 0.0
    fails: Exception | None = None
    threat: str = "L2"
    made: list[Probe] = field(default_factory=list)
    hold: threading.Event | None = None

    def seconds(self) -> float:
        return 30.0

    def run(self, probe: Probe) -> None:
        self.made.append(probe)
        if self.fails is not None:
            raise self.fails
        for counter in range(self.records):
            if probe.stop.wait(self.pause):
                raise Stopped
            self.worker.see(probe.campaign, counter)
            probe.sent += 1
            probe.inputs += 1
            if self.hold is not None and counter == 0:
                probe.stop.wait(20)
                raise Stopped


def settings(**changes: Any) -> ProbeSettings:
    plain = {"burst_every_seconds": 0.05, "campaign_every_seconds": 0.05, "control_every_seconds": 0.05}
    return msgspec.convert({**plain, **changes}, ProbeSettings)


@contextmanager
def running(
    redis: Redis,
    crafters: dict[str, tuple[Crafter, ...]],
    options: ProbeSettings | None = None,
    seconds: float = 5.0,
    store: ProbeStore | None = None,
    partitions: Callable[[], int] = lambda: PARTITIONS,
    **more: Any,
) -> Iterator[Prober]:
    stop = threading.Event()
    lease = Lease(redis, KEYS, "prober", seconds=seconds)
    prober = Prober(
        store or ProbeStore(redis, "digits", TOPIC),
        options or settings(),
        lease,
        crafters,
        partitions,
        np.random.default_rng(1),
        **more,
    )
    thread = threading.Thread(target=prober.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield prober
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def outcomes(redis: Redis) -> list[ProbeOutcome]:
    return ProbeStore(redis, "digits", TOPIC).outcomes()


def summary(redis: Redis, attack: str) -> ProbeSummary | None:
    stored = redis.hget(KEYS.probe_results, attack)
    return None if stored is None else msgspec.json.decode(stored, type=ProbeSummary)


def blind(redis: Redis) -> Incident | None:
    stored = Ledger(redis, KEYS).open_incident(GROUP)
    return None if stored is None else stored.incident


def test_every_kind_is_followed_to_its_outcome(redis: Redis, wait_until: WaitUntil) -> None:
    worker, calm = Worker(redis, pages_at=4), Worker(redis, pages_at=None)
    crafters: dict[str, tuple[Crafter, ...]] = {
        "burst": (Scripted(worker, "transfer_pgd", "burst"),),
        "campaign": (Scripted(worker),),
        "control": (Scripted(calm, "control_direct", "control"), Scripted(calm, "control_front_door", "control")),
    }
    with running(redis, crafters):
        wait_until(lambda: redis.hlen(KEYS.probe_results) == 4 and len(outcomes(redis)) >= 12, 20, "outcomes")
    burst = summary(redis, "transfer_pgd")
    assert burst is not None
    assert burst.n == 20 * burst.units
    assert burst.detected == burst.n
    assert burst.latency_p50_ms == 4.0
    assert burst.queries_to_page_p50 == 4
    control = summary(redis, "control_direct")
    assert control is not None
    assert control.recall == 0.0
    for outcome in outcomes(redis):
        assert outcome.arrived == outcome.inputs
        assert not outcome.abandoned
        assert outcome.detected == (outcome.kind != "control")
    assert blind(redis) is None


def test_campaign_ends_at_its_page(redis: Redis, wait_until: WaitUntil) -> None:
    endless = Scripted(Worker(redis, pages_at=5), records=100_000, pause=0.01)
    with running(redis, {"campaign": (endless,)}, settings(campaign_every_seconds=NEVER)):
        (outcome,) = wait_until(lambda: outcomes(redis), 20, "the campaign to end")
    assert outcome.detected
    assert outcome.queries_to_page == 5
    assert 5 <= outcome.inputs < 1_000
    assert outcome.arrived == outcome.inputs
    assert redis.hlen(KEYS.probe_plans) == 0


def test_campaigns_run_side_by_side_as_clients_of_their_own(redis: Redis, wait_until: WaitUntil) -> None:
    crafter = Scripted(Worker(redis, None), hold=threading.Event())
    with running(redis, {"campaign": (crafter,)}, settings(concurrent_campaigns=3)):
        wait_until(lambda: len(crafter.made) == 3, 20, "three campaigns at once")
        wait_until(lambda: redis.hlen(KEYS.probe_plans) == 3, 20, "three plans")
        assert len({probe.client for probe in crafter.made}) == 3
        assert len(crafter.made) == 3


def test_verdicts_that_stay_away_open_one_incident_which_is_resolved_when_they_come(
    redis: Redis, wait_until: WaitUntil
) -> None:
    worker = Worker(redis, pages_at=2, silent=True)
    options = settings(timeout_seconds=0.2, burst_every_seconds=0.1)
    with running(redis, {"burst": (Scripted(worker, "transfer_pgd", "burst"),)}, options):
        incident = wait_until(lambda: blind(redis), 20, "the incident")
        assert "0 of 20 rows of a transfer_pgd probe" in incident.title
        lost = outcomes(redis)[0]
        assert (lost.arrived, lost.detected) == (0, False)
        worker.silent = False
        wait_until(lambda: blind(redis) is None, 30, "the incident to be resolved")
        stored = Ledger(redis, KEYS).incident(incident.id)
        assert stored.incident.state == "resolved"


def test_low_recall_opens_the_incident(redis: Redis, wait_until: WaitUntil) -> None:
    with running(redis, {"campaign": (Scripted(Worker(redis, pages_at=None)),)}):
        incident = wait_until(lambda: blind(redis), 20, "the incident")
    assert "hop_skip_jump probes were detected" in incident.title


def test_failing_probes_are_abandoned_counted_in_no_recall_and_open_the_incident(
    redis: Redis, wait_until: WaitUntil
) -> None:
    crafter = Scripted(Worker(redis, None), fails=BrokerError("no broker answers"))
    broken = Scripted(Worker(redis, None), "transfer_pgd", "burst", fails=ZeroDivisionError("division"))
    with running(redis, {"campaign": (crafter,), "burst": (broken,)}):
        incident = wait_until(lambda: blind(redis), 20, "the incident")
        wait_until(lambda: {o.attack for o in outcomes(redis)} == {"hop_skip_jump", "transfer_pgd"}, 20, "both")
    assert "could not be sent" in incident.title
    assert {o.abandoned for o in outcomes(redis)} == {"no broker answers", "ZeroDivisionError: division"}
    assert summary(redis, "hop_skip_jump") is None


def test_standby_finishes_what_was_sent_and_abandons_what_was_not(redis: Redis, wait_until: WaitUntil) -> None:
    store = ProbeStore(redis, "digits", TOPIC)
    dead = Lease(redis, KEYS, "prober", seconds=0.3)
    assert dead.acquire()
    worker = Worker(redis, pages_at=3)
    worker.see(b"earlier!", 0)
    since = {str(p): after for p, after in store.tails(range(PARTITIONS)).items()}
    sent, unsent = b"all-sent", b"half-way"
    for campaign, complete in ((sent, True), (unsent, False)):
        plan = ProbePlan(
            campaign.hex(), "transfer_pgd", "burst", "Linf", "c", 4, 4, 1, 2**61, complete=complete, since=since
        )
        store.put_plan(plan, dead.token)
    for counter in range(3):
        worker.see(sent, counter)
    with running(redis, {}):
        wait_until(lambda: len(outcomes(redis)) == 1, 20, "the unsent probe to be abandoned")
        assert redis.hlen(KEYS.probe_plans) == 1
        worker.see(sent, 3)
        wait_until(lambda: len(outcomes(redis)) == 2, 20, "the sent probe to be finished")
    abandoned, finished = outcomes(redis)
    assert abandoned.campaign == unsent.hex()
    assert abandoned.abandoned
    assert (finished.campaign, finished.arrived, finished.queries_to_page) == (sent.hex(), 4, 3)


def test_a_prober_that_lost_its_lease_writes_nothing_and_stops_what_it_makes(
    redis: Redis, wait_until: WaitUntil
) -> None:
    crafter = Scripted(Worker(redis, None), hold=threading.Event())
    with running(redis, {"campaign": (crafter,)}, settings(campaign_every_seconds=NEVER), seconds=1.0):
        wait_until(lambda: crafter.made, 20, "a campaign")
        redis.incr(KEYS.fence("prober"))
        redis.delete(KEYS.lease("prober"))
        usurper = Lease(redis, KEYS, "prober", seconds=30)
        wait_until(usurper.acquire, 20, "the takeover")
        wait_until(crafter.made[0].stop.is_set, 20, "the campaign to be stopped")
        assert redis.hlen(KEYS.probe_plans) == 1
        assert outcomes(redis) == []


def test_copies_and_strangers_count_for_nothing(redis: Redis, wait_until: WaitUntil) -> None:
    crafter = Scripted(Worker(redis, None), records=2, hold=threading.Event())
    with running(redis, {"campaign": (crafter,)}, settings(campaign_every_seconds=NEVER)):
        wait_until(lambda: crafter.made and crafter.made[0].inputs, 20, "a record")
        mine = marks.probe_id(crafter.made[0].campaign, 0)
        stranger = marks.probe_id(b"stranger", 0)
        for said in (verdict(mine, 2, "replayed"), verdict(stranger, 2), verdict(mine.upper(), 2)):
            redis.xadd(PartitionKeys(TOPIC, 0).probes, {"m": msgspec.json.encode(said)})
        redis.xadd(PartitionKeys(TOPIC, 0).probes, {"m": b"{not json"})
        assert crafter.hold is not None
        crafter.made[0].stop.set()
        (outcome,) = wait_until(lambda: outcomes(redis), 20, "the outcome")
    assert not outcome.detected
    assert outcome.arrived == 1


def test_outcomes_survive_a_restart(redis: Redis, wait_until: WaitUntil) -> None:
    worker = Worker(redis, pages_at=1)
    for round_ in (1, 2):
        with running(redis, {"campaign": (Scripted(worker),)}, settings(campaign_every_seconds=NEVER)):
            wait_until(lambda n=round_: len(outcomes(redis)) == n, 20, "an outcome")
    result = summary(redis, "hop_skip_jump")
    assert result is not None
    assert result.units == 2


class Interrupted(ProbeStore):
    """Redis goes away in the middle of the first campaign, and comes back."""

    failures = 0

    def verdicts(self, positions: dict[int, str], block_milliseconds: int) -> list[ProbeVerdict]:
        found = super().verdicts(positions, block_milliseconds)
        if found and self.failures == 0:
            self.failures += 1
            raise RedisConnectionError("connection refused")
        return found


def test_probing_goes_on_when_redis_was_away(
    redis: Redis, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober_module, "AWAY_SECONDS", 0.05)
    store = Interrupted(redis, "digits", TOPIC)
    crafter = Scripted(Worker(redis, pages_at=10), pause=0.01)
    with running(redis, {"campaign": (crafter,)}, store=store):
        wait_until(lambda: len(outcomes(redis)) >= 3, 20, "outcomes")
    first, *others = outcomes(redis)
    assert store.failures == 1
    assert first.abandoned == "the prober that made it ended"
    assert first.campaign == crafter.made[0].campaign.hex()
    assert all(outcome.detected for outcome in others)


def test_a_broker_that_is_away_makes_monitoring_blind_and_coming_back_mends_it(
    redis: Redis, wait_until: WaitUntil
) -> None:
    away = threading.Event()
    away.set()

    def partitions() -> int:
        if away.is_set():
            raise BrokerError("no broker answers")
        return PARTITIONS

    worker = Worker(redis, pages_at=4)
    crafter = Scripted(worker, fails=BrokerError("no broker answers"))
    with running(redis, {"campaign": (crafter,)}, partitions=partitions):
        incident = wait_until(lambda: blind(redis), 20, "the incident")
        assert "could not be sent: no broker answers" in incident.title
        crafter.fails = None
        away.clear()
        wait_until(lambda: blind(redis) is None, 20, "the incident to be resolved")


def test_pace_shares_its_rate_and_never_saves_up() -> None:
    now = [100.0]
    pace = Pace(10.0, clock=lambda: now[0])
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(round(timeout or 0.0, 6))
            return False

    for rows in (1, 5, 1):
        pace.take(rows, Stop())
    now[0] = 200.0
    pace.take(3, Stop())
    pace.take(1, Stop())
    assert waits == [0.0, 0.1, 0.6, 0.0, 0.3]


def test_pace_notices_a_stop() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        Pace(1.0).take(1, stop)


def test_cpu_is_paid_for_before_going_on() -> None:
    now, used = [10.0], [0.0]
    budget = CpuBudget(0.25, clock=lambda: now[0], used=lambda: used[0])
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(round(timeout or 0.0, 6))
            return False

    budget.pay(Stop())
    now[0], used[0] = 11.0, 1.0  # a second at full speed
    budget.pay(Stop())
    now[0] = 14.0
    budget.pay(Stop())
    now[0], used[0] = 20.0, 1.5
    budget.pay(Stop())
    assert waits == [0.0, 3.0, 0.0, 1.5]
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        budget.pay(stop)
