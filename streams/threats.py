"""From a declared threat model and rows of the watched model to the one that attacks keep."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.errors import ThreatModelError
from attacks.relations import learn_relations
from attacks.threat import Domain, ThreatModel, lengths
from detectors.schema import FeatureSchema
from streams.config import ThreatSettings
from streams.errors import ConfigError

#: Rows, the first ones, whose distances to all rows of other classes make a distance quantile.
QUANTILE_ROWS = 500


def model(
    name: str,
    declared: ThreatSettings,
    schema: FeatureSchema,
    inputs: NDArray[np.float64],
    labels: NDArray[np.int64] | None = None,
) -> ThreatModel:
    """The threat model `name` for a model with this schema.

    Parameters
    ----------
    name : str
        What probes, results and reports call it.
    declared : ThreatSettings
        Of `streams.config.threat`.
    schema : FeatureSchema
    inputs : float64 (n, d)
        Benign rows: they give bounds where the schema has none, relations, scales and distance quantiles.
    labels : int64 (n,), optional
        Their classes, for `eps_quantile`.

    Raises
    ------
    ConfigError
        Names the setting and what it lacks.
    """
    where = f"threats.{name}"
    rows = np.asarray(inputs, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != schema.width or not len(rows):
        raise ConfigError(f"{where}: rows have shape {rows.shape}; it needs some of {schema.width} features")
    try:
        bounds = domain(declared, schema, rows, where)
        scale = _scale(declared, bounds, rows)
        eps = declared.eps
        if declared.eps_quantile is not None:
            eps = _quantile(declared, rows, labels, scale, where)
        return ThreatModel(
            name=name,
            norm=declared.norm,
            eps=eps,
            domain=bounds,
            knowledge=declared.knowledge,
            budget=declared.budget,
            goal=_goal(declared, schema, where),
            scale=scale,
        )
    except ThreatModelError as wrong:
        raise ConfigError(f"{where}: {wrong}") from None


def domain(
    declared: ThreatSettings, schema: FeatureSchema, rows: NDArray[np.float64], where: str = "threat model"
) -> Domain:
    """The legal inputs: the schema's, with what the declaration and the rows (n, d) add.

    Raises
    ------
    ConfigError, ThreatModelError
    """
    names = [feature.name for feature in schema.features]
    for setting, patterns in (("mutable", declared.mutable), ("immutable", declared.immutable)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"{where}.{setting}: no feature is called {pattern!r}; there are {_some(names)}")
    mutable = np.array([_fits(name, declared.mutable) and not _fits(name, declared.immutable) for name in names])
    mutable &= schema.mutable()
    low, high = schema.lows(), schema.highs()
    if declared.bounds == "data":
        low = np.where(np.isfinite(low), low, rows.min(axis=0))
        high = np.where(np.isfinite(high), high, rows.max(axis=0))
    groups = tuple(schema.groups().values())
    relations = learn_relations(rows, groups) if declared.relations else None
    return Domain(low, high, schema.integral(), mutable, groups, relations)


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _scale(declared: ThreatSettings, bounds: Domain, rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(d,) one unit of distance; 1 for features that never differ."""
    if declared.scale == "feature" or declared.norm == "l0":
        return None
    unit = bounds.ranges if declared.scale == "range" else rows.std(axis=0)
    return np.where(unit > 0, unit, 1.0)


def _quantile(
    declared: ThreatSettings,
    rows: NDArray[np.float64],
    labels: NDArray[np.int64] | None,
    scale: NDArray[np.float64] | None,
    where: str,
) -> float:
    """Half the distance within which a share of rows has a row of another class: nothing there is ambiguous yet.

    Yang, Rashtchian, Zhang, Salakhutdinov & Chaudhuri, "A Closer Look at Accuracy vs. Robustness", NeurIPS 2020,
    section 3 (r-separation).
    """
    if labels is None or len(np.unique(labels)) < 2:
        raise ConfigError(f"{where}.eps_quantile: needs rows of at least two classes; give `eps` instead")
    scaled = rows if scale is None else rows / scale
    taken = min(len(rows), QUANTILE_ROWS)
    nearest = np.empty(taken)
    for row in range(taken):
        others = scaled[labels != labels[row]]
        nearest[row] = lengths(declared.norm, others - scaled[row]).min()
    eps = float(np.quantile(nearest, declared.eps_quantile or 0.0)) / 2
    if declared.norm == "l0":
        eps = float(max(1, round(eps)))
    if not eps > 0:
        raise ConfigError(f"{where}.eps_quantile: rows of different classes are equal; give `eps` instead")
    return eps


def _goal(declared: ThreatSettings, schema: FeatureSchema, where: str) -> int | Literal["any"]:
    goal = declared.goal
    if goal == "any":
        return "any"
    if isinstance(goal, str) and goal in schema.classes:
        return schema.classes.index(goal)
    if isinstance(goal, int) and goal < len(schema.classes):
        return goal
    raise ConfigError(f"{where}.goal: no class {goal!r}; there are any, {_some(list(schema.classes))}")
