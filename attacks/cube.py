"""Cube attack: random features go to corners of the eps-cube, kept when the margin improves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, Model
from attacks.oracle import Oracle, start_rows
from attacks.random_search import climb, random_features, shrunk
from attacks.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class Cube:
    """Cube attack by scores, Linf: for tree ensembles, whose nearest regions of another class mostly hold a corner.

    Other than `Square` on flat rows it begins at the start row and with half of the features, so that features which
    do not help stay untouched.

    Parameters
    ----------
    share : float
        Share of the features that the first change sends to a random end of their interval. It is halved on the
        schedule of Square; in the paper it stays what it is.

    References
    ----------
    Andriushchenko & Hein, "Provably Robust Boosted Decision Stumps and Trees against Adversarial Attacks", NeurIPS
    2019, section 4 and appendix (cube attack).
    """

    share: float = 0.5
    name: ClassVar[str] = "cube"
    access: ClassVar[Access] = "scores"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
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
        oracle.need(2, self)

        def cornered(push: NDArray[np.float64], turn: int) -> NDArray[np.float64]:
            changed = random_features(len(push), shrunk(self.share, turn, threat.budget), threat.domain.movable, rng)
            ends = rng.choice(np.array([-threat.radius, threat.radius]), size=push.shape)
            return np.where(changed, ends, push)

        return climb(oracle, cornered)
