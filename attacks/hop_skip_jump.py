"""HopSkipJump: walks along the decision boundary by the gradient that labels around it reveal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import TRIES, bisect, random_starts
from attacks.contract import Access, Crafted, Model
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel, lengths

#: Radius of the first gradient estimate, in feature ranges (the authors' choice).
FIRST_RADIUS = 0.1
#: Halvings of a step before the iterate is kept.
HALVINGS = 25


@dataclass(frozen=True, slots=True)
class HopSkipJump:
    """HopSkipJump by predicted classes alone, L2 and Linf.

    Parameters
    ----------
    first_evaluations, most_evaluations : int
        Queries of the first gradient estimate; the t-th has sqrt(t) times as many, up to the second number.
    iterations : int
        Most iterations; the budget usually ends the attack.
    gamma : float
        Width of the last bracket of a bisection is gamma / d^1.5 (L2) or gamma / d^2 (Linf) of the distance.
    radius : float
        Least radius of a gradient estimate as a share of the distance; 0 follows the paper, whose gamma / d is too
        small for the steps of tree ensembles (breast-cancer forest, L2, 250 queries: median .35, with .1 .32, with .4
        .26).
    tries : int
        Random rows tried for a first adversarial one.

    References
    ----------
    Chen, Jordan & Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE S&P 2020, algorithm 2;
    gradient estimate with baseline: equation 16; step: section IV-B.
    """

    first_evaluations: int = 20
    most_evaluations: int = 1000
    iterations: int = 64
    gamma: float = 1.0
    radius: float = 0.1
    tries: int = TRIES
    name: ClassVar[str] = "hop_skip_jump"
    access: ClassVar[Access] = "labels"
    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
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
        width = int(threat.domain.movable.sum())
        gap = self.gamma / width ** (1.5 if threat.norm == "l2" else 2.0)
        current, found = random_starts(oracle, rng, self.tries)
        which = np.flatnonzero(found)
        current[which] = bisect(oracle, which, current[which], np.full(len(which), gap))
        for turn in range(1, self.iterations + 1):
            which = np.flatnonzero(found & oracle.going & (oracle.left >= 3))
            if len(which) == 0:
                break
            distance = threat.distances(x[which], current[which])
            if turn == 1:
                radius = FIRST_RADIUS * threat.domain.ranges / threat.unit
                reach = np.broadcast_to(radius, (len(which), len(radius)))
            else:
                reach = np.broadcast_to(
                    (max(self.gamma / width, self.radius) * distance)[:, None], (len(which), x.shape[1])
                )
            wanted = min(int(self.first_evaluations * np.sqrt(turn)), self.most_evaluations)
            counts = np.minimum(wanted, oracle.left[which] - 2)
            slope = self._slope(oracle, which, current[which], reach, counts, rng)
            landed = self._jump(oracle, which, current[which], slope, distance / np.sqrt(turn))
            current[which] = bisect(oracle, which, landed, np.full(len(which), gap))
        return oracle.crafted()

    def _slope(
        self,
        oracle: Oracle,
        which: NDArray[np.intp],
        rows: NDArray[np.float64],
        reach: NDArray[np.float64],
        counts: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[np.float64]:
        """(m, d) unit steps into the adversarial region, from `counts` (m,) labels around each row."""
        threat, domain = oracle.threat, oracle.threat.domain
        most, width = int(counts.max()), rows.shape[1]
        shape = (len(rows), most, width)
        noise = rng.standard_normal(shape) if threat.norm == "l2" else rng.uniform(-1, 1, shape)
        noise *= domain.movable
        noise /= np.maximum(np.sqrt(np.einsum("ijk,ijk->ij", noise, noise)), 1e-300)[:, :, None]
        asked = np.arange(most) < counts[:, None]
        owner = np.repeat(np.arange(len(rows)), counts)
        steps = noise[asked] * reach[owner] * threat.unit
        starts = oracle.x[which[owner]]
        tried = domain.wander(starts, rows[owner] + steps, rng)
        signs = np.where(oracle.fooled(which[owner], tried), 1.0, -1.0)
        mean = np.bincount(owner, signs, len(rows)) / counts
        mixed = np.abs(mean) < 1
        weights = np.where(mixed[owner], signs - mean[owner], signs)
        sizes = np.where(domain.movable, reach[owner] * threat.unit, 1.0)  # constant features have a range of 0
        directions = (tried - rows[owner]) / sizes
        slope = np.zeros((len(rows), width))
        np.add.at(slope, owner, weights[:, None] * directions)
        if threat.norm == "linf":
            return np.sign(slope)
        return slope / np.maximum(lengths("l2", slope), 1e-300)[:, None]

    @staticmethod
    def _jump(
        oracle: Oracle,
        which: NDArray[np.intp],
        rows: NDArray[np.float64],
        slope: NDArray[np.float64],
        length: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """(m, d) adversarial rows: a step along the slope, halved until it lands in the adversarial region."""
        threat, domain = oracle.threat, oracle.threat.domain
        out, length = rows.copy(), length.copy()
        flying = np.ones(len(rows), dtype=np.bool_)
        for _ in range(HALVINGS):
            up = np.flatnonzero(flying & (oracle.left[which] > 1) & oracle.going[which])
            if len(up) == 0:
                break
            tried = domain.repair(oracle.x[which[up]], rows[up] + length[up, None] * slope[up] * threat.unit)
            moved = (tried != rows[up]).any(axis=1)
            flying[up[~moved]] = False
            up, tried = up[moved], tried[moved]
            fooled = oracle.fooled(which[up], tried)
            out[up[fooled]] = tried[fooled]
            flying[up[fooled]] = False
            length[up] /= 2
        return out
