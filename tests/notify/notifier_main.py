"""A notifier in a process of its own whose clock is a number in Redis: arguments are a settings file and the lease's
seconds."""

from __future__ import annotations

import asyncio
import random
import signal
import sys

from redis import Redis

from streams.config import load
from streams.notify.service import serve


def main(path: str, seconds: str) -> None:
    settings = load(path, {})
    hands = Redis.from_url(settings.redis.url)

    def clock() -> int:
        return int(hands.get("test:now") or 0)

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await serve(
            settings,
            [model.name for model in settings.models],
            stop,
            clock=clock,
            rng=random.Random(7),
            lease_seconds=float(seconds),
            poll_seconds=0.05,
        )

    asyncio.run(run())


main(*sys.argv[1:])
