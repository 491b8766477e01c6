"""The attackers: five adversaries, each a thread, whose every query goes through the model's endpoint.

They know what any stranger knows: the answers. Each goes from picture to picture and on and on; nobody tells them that
they have been seen. A journal says which request was whose, and which ones only dilute.

    python -m streams.demo.attackers --url URL --name NAME --seed SEED --journal FILE [--after FILE]
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from attacks import registry
from attacks.threat import Domain, Norm, ThreatModel
from streams.demo import digits
from streams.demo.clients import Traffic, population
from streams.errors import EndpointError
from streams.models.oip import OIPModel
from streams.probes.pace import Pace, Stopped

log = logging.getLogger("demo.attackers")

#: Queries that an attack may spend on one picture.
BUDGET = 1_000
#: Linf bound of the attacks that need one.
EPS = 0.1
#: Pause after the endpoint did not answer.
AWAY_SECONDS = 1.0
#: Pause between two looks for the file that begins it all.
LOOK_SECONDS = 0.05
#: Seconds between the starts of two attackers, so that one can watch them come.
APART_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Attacker:
    """One adversary.

    Attributes
    ----------
    name : str
        As the report calls it.
    attack : str
        Name in the registry of attacks.
    norm : Norm
        Norm of the attack's threat model.
    accounts : int
        Identities that it takes turns with.
    diluted : int
        Benign queries that it mixes with each of its own.
    per_second : float
        Queries of its own a second.
    parameters : mapping
        Of the attack, where it differs from the default.
    """

    name: str
    attack: str
    norm: Norm
    accounts: int = 1
    diluted: int = 0
    per_second: float = 6.0
    parameters: Mapping[str, float] = field(default_factory=dict)

    def account_names(self) -> tuple[str, ...]:
        """Its identities; nothing in them tells what they are."""
        return tuple(f"guest-{self.name.replace('_', '-')}-{number}" for number in range(self.accounts))


#: Who attacks the demo's model.
ATTACKERS = (
    Attacker("hop_skip_jump", "hop_skip_jump", "l2"),
    Attacker("nes", "nes", "linf", per_second=8.0),
    Attacker("simba", "simba", "l2", parameters={"step": 0.05}),
    Attacker("hop_skip_jump_diluted", "hop_skip_jump", "l2", diluted=4, per_second=5.0),
    Attacker("boundary_spread", "boundary", "l2", accounts=10, per_second=15.0),
)


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One line of the journal: who asked, under which request id, and whether the query is one of the attack's own."""

    attacker: str
    request: str
    own: bool


class Journal:
    """The attackers' own record of their queries, a JSON line each, written before the query is sent."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._lock = threading.Lock()

    def note(self, line: Line) -> None:
        """Write one line."""
        with self._lock:
            self._out.write(msgspec.json.encode(line) + b"\n")
            self._out.flush()


def read_journal(path: Path) -> dict[str, list[Line]]:
    """Each attacker's queries in the order in which it sent them."""
    found: dict[str, list[Line]] = {}
    if path.exists():
        for text in path.read_bytes().splitlines():
            line = msgspec.json.decode(text, type=Line)
            found.setdefault(line.attacker, []).append(line)
    return found


@dataclass(slots=True)
class Door:
    """The model as one attacker asks it: row by row, at its pace, from its accounts in turn, diluted as it likes."""

    attacker: Attacker
    url: str
    model: str
    journal: Journal
    benign: Iterator[NDArray[np.float64]]
    rng: np.random.Generator
    stop: threading.Event
    asked: int = 0
    _pace: Pace = field(init=False)
    _accounts: list[OIPModel] = field(init=False)
    _request: str = ""

    def __post_init__(self) -> None:
        self._pace = Pace(self.attacker.per_second * (1 + self.attacker.diluted))
        self._accounts = [
            OIPModel(self.url, self.model, client_id=name, request_id=lambda _: self._request)
            for name in self.attacker.account_names()
        ]

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k) of rows (n, d), each a query.

        Raises
        ------
        Stopped
            When the attackers are to end.
        """
        return np.concatenate([self._query(row) for row in inputs])

    def _query(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        turn = int(self.rng.integers(self.attacker.diluted + 1))
        for place in range(self.attacker.diluted + 1):
            if place == turn:
                answer = self._ask(row, own=True)
            else:
                self._ask(next(self.benign), own=False)
        return answer

    def _ask(self, row: NDArray[np.float64], *, own: bool) -> NDArray[np.float64]:
        self._pace.take(1, self.stop)
        account = self._accounts[self.asked % len(self._accounts)]
        self.asked += 1
        self._request = f"{self.attacker.name}-{self.asked}"
        self.journal.note(Line(self.attacker.name, self._request, own))
        return account.predict(row[None])


def besiege(door: Door, pool: digits.Pool, legal: Domain) -> None:
    """Attack picture after picture until the door's `stop` is set."""
    attacker, rng = door.attacker, door.rng
    craft = registry.kind(attacker.attack)(**attacker.parameters).craft
    threat = ThreatModel(
        name=attacker.name,
        norm=attacker.norm,
        eps=EPS if attacker.norm == "linf" else None,
        domain=legal,
        knowledge="black-box",
        budget=BUDGET,
        goal="any",
    )
    plain = digits.columns([digits.Style()])
    while not door.stop.is_set():
        picture = pool.inputs[rng.integers(len(pool))]
        row = digits.fresh(picture[None], plain, rng)
        try:
            labels = np.argmax(door.predict(row), axis=1)
            craft(door, row, labels, threat, rng)
        except Stopped:
            return
        except EndpointError as error:
            log.warning("%s: %s", attacker.name, error)
            door.stop.wait(AWAY_SECONDS)


def _benign(pool: digits.Pool, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Rows of one benign client, without end."""
    traffic = Traffic(population("cover", 50.0, rng, clients=1, sensors=0), pool, rng)
    while True:
        yield from traffic.stretch(2.0).inputs


def run(url: str, name: str, seed: int, journal: Path, stop: threading.Event) -> int:
    """All attackers until `stop` is set; returns 1 when one of them failed."""
    pools = digits.split(seed)
    seen = digits.schema()
    legal = Domain(low=seen.lows(), high=seen.highs(), integral=seen.integral(), mutable=seen.mutable())
    failed: list[str] = []
    with journal.open("ab") as out:
        notes = Journal(out)

        def attack(number: int, attacker: Attacker) -> None:
            if stop.wait(number * APART_SECONDS):
                return
            rng = np.random.default_rng([seed, 3, number])
            door = Door(attacker, url, name, notes, _benign(pools.live, rng.spawn(1)[0]), rng, stop)
            log.info("%s begins", attacker.name)
            try:
                besiege(door, pools.hostile, legal)
            except Exception:  # the outermost boundary of the thread: the others go on, the exit code tells
                log.exception("%s failed", attacker.name)
                failed.append(attacker.name)

        threads = [
            threading.Thread(target=attack, args=(number, attacker), name=attacker.name)
            for number, attacker in enumerate(ATTACKERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return int(bool(failed))


def main() -> int:
    """Entry point of the process; returns 1 when an attacker failed."""
    parser = argparse.ArgumentParser(prog="streams.demo.attackers")
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--after", type=Path, help="Begin when this file exists.")
    told = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while told.after is not None and not told.after.exists():
        if stop.wait(LOOK_SECONDS):
            return 0
    with threadpool_limits(1):
        return run(told.url, told.name, told.seed, told.journal, stop)


if __name__ == "__main__":
    sys.exit(main())
