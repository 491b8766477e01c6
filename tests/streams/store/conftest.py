from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis import Redis

from streams.config import RedisSettings
from streams.store.client import connect_async
from streams.store.keys import PartitionKeys
from streams.store.partition import PartitionStore, Scripts

KEYS = PartitionKeys("events", 2)

Play = Callable[[Callable[[Callable[..., PartitionStore]], Awaitable[Any]]], Any]


@pytest.fixture
def play(redis: Redis, redis_url: str) -> Play:
    """Run a coroutine that is given a maker of stores; each has a connection of its own."""

    def run(scene: Callable[[Callable[..., PartitionStore]], Awaitable[Any]]) -> Any:
        async def whole() -> Any:
            clients = []

            def make(scripts: Scripts | None = None, sent: Callable[[], None] | None = None) -> PartitionStore:
                client = connect_async(RedisSettings(url=redis_url), repeat=False)
                clients.append(client)
                return PartitionStore(client, KEYS, scripts or Scripts(), sent)

            try:
                return await scene(make)
            finally:
                for client in clients:
                    await client.aclose()

        return asyncio.run(whole())

    return run


@pytest.fixture
def dump(redis: Redis) -> Callable[[], dict[bytes, Any]]:
    """Every key of the database with its value."""

    def look() -> dict[bytes, Any]:
        return {key: redis.dump(key) for key in sorted(redis.scan_iter())}

    return look
