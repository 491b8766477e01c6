"""OPT: shortens the distance to the boundary along a direction, by how much that distance differs beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import TRIES, affordable, bisect
from attacks.contract import Access, Crafted, Model
from attacks.direction_search import TURNS, shorten, turned_at_random
from attacks.oracle import Oracle
from attacks.threat import ThreatModel, lengths

#: First stride of the coarse line search, as a share of the distance; it doubles with every turn.
STRIDE = 0.05


@dataclass(frozen=True, slots=True)
class Opt:
    """OPT by predicted classes alone, L2.

    The gradient of g(theta), the distance to the boundary along theta, is the mean over random u of
    (g(theta + radius u) - g(theta)) / radius u; each g is a line search, coarse and then by bisection. `SignOpt` spends
    one label where this spends a line search.

    Parameters
    ----------
    evaluations : int
        Line searches a gradient estimate.
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
    Cheng, Le, Chen, Zhang, Yi & Hsieh, "Query-Efficient Hard-Label Black-box Attack: An Optimization-Based Approach",
    ICLR 2019, algorithms 1 and 2.
    """

    evaluations: int = 10
    radius: float = 0.3
    step: float = 0.5
    gap: float = 0.01
    tries: int = TRIES
    name: ClassVar[str] = "opt"
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
        return shorten(self, model, x, y, threat, rng, self._slope)

    def _slope(
        self, oracle: Oracle, which: NDArray[np.intp], rows: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(m, d) unit directions in which the distance to the boundary shrinks."""
        owner = np.repeat(np.arange(len(which)), self.evaluations)
        noise, turned = turned_at_random(oracle, which, rows, owner, self.radius, rng)
        share = self._reached(oracle, which[owner], turned)
        slope = np.zeros_like(rows)
        np.add.at(slope, owner, (1.0 - share)[:, None] * noise)
        return slope / np.maximum(lengths("l2", slope), 1e-300)[:, None]

    def _reached(self, oracle: Oracle, samples: NDArray[np.intp], offset: NDArray[np.float64]) -> NDArray[np.float64]:
        """(q,) how far along offsets (q, d) from their start rows the boundary lies, as shares of their lengths.

        Where the queries end first, 1: the distance that the direction had before.
        """
        x, domain, unit = oracle.x[samples], oracle.threat.domain, oracle.threat.unit
        share, low, high = np.ones(len(samples)), np.zeros(len(samples)), np.full(len(samples), np.inf)
        best = x.copy()
        for turn in range(TURNS):
            open_ = affordable(oracle, samples, np.flatnonzero((low == 0) | np.isinf(high)), reserve=2)
            if len(open_) == 0:
                break
            tried = domain.repair(x[open_], x[open_] + share[open_, None] * offset[open_] * unit)
            fooled = oracle.fooled(samples[open_], tried)
            best[open_[fooled]] = tried[fooled]
            high[open_[fooled]] = share[open_[fooled]]
            low[open_[~fooled]] = share[open_[~fooled]]
            share[open_] *= np.where(fooled, 1 / (1 + STRIDE * 2**turn), 1 + STRIDE * 2**turn)
        reached = np.where(np.isinf(high) & (low > 0), low, 1.0)
        known = np.flatnonzero(np.isfinite(high))
        found = bisect(
            oracle, samples[known], best[known], np.full(len(known), self.gap), reserve=2, low=low[known] / high[known]
        )
        length = np.maximum(lengths("l2", offset[known]), 1e-300)
        reached[known] = lengths("l2", (found - x[known]) / unit) / length
        return reached
