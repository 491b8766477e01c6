"""The pure steps: preparing rows, joining classifiers, learning from crafted rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks import gradients
from attacks.contract import GradientModel
from attacks.pgd import Pgd
from attacks.threat import Domain, Norm, ThreatModel
from attacks.trees import Forest, TreeModel
from streams.demo import digits
from streams.hardening.adversarial_training import train
from streams.hardening.committee import Committee
from streams.hardening.preprocessing import Prepared, prepared
from streams.redteam.lineup import lineup
from streams.redteam.subject import of

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.uniform(0, 1, (240, 5))
Y = (X[:, 0] + X[:, 1] > 1).astype(np.int64) + (X[:, 2] > 0.7)
LOW, HIGH = np.zeros(5), np.ones(5)


def threat(width: int, eps: float, norm: Norm = "linf") -> ThreatModel:
    box = np.zeros(width), np.ones(width)
    none = np.zeros(width, dtype=bool)
    return ThreatModel("test", norm, eps, Domain(*box, none, ~none), "white-box", 100)


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**31))
def test_prepared_rows_are_on_few_levels_in_range_and_stay_when_prepared_again(levels: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(0, 2, (20, 3))
    low, high = np.array([-1.0, 0.0, -np.inf]), np.array([1.0, 2.0, np.inf])
    out = prepared(rows, low, high, levels)
    assert (out >= low).all()
    assert (out <= high).all()
    assert len(np.unique(out[:, 0])) <= levels
    assert np.array_equal(out[:, 2], rows[:, 2])
    assert np.allclose(prepared(out, low, high, levels), out)


def test_clipping_alone_leaves_legal_rows_as_they_are() -> None:
    assert np.array_equal(prepared(X, LOW, HIGH, None), X)


def test_a_prepared_classifier_is_a_scikit_learn_estimator_and_answers_on_prepared_rows() -> None:
    made = clone(Prepared(LogisticRegression(), LOW, HIGH, 3)).fit(X, Y)
    by_hand = LogisticRegression().fit(prepared(X, LOW, HIGH, 3), Y)
    assert np.allclose(made.predict_proba(X), by_hand.predict_proba(prepared(X, LOW, HIGH, 3)))
    assert made.score(X, Y) > 0.6
    subject = of(made, "made")
    assert isinstance(subject.gradients, GradientModel)
    assert np.allclose(subject.model.predict(X), made.predict_proba(X))


def test_the_borders_of_prepared_trees_are_where_their_answers_change() -> None:
    made = Prepared(RandomForestClassifier(5, random_state=0), LOW, HIGH, 4).fit(X, Y)
    model = of(made, "made").trees
    assert isinstance(model, TreeModel)
    inner = np.array([1 / 6, 0.5, 5 / 6])
    for edges in model.thresholds:
        assert all(np.abs(inner - edge).min() < 1e-9 for edge in edges)
    assert np.allclose(model.predict(X), made.predict_proba(X))
    below, above = np.full((1, 5), 0.4), np.full((1, 5), 0.4)
    below[0, 0], above[0, 0] = 0.5 - 1e-6, 0.5 + 1e-6
    assert 0.5 in np.round(model.thresholds[0], 9)
    assert (model.leaves(below) != model.leaves(above)).any()
    assert np.array_equal(model.leaves(below), model.leaves(np.array([[0.35, 0.4, 0.4, 0.4, 0.4]])))


def test_prepared_trees_are_attacked_by_their_borders_but_not_by_boxes_of_leaves() -> None:
    made = Prepared(RandomForestClassifier(5, random_state=0), LOW, HIGH, 4).fit(X, Y)
    found = lineup(of(made, "made"), threat(5, 0.3))
    assert "leaf_search" in {entry.name for entry in found.entries}
    assert "prepares its inputs before its trees" in dict(found.left_out)["leaf_tuple"]
    whole = lineup(of(made.estimator_, "whole"), threat(5, 0.3))
    assert {"leaf_search", "leaf_tuple"} <= {entry.name for entry in whole.entries}
    stranger = lineup(of(made.estimator_, "whole"), replace(threat(5, 0.3), knowledge="transfer"))
    assert dict(stranger.left_out)["leaf_tuple"] == "it reads leaves of the model itself, knowledge is transfer"


def test_a_committee_answers_with_the_mean_and_has_its_gradient() -> None:
    members = [MLPClassifier((8,), max_iter=40, random_state=seed).fit(X, Y) for seed in range(3)]
    made = Committee(members)
    mean = np.mean([member.predict_proba(X) for member in members], axis=0)
    assert np.allclose(made.predict_proba(X), mean)
    model = of(made, "made").gradients
    assert isinstance(model, GradientModel)
    weights = RNG.normal(size=(6, 3))
    gradient = model.gradient(X[:6], weights)
    step = 1e-6
    for column in range(5):
        up, down = X[:6].copy(), X[:6].copy()
        up[:, column] += step
        down[:, column] -= step
        slope = ((model.logits(up) - model.logits(down)) * weights).sum(axis=1) / (2 * step)
        assert gradient[:, column] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_committee_of_forests_is_one_forest() -> None:
    members = [RandomForestClassifier(count, random_state=count).fit(X, Y) for count in (3, 7)]
    made = Committee(members)
    model = of(made, "made").trees
    assert isinstance(model, Forest)
    assert np.allclose(model.predict(X), made.predict_proba(X))
    assert len(model.first) == 10


def test_a_committee_of_different_kinds_only_answers() -> None:
    made = Committee([LogisticRegression().fit(X, Y), RandomForestClassifier(3, random_state=0).fit(X, Y)])
    subject = of(made, "made")
    assert subject.gradients is None
    assert subject.trees is None
    assert subject.model.predict(X[:4]).shape == (4, 3)


@pytest.mark.parametrize("scaled", [False, True])
def test_adversarial_training_makes_a_perceptron_withstand_what_it_did_not(scaled: bool) -> None:
    pool = digits.split(1).model
    held = digits.split(1).history
    plain = MLPClassifier((32,), max_iter=30, learning_rate_init=0.01, batch_size=64, random_state=0)
    estimator = make_pipeline(StandardScaler(with_std=False), plain) if scaled else plain
    before = clone(estimator).fit(pool.inputs, pool.truth)
    within = threat(64, 0.1)
    after = train(estimator, pool.inputs, pool.truth, within, np.random.default_rng(2), passes=40)
    robust = []
    for fitted in (before, after):
        model = gradients.adapt(fitted)
        right = np.argmax(model.predict(held.inputs), axis=1) == held.truth
        found = Pgd().craft(model, held.inputs, held.truth, within, np.random.default_rng(3))
        robust.append(float((right & ~found.success).mean()))
        assert right.mean() > 0.85
    assert robust[1] > robust[0] + 0.2
    assert not hasattr(estimator, "coefs_")


@pytest.mark.parametrize("estimator", [RandomForestClassifier(10, random_state=0), LogisticRegression()])
@pytest.mark.parametrize("norm", ["linf", "l0"])
def test_estimators_that_learn_in_one_go_are_fitted_again_with_crafted_rows(estimator: object, norm: Norm) -> None:
    within = threat(5, 1.0 if norm == "l0" else 0.1, norm)
    after = train(estimator, X, Y, within, np.random.default_rng(4))
    again = train(estimator, X, Y, within, np.random.default_rng(4))
    assert np.array_equal(after.predict_proba(X), again.predict_proba(X))
    assert after.score(X, Y) > (0.4 if norm == "l0" else 0.6)  # one feature of five may go anywhere
    assert not np.allclose(after.predict_proba(X), clone(estimator).fit(X, Y).predict_proba(X))


def test_adversarial_training_needs_a_distance() -> None:
    domain = threat(5, 1.0).domain
    with pytest.raises(ValueError, match="needs a bound"):
        train(LogisticRegression(), X, Y, ThreatModel("t", "l2", None, domain, "white-box", 10), RNG)


def test_early_stopping_does_not_end_adversarial_training() -> None:
    labels = (X[:, 0] + X[:, 1] > 1).astype(np.int64)
    estimator = MLPClassifier((8,), early_stopping=True, learning_rate_init=0.01, max_iter=5, random_state=0)
    after = train(estimator, X, labels, threat(5, 0.05), np.random.default_rng(5), passes=40)
    assert after.score(X, labels) > 0.9
    assert estimator.early_stopping
