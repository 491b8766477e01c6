"""ZOO: Carlini and Wagner's loss with derivatives estimated feature by feature from scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.carlini_wagner import ADAM
from attacks.contract import Access, Crafted, Model
from attacks.margin import log_scores, margins
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel, lengths

#: Power of 1 + crossings of the boundary by which the step is divided.
SETTLING = 1.5
#: Factor by which the margin gains weight after a step that ends before the boundary, and loses it behind.
GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Zoo:
    """Zeroth-order optimisation, L2: Adam on a few random features a step.

    Derivatives are difference quotients over the legal neighbours of a row, so whole numbers and categories have them
    too. Instead of a search for the weight of the margin against the squared distance, the weight follows what it is at
    the boundary, where both pull equally: a little more before the boundary, a little less behind it. The step shrinks
    with every crossing.

    Parameters
    ----------
    features : int
        Features a step; each costs two queries, and every step one for where it lands.
    probe : float
        Half the width of a difference quotient, as a share of the feature's range. Wide enough to cross thresholds of
        tree ensembles.
    rate : float
        Adam's step as a share of the feature's range.

    References
    ----------
    Chen, Zhang, Sharma, Yi & Hsieh, "ZOO: Zeroth Order Optimization Based Black-box Attacks to Deep Neural Networks
    without Training Substitute Models", AISec 2017, algorithm 2 (ZOO-Adam), equations 4 and 6.
    """

    features: int = 16
    probe: float = 0.1
    rate: float = 0.1
    name: ClassVar[str] = "zoo"
    access: ClassVar[Access] = "scores"
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})
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
        oracle, domain, unit = Oracle(model, x, y, threat), threat.domain, threat.unit
        oracle.need(4, self)
        movable = np.flatnonzero(domain.movable)
        count = min(self.features, len(movable))
        delta, first, second, turns, slopes = (np.zeros_like(x) for _ in range(5))
        push = np.ones(len(x))
        rate, crossings = np.full(len(x), self.rate), np.zeros(len(x))
        lead = np.full(len(x), -np.inf)
        if len(x):
            lead = margins(log_scores(oracle.ask(np.arange(len(x)), x)), y, threat)
        legal = x.copy()
        while True:
            which = np.flatnonzero(oracle.going & (oracle.left >= 3))
            if len(which) == 0:
                return oracle.crafted(threat.project(x, x + delta * unit))
            take = np.minimum(count, (oracle.left[which] - 1) // 2)
            draw = np.argsort(rng.random((len(which), len(movable))), axis=1)[:, :count]
            kept = np.arange(count) < take[:, None]
            owner, column = np.repeat(np.arange(len(which)), take), movable[draw[kept]]
            sample = which[owner]
            probe = self.probe * domain.ranges[column]
            up, down = (domain.moved(legal[sample], column, sign * probe) for sign in (1.0, -1.0))
            scores = oracle.ask(np.concatenate([sample, sample]), np.concatenate([up, down]))
            both = margins(log_scores(scores), np.concatenate([y[sample], y[sample]]), threat)
            place = np.arange(len(sample))
            width = (up[place, column] - down[place, column]) / unit[column]
            rise = both[: len(sample)] - both[len(sample) :]
            slope = np.where(width != 0, rise / np.where(width != 0, width, 1.0), 0.0)
            slopes[sample, column] = slope
            steep = np.maximum(lengths("l2", slopes[which]), 1e-300)
            weight = push[which] * 2 * np.maximum(lengths("l2", delta[which]), self.rate) / steep
            gradient = 2 * delta[sample, column] - weight[owner] * slope
            turns[sample, column] += 1
            first[sample, column] = ADAM[0] * first[sample, column] + (1 - ADAM[0]) * gradient
            second[sample, column] = ADAM[1] * second[sample, column] + (1 - ADAM[1]) * gradient**2
            size = np.sqrt(second[sample, column] / (1 - ADAM[1] ** turns[sample, column])) + ADAM[2]
            step = first[sample, column] / (1 - ADAM[0] ** turns[sample, column]) / size
            moved = delta[sample, column] - rate[sample] * domain.ranges[column] / unit[column] * step
            low, high = ((side[column] - x[sample, column]) / unit[column] for side in (domain.low, domain.high))
            delta[sample, column] = np.clip(moved, low, high)
            which = which[oracle.going[which]]
            legal[which] = domain.repair(x[which], x[which] + delta[which] * unit)
            before = lead[which] > 0
            lead[which] = margins(log_scores(oracle.ask(which, legal[which])), y[which], threat)
            crossed = before != (lead[which] > 0)
            crossings[which] += crossed
            rate = self.rate / (1 + crossings) ** SETTLING
            push[which] *= np.where(lead[which] > 0, 1 / GROWTH, GROWTH)
