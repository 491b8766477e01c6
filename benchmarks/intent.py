"""Attackers against the demo's model, and clients that repeat themselves, through a whole ensemble as `fit` makes it.

    python -m benchmarks.intent [--json] [--quick] [--check]

For each attack: the share of attackers that open a ticket and that page within 400 queries of their own (undiluted, and
with 4 benign queries beside each), and the median number of own queries until then. For each kind of repeater: the
share of clients that page. Attackers go from picture to picture as those of the demo do. The history that thresholds
are calibrated on knows sensors, and no other kind of repeater.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from attacks import registry
from attacks.threat import Domain, ThreatModel
from benchmarks.repeaters import KINDS, Site
from benchmarks.report import Figure, Target, Told, arguments, finish, median_figure, progress
from detectors import ensemble
from detectors.contract import Batch, Level
from detectors.kernels import limit_blas_threads
from detectors.scorer import Ensemble
from streams.demo import digits, model, prepare
from streams.demo.attackers import BUDGET, EPS, Attacker
from streams.demo.clients import Traffic, population
from streams.probes.outcome import wilson

Rows = NDArray[np.float64]

#: Own queries after which an attacker that did not page got away.
QUERIES = 400
#: Requests a second of the benign history.
RATE = 200.0
#: Attackers a seed and attack, repeaters a seed and kind, seeds.
ATTACKERS, REPEATERS, SEEDS = 12, 12, 5

ATTACKS = (
    Attacker("hop_skip_jump", "hop_skip_jump", "l2"),
    Attacker("boundary", "boundary", "l2"),
    Attacker("sign_opt", "sign_opt", "l2"),
    Attacker("nes", "nes", "linf"),
    Attacker("simba", "simba", "l2", parameters={"step": 0.05}),
    Attacker("square", "square", "linf"),
    Attacker("zoo", "zoo", "l2"),
)

TARGETS = (
    *(Target(f"{name}_ticket_share", ">=", 0.995) for name in ("hop_skip_jump", "nes", "simba")),
    *(
        Target(f"{attack.name}{dilution}_page_share", ">=", 0.95)
        for attack in ATTACKS
        for dilution in ("", "_diluted_4")
    ),
    *(Target(f"{kind.__name__}_page_share", "<=", 0.05) for kind in KINDS),
)


class Enough(Exception):
    """The attacker has asked as often as we watch."""


@dataclass(slots=True)
class World:
    """One seed's model, ensemble and pools."""

    pools: digits.Pools
    net: model.Perceptron
    ensemble: Ensemble
    asked: list[Rows]

    @classmethod
    def make(cls, seed: int, told: Told) -> World:
        """As the demo prepares it."""
        pools = digits.split(seed)
        net = model.train(pools.model, np.random.default_rng([seed, 4]))
        history = prepare.history(pools.history, net, RATE, np.random.default_rng([seed, 6]))
        fitted, report = ensemble.fit(
            prepare.reference(pools, net, np.random.default_rng([seed, 7])),
            digits.schema(),
            history,
            budget=prepare.BUDGET,
            clients_per_week=None,
            week_us=round(prepare.WEEK_SECONDS * 1e6),
            partitions=4,
            rng=np.random.default_rng([seed, 8]),
            progress=told,
        )
        progress(f"  mode {report.mode}: {report.reason}")
        return cls(pools, net, fitted, [])

    def predict(self, inputs: Rows) -> Rows:
        """The endpoint as an attacker asks it."""
        for row in inputs:
            self.asked.append(row.copy())
            if len(self.asked) == QUERIES:
                raise Enough
        return self.net.predict(inputs)

    def queries(self, attacker: Attacker, rng: np.random.Generator) -> Rows:
        """The first `QUERIES` rows that an attacker asks, over as many pictures as it takes."""
        self.asked = []
        schema = digits.schema()
        legal = Domain(schema.lows(), schema.highs(), schema.integral(), schema.mutable())
        eps = EPS if attacker.norm == "linf" else None
        threat = ThreatModel(attacker.name, attacker.norm, eps, legal, "black-box", BUDGET)
        craft = registry.kind(attacker.attack)(**attacker.parameters).craft
        try:
            while True:
                row = self.picture(self.pools.hostile, rng)[None]
                craft(self, row, self.predict(row).argmax(axis=1), threat, rng)
        except Enough:
            return np.array(self.asked)

    def picture(self, pool: digits.Pool, rng: np.random.Generator) -> Rows:
        """A fresh picture of a pool."""
        plain = digits.columns([digits.Style()])
        return digits.fresh(pool.inputs[rng.integers(len(pool))][None], plain, rng)[0]

    def first(self, rows: Rows, own: NDArray[np.bool_]) -> tuple[int | None, int | None]:
        """Own queries of one client until its first ticket and until its first page."""
        scores = self.net.predict(rows)
        place = np.arange(len(rows), dtype=np.int64)
        batch = Batch(
            inputs=np.ascontiguousarray(rows),
            labels=scores.argmax(axis=1).astype(np.int32),
            clients=np.ones(len(rows), dtype=np.uint64),
            times=place * 10_000,
            offsets=place,
            rows=np.zeros(len(rows), dtype=np.int32),
            outputs=scores,
        )
        count = np.cumsum(own)
        found: dict[Level, int] = {}
        for signal in self.ensemble.score(batch, self.ensemble.new_state(clients=8)).signals:
            found.setdefault(signal.level, int(count[signal.row]))
        page = found.get(Level.PAGE)
        return min(found.values(), default=None), page

    def diluted(self, rows: Rows, each: int, rng: np.random.Generator) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows with `each` benign ones beside every one of them, in random turns."""
        if each == 0:
            return rows, np.ones(len(rows), dtype=np.bool_)
        cover = Traffic(population("cover", 50.0, rng, clients=1, sensors=0), self.pools.live, rng)
        benign: list[Rows] = []
        while len(benign) < each * len(rows):
            benign += list(cover.stretch(10.0).inputs)
        turn = rng.integers(each + 1, size=len(rows))
        own = np.zeros((len(rows), each + 1), dtype=np.bool_)
        own[np.arange(len(rows)), turn] = True
        mixed = np.empty((own.size, rows.shape[1]))
        mixed[own.ravel()], mixed[~own.ravel()] = rows, benign[: each * len(rows)]
        return mixed, own.ravel()


def share(name: str, hits: int, tries: int) -> Figure:
    """A share with its Wilson interval."""
    low, high = wilson(hits, tries)
    return Figure(name, hits / tries, low, high)


def attack_figures(name: str, found: Sequence[tuple[int | None, int | None]], rng: np.random.Generator) -> list[Figure]:
    """Shares, and medians over those that were seen."""
    figures = []
    for what, seen in (("ticket", [t for t, _ in found]), ("page", [p for _, p in found])):
        hits = [float(queries) for queries in seen if queries is not None]
        figures.append(share(f"{name}_{what}_share", len(hits), len(found)))
        if hits:
            figures.append(median_figure(f"{name}_{what}_queries", hits, rng, "queries"))
    return figures


def main() -> int:
    """Run everything."""
    options = arguments("The intent test against attackers and repeaters.").parse_args()
    limit_blas_threads()
    seeds, attackers, repeaters = (1, 4, 6) if options.quick else (SEEDS, ATTACKERS, REPEATERS)
    attacks = [
        (replace(attack, name=f"{attack.name}{suffix}", diluted=each), each)
        for attack in ATTACKS
        for suffix, each in (("", 0), ("_diluted_4", 4))
    ]
    hostile: dict[str, list[tuple[int | None, int | None]]] = {attack.name: [] for attack, _ in attacks}
    benign: dict[str, list[bool]] = {kind.__name__: [] for kind in KINDS}
    for seed in range(options.seed, options.seed + seeds):
        progress(f"seed {seed}")
        world = World.make(seed, Told())
        for number, (attack, each) in enumerate(attacks):
            for attempt in range(attackers):
                rng = np.random.default_rng([seed, 1, number, attempt])
                rows, own = world.diluted(world.queries(attack, rng), each, rng)
                hostile[attack.name].append(world.first(rows, own))
            progress(f"  {attack.name}: {hostile[attack.name][-attackers:]}")
        site = Site(world.net.predict, world.pools.reference.inputs.mean(axis=0))
        for number, kind in enumerate(KINDS):
            for attempt in range(repeaters):
                rng = np.random.default_rng([seed, 2, number, attempt])
                rows = np.clip(kind(site, world.picture(world.pools.live, rng), rng), 0.0, 1.0)
                benign[kind.__name__].append(world.first(rows, np.ones(len(rows), dtype=np.bool_))[1] is not None)
    rng = np.random.default_rng(options.seed)
    figures = [figure for name, found in hostile.items() for figure in attack_figures(name, found, rng)]
    figures += [share(f"{name}_page_share", sum(paged), len(paged)) for name, paged in benign.items()]
    context = {"seeds": seeds, "attackers": attackers, "repeaters": repeaters, "queries": QUERIES}
    return finish(options, figures, TARGETS, context)


if __name__ == "__main__":
    raise SystemExit(main())
