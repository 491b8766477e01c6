"""A real worker that meets one fault: ``python -m tests.faults.worker_main CONFIG ORDER``; the order is JSON.

point: name of the fault point ("" for none); at: how often it must have been reached; action: kill, stop (SIGSTOP),
hold (until the gate file exists), cut (end the connections to Redis, so that the reply is lost) or kill-ahead (kill
as soon as a published snapshot is ahead of its watermark); marker: file that proves that the point was hit; gate;
pause: seconds after each batch, so that the log lasts; mutant: name of what the worker's scripts are to lack;
partitions: of the topic.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis import Redis

from streams import config
from streams.config import Settings
from streams.errors import VedetteError
from streams.store.keys import PartitionKeys
from streams.store.partition import Scripts
from streams.worker.app import run
from tests.faults.mutants import scripts_without, slow_down

#: Times that connections are cut.
CUTS = 12
#: A worker that is held waits no longer than this.
HOLD_SECONDS = 60.0


class Fault:
    """Counts visits to a fault point and acts at one of them."""

    def __init__(self, order: dict[str, Any], settings: Settings) -> None:
        self.order = order
        self.redis = Redis.from_url(settings.redis.url)
        self.port = urlsplit(settings.redis.url).port or 6379
        self.topic = settings.models[0].topic
        self.partitions = int(order["partitions"])
        self.batch = settings.worker.max_batch_rows
        self.visits = 0

    def __call__(self, point: str) -> None:
        if point == "after-score" and self.order["pause"]:
            time.sleep(self.order["pause"])
        if point != self.order["point"]:
            return
        if self.order["action"] == "cut":
            self.visits += 1
            if self.visits % self.order["at"] == 0 and self.visits <= CUTS * self.order["at"]:
                self._act()
            return
        if Path(self.order["marker"]).exists():
            return
        if self.order["action"] == "kill-ahead":
            if self._snapshot_is_ahead():
                self._act()
            return
        self.visits += 1
        if self.visits >= self.order["at"]:
            self._act()

    def _act(self) -> None:
        Path(self.order["marker"]).write_text(f"{os.getpid()} {self.order['point']} {self.visits}")
        action = self.order["action"]
        if action in ("kill", "kill-ahead"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "cut":
            self._cut()
        elif action == "hold":
            until = time.monotonic() + HOLD_SECONDS
            while not Path(self.order["gate"]).exists() and time.monotonic() < until:
                time.sleep(0.01)

    def _cut(self) -> None:
        """End this process's connections to Redis: what was sent arrives, the reply doesn't."""
        for entry in Path("/proc/self/fd").iterdir():
            try:
                if not str(entry.readlink()).startswith("socket:"):
                    continue
                with socket.socket(fileno=os.dup(int(entry.name))) as one:
                    if one.family == socket.AF_INET and one.getpeername()[1] == self.port:
                        one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # no longer open, or not connected

    def _snapshot_is_ahead(self) -> bool:
        """Whether some published snapshot holds rows that were not recorded, nor are by the call that is under way."""
        for partition in range(self.partitions):
            keys = PartitionKeys(self.topic, partition)
            with self.redis.pipeline(transaction=True) as both:
                both.hmget(keys.snapshots, "newer", "a_offset", "b_offset")
                both.hget(keys.watermark, "w")
                (newer, a, b), watermark = both.execute()
            offset = {b"a": a, b"b": b}.get(newer)
            if offset is not None and watermark is not None and int(offset) > int(watermark) + self.batch:
                return True
        return False


def main() -> int:
    settings = config.load(sys.argv[1])
    order = json.loads(sys.argv[2])
    fault = Fault(order, settings)
    scripts = scripts_without(order["mutant"]) if order["mutant"] else Scripts()
    if order["mutant"] in ("slow", "s<=w"):
        slow_down()
    try:
        return run(settings, settings.models[0].name, points=fault, scripts=scripts)
    except VedetteError as error:
        print(f"vedette: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
