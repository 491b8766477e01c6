"""DeepFool: straight to the nearest face of the linearised decision region, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, GradientModel, Model
from attacks.nearest import Nearest
from attacks.oracle import owned, start_rows, with_gradients
from attacks.threat import ThreatModel

#: Added to the gap between two logits, so that a row on the boundary still moves.
LEAST_GAP = 1e-6


@dataclass(frozen=True, slots=True)
class DeepFool:
    """DeepFool under L1, L2 and Linf. Features at the end of their range take no part in a step.

    Parameters
    ----------
    iterations : int
    overshoot : float
        By how much the sum of the steps is stretched.

    References
    ----------
    Moosavi-Dezfooli, Fawzi & Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR
    2016, algorithm 2; other norms: section 3.3.
    """

    iterations: int = 50
    overshoot: float = 0.02
    name: ClassVar[str] = "deepfool"
    access: ClassVar[Access] = "gradients"
    norms: ClassVar[frozenset[str]] = frozenset({"l1", "l2", "linf"})
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
        white, domain = with_gradients(self, model), threat.domain
        nearest = Nearest(x, threat)
        loose = x.copy()
        going = np.ones(len(x), dtype=np.bool_)
        for _ in range(self.iterations + 1):
            which = np.flatnonzero(going)
            if len(which) == 0:
                break
            stretched = x[which] + (1 + self.overshoot) * (loose[which] - x[which])
            legal = domain.repair(x[which], stretched)
            logits = white.logits(legal)
            hit = threat.reached(np.argmax(logits, axis=1), y[which])
            nearest.offer(which[hit], legal[hit])
            going[which[hit]] = False
            on = which[~hit]
            loose[on] += self._step(white, legal[~hit], logits[~hit], loose[on], y[on], threat)
            loose[on] = np.clip(loose[on], domain.low, domain.high)
        return owned(model, x, y, nearest.rows, threat)

    @staticmethod
    def _step(
        model: GradientModel,
        legal: NDArray[np.float64],
        logits: NDArray[np.float64],
        loose: NDArray[np.float64],
        y: NDArray[np.int64],
        threat: ThreatModel,
    ) -> NDArray[np.float64]:
        """(m, d) shortest steps to the nearest face, in feature units."""
        domain, unit, rows = threat.domain, threat.unit, np.arange(len(legal))
        classes = logits.shape[1]
        best = np.full(len(legal), np.inf)
        out = np.zeros_like(legal)
        now = np.argmax(logits, axis=1)
        for number in range(classes) if threat.goal == "any" else [int(threat.goal)]:
            weights = np.zeros_like(logits)
            weights[:, number] += 1.0
            weights[rows, now] -= 1.0
            slope = model.gradient(legal, weights) * unit
            room = domain.movable & np.where(slope > 0, loose < domain.high, loose > domain.low)
            slope = np.where(room, slope, 0.0)
            gap = logits[rows, now] - logits[:, number] + LEAST_GAP
            size = np.abs(slope)
            if threat.norm == "l2":
                dual = np.sqrt((slope * slope).sum(axis=1))
                step = slope / np.maximum(dual, 1e-300)[:, None]
            elif threat.norm == "linf":
                dual = size.sum(axis=1)
                step = np.sign(slope)
            else:
                dual = size.max(axis=1)
                step = np.where(np.arange(slope.shape[1]) == np.argmax(size, axis=1)[:, None], np.sign(slope), 0.0)
            length = gap / np.maximum(dual, 1e-300)
            better = (length < best) & (number != now) & (dual > 0)
            best[better] = length[better]
            out[better] = step[better] * length[better, None] * unit
        return out
