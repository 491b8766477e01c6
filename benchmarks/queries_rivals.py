"""Baselines in the streams of the benchmark of query attacks: thresholds from the same client-weeks, and first alarms.

Each is judged at its published setting and at order statistics of the history's client-weeks for the same budget. Where
a paper leaves something open the choice is in the baseline's favour: memory is unlimited, nothing is ever cleared, any
of the accounts that an attacker uses may raise the alarm, and one row beyond the published threshold is an alarm.
Detectors of single rows (PyOD's, max-softmax) are calibrated in two forms, as neither favours them everywhere: by the
client's largest score, which tells attacks that begin on noise at once and others mostly never; and ("counted") by how
many of its rows lie beyond the published threshold so far, which is often hardly more than a limit on how much it asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks import baselines
from benchmarks.queries_attackers import PLANS, Plan, covered
from benchmarks.queries_cells import Hunt
from benchmarks.queries_clients import Rows
from detectors.calibration import order_statistics

if TYPE_CHECKING:
    from benchmarks.queries import Stream, World

Key = tuple[str, str]
Scores = dict[str, NDArray[np.float64]]
#: Names of the settings; the last is calibrated on ordinary clients alone.
PUBLISHED, SAME_BUDGET, NO_REPEATERS = "published", "same budget", "same budget, no repeaters"
COUNTED = ", counted"
#: Where baselines are judged: (benign queries beside each own, accounts).
PLACES = ((0, 1), (4, 1), (20, 1), (0, 10))
#: Beyond this dilution half as many attackers.
FAR = 4
#: Rows of one stream's attackers, about, and of other clients in it: Blacklight compares all pairs.
STREAM_ROWS, OTHERS = 9600, 3000


class Rivals:
    """Baselines on one world: thresholds, and first alarms.

    Parameters
    ----------
    world : World
    budget : int
        False pages a week.
    rng : Generator
    """

    def __init__(self, world: World, budget: int, rng: np.random.Generator) -> None:
        self.world = world
        self.salt_seed, forest_seed = (int(seed) for seed in rng.integers(1 << 31, size=2))
        self.outliers = baselines.Outliers(world.learned, forest_seed)
        weeks = [(one, self._rows(one.rows)) for one in world.history]
        ordinary = [np.array([kind == "" for kind in one.kinds]) for one in world.history]
        doubt = [
            single["max-softmax"][usual[one.clients]] for (one, (single, _)), usual in zip(weeks, ordinary, strict=True)
        ]
        self.published = self.outliers.published | {
            "max-softmax": float(np.quantile(np.concatenate(doubt), 1.0 - baselines.DOUBTED)),
            "Blacklight": baselines.MATCHES / baselines.KEPT - 1e-9,
            "PRADA": -baselines.NORMALITY,
        }
        self._enough = {"Chen et al.": 0.0, "PRADA": 0.0}
        maxima: dict[str, list[NDArray[np.float64]]] = {}
        near: list[NDArray[np.float64]] = []
        for (one, (single, labels)), usual in zip(weeks, ordinary, strict=True):
            shared = baselines.blacklight(one.rows, np.random.default_rng(self.salt_seed))[1]
            found: dict[str, NDArray[np.float64]] = {}
            for client, mine in enumerate(parts_of(one.clients, len(one.kinds))):
                for name, values in self._account(one.rows, single, labels, shared, mine).items():
                    found.setdefault(name, np.full(len(one.kinds), -np.inf))[client] = values.max(initial=-np.inf)
                    if name == "Chen et al." and usual[client]:
                        near.append(-values[np.isfinite(values)])
            for name, best in found.items():
                maxima.setdefault(name, []).append(best)
        self.published["Chen et al."] = -float(np.quantile(np.concatenate(near), baselines.NEAR_SHARE))
        which = np.concatenate(ordinary)
        self.thresholds: dict[Key, float] = {}
        for name, parts in maxima.items():
            units = np.concatenate(parts)
            if name in self.published:
                self.thresholds[name, PUBLISHED] = self.published[name]
            calibrations = {SAME_BUDGET: units} | ({NO_REPEATERS: units[which]} if world.repeaters else {})
            for setting, some in calibrations.items():
                at = order_statistics.threshold(some, world.settings.clients, budget)
                self.thresholds[name, setting] = np.inf if at is None else at.value
        for name in self._enough:
            finite = [-value for (mine, _), value in self.thresholds.items() if mine == name and np.isfinite(value)]
            self._enough[name] = min(finite, default=0.0)

    def _rows(self, rows: Rows) -> tuple[Scores, NDArray[np.int32]]:
        """Scores of single rows by name, and the model's answers."""
        outputs = self.world.made.model.predict(rows)
        return self.outliers.scores(rows, outputs), outputs.argmax(axis=1).astype(np.int32)

    def _account(
        self,
        rows: Rows,
        single: Scores,
        labels: NDArray[np.int32],
        shared: NDArray[np.float64],
        mine: NDArray[np.intp],
    ) -> Scores:
        """Every statistic of one account's rows, the rows `mine` of a stream, larger where more suspicious."""
        scaled = rows[mine] / self.world.scale
        found = {
            "Blacklight": shared[mine],
            "Chen et al.": -baselines.mean_distances(scaled, self._enough["Chen et al."]),
            "PRADA": -baselines.normality(scaled, labels[mine], self._enough["PRADA"]),
        }
        for name, scores in single.items():
            found[name] = scores[mine]
            found[name + COUNTED] = np.cumsum(scores[mine] > self.published[name]).astype(np.float64)
        return found

    def first(self, stream: Stream, count: int) -> dict[Key, list[int | None]]:
        """Own queries of each attacker until the first alarm of any of its accounts, by baseline and setting."""
        every, others = baselines.blacklight(stream.rows, np.random.default_rng(self.salt_seed))
        watched = np.flatnonzero(stream.attacker >= 0)
        rows, asked = stream.rows[watched], stream.asked[watched]
        single, labels = self._rows(rows)
        found: dict[Key, list[int | None]] = {key: [None] * count for key in self.thresholds}
        senders, sender = np.unique(stream.accounts[watched], return_inverse=True)
        for mine in parts_of(sender, len(senders)):
            who = int(stream.attacker[watched[mine[0]]])
            values = self._account(rows, single, labels, others[watched], mine)
            for key, threshold in self.thresholds.items():
                statistic = every[watched[mine]] if key == ("Blacklight", PUBLISHED) else values[key[0]]
                hits = np.flatnonzero(statistic > threshold)
                if len(hits):
                    at, before = int(asked[mine[hits[0]]]), found[key][who]
                    found[key][who] = at if before is None else min(at, before)
        return found


