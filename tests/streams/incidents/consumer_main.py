"""Consumes alerts until killed: writes each alert's id to a file, one a line, then acknowledges it."""

from __future__ import annotations

import os
import sys
import time

from redis import Redis

from streams.incidents import AlertConsumer


def main() -> None:
    url, group, name, path = sys.argv[1:]
    redis = Redis.from_url(url, socket_timeout=10)
    consumer = AlertConsumer(
        redis, "digits", group, consumer=name, start="beginning", reclaim_seconds=0.3, block_seconds=0.2, batch=5
    )
    with open(path, "a", encoding="utf-8") as seen:
        for delivery in consumer:
            seen.write(f"{delivery.alert.id} {delivery.deliveries}\n")
            seen.flush()
            os.fsync(seen.fileno())
            time.sleep(0.002)  # handling takes a while, so that a kill often falls before the acknowledgement
            consumer.acknowledge(delivery)


if __name__ == "__main__":
    main()
