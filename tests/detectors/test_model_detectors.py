"""Detectors that read the watched model or its answers: OC-score, disagreement, inquiries, neighbours' classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from attacks import gradients
from attacks.pgd import Pgd
from attacks.threat import Domain, ThreatModel
from detectors import bundle, trees
from detectors.contract import Batch, Reference
from detectors.ensemble import fit
from detectors.errors import FitError
from detectors.inputs.dknn import DeepNeighbours
from detectors.inputs.leaves import LeafDistance
from detectors.responses.contract import Inquiry
from detectors.responses.disagreement import LOG_FLOOR, Disagreement
from detectors.responses.feature_squeezing import FeatureSqueezing
from detectors.responses.noise_stability import NoiseStability
from detectors.schema import Feature, FeatureSchema
from detectors.view import BatchView, ReferenceFrame

CANCER_X, CANCER_Y = load_breast_cancer(return_X_y=True)
CANCER = FeatureSchema(tuple(Feature(f"x{f}") for f in range(30)), ("malignant", "benign"))
DIGITS = FeatureSchema.image((8, 8), [str(digit) for digit in range(10)])


def batch_of(inputs: NDArray[np.float64], labels: NDArray[Any], outputs: NDArray[np.float64] | None = None) -> Batch:
    wide = np.zeros(len(inputs), dtype=np.int64)
    labels = labels.astype(np.int32)
    return Batch(inputs, labels, wide.astype(np.uint64), wide, wide, labels, outputs)


def same_partition(mine: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Whether two numberings of leaves put the same rows together, tree by tree."""
    for a, b in zip(mine.T, theirs.T, strict=True):
        pairs = np.unique(np.stack([a, b]), axis=1).shape[1]
        if not len(np.unique(a)) == len(np.unique(b)) == pairs:
            return False
    return True


# --- trees as arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier(random_state=0),
        RandomForestClassifier(7, random_state=0),
        ExtraTreesClassifier(7, random_state=0),
        GradientBoostingClassifier(n_estimators=4, random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("data", ["cancer", "digits"])
def test_leaves_are_those_of_scikit_learn(model: Any, data: str) -> None:
    x, y = (CANCER_X, CANCER_Y) if data == "cancer" else load_digits(return_X_y=True)
    model.fit(x[::2], y[::2])
    read = trees.read(model)
    assert same_partition(read.leaves(x), model.apply(x).reshape(len(x), -1))
    restored = trees.Trees.restore(read.arrays(), x.shape[1])
    assert restored.leaves(x).tobytes() == read.leaves(x).tobytes()


def test_bagged_trees_split_the_features_that_were_drawn_for_them() -> None:
    model = BaggingClassifier(DecisionTreeClassifier(), 5, max_features=0.5, random_state=0).fit(CANCER_X, CANCER_Y)
    theirs = [
        tree.apply(CANCER_X[:, drawn])
        for tree, drawn in zip(model.estimators_, model.estimators_features_, strict=True)
    ]
    assert same_partition(trees.read(model).leaves(CANCER_X), np.column_stack(theirs))


def test_leaves_of_histogram_boosting_tell_what_it_predicts() -> None:
    model = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(CANCER_X, CANCER_Y)
    found = trees.read(model).leaves(CANCER_X)
    total = np.full(len(CANCER_X), float(model._baseline_prediction.ravel()[0]))
    for tree, (predictor,) in enumerate(model._predictors):
        total += predictor.nodes["value"][predictor.nodes["is_leaf"].astype(bool)][found[:, tree]]
    np.testing.assert_allclose(total, model.decision_function(CANCER_X), rtol=1e-12)


def test_leaves_are_those_of_xgboost() -> None:
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=9, n_jobs=1).fit(CANCER_X[::2], CANCER_Y[::2])
    theirs = model.get_booster().predict(xgboost.DMatrix(CANCER_X), pred_leaf=True)
    assert same_partition(trees.read(model).leaves(CANCER_X), theirs.astype(int))
    assert len(trees.read(model.get_booster()).roots) == 9


