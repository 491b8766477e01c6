"""What the prober sends: transfer bursts, query campaigns, extractions, and benign controls.

Probes reach the topic in two ways. **Straight**: made here, produced with header marks (bursts). **By the front door**:
every query goes to the model's endpoint under a signed request id, and what the endpoint's logger writes is the probe
(campaigns).

Questions that only serve the making of a burst (what does the model answer on this row?) also go to the endpoint, so
their logged copies must not count as traffic. They are **asides**: front-door ids issued at time 0, so every worker
finds the mark valid and expired, counts the record and scores it nowhere, not even in the overlay, where it would be a
second copy of the burst's own rows.

Before a probe goes by the front door, one aside of its client tells in which partition the client's records arrive; the
ids of the probe name that partition, and copies in any other are worth nothing.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streams.config import ProbeSettings
from streams.probes import marks
from streams.probes.answers import AnswerTally
from streams.probes.data import Deck
from streams.probes.marks import ANYWHERE, HELLO
from streams.probes.pace import CpuBudget, Pace, Stopped
from streams.probes.prober import Kind, Probe
from streams.probes.records import DirectSender

#: Rows of one request of a campaign or control. Attackers of an endpoint ask row by row, and one row a record tells
#: exactly how many queries it took to be seen.
PROBE_ROWS = 1
#: Rows of one aside.
ASIDE_ROWS = 64
#: A surrogate fitted on the endpoint's answers is fitted anew after so long: the model may have been replaced.
SURROGATE_SECONDS = 3600.0
#: Pause between two looks whether the partition of a client is known.
HOME_LOOK_SECONDS = 0.05
#: Rows that an extraction starts from, and rows on which its copy is compared with the model.
EXTRACTION_SEEDS, HELD_OUT_ROWS = 50, 200

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
    cpu: CpuBudget
    budget: int
    rows: int = PROBE_ROWS

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k) of rows (n, d), each a query."""
        answers = []
        for first in range(0, len(inputs), self.rows):
            part = inputs[first : first + self.rows]
            if self.probe.inputs + len(part) > self.budget:
                raise Stopped
            self.cpu.pay(self.probe.stop)
            self.pace.take(len(part), self.probe.stop)
            answers.append(self.probe.tally.call(partial(self.endpoint.predict, part)))
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
        self.pace = Pace(min(settings.queries_per_second, (settings.queries_per_minute or math.inf) / 60))
        self.cpu = CpuBudget(settings.cpu_share)
        self._topic = topic
        self._key = key
        self.connect = connect
        self._rng = rng
        self._lock = threading.Lock()
        self._clock = clock or (lambda: time.time_ns() // 1000)

    def spawn(self) -> np.random.Generator:
        """A generator of random numbers for one thread."""
        with self._lock:
            return self._rng.spawn(1)[0]

    def front_door(self, probe: Probe, budget: int) -> FrontDoor:
        """The model as one probe client asks it; the logged queries are the probe."""
        counter = iter(range(HELLO))

        def request_id(inputs: NDArray[np.float64]) -> str:
            home = ANYWHERE if probe.home is None else probe.home
            client, issued = probe.client.encode(), self._clock()
            return marks.sign_request(
                self._key, self._topic, probe.campaign, next(counter), issued, client, inputs, home
            )

        return FrontDoor(self.connect(probe.client, request_id), probe, self.pace, self.cpu, budget)

    def find_home(self, probe: Probe, row: NDArray[np.float64]) -> None:
        """Ask one row (1, d) aside under the probe's client, and wait for the verdict that tells the partition.

        Gives up after `timeout_seconds`: then the ids name no partition, and the missing verdicts tell the rest.
        """
        if probe.home is not None or probe.homeless:
            return
        self.pace.take(len(row), probe.stop)
        probe.tally.call(partial(self.aside(probe.client, probe.campaign, HELLO).predict, row))
        until = self._clock() + round(self.settings.timeout_seconds * 1e6)
        while probe.home is None and self._clock() < until:
            if probe.stop.wait(HOME_LOOK_SECONDS):
                raise Stopped

    def aside(self, client: str, campaign: bytes, first: int = 0) -> Endpoint:
        """The model as a client asks it aside; counters of its ids begin at `first`."""
        counter = itertools.count(first)
        return self.connect(client, lambda rows: self.aside_id(client, campaign, next(counter), rows))

    def aside_id(self, client: str, campaign: bytes, counter: int, rows: NDArray[np.float64]) -> str:
        """Id of a request (n, d) whose logged copy is excluded everywhere."""
        return marks.sign_request(self._key, self._topic, campaign, counter, marks.ASIDE_ISSUED, client.encode(), rows)

    def ask(
        self, inputs: NDArray[np.float64], stop: threading.Event, tally: AnswerTally | None = None
    ) -> NDArray[np.float64]:
        """The model's scores (n, k), asked aside: the logged copies are excluded everywhere."""
        rng = self.spawn()
        endpoint = self.aside(rng.bytes(16).hex(), rng.bytes(marks.CAMPAIGN_BYTES))
        tally = tally or AnswerTally()
        answers = []
        for first in range(0, len(inputs), ASIDE_ROWS):
            part = inputs[first : first + ASIDE_ROWS]
            self.cpu.pay(stop)
            self.pace.take(len(part), stop)
            answers.append(tally.call(partial(endpoint.predict, part)))
        return np.concatenate(answers)

    def send(self, probe: Probe, inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
        """Send rows straight to the topic, a record each."""
        if probe.stop.is_set():
            raise Stopped
        self.sender.send(probe.campaign, probe.client, inputs, outputs, self._clock())
        probe.sent += len(inputs)
        probe.inputs += len(inputs)

    def seconds_for(self, rows: int) -> float:
        """Time that so many queries take when all that may run at once share the pace, with room for the rest."""
        sharing = sum(schedule.at_once for schedule in self.settings.schedules if schedule.enabled)
        sharing += self.settings.concurrent_campaigns + self.settings.requests_at_once + 2
        return 60.0 + self.settings.timeout_seconds + rows * sharing * self.pace.seconds_per_row


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
        self._desk.send(probe, rows, self._desk.ask(rows, probe.stop, probe.tally))


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
        self._desk.find_home(probe, self._rows.sample(1, self._desk.spawn()))
        self._desk.front_door(probe, len(rows)).predict(rows)


class Transfer(Protocol):
    """A transfer attack: crafts on a surrogate, without a question to the model."""

    attack: str
    threat: str

    def fit(self, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator) -> object:
        """A surrogate of the model, from rows (n, d) and the classes (n,) that the model predicted."""

    def craft(
        self, surrogate: object, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Crafted rows (n, d), one for each row, away from its label."""


class QueryAttack(Protocol):
    """An attack that asks the model."""

    attack: str
    threat: str

    def craft(
        self, model: Endpoint, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        """Attack rows (n, d) of the predicted classes (n,); every query goes through `model`."""


class Thief(Protocol):
    """An extraction: copies the model by asking it."""

    attack: str
    threat: str

    def steal(self, model: Endpoint, seeds: NDArray[np.float64], rng: np.random.Generator) -> Copy:
        """A copy, from legal rows (n, d) and as many questions as the threat model allows."""


class Copy(Protocol):
    """What an extraction brings home."""

    def agreement(self, inputs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
        """Share of rows (n, d) on which the copy answers with the watched model's class (n,)."""


class TransferBurst:
    """`burst_size` crafted rows of one fresh client, straight to the topic, with the model's own answers.

    Parameters
    ----------
    desk : Desk
    rows : Deck
        Benign rows to start from.
    transfer : Transfer
    known : (inputs (m, d), labels (m,)) or None
        Rows with the model's predicted classes to fit the surrogate on; None asks the endpoint, and asks again every
        `SURROGATE_SECONDS`.
    """

    kind: Kind = "burst"

    def __init__(
        self,
        desk: Desk,
        rows: Deck,
        transfer: Transfer,
        known: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
    ) -> None:
        self.attack = transfer.attack
        self.threat = transfer.threat
        self._desk = desk
        self._rows = rows
        self._transfer = transfer
        self._known = known
        self._surrogate: object | None = None
        self._fitted_at = 0.0
        self._fitted_version = ""

    def seconds(self) -> float:
        asked = 2 * self._desk.settings.burst_size + (0 if self._known else self._desk.settings.surrogate_rows)
        return self._desk.seconds_for(asked)

    def run(self, probe: Probe) -> None:
        surrogate = self._fresh_surrogate(probe, self._desk.spawn())
        rows = self._rows.lot(self.attack, probe.number, self._desk.settings.burst_size)
        before = classes(self._desk.ask(rows, probe.stop, probe.tally))
        crafted = self._transfer.craft(surrogate, rows, before, probe.rng())
        self._desk.cpu.pay(probe.stop)
        answers = self._desk.ask(crafted, probe.stop, probe.tally)
        fooled = classes(answers) != before
        probe.fooled = int(np.count_nonzero(fooled))
        probe.fooled_rows = np.packbits(fooled).tobytes().hex()
        self._desk.send(probe, crafted, answers)

    def _fresh_surrogate(self, probe: Probe, rng: np.random.Generator) -> object:
        now = time.monotonic()
        stale = self._known is None and (
            now - self._fitted_at > SURROGATE_SECONDS or probe.model_version != self._fitted_version
        )
        self._fitted_version = probe.model_version
        if self._surrogate is None or stale:
            if self._known is not None:
                inputs, labels = self._known
            else:
                inputs = self._rows.sample(self._desk.settings.surrogate_rows, rng)
                labels = classes(self._desk.ask(inputs, probe.stop, probe.tally))
            self._surrogate, self._fitted_at = self._transfer.fit(inputs, labels, rng), now
            self._desk.cpu.pay(probe.stop)
        return self._surrogate


class QueryCampaign:
    """One attacker who asks the endpoint row by row, and goes on with the next row when one is done.

    Ends when its client has paged, or after `campaign_queries` queries.
    """

    kind: Kind = "campaign"

    def __init__(self, desk: Desk, rows: Deck, attack: QueryAttack) -> None:
        self.attack = attack.attack
        self.threat = attack.threat
        self._desk = desk
        self._rows = rows
        self._craft = attack

    def seconds(self) -> float:
        return self._desk.seconds_for(self._desk.settings.campaign_queries)

    def run(self, probe: Probe) -> None:
        rng = probe.rng()
        self._desk.find_home(probe, self._rows.sample(1, self._desk.spawn()))
        door = self._desk.front_door(probe, self._desk.settings.campaign_queries)
        for row in self._rows.walk(self.attack, probe.number):
            self._craft.craft(door, row, classes(door.predict(row)), rng)


class ExtractionRun:
    """One thief who copies the model by asking it, until he is paged or his queries are spent."""

    kind: Kind = "extraction"

    def __init__(self, desk: Desk, rows: Deck, thief: Thief) -> None:
        self.attack = thief.attack
        self.threat = thief.threat
        self._desk = desk
        self._rows = rows
        self._thief = thief

    def seconds(self) -> float:
        return self._desk.seconds_for(self._desk.settings.extraction_queries + HELD_OUT_ROWS)

    def run(self, probe: Probe) -> None:
        self._desk.find_home(probe, self._rows.sample(1, self._desk.spawn()))
        door = self._desk.front_door(probe, self._desk.settings.extraction_queries)
        copy = self._thief.steal(door, self._rows.lot(self.attack, probe.number, EXTRACTION_SEEDS), probe.rng())
        held_out = self._rows.sample(HELD_OUT_ROWS, self._desk.spawn())
        probe.agreement = copy.agreement(held_out, classes(self._desk.ask(held_out, probe.stop, probe.tally)))


def classes(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Predicted classes (n,) of scores (n, k)."""
    return np.asarray(np.argmax(scores, axis=1), dtype=np.int64)
