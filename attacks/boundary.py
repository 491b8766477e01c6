"""Boundary attack: a random walk along the decision boundary that drifts towards the start row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import TRIES, bisect, random_starts
from attacks.contract import Access, Crafted, Model
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel, lengths

#: Weight of one step in the running success rates that set the step lengths.
RATE_WEIGHT = 0.15
#: Success rates that the two parts of a step aim at, sideways and towards the start row. The paper's 1/2 sideways
#: suits a flat boundary; at a corner, as tree ensembles have them, no step is short enough for it and the walk would
#: stand still (breast-cancer forest, 1,000 queries: median L2 .34, with 1/4 and a least length .19).
SIDEWAYS_RATE, INWARDS_RATE = 0.25, 0.25
#: Every so many steps the sideways part is asked on its own, to learn its success rate.
SIDEWAYS_EVERY = 5
#: Least lengths of the two parts of a step, as shares of the distance.
LEAST_SIDE, LEAST_IN = 0.05, 0.003


@dataclass(frozen=True, slots=True)
class Boundary:
    """Boundary attack by predicted classes alone, L2.

    Parameters
    ----------
    sideways, inwards : float
        First lengths of the two parts of a step, as shares of the distance to the start row.
    brackets : int
        Halvings of the first way to the start row.
    tries : int
        Random rows tried for a first adversarial one.

    References
    ----------
    Brendel, Rauber & Bethge, "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine Learning
    Models", ICLR 2018, algorithm 1; step lengths follow running success rates as in section 2.4.
    """

    sideways: float = 0.3
    inwards: float = 0.1
    brackets: int = 8
    tries: int = TRIES
    name: ClassVar[str] = "boundary"
    access: ClassVar[Access] = "labels"
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})
    needs_eps: ClassVar[bool] = False
    targeted: ClassVar[bool] = False

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
        current, found = random_starts(oracle, rng, self.tries)
        which = np.flatnonzero(found)
        current[which] = bisect(oracle, which, current[which], np.full(len(which), 2.0**-self.brackets))
        side, inward = np.full(len(x), self.sideways), np.full(len(x), self.inwards)
        side_rate, inward_rate = np.full(len(x), SIDEWAYS_RATE), np.full(len(x), INWARDS_RATE)
        turn = 0
        while True:
            which = np.flatnonzero(found & oracle.going)
            if len(which) == 0:
                return oracle.crafted()
            sphere = self._sideways(threat, x[which], current[which], side[which], rng)
            if turn % SIDEWAYS_EVERY == 0:
                tried = threat.domain.wander(x[which], x[which] + sphere * threat.unit, rng)
                fooled = oracle.fooled(which, tried)
                side_rate[which] += RATE_WEIGHT * SIDEWAYS_EVERY * (fooled - side_rate[which])
                side[which] *= np.exp(side_rate[which] - SIDEWAYS_RATE)
                side[which] = np.clip(side[which], LEAST_SIDE, 1.0)
                on = fooled & oracle.going[which]
                which, sphere = which[on], sphere[on]
            tried = threat.domain.wander(x[which], x[which] + sphere * (1 - inward[which])[:, None] * threat.unit, rng)
            fooled = oracle.fooled(which, tried)
            nearer = fooled & (threat.distances(x[which], tried) < threat.distances(x[which], current[which]))
            current[which[nearer]] = tried[nearer]
            inward_rate[which] += RATE_WEIGHT * (fooled - inward_rate[which])
            inward[which] = np.clip(inward[which] * np.exp(0.5 * (inward_rate[which] - INWARDS_RATE)), LEAST_IN, 0.5)
            turn += 1

    @staticmethod
    def _sideways(
        threat: ThreatModel,
        x: NDArray[np.float64],
        current: NDArray[np.float64],
        share: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> NDArray[np.float64]:
        """(m, d) offsets from the start rows, as long as those of `current`, turned at random by `share` (m,)."""
        offset = (current - x) / threat.unit
        length = np.maximum(lengths("l2", offset), 1e-300)[:, None]
        noise = rng.standard_normal(x.shape) * threat.domain.movable
        noise -= np.einsum("ij,ij->i", noise, offset)[:, None] / length**2 * offset
        noise /= np.maximum(lengths("l2", noise), 1e-300)[:, None]
        return (offset + noise * length * share[:, None]) / np.sqrt(1 + share**2)[:, None]
