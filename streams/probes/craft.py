"""What the prober sends: transfer bursts, query campaigns, and benign controls of both.

Probes reach the topic in two ways. **Straight**: made here, produced with header marks (bursts). **By the front door**:
every query goes to the model's endpoint under a signed request id, and what the endpoint's logger writes is the probe
(campaigns).

Questions that only serve the making of a burst (what does the model answer on this row?) also go to the endpoint, so
their logged copies must not count as traffic. They are **asides**: front-door ids issued at time 0, so every worker
finds the mark valid and expired, counts the record and scores it nowhere, not even in the overlay, where it would be a
second copy of the burst's own rows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streams.config import ModelSettings, ProbeSettings
from streams.errors import VedetteError
from streams.probes import marks
from streams.probes.data import Deck
from streams.probes.pace import Pace, Stopped
from streams.probes.prober import Kind, Probe
from streams.probes.records import DirectSender

#: Rows of one request of a campaign or control. Attackers of an endpoint ask row by row, and one row a record tells
#: exactly how many queries it took to be seen.
PROBE_ROWS = 1
#: Rows of one aside.
ASIDE_ROWS = 64
#: Issue time of asides.
ASIDE_ISSUED = 0

RequestId = Callable[[NDArray[np.float64]], str]


class Endpoint(Protocol):
    """The watched model as one client sees it."""

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k) of rows (n, d)."""


Connect = Callable[[str, RequestId], Endpoint]
"""From the client's name and its request ids to the watched model."""


@dataclass(slots=True)
class FrontDoor:
    """The watched model, asked by one probe client under signed ids. Has the contract of a model for attacks.

    Asks `rows` rows at a time at the prober's pace and ends by `Stopped` when the probe is to stop or its budget of
    queries is spent.
    """

    endpoint: Endpoint
    probe: Probe
    pace: Pace
    budget: int
    rows: int = PROBE_ROWS

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k) of rows (n, d), each a query."""
        answers = []
        for first in range(0, len(inputs), self.rows):
            part = inputs[first : first + self.rows]
            if self.probe.inputs + len(part) > self.budget:
                raise Stopped
            self.pace.take(len(part), self.probe.stop)
            answers.append(self.endpoint.predict(part))
            self.probe.sent += 1
            self.probe.inputs += len(part)
        return np.concatenate(answers)


class Desk:
    """What all crafters of one model share: the endpoint under signed ids, the topic, the pace.

    Parameters
    ----------
    settings : ProbeSettings
    topic : str
    key : bytes
        The probe key.
    connect : callable
        Opens the endpoint for one client.
    sender : DirectSender
    rng : numpy.random.Generator
    clock : callable
        Microseconds since the epoch.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        topic: str,
        key: bytes,
        connect: Connect,
        sender: DirectSender,
        rng: np.random.Generator,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.settings = settings
        self.sender = sender
        self.pace = Pace(settings.queries_per_second)
        self._topic = topic
        self._key = key
        self._connect = connect
        self._rng = rng
        self._lock = threading.Lock()
        self._clock = clock or (lambda: time.time_ns() // 1000)

    def spawn(self) -> np.random.Generator:
        """A generator of random numbers for one thread."""
        with self._lock:
            return self._rng.spawn(1)[0]

    def front_door(self, probe: Probe, budget: int) -> FrontDoor:
        """The model as one probe client asks it; the logged queries are the probe."""
        counter = iter(range(1 << 32))

        def request_id(inputs: NDArray[np.float64]) -> str:
            issued = self._clock()
            client = probe.client.encode()
            return marks.sign_request(self._key, self._topic, probe.campaign, next(counter), issued, client, inputs)

        return FrontDoor(self._connect(probe.client, request_id), probe, self.pace, budget)

    def ask(self, inputs: NDArray[np.float64], stop: threading.Event) -> NDArray[np.float64]:
        """The model's scores (n, k), asked aside: the logged copies are excluded everywhere."""
        rng = self.spawn()
        client, campaign = rng.bytes(16).hex(), rng.bytes(marks.CAMPAIGN_BYTES)
        counter = iter(range(1 << 32))

        def request_id(rows: NDArray[np.float64]) -> str:
            return marks.sign_request(
                self._key, self._topic, campaign, next(counter), ASIDE_ISSUED, client.encode(), rows
            )

        endpoint = self._connect(client, request_id)
        answers = []
        for first in range(0, len(inputs), ASIDE_ROWS):
            part = inputs[first : first + ASIDE_ROWS]
            self.pace.take(len(part), stop)
            answers.append(endpoint.predict(part))
        return np.concatenate(answers)

    def send(self, probe: Probe, inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
        """Send rows straight to the topic, a record each."""
        if probe.stop.is_set():
            raise Stopped
        self.sender.send(probe.campaign, probe.client, inputs, outputs, self._clock())
        probe.sent += len(inputs)
        probe.inputs += len(inputs)

    def seconds_for(self, rows: int) -> float:
        """Time that so many queries take when the pace is shared by all that may run at once, with room for the rest."""
        sharing = self.settings.concurrent_campaigns + 2
        return 60.0 + rows * sharing / self.settings.queries_per_second


class ControlDirect:
    """Benign rows of one fresh client, straight to the topic as a burst goes. Expected: silence."""

    attack = "control_direct"
    kind: Kind = "control"

    def __init__(self, desk: Desk, rows: Deck) -> None:
        self._desk = desk
        self._rows = rows
        self.threat = "none"

    def seconds(self) -> float:
        return self._desk.seconds_for(self._desk.settings.control_inputs)

    def run(self, probe: Probe) -> None:
        rows = self._rows.deal(self._desk.settings.control_inputs)
        self._desk.send(probe, rows, self._desk.ask(rows, probe.stop))


class ControlFrontDoor:
    """Benign rows of one fresh client, query by query through the endpoint as a campaign goes. Expected: silence."""

    attack = "control_front_door"
    kind: Kind = "control"

    def __init__(self, desk: Desk, rows: Deck) -> None:
        self._desk = desk
        self._rows = rows
        self.threat = "none"

    def seconds(self) -> float:
        return self._desk.seconds_for(self._desk.settings.control_inputs)

    def run(self, probe: Probe) -> None:
        rows = self._rows.deal(self._desk.settings.control_inputs)
        self._desk.front_door(probe, len(rows)).predict(rows)
