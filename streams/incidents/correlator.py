"""The correlator: reads the workers' signals of one model from Redis and makes incidents of them.

One process per model is active (a lease); others stand by. How far it has read each partition stands in Redis and is
set by the script that writes the incidents, so a crash at any point neither loses nor repeats an effect.
"""

from __future__ import annotations

import logging
import signal as signals
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from streams.config import Settings
from streams.errors import Fenced
from streams.incidents.absence import Absence, patience
from streams.incidents.calibration import MOST_INCIDENTS, CalibrationWatch
from streams.incidents.care import MICROSECONDS_PER_HOUR, Quiet, tend
from streams.incidents.grouping import Draft
from streams.incidents.ledger import ATTEMPTS, Ledger, Outdated, Step, as_text, fold
from streams.incidents.repeaters import Repeaters
from streams.incidents.silences import ENDED_MICROSECONDS
from streams.lease import LEASE_SECONDS, Lease
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Alert, Incident, SignalMessage, WorkerStatus
from streams.tracing import Tracing, tracing

if TYPE_CHECKING:
    from streams.incidents.escalation import Inquirer

log = logging.getLogger("vedette.correlator")

#: How long a read waits for signals; a stop is noticed within it, and it stays far below the client's own time limit.
BLOCK_MILLISECONDS = 500
#: Signals of one partition that one script applies.
BATCH_SIGNALS = 200
#: Seconds between two looks for partitions that are new.
DISCOVER_SECONDS = 2.0
#: Partitions beyond the highest known one that discovery looks for.
DISCOVER_AHEAD = 64
#: Seconds between two rounds of trimming and forgetting.
HOUSEKEEPING_SECONDS = 10.0
#: Applied signals that stay in a partition's stream, for people and tools.
SIGNALS_KEPT = 2_000
#: Entries of the alerts and of the log that stay although every group has read them.
ENTRIES_KEPT = 10_000
#: Entries beyond which a stream is trimmed although a group has not read them.
ENTRIES_CAP = 100_000
#: Entries that one trim looks at, so that no script holds Redis for long.
TRIM_STEP = 500
#: Resolved incidents are forgotten so long after their last signal.
RETENTION_SECONDS = 90 * 24 * 3600
#: Open incidents, about, that one round looks at for silences and quiet.
TEND_STEP = 500
#: Incidents that one round of forgetting looks at.
PRUNE_STEP = 200
#: Pause after Redis could not be reached.
AWAY_SECONDS = 1.0
#: How long the end waits for the model that the escalation tier asks.
ESCALATION_SECONDS = 2.0

_HERE = Path(__file__).parent


