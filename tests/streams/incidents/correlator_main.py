"""A correlator in a process of its own: arguments are the Redis URL, the model, the topic and the lease's seconds."""

from __future__ import annotations

import signal
import sys
import threading

from redis import Redis

from streams.incidents.correlator import Correlator
from streams.lease import Lease
from streams.store.keys import ModelKeys


def main(url: str, model: str, topic: str, seconds: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    redis = Redis.from_url(url, socket_timeout=5)
    lease = Lease(redis, ModelKeys(model), "correlator", seconds=float(seconds))
    Correlator(redis, model, topic, lease, clock=lambda: 1).run(stop)


main(*sys.argv[1:])
