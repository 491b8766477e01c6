"""Relations between features that every benign row keeps: learned, where the schema does not state them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.inputs.constraints import TOLERANCE
from detectors.kernels import rows
from detectors.kernels.relations import broken_relations
from detectors.relations import linear_relations
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.view import correct_rows

#: With fewer reference rows nothing is learned: what 300 rows keep, 1 % of all rows at most break (95 % confidence).
LEAST_ROWS = 300
#: Equations take so many times as many rows as features.
ROWS_A_FEATURE = 4
#: A feature takes part when so many rows do not have its most usual value; the others say nothing of it.
LEAST_UNUSUAL = 30
#: Equations are looked for in at most so many rows, evenly chosen, and kept when all rows fulfil them.
SEARCH_ROWS = 20_000
#: A feature varies when its deviation is more than this share of its size.
CONSTANT_SHARE = 1e-12
#: Equations that hold nearly: spread of the combination, and least coefficients, in standard deviations of features.
NEAR_SPREAD, NEAR_COEFFICIENT = 1e-3, 3e-3
#: Largest miss in the reference with which an equation is kept, as a share of the spread of its largest term.
LARGEST_MISS = 0.02
#: Slack of an equation: so many times the largest miss in the reference, and so much of the row's terms, as numbers may
#: come from single precision.
MISSES, ROUNDING = 4.0, 1e-6
#: a <= b is believed when a = b in so many rows, at so many values but a's most usual one: touched, never crossed.
LEAST_TOUCHES, LEAST_TOUCHED = 30, 5
#: Rows that rule out most pairs before all rows are read.
FIRST_ROWS = 256
#: Larger numbers are whole by their precision; squares of larger ones may overflow.
LARGEST_WHOLE, LARGEST = 1e9, 1e100
#: Terms of an equation that `explain` writes out.
TERMS = 4


class Relations:
    """Sum of broken relations: linear equations, pairs a <= b, whole numbers and one-hot groups, all learned.

    An equation weighs by how far it is missed, in units of four times the largest miss of the reference (and of
    rounding to single precision), a pair by how far it is crossed, in units of the mean gap; each at most 16. A broken
    whole number or group weighs 1, as in `constraints`. What the schema states is left to that detector, and so are
    ranges and features that never vary. Where fewer than 300 rows are given, or nothing is found, every row scores 0.

    Equations are the null space of the standardised features; rows decide whether they hold. A pair is learned only
    where it is met with equality again and again and never crossed, a whole number only where 30 rows have another
    value than the most usual one.

    Blind to: crafted inputs that keep the relations, as constrained attacks do (Simonetto et al. 2024), relations that
    are not linear or that some benign rows break, and data without any, as pictures.

    References
    ----------
    Relations between features of tables and attacks that keep them: Simonetto, Dyrmishi, Ghamizi, Cordy & Le Traon, "A
    Unified Framework for Adversarial Attack and Defense in Constrained Feature Space", IJCAI 2022; Simonetto, Ghamizi &
    Cordy, "TabularBench", NeurIPS 2024. Learning them so, and the score, are Vedette's own method.
    """

    name = "relations"

    def __init__(self) -> None:
        self._schema: FeatureSchema | None = None

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn what all rows keep."""
        inputs = correct_rows(reference, len(schema.classes), schema.width).inputs
        width = schema.width
        self.matrix_, self.constant_, self.slack_ = np.empty((0, width)), np.empty(0), np.empty(0)
        self.pairs_, self.units_ = np.empty((0, 2), dtype=np.int64), np.empty(0)
        self.whole_, self.groups_ = np.zeros(width, dtype=np.bool_), np.zeros((0, width), dtype=np.bool_)
        if len(inputs) >= LEAST_ROWS:
            self._learn(inputs, schema)
        self._prepare(schema)
        return self

    def _learn(self, inputs: NDArray[np.float64], schema: FeatureSchema) -> None:
        unusual = np.empty(schema.width, dtype=np.int64)
        usual = np.empty(schema.width)
        for f in range(schema.width):
            values, counts = np.unique(inputs[:, f], return_counts=True)
            unusual[f], usual[f] = len(inputs) - counts.max(), values[int(counts.argmax())]
        stated = np.zeros(schema.width, dtype=np.bool_)
        stated[np.concatenate([*schema.groups().values(), np.empty(0, dtype=np.intp)])] = True
        size = np.abs(inputs).max(axis=0)
        telling = (unusual >= LEAST_UNUSUAL) & (size <= LARGEST) & ~stated
        flags = np.asarray(((inputs == 0.0) | (inputs == 1.0)).all(axis=0) & (unusual > 0) & ~stated)
        whole = telling & ~schema.integral() & (size <= LARGEST_WHOLE)
        self.whole_ = whole & (np.abs(inputs - np.rint(inputs)) <= TOLERANCE).all(axis=0)
        if len(inputs) >= ROWS_A_FEATURE * int((telling | flags).sum()):
            self._learn_equations(inputs, telling, flags)
        self.pairs_ = _pairs(inputs, np.flatnonzero(telling & ~flags), usual)
        gaps = inputs[:, self.pairs_[:, 1]] - inputs[:, self.pairs_[:, 0]]
        self.units_ = np.maximum(gaps.mean(axis=0), np.finfo(np.float64).tiny)

    def _learn_equations(
        self, inputs: NDArray[np.float64], telling: NDArray[np.bool_], flags: NDArray[np.bool_]
    ) -> None:
        part = inputs[:: -(-len(inputs) // SEARCH_ROWS)]
        varies = telling | flags
        spread, size = part[:, varies].std(axis=0), np.abs(part[:, varies]).max(axis=0)
        varies[varies] = spread > CONSTANT_SHARE * np.maximum(size, 1.0)
        exact, pivots = linear_relations(part, np.flatnonzero(varies))
        used = exact != 0
        onehot = (
            (used <= flags).all(axis=1)
            & (np.ptp(np.where(used, exact, exact.max(axis=1, keepdims=True)), axis=1) < TOLERANCE)
            & ((used & telling).sum(axis=1) >= 2)
            & (inputs[:, flags] @ used[:, flags].T == 1.0).all(axis=0)
        )
        self.groups_ = used[onehot]
        others = telling & varies & ~flags
        others[pivots] = False
        near, _ = linear_relations(part, np.flatnonzero(others), NEAR_SPREAD, NEAR_COEFFICIENT)
        found = list(exact[~onehot & (used <= telling).all(axis=1)])
        found += [_refitted(part, row) for row in near if np.count_nonzero(row) > 1]
        matrix = np.array(found).reshape(len(found), inputs.shape[1])
        values = inputs[:, telling] @ matrix[:, telling].T
        constant = np.median(values, axis=0)
        miss = np.abs(values - constant).max(axis=0)
        kept = miss <= LARGEST_MISS * (np.abs(matrix[:, telling]) * inputs[:, telling].std(axis=0)).max(
            axis=1, initial=0.0
        )
        self.matrix_, self.constant_, self.slack_ = matrix[kept], constant[kept], MISSES * miss[kept]

    def _prepare(self, schema: FeatureSchema) -> None:
        self._schema = schema
        used = self.matrix_ != 0
        self._kernel = (
            np.nonzero(used)[1].astype(np.int64),
            self.matrix_[used],
            np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int64),
            self.constant_,
            self.slack_,
            self.pairs_,
            self.units_,
            np.flatnonzero(self.whole_).astype(np.int64),
            np.nonzero(self.groups_)[1].astype(np.int64),
            np.concatenate([[0], np.cumsum(self.groups_.sum(axis=1))]).astype(np.int64),
            ROUNDING,
            TOLERANCE,
            rows.VIOLATION_CAP,
        )

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) sums over relations; 0 for a row that keeps them all."""
        out = np.empty(len(view.batch))
        rows.row_sums(self._parts(view.batch.inputs), out)
        return out

    def _parts(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        self._fitted()
        count = len(self.constant_) + len(self.pairs_) + int(self.whole_.sum()) + len(self.groups_)
        parts = np.empty((len(inputs), count))
        broken_relations(inputs, *self._kernel, parts)
        return parts

    def explain(self, view: View, row: int) -> str:
        """The worst relation by the names of its features."""
        schema = self._fitted()
        inputs = view.batch.inputs[row : row + 1]
        parts = self._parts(inputs)[0]
        count = int(np.count_nonzero(parts))
        if not count:
            return "the input keeps every relation between features that the reference rows keep"
        rest = "" if count == 1 else f", and {count - 1} more"
        told = self._told(int(parts.argmax()), inputs[0], schema)
        return f"the input breaks what every reference row keeps: {told}{rest}"

    def _told(self, relation: int, x: NDArray[np.float64], schema: FeatureSchema) -> str:
        names = [feature.name for feature in schema.features]
        if relation < len(self.constant_):
            with np.errstate(all="ignore"):
                off = abs(float(self.matrix_[relation] @ x) - float(self.constant_[relation]))
            by = f"off by {off:.3g}" if np.isfinite(off) else "off beyond measure"
            return f"{self._equation(relation, names)} ({by}, never by more than {self.slack_[relation] / MISSES:.3g})"
        relation -= len(self.constant_)
        if relation < len(self.pairs_):
            low, high = self.pairs_[relation]
            return f"{names[low]} <= {names[high]} ({x[low]:.6g} and {x[high]:.6g})"
        relation -= len(self.pairs_)
        whole = np.flatnonzero(self.whole_)
        if relation < len(whole):
            return f"{names[whole[relation]]} is a whole number ({x[whole[relation]]:.6g})"
        members = np.flatnonzero(self.groups_[relation - len(whole)])
        told = ", ".join(names[member] for member in members[:TERMS])
        more = f" and {len(members) - TERMS} more" if len(members) > TERMS else ""
        return f"one of {told}{more} is 1 and the others 0"

    def _equation(self, relation: int, names: list[str]) -> str:
        """Written as largest = constant + other terms, the weightiest first."""
        coefficients = self.matrix_[relation]
        order = np.argsort(-np.abs(coefficients), kind="stable")[: np.count_nonzero(coefficients)]
        first = order[0]
        text = names[first] + " ="
        for place, column in enumerate(order[1 : 1 + TERMS]):
            weight = -coefficients[column] / coefficients[first]
            sign = "-" if weight < 0 else "+" if place else ""
            factor = "" if abs(abs(weight) - 1.0) < TOLERANCE else f"{abs(weight):.4g} "
            text += f" {sign} {factor}{names[column]}" if sign else f" {factor}{names[column]}"
        if len(order) > 1 + TERMS:
            text += f" + {len(order) - 1 - TERMS} more terms"
        constant = self.constant_[relation] / coefficients[first]
        if abs(constant) > self.slack_[relation] + TOLERANCE * abs(coefficients[first]):
            text += f" {'-' if constant < 0 else '+'} {abs(constant):.6g}"
        return text

    def _fitted(self) -> FeatureSchema:
        if self._schema is None:
            raise ValueError("relations: call fit or restore first")
        return self._schema

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Equations with their slack, pairs with their units, whole numbers, groups."""
        return {
            "matrix": self.matrix_,
            "constant": self.constant_,
            "slack": self.slack_,
            "pairs": self.pairs_,
            "units": self.units_,
            "whole": self.whole_,
            "groups": self.groups_,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        equations, pairs, width = len(arrays["constant"]), len(arrays["units"]), schema.width
        tiny = float(np.finfo(np.float64).tiny)
        made.matrix_ = stored(arrays, "matrix", np.float64, equations, width)
        made.constant_ = stored(arrays, "constant", np.float64, equations)
        made.slack_ = within("slack", stored(arrays, "slack", np.float64, equations), 0.0, np.inf)
        made.pairs_ = within("pairs", stored(arrays, "pairs", np.int64, pairs, 2), 0, width - 1)
        made.units_ = within("units", stored(arrays, "units", np.float64, pairs), tiny, np.inf)
        made.whole_ = stored(arrays, "whole", np.bool_, width)
        made.groups_ = stored(arrays, "groups", np.bool_, len(arrays["groups"]), width)
        if not (made.matrix_ != 0).any(axis=1).all():
            raise ValueError("matrix holds an equation without a term")
        made._prepare(schema)
        return made


def _refitted(inputs: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.float64]:
    """An equation (d,) that holds nearly, its terms fitted anew by least squares."""
    columns = np.flatnonzero(row)
    spread = inputs[:, columns].std(axis=0)
    standard = (inputs[:, columns] - inputs[:, columns].mean(axis=0)) / spread
    first = int(np.argmax(np.abs(row[columns] * spread)))
    weights = np.linalg.lstsq(np.delete(standard, first, axis=1), standard[:, first], rcond=None)[0]
    made = np.zeros(len(row))
    made[columns] = np.insert(-weights, first, 1.0) / spread
    found: NDArray[np.float64] = made / np.abs(made).max()
    return found


def _pairs(inputs: NDArray[np.float64], columns: NDArray[np.intp], usual: NDArray[np.float64]) -> NDArray[np.int64]:
    """(p, 2) columns of which the first is never above the second, and equal to it again and again."""
    found: list[tuple[int, int]] = []
    start = inputs[:FIRST_ROWS, columns]
    for low in columns:
        possible = columns[(inputs[:FIRST_ROWS, low, None] <= start).all(axis=0)]
        for high in possible[possible != low]:
            a, b = inputs[:, low], inputs[:, high]
            if not (a <= b).all():
                continue
            touched = a[(a == b) & (a != usual[low])]
            if len(touched) >= LEAST_TOUCHES and len(np.unique(touched)) >= LEAST_TOUCHED and (a < b).any():
                found.append((int(low), int(high)))
    return np.array(found, dtype=np.int64).reshape(-1, 2)
