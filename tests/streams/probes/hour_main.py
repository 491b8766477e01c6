"""A prober on a real topic whose clock, and whose probes, are the test's: ``python -m tests.streams.probes.hour_main``.

Arguments: broker, topic, Redis URL, the lease's seconds. The clock stands in Redis and moves only when the test moves
it. Each attack says of itself beforehand whether it must be detected; that ground truth stands in Redis too.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import KafkaProducer
from numpy.typing import NDArray
from redis import Redis

from streams.config import KafkaSettings, ModelSettings, ObjectiveSettings, ProbeSettings, ScheduleSettings
from streams.lease import Lease
from streams.probes.craft import ControlDirect, ControlFrontDoor, Desk, RequestId
from streams.probes.data import Deck
from streams.probes.prober import Crafter, Kind, Probe, Prober
from streams.probes.records import DirectSender
from streams.probes.store import ProbeStore
from streams.store.keys import ModelKeys
from tests.streams.probes.seeing import VISIBLE_ROWS
from tests.streams.worker.conftest import MODEL, PROBE_KEY, WIDTH

CLOCK, TRUTH, HOLD = "test:clock", "test:truth", "test:hold"
BURST_EVERY, CAMPAIGN_EVERY = 300.0, 900.0
#: Shares of probes that are made so that they must be seen.
SHARES = {"transfer_pgd": 1.0, "square": 0.6, "hop_skip_jump": 1.0}

SETTINGS = ProbeSettings(
    burst_every_seconds=BURST_EVERY,
    control_every_seconds=BURST_EVERY,
    campaign_every_seconds=CAMPAIGN_EVERY,
    schedules=(ScheduleSettings(name="hidden", attacks={"square": 1.0}, kind="burst", every_seconds=BURST_EVERY),),
    burst_size=VISIBLE_ROWS + 8,
    campaign_queries=VISIBLE_ROWS + 20,
    control_inputs=VISIBLE_ROWS + 10,
    queries_per_second=5_000.0,
    cpu_share=1.0,
    min_units=3,
)
OBJECTIVES = ObjectiveSettings(recall_of={"square": 0.2})


def clock_of(redis: Redis) -> Callable[[], int]:
    """Microseconds, as the test says."""
    return lambda: int(redis.get(CLOCK))  # type: ignore[arg-type]  # it is there


class Endpoint:
    """A model that answers, and logs each request with the caller's id at the test's time."""

    def __init__(self, bootstrap: str, topic: str, clock: Callable[[], int]) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap)
        self._topic, self._clock = topic, clock

    def connect(self, client: str, request_id: RequestId) -> _Client:
        return _Client(self, client, request_id)

    def log(self, name: str, client: str, inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
        body = {"id": name, "model": MODEL, "inputs": inputs.tolist(), "outputs": outputs.tolist()}
        value, stamp = json.dumps(body).encode(), self._clock() // 1000
        self._producer.send(self._topic, key=client.encode(), value=value, timestamp_ms=stamp).get(10)

    def close(self) -> None:
        self._producer.close(timeout=2)


class _Client:
    def __init__(self, endpoint: Endpoint, client: str, request_id: RequestId) -> None:
        self._endpoint, self._client, self._request_id = endpoint, client, request_id

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        outputs = np.tile([0.2, 0.7, 0.1], (len(inputs), 1))
        self._endpoint.log(self._request_id(inputs), self._client, inputs, outputs)
        return outputs


@dataclass
class Injected:
    """An attack whose probes are visible to the detector, or not, by their own random numbers."""

    desk: Desk
    rows: Deck
    redis: Redis
    attack: str
    kind: Kind
    threat: str = "injected"

    def seconds(self) -> float:
        return 600.0

    def run(self, probe: Probe) -> None:
        visible = bool(probe.rng().random() < SHARES[self.attack])
        self.redis.hset(TRUTH, probe.campaign.hex(), json.dumps([self.attack, visible]))
        if self.kind == "burst":
            rows = self._made(self.rows.lot(self.attack, probe.number, self.desk.settings.burst_size), visible)
            answers = self.desk.ask(rows, probe.stop, probe.tally)
            probe.fooled, probe.fooled_rows = 0, bytes(-(-len(rows) // 8)).hex()
            self.desk.send(probe, rows, answers)
            return
        self.desk.find_home(probe, self.rows.sample(1, probe.rng()))
        door = self.desk.front_door(probe, self.desk.settings.campaign_queries)
        for number, row in enumerate(self.rows.walk(self.attack, probe.number)):
            door.predict(self._made(row, visible))
            while number == 3 and self.redis.exists(HOLD):  # until the test has killed this process
                if probe.stop.wait(0.05):
                    return

    @staticmethod
    def _made(rows: NDArray[np.float64], visible: bool) -> NDArray[np.float64]:
        rows = rows.copy()
        rows[:, 0] = float(visible)
        return rows


@contextmanager
def prober(bootstrap: str, topic: str, redis: Redis, seconds: float) -> Iterator[Prober]:
    """A prober of the test's attacks and the real controls."""
    clock = clock_of(redis)
    model = ModelSettings(name=MODEL, topic=topic, bundle="unused", format="native")
    sender = DirectSender(KafkaSettings(bootstrap=bootstrap), model, PROBE_KEY)
    endpoint = Endpoint(bootstrap, topic, clock)
    desk = Desk(SETTINGS, topic, PROBE_KEY, endpoint.connect, sender, np.random.default_rng(), clock)
    fixed = np.random.default_rng(7)
    dull = fixed.uniform(0.0, 0.4, (300, WIDTH)).round(4)
    hostile, benign = Deck(dull[:150], fixed.spawn(1)[0]), Deck(dull[150:], fixed.spawn(1)[0])
    kinds: dict[str, tuple[str, Kind]] = {
        "burst": ("transfer_pgd", "burst"),
        "hidden": ("square", "burst"),
        "campaign": ("hop_skip_jump", "campaign"),
    }
    crafters: dict[str, tuple[Crafter, ...]] = {
        schedule: (Injected(desk, hostile, redis, attack, kind),) for schedule, (attack, kind) in kinds.items()
    }
    crafters["control"] = (ControlDirect(desk, benign), ControlFrontDoor(desk, benign))
    lease = Lease(redis, ModelKeys(MODEL), "prober", seconds=seconds)
    rng: Any = np.random.default_rng()
    store = ProbeStore(redis, MODEL, topic)
    yield Prober(store, SETTINGS, lease, crafters, sender.partitions, rng, clock, objectives=OBJECTIVES)
    sender.close()
    endpoint.close()


def main(bootstrap: str, topic: str, url: str, seconds: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with prober(bootstrap, topic, Redis.from_url(url, socket_timeout=5), float(seconds)) as made:
        made.run(stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
