"""One partition in this worker's hands: taken, its state loaded, its records scored, recorded and snapshotted.

Scoring of one fetch overlaps with recording of those before it; both keep the order of the log. When a record call is
refused, whatever was scored since is thrown away, and the partition is taken anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from detectors.contract import Scorer
from streams.errors import Fenced, StoreError, TopicRecreated, WatermarkMissing
from streams.events.batch import Record
from streams.store.approvals import NOBODY, Approvals
from streams.store.partition import Claim, PartitionStore, Plan
from streams.store.snapshots import Manifest, Snapshots, UnusableSnapshot
from streams.tracing import Tracing
from streams.worker.deadletters import DeadLetters
from streams.worker.metrics import Metrics
from streams.worker.peers import Peer
from streams.worker.scoring import Outcome, PartitionScoring, ScoringOptions, identity

log = logging.getLogger("vedette.worker")

#: Part of a full batch that is taken at most while no full one waits: small batches give signals earlier, large ones
#: cost less a row.
PROMPT = 0.5
#: Scored fetches of a partition that may wait for their record.
IN_FLIGHT = 3
#: How long a partition that is taken away may finish what is scored.
DRAIN_SECONDS = 2.0
#: The least time between two looks whether an idle partition should have a snapshot.
IDLE_SECONDS = 0.25
#: Words of Redis' refusals that pass: out of memory, no disk, read-only, a script runs, no quorum, too few replicas.
TRANSIENT = ("OOM", "used memory", "MISCONF", "READONLY", "BUSY", "CLUSTERDOWN", "NOREPLICAS")
#: A whole fetch of dead letters is told at most so often.
ALL_DEAD_SECONDS = 60.0

Arrays = dict[str, NDArray[np.generic]]
Answer = TypeVar("Answer")


class Broker(Protocol):
    """What a partition asks of the broker."""

    async def topic_id(self) -> str: ...
    async def committed(self, partition: int) -> int | None: ...
    async def bounds(self, partition: int) -> tuple[int, int]:
        """First offset that is there, and the next one."""

    async def fetch_one(self, partition: int, offset: int) -> Record | None: ...
    def start_at(self, partition: int, offset: int) -> None:
        """Deliver records from there on."""

    async def still_ours(self, partition: int, offset: int) -> bool:
        """Whether the group still knows us as the owner."""


@dataclass(slots=True)
class Control:
    """What every worker must see: the bundle in force, whether pages page, and whose near-duplicates do not."""

    scorer: Scorer
    pilot: bool = False
    approvals: Approvals = NOBODY


@dataclass(frozen=True, slots=True)
class Crew:
    """What the partitions of a worker share."""

    control: Control
    options: ScoringOptions
    scoring: Executor
    redis: Peer
    broker: Broker
    letters: DeadLetters
    metrics: Metrics
    points: Callable[[str], None]
    wake: Callable[[], None]
    """Called when a partition has room for more records."""
    snapshot_seconds: float
    snapshot_turn: asyncio.Semaphore
    tracing: Tracing | None = None


class Partition:
    """One owned partition.

    Parameters
    ----------
    number : int
    store : PartitionStore
    snapshots : Snapshots
    crew : Crew
    """

    def __init__(self, number: int, store: PartitionStore, snapshots: Snapshots, crew: Crew) -> None:
        self.number = number
        self.store = store
        self.snapshots = snapshots
        self.crew = crew
        self.where = f"{store.keys.topic}/{number}"
        self.ready = False
        """Records may be delivered."""
        self.position = -1
        """Offset up to which the state has seen the log."""
        self.recorded = -1
        """The watermark as we know it."""
        self.replay_until = -1
        self.delivered_to = -1
        """Offset up to which the log was delivered, scored or still waiting."""
        self.moved_at = time.monotonic()
        """When position or watermark last moved."""
        self.last_time = 0
        self._inbox: deque[list[Record]] = deque()
        self._waiting = 0
        self._news = asyncio.Event()
        self._gap = -1
        self._expired: deque[tuple[int, int]] = deque()
        """The ends of stretches that the broker threw away unread, and how many offsets each has; not yet recorded."""
        self._rows_a_record = 1.0
        self._claim: Claim | None = None
        self._scoring: PartitionScoring | None = None
        self._snapshot_due = 0.0
        self._snapshotted = -1
        """Offset of the newest snapshot that was published; one that was given up leaves it as it was."""
        self._snapshot: asyncio.Task[None] | None = None
        self._recorded_event = asyncio.Event()
        self._stopping = False
        self._all_dead_told = -ALL_DEAD_SECONDS

    # --- what the fetcher sees ---------------------------------------------------------------------------------------

    @property
    def wants_records(self) -> bool:
        """Whether another fetch has room."""
        return self.ready and not self._stopping and self._waiting < self._limit()

    def deliver(self, records: list[Record]) -> None:
        """Take records, which follow those delivered before."""
        self._inbox.append(records)
        self._waiting += len(records)
        self.delivered_to = records[-1].offset + 1
        self._news.set()

    def reached(self, position: int) -> None:
        """The log holds nothing between the last delivered record and `position` (markers, compacted records)."""
        if not self.ready:
            return
        self.delivered_to = max(self.delivered_to, position)
        if not self._inbox and position > self.position:
            self._gap = position
            self._news.set()

    def lost(self, first: int) -> None:
        """The broker has thrown away what lies before `first`: what was not delivered of it is counted and passed over.

        What was delivered is scored before.
        """
        if not self.ready or first <= self.delivered_to:
            return
        count = first - max(self.delivered_to, self.replay_until)
        if count > 0:
            self._expired.append((first, count))
            log.error(
                "%s: the broker threw away %d records before they were read, up to offset %d", self.where, count, first
            )
        self.delivered_to = self._gap = first
        self._news.set()

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled or stopped. Raises what must end the worker."""
        self._stopping = False
        while not self._stopping:
            try:
                await self._take()
                await self._work()
            except Fenced as error:
                self.crew.metrics.fenced += 1
                self._forget()
                log.warning("%s: %s; what was scored since offset %d is dropped", self.where, error, self.recorded)
                while not self._stopping and not await self.crew.broker.still_ours(self.number, self.recorded):
                    await asyncio.sleep(0.5)

    def stop(self) -> None:
        """Finish what is being scored; `run` returns when that is recorded."""
        self._stopping = True
        self.ready = False
        self._news.set()

    def forget_delivered(self) -> None:
        """Drop what was delivered and not scored; it will come again."""
        self._inbox.clear()
        self._waiting = 0
        self._gap = -1
        self._expired.clear()

    def _forget(self) -> None:
        self.ready = False
        self.forget_delivered()
        self._scoring = None

    # --- taking ------------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Claim the partition and bring its state to the point from which records are read."""
        self.ready = False
        self.moved_at = time.monotonic()
        self.forget_delivered()
        before = self._claim
        topic_id = await self.crew.broker.topic_id()
        begin = None
        first, end = await self.crew.broker.bounds(self.number)
        if not await self._ask(self.store.begun):
            committed = await self.crew.broker.committed(self.number)
            if committed is not None:
                raise WatermarkMissing(
                    f"Redis holds no watermark of {self.where}, but the group has committed offset {committed}: Redis "
                    "lost its data or is another one; restore it, or delete the group's offsets to begin anew"
                )
            begin = first
        claim = await self._ask(partial(self.store.claim, topic_id, begin))
        self._claim = claim
        scorer = self.crew.control.scorer
        kept = self._scoring
        if (
            kept is not None
            and before is not None
            and claim.before == before.epoch
            and claim.watermark == self.position == self.recorded
            and kept.scorer.digest == scorer.digest == claim.bundle
        ):
            log.info("%s: taken again with its state at offset %d (epoch %d)", self.where, claim.watermark, claim.epoch)
        else:
            await self._verify(claim, topic_id, end)
            self._scoring = None
            await self._load(claim, topic_id, first, scorer)
            self._snapshotted = self.position
        self.recorded = claim.watermark
        self.replay_until = claim.watermark
        self.moved_at = time.monotonic()
        self._snapshot_due = time.monotonic() + self.crew.snapshot_seconds

    async def _verify(self, claim: Claim, topic_id: str, end: int) -> None:
        if end < claim.watermark:
            raise TopicRecreated(
                f"{self.where} ends at offset {end}, before the watermark {claim.watermark}: the topic was created "
                f"anew, or cut; delete the keys {self.store.keys.tag}:* to begin anew"
            )
        if topic_id or not claim.identity:
            return
        record = await self.crew.broker.fetch_one(self.number, int(claim.identity.partition(":")[0]))
        if record is not None and identity(record) != claim.identity:
            raise TopicRecreated(
                f"the record at offset {record.offset} of {self.where} is not the one that was recorded last: the "
                f"topic was created anew; delete the keys {self.store.keys.tag}:* to begin anew"
            )

    async def _load(self, claim: Claim, topic_id: str, first: int, scorer: Scorer) -> None:
        """A state for the claim: from a snapshot, or built from the log, or empty where the bundle begins to decide.

        A snapshot of an earlier bundle still tells time, source coordinates and uses of probes.
        """
        switch = bool(claim.bundle) and claim.bundle != scorer.digest
        since = claim.watermark if switch else claim.bundle_from
        histograms = await self._ask(self.store.histograms)
        uses = await self._ask(self.store.probe_uses)
        loop = asyncio.get_running_loop()

        def fresh() -> PartitionScoring:
            made = PartitionScoring(
                scorer, self.crew.options, self.number, topic_id or self.store.keys.topic, since, histograms
            )
            made.uses.merge(uses)
            return made

        if switch:
            log.info("%s: bundle %s decides from offset %d on", self.where, scorer.digest[:12], since)
        for manifest in self.snapshots.found(claim.manifests):
            whole = manifest.bundle == scorer.digest and manifest.offset >= since
            read = partial(self.snapshots.read, manifest, topic_id, None if whole else PartitionScoring.is_ledger)
            try:
                arrays = await self._ask(read)
                made = await loop.run_in_executor(self.crew.scoring, fresh)
                await loop.run_in_executor(self.crew.scoring, made.load if whole else made.load_ledger, arrays)
            except (UnusableSnapshot, ValueError, KeyError) as error:
                log.warning("%s: the snapshot at offset %d is not used: %s", self.where, manifest.offset, error)
                continue
            made.uses.merge(uses)
            self._scoring, self.position = made, manifest.offset
            log.info(
                "%s: taken at offset %d with the snapshot at %d (epoch %d)",
                self.where,
                claim.watermark,
                manifest.offset,
                claim.epoch,
            )
            return
        self._scoring = await loop.run_in_executor(self.crew.scoring, fresh)
        self.position = max(since, min(first, claim.watermark))
        if self.position < claim.watermark:
            log.info(
                "%s: taken at offset %d without a usable snapshot (epoch %d); its state is built from offset %d",
                self.where,
                claim.watermark,
                claim.epoch,
                self.position,
            )
        if first > since and self.position < claim.watermark:
            log.warning(
                "%s: the broker has kept nothing before offset %d, so what clients did before is not remembered",
                self.where,
                first,
            )

    # --- working -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        scored: asyncio.Queue[Outcome | None] = asyncio.Queue(IN_FLIGHT)
        self.delivered_to = self.position
        self.crew.broker.start_at(self.number, self.position)
        self.ready = True
        self.crew.wake()
        scoring = asyncio.create_task(self._score(scored), name=f"score-{self.where}")
        recording = asyncio.create_task(self._record(scored), name=f"record-{self.where}")
        both = (scoring, recording)
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            for task in both:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
        finally:
            self.ready = False
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            if self._snapshot is not None:
                self._snapshot.cancel()
                await asyncio.gather(self._snapshot, return_exceptions=True)
                self._snapshot = None
            if self.position != self.recorded:
                self._forget()

    async def _score(self, scored: asyncio.Queue[Outcome | None]) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            if not self._inbox and self._gap <= self.position:
                await self._idle()
                continue
            scoring = self._switched()
            if not self._inbox:
                gap = self._passed(self._gap)
                if gap is not None:
                    await scored.put(gap)
                continue
            records = self._next()
            following = records[0].offset < self.replay_until
            base = max(self.position, self.replay_until)
            self.position = -1  # not in step with the state until the thread is done
            scoring.moved = self._moved  # records of many rows take long
            if following:
                await loop.run_in_executor(self.crew.scoring, scoring.follow, records)
                outcome = None
            else:
                control = self.crew.control
                step = partial(scoring.step, records, base, pilot=control.pilot, approvals=control.approvals)
                outcome = await loop.run_in_executor(self.crew.scoring, step)
            self.position = records[-1].offset + 1
            self.moved_at = time.monotonic()
            self.crew.wake()
            if outcome is None:
                self.crew.metrics.replayed += len(records)
                if self.position >= self.replay_until:
                    log.info("%s: the state has caught up with the watermark %d", self.where, self.replay_until)
            else:
                self._count_expired(outcome.plan)
                self.crew.points("after-score")
                self._rows_a_record = max(1.0, outcome.rows / outcome.records)
                self._tell_dead(outcome)
                await scored.put(outcome)
            await self._maybe_snapshot(scoring)
        await scored.put(None)

    def _moved(self) -> None:
        self.moved_at = time.monotonic()

    async def _idle(self) -> None:
        """Wait for records; a state that moved since the last snapshot gets one when it is due."""
        self._news.clear()
        moved = self._scoring is not None and self.position > self._snapshotted
        wait = max(IDLE_SECONDS, self._snapshot_due - time.monotonic()) if moved else None
        try:
            await asyncio.wait_for(self._news.wait(), wait)
        except TimeoutError:
            if self._scoring is not None:
                await self._maybe_snapshot(self._scoring)

    def _next(self) -> list[Record]:
        """Records for one step: bounded, and never on both sides of the watermark that a replay ends at."""
        limit = self._limit()
        if self._waiting < limit:
            limit = max(1, int(PROMPT * limit))
        taken: list[Record] = []
        while self._inbox and len(taken) < limit:
            first = self._inbox[0]
            if taken and taken[-1].offset < self.replay_until <= first[0].offset:
                break
            cut = min(len(first), limit - len(taken))
            if first[0].offset < self.replay_until <= first[cut - 1].offset:
                cut = next(place for place, record in enumerate(first) if record.offset >= self.replay_until)
            if cut < len(first):
                self._inbox[0] = first[cut:]
                taken += first[:cut]
                break
            taken = taken + first if taken else first
            self._inbox.popleft()
        self._waiting -= len(taken)
        return taken

    def _limit(self) -> int:
        return max(1, int(self.crew.options.max_rows / self._rows_a_record))

    def _switched(self) -> PartitionScoring:
        """The scoring in force; a new bundle begins to decide at this very place of the log, with an empty state."""
        scoring, scorer = self._scoring, self.crew.control.scorer
        if scoring is None:
            raise RuntimeError("no state is loaded")
        if scorer.digest != scoring.scorer.digest and self.position >= self.replay_until:
            log.info("%s: bundle %s decides from offset %d on", self.where, scorer.digest[:12], self.position)
            topic_id, histograms, uses = scoring.topic_id, scoring.histograms, scoring.uses
            clock, sources = scoring.clock, scoring.sources
            scoring = PartitionScoring(scorer, self.crew.options, self.number, topic_id, self.position)
            scoring.histograms, scoring.uses, scoring.clock, scoring.sources = histograms, uses, clock, sources
            self._scoring = scoring
        return scoring

    def _passed(self, until: int) -> Outcome | None:
        """Move over offsets that hold no records for us; None while following."""
        base = max(self.position, self.replay_until)
        self.position = until
        if until <= base:
            return None
        plan = Plan(base, until)
        self._count_expired(plan)
        return Outcome(plan, last_time=self.last_time)

    def _count_expired(self, plan: Plan) -> None:
        """Record what expired in the plan that passes over it."""
        count = 0
        while self._expired and self._expired[0][0] <= plan.next:
            count += self._expired.popleft()[1]
        if count:
            plan.totals["expired"] = plan.totals.get("expired", 0) + count

    def _tell_dead(self, outcome: Outcome) -> None:
        dead = outcome.dead
        if not dead or outcome.rows > sum(1 if d.rows is None else len(d.rows) for _, d in dead):
            return
        now = time.monotonic()
        if now - self._all_dead_told < ALL_DEAD_SECONDS:
            return
        self._all_dead_told = now
        letter = dead[-1][1]
        log.error(
            "%s: every event of the last fetch is a dead letter, the last one at offset %d: %s: %s",
            self.where,
            letter.offset,
            letter.reason,
            letter.detail,
        )

    # --- recording ---------------------------------------------------------------------------------------------------

    async def _record(self, scored: asyncio.Queue[Outcome | None]) -> None:
        while (outcome := await scored.get()) is not None:
            if outcome.dead:
                await self.crew.letters.write(self.number, outcome.dead)
            now = time.time_ns() // 1000
            entry = self.store.keys.signal_entry
            plan = outcome.plan
            plan.signals = [(entry(s.offset, s.row, s.rule), _text(replace(s, at=now))) for s in outcome.signals]
            plan.verdicts = [(entry_id, _text(replace(v, at=now))) for entry_id, v in outcome.verdicts]
            claim = self._claim
            if claim is None:
                raise RuntimeError("recording without a claim")
            began = time.perf_counter()
            await self._ask(partial(self.store.record, plan, claim.epoch))
            self.recorded = plan.next
            self.moved_at = time.monotonic()
            if outcome.records:
                self.last_time = outcome.last_time
            self._recorded_event.set()
            self.crew.metrics.recorded(outcome, time.perf_counter() - began, now)
            if self.crew.tracing is not None and outcome.signals:
                self.crew.tracing.scored([replace(signal, at=now) for signal in outcome.signals], outcome.rows)
            self.crew.points("between-record-and-commit")
            self.crew.wake()

    async def _ask(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Call Redis again and again until it answers."""
        while True:
            try:
                with self.crew.redis.call():
                    answer = await call()
            except ResponseError as error:
                refusal = str(error)
                if not isinstance(error, ReadOnlyError) and not any(word in refusal for word in TRANSIENT):
                    raise StoreError(f"Redis refuses what belongs to {self.where}: {error}") from error
                self.crew.redis.failed(error)
            except (RedisError, OSError) as error:
                self.crew.redis.failed(error)
            else:
                self.crew.redis.answered()
                return answer
            await self.crew.redis.pause()

    # --- snapshots ---------------------------------------------------------------------------------------------------

    async def _maybe_snapshot(self, scoring: PartitionScoring) -> None:
        if self._snapshot is not None and not self._snapshot.done():
            return
        turn = self.crew.snapshot_turn
        if time.monotonic() < self._snapshot_due or self.crew.redis.away or turn.locked():
            return
        await turn.acquire()  # free, as we just saw: partitions of a worker write one after the other
        try:
            await self._start_snapshot(scoring)
        except BaseException:
            turn.release()
            raise

    async def _start_snapshot(self, scoring: PartitionScoring) -> None:
        """Copy the state at this place of the log; everything else happens beside the work. Gives the turn back."""
        loop = asyncio.get_running_loop()
        arrays = await loop.run_in_executor(self.crew.scoring, _copied, scoring)
        self._snapshot_due = time.monotonic() + self.crew.snapshot_seconds
        self._snapshot = asyncio.create_task(
            self._write_snapshot(arrays, self.position, scoring.scorer.digest, scoring.topic_id),
            name=f"snapshot-{self.where}",
        )
        self._snapshot.add_done_callback(self._snapshot_ended)

    def _snapshot_ended(self, task: asyncio.Task[None]) -> None:
        self.crew.snapshot_turn.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: no snapshot: %s: %s", self.where, type(error).__name__, error)

    async def _write_snapshot(self, arrays: Arrays, offset: int, bundle: str, topic_id: str) -> None:
        claim = self._claim
        if claim is None:
            return
        began = time.monotonic()
        try:
            manifest = await self.snapshots.write(arrays, offset, bundle, topic_id)
            self.crew.points("during-snapshot")
            if await self._publish(manifest, claim.epoch) == "incomplete":
                log.warning("%s: chunks of the snapshot at %d are gone; the next one writes all", self.where, offset)
                return
        except (RedisError, OSError) as error:
            self.crew.redis.failed(error)
        except Fenced as error:
            log.info("%s: %s", self.where, error)  # recording meets it too, and acts on it
        else:
            self._snapshotted = offset
            self.crew.metrics.snapshots += 1
            self.crew.metrics.snapshot_seconds += time.monotonic() - began

    async def _publish(self, manifest: Manifest, epoch: int) -> str:
        """Publish as soon as everything below the snapshot is recorded, which the script judges."""
        self._recorded_event.clear()
        while (status := await self.snapshots.publish(manifest, epoch)) == "beyond":
            await self._recorded_event.wait()
            self._recorded_event.clear()
        return status


def _copied(scoring: PartitionScoring) -> Arrays:
    return {name: array.copy() for name, array in scoring.arrays().items()}


def _text(message: msgspec.Struct) -> str:
    return msgspec.json.encode(message).decode()
