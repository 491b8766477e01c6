"""Leaf-Tuple attack: from an adversarial row towards the start row, each time by the leaf of one tree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.boundary_search import bisect, random_starts
from attacks.contract import Access, Crafted, Model
from attacks.errors import ModelError
from attacks.leaf_search import LeafSearch, across
from attacks.margin import margins
from attacks.nearest import Nearest
from attacks.oracle import Oracle, owned, start_rows
from attacks.threat import Domain, ThreatModel, lengths
from attacks.trees import LeafModel

#: Values, over the boxes of all rows that advance together, of about this many; a row has some boxes a feature.
VALUES_AT_ONCE = 200_000
BOXES_A_FEATURE = 4
#: Labels that a random first row may cost; the model is in the attacker's own hands.
START_LABELS = 200
#: Weight of the L1 distance beside the norm's: under Linf, steps that leave the largest change as it is count as well.
TIE = 1e-4
#: Least gain of a step.
GAIN = 1e-9


@dataclass(frozen=True, slots=True)
class LeafTuple:
    """LT-Attack on tree ensembles, white-box: L1, L2 and Linf.

    A row's leaves in all trees, its leaf tuple, are shared by the box in which those leaves meet. A step goes to the
    nearest adversarial row of the boxes of neighbouring tuples, those that differ in one tree's leaf; only trees that
    bound the box on a side facing the start row can bring it nearer. It ends where no neighbour is nearer.

    Three things differ from the paper. Where several trees split at the same value no single leaf can change there, so
    the tuple right behind each such side is a neighbour as well. Descents begin at random rows and at the one that
    `LeafSearch` finds; with a bound on the distance the first that ends within it is enough. Every row is asked of the
    model itself before it counts, so that categories, whole numbers and relations hold.

    Parameters
    ----------
    starts : int
        Descents a row that begin at random adversarial rows, besides the one from leaf search.
    steps : int
        Most steps of a descent.

    References
    ----------
    Zhang, Zhang & Hsieh, "An Efficient Adversarial Attack for Tree Ensembles", NeurIPS 2020, section 3 and algorithm 1.
    """

    starts: int = 10
    steps: int = 200
    name: ClassVar[str] = "leaf_tuple"
    access: ClassVar[Access] = "leaves"
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
        if not isinstance(model, LeafModel):
            raise ModelError(
                f"{self.name} needs `leaves`, `cells` and `meeting` of the model, {type(model).__name__} lacks them; "
                "adapt a tree ensemble (attacks.trees)"
            )
        if len(x) == 0:
            return owned(model, x, y, x, threat)
        free = replace(threat, eps=None, budget=START_LABELS)
        nearest = Nearest(x, threat)
        every = np.arange(len(x))
        together = max(1, VALUES_AT_ONCE // (BOXES_A_FEATURE * x.shape[1] ** 2))
        for turn in range(self.starts + 1):
            if turn == 0:
                begun = LeafSearch().craft(model, x, y, threat, rng)
                rows, at = begun.inputs, every[begun.success]
            else:
                tried = every if threat.eps is None else every[~nearest.found]
                oracle = Oracle(model, x[tried], y[tried], free)
                some, found = random_starts(oracle, rng)
                which = np.flatnonzero(found)
                rows, at = x.copy(), tried[which]
                rows[at] = bisect(oracle, which, some[which], np.full(len(which), 0.01))
            nearest.offer(at, rows[at])
            for first in range(0, len(at), together):
                self._descend(model, x, y, at[first : first + together], rows, nearest, threat)
        return owned(model, x, y, nearest.rows, threat)

    def _descend(
        self,
        model: LeafModel,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        which: NDArray[np.intp],
        rows: NDArray[np.float64],
        nearest: Nearest,
        threat: ThreatModel,
    ) -> None:
        """Bring the adversarial rows at places `which` nearer, in place, as far as neighbours allow."""
        for _ in range(self.steps):
            if len(which) == 0:
                return
            owner, low, high = _neighbours(model, x[which], rows[which], threat.domain)
            sample = which[owner]
            tried, legal = _closest(threat.domain, x[sample], rows[sample], low, high)
            far = _way(threat, x[sample], tried)
            nearer = np.flatnonzero(legal & (far < _way(threat, x[which], rows[which])[owner] - GAIN))
            hit = nearer[margins(model.predict(tried[nearer]), y[sample[nearer]], threat) > 0]
            nearest.offer(sample[hit], tried[hit])
            # The nearest of each row comes last.
            order = hit[np.argsort(-far[hit], kind="stable")]
            rows[sample[order]] = tried[order]
            which = np.unique(sample[order])


def _way(threat: ThreatModel, x: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) what a step makes smaller: the distance, and a little of the L1 distance."""
    return threat.distances(x, rows) + TIE * lengths("l1", (rows - x) / threat.unit)


