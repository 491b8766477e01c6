"""Probers as processes: killed in the middle of probes, stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis

from streams.lease import Lease
from streams.probes.store import ProbeStore
from streams.store.keys import ModelKeys

KEYS = ModelKeys("digits")
MAIN = Path(__file__).with_name("prober_main.py")
ROOT = Path(__file__).parents[3]
LEASE_SECONDS = 0.8

WaitUntil = Callable[..., Any]


def start(url: str, records: int) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(MAIN), url, str(LEASE_SECONDS), str(records)], env=environ)


def test_standby_takes_over_from_a_killed_prober_and_every_probe_has_one_outcome(
    redis: Redis, redis_url: str, wait_until: WaitUntil
) -> None:
    store = ProbeStore(redis, "digits", "events")
    children = [start(redis_url, 30)]
    try:
        wait_until(lambda: len(store.outcomes()) >= 3 and redis.hlen(KEYS.probe_plans) == 3, 30, "probes under way")
        children.append(start(redis_url, 30))
        os.kill(children[0].pid, signal.SIGKILL)
        children[0].wait(10)
        left = {plan.campaign for plan in store.plans()}
        before = {outcome.campaign for outcome in store.outcomes()}
        assert left
        wait_until(lambda: left <= {outcome.campaign for outcome in store.outcomes()}, 30, "the takeover")
        wait_until(lambda: len(store.outcomes()) >= len(before | left) + 3, 30, "probes of the new prober")
    finally:
        for child in children:
            child.terminate()
            child.wait(10)
    counted = Counter(outcome.campaign for outcome in store.outcomes())
    assert set(counted.values()) == {1}
    fates = {outcome.campaign: outcome for outcome in store.outcomes()}
    for campaign, outcome in fates.items():
        if campaign not in left:
            assert not outcome.abandoned
            assert (outcome.detected, outcome.queries_to_page) == (True, 30)
    assert any(fates[campaign].abandoned for campaign in left)


def test_a_stopped_prober_leaves_its_probes_and_frees_its_lease(
    redis: Redis, redis_url: str, wait_until: WaitUntil
) -> None:
    child = start(redis_url, 100_000)
    try:
        wait_until(lambda: redis.hlen(KEYS.probe_plans) == 3, 30, "probes under way")
        child.terminate()
        assert child.wait(30) == 0
        assert Lease(redis, KEYS, "prober").acquire()
    finally:
        child.kill()
        child.wait(10)
