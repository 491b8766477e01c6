"""Clients that legitimately send near-identical rows, each kind a generator of one client's rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Predict = Callable[[Rows], Rows]

#: Rows of one client, and of each line of a path explainer.
ROWS, PATH_STEPS = 150, 15


@dataclass(frozen=True, slots=True)
class Site:
    """What a client sees of the watched model, with inputs in [0, 1].

    Attributes
    ----------
    predict : callable
        Scores (n, k) of rows (n, d).
    background : float64 (d,)
        A typical row, as explainers replace features by it.
    """

    predict: Predict
    background: Rows

    def score(self, row: Rows, label: int) -> float:
        """The score that a row gets for a class."""
        return float(self.predict(row[None])[0, label])

    def label(self, row: Rows) -> int:
        """The answer to a row."""
        return int(self.predict(row[None])[0].argmax())


def sensor(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Looks at one thing for ever."""
    return x + 0.01 * rng.normal(size=(ROWS, x.size))


def wandering_sensor(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """A sensor whose reading wanders around its place in every feature."""
    state, rows = np.zeros(x.size), []
    for _ in range(ROWS):
        state = 0.9 * state + 0.03 * rng.normal(size=x.size)
        rows.append(x + state)
    return np.array(rows)


def drifting_sensor(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """A sensor whose reading walks away at random."""
    return x + 0.01 * np.cumsum(rng.normal(size=(ROWS, x.size)), axis=0)


def sweep(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """One feature through its range."""
    rows = np.repeat(x[None], ROWS, axis=0)
    rows[:, rng.integers(x.size)] = np.linspace(0, 1, ROWS)
    return rows


def grid(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Two features on a grid."""
    rows = np.repeat(x[None], 144, axis=0)
    columns = rng.choice(x.size, 2, replace=False)
    steps = np.linspace(0, 1, 12)
    rows[:, columns[0]], rows[:, columns[1]] = np.tile(steps, 12), np.repeat(steps, 12)
    return rows


def few_feature_walk(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Five features walk at random."""
    rows = np.repeat(x[None], ROWS, axis=0)
    columns = rng.choice(x.size, 5, replace=False)
    rows[:, columns] += 0.05 * np.cumsum(rng.normal(size=(ROWS, 5)), axis=0)
    return rows


def what_if(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Tries values of up to five features, then begins again."""
    rows, row = [], x
    for turn in range(ROWS):
        row = (x if turn % 5 == 0 else row).copy()
        row[rng.integers(x.size)] = rng.uniform()
        rows.append(row)
    return np.array(rows)


def recourse(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Moves four features until the answer changes: towards the boundary, as an attacker would."""
    row, rows, columns, label = x, [], rng.choice(x.size, 4, replace=False), site.label(x)
    best = site.score(x, label)
    for _ in range(ROWS):
        tried = row.copy()
        column = rng.choice(columns)
        tried[column] = np.clip(tried[column] + 0.1 * rng.choice([-1, 1]), 0, 1)
        rows.append(tried)
        score = site.score(tried, label)
        if score < best:
            row, best = tried, score
    return np.array(rows)


def benign_optimiser(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Changes everything to make the model surer of its answer."""
    row, rows, label = x, [], site.label(x)
    best = site.score(x, label)
    for _ in range(ROWS):
        tried = np.clip(row + 0.03 * rng.normal(size=x.size), 0, 1)
        rows.append(tried)
        score = site.score(tried, label)
        if score > best:
            row, best = tried, score
    return np.array(rows)


def walk_in_all_features(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Every feature walks at random, in steps of random length."""
    return x + 0.03 * np.cumsum(rng.normal(size=(ROWS, x.size)) * rng.normal(size=(ROWS, 1)), axis=0)


def noisy_copies(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """One row with fresh noise each time, as augmentation and LIME make them."""
    return x + 0.1 * rng.normal(size=(ROWS, x.size))


def shap_explainer(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Random subsets of features replaced by the background's."""
    kept = rng.random((ROWS, x.size)) < rng.random((ROWS, 1))
    return np.where(kept, x, site.background)


def path_explainer(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """Even steps on straight lines from rows near the background's to one row, as path explainers take them.

    References
    ----------
    Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017; random baselines: Erion et al.,
    "Improving performance of deep learning models with axiomatic attribution priors and expected gradients", Nature
    Machine Intelligence 3, 2021.
    """
    lines = -(-ROWS // PATH_STEPS)
    baselines = np.clip(site.background + 0.05 * rng.normal(size=(lines, 1, x.size)), 0, 1)
    shares = np.linspace(0, 1, PATH_STEPS)[:, None]
    return np.asarray(baselines + shares * (x - baselines)).reshape(-1, x.size)[:ROWS]


def mailing(site: Site, x: Rows, rng: np.random.Generator) -> Rows:
    """One template, ten features of which differ from row to row."""
    rows = np.repeat(x[None], ROWS, axis=0)
    columns = rng.choice(x.size, 10, replace=False)
    rows[:, columns] += 0.1 * rng.normal(size=(ROWS, 10))
    return rows


Kind = Callable[[Site, Rows, np.random.Generator], Rows]

KINDS: tuple[Kind, ...] = (
    sensor,
    wandering_sensor,
    drifting_sensor,
    sweep,
    grid,
    few_feature_walk,
    what_if,
    recourse,
    benign_optimiser,
    walk_in_all_features,
    noisy_copies,
    shap_explainer,
    mailing,
    path_explainer,
)