class Correlator:
    """Makes one model's incidents while its lease lasts.

    Parameters
    ----------
    redis : redis.Redis
        A client that returns bytes, with a socket time limit above `BLOCK_MILLISECONDS`.
    model, topic : str
        The watched model and the topic of its events.
    lease : Lease
        Of the role ``correlator``.
    clock : callable
        Microseconds since the epoch.
    quiet : Quiet, optional
        How long incidents must be quiet before they are resolved by themselves.
    patience : int
        Microseconds without prober and outcomes after which monitoring is blind; 0: that is not watched.
    calibration : CalibrationWatch, optional
        Marks evidence that comes while the calibration is stale.
    tracing : Tracing, optional
        Is told what signals did to incidents.
    inquirer : Inquirer, optional
        Is handed the evidence that incidents get, to ask the model again.
    """

    def __init__(
        self,
        redis: Redis,
        model: str,
        topic: str,
        lease: Lease,
        clock: Callable[[], int] | None = None,
        quiet: Quiet | None = None,
        patience: int = 0,
        calibration: CalibrationWatch | None = None,
        tracing: Tracing | None = None,
        inquirer: Inquirer | None = None,
    ) -> None:
        self.redis = redis
        self.topic = topic
        self.lease = lease
        self.keys = ModelKeys(model)
        self.ledger = Ledger(redis, self.keys)
        self._repeaters = Repeaters(redis, self.keys)
        self.progress: dict[int, str] = {}
        """Partition -> id of the last applied signal; empty where none was."""
        self._clock = clock or (lambda: time.time_ns() // 1000)
        self._quiet = quiet or Quiet()
        self._calibration = calibration
        self._tracing = tracing
        self._inquirer = inquirer
        self._absence = Absence(redis, self.keys, patience)
        self._tended = 0
        """Cursor of the walk over open incidents."""
        self._trim = redis.register_script((_HERE / "trim.lua").read_text(encoding="utf-8"))
        self._trim_signals = redis.register_script((_HERE / "trim_signals.lua").read_text(encoding="utf-8"))
        self._prune = redis.register_script((_HERE / "prune.lua").read_text(encoding="utf-8"))
        self._restart = redis.register_script((_HERE / "restart.lua").read_text(encoding="utf-8"))

    def run(self, stop: threading.Event) -> None:
        """Stand by for the lease and correlate, until `stop` is set. Holds on while Redis is away."""
        away = False
        while not stop.is_set():
            try:
                if not self.lease.acquire():
                    stop.wait(self.lease.renew_every)
                    continue
                if away:
                    log.info("Redis answers again")
                away = False
                log.info("active for model %s with token %s", self.keys.model, self.lease.token)
                self._active(stop)
            except Fenced as error:
                log.warning("standing by: %s", error)
                self.lease.drop()
            except RedisError as error:
                if not away:
                    log.warning("Redis is away or refuses, holding on: %s", error)
                away = True
                stop.wait(AWAY_SECONDS)
        try:
            self.lease.release()
        except RedisError as error:
            log.warning("lease not released, it ends by itself: %s", error)

    def _active(self, stop: threading.Event) -> None:
        self.load()
        renew = discover = keep_house = 0.0
        while not stop.is_set():
            now = time.monotonic()
            if now >= renew:
                if not self.lease.renew():
                    raise Fenced(f"another correlator holds the lease of model {self.keys.model!r}")
                renew = now + self.lease.renew_every
            if now >= discover:
                self.discover()
                discover = now + DISCOVER_SECONDS
            if not self.step(BLOCK_MILLISECONDS) and not self.progress:
                stop.wait(BLOCK_MILLISECONDS / 1000)
            if now >= keep_house:
                self.keep_house()
                keep_house = now + HOUSEKEEPING_SECONDS

    def load(self) -> None:
        """Read from Redis how far every partition has been applied, and find the partitions."""
        self.progress.clear()
        for place, applied in self.redis.hgetall(self.keys.progress).items():
            topic, _, partition = as_text(place).rpartition(":")
            if topic == self.topic and partition.isdigit():
                self.progress[int(partition)] = as_text(applied)
        if self._calibration is not None:
            self._calibration.load()
        self.discover()

    def discover(self) -> None:
        """Take in partitions that a worker has touched or holds since the last look.

        Redis alone is asked, so that the correlator does not depend on the broker: partitions are dense, and a worker
        says which ones it holds.
        """
        for said in self.redis.hvals(self.keys.workers):
            try:
                status = msgspec.json.decode(said, type=WorkerStatus)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("a worker's status cannot be read and is passed over: %s", error)
                continue
            for partition in status.partitions:
                self.progress.setdefault(partition, "")
        first, last = 0, max(self.progress, default=-1) + DISCOVER_AHEAD
        while first <= last:
            pipe = self.redis.pipeline(transaction=False)
            for partition in range(first, last + 1):
                keys = PartitionKeys(self.topic, partition)
                pipe.exists(keys.watermark, keys.signals)
            found = [first + place for place, exists in enumerate(pipe.execute()) if exists]
            for partition in found:
                self.progress.setdefault(partition, "")
            first, last = last + 1, max(found, default=-1) + DISCOVER_AHEAD
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Read streams from their beginning that were deleted since: their newest entry lies before what was applied.

        Ids of signals follow offsets, so those of a topic that was made again begin low; ours would never be reached.
        """
        applied = {partition: upto for partition, upto in self.progress.items() if upto}
        pipe = self.redis.pipeline(transaction=False)
        for partition in applied:
            pipe.xinfo_stream(PartitionKeys(self.topic, partition).signals)
        for (partition, upto), stream in zip(applied.items(), pipe.execute(raise_on_error=False), strict=True):
            if isinstance(stream, ResponseError) and "no such key" in str(stream):
                newest = "0-0"
            elif isinstance(stream, Exception):
                raise stream
            else:
                newest = as_text(stream["last-generated-id"])
            if _place_of(newest) >= _place_of(upto):
                continue
            place = f"{self.topic}:{partition}"
            keys = [self.keys.fence(self.lease.role), self.keys.progress]
            if self._restart(keys=keys, args=[self.lease.token or "", place, upto]):
                log.warning("the signals of %s begin anew: the topic was made again", place)
                self.progress[partition] = ""

    def step(self, block_milliseconds: int) -> int:
        """Read what is new, waiting for so long if nothing is, and apply it; returns the number of signals."""
        if not self.progress:
            return 0
        streams: dict[Any, Any] = {
            PartitionKeys(self.topic, partition).signals: applied or "0-0"
            for partition, applied in self.progress.items()
        }
        answer: Any = self.redis.xread(streams, count=BATCH_SIGNALS, block=block_milliseconds)
        by_stream: dict[bytes, Any] = dict(answer)
        applied = 0
        for partition in sorted(self.progress):
            entries = by_stream.get(PartitionKeys(self.topic, partition).signals.encode())
            if entries:
                self.apply(partition, entries)
                applied += len(entries)
        return applied

    def apply(self, partition: int, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Fold consecutive signals of one partition into incidents and write them.

        Raises
        ------
        Fenced
            When the lease is lost, or when somebody else moved the progress.
        """
        place = f"{self.topic}:{partition}"
        base = self.progress[partition]
        began = time.time_ns() // 1000
        decoded = list(self._decode(place, entries))
        for _ in range(ATTEMPTS):
            book = self.ledger.book(place, [signal for signal, _ in decoded])
            folded = fold(self.keys.model, book, decoded, self._clock())
            step = Step(place, base, entries[-1][0].decode(), folded.opening if folded.opening.count else None)
            try:
                self.ledger.apply(folded.drafts, token=self.lease.token, step=step, aliases=folded.aliases)
            except Outdated as outdated:
                if outdated.what != "progress":
                    continue
                if outdated.stored != step.upto:  # else our own call arrived, although its reply did not
                    raise Fenced(f"progress of {place} is {outdated.stored!r}, not {base!r}") from None
            self.progress[partition] = step.upto
            if self._tracing is not None:
                changes = [change for draft in folded.drafts for change in draft.log]
                self._tracing.folded(changes, began, time.time_ns() // 1000)
            if self._inquirer is not None:
                for draft in folded.drafts:
                    for text, _ in draft.evidence:
                        self._inquirer.offer(draft.incident.id, text)
            return
        raise Fenced(f"incidents that signals of {place} belong to changed {ATTEMPTS} times under us")

    def _decode(
        self, place: str, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]
    ) -> Iterable[tuple[SignalMessage, str]]:
        for name, fields in entries:
            text = fields.get(b"m", b"")
            try:
                signal = msgspec.json.decode(text, type=SignalMessage)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("signal %s of %s cannot be read and is passed over: %s", name.decode(), place, error)
                continue
            if signal.model != self.keys.model:
                continue
            if self._calibration is not None and self._calibration.stale(signal.bundle):
                signal = msgspec.structs.replace(signal, stale=True)
                text = msgspec.json.encode(signal)
            yield signal, text.decode()

    def keep_house(self) -> None:
        """Look for a prober, trim the streams and forget old incidents."""
        self._absence.look(self._clock(), self.lease.token)
        for partition, applied in self.progress.items():
            if applied:
                stream = PartitionKeys(self.topic, partition).signals
                while self._trim_signals(keys=[stream], args=[applied, SIGNALS_KEPT, TRIM_STEP]) >= TRIM_STEP:
                    continue
        for stream in (self.keys.alerts, self.keys.log):
            self._trim_public(stream)
        self.tend()
        if self._calibration is not None and self.lease.token is not None:
            self._calibration.look(sorted(self.progress), self._since, self.lease.token)
        self._forget()
        if self._inquirer is not None:
            self._inquirer.tell()

    def tend(self) -> None:
        """Go on with the walk over open incidents: silences that began or ended, and what has been quiet for long."""
        silences, now = self.ledger.silences(), self._clock()
        ended = [silence.id for silence in silences if silence.ends + ENDED_MICROSECONDS < now]
        if ended:
            self.redis.hdel(self.keys.silences, *ended)
        self._repeaters.forget_ended(now)
        answer: Any = self.redis.hscan(self.keys.open_incidents, self._tended, count=TEND_STEP)
        self._tended, found = int(answer[0]), answer[1]
        heard = min(now, self._heard())
        for stored in self.ledger.incidents(map(as_text, found.values())).values():
            draft = Draft(stored.incident, stored.group, stored.version, stored.version, stored.incident.id)
            tend(draft, silences, now, heard, self._quiet)
            if draft.version == draft.base:
                continue
            try:
                self.ledger.apply([draft], token=self.lease.token)
            except Outdated:
                continue  # somebody else has changed it; the next walk looks again

    def _since(self, seconds: float) -> list[Incident]:
        """Incidents last seen since a moment, newest first."""
        names = self.redis.zrevrangebyscore(self.keys.incidents, "+inf", seconds, start=0, num=MOST_INCIDENTS)
        return [stored.incident for stored in self.ledger.incidents(map(as_text, names)).values()]

    def _heard(self) -> int:
        """Broker time, microseconds, of the newest record that a worker has recorded; 0 where none can be told."""
        pipe = self.redis.pipeline(transaction=False)
        for partition in self.progress:
            pipe.hget(PartitionKeys(self.topic, partition).watermark, "identity")
        times = [as_text(identity).split(":")[1:2] for identity in pipe.execute()]
        return max((int(time[0]) * 1000 for time in times if time and time[0].isdecimal()), default=0)

    def _trim_public(self, stream: str) -> None:
        entry = msgspec.json.encode(trimmed_from(self.keys.model, self._clock())).decode()
        while True:
            trimmed, *losers = self._trim(keys=[stream], args=[ENTRIES_KEPT, ENTRIES_CAP, TRIM_STEP, "m", entry])
            for group in losers:
                log.error("%s: group %s had not read all that was trimmed", stream, group.decode(errors="replace"))
            if trimmed < TRIM_STEP:
                return

    def _forget(self) -> None:
        limit = self._clock() / 1e6 - RETENTION_SECONDS
        names = self.redis.zrangebyscore(self.keys.incidents, "-inf", limit, start=0, num=PRUNE_STEP)
        if not names:
            return
        keys = [self.keys.fence("correlator"), self.keys.incidents, self.keys.open_incidents]
        arguments: list[str | int] = [self.lease.token or 0]
        for name, stored in self.ledger.incidents(map(as_text, names)).items():
            old = stored.incident
            if old.state == "resolved" and old.entity != "population":
                keys += [self.keys.incident(name), self.keys.evidence(name)]
                arguments += [name, stored.version]
        if len(arguments) > 1 and self._prune(keys=keys, args=arguments) < 0:
            raise Fenced(f"another correlator holds the lease of model {self.keys.model!r}")


def trimmed_from(model: str, now: int) -> Alert:
    """The entry that tells a group what it lost; the trimming script fills in @GROUP@, @FROM@ and @FIRST@."""
    return Alert(
        id="trimmed#@FROM@#@GROUP@",
        incident="",
        model=model,
        change="trimmed-from",
        level="ticket",
        state="new",
        technique="",
        entity="consumer-group",
        entity_id="@GROUP@",
        title="entries from @FROM@ up to @FIRST@ (exclusive) were trimmed before group @GROUP@ had finished them",
        first_seen=now,
        last_seen=now,
        at=now,
    )


def run(settings: Settings, model_name: str) -> int:
    """The `vedette correlator` command: correlate until SIGTERM or SIGINT; returns the exit code.

    Raises
    ------
    StoreError
        When Redis does not answer at the start. Later it holds on until Redis is back.
    """
    model = settings.model(model_name)
    from streams.store.client import connect

    redis = connect(settings.redis)
    stop = threading.Event()
    for number in (signals.SIGTERM, signals.SIGINT):
        signals.signal(number, lambda *_: stop.set())
    lease = Lease(redis, ModelKeys(model.name), "correlator", seconds=LEASE_SECONDS)
    hours = settings.incidents
    quiet = Quiet(
        ticket=round(hours.quiet_ticket_hours * MICROSECONDS_PER_HOUR),
        page=round(hours.quiet_page_hours * MICROSECONDS_PER_HOUR),
    )
    calibration = CalibrationWatch(
        redis, ModelKeys(model.name), model.topic, model.bundle, round(settings.week_seconds * 1e6)
    )
    asking = asker = None
    if model.escalation is not None:
        from streams.incidents.escalation import inquirer  # it reads inquiries, which the correlator alone never needs

        asking = inquirer(settings, model, redis)
    if asking is not None:
        # A model within this process that never returns must not hold up the end.
        asker = threading.Thread(target=asking.run, args=(stop,), name="escalation", daemon=True)
        asker.start()
    tracer = tracing(settings, "correlator")
    try:
        Correlator(
            redis,
            model.name,
            model.topic,
            lease,
            quiet=quiet,
            patience=patience(settings.probes),
            calibration=calibration,
            tracing=tracer,
            inquirer=asking,
        ).run(stop)
    finally:
        stop.set()
        if asking is not None and asker is not None:
            asker.join(ESCALATION_SECONDS)
            with suppress(RedisError):
                asking.tell()
        if tracer is not None:
            tracer.close()
    return 0


def _place_of(entry: str) -> tuple[int, int]:
    """A stream's entry id as numbers."""
    first, _, second = entry.partition("-")
    return int(first), int(second or 0)
