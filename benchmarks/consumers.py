"""The bare consumers that the worker is compared with, each in a process of its own.

``python -m benchmarks.consumers KIND BOOTSTRAP TOPIC COUNT`` counts messages of a topic from its beginning and prints
the wall time and cpu time between the first and the last of them as one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from typing import Any

#: A consumer that has not finished by then has failed.
LIMIT_SECONDS = 240.0
#: Messages that start-up effects may touch; counting begins after them.
WARM_MESSAGES = 2000


class Stopwatch:
    """Measures between two counts of messages."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0
        self._from = (0.0, 0.0, 0)

    def add(self, messages: int) -> bool:
        """Count messages; True when the last of them has come."""
        before, self.seen = self.seen, self.seen + messages
        if before < WARM_MESSAGES <= self.seen:
            self._from = (time.perf_counter(), time.process_time(), self.seen)
        return self.seen >= self.count

    def print(self) -> None:
        """One JSON line: messages, wall seconds, cpu seconds."""
        wall, cpu, first = self._from
        line = {
            "messages": self.seen - first,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
        }
        print(json.dumps(line), flush=True)


async def count_getmany(bootstrap: str, topic: str, count: int) -> None:
    """aiokafka's `getmany` that only counts."""
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    watch = Stopwatch(count)
    try:
        done = False
        while not done:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                done = watch.add(len(records))
        watch.print()
    finally:
        await consumer.stop()


def count_faust(kind: str, bootstrap: str, topic: str, count: int) -> None:
    """A Faust agent that only counts: a plain `async for`, `noack`, or `take`."""
    import faust

    with tempfile.TemporaryDirectory() as directory:
        app: Any = faust.App(
            f"vedette-benchmark-{kind}-{os.getpid()}",
            broker=f"kafka://{bootstrap}",
            datadir=directory,
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            value_serializer="raw",
            key_serializer="raw",
            consumer_auto_offset_reset="earliest",
        )
        watch = Stopwatch(count)
        events = app.topic(topic, value_serializer="raw", key_serializer="raw")

        def counted(messages: int) -> None:
            if watch.add(messages):
                watch.print()
                os._exit(0)

        async def plain(stream: Any) -> None:
            async for _ in stream:
                counted(1)

        async def noack(stream: Any) -> None:
            async for _ in stream.noack():
                counted(1)

        async def take(stream: Any) -> None:
            async for values in stream.take(1000, within=0.1):
                counted(len(values))

        app.agent(events)({"faust": plain, "faust-noack": noack, "faust-take": take}[kind])
        worker = faust.Worker(app, loglevel="error", redirect_stdouts=False)
        worker.execute_from_commandline()


def main() -> None:
    """Count what the command line says."""
    kind, bootstrap, topic, count = sys.argv[1:5]
    if kind == "getmany":
        asyncio.run(asyncio.wait_for(count_getmany(bootstrap, topic, int(count)), LIMIT_SECONDS))
    else:
        count_faust(kind, bootstrap, topic, int(count))


if __name__ == "__main__":
    main()