def test_leaves_are_those_of_lightgbm() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=9, n_jobs=1, verbose=-1).fit(CANCER_X[::2], CANCER_Y[::2])
    assert (trees.read(model).leaves(CANCER_X) == model.predict(CANCER_X, pred_leaf=True)).all()
    assert (trees.read(model.booster_).leaves(CANCER_X) == model.predict(CANCER_X, pred_leaf=True)).all()


def test_models_that_are_no_trees_are_refused() -> None:
    with pytest.raises(FitError, match="LogisticRegression is no fitted tree ensemble"):
        trees.read(LogisticRegression())
    scaled = make_pipeline(StandardScaler(), DecisionTreeClassifier()).fit(CANCER_X, CANCER_Y)
    with pytest.raises(FitError, match="transforms its inputs before its trees"):
        trees.read(scaled)
    colours = np.random.default_rng(0).integers(0, 6, (200, 1)).astype(float)
    by_sets = HistGradientBoostingClassifier(max_iter=2, categorical_features=[0], min_samples_leaf=5)
    by_sets.fit(colours, np.isin(colours[:, 0], [0, 2, 5]))
    with pytest.raises(FitError, match="sets of categories"):
        trees.read(by_sets)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("feature", lambda a: a.__setitem__(0, 30), "feature holds values outside 0 to 29"),
        ("left", lambda a: a.__setitem__(0, 0), "left: a node stands before its parent"),
        ("right", lambda a: a.__setitem__(0, 10**6), "right holds values outside"),
        ("roots", lambda a: a.__setitem__(0, -1), "roots holds values outside"),
    ],
)
def test_trees_that_would_lead_a_walk_astray_are_refused(name: str, change: Any, complaint: str) -> None:
    arrays = trees.read(RandomForestClassifier(3, random_state=0).fit(CANCER_X, CANCER_Y)).arrays()
    arrays[name] = arrays[name].copy()
    change(arrays[name])
    with pytest.raises(ValueError, match=complaint):
        trees.Trees.restore(arrays, 30)


# --- OC-score ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forest() -> RandomForestClassifier:
    return RandomForestClassifier(30, random_state=0).fit(CANCER_X[::2], CANCER_Y[::2])


@pytest.mark.parametrize("neighbours", [1, 3])
def test_oc_score_is_the_distance_to_the_nearest_correct_row_of_the_class(forest: Any, neighbours: int) -> None:
    x, truth = CANCER_X[::2], CANCER_Y[::2].astype(np.int32)
    labels = np.where(np.arange(len(x)) % 17 == 0, 1 - truth, truth).astype(np.int32)  # some are wrong
    reference = Reference(x, labels, truth=truth)
    detector = LeafDistance(forest, neighbours).fit(reference, CANCER, np.random.default_rng(0))
    frame = ReferenceFrame.fit(reference, 2, np.random.default_rng(0))
    fresh, said = CANCER_X[1::2], forest.predict(CANCER_X[1::2])
    scores = detector.score(BatchView(frame, batch_of(fresh, said)))
    right = labels == truth
    theirs, mine = forest.apply(x[right]), forest.apply(fresh)
    for row in range(0, len(fresh), 9):
        distances = (theirs[labels[right] == said[row]] != mine[row]).mean(axis=1)
        assert scores[row] == pytest.approx(np.sort(distances)[:neighbours].mean())


def test_oc_score_of_a_model_of_other_classes_is_refused(forest: Any) -> None:
    more = FeatureSchema(CANCER.features, (*CANCER.classes, "other"))
    with pytest.raises(FitError, match="the model has 2 classes; the schema has 3"):
        LeafDistance(forest).fit(Reference(CANCER_X, CANCER_Y.astype(np.int32)), more, np.random.default_rng(0))


