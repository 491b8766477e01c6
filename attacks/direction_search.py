"""What OPT and Sign-OPT share: the direction in which the decision boundary is nearest is turned step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import bisect, random_starts
from attacks.contract import Attack, Crafted, Model
from attacks.oracle import Oracle, start_rows
from attacks.threat import ThreatModel, lengths

#: Halvings and doublings of one line search.
TURNS = 8

Slope = Callable[[Oracle, NDArray[np.intp], NDArray[np.float64], np.random.Generator], NDArray[np.float64]]
"""(m, d) unit directions in which the distance to the boundary shrinks, at rows (m, d) of start rows (m,)."""


class Searcher(Attack, Protocol):
    """An attack that turns directions.

    Attributes
    ----------
    step : float
        First step along the estimated gradient, against the unit direction.
    gap : float
        Width of the last bracket of a bisection, as a share of the distance.
    tries : int
        Random rows tried for a first adversarial one.
    """

    @property
    def step(self) -> float: ...
    @property
    def gap(self) -> float: ...
    @property
    def tries(self) -> int: ...


def shorten(
    attack: Searcher,
    model: Model,
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    threat: ThreatModel,
    rng: np.random.Generator,
    slope: Slope,
) -> Crafted:
    """Descend on the distance to the boundary from a random adversarial row until the budget is spent."""
    x, y = start_rows(attack, x, y, threat)
    oracle = Oracle(model, x, y, threat)
    oracle.need(2, attack)
    current, found = random_starts(oracle, rng, attack.tries)
    which = np.flatnonzero(found)
    current[which] = bisect(oracle, which, current[which], np.full(len(which), attack.gap))
    step = np.full(len(x), attack.step)
    while True:
        which = np.flatnonzero(found & oracle.going & (oracle.left >= 3))
        if len(which) == 0:
            return oracle.crafted()
        downhill = slope(oracle, which, current[which], rng)
        current[which], step[which] = _descend(oracle, which, current[which], downhill, step[which], attack.gap)


def turned_at_random(
    oracle: Oracle,
    which: NDArray[np.intp],
    rows: NDArray[np.float64],
    owner: NDArray[np.intp],
    radius: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit noise (q, d), and the offsets (q, d) of rows (m, d), each of row `owner` (q,), turned by it, no longer.

    Both are in units of distance; `radius` is the length of the noise against the unit direction.
    """
    threat = oracle.threat
    offset = (rows - oracle.x[which]) / threat.unit
    far = np.maximum(lengths("l2", offset), 1e-300)
    noise = rng.standard_normal((len(owner), rows.shape[1])) * threat.domain.movable
    noise /= np.maximum(lengths("l2", noise), 1e-300)[:, None]
    turned = offset[owner] / far[owner, None] + radius * noise
    turned *= (far[owner] / lengths("l2", turned))[:, None]
    return noise, turned


def _descend(
    oracle: Oracle,
    which: NDArray[np.intp],
    rows: NDArray[np.float64],
    slope: NDArray[np.float64],
    step: NDArray[np.float64],
    gap: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nearer adversarial rows (m, d) and the next steps (m,).

    A step is halved until the turned direction is adversarial at the present distance; then the boundary is
    searched along it.
    """
    threat, domain = oracle.threat, oracle.threat.domain
    x = oracle.x[which]
    offset = (rows - x) / threat.unit
    far = np.maximum(lengths("l2", offset), 1e-300)
    out, step = rows.copy(), step.copy()
    flying = np.ones(len(which), dtype=np.bool_)
    for _ in range(TURNS):
        up = np.flatnonzero(flying & (oracle.left[which] > 1) & oracle.going[which])
        if len(up) == 0:
            break
        turned = offset[up] / far[up, None] + step[up, None] * slope[up]
        turned *= (far[up] / np.maximum(lengths("l2", turned), 1e-300))[:, None]
        tried = domain.repair(x[up], x[up] + turned * threat.unit)
        fooled = oracle.fooled(which[up], tried)
        out[up[fooled]] = tried[fooled]
        flying[up[fooled]] = False
        step[up[~fooled]] /= 2
    landed = np.flatnonzero(~flying)
    step[landed] *= 2
    found = bisect(oracle, which[landed], out[landed], np.full(len(landed), gap))
    nearer = threat.distances(x[landed], found) < threat.distances(x[landed], rows[landed])
    out[landed] = np.where(nearer[:, None], found, rows[landed])
    return out, np.clip(step, 1e-3, 2.0)