def parts_of(clients: NDArray[np.int64], count: int) -> list[NDArray[np.intp]]:
    """Places of each client's rows, in order."""
    order = np.argsort(clients, kind="stable")
    return np.split(order, np.cumsum(np.bincount(clients, minlength=count))[:-1])


def rival_hunts(rivals: Rivals, plan: Plan, own: list[Rows], dilutions: tuple[tuple[int, int], ...]) -> list[Hunt]:
    """What baselines see of the first of these attackers, at each of some places."""
    world = rivals.world
    settings, supply = world.settings, world.report.supply
    found: list[Hunt] = []
    for each, accounts in dilutions:
        rng = np.random.default_rng([world.made.seed, 22, PLANS.index(plan), each, accounts])
        few = settings.rivals if each <= FAR else -(-settings.rivals // 2)
        few = min(few, settings.attackers if accounts == 1 else settings.campaigns)
        cells = {key: Hunt(*key, plan.name, each, accounts, [], [], world.repeaters) for key in rivals.thresholds}
        step = max(1, STREAM_ROWS // (settings.queries * (1 + each)))
        for start in range(0, few, step):
            hidden = [
                covered(rows, each, supply.client(each * len(rows), rng) if each else rows, rng)
                for rows in own[start : min(start + step, few)]
            ]
            alarms = rivals.first(world.stream(hidden, accounts, OTHERS, rng), len(hidden))
            for key, some in alarms.items():
                cells[key].pages.extend(some)
        found += cells.values()
    return found