def test_oc_score_without_a_model_is_refused() -> None:
    with pytest.raises(FitError, match="give the model"):
        LeafDistance().fit(Reference(CANCER_X, CANCER_Y.astype(np.int32)), CANCER, np.random.default_rng(0))


# --- neighbours' classes ----------------------------------------------------------------------------------------------


def test_dknn_is_the_weighed_share_of_foreign_neighbours() -> None:
    labels = CANCER_Y.astype(np.int32)
    reference = Reference(CANCER_X[::2], labels[::2])
    detector = DeepNeighbours(10).fit(reference, CANCER, np.random.default_rng(0))
    frame = ReferenceFrame.fit(reference, 2, np.random.default_rng(0))
    view = BatchView(frame, batch_of(CANCER_X[1::2], 1 - labels[1::2]))
    scores = detector.score(view)
    weights = 1.0 / np.arange(1, 11)
    for row in range(0, len(scores), 13):
        nearest = np.argsort(((detector.rows_ - view.standardised[row]) ** 2).sum(axis=1), kind="stable")[:10]
        foreign = detector.labels_[nearest] != view.batch.labels[row]
        assert scores[row] == pytest.approx((weights * foreign).sum() / weights.sum())
    assert np.median(scores) > 0.9  # every label was swapped


# --- disagreement -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cancer", "digits"])
def committee(request: pytest.FixtureRequest) -> tuple[Disagreement, ReferenceFrame, Any, Any]:
    x, y = (CANCER_X, CANCER_Y) if request.param == "cancer" else load_digits(return_X_y=True)
    schema = CANCER if request.param == "cancer" else DIGITS
    reference = Reference(x[::2], y[::2].astype(np.int32))
    detector = Disagreement().fit(reference, schema, np.random.default_rng(0))
    frame = ReferenceFrame.fit(reference, len(schema.classes), np.random.default_rng(0))
    return detector, frame, x[1::2], y[1::2].astype(np.int32)


def test_disagreement_is_the_mean_divergence_of_the_answers(committee: Any) -> None:
    detector, frame, x, y = committee
    k = int(y.max()) + 1
    rng = np.random.default_rng(1)
    outputs = rng.dirichlet(np.ones(k), len(x))
    outputs[::3] = np.nan  # no scores came with these
    view = BatchView(frame, batch_of(x, y, outputs))
    scores = detector.score(view)
    plain = np.zeros(len(x))
    for logits in detector._logits(view.standardised):
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_q = np.maximum(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), LOG_FLOOR)
        told = (outputs * (np.log(outputs) - log_q)).sum(axis=1)
        plain += np.where(np.isnan(told), -log_q[np.arange(len(x)), y], told) / 3
    np.testing.assert_allclose(scores, plain, rtol=1e-9, atol=1e-12)


def test_surrogates_answer_as_the_model_did_and_disagree_about_wrong_labels(committee: Any) -> None:
    detector, frame, x, y = committee
    k = int(y.max()) + 1
    for logits in detector._logits(BatchView(frame, batch_of(x, y)).standardised):
        assert (logits.argmax(axis=1) == y).mean() > 0.9
    right = detector.score(BatchView(frame, batch_of(x, y)))
    wrong = detector.score(BatchView(frame, batch_of(x, (y + 1) % k)))
    assert (wrong > right).mean() > 0.93


# --- inquiries --------------------------------------------------------------------------------------------------------

PIXELS, KINDS = load_digits(return_X_y=True)
PIXELS = PIXELS / 16.0


@pytest.fixture(scope="module")
def network() -> MLPClassifier:
    return MLPClassifier((48,), max_iter=100, random_state=0, learning_rate_init=5e-3).fit(PIXELS[::2], KINDS[::2])


