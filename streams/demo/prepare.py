"""Everything that the demo needs before traffic flows: the trained model, probe rows, and the fitted bundle.

Files appear one after the other, each by a rename, so that whoever waits for one sees it whole.

    python -m streams.demo.prepare --directory DIR --rate RATE --partitions P --seed SEED --client-key-file FILE
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from attacks import registry
from attacks.surrogate import fit_surrogate
from attacks.threat import ThreatModel
from detectors.contract import Batch, Reference
from streams.demo import digits
from streams.demo.attackers import ATTACKERS
from streams.demo.clients import DECIMALS, Traffic, population
from streams.demo.digits import Pool, Pools
from streams.demo.figures import Who
from streams.demo.model import Perceptron, train
from streams.demo.traffic import live_population
from streams.probes.workshop import domain

#: Length of the demo's "week": the period that the page budget is stated for.
WEEK_SECONDS = 120.0
#: False pages a week.
BUDGET = 1
#: Weeks of benign history, each with clients of its own.
HISTORY_WEEKS = 7
#: Rows that detectors learn from, and rows that probes start from.
REFERENCE_ROWS, PROBE_ROWS = 2_000, 480
#: Rows with the model's answers for the surrogate of transfer probes.
SURROGATE_ROWS = 800
#: Rows that are attacked to weigh detectors against each other, and how far, in the inputs' units.
ATTACKED_ROWS, ATTACKED_EPS = 400, (0.1, 0.2, 0.3)
#: Broker time at which the history begins, in microseconds; only differences matter.
HISTORY_BEGINS_US = 1_700_000_000_000_000


class FitSummary(msgspec.Struct, frozen=True):
    """What the stage tells of the fit."""

    seconds: float
    events: int
    client_weeks: int
    budget: int
    mode: str
    sentences: list[str]


@dataclass(frozen=True, slots=True)
class Files:
    """Where everything stands."""

    directory: Path

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.directory / "model.npz"

    @property
    def probes(self) -> Path:
        """Rows that probes start from."""
        return self.directory / "probes.npz"

    @property
    def bundle(self) -> Path:
        """The fitted bundle."""
        return self.directory / "bundle.npz"

    @property
    def who(self) -> Path:
        """Who is who, by client hash."""
        return self.directory / "who.json"

    @property
    def summary(self) -> Path:
        """What the fit found; written last."""
        return self.directory / "fit.json"


def publish(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside `path`, then rename it."""
    part = path.with_name(f"part-{path.name}")
    write(part)
    part.rename(path)


