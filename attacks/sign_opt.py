"""Sign-OPT: shortens the distance to the boundary along a direction, by the signs of single labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import TRIES, bisect, random_starts
from attacks.contract import Access, Crafted, Model
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel, lengths

#: Halvings and doublings of one line search.
TURNS = 8


@dataclass(frozen=True, slots=True)
class SignOpt:
    """Sign-OPT by predicted classes alone, L2.

    Parameters
    ----------
    evaluations : int
        Labels a gradient estimate, one each.
    radius : float
        Length of the probing noise against the unit direction.
    step : float
        First step along the estimated gradient, against the unit direction.
    gap : float
        Width of the last bracket of a bisection, as a share of the distance.
    tries : int
        Random rows tried for a first adversarial one.

    References
    ----------
    Cheng, Singh, Chen, Chen, Liu & Hsieh, "Sign-OPT: A Query-Efficient Hard-label Adversarial Attack", ICLR 2020,
    algorithm 1, equation 6.
    """

    evaluations: int = 30
    radius: float = 0.1
    step: float = 0.5
    gap: float = 0.01
    tries: int = TRIES
    name: ClassVar[str] = "sign_opt"
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
        current[which] = bisect(oracle, which, current[which], np.full(len(which), self.gap))
        step = np.full(len(x), self.step)
        while True:
            which = np.flatnonzero(found & oracle.going & (oracle.left >= 3))
            if len(which) == 0:
                return oracle.crafted()
            slope = self._slope(oracle, which, current[which], rng)
            current[which], step[which] = self._descend(oracle, which, current[which], slope, step[which])

    def _slope(
        self, oracle: Oracle, which: NDArray[np.intp], rows: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(m, d) unit directions in which the distance to the boundary shrinks."""
        threat, domain = oracle.threat, oracle.threat.domain
        x = oracle.x[which]
        offset = (rows - x) / threat.unit
        far = np.maximum(lengths("l2", offset), 1e-300)
        counts = np.minimum(self.evaluations, oracle.left[which] - 2)
        owner = np.repeat(np.arange(len(which)), counts)
        noise = rng.standard_normal((len(owner), x.shape[1])) * domain.movable
        noise /= np.maximum(lengths("l2", noise), 1e-300)[:, None]
        turned = offset[owner] / far[owner, None] + self.radius * noise
        turned *= (far[owner] / lengths("l2", turned))[:, None]
        tried = domain.wander(x[owner], x[owner] + turned * threat.unit, rng)
        signs = np.where(oracle.fooled(which[owner], tried), 1.0, -1.0)
        slope = np.zeros_like(x)
        np.add.at(slope, owner, signs[:, None] * noise)
        return slope / np.maximum(lengths("l2", slope), 1e-300)[:, None]

    def _descend(
        self,
        oracle: Oracle,
        which: NDArray[np.intp],
        rows: NDArray[np.float64],
        slope: NDArray[np.float64],
        step: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Nearer adversarial rows (m, d) and the next steps (m,).

        A step is halved until the turned direction is adversarial at the present distance; then the boundary is
        searched along it.
        """
        threat, domain = oracle.threat, oracle.threat.domain
        x = oracle.x[which]
        offset = (rows - x) / threat.unit
        far = np.maximum(lengths("l2", offset), 1e-300)
        out, step = rows.copy(), step.copy()
        flying = np.ones(len(which), dtype=np.bool_)
        for _ in range(TURNS):
            up = np.flatnonzero(flying & (oracle.left[which] > 1) & oracle.going[which])
            if len(up) == 0:
                break
            turned = offset[up] / far[up, None] + step[up, None] * slope[up]
            turned *= (far[up] / np.maximum(lengths("l2", turned), 1e-300))[:, None]
            tried = domain.repair(x[up], x[up] + turned * threat.unit)
            fooled = oracle.fooled(which[up], tried)
            out[up[fooled]] = tried[fooled]
            flying[up[fooled]] = False
            step[up[~fooled]] /= 2
        landed = np.flatnonzero(~flying)
        step[landed] *= 2
        found = bisect(oracle, which[landed], out[landed], np.full(len(landed), self.gap))
        nearer = threat.distances(x[landed], found) < threat.distances(x[landed], rows[landed])
        out[landed] = np.where(nearer[:, None], found, rows[landed])
        return out, np.clip(step, 1e-3, 2.0)
