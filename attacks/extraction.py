"""Model extraction: queries whose answers train a copy of the watched model."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Model, Trace
from attacks.errors import AttackError, BudgetError, SurrogateError, ThreatModelError
from attacks.network import Network
from attacks.oracle import scores_of
from attacks.surrogate import fit_surrogate
from attacks.threat import Domain

#: Queries that are asked before a copy can be fitted.
LEAST_QUERIES = 10


@dataclass(frozen=True, slots=True, eq=False)
class Stolen:
    """What an extraction brought home.

    Attributes
    ----------
    copy : Network
        Fitted on every answer.
    trace : Trace
        Every query in order; `samples` holds the number of the round.
    """

    copy: Network
    trace: Trace

    def agreement(self, inputs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
        """Share of rows (n, d) on which the copy answers with the watched model's class (n,)."""
        return float((np.argmax(self.copy.logits(inputs), axis=1) == labels).mean())


@runtime_checkable
class Extraction(Protocol):
    """Copies a model by asking it. Constructor parameters are plain data with defaults.

    Attributes
    ----------
    name : str
        The name in `names`.
    """

    name: ClassVar[str]

    def steal(
        self, model: Model, seeds: NDArray[np.float64], domain: Domain, budget: int, rng: np.random.Generator
    ) -> Stolen:
        """Ask at most `budget` legal rows, starting from legal rows (n, d) that the attacker has.

        Raises
        ------
        ThreatModelError
            Seeds are missing, illegal or not finite.
        BudgetError
            The budget is below `LEAST_QUERIES`.
        SurrogateError
            The model gave one class for everything.
        ModelError
        """


