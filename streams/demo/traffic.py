"""The benign clients at work: a process that sends their requests to the endpoint, each at its time, until SIGTERM.

python -m streams.demo.traffic --url URL --name NAME --rate RATE --seed SEED [--after FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import logging
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from streams.demo import digits
from streams.demo.clients import Population, Traffic, population
from streams.demo.server import CLIENT_HEADER

log = logging.getLogger("demo.traffic")

#: Seconds of traffic that are made at a time.
STRETCH_SECONDS = 2.0
#: Connections to the endpoint; requests beyond them wait.
CONNECTIONS = 12
#: How long one answer may take.
TIMEOUT_SECONDS = 10.0
#: Seconds between two lines in the log.
SAY_SECONDS = 5.0
#: Pause between two looks for the file that begins it all.
LOOK_SECONDS = 0.05
#: Prefix of the live clients' names.
PREFIX = "live"


def live_population(rate: float, seed: int) -> Population:
    """The clients of the live traffic; the stage makes the same to know who is who."""
    return population(PREFIX, rate, np.random.default_rng([seed, 1]))


@dataclass(slots=True)
class Counts:
    """What became of the requests."""

    sent: int = 0
    failed: int = 0
    late_seconds: float = 0.0
    """The most that a request went out after its time, since the last line in the log."""


@dataclass(slots=True)
class Sender:
    """Sends the requests of one population.

    Attributes
    ----------
    url : str
        The model's ``infer`` URL.
    clients : Population
    traffic : Traffic
    run : str
        Part of every request id.
    """

    url: str
    clients: Population
    traffic: Traffic
    run: str
    counts: Counts = field(default_factory=Counts)

    async def run_until(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set; requests under way are finished."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        queue: asyncio.Queue[tuple[float, str, bytes]] = asyncio.Queue(maxsize=4 * CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            senders = [asyncio.create_task(self._send(session, queue)) for _ in range(CONNECTIONS)]
            teller = asyncio.create_task(self._tell())
            try:
                await self._schedule(queue, stop)
                await queue.join()
            finally:
                for task in (*senders, teller):
                    task.cancel()
                await asyncio.gather(*senders, teller, return_exceptions=True)

    async def _schedule(self, queue: asyncio.Queue[tuple[float, str, bytes]], stop: asyncio.Event) -> None:
        began, made, place = time.monotonic(), 0.0, 0
        ahead: list[tuple[float, int, str, bytes]] = []
        while not stop.is_set():
            now = time.monotonic() - began
            if made <= now + STRETCH_SECONDS / 2:
                part = self.traffic.stretch(STRETCH_SECONDS)
                made += STRETCH_SECONDS
                for moment, client, number, row in zip(
                    part.times, part.clients, part.numbers, part.inputs, strict=True
                ):
                    place += 1
                    body = encode(f"{self.run}-{number}", row)
                    heapq.heappush(ahead, (float(moment), place, self.clients.names[client], body))
            while ahead and ahead[0][0] <= now:
                moment, _, client, body = heapq.heappop(ahead)
                await queue.put((began + moment, client, body))
            wait = min(ahead[0][0] if ahead else made, made - STRETCH_SECONDS / 2) - (time.monotonic() - began)
            if wait > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), wait)

    async def _send(self, session: aiohttp.ClientSession, queue: asyncio.Queue[tuple[float, str, bytes]]) -> None:
        while True:
            due, client, body = await queue.get()
            try:
                self.counts.late_seconds = max(self.counts.late_seconds, time.monotonic() - due)
                headers = {CLIENT_HEADER: client, "Content-Type": "application/json"}
                async with session.post(self.url, data=body, headers=headers) as answer:
                    await answer.read()
                    answer.raise_for_status()
                self.counts.sent += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self.counts.failed += 1
                if self.counts.failed in (1, 10, 100) or self.counts.failed % 1000 == 0:
                    log.warning(
                        "%d requests failed; the last one: %s", self.counts.failed, error or type(error).__name__
                    )
            finally:
                queue.task_done()

    async def _tell(self) -> None:
        while True:
            before = self.counts.sent
            await asyncio.sleep(SAY_SECONDS)
            rate = (self.counts.sent - before) / SAY_SECONDS
            log.info("%.0f requests/s, at most %.0f ms late", rate, self.counts.late_seconds * 1e3)
            self.counts.late_seconds = 0.0


def encode(request_id: str, row: NDArray[np.float64]) -> bytes:
    """A request of one row."""
    tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP64", "data": row.tolist()}
    return msgspec.json.encode({"id": request_id, "inputs": [tensor]})


async def _main(url: str, name: str, rate: float, seed: int, after: Path | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clients = live_population(rate, seed)
    traffic = Traffic(clients, digits.split(seed).live, np.random.default_rng([seed, 2]))
    sender = Sender(f"{url}/v2/models/{name}/infer", clients, traffic, "live")
    while after is not None and not after.exists() and not stop.is_set():
        await asyncio.sleep(LOOK_SECONDS)
    await sender.run_until(stop)
    counts = sender.counts
    log.info("%d requests sent, %d failed", counts.sent, counts.failed)
    return int(counts.failed > 0)


def main() -> int:
    """Entry point of the process; returns 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="streams.demo.traffic")
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--after", type=Path, help="Begin when this file exists.")
    told = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with threadpool_limits(1):
        return asyncio.run(_main(told.url, told.name, told.rate, told.seed, told.after))


if __name__ == "__main__":
    sys.exit(main())
