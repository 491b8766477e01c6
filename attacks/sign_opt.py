"""Sign-OPT: shortens the distance to the boundary along a direction, by the signs of single labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import TRIES
from attacks.contract import Access, Crafted, Model
from attacks.direction_search import shorten, turned_at_random
from attacks.oracle import Oracle
from attacks.threat import ThreatModel, lengths


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
        return shorten(self, model, x, y, threat, rng, self._slope)

    def _slope(
        self, oracle: Oracle, which: NDArray[np.intp], rows: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(m, d) unit directions in which the distance to the boundary shrinks."""
        threat = oracle.threat
        x = oracle.x[which]
        counts = np.minimum(self.evaluations, oracle.left[which] - 2)
        owner = np.repeat(np.arange(len(which)), counts)
        noise, turned = turned_at_random(oracle, which, rows, owner, self.radius, rng)
        tried = threat.domain.wander(x[owner], x[owner] + turned * threat.unit, rng)
        signs = np.where(oracle.fooled(which[owner], tried), 1.0, -1.0)
        slope = np.zeros_like(x)
        np.add.at(slope, owner, signs[:, None] * noise)
        return slope / np.maximum(lengths("l2", slope), 1e-300)[:, None]
