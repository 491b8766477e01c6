"""Models in the attacker's own hands equal the estimators that they were read from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, QuantileTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from attacks import gradients, registry, trees
from attacks.contract import GradientModel
from attacks.errors import ModelError, SurrogateError
from attacks.leaf_search import LeafSearch
from attacks.network import Activation, Network
from attacks.surrogate import fit_surrogate
from attacks.threat import Domain, ThreatModel

DIGITS = load_digits(return_X_y=True)
CANCER = load_breast_cancer(return_X_y=True)


def unit_box(width: int) -> Domain:
    yes = np.ones(width, dtype=bool)
    return Domain(np.zeros(width), np.ones(width), ~yes, yes)


def quick_mlp(activation: Activation) -> MLPClassifier:
    return MLPClassifier((20, 10), activation=activation, max_iter=30, random_state=0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("data", [DIGITS, CANCER], ids=["digits", "cancer"])
@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(max_iter=50),
        make_pipeline(StandardScaler(), MinMaxScaler(), LogisticRegression(max_iter=100)),
        make_pipeline(StandardScaler(with_std=False), MaxAbsScaler(), LinearSVC(max_iter=200)),
        make_pipeline("passthrough", StandardScaler(), RidgeClassifier()),
        make_pipeline(StandardScaler(), quick_mlp("relu")),
        make_pipeline(StandardScaler(), quick_mlp("tanh")),
        make_pipeline(StandardScaler(), quick_mlp("logistic")),
        make_pipeline(StandardScaler(), quick_mlp("identity")),
    ],
    ids=["logistic", "scaled", "svc", "ridge", "relu", "tanh", "sigmoid", "identity"],
)
def test_a_network_equals_its_estimator_and_knows_its_slopes(estimator: Any, data: tuple[Any, Any]) -> None:
    x, y = data
    estimator.fit(x, y)
    network = gradients.adapt(estimator)
    assert isinstance(network, GradientModel)
    assert (np.argmax(network.predict(x), axis=1) == estimator.predict(x)).all()
    if hasattr(estimator, "predict_proba"):
        assert np.allclose(network.predict(x), estimator.predict_proba(x), atol=1e-9)
    rng = np.random.default_rng(0)
    rows, scale = x[:8] + 0.01 * rng.standard_normal((8, x.shape[1])), np.maximum(x.std(axis=0), 1e-3)
    weights = rng.standard_normal((8, network.logits(rows).shape[1]))
    for column in rng.integers(0, x.shape[1], 6):
        step = np.zeros(x.shape[1])
        step[column] = 1e-6 * scale[column]
        rise = ((network.logits(rows + step) - network.logits(rows - step)) * weights).sum(axis=1)
        slope = rise / (2 * step[column])
        assert np.allclose(network.gradient(rows, weights)[:, column], slope, rtol=1e-3, atol=1e-4 / scale[column])


@pytest.mark.parametrize(
    "estimator",
    [
        KNeighborsClassifier().fit(*CANCER),
        make_pipeline(QuantileTransformer(n_quantiles=20), LogisticRegression(max_iter=10)).fit(*CANCER),
        LogisticRegression(),
        make_pipeline(MinMaxScaler(clip=True), RidgeClassifier()).fit(*CANCER),
    ],
    ids=["neighbours", "quantiles", "unfitted", "clipping"],
)
def test_estimators_without_gradients_are_refused_by_name(estimator: Any) -> None:
    with pytest.raises(ModelError, match="no gradients"):
        gradients.adapt(estimator)


@pytest.mark.parametrize("data", [DIGITS, CANCER], ids=["digits", "cancer"])
@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(random_state=0),
        RandomForestClassifier(12, random_state=0),
        ExtraTreesClassifier(12, max_depth=6, random_state=0),
        GradientBoostingClassifier(n_estimators=8, random_state=0),
        GradientBoostingClassifier(n_estimators=4, init="zero", random_state=0),
    ],
    ids=["tree", "forest", "extra", "boosting", "boosting-zero"],
)
def test_a_forest_equals_its_estimator(estimator: Any, data: tuple[Any, Any]) -> None:
    x, y = data
    estimator.fit(x[::2], y[::2])
    forest = trees.adapt(estimator)
    assert isinstance(forest, trees.TreeModel)
    assert np.allclose(forest.predict(x), estimator.predict_proba(x), atol=1e-12)
    assert forest.predict(x[:0]).shape == (0, len(np.unique(y)))
    if isinstance(estimator, RandomForestClassifier):
        leaves = forest.leaves(x)
        own = estimator.apply(x)
        for tree in range(leaves.shape[1]):
            ours, theirs = (np.unique(ids[:, tree], return_inverse=True)[1] for ids in (leaves, own))
            assert np.array_equal(ours, theirs)


def at_the_edges(forest: trees.Forest, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (n, d), of which a third of the features lie exactly at a threshold or one step beside it."""
    rng = np.random.default_rng(0)
    rows = x.astype(np.float64)
    for column, edges in enumerate(forest.thresholds):
        chosen = np.flatnonzero(rng.random(len(rows)) < 0.33)
        if len(edges) and len(chosen):
            at = rng.choice(edges, len(chosen))
            beside = np.nextafter(at.astype(np.float32), np.float32(np.inf) * rng.choice([-1, 1], len(chosen)))
            rows[chosen, column] = np.where(rng.random(len(chosen)) < 0.5, at, beside)
    return rows


