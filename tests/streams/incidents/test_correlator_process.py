"""The correlator as a process: killed anywhere, stopped and woken, ended by SIGTERM."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from redis import Redis

from streams.incidents.grouping import CAMPAIGN
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import SignalMessage

SignalFactory = Callable[..., SignalMessage]
Send = Callable[[SignalMessage], None]
WaitUntil = Callable[..., object]
Start = Callable[..., "subprocess.Popen[bytes]"]
KEYS = ModelKeys("digits")
PARTITIONS = 4
SIGNALS = 2_000


@pytest.fixture
def start(redis_url: str) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []
    main = Path(__file__).with_name("correlator_main.py")

    def correlator(seconds: float = 0.3) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(main), redis_url, "digits", "events", str(seconds)]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        started.append(process)
        return process

    yield correlator
    for process in started:
        process.kill()
        process.wait(10)


def traffic(make_signal: SignalFactory) -> list[SignalMessage]:
    """Tickets, pages, clusters and a flood over several partitions."""
    rng = random.Random(7)
    signals = []
    for offset in range(SIGNALS // PARTITIONS):
        for partition in range(PARTITIONS):
            client = f"{partition:08x}{rng.randrange(40):08x}"
            row: dict[str, object] = {"client": client, "level": "page" if rng.random() < 0.1 else "ticket"}
            if rng.random() < 0.3:
                row["nearest"] = [1.0, float(rng.randrange(5))]  # campaigns
            if rng.random() < 0.3:
                clients = [f"{partition:08x}{rng.randrange(12):08x}" for _ in range(3)]
                row |= {"entity": "cluster", "entity_id": f"{rng.randrange(6)}-0", "clients": clients}
            signals.append(make_signal(offset, partition, **row))
    return signals


def state(redis: Redis) -> dict[str, object]:
    names = sorted(name.decode() for name in redis.zrange(KEYS.incidents, 0, -1))
    return {
        "incidents": {name: redis.hgetall(KEYS.incident(name)) for name in names if not spans(redis, name)},
        "counts": {name: signals_of(redis, name) for name in names},
        "evidence": {name: redis.lrange(KEYS.evidence(name), 0, -1) for name in names if not spans(redis, name)},
        "seen": redis.zrange(KEYS.incidents, 0, -1, withscores=True),
        "open": redis.hgetall(KEYS.open_incidents),
        "progress": redis.hgetall(KEYS.progress),
        "openings": redis.hgetall(KEYS.openings),
        "alerts": sorted(a["id"] for a in alerts(redis) if not over_partitions(a)),
        "log": sorted(msgspec.json.decode(fields[b"m"])["id"] for _, fields in redis.xrange(KEYS.log)),
    }


def alerts(redis: Redis) -> list[dict[str, str]]:
    return [msgspec.json.decode(fields[b"m"]) for _, fields in redis.xrange(KEYS.alerts)]


def spans(redis: Redis, name: str) -> bool:
    """Incidents over partitions (flood, campaigns) meet their signals in no fixed order: their counts are compared."""
    return over_partitions(msgspec.json.decode(redis.hget(KEYS.incident(name), "m") or b""))


def over_partitions(said: dict[str, str]) -> bool:
    return said["entity"] == "population" or said["entity_id"].startswith(CAMPAIGN)


def signals_of(redis: Redis, name: str) -> int:
    return int(msgspec.json.decode(redis.hget(KEYS.incident(name), "m") or b"")["signals"])


def applied(redis: Redis) -> int:
    return sum(signals_of(redis, name.decode()) for name in redis.zrange(KEYS.incidents, 0, -1))


def done(redis: Redis, last: dict[bytes, bytes]) -> bool:
    return redis.hgetall(KEYS.progress) == last


def test_killed_anywhere_leaves_what_an_undisturbed_run_leaves(
    redis: Redis, make_signal: SignalFactory, start: Start, wait_until: WaitUntil
) -> None:
    signals = traffic(make_signal)
    last = {f"events:{p}".encode(): f"{SIGNALS // PARTITIONS}-0".encode() for p in range(PARTITIONS)}

    def send(batch: list[SignalMessage]) -> None:
        pipe = redis.pipeline(transaction=False)
        for message in batch:
            stream = PartitionKeys("events", message.partition).signals
            pipe.xadd(stream, {"m": msgspec.json.encode(message)}, id=f"{message.offset + 1}-0")
        pipe.execute()

    send(signals)
    undisturbed = start()
    wait_until(lambda: done(redis, last), 60.0, "the undisturbed run to end")
    undisturbed.terminate()
    assert undisturbed.wait(30) == 0
    expected = state(redis)
    assert len(expected["incidents"]) > 50  # type: ignore[arg-type]  # a dict

    redis.flushdb()
    rng, kills = random.Random(11), 0
    process = start()
    for first in range(0, SIGNALS, 50):
        before = applied(redis)
        send(signals[first : first + 50])
        if first % 200 == 0:
            if rng.random() < 0.7:
                wait_until(lambda before=before: applied(redis) > before, 30.0, "the correlator to be at work")
            process.kill()
            process.wait(10)
            kills += 1
            process = start()
    wait_until(lambda: done(redis, last), 60.0, "the disturbed run to end")
    assert kills == SIGNALS // 200
    disturbed = state(redis)
    for part, value in expected.items():
        assert disturbed[part] == value, part


def test_stopped_correlator_that_wakes_after_its_lease_harms_nothing(
    redis: Redis, make_signal: SignalFactory, send: Send, start: Start, wait_until: WaitUntil
) -> None:
    zombie = start()
    wait_until(lambda: redis.hget(KEYS.lease("correlator"), "token") == b"1", 20.0, "the first correlator to be active")
    send(make_signal(0))
    wait_until(lambda: redis.hget(KEYS.progress, "events:0") == b"1-0", 20.0, "the first signal to be applied")
    zombie.send_signal(signal.SIGSTOP)
    standby = start()
    send(make_signal(1))
    wait_until(lambda: redis.hget(KEYS.progress, "events:0") == b"2-0", 20.0, "the standby to take over")
    zombie.send_signal(signal.SIGCONT)
    for offset in range(2, 40):
        send(make_signal(offset))
    wait_until(lambda: redis.hget(KEYS.progress, "events:0") == b"40-0", 20.0, "all signals to be applied")
    standby.terminate()
    assert standby.wait(30) == 0
    (name,) = redis.zrange(KEYS.incidents, 0, -1)
    assert signals_of(redis, name.decode()) == 40
    log = [msgspec.json.decode(fields[b"m"])["id"] for _, fields in redis.xrange(KEYS.log)]
    assert log == [f"{name.decode()}#{n}" for n in range(1, 41)]
    wait_until(lambda: redis.hget(KEYS.lease("correlator"), "token") == b"3", 20.0, "the woken one to take its turn")


def test_sigterm_ends_it_soon_and_frees_the_lease(redis: Redis, start: Start, wait_until: WaitUntil) -> None:
    process = start(30.0)
    wait_until(lambda: redis.exists(KEYS.lease("correlator")), 20.0, "the correlator to be active")
    process.terminate()
    assert process.wait(15) == 0, "long before its next look"
    assert not redis.exists(KEYS.lease("correlator"))
