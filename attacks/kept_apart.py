"""A decision-based attack that keeps its queries apart, so that no query looks like a copy of an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import TRIES, random_starts
from attacks.contract import Access, Crafted, Model
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel, lengths

#: Directions tried to push a query away from the earlier ones; the last is asked even if it is too near.
PUSHES = 6


class Spaced:
    """An oracle whose questions about one start row keep a distance from each other.

    Parameters
    ----------
    oracle : Oracle
    rng : numpy.random.Generator
    """

    def __init__(self, oracle: Oracle, rng: np.random.Generator) -> None:
        self.oracle = oracle
        self._rng = rng
        self._count = np.zeros(len(oracle.x), dtype=np.intp)
        self._past = np.empty((len(oracle.x), 16, oracle.x.shape[1]))

    def fooled(
        self, which: NDArray[np.intp], rows: NDArray[np.float64], apart: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Ask one row (m, d) for each of the different start rows `which`, `apart` (m,) from all earlier ones.

        Returns the rows that were asked, and which fulfil the goal.
        """
        threat, domain = self.oracle.threat, self.oracle.threat.domain
        tried = rows.copy()
        near = np.flatnonzero(self._gap(which, tried) < apart)
        for turn in range(PUSHES):
            if len(near) == 0:
                break
            noise = self._rng.standard_normal((len(near), rows.shape[1])) * domain.movable
            noise /= np.maximum(lengths("l2", noise), 1e-300)[:, None]
            push = noise * (apart[near] * (1 + turn / PUSHES))[:, None] * threat.unit
            tried[near] = domain.wander(self.oracle.x[which[near]], rows[near] + push, self._rng)
            near = near[self._gap(which[near], tried[near]) < apart[near]]
        self._remember(which, tried)
        return tried, self.oracle.fooled(which, tried)

    def _gap(self, which: NDArray[np.intp], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m,) distance to the nearest earlier question and to the start row."""
        unit = self.oracle.threat.unit
        own = lengths("l2", (rows - self.oracle.x[which]) / unit)
        most = int(self._count[which].max(initial=0))
        if most == 0:
            return own
        past = (self._past[which, :most] - rows[:, None, :]) / unit
        distance = np.sqrt(np.einsum("ijk,ijk->ij", past, past))
        distance[np.arange(most) >= self._count[which][:, None]] = np.inf
        return np.minimum(own, distance.min(axis=1))

    def _remember(self, which: NDArray[np.intp], rows: NDArray[np.float64]) -> None:
        if self._count[which].max(initial=0) == self._past.shape[1]:
            self._past = np.concatenate([self._past, np.empty_like(self._past)], axis=1)
        self._past[which, self._count[which]] = rows
        self._count[which] += 1


@dataclass(frozen=True, slots=True)
class KeptApart:
    """HopSkipJump with wide noise, few bisections and no two queries near each other, L2.

    It stands for attackers who know of query-similarity defences. Rejections, which OARS tunes its steps by, do not
    exist here (Vedette observes and never rejects), so the distance is fixed as a share of what is still to go. The
    price is a larger final distance at the same number of queries.

    Parameters
    ----------
    apart : float
        Least distance between two queries, as a share of the present distance from the start row.
    radius : float
        Radius of the gradient estimate, as a share of that distance.
    evaluations : int
        Queries of a gradient estimate.
    brackets : int
        Halvings of a bisection.
    jitter : float
        Noise added to every row of a bisection, as a share of half its bracket: no three rows lie on one line.
    share : float
        Where a bisection divides its bracket, seen from the start row.
    tries : int
        Random rows tried for a first adversarial one.

    References
    ----------
    Feng, Hooda, Mangaokar, Fawaz, Jha & Prakash, "Stateful Defenses for Machine Learning Models Are Not Yet Secure
    Against Black-box Attacks", ACM CCS 2023, section 4 (adapted proposal distribution and step).
    """

    apart: float = 0.3
    radius: float = 0.5
    evaluations: int = 20
    brackets: int = 3
    jitter: float = 0.0
    share: float = 0.5
    tries: int = TRIES
    name: ClassVar[str] = "kept_apart"
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
        oracle, domain, unit = Oracle(model, x, y, threat), threat.domain, threat.unit
        oracle.need(2, self)
        current, found = random_starts(oracle, rng, self.tries)
        spaced = Spaced(oracle, rng)
        which = np.flatnonzero(found)
        self._approach(spaced, which, current, rng)
        turn = 0
        while True:
            turn += 1
            which = np.flatnonzero(found & oracle.going)
            if len(which) == 0:
                return oracle.crafted()
            centre, far = current[which].copy(), threat.distances(x[which], current[which])
            slope, signs, steps = np.zeros_like(centre), [], []
            asking = np.arange(len(which))
            for _ in range(self.evaluations):
                asking = asking[oracle.going[which[asking]]]
                noise = rng.standard_normal((len(asking), x.shape[1])) * domain.movable
                noise /= np.maximum(lengths("l2", noise), 1e-300)[:, None]
                wanted = centre[asking] + noise * (self.radius * far[asking])[:, None] * unit
                wanted = domain.wander(x[which[asking]], wanted, rng)
                tried, fooled = spaced.fooled(which[asking], wanted, self.apart * far[asking])
                step = np.zeros_like(centre)
                step[asking] = (tried - centre[asking]) / unit
                sign = np.zeros(len(which))
                sign[asking] = np.where(fooled, 1.0, -1.0)
                steps.append(step)
                signs.append(sign)
                nearer = fooled & (threat.distances(x[which[asking]], tried) < far[asking])
                current[which[asking[nearer]]] = tried[nearer]
            sign_table = np.array(signs)
            asked = np.maximum((sign_table != 0).sum(axis=0), 1)
            mean = sign_table.sum(axis=0) / asked
            weights = np.where(np.abs(mean) < 1, sign_table - mean, sign_table) * (sign_table != 0)
            slope = np.einsum("ij,ijk->jk", weights, np.array(steps))
            slope /= np.maximum(lengths("l2", slope), 1e-300)[:, None]
            asking = np.flatnonzero(oracle.going[which])
            length = (self.radius * far[asking] / np.sqrt(turn))[:, None]
            jump = domain.repair(x[which[asking]], centre[asking] + length * slope[asking] * unit)
            tried, fooled = spaced.fooled(which[asking], jump, self.apart * far[asking])
            landed = which[asking[fooled]]
            start = current[landed].copy()
            current[landed] = tried[fooled]
            self._approach(spaced, landed, current, rng)
            worse = threat.distances(x[landed], start) < threat.distances(x[landed], current[landed])
            current[landed[worse]] = start[worse]

    def _approach(
        self, spaced: Spaced, which: NDArray[np.intp], current: NDArray[np.float64], rng: np.random.Generator
    ) -> None:
        """A coarse bisection of `current`, in place, towards the start rows."""
        oracle = spaced.oracle
        threat, domain = oracle.threat, oracle.threat.domain
        low, high = np.zeros(len(which)), np.ones(len(which))
        end = current[which].copy()
        for _ in range(self.brackets):
            open_ = np.flatnonzero(oracle.going[which])
            if len(open_) == 0:
                return
            x = oracle.x[which[open_]]
            share = low[open_] + self.share * (high[open_] - low[open_])
            wanted = domain.repair(x, x + share[:, None] * (end[open_] - x))
            if self.jitter > 0:
                noise = rng.standard_normal(x.shape) * domain.movable
                noise /= np.maximum(lengths("l2", noise), 1e-300)[:, None]
                half = threat.distances(x, end[open_]) * (high[open_] - low[open_]) / 2
                wanted = domain.wander(x, wanted + noise * (self.jitter * half)[:, None] * threat.unit, rng)
            far = threat.distances(x, current[which[open_]])
            tried, fooled = spaced.fooled(which[open_], wanted, self.apart * far / 2)
            nearer = fooled & (threat.distances(x, tried) < far)
            current[which[open_[nearer]]] = tried[nearer]
            high[open_] = np.where(fooled, share, high[open_])
            low[open_] = np.where(fooled, low[open_], share)
