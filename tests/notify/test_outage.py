"""A destination is away for an hour, and the notifier is killed twice. The clock is a number in Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from streams.store.messages import Alert
from tests.notify.conftest import HOUR, SECOND, START, Destination, Received, alert

MINUTE = 60 * SECOND
LEASE_SECONDS = 0.5
Start = Callable[[], subprocess.Popen[bytes]]

SETTINGS = """
[[models]]
name = "digits"
topic = "events"
bundle = "none"

[redis]
url = "{redis}"

[[notify.destinations]]
name = "away"
kind = "webhook"
url = "{away}"
secret_file = "{secret}"
timeout_seconds = 0.5

[[notify.destinations]]
name = "alive"
kind = "webhook"
url = "{alive}"
secret_file = "{secret}"

[[notify.routes]]
destinations = ["away", "alive"]
repeat_hours = 0
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a notifier; the settings stand in `tmp_path`."""
    running: list[subprocess.Popen[bytes]] = []

    def make() -> subprocess.Popen[bytes]:
        main = Path(__file__).with_name("notifier_main.py")
        log = (tmp_path / f"notifier-{len(running)}.log").open("wb")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [sys.executable, str(main), str(tmp_path / "vedette.toml"), str(LEASE_SECONDS)]
        running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return running[-1]

    yield make
    for process in running:
        process.kill()
        process.wait(10)


def story() -> dict[int, list[Alert]]:
    """Minute -> what is announced in it: incidents that open, rise, are taken, end, and open again."""
    told: dict[int, list[Alert]] = defaultdict(list)
    for place in range(12):
        name, minute = f"{place:016x}", place * 4
        told[minute].append(alert(name, 1, title=f"incident {place}"))
        if place % 2:
            told[minute + 5].append(alert(name, 2, "acknowledged", by="ada"))
        if place % 3 == 0:
            told[minute + 9].append(alert(name, 3, "resolved"))
        if place % 6 == 0:
            told[minute + 12].append(alert(name, 4, "reopened"))
            told[minute + 20].append(alert(name, 5, "resolved"))
    return told


def test_every_incident_arrives_after_an_hour_away_and_two_kills(
    redis: Redis,
    redis_url: str,
    destination: Callable[[], Destination],
    secret_file: str,
    start: Start,
    tmp_path: Path,
    announce: Callable[[Alert], None],
    wait_until: Callable[..., Any],
) -> None:
    away, alive = destination(), destination()
    text = SETTINGS.format(redis=redis_url, away=away.url, alive=alive.url, secret=secret_file)
    (tmp_path / "vedette.toml").write_text(text)
    troubles: list[tuple[int, dict[str, str], float]] = [
        (0, {}, 0.0),
        (500, {}, 0.0),
        (429, {"Retry-After": "90"}, 0.0),
        (200, {}, 1.0),  # it answers, but too late
        (503, {}, 0.0),
        (404, {}, 0.0),
    ]

    def trouble(_: str, __: bytes) -> tuple[int, dict[str, str], float]:
        status, headers, delay = troubles[len(away.received) % len(troubles)]
        return (status if not delay else 599, headers, delay)

    away.answer = trouble
    redis.set("test:now", START)
    first, second = start(), start()
    wait_until(lambda: redis.exists("vedette:{digits}:lease:notifier"), 20, "a notifier")
    wait_until(lambda: redis.exists("vedette:{digits}:alerts"), 20, "its consumer group")
    told = story()
    announced = 0
    for minute in range(60):
        redis.set("test:now", START + minute * MINUTE)
        for message in told.pop(minute, []):
            announce(message)
            announced += 1
        # The other destination hears of everything in its minute, whatever the dead one does.
        wait_until(
            lambda wanted=announced: len(ids(alive.accepted)) >= wanted,
            20,
            f"minute {minute}",
        )
        if minute == 20:
            holder = redis.hget("vedette:{digits}:lease:notifier", "holder")
            assert holder is not None
            killed = next(one for one in (first, second) if f":{one.pid}:".encode() in holder)
            killed.kill()
            start()
    assert not told
    assert away.received, "the dead destination was never tried"
    assert away.accepted == []

    # It is back. The notifier is killed when its first notice has arrived but nobody knows of it.
    killed_at: list[str] = []

    def answer(_: str, body: bytes) -> tuple[int, dict[str, str], float]:
        if not killed_at:
            killed_at.append(json.loads(body)["id"])
            holder = redis.hget("vedette:{digits}:lease:notifier", "holder") or b""
            os.kill(int(holder.split(b":")[1]), 9)
        return 200, {}, 0.0

    away.answer = answer
    minute = 60
    while len(keys(away.accepted)) < 12 or any(redis.zrange("vedette:{digits}:notices-due:away", 0, -1)):
        redis.set("test:now", START + minute * MINUTE)
        minute += 1
        assert minute < 120, f"{len(keys(away.accepted))} incidents of 12 have arrived"
        now, seen = START + (minute - 1) * MINUTE, len(away.received)
        wait_until(
            lambda now=now, seen=seen: len(away.received) > seen or not due_now(redis, now), 20, "the next round"
        )
    assert killed_at

    by_id: dict[str, list[Received]] = defaultdict(list)
    for request in away.accepted:
        by_id[request.json["id"]].append(request)
    assert len(by_id[killed_at[0]]) >= 2, "what nobody knew to have arrived was sent again"
    for again in by_id.values():
        assert len({(one.json["key"], one.headers["idempotency-key"], one.body) for one in again}) == 1
    for server in (away, alive):
        assert keys(server.accepted) == {f"vedette/digits/{place:016x}" for place in range(12)}
        for key in keys(server.accepted):
            mine = [one.json for one in server.accepted if one.json["key"] == key]
            numbers = [int(one["id"].rpartition("#")[2]) for one in mine]
            assert numbers == sorted(numbers), f"{key} out of order"
            assert mine[0]["action"] == "trigger"
            place = int(key[-16:], 16)
            assert mine[-1]["action"] == ("resolve" if place % 3 == 0 else "acknowledge" if place % 2 else "trigger")
    assert max(one.json["at"] for one in away.accepted) < START + HOUR


def ids(requests: list[Received]) -> set[str]:
    return {one.json["id"] for one in requests}


def keys(requests: list[Received]) -> set[str]:
    return {one.json["key"] for one in requests}


def due_now(redis: Redis, now: int) -> bool:
    """Whether something could be sent before the clock moves on."""
    health = json.loads(redis.hget("vedette:{digits}:notice-health", "away") or b"{}")
    if health.get("until", 0) > now:
        return False
    return bool(redis.zcount("vedette:{digits}:notices-due:away", "-inf", now / 1e6))
