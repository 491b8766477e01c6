"""SimBA: one feature up or down at a time, kept when the score of the true class falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, Model
from attacks.margin import log_scores, margins
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class SimBA:
    """Simple black-box attack over single features in random order.

    Parameters
    ----------
    step : float
        Length of a step as a share of the feature's range (of eps where that is smaller, under Linf).

    References
    ----------
    Guo, Gardner, You, Wilson & Weinberger, "Simple Black-box Adversarial Attacks", ICML 2019, algorithm 1.
    """

    step: float = 0.2
    name: ClassVar[str] = "simba"
    access: ClassVar[Access] = "scores"
    norms: ClassVar[frozenset[str]] = frozenset({"l0", "l1", "l2", "linf"})
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
        oracle, domain = Oracle(model, x, y, threat), threat.domain
        oracle.need(2, self)
        columns = np.flatnonzero(domain.movable)
        step = self.step * domain.ranges
        if threat.norm == "linf" and threat.eps is not None:
            step = np.minimum(step, threat.radius * threat.unit)
        current = x.copy()
        every = np.arange(len(x))
        lead = margins(log_scores(oracle.ask(every, x)), y, threat) if len(x) else np.empty(0)
        order = rng.permuted(np.tile(columns, (len(x), 1)), axis=1)
        place = np.zeros(len(x), dtype=np.intp)
        first = rng.choice(np.array([-1.0, 1.0]), size=order.shape)
        back = np.zeros(len(x), dtype=np.bool_)
        idle = np.zeros(len(x), dtype=np.intp)
        while True:
            which = np.flatnonzero(oracle.going & (lead <= 0) & (idle <= 2 * len(columns)))
            if len(which) == 0:
                return oracle.crafted(current)
            column = order[which, place[which]]
            sign = first[which, place[which]] * np.where(back[which], -1.0, 1.0)
            tried = threat.project(x[which], domain.moved(current[which], column, sign * step[column]))
            moved = (tried != current[which]).any(axis=1)
            idle[which] = np.where(moved, 0, idle[which] + 1)
            risen = np.zeros(len(which), dtype=np.bool_)
            asking = which[moved]
            new = (
                margins(log_scores(oracle.ask(asking, tried[moved])), y[asking], threat) if len(asking) else np.empty(0)
            )
            better = new > lead[asking]
            current[asking[better]], lead[asking[better]] = tried[moved][better], new[better]
            risen[np.flatnonzero(moved)[better]] = True
            on = risen | back[which]
            back[which] = ~on
            place[which[on]] += 1
            over = which[place[which] == len(columns)]
            if len(over):
                order[over] = rng.permuted(order[over], axis=1)
                place[over] = 0
