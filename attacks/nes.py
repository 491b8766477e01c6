"""NES: projected gradient ascent on a gradient estimated from scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, Model
from attacks.margin import log_scores, margins
from attacks.oracle import Oracle, start_rows
from attacks.pgd import steepest
from attacks.threat import ThreatModel, shrink


@dataclass(frozen=True, slots=True)
class Nes:
    """Natural evolution strategies: antithetic Gaussian finite differences of the margin, then a PGD step.

    Parameters
    ----------
    pairs : int
        Antithetic pairs a gradient estimate; a step costs two queries a pair and one for where it lands.
    sigma : float
        Length of the probing noise as a share of eps.
    step : float
        Length of a step as a share of eps.
    momentum : float
        Share of the last gradient that is kept.

    References
    ----------
    Ilyas, Engstrom, Athalye & Lin, "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018,
    algorithm 1.
    """

    pairs: int = 10
    sigma: float = 0.3
    step: float = 0.25
    momentum: float = 0.9
    name: ClassVar[str] = "nes"
    access: ClassVar[Access] = "scores"
    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    needs_eps: ClassVar[bool] = True
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
        oracle, domain, unit = Oracle(model, x, y, threat), threat.domain, threat.unit
        oracle.need(3, self)
        width = int(domain.movable.sum())
        spread = self.sigma * threat.radius / (np.sqrt(width) if threat.norm == "l2" else 1.0)
        loose, slope, last = x.copy(), np.zeros_like(x), x.copy()
        while True:
            which = np.flatnonzero(oracle.going & (oracle.left >= 3))
            if len(which) == 0:
                return oracle.crafted(last)
            pairs = np.minimum(self.pairs, (oracle.left[which] - 1) // 2)
            owner = np.repeat(np.arange(len(which)), pairs)
            noise = rng.standard_normal((len(owner), x.shape[1])) * domain.movable * spread * unit
            here, start = loose[which[owner]], x[which[owner]]
            up, down = (domain.wander(start, here + sign * noise, rng) for sign in (1.0, -1.0))
            both = np.concatenate([up, down])
            scores = oracle.ask(np.concatenate([which[owner], which[owner]]), both)
            lead = margins(log_scores(scores), np.concatenate([y[which[owner]]] * 2), threat)
            rise = lead[: len(owner)] - lead[len(owner) :]
            new = np.zeros((len(which), x.shape[1]))
            np.add.at(new, owner, rise[:, None] * (up - down) / (unit * unit))
            size = np.sqrt(np.einsum("ij,ij->i", new, new))[:, None]
            slope[which] = self.momentum * slope[which] + new / np.maximum(size, 1e-300)
            going = oracle.going[which]
            which = which[going]
            room = domain.movable & np.where(slope[which] > 0, loose[which] < domain.high, loose[which] > domain.low)
            moved = loose[which] + self.step * threat.radius * steepest(threat, slope[which], room)
            delta = (np.clip(moved, domain.low, domain.high) - x[which]) / unit
            radius = np.full(len(which), threat.radius)
            loose[which] = x[which] + shrink(threat.norm, np.where(domain.movable, delta, 0.0), radius) * unit
            last[which] = threat.project(x[which], loose[which])
            oracle.ask(which, last[which])