@pytest.mark.parametrize("kind", [NoiseStability, FeatureSqueezing])
def test_inquiry_tells_crafted_rows_and_is_a_function_of_the_row(network: Any, kind: Any) -> None:
    reference = Reference(PIXELS[::2], network.predict(PIXELS[::2]).astype(np.int32))
    inquiry = kind().fit(reference, DIGITS, network.predict_proba, np.random.default_rng(0))
    assert isinstance(inquiry, Inquiry)
    fresh = PIXELS[1::8]
    domain = Domain(np.zeros(64), np.ones(64), np.zeros(64, dtype=np.bool_), np.ones(64, dtype=np.bool_))
    threat = ThreatModel("white", "linf", 0.15, domain, "white-box", 0)
    crafted = Pgd().craft(gradients.adapt(network), fresh, KINDS[1::8], threat, np.random.default_rng(1))
    pushed = crafted.inputs[crafted.success]
    usual = inquiry.score(fresh, network.predict(fresh), network.predict_proba)
    odd = inquiry.score(pushed, network.predict(pushed), network.predict_proba)
    assert usual.shape == (len(fresh),)
    assert np.isfinite(np.concatenate([usual, odd])).all()
    assert (odd[:, None] > usual[None]).mean() > 0.65
    cut = inquiry.score(fresh[5:6], network.predict(fresh[5:6]), network.predict_proba)
    assert cut[0] == pytest.approx(usual[5], rel=1e-9)
    restored = kind.restore(inquiry.arrays(), DIGITS)
    assert restored.questions == inquiry.questions
    assert restored.score(fresh, network.predict(fresh), network.predict_proba).tobytes() == usual.tobytes()


def test_inquiry_asks_as_often_as_it_says(network: Any) -> None:
    reference = Reference(PIXELS[::4], network.predict(PIXELS[::4]).astype(np.int32))
    for kind in (NoiseStability, FeatureSqueezing):
        inquiry = kind().fit(reference, DIGITS, network.predict_proba, np.random.default_rng(0))
        asked: list[int] = []

        def ask(rows: NDArray[np.float64], asked: list[int] = asked) -> NDArray[np.float64]:
            asked.append(len(rows))
            assert (rows >= 0).all()
            assert (rows <= 1).all()
            return network.predict_proba(rows)

        inquiry.score(PIXELS[:150], network.predict(PIXELS[:150]), ask)
        assert sum(asked) == 150 * inquiry.questions


# --- chosen for an ensemble -------------------------------------------------------------------------------------------


def test_ensemble_of_chosen_detectors_survives_its_bundle(forest: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = CANCER_X[rng.integers(0, len(CANCER_X), 700)] * rng.normal(1.0, 0.02, (700, 30))
    reference = Reference(rows, forest.predict(rows).astype(np.int32), forest.predict_proba(rows))
    names = ("trust_ratio", "oc_score", "disagreement", "dknn", "pyod.HBOS", "pyod.KDE")

    def fitted(detectors: tuple[str, ...], model: Any) -> Any:
        return fit(
            reference,
            CANCER,
            None,
            budget=0,
            clients_per_week=None,
            week_us=1,
            partitions=1,
            rng=np.random.default_rng(0),
            detectors=detectors,
            model=model,
        )

    ensemble, report = fitted(names, forest)
    assert ensemble.detectors == report.detectors == names
    bundle.save(tmp_path / "chosen.vedette", ensemble, report)
    again = bundle.load(tmp_path / "chosen.vedette")
    fresh = batch_of(rows[:40] * 1.01, forest.predict(rows[:40]), forest.predict_proba(rows[:40]))
    ours, theirs = (e.score(fresh, e.new_state(10, 10)) for e in (ensemble, again))
    assert ours.scores.tobytes() == theirs.scores.tobytes()
    assert ours.fused.tobytes() == theirs.fused.tobytes()
    with pytest.raises(FitError, match=r"oc_score reads the watched model at its fit; give it \(`--model`\)"):
        fitted(names, None)
    with pytest.raises(FitError, match="given twice: isolation_forest"):
        fitted(("isolation_forest", "pyod.IForest"), None)
    with pytest.raises(FitError, match="at least one detector"):
        fitted((), None)
