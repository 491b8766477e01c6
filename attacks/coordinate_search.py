"""Coordinate search with repair: tries single changes of a legal row, keeps the best, then takes back what it can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, Model
from attacks.margin import log_scores, margins
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel

#: Steps as shares of the feature's range are drawn between these two, evenly in their logarithm.
SHORT, LONG = 0.03, 1.0
#: Added distance below which a gain counts as free.
LEAST_WAY = 1e-3
#: Lets an adversarial candidate win over every other.
MOST = 1e9


@dataclass(frozen=True, slots=True)
class CoordinateSearch:
    """Greedy search over single features by scores, for tables.

    Every candidate is repaired into a legal row before it is asked. Once a row is adversarial, single features go back
    to, or towards, their start values while it stays so.

    Parameters
    ----------
    candidates : int
        Single changes tried a step, one query each.

    References
    ----------
    The greedy part of Ballet et al., "Imperceptible Adversarial Attacks on Tabular Data", 2019, section 3, without
    gradients, under the constraints of Simonetto et al., "A Unified Framework for Adversarial Attack and Defense in
    Constrained Feature Space", IJCAI 2022, section 3.
    """

    candidates: int = 16
    name: ClassVar[str] = "coordinate_search"
    access: ClassVar[Access] = "scores"
    norms: ClassVar[frozenset[str]] = frozenset({"l0", "l1", "l2", "linf"})
    needs_eps: ClassVar[bool] = False
    targeted: ClassVar[bool] = True

    def craft(
        self,
        model: Model,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        threat: ThreatModel,
        rng: np.random.Generator,
    ) -> Crafted:
        x, y = start_rows(self, x, y, threat)
        oracle = Oracle(model, x, y, threat)
        oracle.need(2, self)
        current, lead = x.copy(), np.full(len(x), -np.inf)
        if len(x):
            lead = margins(log_scores(oracle.ask(np.arange(len(x)), x)), y, threat)
        idle = np.zeros(len(x), dtype=np.intp)
        patience = 20 + 2 * int(threat.domain.movable.sum()) // self.candidates
        while True:
            which = np.flatnonzero(oracle.going & (idle < patience))
            if len(which) == 0:
                return oracle.crafted(current)
            owner, tried = self._candidates(oracle, which, current[which], lead[which] > 0, rng)
            margin = np.full(len(owner), -np.inf)
            if len(owner):
                margin = margins(log_scores(oracle.ask(which[owner], tried)), y[which[owner]], threat)
            distance = threat.distances(x[which[owner]], tried)
            now = threat.distances(x[which], current[which])
            back = lead[which[owner]] > 0
            good = np.where(back, (margin > 0) & (distance < now[owner]), margin > lead[which[owner]])
            # The best of each row comes last: the nearest while going back; before, the largest margin, or without a
            # bound the largest gain for the added distance.
            value = margin
            if threat.eps is None:
                way = np.maximum(distance - now[owner], LEAST_WAY)
                value = np.where(margin > 0, MOST, 0.0) + (margin - lead[which[owner]]) / way
            order = np.flatnonzero(good)
            order = order[np.argsort(np.where(back, -distance, value)[order], kind="stable")]
            current[which[owner[order]]], lead[which[owner[order]]] = tried[order], margin[order]
            idle[which] += 1
            idle[which[owner[order]]] = 0

    def _candidates(
        self,
        oracle: Oracle,
        which: NDArray[np.intp],
        rows: NDArray[np.float64],
        back: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Legal rows (c, d) with one change each, and the place in `which` of the row that each came from.

        `back` (m,) says which rows are adversarial and only return features.
        """
        threat, domain = oracle.threat, oracle.threat.domain
        counts = np.minimum(self.candidates, oracle.left[which])
        owner = np.repeat(np.arange(len(which)), counts)
        x, here = oracle.x[which[owner]], rows[owner]
        columns = np.flatnonzero(domain.movable)
        changed = (here != x) & domain.movable
        draw = rng.random(here.shape)
        column = np.argmax(np.where(np.where(back[owner, None], changed, domain.movable), draw, -1.0), axis=1)
        size = np.exp(rng.uniform(np.log(SHORT), np.log(LONG), len(owner))) * domain.ranges[column]
        if threat.norm == "linf" and threat.eps is not None:
            size = np.minimum(size, 2 * threat.radius * threat.unit[column])
        sign = rng.choice(np.array([-1.0, 1.0]), len(owner))
        away = threat.project(x, domain.moved(here, column, sign * size))
        place = np.arange(len(owner))
        returned = here.copy()
        keep = np.where(rng.random(len(owner)) < 0.5, 0.0, rng.random(len(owner)))
        returned[place, column] = x[place, column] + keep * (here[place, column] - x[place, column])
        for group in domain.groups:
            mine = np.flatnonzero(np.isin(column, group))
            returned[np.ix_(mine, group)] = x[np.ix_(mine, group)]
        home = domain.repair(x, returned)
        tried = np.where(back[owner, None], home, away)
        new = (tried != here).any(axis=1) & (~back[owner] | (tried != x).any(axis=1)) & (len(columns) > 0)
        return owner[new], tried[new]
