"""Carlini and Wagner's attack: the smallest L2 change by gradient descent on distance plus hinged margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, GradientModel, Model
from attacks.margin import margin_slope, margins
from attacks.nearest import Nearest
from attacks.oracle import owned, start_rows, with_gradients
from attacks.threat import ThreatModel

#: Decay of Adam's first and second moments, and its guard (Kingma & Ba 2015).
ADAM = (0.9, 0.999, 1e-8)
#: Factor of the weight while no success bounds it from above.
GROWTH = 10.0


@dataclass(frozen=True, slots=True)
class CarliniWagner:
    """Carlini and Wagner, L2. The box is kept by projection (section V-B of the paper), not by a change of variables.

    Parameters
    ----------
    searches : int
        Weights tried for each row: grown until they succeed, then bisected.
    iterations : int
        Steps of Adam for each weight.
    rate : float
        Adam's step as a share of the feature's range.
    weight : float
        First weight of the margin against the squared distance.
    confidence : float
        Margin, in logits, that a row must have.

    References
    ----------
    Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017, section V-A, loss f6.
    """

    searches: int = 6
    iterations: int = 150
    rate: float = 0.01
    weight: float = 0.1
    confidence: float = 0.0
    name: ClassVar[str] = "carlini_wagner"
    access: ClassVar[Access] = "gradients"
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
        if len(x) == 0:
            return owned(model, x, y, x, threat)
        white = with_gradients(self, model)
        nearest = Nearest(x, threat)
        weight = np.full(len(x), self.weight)
        low, high = np.zeros(len(x)), np.full(len(x), np.inf)
        for _ in range(self.searches):
            reached = self._descend(white, x, y, threat, weight, nearest)
            high = np.where(reached, np.minimum(high, weight), high)
            low = np.where(reached, low, np.maximum(low, weight))
            weight = np.where(np.isfinite(high), (low + high) / 2, weight * GROWTH)
        return owned(model, x, y, nearest.rows, threat)

    def _descend(
        self,
        model: GradientModel,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        threat: ThreatModel,
        weight: NDArray[np.float64],
        nearest: Nearest,
    ) -> NDArray[np.bool_]:
        """One run of Adam; (n,) which rows were adversarial on the way."""
        domain, unit = threat.domain, threat.unit
        low, high = (domain.low - x) / unit, (domain.high - x) / unit
        delta, first, second = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
        reached = np.zeros(len(x), dtype=np.bool_)
        step = self.rate * domain.ranges / unit
        for turn in range(1, self.iterations + 1):
            legal = domain.repair(x, x + delta * unit)
            logits = model.logits(legal)
            margin = margins(logits, y, threat)
            hit = np.flatnonzero((margin > 0) & (margin >= self.confidence))
            reached[hit] = True
            nearest.offer(hit, legal[hit])
            pull = margin_slope(model, legal, logits, y, threat) * unit * (margin <= self.confidence)[:, None]
            gradient = np.where(domain.movable, 2 * delta - weight[:, None] * pull, 0.0)
            first = ADAM[0] * first + (1 - ADAM[0]) * gradient
            second = ADAM[1] * second + (1 - ADAM[1]) * gradient * gradient
            size = np.sqrt(second / (1 - ADAM[1] ** turn)) + ADAM[2]
            delta = np.clip(delta - step * first / (1 - ADAM[0] ** turn) / size, low, high)
        return reached
