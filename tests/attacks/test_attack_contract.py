"""Every registered attack keeps the contract."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from attacks import registry
from attacks.contract import Attack, Crafted
from attacks.errors import AttackError, BudgetError, ModelError, ThreatModelError
from attacks.network import Network
from attacks.threat import Domain, Norm, ThreatModel
from attacks.trees import Cells, adapt

BUDGET = 150
KINDS = ("picture", "table")
OWN_HANDS = ("gradients", "trees", "leaves")


def flat(width: int) -> Domain:
    """Numbers between 0 and 1, all of them mutable."""
    yes = np.ones(width, dtype=bool)
    return Domain(np.zeros(width), np.ones(width), ~yes, yes)


def mixed() -> Domain:
    """Ten numbers, four whole numbers, two one-hot groups (one of them immutable), one number without bounds."""
    low, high = np.zeros(20), np.ones(20)
    high[10:14] = 12
    low[19], high[19] = -np.inf, np.inf
    integral = np.zeros(20, dtype=bool)
    integral[10:14] = True
    mutable = np.ones(20, dtype=bool)
    mutable[[2, 11, 17]] = False
    return Domain(low, high, integral, mutable, (np.array([14, 15, 16]), np.array([17, 18])))


DOMAINS = {"picture": flat(16), "table": mixed()}


def legal_rows(domain: Domain, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    x = np.clip(0.5 + 0.2 * rng.standard_normal((n, domain.width)), domain.low, domain.high)
    whole = np.flatnonzero(domain.integral)
    x[:, whole] = rng.integers(3, 10, (n, len(whole)))
    for group in domain.groups:
        x[:, group] = 0.0
        x[np.arange(n), group[rng.integers(0, len(group), n)]] = 1.0
    return x


class Watched:
    """A model with one hidden layer that writes down what it is asked."""

    def __init__(self, domain: Domain, classes: int = 3, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        size = np.where(np.isfinite(domain.high), domain.high, 1.0)
        first = rng.standard_normal((domain.width, 12)) / size[:, None]
        middle = legal_rows(domain, 200, rng) @ first
        second = rng.standard_normal((12, classes))
        self.inner = Network((first, second), (-middle.mean(axis=0), np.zeros(classes)))
        hidden = np.maximum(middle - middle.mean(axis=0), 0) @ second
        self.inner = Network((first, second), (-middle.mean(axis=0), -hidden.mean(axis=0)))
        self.asked: list[NDArray[np.float64]] = []

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        self.asked.append(X.copy())
        return self.inner.predict(X)

    def logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.inner.logits(X)

    def gradient(self, X: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.inner.gradient(X, weights)


class WatchedTrees:
    """A forest that learned from `Watched`."""

    def __init__(self, domain: Domain, seed: int = 5) -> None:
        rows = legal_rows(domain, 400, np.random.default_rng(seed))
        teacher = Watched(domain, seed=seed).inner.predict(rows)
        forest = RandomForestClassifier(9, max_depth=5, random_state=0)
        forest.fit(rows, np.concatenate([np.argmax(teacher[:-3], axis=1), np.arange(3)]))
        self.inner = adapt(forest)
        self.thresholds = self.inner.thresholds
        self.asked: list[NDArray[np.float64]] = []

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.inner.predict(X)

    def leaves(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
        return self.inner.leaves(X)

    def cells(self, X: NDArray[np.float64]) -> Cells:
        return self.inner.cells(X)

    def meeting(self, tree: Any, low: Any, high: Any) -> Any:
        return self.inner.meeting(tree, low, high)


def watched(kind: type[Attack], domain: Domain, seed: int = 5) -> Watched | WatchedTrees:
    return WatchedTrees(domain, seed) if kind.access in ("trees", "leaves") else Watched(domain, seed=seed)


EPS: dict[str, float] = {"l0": 4, "l1": 4.0, "l2": 1.5, "linf": 0.4}


def threat_of(attack: type[Attack], norm: Norm, domain: Domain, **changes: Any) -> ThreatModel:
    knowledge = "white-box" if attack.access in OWN_HANDS else "black-box"
    values: dict[str, Any] = {
        "name": "contract",
        "norm": norm,
        "eps": EPS[norm] if attack.needs_eps else None,
        "domain": domain,
        "knowledge": knowledge,
        "budget": BUDGET,
        **changes,
    }
    return ThreatModel(**values)


class Case:
    """An attack, a norm, a domain and start rows."""

    def __init__(self, name: str, norm: Norm, rows: str) -> None:
        self.kind = registry.kind(name)
        self.domain = DOMAINS[rows]
        self.x = legal_rows(self.domain, 9, np.random.default_rng(1))
        self.model = watched(self.kind, self.domain)
        self.y = np.argmax(self.model.inner.predict(self.x), axis=1)
        self.threat = threat_of(self.kind, norm, self.domain)

    def craft(self, threat: ThreatModel | None = None, seed: int = 3, n: int | None = None) -> Crafted:
        self.model.asked.clear()
        rng = np.random.default_rng(seed)
        return self.kind().craft(self.model, self.x[:n], self.y[:n], threat or self.threat, rng)


def cases() -> list[tuple[str, str, str]]:
    return [
        (name, norm, rows) for name in registry.names() for norm in sorted(registry.kind(name).norms) for rows in KINDS
    ]


@pytest.fixture(scope="module", params=cases(), ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@pytest.fixture(scope="module")
def crafted(case: Case) -> Crafted:
    return case.craft()


def test_is_an_attack_under_its_registered_name(case: Case) -> None:
    assert isinstance(case.kind(), Attack)
    assert registry.kind(case.kind.name) is case.kind


def test_shapes_and_dtypes(case: Case, crafted: Crafted) -> None:
    n = len(case.x)
    assert crafted.inputs.shape == case.x.shape
    assert crafted.inputs.dtype == np.float64
    assert (crafted.success.shape, crafted.success.dtype) == ((n,), np.bool_)
    assert (crafted.distances.shape, crafted.distances.dtype) == ((n,), np.float64)
    assert (crafted.queries.shape, crafted.queries.dtype) == ((n,), np.int64)
    assert crafted.trace.inputs.shape == (len(crafted.trace), case.domain.width)
    assert crafted.trace.samples.dtype == crafted.trace.labels.dtype == np.int64


def test_it_succeeds_on_an_unprotected_model(case: Case, crafted: Crafted) -> None:
    assert crafted.success.mean() >= 0.3


def test_success_is_the_models_own_answer(case: Case, crafted: Crafted) -> None:
    answers = np.argmax(case.model.inner.predict(crafted.inputs), axis=1)
    assert np.array_equal(crafted.success & (answers != case.y), crafted.success)
    if case.kind.access in OWN_HANDS:
        assert np.array_equal(answers != case.y, crafted.success)


def test_crafted_rows_never_leave_the_threat_model(case: Case, crafted: Crafted) -> None:
    assert case.threat.admits(case.x, crafted.inputs).all()
    assert np.array_equal(crafted.distances, case.threat.distances(case.x, crafted.inputs))


def test_a_bound_on_the_distance_holds(case: Case) -> None:
    threat = replace(case.threat, eps=EPS[case.threat.norm] / 2)
    result = case.craft(threat)
    assert threat.admits(case.x, result.inputs).all()
    answers = np.argmax(case.model.inner.predict(result.inputs), axis=1)
    assert (answers[result.success] != case.y[result.success]).all()


def test_distance_is_measured_in_the_threat_models_scale(case: Case) -> None:
    scale = np.where(case.domain.integral, 6.0, 0.5)
    threat = replace(case.threat, scale=scale, eps=EPS[case.threat.norm])
    result = case.craft(threat)
    assert threat.admits(case.x, result.inputs).all()
    assert np.array_equal(result.distances, threat.distances(case.x, result.inputs))


def test_every_question_is_legal(case: Case, crafted: Crafted) -> None:
    start = case.x[crafted.trace.samples]
    assert case.domain.holds(crafted.trace.inputs).all()
    assert ((crafted.trace.inputs == start) | case.domain.movable).all()


def test_trace_is_what_the_model_was_asked(case: Case) -> None:
    result = case.craft()
    if case.kind.access in OWN_HANDS:
        assert len(result.trace) == 0
        return
    asked = np.concatenate(case.model.asked)
    assert asked.tobytes() == result.trace.inputs.tobytes()
    assert np.array_equal(np.argmax(case.model.inner.predict(asked), axis=1), result.trace.labels)
    assert np.array_equal(np.bincount(result.trace.samples, minlength=len(case.x)), result.queries)
    for sample in range(len(case.x)):
        assert len(result.trace.of(sample)) == result.queries[sample]


def test_success_was_asked(case: Case, crafted: Crafted) -> None:
    if case.kind.access in OWN_HANDS:
        return
    for sample in np.flatnonzero(crafted.success):
        rows = crafted.trace.of(int(sample))
        hit = (rows.inputs == crafted.inputs[sample]).all(axis=1)
        assert hit.any()
        assert (rows.labels[hit] != case.y[sample]).all()


@pytest.mark.parametrize("budget", [7, 31, 90])
def test_budget_is_kept_by_every_row(case: Case, budget: int) -> None:
    threat = replace(case.threat, budget=budget)
    try:
        result = case.craft(threat)
    except BudgetError:
        assert budget == 7
        return
    assert result.queries.max() <= (0 if case.kind.access in OWN_HANDS else budget)
    assert threat.admits(case.x, result.inputs).all()


def test_budget_of_nothing_is_refused(case: Case) -> None:
    if case.kind.access in OWN_HANDS:
        assert case.craft(replace(case.threat, budget=0)).success.any()
        return
    with pytest.raises(BudgetError, match=case.kind.name):
        case.craft(replace(case.threat, budget=0))
    assert case.model.asked == []


def test_same_seed_same_bits(case: Case, crafted: Crafted) -> None:
    again = case.craft()
    assert again.inputs.tobytes() == crafted.inputs.tobytes()
    assert again.trace.inputs.tobytes() == crafted.trace.inputs.tobytes()
    assert np.array_equal(again.queries, crafted.queries)


def test_empty_batch(case: Case) -> None:
    result = case.craft(n=0)
    assert result.inputs.shape == (0, case.domain.width)
    assert result.success.shape == result.distances.shape == result.queries.shape == (0,)
    assert result.trace.inputs.shape == (0, case.domain.width)


def test_one_row(case: Case) -> None:
    result = case.craft(n=1)
    assert result.inputs.shape == (1, case.domain.width)
    assert case.threat.admits(case.x[:1], result.inputs).all()
    assert (result.trace.samples == 0).all()


def test_start_rows_are_left_alone(case: Case) -> None:
    before = case.x.tobytes(), case.y.tobytes()
    case.craft()
    assert (case.x.tobytes(), case.y.tobytes()) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_start_rows_that_are_not_finite_are_refused(case: Case, value: float) -> None:
    x = case.x.copy()
    x[3, 0] = value
    with pytest.raises(ThreatModelError, match="row 3: feature 0"):
        case.kind().craft(case.model, x, case.y, case.threat, np.random.default_rng(0))


def test_illegal_start_rows_and_wrong_shapes_are_refused(case: Case) -> None:
    rng = np.random.default_rng(0)
    x = case.x.copy()
    x[2, 1] = 1.5
    with pytest.raises(ThreatModelError, match=r"row 2: feature 1 is 1\.5"):
        case.kind().craft(case.model, x, case.y, case.threat, rng)
    with pytest.raises(ThreatModelError, match="start rows have shape"):
        case.kind().craft(case.model, case.x[:, 1:], case.y, case.threat, rng)
    with pytest.raises(ThreatModelError, match="classes are int64 of shape"):
        case.kind().craft(case.model, case.x, case.y[1:], case.threat, rng)


def test_what_an_attack_cannot_do_is_refused(case: Case) -> None:
    for norm in sorted({"l0", "l1", "l2", "linf"} - case.kind.norms):
        with pytest.raises(ThreatModelError, match=f"norm {norm}"):
            case.craft(replace(case.threat, norm=norm, eps=2.0))
    if case.kind.needs_eps:
        with pytest.raises(ThreatModelError, match="eps is None"):
            case.craft(replace(case.threat, eps=None))
    if not case.kind.targeted:
        with pytest.raises(ThreatModelError, match="goal is class 1"):
            case.craft(replace(case.threat, goal=1))
    if case.kind.access in OWN_HANDS:
        with pytest.raises(ThreatModelError, match=f"needs the model's {case.kind.access}"):
            case.craft(replace(case.threat, knowledge="black-box"))


def test_target_is_reached(case: Case) -> None:
    if not case.kind.targeted:
        return
    target = int(np.argmax(np.bincount(case.y)))
    result = case.craft(replace(case.threat, goal=target))
    answers = np.argmax(case.model.inner.predict(result.inputs), axis=1)
    assert (answers[result.success] == target).all()
    assert result.success[case.y != target].any() or case.threat.norm == "l0"
    assert case.threat.admits(case.x, result.inputs).all()


class Stopped(Exception):
    """The model's owner wants no more questions."""


