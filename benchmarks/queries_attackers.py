"""Attackers by questions: what each asks, start row after start row, and how it hides its questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from attacks import registry
from attacks.contract import Crafted, Trace
from attacks.threat import Norm, ThreatModel
from benchmarks.crafted import Task
from benchmarks.datasets import Data
from benchmarks.queries_clients import Rows, Supply

#: Linf radius of the attacks that need one.
EPS: Mapping[Data, float] = MappingProxyType(
    {"digits": 0.1, "mnist": 0.1, "spambase": 0.05, "cancer": 0.05, "phishing": 0.2, "kddcup": 0.1}
)
#: Values that are kept in memory while start rows advance together, about.
VALUES_AT_ONCE = 20_000_000
#: Start rows that advance together, at most.
ROWS_AT_ONCE = 40
#: Features that an attacker moves who imitates a person trying values out: the gate of the intent test.
FEW_FEATURES = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """One attack.

    Attributes
    ----------
    name : str
        In tables.
    attack : str
        In the registry.
    norm : Norm
    parameters : mapping
        Where they differ from the defaults.
    apart : bool
        Whether it keeps its queries apart.
    few : bool
        Whether it only moves the `FEW_FEATURES` features that tell classes apart best.
    each : int
        Benign queries beside each of its own, where the plan says so.
    """

    name: str
    attack: str
    norm: Norm
    parameters: Mapping[str, float] = field(default_factory=dict)
    apart: bool = False
    few: bool = False
    each: int = 0


PLANS = (
    Plan("HopSkipJump", "hop_skip_jump", "l2"),
    Plan("Boundary", "boundary", "l2"),
    Plan("Sign-OPT", "sign_opt", "l2"),
    Plan("NES", "nes", "linf"),
    Plan("SimBA", "simba", "l2", {"step": 0.05}),
    Plan("Square", "square", "linf"),
    Plan("ZOO", "zoo", "l2"),
    Plan("kept apart", "kept_apart", "l2", apart=True),
    Plan("kept apart, wide", "kept_apart", "l2", {"apart": 0.5, "radius": 0.7}, apart=True),
)

#: What an attacker tries who knows the method: noise and steps, cover, and looking like a person who tries values out.
STRATEGIES = (
    Plan("HopSkipJump", "hop_skip_jump", "l2"),
    Plan("HopSkipJump, 1:4", "hop_skip_jump", "l2", each=4),
    Plan("HopSkipJump, 1:20", "hop_skip_jump", "l2", each=20),
    Plan("apart .3", "kept_apart", "l2", apart=True),
    Plan("apart .5, wide noise", "kept_apart", "l2", {"apart": 0.5, "radius": 0.7}, apart=True),
    Plan("apart .8, wide noise", "kept_apart", "l2", {"apart": 0.8, "radius": 0.9}, apart=True),
    Plan("apart .3, 1:4", "kept_apart", "l2", apart=True, each=4),
    Plan("apart .5, wide noise, 1:4", "kept_apart", "l2", {"apart": 0.5, "radius": 0.7}, apart=True, each=4),
    Plan("apart .3, jitter", "kept_apart", "l2", {"jitter": 0.7}, apart=True),
    Plan("apart .3, uneven", "kept_apart", "l2", {"share": 0.81, "brackets": 4}, apart=True),
    Plan("apart .3, 1:20", "kept_apart", "l2", apart=True, each=20),
    Plan("six features", "hop_skip_jump", "l2", few=True),
    Plan("six features, 1:4", "hop_skip_jump", "l2", few=True, each=4),
)


def telling_features(made: Task) -> NDArray[np.intp]:
    """The features (of no group) whose class means differ most, in standard deviations within classes."""
    x, labels = made.tuning.x, made.tuning.labels
    means = np.array([x[labels == label].mean(axis=0) for label in np.unique(labels)])
    within = np.sqrt(np.mean([x[labels == label].var(axis=0) for label in np.unique(labels)], axis=0))
    telling = means.std(axis=0) / np.maximum(within, 1e-6)
    return np.argsort(np.where(made.domain.grouped, -1.0, telling))[::-1][:FEW_FEATURES]


def threat_of(made: Task, plan: Plan, budget: int) -> ThreatModel:
    """Black-box, every feature in 0 .. 1; an attack on few features may change no other."""
    domain = made.domain
    if plan.few:
        mutable = np.zeros(domain.width, dtype=np.bool_)
        mutable[telling_features(made)] = True
        domain = replace(domain, mutable=mutable)
    eps = EPS[made.data] if plan.norm == "linf" else None
    return ThreatModel(plan.name, plan.norm, eps, domain, "black-box", budget)


def attacked(made: Task, plan: Plan, starts: Rows, budget: int, rng: np.random.Generator) -> Crafted:
    """Attack start rows (n, d) with `budget` queries each; the answer to leave is the model's own."""
    labels = made.model.predict(starts).argmax(axis=1).astype(np.int64)
    attack = registry.kind(plan.attack)(**plan.parameters)
    return attack.craft(made.model, starts, labels, threat_of(made, plan, budget), rng)


def at_once(width: int, queries: int) -> int:
    """Start rows that advance together."""
    return int(np.clip(VALUES_AT_ONCE // (width * queries), 1, ROWS_AT_ONCE))


def askers(
    made: Task, plan: Plan, supply: Supply, attackers: int, queries: int, rng: np.random.Generator
) -> list[Rows]:
    """The first `queries` rows that each of some attackers asks: it begins on another row where an attack is done."""
    found: list[Rows] = []
    row: list[Rows] = []
    while len(found) < attackers:
        starts, _ = supply.strangers(at_once(made.schema.width, queries), rng)
        trace = attacked(made, plan, starts, queries, rng).trace
        for sample in range(len(starts)):
            row.append(np.concatenate([starts[sample : sample + 1], trace.of(sample).inputs]))
            if sum(len(part) for part in row) >= queries:
                found.append(np.concatenate(row)[:queries])
                row = []
    return found[:attackers]


def first_success(start: Rows, trace: Trace, label: int, goal: float) -> int | None:
    """Queries until a row with another answer than `label` lies within `goal` (L2) of `start`; None if none does."""
    far = np.sqrt(np.square(trace.inputs - start).sum(axis=1))
    hits = np.flatnonzero((trace.labels != label) & (far <= goal))
    return int(hits[0]) + 1 if len(hits) else None


def covered(own: Rows, each: int, cover: Rows, rng: np.random.Generator) -> tuple[Rows, NDArray[np.bool_]]:
    """An attacker's rows with `each` benign ones beside every one of them, in random turns, and which are its own."""
    if each == 0:
        return own, np.ones(len(own), dtype=np.bool_)
    mine = np.zeros((len(own), each + 1), dtype=np.bool_)
    mine[np.arange(len(own)), rng.integers(each + 1, size=len(own))] = True
    flat = mine.ravel()
    mixed = np.empty((flat.size, own.shape[1]))
    mixed[flat], mixed[~flat] = own, cover
    return mixed, flat
