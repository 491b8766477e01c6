"""Projected gradient ascent: PGD on the model itself, the same on a surrogate, and its single-step form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, GradientModel, Model
from attacks.margin import margins, uphill
from attacks.oracle import owned, start_rows, with_gradients
from attacks.threat import ThreatModel, lengths, shrink

#: Share of the features that one step under L1 moves (Tramer & Boneh 2019, SLIDE, appendix).
SPARSE_SHARE = 0.1


def steepest(threat: ThreatModel, gradient: NDArray[np.float64], room: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, d) steps of length 1, in units of the threat model's norm, that climb most.

    `room` (n, d) says where a feature can still move uphill. Under L0 the length is that of the largest entry, in
    feature ranges.
    """
    if threat.norm == "l0":
        slope = np.where(room, gradient * threat.domain.ranges, 0.0)
        return slope / np.maximum(np.abs(slope).max(axis=1, keepdims=True), 1e-300) * threat.domain.ranges
    slope = np.where(room, gradient * threat.unit, 0.0)
    if threat.norm == "linf":
        return np.sign(slope) * threat.unit
    if threat.norm == "l2":
        return slope / np.maximum(lengths("l2", slope), 1e-300)[:, None] * threat.unit
    count = max(1, round(SPARSE_SHARE * int(threat.domain.movable.sum())))
    size = np.abs(slope)
    kept = size >= np.partition(size, -count, axis=1)[:, [-count]]
    return np.where(kept, np.sign(slope), 0.0) / count * threat.unit


def random_inside(x: NDArray[np.float64], threat: ThreatModel, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random rows (n, d) in the ball around `x`, not yet made legal."""
    width = threat.domain.width
    noise = np.where(threat.domain.movable, rng.uniform(-1, 1, x.shape), 0.0)
    if threat.norm == "linf":
        return x + noise * threat.radius * threat.unit
    if threat.norm == "l0":
        return x + shrink("l0", noise, np.full(len(x), threat.radius)) * threat.domain.ranges
    length = threat.radius * rng.random((len(x), 1)) ** (1 / width)
    return x + noise / np.maximum(lengths(threat.norm, noise), 1e-300)[:, None] * length * threat.unit


def ascend(
    model: GradientModel,
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    threat: ThreatModel,
    rng: np.random.Generator,
    steps: int,
    restarts: int,
    step: float,
    shaken: bool,
) -> NDArray[np.float64]:
    """Legal rows (n, d) with the largest margin that the ascent met.

    The iterate lives in the ball and in the ranges but is not rounded, so that small steps add up to a whole number or
    to another category; gradients and margins are taken at the legal row next to it.
    """
    domain, unit = threat.domain, threat.unit
    best, lead = x.copy(), margins(model.logits(x), y, threat)
    step_length = step if threat.norm == "l0" else step * threat.radius
    for _ in range(restarts):
        loose = random_inside(x, threat, rng) if shaken else x.copy()
        loose = np.clip(loose, domain.low, domain.high)
        legal = threat.project(x, loose)
        for turn in range(steps + 1):
            logits = model.logits(legal)
            margin = margins(logits, y, threat)
            better = margin > lead
            best[better], lead[better] = legal[better], margin[better]
            if turn == steps:
                break
            gradient = uphill(model, legal, logits, y, threat)
            room = domain.movable & np.where(gradient > 0, loose < domain.high, loose > domain.low)
            moved = loose + step_length * steepest(threat, gradient, room)
            delta = (np.clip(moved, domain.low, domain.high) - x) / unit
            loose = x + shrink(threat.norm, np.where(domain.movable, delta, 0.0), np.full(len(x), threat.radius)) * unit
            legal = threat.project(x, loose)
    return best


@dataclass(frozen=True, slots=True)
class Pgd:
    """Projected gradient descent from random starts within the ball.

    Parameters
    ----------
    steps : int
    restarts : int
    step : float
        Length of a step as a share of eps (under L0: of the feature ranges).

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    ICLR 2018, section 2.1. L1 steps: Tramer & Boneh, "Adversarial Training and Robustness for Multiple Perturbations",
    NeurIPS 2019. L0: Croce & Hein, "Sparse and Imperceivable Adversarial Attacks", ICCV 2019, section 3.
    """

    steps: int = 40
    restarts: int = 1
    step: float = 0.1
    name: ClassVar[str] = "pgd"
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
        found = ascend(
            with_gradients(self, model), x, y, threat, rng, self.steps, self.restarts, self.step, shaken=True
        )
        return owned(model, x, y, found, threat)


@dataclass(frozen=True, slots=True)
class TransferPgd:
    """`Pgd` on a surrogate: the watched model is not asked once. Success is that on the surrogate.

    References
    ----------
    Papernot, McDaniel & Goodfellow, "Transferability in Machine Learning", 2016, arXiv:1605.07277.
    """

    steps: int = 20
    restarts: int = 1
    step: float = 0.15
    name: ClassVar[str] = "transfer_pgd"
    access: ClassVar[Access] = "gradients"
    norms: ClassVar[frozenset[str]] = Pgd.norms
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
        found = ascend(
            with_gradients(self, model), x, y, threat, rng, self.steps, self.restarts, self.step, shaken=True
        )
        return owned(model, x, y, found, threat)


@dataclass(frozen=True, slots=True)
class Fgsm:
    """One step of full length along the sign of the gradient (its steepest direction under the other norms).

    References
    ----------
    Goodfellow, Shlens & Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, section 4.
    """

    name: ClassVar[str] = "fgsm"
    access: ClassVar[Access] = "gradients"
    norms: ClassVar[frozenset[str]] = Pgd.norms
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
        found = ascend(with_gradients(self, model), x, y, threat, rng, 1, 1, 1.0, shaken=False)
        return owned(model, x, y, found, threat)