class StopsAfter:
    """Raises in the middle of an attack."""

    def __init__(self, watched: Watched, questions: int) -> None:
        self._watched = watched
        self._left = questions

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        self._left -= 1
        if self._left < 0:
            raise Stopped
        return self._watched.predict(X)


def test_what_the_model_raises_passes_through(case: Case) -> None:
    rng = np.random.default_rng(0)
    model = StopsAfter(case.model, 1)
    if case.kind.access in OWN_HANDS:
        with pytest.raises(ModelError, match="StopsAfter lacks them"):
            case.kind().craft(model, case.x, case.y, case.threat, rng)
    else:
        with pytest.raises(Stopped):
            case.kind().craft(model, case.x, case.y, case.threat, rng)


class Answers:
    """A model with a fixed answer of any shape."""

    def __init__(self, scores: NDArray[np.float64]) -> None:
        self._scores = scores

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.broadcast_to(self._scores, (len(X), *self._scores.shape))


@pytest.mark.parametrize("scores", [np.zeros(1), np.zeros((2, 2)), np.array([0.2, np.nan, 0.1])])
def test_answers_that_are_no_scores_are_refused(case: Case, scores: NDArray[np.float64]) -> None:
    if case.kind.access in OWN_HANDS:
        return
    with pytest.raises(ModelError, match="the model answered"):
        case.kind().craft(Answers(scores), case.x, case.y, case.threat, np.random.default_rng(0))


