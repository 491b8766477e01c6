"""What an attacker may do: which inputs are legal, how far he may go, what he knows, how often he may ask."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from attacks.errors import ThreatModelError
from attacks.relations import Relations
from detectors.relations import reduced

Norm = Literal["l0", "l1", "l2", "linf"]
Knowledge = Literal["black-box", "transfer", "white-box"]

#: Relative slack of the radius: rounding of double-precision sums must not turn a projected input away.
RADIUS_SLACK = 1e-9
#: Shares of the radius that rows are brought into, one after the other, which rounding has put beyond it.
ROUNDING_PARTS = (1 - 1e-6, 0.9, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """The legal inputs, and what an attacker can change of one.

    Attributes
    ----------
    low, high : float64 (d,)
        Inclusive bounds, infinite where there is none.
    integral : bool (d,)
        Features that are whole numbers.
    mutable : bool (d,)
        Features that an attacker can change. A one-hot group with an immutable column is immutable as a whole.
    groups : tuple of intp (g,)
        Columns of each one-hot group: exactly one of them is 1, the others are 0.
    relations : Relations or None
        Linear equations that legal rows fulfil. Some features follow when others change; where none can, all stay.
    grouped, movable : bool (d,)
        Derived: columns of groups, and features whose value can really differ from that of a start row.

    Raises
    ------
    ThreatModelError
        Names the feature or the group that contradicts the rest.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    integral: NDArray[np.bool_]
    mutable: NDArray[np.bool_]
    groups: tuple[NDArray[np.intp], ...] = ()
    relations: Relations | None = None
    grouped: NDArray[np.bool_] = field(init=False, repr=False)
    movable: NDArray[np.bool_] = field(init=False, repr=False)
    _follow: NDArray[np.float64] = field(init=False, repr=False)
    _pivots: NDArray[np.intp] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        low, high = (np.array(side, dtype=np.float64) for side in (self.low, self.high))
        if low.ndim != 1 or len(low) == 0:
            raise ThreatModelError(f"domain: low must be a vector of at least one feature, got shape {low.shape}")
        integral, mutable = (np.array(flags, dtype=np.bool_) for flags in (self.integral, self.mutable))
        for name, array in (("high", high), ("integral", integral), ("mutable", mutable)):
            if array.shape != low.shape:
                raise ThreatModelError(f"domain: {name} has shape {array.shape}, low has {low.shape}")
        for name, wrong in (
            ("a bound is not a number", np.isnan(low) | np.isnan(high)),
            ("low above high", low > high),
        ):
            if wrong.any():
                at = int(np.argmax(wrong))
                raise ThreatModelError(f"domain: feature {at}: {name} ({low[at]} to {high[at]})")
        low[integral], high[integral] = np.ceil(low[integral]), np.floor(high[integral])
        if (low > high).any():
            raise ThreatModelError(f"domain: feature {int(np.argmax(low > high))}: no whole number between its bounds")
        grouped = np.zeros(len(low), dtype=np.bool_)
        movable = mutable.copy()
        groups = tuple(np.array(group, dtype=np.intp) for group in self.groups)
        for number, group in enumerate(groups):
            if group.ndim != 1 or len(group) == 0 or group.min() < 0 or group.max() >= len(low):
                raise ThreatModelError(f"domain: group {number} is not a list of columns 0 to {len(low) - 1}: {group}")
            if grouped[group].any() or len(np.unique(group)) != len(group):
                raise ThreatModelError(f"domain: group {number}: a column is in two groups, or twice in one: {group}")
            if (low[group] > 0).any() or (high[group] < 1).any():
                raise ThreatModelError(f"domain: group {number}: one-hot columns must allow 0 and 1: {group}")
            grouped[group] = True
            movable[group] = bool(mutable[group].all()) and len(group) > 1
        movable &= (low < high) | grouped
        follow, pivots = np.empty((0, len(low))), np.empty(0, dtype=np.intp)
        if self.relations is not None:
            if self.relations.matrix.shape[1] != len(low):
                raise ThreatModelError(
                    f"domain: relations of {self.relations.matrix.shape[1]} features, not {len(low)}"
                )
            span = np.where(np.isfinite(low) & np.isfinite(high) & (low < high), high - low, 1.0)
            follow, pivots, stuck = reduced(self.relations.matrix, span, movable & ~integral & ~grouped)
            movable &= ~stuck
            for group in groups:
                movable[group] = movable[group].all()
        for constant in (low, high, integral, mutable, grouped, movable, follow, pivots, *groups):
            constant.flags.writeable = False
        values = {
            "low": low,
            "high": high,
            "integral": integral,
            "mutable": mutable,
            "groups": groups,
            "grouped": grouped,
            "movable": movable,
            "_follow": follow,
            "_pivots": pivots,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def width(self) -> int:
        """Number of features, d."""
        return len(self.low)

    @property
    def ranges(self) -> NDArray[np.float64]:
        """(d,) high - low, and 1 where either is infinite."""
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        return np.where(bounded, self.high, 1.0) - np.where(bounded, self.low, 0.0)

    @property
    def linked(self) -> NDArray[np.bool_]:
        """(d,) features that relations tie to others, and that can change."""
        tied = (self._follow != 0).any(axis=0)
        tied[self._pivots] = True
        return np.asarray(tied & self.movable, dtype=np.bool_)

    def holds(self, x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) which rows (n, d) are legal: finite, in range, whole where they must be, one-hot where they must be."""
        legal = np.asarray(~self._odd(x).any(axis=1), dtype=np.bool_)
        for group in self.groups:
            legal &= x[:, group].sum(axis=1) == 1
        if self.relations is not None:
            legal[legal] = self.relations.hold(x[legal])
        return legal

    def complaint(self, x: NDArray[np.float64]) -> str | None:
        """What is illegal about the first illegal row, in words; None when all are legal."""
        wrong = ~self.holds(x)
        if not wrong.any():
            return None
        row = int(np.argmax(wrong))
        odd = self._odd(x[row : row + 1])[0]
        if odd.any():
            at = int(np.argmax(odd))
            kind = " and is a whole number" if self.integral[at] else ""
            kind = " and is 0 or 1" if self.grouped[at] else kind
            return f"row {row}: feature {at} is {x[row, at]}; it lies in {self.low[at]} to {self.high[at]}{kind}"
        for number, group in enumerate(self.groups):
            if x[row, group].sum() != 1:
                return f"row {row}: one-hot group {number} has {int(x[row, group].sum())} ones; it has one"
        if self.relations is None:
            return f"row {row}: illegal"
        missed = self.relations.residuals(x[row : row + 1])[0]
        worst = int(np.argmax(missed / np.maximum(self.relations.tolerance, 1e-300)))
        return (
            f"row {row}: relation {worst} is missed by {missed[worst]:g}, more than {self.relations.tolerance[worst]:g}"
        )

    def repair(self, x0: NDArray[np.float64], x: NDArray[np.float64], inwards: bool = False) -> NDArray[np.float64]:
        """The legal rows (n, d) near `x` that differ from `x0` only where an attacker can change something.

        Ranges are clipped, whole numbers rounded (`inwards`: towards `x0`, so that no feature moves away from it), and
        of a one-hot group the largest column becomes the 1 (on a tie that of `x0`).
        """
        out = np.where(self.movable, np.clip(x, self.low, self.high), x0)
        if self.integral.any():
            columns = np.flatnonzero(self.integral & self.movable & ~self.grouped)
            rounded = (
                np.trunc(out[:, columns] - x0[:, columns]) + x0[:, columns] if inwards else np.rint(out[:, columns])
            )
            out[:, columns] = rounded
        for group in self.groups:
            if self.movable[group[0]]:
                self._hot(out, group, self.wanted(x0, x, group))
        return self._followed(x0, out)

    def wander(self, x0: NDArray[np.float64], x: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """`repair` for random exploration: whole numbers are rounded up or down at random, in the mean to `x`."""
        out = self.repair(x0, x)
        columns = np.flatnonzero(self.integral & self.movable & ~self.grouped)
        if len(columns):
            wanted = np.clip(x[:, columns], self.low[columns], self.high[columns])
            out[:, columns] = np.floor(wanted + rng.random(wanted.shape))
            out[:, columns] = np.clip(out[:, columns], self.low[columns], self.high[columns])
        return self._followed(x0, out)

    def moved(
        self, x: NDArray[np.float64], columns: NDArray[np.intp], steps: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Rows (n, d), each with one movable feature changed by its step (n,).

        A whole number moves by at least 1. A one-hot column becomes its group's 1, or gives the 1 up to the group's
        next column, whatever the step.
        """
        out = x.copy()
        rows = np.arange(len(x))
        whole = self.integral[columns]
        steps = np.where(whole, np.sign(steps) * np.maximum(1.0, np.rint(np.abs(steps))), steps)
        out[rows, columns] = np.clip(x[rows, columns] + steps, self.low[columns], self.high[columns])
        for group in self.groups:
            mine = np.flatnonzero(np.isin(columns, group))
            if len(mine):
                place = np.searchsorted(np.sort(group), columns[mine])
                place = np.argsort(group)[place]
                given_up = x[mine, columns[mine]] == 1
                out[np.ix_(mine, group)] = 0.0
                out[mine, group[np.where(given_up, (place + 1) % len(group), place)]] = 1.0
        return self._followed(x, out)

    def sample(
        self, x0: NDArray[np.float64], rng: np.random.Generator, share: NDArray[np.float64] | float = 1.0
    ) -> NDArray[np.float64]:
        """Random legal rows (n, d): a `share` (scalar or (n, 1)) of the movable features uniform over its range.

        Features without both bounds are drawn from a normal distribution around `x0` with standard deviation 1.
        """
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        low, high = np.where(bounded, self.low, 0.0), np.where(bounded, self.high, 0.0)
        drawn = np.where(bounded, rng.uniform(low, high, x0.shape), x0 + rng.standard_normal(x0.shape))
        return self.repair(x0, np.where(rng.random(x0.shape) < share, drawn, x0))

    def _followed(self, x0: NDArray[np.float64], out: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rows, changed in place so that relations hold as they do in the legal rows `x0`.

        Where a feature that follows would leave its range, linked whole numbers and categories return to `x0` and the
        other linked features go only part of the way.
        """
        if len(self._pivots) == 0:
            return out
        pivots, low, high = self._pivots, self.low[self._pivots], self.high[self._pivots]
        change = -(out - x0) @ self._follow.T
        wanted = x0[:, pivots] + change
        over = np.flatnonzero(((wanted < low) | (wanted > high)).any(axis=1))
        if len(over):
            self.unlink(x0, out, over)
            change[over] = -(out[over] - x0[over]) @ self._follow.T
            room = np.where(change[over] > 0, high - x0[np.ix_(over, pivots)], x0[np.ix_(over, pivots)] - low)
            size = np.abs(change[over])
            part = np.where(size > room, room / np.maximum(size, 1e-300), 1.0).min(axis=1)
            columns = np.flatnonzero(self.linked)
            cells = np.ix_(over, columns)
            partly = x0[cells] + part[:, None] * (out[cells] - x0[cells])
            out[cells] = np.clip(partly, self.low[columns], self.high[columns])
            change[over] *= part[:, None]
        out[:, pivots] = np.clip(x0[:, pivots] + change, low, high)
        return out

    def unlink(self, x0: NDArray[np.float64], out: NDArray[np.float64], rows: NDArray[np.intp]) -> None:
        """Whole numbers and groups that are linked return to `x0`, in place."""
        back = self.linked & self.integral & ~self.grouped
        for group in self.groups:
            back[group] = self.linked[group].any()
        cells = np.ix_(rows, np.flatnonzero(back))
        out[cells] = x0[cells]

    def _odd(self, x: NDArray[np.float64]) -> NDArray[np.bool_]:
        odd = ~(np.isfinite(x) & (x >= self.low) & (x <= self.high))
        with np.errstate(invalid="ignore"):
            odd |= self.integral & (x != np.rint(x))
            odd |= self.grouped & (x != 0) & (x != 1)
        return np.asarray(odd, dtype=np.bool_)

    @staticmethod
    def wanted(x0: NDArray[np.float64], x: NDArray[np.float64], group: NDArray[np.intp]) -> NDArray[np.intp]:
        """(n,) which place of a one-hot group is largest in `x`; on a tie that of `x0`."""
        old = np.argmax(x0[:, group], axis=1)
        new = np.argmax(x[:, group], axis=1)
        rows = np.arange(len(x))
        return np.where(x[rows, group[new]] > x[rows, group[old]], new, old)

    @staticmethod
    def _hot(out: NDArray[np.float64], group: NDArray[np.intp], which: NDArray[np.intp]) -> None:
        out[:, group] = 0.0
        out[np.arange(len(out)), group[which]] = 1.0


def lengths(norm: Norm, delta: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) the norm of each row (n, d)."""
    if norm == "l0":
        return np.count_nonzero(delta, axis=1).astype(np.float64)
    if norm == "l1":
        return np.asarray(np.abs(delta).sum(axis=1), dtype=np.float64)
    if norm == "l2":
        return np.sqrt(np.einsum("ij,ij->i", delta, delta))
    return np.asarray(np.abs(delta).max(axis=1, initial=0.0), dtype=np.float64)


def shrink(norm: Norm, delta: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest rows (n, d) whose norm is at most the radius (n,); no entry grows or changes its sign.

    L1 follows Duchi, Shalev-Shwartz, Singer & Chandra, "Efficient Projections onto the l1-Ball", ICML 2008, figure 1;
    L0 keeps the largest entries.
    """
    if delta.shape[1] == 0:
        return delta
    if norm == "linf":
        return np.clip(delta, -radius[:, None], radius[:, None])
    size = np.abs(delta)
    if norm == "l0":
        rank = np.argsort(np.argsort(-size, axis=1, kind="stable"), axis=1, kind="stable")
        return np.where(rank < radius[:, None], delta, 0.0)
    if norm == "l2":
        long = lengths("l2", delta)
        return delta * np.where(long > radius, radius / np.maximum(long, np.finfo(np.float64).tiny), 1.0)[:, None]
    falling = -np.sort(-size, axis=1)
    excess = np.cumsum(falling, axis=1) - radius[:, None]
    last = np.count_nonzero(falling * np.arange(1, delta.shape[1] + 1) > excess, axis=1)
    rows = np.arange(len(delta))
    cut = np.where(last > 0, excess[rows, last - 1] / np.maximum(last, 1), falling[:, 0])
    cut = np.where(size.sum(axis=1) <= radius, 0.0, cut)
    return np.sign(delta) * np.maximum(size - cut[:, None], 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class ThreatModel:
    """How far an attacker may go, what he knows, how often he may ask, and what he wants.

    Attributes
    ----------
    name : str
        Every probe, result and report names its threat model.
    norm : {"l0", "l1", "l2", "linf"}
    eps : float or None
        Largest distance from the start row, inclusive; None for no bound (then the distance itself is the result). L0
        counts features; a one-hot category that changes counts for two.
    domain : Domain
    knowledge : {"black-box", "transfer", "white-box"}
        ``black-box`` asks the model; ``transfer`` has gradients of a surrogate, ``white-box`` those of the model.
    budget : int
        Most queries a start row. Gradients and answers of a model in the attacker's own hands are no queries.
    goal : "any" or int
        Any class but the start row's, or the class to reach.
    scale : float64 (d,) or None
        One unit of distance in each feature; None means 1 in the feature's own unit. L0 does not use it.

    Raises
    ------
    ThreatModelError
        Names the field, its value and what is allowed.
    """

    name: str
    norm: Norm
    eps: float | None
    domain: Domain
    knowledge: Knowledge
    budget: int
    goal: Literal["any"] | int = "any"
    scale: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        where = f"threat model {self.name!r}"
        for name, value, allowed in (("norm", self.norm, Norm), ("knowledge", self.knowledge, Knowledge)):
            if value not in get_args(allowed):
                raise ThreatModelError(f"{where}: {name} is {value!r}; it is one of {', '.join(get_args(allowed))}")
        if self.eps is not None:
            if not (np.isfinite(self.eps) and self.eps > 0):
                raise ThreatModelError(f"{where}: eps is {self.eps}; it is a positive number, or None for no bound")
            if self.norm == "l0" and (self.eps != round(self.eps)):
                raise ThreatModelError(f"{where}: eps is {self.eps}; under l0 it is a whole number of features")
        if isinstance(self.budget, bool) or not isinstance(self.budget, int | np.integer) or self.budget < 0:
            raise ThreatModelError(f"{where}: budget is {self.budget!r}; it is a whole number of queries, 0 or more")
        if self.goal != "any" and (
            isinstance(self.goal, bool) or not isinstance(self.goal, int | np.integer) or self.goal < 0
        ):
            raise ThreatModelError(f"{where}: goal is {self.goal!r}; it is 'any' or the number of a class")
        if not self.domain.movable.any():
            raise ThreatModelError(f"{where}: no feature can be changed; make at least one mutable, with room to move")
        if self.scale is not None:
            scale = np.array(self.scale, dtype=np.float64)
            if scale.shape != self.domain.low.shape or not (np.isfinite(scale) & (scale > 0)).all():
                raise ThreatModelError(
                    f"{where}: scale holds one positive number for each of {self.domain.width} features"
                )
            scale.flags.writeable = False
            object.__setattr__(self, "scale", scale)

    @property
    def unit(self) -> NDArray[np.float64]:
        """(d,) one unit of distance in each feature."""
        return np.ones(self.domain.width) if self.scale is None else self.scale

    @property
    def radius(self) -> float:
        """`eps`, or infinity."""
        return np.inf if self.eps is None else float(self.eps)

    def distances(self, x0: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) distance of each row from its start row, in `scale`."""
        delta = x - x0
        return lengths(self.norm, delta if self.scale is None else delta / self.scale)

    def within(self, distances: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) which distances are allowed."""
        return np.asarray(distances <= self.radius * (1 + RADIUS_SLACK), dtype=np.bool_)

    def admits(self, x0: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) which rows (n, d) an attacker may reach from `x0`: legal, near enough, immutable features untouched."""
        untouched = ((x == x0) | self.domain.movable).all(axis=1)
        return self.domain.holds(x) & untouched & self.within(self.distances(x0, x))

    def reached(self, labels: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which answers fulfil the goal."""
        return np.asarray(labels != y if self.goal == "any" else labels == self.goal, dtype=np.bool_)

    def project(self, x0: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows (n, d) near `x` that the threat model admits from legal rows `x0`.

        What `Domain.repair` makes of `x` is kept where it is near enough. Elsewhere categories change first, those that
        `x` wants most, as far as they fit; the other features get what is left of the radius, and whole numbers are
        rounded towards `x0`.
        """
        out = self.domain.repair(x0, x)
        if self.eps is not None:
            far = np.flatnonzero(~self.within(self.distances(x0, out)))
            if len(far):
                out[far] = self.near(x0[far], x[far])
                out[far] = self._rounded(x0[far], x[far], out[far])
        return out

    def near(self, x0: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `project` makes of rows `x` (n, d) beyond the radius: legal rows within it, but for rounding."""
        out = self._inside(x0, x)
        return out if self.domain.relations is None else self._tightened(x0, out)

    def _rounded(
        self, x0: NDArray[np.float64], x: NDArray[np.float64], out: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Rows that end beyond the radius by rounding, as features much larger than it do, are brought further in."""
        for part in ROUNDING_PARTS:
            far = np.flatnonzero(~self.within(self.distances(x0, out)))
            if len(far) == 0:
                return out
            if self.eps is not None and self.norm != "l0" and part > 0:
                out[far] = replace(self, eps=part * self.eps).near(x0[far], x[far])
            else:
                out[far] = x0[far]
        return out

    def _tightened(self, x0: NDArray[np.float64], out: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows whose linked features go only so far that, with those that follow, the radius holds."""
        domain = self.domain
        far = np.flatnonzero(~self.within(self.distances(x0, out)))
        if len(far) == 0:
            return out
        linked = domain.linked
        if self.norm == "l0":
            back = linked.copy()
            for group in domain.groups:
                back[group] = linked[group].any()
            out[np.ix_(far, np.flatnonzero(back))] = x0[np.ix_(far, np.flatnonzero(back))]
            return out
        target = out[far].copy()
        domain.unlink(x0[far], target, np.arange(len(far)))
        target = domain.repair(x0[far], target, inwards=True)
        delta = (target - x0[far]) / self.unit
        held = lengths(self.norm, np.where(linked, 0.0, delta))
        tied = lengths(self.norm, np.where(linked, delta, 0.0))
        if self.norm == "linf":
            room = np.full(len(far), self.radius)
        elif self.norm == "l2":
            room = np.sqrt(np.maximum(self.radius**2 - held**2, 0.0))
        else:
            room = np.maximum(self.radius - held, 0.0)
        part = np.minimum(1.0, room / np.maximum(tied, 1e-300))
        partly = np.clip(x0[far] + part[:, None] * (target - x0[far]), domain.low, domain.high)
        out[far] = np.where(linked, partly, target)
        return out

    def _inside(self, x0: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        domain, unit, rows = self.domain, self.unit, np.arange(len(x))
        power = 2 if self.norm == "l2" else 1
        left = np.full(len(x), self.radius**power)
        target = x0.copy()
        free = domain.movable & ~domain.grouped
        groups = [group for group in domain.groups if domain.movable[group[0]]]
        if groups:
            margin, cost = np.empty((len(x), len(groups))), np.empty((len(x), len(groups)))
            wanted = np.empty((len(x), len(groups)), dtype=np.intp)
            for number, group in enumerate(groups):
                old = group[np.argmax(x0[:, group], axis=1)]
                new = group[domain.wanted(x0, x, group)]
                wanted[:, number] = new
                margin[:, number] = x[rows, new] - x[rows, old]
                ends = np.stack([1 / unit[old], 1 / unit[new]])
                if self.norm == "linf":
                    price = ends.max(axis=0)
                elif self.norm == "l0":
                    price = np.full(len(x), 2.0)
                else:
                    price = (ends**power).sum(axis=0)
                cost[:, number] = np.where(new == old, 0.0, price)
            if self.norm == "linf":
                kept = cost <= left[:, None]
            else:
                order = np.argsort(-margin, axis=1, kind="stable")
                spent = np.cumsum(np.take_along_axis(cost, order, axis=1), axis=1)
                kept = np.empty(order.shape, dtype=np.bool_)
                np.put_along_axis(kept, order, spent <= left[:, None], axis=1)
                left -= np.where(kept, cost, 0.0).sum(axis=1)
            for number, group in enumerate(groups):
                flipped = rows[kept[:, number]]
                target[np.ix_(flipped, group)] = 0.0
                target[flipped, wanted[flipped, number]] = 1.0
        radius = np.maximum(left, 0.0) ** (1 / power)
        delta = (np.clip(x, domain.low, domain.high) - x0)[:, free] / unit[free]
        target[:, free] = x0[:, free] + shrink(self.norm, delta, radius) * unit[free]
        return domain.repair(x0, target, inwards=True)
