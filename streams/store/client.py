"""Connections to Redis, with the settings that every process of ours shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis.asyncio
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from streams.config import RedisSettings
from streams.errors import ConfigError, StoreError

#: Blocking reads must stay below this.
SOCKET_SECONDS = 10.0
CONNECT_SECONDS = 5.0


def options(settings: RedisSettings) -> dict[str, Any]:
    """Connection options that clients of both kinds share.

    Raises
    ------
    ConfigError
        When the password file cannot be read.
    """
    chosen: dict[str, Any] = {
        "socket_timeout": SOCKET_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        "health_check_interval": 30,
    }
    if settings.password_file is not None:
        try:
            chosen["password"] = Path(settings.password_file).read_text(encoding="utf-8").strip()
        except OSError:
            raise ConfigError(f"redis.password_file: cannot read {settings.password_file}") from None
    return chosen


def connect(settings: RedisSettings) -> Redis:
    """A client that returns bytes, after Redis has answered once. It never repeats a command by itself.

    Raises
    ------
    ConfigError
        When the URL is not one.
    StoreError
        When Redis does not answer, or refuses us.
    """
    try:
        client = Redis.from_url(settings.url, retry=Retry(ExponentialBackoff(), 0), **options(settings))
    except ValueError as wrong:
        raise ConfigError(f"redis.url: {wrong}") from None
    try:
        client.ping()
    except RedisError as error:
        client.close()
        raise StoreError(f"Redis at {_without_password(settings.url)} does not answer: {error}") from None
    return client


def connect_async(settings: RedisSettings, *, repeat: bool = True) -> redis.asyncio.Redis:
    """The same for asyncio; nothing is asked yet. Unless told not to, it repeats a command that met no connection.

    Raises
    ------
    ConfigError
    """
    try:
        chosen = options(settings)
        if not repeat:
            chosen["retry"] = AsyncRetry(NoBackoff(), 0)
        client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(settings.url, **chosen)
    except ValueError as wrong:
        raise ConfigError(f"redis.url: {wrong}") from None
    return client


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