@pytest.mark.parametrize("data", [DIGITS, CANCER], ids=["digits", "cancer"])
@pytest.mark.parametrize("kind", ["histogram", "xgboost", "xgboost-stopped", "dart", "lightgbm", "lightgbm-stopped"])
def test_boosted_trees_equal_their_estimator_at_thresholds_too(kind: str, data: tuple[Any, Any]) -> None:
    x, y = data
    x = x / x.max(axis=0).clip(1e-9)
    held = {"eval_set": [(x[1::2], y[1::2])]} if kind.endswith("stopped") else {}
    if kind == "histogram":
        estimator: Any = HistGradientBoostingClassifier(max_iter=20, random_state=0)
    elif kind.startswith("lightgbm"):
        lightgbm = pytest.importorskip("lightgbm")
        estimator = lightgbm.LGBMClassifier(n_estimators=40, learning_rate=0.8 if held else 0.1, n_jobs=1, verbose=-1)
        if held:
            held["callbacks"] = [lightgbm.early_stopping(2, verbose=False)]
    else:
        xgboost = pytest.importorskip("xgboost")
        booster = "dart" if kind == "dart" else "gbtree"
        more = (
            {"rate_drop": 0.3} if kind == "dart" else {"learning_rate": 1.0, "early_stopping_rounds": 2} if held else {}
        )
        estimator = xgboost.XGBClassifier(n_estimators=20, n_jobs=1, booster=booster, random_state=0, **more)
        held = {**held, "verbose": False}
    if len(np.unique(y)) > 2:
        x, y = x[:900], y[:900]
    estimator.fit(x[::2], y[::2], **held)
    forest = trees.adapt(estimator)
    rows = at_the_edges(forest, x)
    assert (rows != x).mean() > 0.1
    assert np.abs(forest.predict(rows) - estimator.predict_proba(rows)).max() < 1e-6
    assert np.abs(forest.predict(x) - estimator.predict_proba(x)).max() < 1e-6
    if kind.endswith("stopped"):
        columns = 1 if len(np.unique(y)) == 2 else len(np.unique(y))
        assert len(forest.first) < estimator.n_estimators * columns
    elif kind in ("xgboost", "lightgbm"):
        booster = estimator.booster_ if kind == "lightgbm" else estimator.get_booster()
        assert np.array_equal(trees.adapt(booster).predict(rows), forest.predict(rows))


def test_boosted_trees_whose_answers_are_no_plain_sum_are_refused() -> None:
    x, y = CANCER
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    quick = {"n_estimators": 3, "n_jobs": 1}
    quiet = {**quick, "verbose": -1}
    cases = [
        (xgboost.XGBClassifier(**quick, missing=0.0).fit(x, y), "takes 0 for a missing value"),
        (xgboost.XGBClassifier(**quick, objective="binary:hinge").fit(x, y), "binary:hinge can't be read"),
        (xgboost.XGBClassifier(**quick, booster="gblinear").fit(x, y), "holds no trees"),
        (xgboost.XGBClassifier(**quick), "not fitted"),
        (xgboost.XGBRegressor(**quick).fit(x, y), "XGBRegressor is no tree ensemble"),
        (lightgbm.LGBMClassifier(**quiet, linear_tree=True).fit(x, y), "linear trees"),
        (
            lightgbm.LGBMClassifier(**quiet, boosting_type="rf", subsample=0.5, subsample_freq=1).fit(x, y),
            "as a forest can't be read",
        ),
        (lightgbm.LGBMClassifier(**quiet), "not fitted"),
        (HistGradientBoostingClassifier(max_iter=2, categorical_features=[0]).fit(y[:, None] % 2, y), "categories"),
        (HistGradientBoostingRegressor(max_iter=2).fit(x, y), "HistGradientBoostingRegressor is no tree ensemble"),
    ]
    for estimator, message in cases:
        with pytest.raises(ModelError, match=message):
            trees.adapt(estimator)


def test_other_estimators_are_no_forests() -> None:
    with pytest.raises(ModelError, match="KNeighborsClassifier is no tree ensemble"):
        trees.adapt(KNeighborsClassifier())
    with pytest.raises(ModelError, match="is not fitted"):
        trees.adapt(RandomForestClassifier())


def cancer_forest() -> tuple[trees.Forest, NDArray[np.float64], NDArray[np.int64]]:
    x = MinMaxScaler().fit_transform(CANCER[0])
    forest = trees.adapt(RandomForestClassifier(40, random_state=0).fit(x[::2], CANCER[1][::2]))
    fresh = x[1::2][:60]
    return forest, fresh, np.argmax(forest.predict(fresh), axis=1)


