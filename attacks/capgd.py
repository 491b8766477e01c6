"""Constrained adaptive PGD: for tables, where a row has to stay a legal row at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, GradientModel, Model
from attacks.margin import margins, uphill
from attacks.oracle import owned, start_rows, with_gradients
from attacks.pgd import random_inside, steepest
from attacks.threat import ThreatModel, shrink

#: Share of the last move that is kept, and share of improving steps below which the step is halved (Croce & Hein 2020).
MOMENTUM, IMPROVING = 0.75, 0.75
#: Distance between the first two checkpoints, its decrease, and its least value, as shares of the steps (ibid.).
FIRST_PERIOD, PERIOD_CUT, LEAST_PERIOD = 0.22, 0.03, 0.06


def checkpoints(steps: int) -> set[int]:
    """Steps after which the step length is looked at."""
    at, period, found = 0, FIRST_PERIOD, set[int]()
    while at < steps:
        at += max(1, round(period * steps))
        found.add(at)
        period = max(period - PERIOD_CUT, LEAST_PERIOD)
    return found


@dataclass(frozen=True, slots=True)
class Capgd:
    """PGD whose iterate is repaired at every step, with momentum and a step length that adapts.

    The first run starts at the row itself, later ones at random rows of the ball. Ranges, whole numbers, categories and
    linear relations hold at every row whose gradient is taken.

    Parameters
    ----------
    steps : int
    restarts : int
    step : float
        First step as a share of eps (under L0: of the feature ranges).

    References
    ----------
    Simonetto, Ghamizi & Cordy, "Constrained Adaptive Attack: Effective Adversarial Attack Against Deep Neural Networks
    for Tabular Data", NeurIPS 2024, algorithm 1. Step length: Croce & Hein, "Reliable Evaluation of Adversarial
    Robustness with an Ensemble of Diverse Parameter-free Attacks", ICML 2020, section 3.
    """

    steps: int = 50
    restarts: int = 2
    step: float = 1.0
    name: ClassVar[str] = "capgd"
    access: ClassVar[Access] = "gradients"
    norms: ClassVar[frozenset[str]] = frozenset({"l0", "l1", "l2", "linf"})
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
        if len(x) == 0:
            return owned(model, x, y, x, threat)
        white = with_gradients(self, model)
        best, lead = x.copy(), margins(white.logits(x), y, threat)
        for run in range(self.restarts):
            which = np.flatnonzero(lead <= 0)
            if len(which) == 0:
                break
            start = x[which] if run == 0 else random_inside(x[which], threat, rng)
            found, margin = self._run(white, x[which], y[which], start, threat)
            better = margin > lead[which]
            best[which[better]], lead[which[better]] = found[better], margin[better]
        return owned(model, x, y, best, threat)

    def _run(
        self,
        model: GradientModel,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        start: NDArray[np.float64],
        threat: ThreatModel,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The legal rows (m, d) with the largest margins (m,) on the way."""
        domain = threat.domain
        unbounded = 1.0 if threat.norm == "l0" else threat.radius
        length = np.full((len(x), 1), self.step * unbounded)
        loose = np.clip(start, domain.low, domain.high)
        before = loose
        legal = threat.project(x, loose)
        logits = model.logits(legal)
        now = margins(logits, y, threat)
        best, lead, best_loose = legal.copy(), now.copy(), loose.copy()
        improved, halved, lead_then = np.zeros(len(x)), np.zeros(len(x), dtype=np.bool_), lead.copy()
        looked, marks = 0, checkpoints(self.steps)
        for turn in range(1, self.steps + 1):
            gradient = uphill(model, legal, logits, y, threat)
            room = domain.movable & np.where(gradient > 0, loose < domain.high, loose > domain.low)
            ahead = self._inside(x, loose + length * steepest(threat, gradient, room), threat)
            kept = 1.0 if turn == 1 else MOMENTUM
            moved = self._inside(x, loose + kept * (ahead - loose) + (1 - kept) * (loose - before), threat)
            before, loose = loose, moved
            legal = threat.project(x, loose)
            logits = model.logits(legal)
            margin = margins(logits, y, threat)
            improved += margin > now
            now = margin
            better = margin > lead
            best[better], lead[better], best_loose[better] = legal[better], margin[better], loose[better]
            if turn in marks:
                lazy = improved < IMPROVING * (turn - looked)
                stuck = ~halved & (lead <= lead_then)
                halved = lazy | stuck
                length[halved] /= 2
                loose = np.where(halved[:, None], best_loose, loose)
                before = np.where(halved[:, None], best_loose, before)
                legal = threat.project(x, loose)
                logits = model.logits(legal)
                now = margins(logits, y, threat)
                improved[:], lead_then, looked = 0.0, lead.copy(), turn
        return best, lead

    @staticmethod
    def _inside(x: NDArray[np.float64], moved: NDArray[np.float64], threat: ThreatModel) -> NDArray[np.float64]:
        """Rows in the ball and in the ranges, not rounded, so that small steps add up."""
        domain, unit = threat.domain, threat.unit
        delta = np.where(domain.movable, (np.clip(moved, domain.low, domain.high) - x) / unit, 0.0)
        return x + shrink(threat.norm, delta, np.full(len(x), threat.radius)) * unit
