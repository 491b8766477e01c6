"""Records that the broker throws away while others are being scored: each is scored or counted, none both, none not."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from streams.store.partition import Plan
from streams.worker.metrics import Metrics
from streams.worker.partition import IN_FLIGHT, Control, Partition
from streams.worker.scoring import Outcome
from tests.streams.worker.conftest import WIDTH, event
from tests.streams.worker.test_scoring import START_MS, Rec, fresh, options

#: Seconds after which a test is given up; the first record may wait for kernels to be compiled.
PATIENCE = 90


def records(first: int, last: int) -> list[Any]:
    return [Rec(offset, START_MS + offset, b"one", event(offset)) for offset in range(first, last)]


class Bench:
    """A partition whose scoring thread can be held, without a broker and without Redis."""

    def __init__(self, threads: Executor, *, position: int, replay_until: int) -> None:
        self.free = threading.Event()
        self.free.set()
        scoring = fresh()
        self.scorer: Any = scoring.scorer
        crew = SimpleNamespace(
            control=Control(scoring.scorer),
            options=options(max_rows=10),
            scoring=threads,
            metrics=Metrics(),
            points=lambda name: None,
            wake=lambda: None,
            snapshot_turn=asyncio.Semaphore(1),
            redis=SimpleNamespace(away=True),
        )
        store: Any = SimpleNamespace(keys=SimpleNamespace(topic="events"))
        snapshots: Any = SimpleNamespace()
        shared: Any = crew
        self.partition = Partition(0, store, snapshots, shared)
        self.partition._scoring = self._held(scoring)
        self.partition.position = self.partition.delivered_to = position
        self.partition.replay_until = replay_until
        self.partition.ready = True
        self.scored: asyncio.Queue[Outcome | None] = asyncio.Queue(IN_FLIGHT)
        self.task = asyncio.create_task(self.partition._score(self.scored))

    def _held(self, scoring: Any) -> Any:
        for name in ("step", "follow"):
            setattr(scoring, name, self._when_free(getattr(scoring, name)))
        return scoring

    def _when_free(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def waits(*positional: Any, **named: Any) -> Any:
            assert self.free.wait(PATIENCE)
            return call(*positional, **named)

        return waits

    async def held(self) -> None:
        """Wait until records are in the scoring thread."""
        while self.partition.position != -1:
            await asyncio.sleep(0)

    async def plans(self, until: int) -> list[Plan]:
        """Plans up to the one that ends at `until`."""
        found: list[Plan] = []
        while not found or found[-1].next < until:
            outcome = await asyncio.wait_for(self.scored.get(), PATIENCE)
            assert outcome is not None
            found.append(outcome.plan)
        return found

    async def stop(self) -> None:
        self.free.set()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def told(plans: list[Plan]) -> tuple[int, int]:
    """Records scored and records expired; the plans follow each other without a hole."""
    assert all(a.next == b.base for a, b in itertools.pairwise(plans))
    return sum(p.totals.get("records", 0) for p in plans), sum(p.totals.get("expired", 0) for p in plans)


@pytest.fixture
def threads() -> Any:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("after", [0, 7])
def test_what_was_delivered_is_scored_and_what_was_not_is_counted_once(threads: Executor, after: int) -> None:
    async def run() -> None:
        bench = Bench(threads, position=100, replay_until=100)
        partition = bench.partition
        bench.free.clear()
        partition.deliver(records(100, 110))
        await bench.held()
        partition.deliver(records(110, 125))
        partition.lost(180)
        partition.lost(180)  # the broker may say it again
        assert partition.delivered_to == 180
        if after:
            partition.deliver(records(180, 180 + after))
        bench.free.set()
        plans = await bench.plans(180 + after)
        assert told(plans) == (25 + after, 55)
        assert plans[0].base == 100
        await bench.stop()

    asyncio.run(run())


def test_what_expired_behind_all_that_was_delivered_is_nothing_new(threads: Executor) -> None:
    async def run() -> None:
        bench = Bench(threads, position=100, replay_until=100)
        bench.free.clear()
        bench.partition.deliver(records(100, 130))
        await bench.held()
        bench.partition.lost(120)
        assert bench.partition.delivered_to == 130
        bench.free.set()
        assert told(await bench.plans(130)) == (30, 0)
        await bench.stop()

    asyncio.run(run())


def test_two_losses_are_counted_by_the_plans_that_pass_them(threads: Executor) -> None:
    async def run() -> None:
        bench = Bench(threads, position=0, replay_until=0)
        bench.free.clear()
        bench.partition.deliver(records(0, 5))
        await bench.held()
        bench.partition.lost(20)
        bench.partition.deliver(records(20, 30))
        bench.partition.lost(50)
        bench.free.set()
        assert told(await bench.plans(50)) == (15, 15 + 20)
        await bench.stop()

    asyncio.run(run())


def test_records_of_many_rows_move_while_they_are_scored(threads: Executor) -> None:
    async def run() -> None:
        bench = Bench(threads, position=0, replay_until=0)
        partition, times = bench.partition, []
        partition.moved_at = 0.0
        score = bench.scorer.score

        def watched(*arguments: Any) -> Any:
            times.append(partition.moved_at)
            return score(*arguments)

        bench.scorer.score = watched
        value = event(0, inputs=[[1.0] * WIDTH] * 180, outputs=[[0.1, 0.9, 0.0]] * 180)
        partition.deliver([Rec(0, START_MS, b"one", value)])
        await bench.plans(1)
        assert len(times) == 4  # 50 rows at once
        assert times[0] == 0.0 < times[1] <= times[2] <= times[3]
        await bench.stop()

    asyncio.run(run())


def test_what_was_recorded_before_is_not_counted_in_a_replay(threads: Executor) -> None:
    """Below the watermark every record was scored once; only what lies above it is lost."""

    async def run() -> None:
        bench = Bench(threads, position=10, replay_until=40)
        bench.free.clear()
        bench.partition.deliver(records(10, 20))
        await bench.held()
        bench.partition.lost(30)
        bench.partition.lost(45)
        bench.partition.deliver(records(45, 50))
        bench.free.set()
        plans = await bench.plans(50)
        assert plans[0].base == 40
        assert told(plans) == (5, 5)
        await bench.stop()

    asyncio.run(run())


def test_a_partition_that_is_taken_anew_counts_from_where_it_begins(threads: Executor) -> None:
    async def run() -> None:
        bench = Bench(threads, position=100, replay_until=100)
        bench.free.clear()
        bench.partition.deliver(records(100, 110))
        await bench.held()
        bench.partition.lost(150)
        bench.partition.forget_delivered()
        assert not bench.partition._expired
        await bench.stop()

    asyncio.run(run())
