"""The notifier: tells destinations of incidents. One process per model is active (a lease), others stand by.

What is to be told stands in Redis, so a notifier that is killed at any point loses nothing: the next one goes on. What
was sent, but not yet recorded, is sent again under the same key and id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal as signals
import time
from collections.abc import Callable, Mapping
from functools import partial

from redis import Redis
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from streams.config import Settings
from streams.errors import Fenced
from streams.incidents.runbook import Runbook
from streams.lease import LEASE_SECONDS, Lease
from streams.notify.courier import POLL_SECONDS, Courier, Policy, side_by_side
from streams.notify.intake import BLOCK_MILLISECONDS, Intake
from streams.notify.outbox import Outbox, Outdated
from streams.notify.routing import Routing
from streams.notify.transport import HttpTransport, Transport
from streams.store.client import connect, connect_async
from streams.store.keys import ModelKeys
from streams.tracing import Tracing, tracing

log = logging.getLogger("vedette.notifier")

#: Pause after Redis could not be reached.
AWAY_SECONDS = 1.0
#: Notices under way at the end get so long.
SHUTDOWN_SECONDS = 3.0

Clock = Callable[[], int]


def clock() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class ModelNotifier:
    """Tells of one model's incidents while its lease lasts.

    Parameters
    ----------
    settings : Settings
    model : str
    redis : redis.Redis
        For the lease.
    store : redis.asyncio.Redis
        For everything else. Both return bytes.
    routing : Routing
    transports : dict
        Destination -> what sends there.
    clock : callable
        Microseconds since the epoch.
    rng : random.Random, optional
        For jitter.
    lease_seconds, poll_seconds : float
        Time to live of the lease; how often couriers look for what is due.
    tracing : Tracing, optional
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        redis: Redis,
        store: aioredis.Redis,
        routing: Routing,
        transports: Mapping[str, Transport],
        clock: Clock = clock,
        rng: random.Random | None = None,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        tracing: Tracing | None = None,
    ) -> None:
        keys = ModelKeys(model)
        self.outbox = Outbox(store, keys)
        self._lease = Lease(redis, keys, "notifier", seconds=lease_seconds)
        self._clock = clock
        self._block = min(BLOCK_MILLISECONDS, round(poll_seconds * 1000))
        notify = settings.notify
        policy = Policy(notify.console_url.rstrip("/"), round(notify.give_up_hours * 3600e6), notify.inhibitions)
        runbook = Runbook.of(settings.incidents)
        self.couriers = [
            Courier(
                name,
                notifier,
                transports[name],
                self.outbox,
                policy,
                clock,
                rng or random.Random(),
                runbook.text,
                poll_seconds,
                tracing,
            )
            for name, notifier in routing.notifiers.items()
        ]
        refreshes = {name: round(one.refresh_seconds * 1e6) for name, one in routing.notifiers.items()}
        self._intake = Intake(self.outbox, routing, refreshes)

    async def run(self) -> None:
        """Stand by for the lease and tell, until cancelled. Holds on while Redis is away."""
        away = False
        try:
            while True:
                try:
                    if not await asyncio.to_thread(self._lease.acquire):
                        await asyncio.sleep(self._lease.renew_every)
                        continue
                    if away:
                        log.info("Redis answers again")
                    away = False
                    log.info("active for model %s with token %s", self.outbox.keys.model, self._lease.token)
                    await self.active()
                except (Fenced, Outdated) as error:
                    log.warning("standing by: %s", error)
                    self._lease.drop()
                except RedisError as error:
                    if not away:
                        log.warning("Redis is away or refuses, holding on: %s", error)
                    away = True
                    await asyncio.sleep(AWAY_SECONDS)
        finally:
            await asyncio.shield(asyncio.to_thread(self._release))

    async def active(self) -> None:
        """Tell, as the holder of the lease.

        Raises
        ------
        Fenced, redis.exceptions.RedisError
        """
        await side_by_side([self._renew(), self._take_in(), *(one.run(self._lease.token) for one in self.couriers)])

    async def _renew(self) -> None:
        while await asyncio.to_thread(self._lease.renew):
            await asyncio.sleep(self._lease.renew_every)
        raise Fenced(f"another notifier holds the lease of model {self.outbox.keys.model!r}")

    async def _take_in(self) -> None:
        while True:
            if await self._intake.step(self._lease.token, self._clock(), self._block):
                for courier in self.couriers:
                    courier.wake.set()

    def _release(self) -> None:
        try:
            self._lease.release()
        except RedisError as error:
            log.warning("lease not released, it ends by itself: %s", error)


async def serve(
    settings: Settings,
    models: list[str],
    stop: asyncio.Event,
    *,
    clock: Clock = clock,
    rng: random.Random | None = None,
    lease_seconds: float = LEASE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Tell of these models' incidents until `stop` is set.

    Raises
    ------
    ConfigError
        When the settings of notifications make no sense.
    StoreError
        When Redis does not answer at the start. Later it holds on until Redis is back.
    """
    routing = Routing.of(settings.notify)
    if not routing.notifiers:
        log.warning("notify.destinations: none is declared, so nobody is told of pages; see docs/notifications.md")
        await stop.wait()
        return
    transports = {one.name: HttpTransport(one) for one in settings.notify.destinations}
    tracer = tracing(settings, "notifier")
    redis = await asyncio.to_thread(connect, settings.redis)
    store = connect_async(settings.redis)
    make = partial(
        ModelNotifier, settings, redis=redis, store=store, routing=routing, transports=transports, clock=clock, rng=rng,
        lease_seconds=lease_seconds, poll_seconds=poll_seconds, tracing=tracer,
    )  # fmt: skip
    tasks = [asyncio.create_task(make(model=model).run(), name=model) for model in models]
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.wait([*tasks, stopping], timeout=SHUTDOWN_SECONDS)
        for transport in transports.values():
            await transport.close()
        await store.aclose()
        redis.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)


def run(settings: Settings, model: str | None) -> int:
    """The `vedette notifier` command: tell until SIGTERM or SIGINT; returns the exit code.

    Parameters
    ----------
    model
        None: of every declared model.

    Raises
    ------
    ConfigError, StoreError
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    models = [settings.model(model).name] if model else [one.name for one in settings.models]

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signals.SIGTERM, signals.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(settings, models, stop)

    asyncio.run(main())
    return 0