class Questions:
    """The model, asked within a budget; rows and answers kept."""

    def __init__(self, name: str, model: Model, seeds: NDArray[np.float64], domain: Domain, budget: int) -> None:
        rows = np.array(seeds, dtype=np.float64, order="C")
        if rows.ndim != 2 or rows.shape[1] != domain.width or len(rows) == 0:
            raise ThreatModelError(f"{name}: seeds have shape {rows.shape}; it needs (n, {domain.width}), n >= 1")
        complaint = domain.complaint(rows)
        if complaint is not None:
            raise ThreatModelError(f"{name}: seed {complaint}")
        if budget < LEAST_QUERIES:
            raise BudgetError(f"{name}: a budget of {budget} queries; a copy takes at least {LEAST_QUERIES}")
        self.seeds, self.domain, self.left = rows, domain, budget
        self._model, self._round = model, 0
        self._rows: list[NDArray[np.float64]] = []
        self._labels: list[NDArray[np.int64]] = []
        self._rounds: list[NDArray[np.int64]] = []

    def ask(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Predicted classes of as many of the rows as the budget allows."""
        rows = np.ascontiguousarray(rows[: self.left])
        if len(rows) == 0:
            return np.empty(0, dtype=np.int64)
        labels = np.argmax(scores_of(self._model, rows), axis=1)
        self.left -= len(rows)
        self._rows.append(rows)
        self._labels.append(labels)
        self._rounds.append(np.full(len(rows), self._round, dtype=np.int64))
        self._round += 1
        return labels

    @property
    def rows(self) -> NDArray[np.float64]:
        return np.concatenate(self._rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.concatenate(self._labels)

    def fit(self, kind: Literal["linear", "mlp"], rng: np.random.Generator) -> Network:
        """A copy from all answers so far."""
        return fit_surrogate(self.rows, self.labels, rng, kind)

    def stolen(self, kind: Literal["linear", "mlp"], rng: np.random.Generator) -> Stolen:
        trace = Trace(self.rows, np.concatenate(self._rounds), self.labels)
        try:
            return Stolen(self.fit(kind, rng), trace)
        except SurrogateError as error:
            raise SurrogateError(f"{len(trace)} answers teach nothing: {error}") from None


def mixtures(
    seeds: NDArray[np.float64], domain: Domain, n: int, rng: np.random.Generator, jitter: float
) -> NDArray[np.float64]:
    """Legal rows (n, d) on the lines between random pairs of seeds, with noise of `jitter` feature ranges."""
    first, second = seeds[rng.integers(0, len(seeds), n)], seeds[rng.integers(0, len(seeds), n)]
    share = rng.random((n, 1))
    rows = first + share * (second - first) + jitter * domain.ranges * rng.standard_normal(first.shape)
    return domain.wander(first, rows, rng)


@dataclass(frozen=True, slots=True)
class RandomExtraction:
    """Random queries: a share of them uniform over the domain, the others mixtures of the attacker's rows.

    Parameters
    ----------
    uniform : float
        Share of uniform rows.
    jitter : float
        Noise on mixtures, in feature ranges.
    kind : {"linear", "mlp"}
        What the copy is.

    References
    ----------
    Tramer, Zhang, Juels, Reiter & Ristenpart, "Stealing Machine Learning Models via Prediction APIs", USENIX Security
    2016, section 6.1 (retraining with uniform queries).
    """

    uniform: float = 0.3
    jitter: float = 0.05
    kind: Literal["linear", "mlp"] = "mlp"
    name: ClassVar[str] = "random_extraction"

    def steal(
        self, model: Model, seeds: NDArray[np.float64], domain: Domain, budget: int, rng: np.random.Generator
    ) -> Stolen:
        questions = Questions(self.name, model, seeds, domain, budget)
        rows = mixtures(questions.seeds, domain, budget, rng, self.jitter)
        spread = np.flatnonzero(rng.random(budget) < self.uniform)
        rows[spread] = domain.sample(rows[spread], rng)
        questions.ask(rows)
        return questions.stolen(self.kind, rng)


@dataclass(frozen=True, slots=True)
class JacobianExtraction:
    """Jacobian-based augmentation: each round asks every row so far, moved to where the copy's answer changes most.

    Parameters
    ----------
    step : float
        Length of the move as a share of each feature's range.
    turn : int
        Rounds after which the move changes its sign.
    most : int
        Rows that one round asks; beyond it a random part of them is moved.
    kind : {"linear", "mlp"}

    References
    ----------
    Papernot, McDaniel, Goodfellow, Jha, Celik & Swami, "Practical Black-Box Attacks against Machine Learning", ASIA CCS
    2017, algorithm 1; periodic step and reservoir: Papernot, McDaniel & Goodfellow, 2016, arXiv:1605.07277, section 4.
    """

    step: float = 0.1
    turn: int = 3
    most: int = 400
    kind: Literal["linear", "mlp"] = "mlp"
    name: ClassVar[str] = "jacobian_extraction"

    def steal(
        self, model: Model, seeds: NDArray[np.float64], domain: Domain, budget: int, rng: np.random.Generator
    ) -> Stolen:
        questions = Questions(self.name, model, seeds, domain, budget)
        questions.ask(questions.seeds[rng.permutation(len(questions.seeds))])
        if len(np.unique(questions.labels)) < 2:
            questions.ask(domain.sample(np.repeat(questions.seeds, 10, axis=0), rng))
        number = 0
        while questions.left > 0:
            copy = questions.fit(self.kind, rng)
            rows, labels = questions.rows, questions.labels
            chosen = rng.permutation(len(rows))[: self.most]
            weights = np.zeros((len(chosen), int(labels.max()) + 1))
            weights[np.arange(len(chosen)), labels[chosen]] = 1.0
            sign = 1.0 if number // self.turn % 2 == 0 else -1.0
            push = np.sign(copy.gradient(rows[chosen], weights)) * domain.ranges * domain.movable
            moved = domain.wander(rows[chosen], rows[chosen] + sign * self.step * push, rng)
            stayed = (moved == rows[chosen]).all(axis=1)
            moved[stayed] = domain.sample(moved[stayed], rng, 0.5)
            questions.ask(moved)
            number += 1
        return questions.stolen(self.kind, rng)


@dataclass(frozen=True, slots=True)
class AdaptiveExtraction:
    """Uncertainty sampling: each round asks the candidates on which the copy is least sure.

    Parameters
    ----------
    rounds : int
    pool : int
        Candidates for one query.
    jitter : float
        Noise on candidates, in feature ranges.
    kind : {"linear", "mlp"}

    References
    ----------
    Tramer, Zhang, Juels, Reiter & Ristenpart, USENIX Security 2016, section 6.1 (adaptive retraining); Chandrasekaran,
    Chaudhuri, Giacomelli, Jha & Yan, "Exploring Connections Between Active Learning and Model Extraction", USENIX
    Security 2020, section 5.
    """

    rounds: int = 10
    pool: int = 20
    jitter: float = 0.05
    kind: Literal["linear", "mlp"] = "mlp"
    name: ClassVar[str] = "adaptive_extraction"

    def steal(
        self, model: Model, seeds: NDArray[np.float64], domain: Domain, budget: int, rng: np.random.Generator
    ) -> Stolen:
        questions = Questions(self.name, model, seeds, domain, budget)
        batch = -(-budget // (self.rounds + 1))
        questions.ask(mixtures(questions.seeds, domain, batch, rng, self.jitter))
        if len(np.unique(questions.labels)) < 2:
            questions.ask(domain.sample(mixtures(questions.seeds, domain, batch, rng, self.jitter), rng))
        while questions.left > 0:
            copy = questions.fit(self.kind, rng)
            pool = mixtures(questions.seeds, domain, batch * self.pool, rng, self.jitter)
            ordered = np.sort(copy.logits(pool), axis=1)
            questions.ask(pool[np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")[:batch]])
        return questions.stolen(self.kind, rng)


_OWN: dict[str, type[Any]] = {kind.name: kind for kind in (RandomExtraction, JacobianExtraction, AdaptiveExtraction)}


def names() -> list[str]:
    """Every registered extraction: ours, and those that entry points of the group ``vedette.extractions`` add."""
    return sorted({*_OWN, *(point.name for point in entry_points(group="vedette.extractions"))})


def kind(name: str) -> type[Extraction]:
    """The class of an extraction; `AttackError` names those there are."""
    if name in _OWN:
        return _OWN[name]
    for point in entry_points(group="vedette.extractions"):
        if point.name == name:
            found: type[Extraction] = point.load()
            return found
    raise AttackError(f"no extraction is called {name!r}; there are {', '.join(names())}")
