"""A prober in a process of its own, whose probes go straight to a worker that answers at once.

Arguments: the Redis URL, the lease's seconds, and how many records a campaign sends, a hundredth of a second apart.
"""

from __future__ import annotations

import signal
import sys
import threading
import time

import msgspec
import numpy as np
from redis import Redis

from streams.config import ProbeSettings
from streams.lease import Lease
from streams.probes import marks
from streams.probes.pace import Stopped
from streams.probes.prober import Kind, Probe, Prober
from streams.probes.store import ProbeStore
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import ProbeVerdict


class Answered:
    """Every record gets a verdict at once; the last one pages."""

    attack = "hop_skip_jump"
    kind: Kind = "campaign"
    threat = "L2"

    def __init__(self, redis: Redis, records: int) -> None:
        self._redis = redis
        self._records = records

    def seconds(self) -> float:
        return 60.0

    def run(self, probe: Probe) -> None:
        for counter in range(self._records):
            if probe.stop.wait(0.01):
                raise Stopped
            probe.sent += 1
            probe.inputs += 1
            said = ProbeVerdict(
                probe=marks.probe_id(probe.campaign, counter),
                status="scored",
                partition=0,
                offset=time.time_ns(),
                rows=1,
                time=0,
                at=1,
                issued=0,
                level=2 if counter == self._records - 1 else 0,
                ratio=0.0,
                pvalues={},
                fused=1.0,
            )
            self._redis.xadd(PartitionKeys("events", 0).probes, {"m": msgspec.json.encode(said)})


def main(url: str, seconds: str, records: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    redis = Redis.from_url(url, socket_timeout=5)
    settings = ProbeSettings(campaign_every_seconds=0.05, concurrent_campaigns=3, timeout_seconds=5.0)
    lease = Lease(redis, ModelKeys("digits"), "prober", seconds=float(seconds))
    crafters = {"campaign": (Answered(redis, int(records)),)}
    store = ProbeStore(redis, "digits", "events")
    Prober(store, settings, lease, crafters, lambda: 1, np.random.default_rng()).run(stop)


main(*sys.argv[1:])
