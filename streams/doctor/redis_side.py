"""Redis: version, role, durability, eviction, clock, and the workers that report there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from streams.config import ModelSettings, Settings
from streams.doctor.finding import Finding, Findings, many, ok, problem, warning
from streams.errors import ConfigError, StoreError
from streams.store.client import connect
from streams.store.keys import ModelKeys
from streams.store.messages import WorkerStatus

#: Oldest version whose streams and scripts suffice.
OLDEST_REDIS = (6, 2)
#: Clocks that differ by more make latency figures and incident times misleading.
CLOCK_WARNING_SECONDS = 1.0
#: Redis is asked for its time so often; the quickest answer counts.
CLOCK_ROUNDS = 7
#: Share of maxmemory from which Redis is soon full.
MEMORY_WARNING_SHARE = 0.8
#: A worker that has not reported for so long is gone.
WORKER_SECONDS = 10.0


def reach(settings: Settings) -> tuple[Redis | None, Finding]:
    """A client, where Redis answers and takes writes."""
    try:
        store = connect(settings.redis)
    except (StoreError, ConfigError) as error:
        return None, problem("redis", str(error), "start Redis, or correct redis.url", type(error))
    try:
        info = store.info("server") | store.info("replication")
    except RedisError as error:
        store.close()
        return None, problem("redis", f"Redis refuses: {error}", "check the user's rights", StoreError)
    found = _server(info)
    if found.status == "problem":
        store.close()
        return None, found
    return store, found


def _server(info: Mapping[str, Any]) -> Finding:
    text = str(info["redis_version"])
    version = tuple(int(part) for part in text.split(".")[:2])
    name = f"{'Valkey' if info.get('server_name') == 'valkey' else 'Redis'} {text}"
    if info.get("role", "master") != "master":
        return problem("redis", f"{name} is a replica: it takes no writes", "name its primary in redis.url", StoreError)
    if version < OLDEST_REDIS:
        return problem("redis", f"{name} is older than {'.'.join(map(str, OLDEST_REDIS))}", "upgrade it", StoreError)
    return ok("redis", f"{name} answers")


def examine(store: Redis, settings: Settings, clock: Callable[[], float]) -> Findings:
    """Durability, eviction and clock."""
    try:
        held: Any = store.config_get("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")
    except RedisError as error:
        remedy = "make sure of `appendonly yes`, `appendfsync always`, `maxmemory-policy noeviction` yourself"
        yield warning("redis settings", f"cannot be read ({error})", remedy)
        held = None
    try:
        if held is not None:
            yield _durability(held, store.info("persistence"))
            yield _eviction(held, store.info("memory"))
        yield _clock(store, settings, clock)
    except RedisError as error:
        yield problem("redis", f"Redis refuses: {error}", "check the user's rights", StoreError)


def _durability(held: Mapping[str, str], info: Mapping[str, Any]) -> Finding:
    check, only, sync = "redis durability", held.get("appendonly"), held.get("appendfsync")
    if (only, sync) != ("yes", "always"):
        text = f"appendonly {only}, appendfsync {sync}: a crash of Redis would forget what was told to be recorded"
        return problem(check, text, "set `appendonly yes` and `appendfsync always`", StoreError)
    if info.get("aof_last_write_status", "ok") != "ok":
        text = "its last write to the append-only file failed"
        return problem(check, text, "see Redis' log; is the disk full?", StoreError)
    return ok(check, "appendfsync always")


def _eviction(held: Mapping[str, str], info: Mapping[str, Any]) -> Finding:
    check, policy = "redis eviction", held.get("maxmemory-policy")
    if policy != "noeviction":
        text = f"maxmemory-policy {policy}: Redis may throw away watermarks and incidents"
        return problem(check, text, "set `maxmemory-policy noeviction`", StoreError)
    limit, used = int(held.get("maxmemory") or 0), int(info["used_memory"])
    if limit and used > MEMORY_WARNING_SHARE * limit:
        text = f"noeviction, and {used / limit:.0%} of maxmemory is used"
        return warning(check, text, "give it more memory before it refuses writes")
    return ok(check, f"noeviction; {used / 2**20:,.0f} MiB used")


def _clock(store: Redis, settings: Settings, clock: Callable[[], float]) -> Finding:
    rounds = []
    for _ in range(CLOCK_ROUNDS):
        before = clock()
        seconds, microseconds = store.time()
        after = clock()
        rounds.append((after - before, seconds + microseconds / 1e6 - (before + after) / 2))
    return compare_clocks("redis clock", "Redis' clock", min(rounds)[1], settings)


def compare_clocks(check: str, whose: str, ahead: float, settings: Settings) -> Finding:
    """What to say of a clock that is `ahead` seconds before this machine's."""
    text = f"{whose} is {abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} this machine's clock"
    life = settings.probes.mark_ttl_seconds
    if abs(ahead) > life / 2:
        text += f"; probe marks, judged by broker time, live {life:g} s"
        return problem(check, text, "synchronise clocks (NTP)", ConfigError)
    if abs(ahead) > CLOCK_WARNING_SECONDS:
        return warning(check, f"{text}: latencies and times in incidents mislead", "synchronise clocks (NTP)")
    return ok(check, text)


def bundle_in_force(store: Redis, model: ModelSettings) -> str | None:
    """Path of the bundle that Redis names; None where it names none or cannot be asked."""
    try:
        path: Any = store.hget(ModelKeys(model.name).bundle, "path")
    except RedisError:
        return None
    return path.decode() if path else None


def workers(store: Redis, model: ModelSettings, clock: Callable[[], float]) -> Findings:
    """Who works, how far behind, with which bundle."""
    keys = ModelKeys(model.name)
    try:
        stored: Mapping[Any, Any] = store.hgetall(keys.workers)
        told = [msgspec.json.decode(text, type=WorkerStatus) for text in stored.values()]
        mode: Any = store.get(keys.mode)
    except (RedisError, msgspec.DecodeError) as error:
        yield warning("workers", f"their status cannot be read: {error}")
        return
    alive = [status for status in told if clock() - status.at / 1e6 < WORKER_SECONDS]
    if not alive:
        yield warning("workers", "none has reported lately", "start `vedette worker`")
        return
    lag, rate = sum(status.lag for status in alive), sum(status.rows_per_second for status in alive)
    text = f"{many(len(alive), 'worker')}, {rate:,.0f} rows/s, {lag:,} records behind"
    if mode is not None:
        text += f", {mode.decode()}"
    bundles = sorted({status.bundle[:12] for status in alive})
    if len(bundles) > 1:
        text += f"; different bundles are in force: {', '.join(bundles)}"
        yield warning("workers", text, "restart those with the old one")
    else:
        yield ok("workers", text)
