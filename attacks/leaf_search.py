"""Leaf search: walks a row across the split thresholds of a tree ensemble, one feature at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, Model
from attacks.errors import ModelError
from attacks.margin import margins
from attacks.nearest import Nearest
from attacks.oracle import owned, start_rows
from attacks.threat import Domain, ThreatModel
from attacks.trees import TreeModel

#: Candidates, over all rows, whose scores are computed at once.
CANDIDATES_AT_ONCE = 50_000
#: Added distance below which a gain counts as free, as a share of the distance of one feature's range.
LEAST_WAY = 1e-3


@dataclass(frozen=True, slots=True)
class LeafSearch:
    """Coordinate search guided by output configurations (which leaf each tree gives), white-box.

    A step moves one feature just across a threshold, or changes one category: the change with the largest gain in
    margin for its added distance and for the leaves that it changes. Once the row is adversarial, features move back,
    threshold by threshold, while it stays so.

    Parameters
    ----------
    steps : int
        Most steps.
    reach : int
        Thresholds tried on either side of a feature, spaced 1, 2, 4, 8 ... away.
    quiet : float
        How much a change of all leaves weighs against a distance of one feature range: a large value looks for rows
        whose output configuration stays near that of the start row, which the OC-score watches.

    References
    ----------
    Devos, Perini, Meert & Davis, "Detecting Evasion Attacks in Deployed Tree Ensembles", ECML PKDD 2023 (output
    configurations); Kantchelian, Tygar & Joseph, "Evasion and Hardening of Tree Ensemble Classifiers", ICML 2016,
    section 4.2 (coordinate descent over thresholds).
    """

    steps: int = 60
    reach: int = 5
    quiet: float = 0.0
    name: ClassVar[str] = "leaf_search"
    access: ClassVar[Access] = "trees"
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
        if not isinstance(model, TreeModel):
            raise ModelError(
                f"{self.name} needs `leaves` and `thresholds` of the model, {type(model).__name__} lacks them; "
                "adapt a tree ensemble (attacks.trees)"
            )
        if len(x) == 0:
            return owned(model, x, y, x, threat)
        nearest = Nearest(x, threat)
        current, lead = x.copy(), margins(model.predict(x), y, threat)
        nearest.offer(np.flatnonzero(lead > 0), x[lead > 0])
        first = model.leaves(x)
        going = lead <= 0
        for _ in range(self.steps):
            which = np.flatnonzero(going)
            if len(which) == 0:
                break
            for part in np.array_split(which, 1 + len(which) * self._count(threat.domain) // CANDIDATES_AT_ONCE):
                moved = self._step(model, x, y, first, current, lead, part, nearest, threat, rng)
                going[part] &= moved
        return owned(model, x, y, np.where(nearest.found[:, None], nearest.rows, current), threat)

    def _count(self, domain: Domain) -> int:
        return 2 * self.reach * domain.width

    def _step(
        self,
        model: TreeModel,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        first: NDArray[np.int64],
        current: NDArray[np.float64],
        lead: NDArray[np.float64],
        which: NDArray[np.intp],
        nearest: Nearest,
        threat: ThreatModel,
        rng: np.random.Generator,
    ) -> NDArray[np.bool_]:
        """Move the rows `which` (m,) one step, in place; (m,) which of them moved."""
        owner, tried = self._candidates(model, x[which], current[which], threat)
        sample = which[owner]
        margin = margins(model.predict(tried), y[sample], threat) if len(tried) else np.empty(0)
        hit = margin > 0
        nearest.offer(sample[hit], tried[hit])
        distance = threat.distances(x[sample], tried)
        now = threat.distances(x[which], current[which])[owner]
        back = lead[sample] > 0
        way = LEAST_WAY + np.maximum(distance - now, 0.0)
        if self.quiet > 0 and len(tried):
            way = way + self.quiet * (model.leaves(tried) != first[sample]).mean(axis=1)
        value = np.where(back, now - distance, (margin - lead[sample]) / way)
        value = np.where(~back & hit, 1e6 / way, value)
        good = np.flatnonzero(np.where(back, hit, True) & (value > 0))
        # The best of each row comes last; equal values in random order.
        order = good[np.lexsort((rng.random(len(good)), value[good]))]
        current[sample[order]], lead[sample[order]] = tried[order], margin[order]
        moved = np.zeros(len(which), dtype=np.bool_)
        moved[owner[order]] = True
        return moved

    def _candidates(
        self, model: TreeModel, x: NDArray[np.float64], rows: NDArray[np.float64], threat: ThreatModel
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Admitted rows (c, d), each one feature away from its row, and the place (c,) of that row."""
        domain = threat.domain
        owners: list[NDArray[np.intp]] = []
        columns: list[NDArray[np.intp]] = []
        values: list[NDArray[np.float64]] = []
        every = np.arange(len(rows))
        for column in np.flatnonzero(domain.movable & ~domain.grouped):
            edges = model.thresholds[column]
            if len(edges) == 0:
                continue
            below = np.searchsorted(edges, rows[:, column].astype(np.float32), side="left")
            for power in range(self.reach):
                for place, up in ((below + 2**power - 1, True), (below - 2**power, False)):
                    inside = np.flatnonzero((place >= 0) & (place < len(edges)))
                    owners.append(every[inside])
                    columns.append(np.full(len(inside), column))
                    values.append(across(edges[place[inside]], up, bool(domain.integral[column])))
            owners.append(every)
            columns.append(np.full(len(rows), column))
            values.append(x[:, column])
        parts = [np.empty((0, rows.shape[1]))]
        owner = np.concatenate([*owners, np.empty(0, dtype=np.intp)])
        if len(owner):
            changed = rows[owner]
            changed[np.arange(len(owner)), np.concatenate(columns)] = np.concatenate(values)
            parts.append(changed)
        for group in domain.groups:
            for column in group if domain.movable[group[0]] else group[:0]:
                taken = rows.copy()
                taken[:, group] = 0.0
                taken[:, column] = 1.0
                parts.append(taken)
                owner = np.concatenate([owner, every])
        tried = threat.project(x[owner], np.concatenate(parts))
        new = (tried != rows[owner]).any(axis=1)
        return owner[new], tried[new]


def across(thresholds: NDArray[np.float64], up: bool, whole: bool) -> NDArray[np.float64]:
    """(m,) the values next to thresholds, right of ``x <= t`` (`up`) or left of it, in single precision."""
    near = thresholds.astype(np.float32)
    if up:
        over = np.where(near > thresholds, near, np.nextafter(near, np.float32(np.inf)))
        return np.floor(thresholds) + 1.0 if whole else over.astype(np.float64)
    under = np.where(near <= thresholds, near, np.nextafter(near, np.float32(-np.inf)))
    return np.floor(thresholds) if whole else under.astype(np.float64)
