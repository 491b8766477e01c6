"""Every registered extraction keeps the contract."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks import extraction
from attacks.errors import AttackError, BudgetError, SurrogateError, ThreatModelError
from attacks.network import Network
from attacks.threat import Domain

WIDTH = 8


def domain() -> Domain:
    low, high = np.zeros(WIDTH), np.ones(WIDTH)
    high[4] = 9
    integral = np.arange(WIDTH) == 4
    return Domain(low, high, integral, np.arange(WIDTH) != 1, (np.array([5, 6, 7]),))


def rows(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    x = rng.random((n, WIDTH))
    x[:, 1] = 0.5
    x[:, 4] = rng.integers(0, 10, n)
    x[:, 5:] = np.eye(3)[rng.integers(0, 3, n)]
    return x


class Watched:
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        weights = rng.normal(0, 2, (WIDTH, 3))
        weights[4] /= 9
        self.inner = Network((weights,), (np.zeros(3),))
        bias = -self.inner.logits(rows(300, rng)).mean(axis=0)
        self.inner = Network(self.inner.weights, (bias,))
        self.asked: list[NDArray[np.float64]] = []

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        self.asked.append(X.copy())
        return self.inner.predict(X)

    def labels(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.argmax(self.inner.predict(X), axis=1)


@pytest.fixture(params=extraction.names())
def kind(request: pytest.FixtureRequest) -> type[extraction.Extraction]:
    return extraction.kind(request.param)


def test_a_copy_answers_as_the_model_does(kind: type[extraction.Extraction]) -> None:
    assert isinstance(kind(), extraction.Extraction)
    model, fresh = Watched(), rows(400, np.random.default_rng(9))
    stolen = kind().steal(model, rows(20, np.random.default_rng(1)), domain(), 600, np.random.default_rng(2))
    most_common = np.bincount(model.labels(fresh)).max() / len(fresh)
    agreement = stolen.agreement(fresh, model.labels(fresh))
    assert agreement > 0.85
    assert agreement > most_common + 0.1


def test_every_question_is_legal_counted_and_traced(kind: type[extraction.Extraction]) -> None:
    model = Watched()
    stolen = kind().steal(model, rows(30, np.random.default_rng(1)), domain(), 250, np.random.default_rng(2))
    asked = np.concatenate(model.asked)
    assert len(asked) == len(stolen.trace) == 250
    assert asked.tobytes() == stolen.trace.inputs.tobytes()
    assert np.array_equal(stolen.trace.labels, model.labels(asked))
    assert domain().holds(asked).all()
    assert (asked[:, 1] == 0.5).all()
    assert (np.diff(stolen.trace.samples) >= 0).all()


def test_same_seed_same_bits(kind: type[extraction.Extraction]) -> None:
    seeds = rows(12, np.random.default_rng(1))
    once, again = (kind().steal(Watched(), seeds, domain(), 100, np.random.default_rng(5)) for _ in range(2))
    assert once.trace.inputs.tobytes() == again.trace.inputs.tobytes()
    assert once.copy.weights[0].tobytes() == again.copy.weights[0].tobytes()


def test_one_seed_is_enough(kind: type[extraction.Extraction]) -> None:
    stolen = kind().steal(Watched(), rows(1, np.random.default_rng(3)), domain(), 200, np.random.default_rng(4))
    assert len(stolen.trace) <= 200


def test_bad_seeds_and_budgets_are_refused(kind: type[extraction.Extraction]) -> None:
    rng, seeds = np.random.default_rng(0), rows(5, np.random.default_rng(1))
    with pytest.raises(BudgetError, match="a budget of 3 queries"):
        kind().steal(Watched(), seeds, domain(), 3, rng)
    with pytest.raises(ThreatModelError, match="seeds have shape"):
        kind().steal(Watched(), seeds[:, 1:], domain(), 100, rng)
    seeds[2, 0] = np.nan
    with pytest.raises(ThreatModelError, match="seed row 2: feature 0 is nan"):
        kind().steal(Watched(), seeds, domain(), 100, rng)


class Constant:
    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.tile([0.9, 0.1], (len(X), 1))


def test_a_model_with_one_answer_cannot_be_copied(kind: type[extraction.Extraction]) -> None:
    with pytest.raises(SurrogateError, match="of class 0"):
        kind().steal(Constant(), rows(15, np.random.default_rng(1)), domain(), 60, np.random.default_rng(0))


def test_asking_where_the_copy_is_unsure_beats_asking_at_random() -> None:
    model, fresh = Watched(), rows(2000, np.random.default_rng(9))
    found = {}
    for name in ("random_extraction", "adaptive_extraction"):
        found[name] = np.mean(
            [
                extraction.kind(name)(kind="linear")
                .steal(model, rows(40, np.random.default_rng(seed)), domain(), 150, np.random.default_rng(seed))
                .agreement(fresh, model.labels(fresh))
                for seed in range(5)
            ]
        )
    assert found["adaptive_extraction"] > found["random_extraction"] - 0.02


def test_unknown_extraction_is_named_with_those_there_are() -> None:
    with pytest.raises(AttackError, match=r"no extraction is called 'nought'.*jacobian_extraction"):
        extraction.kind("nought")
