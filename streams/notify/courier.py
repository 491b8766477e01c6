"""Delivers what is due at one destination. Each destination has a courier of its own, so a dead one delays no other."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

from streams.config import InhibitionSettings
from streams.errors import ConfigError
from streams.incidents.monitoring import TECHNIQUE as BLIND
from streams.incidents.titles import ADVICE, TECHNIQUES
from streams.notify import thread as threads
from streams.notify.backoff import Backoff
from streams.notify.contract import Notifier, Outcome
from streams.notify.outbox import Health, Outbox, Outdated, Place, Stored, Write
from streams.notify.thread import Entry, Thread
from streams.notify.transport import Transport
from streams.store.messages import Alert, Incident, Notice
from streams.tracing import Tracing

log = logging.getLogger("vedette.notifier")

#: Threads that are told of at the same time; the notices of one thread go one after the other.
AT_ONCE = 4
#: Pause of a destination after failures in a row, seconds.
DESTINATION_BACKOFF = Backoff(0.5, 30.0)
#: Pause of one thread after its failures in a row, seconds.
THREAD_BACKOFF = Backoff(1.0, 300.0)
#: What is held back is looked at again so often.
HELD_MICROSECONDS = 15_000_000
#: As a source of inhibition: the mark on the calibration, for evidence that came under it.
STALE = "calibration-stale"
#: As a source of inhibition it stands for what makes pages worth little: probes are not seen or do not arrive (a broker
#: that is away among the reasons), or the calibration is stale.
MONITORING, WORTHLESS = "monitoring", (BLIND, STALE)
#: Looks for what is due are at most so far apart, seconds.
POLL_SECONDS = 1.0
#: Attempts of a write against the intake, which changes the same thread.
ATTEMPTS = 20

Clock = Callable[[], int]
Ending = Literal["delivered", "retried", "refused", "given_up", "muted"]
#: How an attempt may end.
ENDINGS: tuple[Ending, ...] = ("delivered", "retried", "refused", "given_up", "muted")


@dataclass(frozen=True, slots=True)
class Policy:
    """What couriers of all destinations have in common."""

    console: str
    """Address of the console; empty for none."""
    give_up: int
    """Microseconds."""
    inhibitions: tuple[InhibitionSettings, ...] = ()


class Courier:
    """Delivers to one destination.

    Parameters
    ----------
    name : str
        Of the destination.
    notifier : Notifier
    transport : Transport
    outbox : Outbox
    policy : Policy
    clock : callable
        Microseconds since the epoch.
    rng : random.Random
        For jitter.
    advice : callable
        Technique, entity -> what to do next.
    poll_seconds : float
        See `POLL_SECONDS`.
    tracing : Tracing, optional
        Is told of every attempt.
    """

    def __init__(
        self,
        name: str,
        notifier: Notifier,
        transport: Transport,
        outbox: Outbox,
        policy: Policy,
        clock: Clock,
        rng: random.Random,
        advice: Callable[[str, str], str] | None = None,
        poll_seconds: float = POLL_SECONDS,
        tracing: Tracing | None = None,
    ) -> None:
        self.name = name
        self.notifier = notifier
        self.token: int | None = None
        self.wake = asyncio.Event()
        self._transport = transport
        self._outbox = outbox
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._advice = advice or (lambda _, entity: ADVICE.get(entity, ""))
        self._poll = poll_seconds
        self._tracing = tracing
        self._refresh = round(notifier.refresh_seconds * 1e6)
        self._health = Health()

    async def run(self, token: int | None) -> None:
        """Deliver until cancelled, or until another notifier has taken over.

        Raises
        ------
        Fenced
        redis.exceptions.RedisError
        """
        self.token = token
        self._health = await self._outbox.health(self.name)
        while True:
            self.wake.clear()
            if not await self.round():
                await self._wait()

    async def round(self) -> int:
        """Try what is due, a few threads at once; returns how many."""
        now = self._clock()
        if self._health.until > now:
            return 0
        # A destination that fails is asked by one thread at a time until it answers again.
        keys = await self._outbox.due(self.name, now, 1 if self._health.failures else AT_ONCE)
        if keys:
            await side_by_side(self._deliver(key) for key in keys)
        return len(keys)

    async def _wait(self) -> None:
        when = await self._outbox.next_due(self.name)
        seconds = self._poll
        if when is not None:
            seconds = min(seconds, max(0.01, (max(when, self._health.until) - self._clock()) / 1e6))
        try:
            await asyncio.wait_for(self.wake.wait(), seconds)
        except TimeoutError:
            return

    async def _deliver(self, key: str) -> None:
        place = (self.name, key)
        stored = (await self._outbox.threads([place]))[place]
        now = self._clock()
        entry = threads.head(stored.thread, self._refresh, now) if stored.thread else None
        if stored.thread is None or entry is None:
            await self._change(place, lambda thread: thread, now)  # only brings its time up to date
            return
        if await self._muted(stored, entry):
            await self._change(place, lambda thread: _held(thread, entry, now), now, "muted")
            return
        if entry.reason in ("repeat", "refresh"):
            healed = await self._looked_up(stored.thread, now)
            if healed != stored.thread:
                await self._write(place, stored, healed, now, {})
                return
        notice = self._notice(stored.thread, entry)
        outcome = await self._send(notice, now)
        if self._tracing is not None:
            self._tracing.told(self.name, entry.alert, notice, outcome.kind, now, self._clock())
        await self._ended(place, entry, notice, outcome)

    def _notice(self, thread: Thread, entry: Entry) -> Notice:
        advice = self._advice(entry.alert.technique, entry.alert.entity)
        return threads.notice(thread, entry, self._policy.console, TECHNIQUES, advice)

    async def _send(self, notice: Notice, now: int) -> Outcome:
        try:
            call = self.notifier.call(notice, now)
        except ConfigError as error:
            return Outcome("again", text=str(error))
        if call is None:
            return Outcome("delivered", text="has no word for it")
        answer = await self._transport.send(call)
        return self.notifier.judge(answer, self._clock())

    async def _ended(self, place: Place, entry: Entry, notice: Notice, outcome: Outcome) -> None:
        now = self._clock()
        if outcome.kind == "delivered":
            self._health = Health(delivered=now)
            await self._change(place, lambda thread: threads.delivered(thread, entry, now), now, "delivered")
            log.info("%s: told %s %s (%s)", self.name, notice.action, notice.id, notice.reason)
            return
        stored = (await self._outbox.threads([place]))[place]
        failing = stored.thread.failing if stored.thread else 0
        given_up = outcome.kind == "again" and failing > 0 and now - failing >= self._policy.give_up
        if outcome.kind == "refused" or given_up:
            ending: Ending = "given_up" if given_up else "refused"
            log.error("%s: %s is a dead letter, %s: %s", self.name, notice.id, ending.replace("_", " "), outcome.text)
            dead = [(notice, f"{ending.replace('_', ' ')}: {outcome.text}")]
            await self._change(place, lambda thread: threads.dropped(thread, entry), now, ending, dead)
            return
        attempts = stored.thread.attempts + 1 if stored.thread else 1
        wait = THREAD_BACKOFF.seconds(attempts, self._rng)
        pause = DESTINATION_BACKOFF.seconds(self._health.failures + 1, self._rng)
        if outcome.wait_seconds is not None:
            wait, pause = max(wait, outcome.wait_seconds), max(pause, outcome.wait_seconds)
        if not self._health.failures:
            log.warning("%s does not take notices: %s", self.name, outcome.text)
        self._health = Health(
            until=now + round(pause * 1e6),
            failures=self._health.failures + 1,
            since=self._health.since or now,
            problem=outcome.text,
            delivered=self._health.delivered,
        )
        await self._change(place, lambda thread: threads.failed(thread, now, round(wait * 1e6)), now, "retried")

    async def _muted(self, stored: Stored, entry: Entry) -> bool:
        """Whether an open incident holds this one back; what was told of already is not held."""
        if stored.thread is None or stored.thread.open or entry.action != "trigger" or not self._policy.inhibitions:
            return False
        technique = entry.alert.technique
        named = [one.source for one in self._policy.inhibitions if fnmatchcase(technique, one.target)]
        sources = [source for name in named for source in (WORTHLESS if name == MONITORING else (name,))]
        if not sources:
            return False
        opened = {group.partition("|")[0] for group in await self._outbox.open_groups()} - {technique}
        if entry.alert.stale and await self._outbox.calibration_is_stale():
            opened.add(STALE)
        return any(fnmatchcase(name, source) for name in opened for source in sources)

    async def _looked_up(self, thread: Thread, now: int) -> Thread:
        """The thread after a look at its incidents: silences make no alert, and a trimmed stream loses some."""
        states = await self._outbox.states(thread.members)
        quiet = 0
        for name, incident in states.items():
            if incident is None or incident.state == "resolved":
                thread = threads.planned(thread, _as_alert(thread, name, incident, now), now)
            elif incident.state == "suppressed":
                quiet += 1
            elif incident.state != thread.members.get(name):
                members = {**thread.members, name: incident.state}
                thread = msgspec.structs.replace(thread, members=members)
        if thread.members and quiet == len(thread.members):
            return threads.postponed(thread, now + HELD_MICROSECONDS)
        return thread

    async def _change(
        self,
        place: Place,
        alter: Callable[[Thread], Thread],
        now: int,
        ending: Ending | None = None,
        dead: list[tuple[Notice, str]] | None = None,
    ) -> None:
        """Change one thread, again and again until the intake did not change it meanwhile."""
        counts = {f"{self.name}|{ending}": 1} if ending else {}
        for _ in range(ATTEMPTS):
            stored = (await self._outbox.threads([place]))[place]
            thread = alter(stored.thread) if stored.thread else None
            try:
                await self._write(place, stored, thread, now, counts, dead)
            except Outdated:
                continue
            return
        log.warning("%s: %s changes too fast; it is tried again", self.name, place[1])

    async def _write(
        self,
        place: Place,
        stored: Stored,
        thread: Thread | None,
        now: int,
        counts: dict[str, int],
        dead: list[tuple[Notice, str]] | None = None,
    ) -> None:
        if thread is not None and thread.over:
            thread = None
        due = threads.due(thread, self._refresh) if thread else None
        write = Write(place, stored.base, thread, due, dead or [])
        await self._outbox.write(self.token, [write], counts=counts, health={self.name: self._health})


def _held(thread: Thread, entry: Entry, now: int) -> Thread:
    """Later; never, where its incident has ended meanwhile."""
    return threads.postponed(thread, now + HELD_MICROSECONDS) if thread.members else threads.dropped(thread, entry)


def _as_alert(thread: Thread, name: str, incident: Incident | None, now: int) -> Alert:
    """The end of an incident, of which no alert came."""
    known = next((alert for alert in thread.shown if alert.incident == name), thread.shown[0])
    last = incident.history[-1] if incident and incident.history else None
    return msgspec.structs.replace(
        known,
        id=f"{name}#end",
        incident=name,
        change="resolved",
        state="resolved",
        at=now,
        by=last.by if last else "vedette",
        what=last.what if last else "no longer kept",
    )


async def side_by_side(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them side by side; the first error ends them all, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
