"""Uniform noise: random legal rows within the ball. What any other attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, Model
from attacks.oracle import Oracle, start_rows
from attacks.pgd import random_inside
from attacks.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class UniformNoise:
    """Random rows of the ball, one query each, until one succeeds.

    Parameters
    ----------
    tries : int
        Most rows tried; the budget may end the attack before.
    """

    tries: int = 1000
    name: ClassVar[str] = "uniform_noise"
    access: ClassVar[Access] = "labels"
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
        oracle = Oracle(model, x, y, threat)
        oracle.need(1, self)
        last = x.copy()
        for _ in range(self.tries):
            which = np.flatnonzero(oracle.going)
            if len(which) == 0:
                break
            last[which] = threat.project(x[which], random_inside(x[which], threat, rng))
            oracle.ask(which, last[which])
        return oracle.crafted(last)