def rows_of(pool: Pool, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Fresh rows (count, 64) of nobody in particular, and their true classes."""
    which = rng.integers(len(pool), size=count)
    styles = population("any", 1.0, rng, clients=count, sensors=0).styles
    return np.round(digits.fresh(pool.inputs[which], styles, rng), DECIMALS), pool.truth[which]


def probe_rows(pools: Pools, model: Perceptron, rng: np.random.Generator, path: Path) -> None:
    """Write the prober's npz: benign rows, and rows with the model's answers for a surrogate."""
    inputs, _ = rows_of(pools.probe, PROBE_ROWS, rng)
    known, _ = rows_of(pools.reference, SURROGATE_ROWS, rng)
    labels = np.argmax(model.predict(known), axis=1)
    with path.open("wb") as out:
        np.savez(out, inputs=inputs, surrogate_inputs=known, surrogate_labels=labels)


def reference(pools: Pools, model: Perceptron, rng: np.random.Generator) -> Reference:
    """Rows that detectors learn from, with the model's answers and the truth."""
    inputs, truth = rows_of(pools.reference, REFERENCE_ROWS, rng)
    scores = model.predict(inputs)
    return Reference(inputs, np.argmax(scores, axis=1).astype(np.int32), scores, truth.astype(np.int32))


def history(pool: Pool, model: Perceptron, rate: float, rng: np.random.Generator, weeks: int = HISTORY_WEEKS) -> Batch:
    """Benign events of some weeks, in order, made as live traffic is, but of other pictures and other clients."""
    times, clients, inputs = [], [], []
    for week in range(weeks):
        people = population(f"week-{week}", rate, rng)
        names = rng.integers(1, 1 << 63, len(people), dtype=np.int64).astype(np.uint64)
        sent = Traffic(people, pool, rng).stretch(WEEK_SECONDS)
        inside = sent.times < WEEK_SECONDS
        times.append(sent.times[inside] + week * WEEK_SECONDS)
        clients.append(names[sent.clients[inside]])
        inputs.append(sent.inputs[inside])
    rows = np.concatenate(inputs)
    scores = model.predict(rows)
    return Batch(
        inputs=rows,
        labels=np.argmax(scores, axis=1).astype(np.int32),
        clients=np.concatenate(clients),
        times=HISTORY_BEGINS_US + np.round(np.concatenate(times) * 1e6).astype(np.int64),
        offsets=np.arange(len(rows), dtype=np.int64),
        rows=np.zeros(len(rows), dtype=np.int32),
        outputs=scores,
    )


def crafted(known: Reference, model: Perceptron, rng: np.random.Generator) -> Reference:
    """Adversarial rows that weigh detectors against each other: FGSM on a surrogate, which no probe of the demo uses.

    Made of reference rows alone, so neither probes' rows nor live traffic's have been seen.
    """
    which = rng.choice(len(known), ATTACKED_ROWS, replace=False)
    inputs, labels = known.inputs[which], known.labels[which].astype(np.int64)
    surrogate = fit_surrogate(known.inputs, known.labels.astype(np.int64), rng)
    attack, legal = registry.kind("fgsm")(), domain(digits.schema())
    parts = []
    for eps in ATTACKED_EPS:
        threat = ThreatModel(
            name=f"Linf {eps:g}", norm="linf", eps=eps, domain=legal, knowledge="white-box", budget=0, goal="any"
        )
        parts.append(attack.craft(surrogate, inputs, labels, threat, rng).inputs)
    rows = np.concatenate(parts)
    return Reference(rows, np.argmax(model.predict(rows), axis=1).astype(np.int32))


def who_is_who(rate: float, seed: int, key: bytes) -> Who:
    """Every live client and every attacker's account by its hash."""
    from streams.events.identity import hash_clients

    people = live_population(rate, seed)
    accounts = {account: attacker.name for attacker in ATTACKERS for account in attacker.account_names()}

    def hashed(names: tuple[str, ...]) -> list[str]:
        return [f"{client:016x}" for client in hash_clients([name.encode() for name in names], key)]

    by_hash = dict(zip(hashed(people.names), people.names, strict=True))
    watching = set(people.sensor_names)
    return Who(
        attackers=dict(zip(hashed(tuple(accounts)), accounts.values(), strict=True)),
        benign={client: name for client, name in by_hash.items() if name not in watching},
        sensors={client: name for client, name in by_hash.items() if name in watching},
    )


def prepare(directory: Path, rate: float, partitions: int, seed: int, key: bytes) -> None:
    """Make everything, in the order in which the stage needs it."""
    files, began = Files(directory), time.monotonic()
    say("training the model", 0.0)
    pools = digits.split(seed)
    model = train(pools.model, np.random.default_rng([seed, 4]))
    publish(files.model, model.save)
    say("rows for probes", 0.05)
    publish(files.probes, lambda path: probe_rows(pools, model, np.random.default_rng([seed, 5]), path))
    say("making a benign history", 0.1)
    benign = history(pools.history, model, rate, np.random.default_rng([seed, 6]))
    known = reference(pools, model, np.random.default_rng([seed, 7]))

    from detectors import bundle, ensemble

    def tell(what: str, share: float) -> None:
        say(what, 0.3 + 0.65 * share)

    tell("compiling kernels", 0.0)
    fitted, found = ensemble.fit(
        known,
        digits.schema(),
        benign,
        crafted={"fgsm": crafted(known, model, np.random.default_rng([seed, 9]))},
        budget=BUDGET,
        clients_per_week=None,
        week_us=round(WEEK_SECONDS * 1e6),
        partitions=partitions,
        rng=np.random.default_rng([seed, 8]),
        progress=tell,
    )
    bundle.save(files.bundle, fitted, found)
    publish(files.who, lambda path: _write(path, msgspec.json.encode(who_is_who(rate, seed, key))))
    summary = FitSummary(
        seconds=time.monotonic() - began,
        events=len(benign),
        client_weeks=found.client_weeks,
        budget=found.budget,
        mode=found.mode,
        sentences=found.sentences(),
    )
    publish(files.summary, lambda path: _write(path, msgspec.json.encode(summary)))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def say(what: str, share: float) -> None:
    """Tell the stage what is being done: the last line of the log."""
    print(f"{share:.3f} {what}", flush=True)


def last_said(log: str) -> tuple[str, float] | None:
    """What was last told, from the log's text."""
    for line in reversed(log.splitlines()):
        share, _, what = line.partition(" ")
        try:
            return what, float(share)
        except ValueError:
            continue
    return None


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="streams.demo.prepare")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--client-key-file", type=Path, required=True)
    told = parser.parse_args()
    key = bytes.fromhex(told.client_key_file.read_text(encoding="ascii"))
    with threadpool_limits(1):
        prepare(told.directory, told.rate, told.partitions, told.seed, key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
