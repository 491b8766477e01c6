"""Models and crafted examples that detection of single inputs is measured on.

Every feature is brought to 0 .. 1 by its range in the training rows. Rows are dealt out anew for each seed: training
rows (the model's, and what detectors call normal), tuning rows (calibration, and starts of tuning attacks) and report
rows, which nothing is fitted on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from attacks import gradients, registry
from attacks import trees as tree_models
from attacks.contract import Attack, Model
from attacks.square import Square
from attacks.surrogate import fit_surrogate
from attacks.threat import Domain, Knowledge, Norm, ThreatModel
from benchmarks.datasets import Data, Kind, features, table
from detectors.schema import FeatureSchema

#: Linf radii of the attacks that need one.
RADII = (0.05, 0.1, 0.2, 0.3)
#: Queries that a black-box attack may ask for each start row.
BUDGET = 1000
#: Start rows that advance together; every query is kept in memory until they are done.
ROWS_AT_ONCE = 25
#: Share of the rows that go to training, tuning and report.
SHARES = (0.5, 0.25, 0.25)
#: Shapes of pictures.
SHAPES = {"digits": (8, 8), "mnist": (28, 28)}

#: Levels of a feature that crafted rows are rounded to, where the data is pictures of so many.
LEVELS = {"mnist": 255.0}
#: Marks an attack that gives back what it changed of features that were zero.
KEPT = "zeros kept"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows (n, d), their true classes, and the watched model's answers."""

    x: NDArray[np.float64]
    truth: NDArray[np.int32]
    labels: NDArray[np.int32]
    outputs: NDArray[np.float64]


class Asked:
    """The watched model: probabilities of rows, by the fastest way there is."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator
        self._read: Model | None = None
        if isinstance(estimator, RandomForestClassifier | HistGradientBoostingClassifier):
            self._read = tree_models.adapt(estimator)
        elif isinstance(estimator, MLPClassifier | LogisticRegression):
            self._read = gradients.adapt(estimator)

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, k) probabilities."""
        if self._read is None:
            return np.asarray(self.estimator.predict_proba(x), dtype=np.float64)
        return np.asarray(self._read.predict(x))


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One model on one deal of one data set."""

    data: Data
    kind: Kind
    seed: int
    schema: FeatureSchema
    domain: Domain
    model: Asked
    train: Part
    tuning: Part
    report: Part

    @property
    def gradients(self) -> bool:
        """Whether white-box attacks by gradients can read the model."""
        return self.kind in ("mlp", "logistic")


def estimator(kind: Kind, seed: int) -> Any:
    """An unfitted model."""
    if kind == "mlp":
        return MLPClassifier((100,), max_iter=60, random_state=seed)
    if kind == "forest":
        return RandomForestClassifier(100, random_state=seed, n_jobs=1)
    if kind == "boosting":
        return HistGradientBoostingClassifier(max_iter=60, random_state=seed)
    if kind == "logistic":
        return LogisticRegression(C=10.0, max_iter=500)
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=50, max_depth=5, n_jobs=1, random_state=seed)


def task(data: Data, kind: Kind, seed: int) -> Task:
    """Deal rows out, fit the model, ask it about every row."""
    x, y = table(data)
    order = np.random.default_rng([seed, 1]).permutation(len(x))
    ends = np.cumsum([round(share * len(x)) for share in SHARES[:-1]])
    places = np.split(order, ends)
    columns = features(data, x.shape[1])
    whole = np.array([column.integral for column in columns])
    low, high = np.where(whole, 0.0, x[places[0]].min(axis=0)), np.where(whole, 1.0, x[places[0]].max(axis=0))
    scaled = np.clip((x - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
    if data in SHAPES:
        scaled = np.clip(x / x.max(), 0.0, 1.0)
    made = estimator(kind, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(scaled[places[0]], y[places[0]])
    model = Asked(made)
    names = tuple(str(label) for label in range(int(y.max()) + 1))
    schema = FeatureSchema(columns, names, SHAPES.get(data))
    groups = tuple(schema.groups().values())
    domain = Domain(schema.lows(), schema.highs(), schema.integral(), schema.mutable(), groups)

    def part(rows: NDArray[np.intp]) -> Part:
        outputs = model.predict(scaled[rows])
        return Part(scaled[rows], y[rows].astype(np.int32), outputs.argmax(axis=1).astype(np.int32), outputs)

    return Task(data, kind, seed, schema, domain, model, *(part(rows) for rows in places))


@dataclass(frozen=True, slots=True)
class Plan:
    """One attack of the benchmark: its name in tables, its family for leaving out, and how it is run."""

    name: str
    family: str
    attack: str
    norm: Norm
    eps: float | None


def plans(made: Task) -> list[Plan]:
    """The attacks on a task; models without gradients are attacked by PGD on a surrogate that learned their answers."""
    pgd = "pgd" if made.gradients else "transfer_pgd"
    found = [Plan(f"{pgd} {eps:g}", "pgd", pgd, "linf", eps) for eps in RADII]
    found += [Plan(f"square {eps:g}", "square", "square", "linf", eps) for eps in RADII]
    if made.gradients:
        found.append(Plan("carlini_wagner", "carlini_wagner", "carlini_wagner", "l2", None))
    found.append(Plan("hop_skip_jump", "hop_skip_jump", "hop_skip_jump", "l2", None))
    if made.gradients:
        found.append(Plan(f"pgd 0.3, {KEPT}", "pgd", "pgd", "linf", 0.3))
    return found


def tree_plans(_: Task) -> list[Plan]:
    """Attacks on tree ensembles: those of Braun et al. (2025), and others."""
    return [
        Plan("sign_opt L2", "sign_opt", "sign_opt", "l2", None),
        Plan("opt L2", "opt", "opt", "l2", None),
        Plan("hop_skip_jump L2", "hop_skip_jump", "hop_skip_jump", "l2", None),
        Plan("boundary L2", "boundary", "boundary", "l2", None),
        Plan("leaf_search L2", "leaf_search", "leaf_search", "l2", None),
        Plan("leaf_search Linf", "leaf_search", "leaf_search", "linf", None),
        Plan("leaf_tuple L2", "leaf_tuple", "leaf_tuple", "l2", None),
        Plan("leaf_tuple Linf", "leaf_tuple", "leaf_tuple", "linf", None),
        Plan("square Linf 0.2", "square", "square", "linf", 0.2),
        Plan("cube Linf 0.2", "cube", "cube", "linf", 0.2),
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Successful crafted rows with the model's answers, and how many starts there were."""

    x: NDArray[np.float64]
    labels: NDArray[np.int32]
    outputs: NDArray[np.float64]
    starts: int

    @property
    def success(self) -> float:
        """Share of the starts that succeeded."""
        return len(self.x) / max(1, self.starts)