def test_a_model_that_never_errs_ends_the_attack(case: Case) -> None:
    if case.kind.access in OWN_HANDS:
        return
    result = case.kind().craft(
        Answers(np.array([0.9, 0.1])), case.x, np.zeros(9, dtype=np.int64), case.threat, np.random.default_rng(0)
    )
    assert not result.success.any()
    assert case.threat.admits(case.x, result.inputs).all()


@pytest.mark.parametrize("name", registry.names())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_domain_makes_an_attack_leave_it(name: str, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    numbers, wholes = data.draw(st.integers(0, 4), label="numbers"), data.draw(st.integers(0, 4), label="wholes")
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=3), label="groups")
    width = numbers + wholes + sum(sizes)
    if width == 0:
        return
    low, high = np.zeros(width), np.ones(width)
    span = rng.uniform(0, 20, numbers + wholes)
    low[: len(span)], high[: len(span)] = np.floor(-span), np.ceil(span)
    integral = np.zeros(width, dtype=bool)
    integral[numbers : numbers + wholes] = True
    edges = np.cumsum([numbers + wholes, *sizes])
    groups = tuple(np.arange(a, b) for a, b in itertools.pairwise(edges))
    domain = Domain(low, high, integral, rng.random(width) < 0.8, groups)
    if not domain.movable.any():
        return
    kind = registry.kind(name)
    norm: Norm = data.draw(st.sampled_from(sorted(kind.norms)), label="norm")
    eps = float(rng.integers(1, 5)) if norm == "l0" else float(rng.uniform(0.05, 4))
    threat = threat_of(kind, norm, domain, eps=eps, budget=40)
    x = domain.sample(domain.repair(np.zeros((4, width)), np.zeros((4, width))), rng)
    for group in groups:
        x[:, group] = np.eye(len(group))[rng.integers(0, len(group), 4)]
    x = np.where(domain.integral, np.rint(x), x)
    model = watched(kind, domain, seed=int(rng.integers(1000)))
    y = np.argmax(model.inner.predict(x), axis=1)
    result = kind().craft(model, x, y, threat, rng)
    assert threat.admits(x, result.inputs).all()
    assert domain.holds(result.trace.inputs).all()
    answers = np.argmax(model.inner.predict(result.inputs), axis=1)
    assert (answers[result.success] != y[result.success]).all()


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        (name, norm)
        for name in ("hop_skip_jump", "boundary", "sign_opt", "opt", "square", "cube", "simba", "nes", "zoo")
        for norm in ("l2", "linf")
        if norm in registry.kind(name).norms
    ],
)
def test_constant_features_do_not_spoil_the_questions(name: str, norm: Norm) -> None:
    """A feature whose range is a point: attacks ask finite rows, and go on with the others."""
    kind = registry.kind(name)
    low, high = np.zeros(6), np.ones(6)
    low[[2, 4]], high[[2, 4]] = (0.5, 1.0), (0.5, 1.0)
    domain = Domain(low, high, np.zeros(6, np.bool_), np.ones(6, np.bool_))
    model = Watched(domain)
    x = legal_rows(domain, 8, np.random.default_rng(3))
    y = np.argmax(model.predict(x), axis=1)
    threat = ThreatModel("constant", norm, None if not kind.needs_eps else 0.9, domain, "black-box", 200)
    made = kind().craft(model, x, y, threat, np.random.default_rng(1))
    assert np.isfinite(made.trace.inputs).all()
    assert np.isfinite(made.distances).all()
    assert made.success.mean() >= 0.5


def test_unknown_attack_is_named_with_those_there_are() -> None:
    with pytest.raises(AttackError, match=r"no attack is called 'nought'.*hop_skip_jump.*transfer_pgd"):
        registry.kind("nought")
