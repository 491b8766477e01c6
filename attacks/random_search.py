"""What Square and Cube share: random changes of a shrinking share of the features, kept where the margin improves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Crafted
from attacks.margin import log_scores, margins
from attacks.oracle import Oracle

#: Shares of the budget (of 10,000 queries in the paper on Square) after which the patch is halved.
HALVED_AFTER = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)

Propose = Callable[[NDArray[np.float64], int], NDArray[np.float64]]
"""(m, d) pushes made of pushes (m, d) at a turn, in units of distance."""


def climb(oracle: Oracle, propose: Propose, first: NDArray[np.float64] | None = None) -> Crafted:
    """Push start rows, and keep each push that brings the goal nearer, until it is reached or the budget is spent.

    `first` (n, d) is taken in turn 0, whatever it does to the margin; without it rows begin without a push.
    """
    x, y, threat = oracle.x, oracle.y, oracle.threat
    if len(x) == 0:
        return oracle.crafted()
    lead = margins(log_scores(oracle.ask(np.arange(len(x)), x)), y, threat)
    push = np.zeros_like(x) if first is None else first
    current = x.copy()
    turn = 0
    while True:
        which = np.flatnonzero(oracle.going & (lead <= 0))
        if len(which) == 0:
            return oracle.crafted(current)
        forced = turn == 0 and first is not None
        tried_push = push[which] if forced else propose(push[which], turn)
        tried = threat.project(x[which], x[which] + tried_push * threat.unit)
        new = margins(log_scores(oracle.ask(which, tried)), y[which], threat)
        better = (new > lead[which]) | forced
        kept = which[better]
        push[kept], current[kept], lead[kept] = tried_push[better], tried[better], new[better]
        turn += 1


def shrunk(share: float, turn: int, budget: int) -> float:
    """What is left of a share at a turn."""
    progress = turn / max(budget, 1)
    return share / 2.0 ** sum(progress > after for after in HALVED_AFTER)


def random_features(m: int, share: float, movable: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(m, d) a share of the movable features, at least one, drawn for each row."""
    count = max(1, round(share * int(movable.sum())))
    draw = np.where(movable, rng.random((m, len(movable))), -1.0)
    return np.asarray(draw >= np.partition(draw, -count, axis=1)[:, [-count]], dtype=np.bool_)