def _neighbours(
    model: LeafModel, x: NDArray[np.float64], rows: NDArray[np.float64], domain: Domain
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Boxes low and high (c, d) of neighbouring leaf tuples of rows (m, d), and the place (c,) of each one's row."""
    cells = model.cells(rows)
    over, under = np.nonzero((rows > x) & np.isfinite(cells.low)), np.nonzero((rows < x) & np.isfinite(cells.high))
    owner = np.concatenate([over[0], under[0]])
    tree = np.concatenate([cells.low_tree[over], cells.high_tree[under]])
    pairs = np.unique(np.stack([owner, tree.astype(np.intp)]), axis=1)
    changed = pairs[1].astype(np.int32)
    place, low, high = model.meeting(changed, *cells.without(pairs[0], changed))
    column = np.concatenate([over[1], under[1]])
    edge, up = (
        np.concatenate([cells.low[over], cells.high[under]]),
        np.repeat([False, True], [len(over[0]), len(under[0])]),
    )
    whole = domain.integral[column]
    crossed = rows[owner]
    beside = np.empty(len(owner))
    for side in (False, True):
        for kind in (False, True):
            mine = (up == side) & (whole == kind)
            beside[mine] = across(edge[mine], side, kind)
    crossed[np.arange(len(owner)), column] = beside
    behind = model.cells(crossed)
    return (
        np.concatenate([pairs[0][place], owner]),
        np.concatenate([low, behind.low]),
        np.concatenate([high, behind.high]),
    )


def _closest(
    domain: Domain,
    x: NDArray[np.float64],
    rows: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The rows (c, d) nearest `x` in boxes ``low < row <= high``, in single precision, and which (c,) there are.

    A one-hot group stays that of `x`, or that of `rows`, or becomes the first that the box allows.
    """
    least, most = low.copy(), high.copy()
    whole = domain.integral
    for columns, kind in ((np.flatnonzero(~whole), False), (np.flatnonzero(whole), True)):
        below, above = np.isfinite(low[:, columns]), np.isfinite(high[:, columns])
        cell = low[:, columns]
        cell[below] = across(cell[below], True, kind)
        least[:, columns] = cell
        cell = high[:, columns]
        cell[above] = across(cell[above], False, kind)
        most[:, columns] = cell
    rounded = x.astype(np.float32)
    inside = (rounded > low) & (rounded <= high)
    reachable = domain.movable & (least <= most) & (least <= domain.high) & (most >= domain.low)
    legal = np.asarray((inside | reachable).all(axis=1), dtype=np.bool_)
    tried = np.where(inside, x, np.clip(x, least, np.maximum(least, most)))
    for group in domain.groups:
        if not domain.movable[group[0]]:
            continue
        ones = np.eye(len(group))[:, None, :]
        allowed = np.asarray(((ones > low[:, group]) & (ones <= high[:, group])).all(axis=2), dtype=np.bool_)
        every = np.arange(len(x))
        old, now = np.argmax(x[:, group], axis=1), np.argmax(rows[:, group], axis=1)
        chosen = np.where(allowed[old, every], old, np.where(allowed[now, every], now, np.argmax(allowed, axis=0)))
        tried[:, group] = np.eye(len(group))[chosen]
        legal &= allowed[chosen, every]
    return domain.repair(x, tried), legal
