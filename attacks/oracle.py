"""The model as a query attack sees it: every question counted, traced, and judged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Attack, Crafted, GradientModel, Model, Trace
from attacks.errors import BudgetError, ModelError, ThreatModelError
from attacks.nearest import Nearest
from attacks.threat import ThreatModel


def start_rows(
    attack: Attack, x: NDArray[np.float64], y: NDArray[np.int64], threat: ThreatModel
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Start rows (n, d) and their classes (n,), copied and checked against the threat model and what the attack can do.

    Raises
    ------
    ThreatModelError
    """
    where = f"{attack.name} under {threat.name!r}"
    rows = np.array(x, dtype=np.float64, order="C")
    if rows.ndim != 2 or rows.shape[1] != threat.domain.width:
        raise ThreatModelError(f"{where}: start rows have shape {rows.shape}; it needs (n, {threat.domain.width})")
    labels = np.asarray(y)
    if labels.shape != (len(rows),) or (len(rows) and labels.dtype.kind not in "iu"):
        raise ThreatModelError(
            f"{where}: classes are {labels.dtype} of shape {labels.shape}; it needs whole numbers, ({len(rows)},)"
        )
    if threat.norm not in attack.norms:
        raise ThreatModelError(f"{where}: norm {threat.norm}; it keeps {', '.join(sorted(attack.norms))}")
    if attack.needs_eps and threat.eps is None:
        raise ThreatModelError(f"{where}: eps is None; this attack needs a bound on the distance")
    if threat.goal != "any" and not attack.targeted:
        raise ThreatModelError(f"{where}: goal is class {threat.goal}; this attack can only leave a class (goal 'any')")
    if attack.access not in ("labels", "scores") and threat.knowledge == "black-box":
        raise ThreatModelError(
            f"{where}: knowledge is black-box; this attack needs the model's {attack.access} (transfer or white-box)"
        )
    complaint = threat.domain.complaint(rows)
    if complaint is not None:
        raise ThreatModelError(f"{where}: start {complaint}")
    return rows, labels.astype(np.int64)


def scores_of(model: Model, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The model's scores (m, k) of rows (m, d).

    Raises
    ------
    ModelError
        When they are not finite numbers of that shape.
    """
    scores = np.asarray(model.predict(rows), dtype=np.float64)
    if scores.ndim != 2 or len(scores) != len(rows) or scores.shape[1] < 2:
        raise ModelError(f"the model answered {len(rows)} rows with shape {scores.shape}; it needs (n, k), k >= 2")
    if not np.isfinite(scores).all():
        raise ModelError(
            f"the model answered row {int(np.argmax(~np.isfinite(scores).all(axis=1)))} with a score that is not finite"
        )
    return scores


def with_gradients(attack: Attack, model: Model) -> GradientModel:
    """The model, seen to have gradients.

    Raises
    ------
    ModelError
    """
    if not isinstance(model, GradientModel):
        raise ModelError(
            f"{attack.name} needs `logits` and `gradient` of the model, {type(model).__name__} lacks them; "
            "fit a surrogate (attacks.surrogate) or adapt the model (attacks.gradients)"
        )
    return model


class Oracle:
    """Asks the model for one attack and keeps the nearest adversarial row of every start row.

    Parameters
    ----------
    model : Model
    x : float64 (n, d)
        Legal start rows.
    y : int64 (n,)
    threat : ThreatModel

    Attributes
    ----------
    left : int64 (n,)
        Queries left.
    """

    def __init__(self, model: Model, x: NDArray[np.float64], y: NDArray[np.int64], threat: ThreatModel) -> None:
        self.x, self.y, self.threat = x, y, threat
        self.left = np.full(len(x), threat.budget, dtype=np.int64)
        self._model = model
        self._nearest = Nearest(x, threat)
        self._asked: list[NDArray[np.float64]] = []
        self._samples: list[NDArray[np.int64]] = []
        self._labels: list[NDArray[np.int64]] = []

    @property
    def found(self) -> NDArray[np.bool_]:
        """(n,) for which start rows a row that the threat model admits fulfilled the goal."""
        return self._nearest.found

    @property
    def going(self) -> NDArray[np.bool_]:
        """(n,) which start rows still have a query left and are not done; with a bound, the first success is enough."""
        going = self.left > 0
        return going if self.threat.eps is None else going & ~self.found

    def need(self, queries: int, attack: Attack) -> None:
        """Refuse a budget below so many queries."""
        if self.threat.budget < queries:
            raise BudgetError(
                f"{attack.name} under {self.threat.name!r}: a budget of {self.threat.budget} queries; "
                f"it takes at least {queries}"
            )

    def ask(self, samples: NDArray[np.intp], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The model's scores (m, k) of legal rows (m, d), each asked for start row `samples` (m,)."""
        if len(rows) == 0:
            return np.empty((0, 2))
        counts = np.bincount(samples, minlength=len(self.x))
        if (counts > self.left).any():
            raise BudgetError(f"start row {int(np.argmax(counts > self.left))}: more questions than its budget holds")
        rows = np.ascontiguousarray(rows)
        rows.flags.writeable = False
        scores = scores_of(self._model, rows)
        self.left -= counts
        labels = np.argmax(scores, axis=1)
        self._asked.append(rows)
        self._samples.append(np.asarray(samples, dtype=np.int64))
        self._labels.append(labels)
        hit = np.flatnonzero(self.threat.reached(labels, self.y[samples]))
        if len(hit):
            self._nearest.offer(samples[hit], rows[hit])
        return scores

    def fooled(self, samples: NDArray[np.intp], rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(m,) which of the rows, asked as in `ask`, fulfil the goal, wherever they lie."""
        labels = np.argmax(self.ask(samples, rows), axis=1)
        return self.threat.reached(labels, self.y[samples])

    def crafted(self, otherwise: NDArray[np.float64] | None = None) -> Crafted:
        """The nearest adversarial rows; `otherwise` (n, d), admitted by the threat model, where there is none."""
        inputs = self._nearest.rows
        if otherwise is not None:
            inputs = np.where(self.found[:, None], inputs, otherwise)
        width = self.x.shape[1]
        trace = Trace(
            np.concatenate(self._asked) if self._asked else np.empty((0, width)),
            np.concatenate(self._samples) if self._samples else np.empty(0, dtype=np.int64),
            np.concatenate(self._labels) if self._labels else np.empty(0, dtype=np.int64),
        )
        distances = self.threat.distances(self.x, inputs)
        return Crafted(inputs, self.found, distances, self.threat.budget - self.left, trace)


def owned(
    model: Model, x: NDArray[np.float64], y: NDArray[np.int64], inputs: NDArray[np.float64], threat: ThreatModel
) -> Crafted:
    """The result of an attack without questions: success by the model in the attacker's hands, no query, no trace."""
    success = np.zeros(len(x), dtype=np.bool_)
    if len(x):
        success = threat.reached(np.argmax(scores_of(model, inputs), axis=1), y)
    trace = Trace(np.empty((0, x.shape[1])), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    return Crafted(inputs, success, threat.distances(x, inputs), np.zeros(len(x), dtype=np.int64), trace)