def test_leaf_search_takes_the_shortest_way_that_single_features_allow() -> None:
    forest, x, y = cancer_forest()
    domain = unit_box(x.shape[1])
    threat = ThreatModel("trees", "linf", None, domain, "white-box", 0)
    crafted = LeafSearch().craft(forest, x, y, threat, np.random.default_rng(0))
    assert crafted.success.mean() > 0.95
    assert np.median(crafted.distances[crafted.success]) < 0.2
    noisy = registry.kind("uniform_noise")().craft(
        forest,
        x,
        y,
        ThreatModel("noise", "linf", float(np.median(crafted.distances)) / 2, domain, "black-box", 100),
        np.random.default_rng(0),
    )
    near = crafted.distances <= np.median(crafted.distances) / 2
    assert noisy.success[~near].mean() < 0.2


@pytest.mark.parametrize("name", ["leaf_search", "leaf_tuple"])
@pytest.mark.parametrize("kind", ["histogram", "xgboost", "lightgbm"])
def test_what_fools_boosted_trees_as_arrays_fools_the_estimator(kind: str, name: str) -> None:
    x, y = MinMaxScaler().fit_transform(CANCER[0]), CANCER[1]
    if kind == "histogram":
        estimator: Any = HistGradientBoostingClassifier(max_iter=20, random_state=0)
    elif kind == "xgboost":
        estimator = pytest.importorskip("xgboost").XGBClassifier(n_estimators=20, n_jobs=1)
    else:
        estimator = pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=20, n_jobs=1, verbose=-1)
    estimator.fit(x[::2], y[::2])
    fresh = x[1::2][:30]
    said = estimator.predict(fresh)
    threat = ThreatModel("trees", "l2", None, unit_box(x.shape[1]), "white-box", 0)
    crafted = registry.kind(name)().craft(trees.adapt(estimator), fresh, said, threat, np.random.default_rng(0))
    assert crafted.success.mean() > 0.95
    assert np.array_equal(estimator.predict(crafted.inputs) != said, crafted.success)


def test_a_quiet_leaf_search_changes_fewer_leaves() -> None:
    forest, x, y = cancer_forest()
    threat = ThreatModel("trees", "l2", None, unit_box(x.shape[1]), "white-box", 0)
    changed = []
    for quiet in (0.0, 50.0):
        crafted = LeafSearch(quiet=quiet).craft(forest, x, y, threat, np.random.default_rng(0))
        assert crafted.success.mean() > 0.9
        changed.append((forest.leaves(crafted.inputs) != forest.leaves(x)).mean())
    assert changed[1] < changed[0]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_surrogate_learns_the_models_answers_and_fools_it(kind: Any) -> None:
    x, y = DIGITS[0] / 16, DIGITS[1]
    watched = MLPClassifier((64,), max_iter=150, random_state=0).fit(x[:700], y[:700])
    answers = watched.predict(x)
    surrogate = fit_surrogate(x[700:1200], answers[700:1200], np.random.default_rng(0), kind)
    assert (np.argmax(surrogate.predict(x[1200:]), axis=1) == answers[1200:]).mean() > 0.85
    threat = ThreatModel("transfer", "linf", 0.2, unit_box(64), "transfer", 0)
    crafted = registry.kind("transfer_pgd")().craft(
        surrogate, x[1200:1300], answers[1200:1300], threat, np.random.default_rng(0)
    )
    assert (watched.predict(crafted.inputs) != answers[1200:1300]).mean() > 0.6
    assert (crafted.queries == 0).all()


def test_a_surrogate_of_classes_that_are_partly_unseen_never_says_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (100, 3))
    surrogate = fit_surrogate(x, np.where(x[:, 0] > 0, 4, 1), rng)
    assert surrogate.predict(x).shape == (100, 5)
    assert set(np.argmax(surrogate.predict(x), axis=1)) == {1, 4}


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.zeros((4, 2)), np.zeros(4, dtype=int), "all 4 rows are of class 0"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "no rows"),
        (np.full((2, 2), np.nan), np.array([0, 1]), "row 0 is not finite"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "labels are whole numbers"),
        (np.zeros((2, 2)), np.array([0, 1, 2]), r"labels \(3,\)"),
    ],
)
def test_rows_that_teach_nothing_are_refused(rows: Any, labels: Any, message: str) -> None:
    with pytest.raises(SurrogateError, match=message):
        fit_surrogate(rows, labels, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["deepfool", "carlini_wagner"])
def test_minimal_attacks_find_the_plane_of_a_linear_model(name: str) -> None:
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 1, (10, 2))
    model = Network((weights,), (np.zeros(2),))
    x = rng.uniform(0.4, 0.6, (40, 10))
    y = np.argmax(model.logits(x), axis=1)
    gap = np.abs(np.diff(model.logits(x), axis=1)[:, 0]) / np.linalg.norm(weights[:, 0] - weights[:, 1])
    threat = ThreatModel("exact", "l2", None, unit_box(10), "white-box", 0)
    crafted = registry.kind(name)().craft(model, x, y, threat, rng)
    assert crafted.success.all()
    assert (crafted.distances <= 1.1 * gap + 0.01).all()
    assert (crafted.distances >= gap - 1e-9).all()