def _target(made: Task, plan: Plan, rng: np.random.Generator) -> tuple[Model, Knowledge, Attack]:
    """The model as the attack reads it, what the attacker knows, and the attack."""
    attack: Attack = Square(shape=made.schema.image_shape) if plan.attack == "square" else registry.kind(plan.attack)()
    if plan.attack == "transfer_pgd":
        return fit_surrogate(made.train.x, made.train.labels.astype(np.int64), rng, "mlp"), "transfer", attack
    if attack.access == "gradients":
        return gradients.adapt(made.model.estimator), "white-box", attack
    if attack.access in ("trees", "leaves"):
        return tree_models.adapt(made.model.estimator), "white-box", attack
    return made.model, "black-box", attack


def craft(made: Task, plan: Plan, part: Part, starts: int, seed: int) -> Examples:
    """Attack the first correctly classified rows of a part; only what succeeds is kept."""
    right = np.flatnonzero(part.labels == part.truth)[:starts]
    rng = np.random.default_rng([made.seed, seed, len(plan.name)])
    model, knowledge, attack = _target(made, plan, rng)
    threat = ThreatModel(plan.name, plan.norm, plan.eps, made.domain, knowledge, BUDGET)
    found = [np.empty((0, part.x.shape[1]))]
    for start in range(0, len(right), ROWS_AT_ONCE):
        rows = right[start : start + ROWS_AT_ONCE]
        crafted = attack.craft(model, part.x[rows], part.truth[rows].astype(np.int64), threat, rng)
        pushed = crafted.inputs
        if KEPT in plan.name:
            pushed = made.domain.repair(part.x[rows], np.where(part.x[rows] == 0.0, 0.0, pushed))
        if made.data in LEVELS:
            pushed = np.rint(pushed * LEVELS[made.data]) / LEVELS[made.data]
        said = made.model.predict(pushed).argmax(axis=1)
        found.append(pushed[said != part.truth[rows]])
    made_rows = np.concatenate(found)
    outputs = made.model.predict(made_rows) if len(made_rows) else np.empty((0, len(made.schema.classes)))
    return Examples(made_rows, outputs.argmax(axis=1).astype(np.int32), outputs, len(right))
