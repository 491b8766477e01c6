"""What each leaf of a fitted tree ensemble adds to the scores, beside its structure as `detectors.trees` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.tree import DecisionTreeClassifier

from attacks.errors import ModelError
from detectors import trees
from detectors.errors import FitError

Link = Literal["mean", "softmax"]
"""Scores are the mean over trees, or the softmax of the sum."""


@dataclass(frozen=True, slots=True, eq=False)
class Valued:
    """Trees and what their leaves say.

    Attributes
    ----------
    read : Trees
    leaves : list of float64 (l, k)
        For each tree its leaves' scores, in the order of the numbers that `read` gives them.
    base : float64 (k,)
        Scores before the first tree.
    link : {"mean", "softmax"}
    width : int
        Number of features.
    """

    read: trees.Trees
    leaves: list[NDArray[np.float64]]
    base: NDArray[np.float64]
    link: Link
    width: int


def valued(estimator: Any) -> Valued:
    """The trees of a fitted classifier with their leaf values.

    Raises
    ------
    ModelError
        For any other estimator, or one that is not fitted, or whose probabilities are no plain sum over its trees.
    """
    name = type(estimator).__name__
    package = type(estimator).__module__.partition(".")[0]
    forests = (DecisionTreeClassifier, RandomForestClassifier, ExtraTreesClassifier)
    known = isinstance(estimator, (*forests, GradientBoostingClassifier, HistGradientBoostingClassifier))
    booster = name == "Booster"
    if not known and not (
        package in ("xgboost", "lightgbm") and (booster or name in ("XGBClassifier", "LGBMClassifier"))
    ):
        raise ModelError(
            f"{name} is no tree ensemble that can be read; DecisionTree-, RandomForest-, ExtraTrees-, "
            "GradientBoosting- and HistGradientBoostingClassifier, XGBClassifier and LGBMClassifier are"
        )
    if not booster and (not hasattr(estimator, "classes_") or getattr(estimator, "n_outputs_", 1) != 1):
        raise ModelError(f"{name} is not fitted, or has several outputs")
    try:
        if isinstance(estimator, forests):
            return _forest(estimator)
        if isinstance(estimator, GradientBoostingClassifier):
            return _gradient_boosting(estimator)
        if isinstance(estimator, HistGradientBoostingClassifier):
            return _histogram(estimator)
        return _xgboost(estimator) if package == "xgboost" else _lightgbm(estimator)
    except FitError as refusal:
        raise ModelError(f"{name}: {refusal}") from refusal


def _in_columns(
    leaves: Sequence[NDArray[np.float64]], columns: Sequence[int], classes: int
) -> list[NDArray[np.float64]]:
    """One number a leaf (l,) of each tree, put into the column of the class that the tree is for."""
    found = []
    for values, column in zip(leaves, columns, strict=True):
        spread = np.zeros((len(values), classes))
        spread[:, column] = values
        found.append(spread)
    return found


def _forest(estimator: Any) -> Valued:
    inner = [estimator] if isinstance(estimator, DecisionTreeClassifier) else estimator.estimators_
    leaves = []
    for tree in (one.tree_ for one in inner):
        value = tree.value[tree.children_left < 0, 0, :]
        leaves.append(value / value.sum(axis=1, keepdims=True))
    classes, width = len(estimator.classes_), int(estimator.n_features_in_)
    return Valued(trees.read(estimator), leaves, np.zeros(classes), "mean", width)


def _gradient_boosting(estimator: Any) -> Valued:
    inner = estimator.estimators_
    classes, width, columns = len(estimator.classes_), int(estimator.n_features_in_), inner.shape[1]
    leaves = [
        estimator.learning_rate * one.tree_.value[one.tree_.children_left < 0, 0, 0] for row in inner for one in row
    ]
    row = np.zeros((1, width))
    added = np.array([sum(tree.predict(row)[0] for tree in inner[:, column]) for column in range(columns)])
    base = np.zeros(classes)
    base[classes - columns :] = np.atleast_1d(estimator.decision_function(row)[0]) - estimator.learning_rate * added
    places = [column + (columns == 1) for _ in inner for column in range(columns)]
    return Valued(trees.read(estimator), _in_columns(leaves, places, classes), base, "softmax", width)


def _histogram(estimator: Any) -> Valued:
    steps = estimator._predictors  # noqa: SLF001  (scikit-learn has no public name for the trees)
    classes, columns = len(estimator.classes_), len(steps[0])
    leaves = [tree.nodes["value"][tree.nodes["is_leaf"].astype(bool)] for step in steps for tree in step]
    base = np.zeros(classes)
    start = estimator._baseline_prediction  # noqa: SLF001  (nor for the scores before the first tree)
    base[classes - columns :] = np.ravel(start)
    places = [column + (columns == 1) for _ in steps for column in range(columns)]
    filled = _in_columns(leaves, places, classes)
    return Valued(trees.read(estimator), filled, base, "softmax", int(estimator.n_features_in_))


def _xgboost(estimator: Any) -> Valued:
    booster = estimator
    if hasattr(estimator, "get_booster"):
        booster = estimator.get_booster()
        missing = estimator.missing
        if missing is not None and not np.isnan(missing):
            raise ModelError(f"XGBClassifier takes {missing:g} for a missing value; only NaN can be read")
        best = getattr(estimator, "best_iteration", None)
        booster = booster if best is None else booster[: best + 1]
    read = trees.read(booster)
    leaves, columns = _xgboost_leaves(booster)
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective = learner["objective"]["name"]
    binary = objective == "binary:logistic"
    if not binary and objective not in ("multi:softprob", "multi:softmax"):
        raise ModelError(
            f"XGBoost with the objective {objective} can't be read; binary:logistic and multi:softprob can"
        )
    classes = 2 if binary else int(learner["learner_model_param"]["num_class"])
    width = int(booster.num_features())
    # What the first round of trees says at one row, less those trees: what XGBoost adds before them.
    first, row = booster[:1], np.zeros((1, width), dtype=np.float32)
    reached = trees.read(first).leaves(row.astype(np.float64))[0]
    said = np.ravel(first.inplace_predict(row, predict_type="margin", validate_features=False)).astype(np.float64)
    early, places = _xgboost_leaves(first)
    base = np.zeros(classes)
    base[classes - len(said) :] = said
    for values, column, number in zip(early, places, reached, strict=True):
        base[column + binary] -= values[number]
    filled = _in_columns(leaves, [column + binary for column in columns], classes)
    return Valued(read, filled, base, "softmax", width)


def _xgboost_leaves(booster: Any) -> tuple[list[NDArray[np.float64]], list[int]]:
    """For each tree its leaves' values (l,), and the number of its class."""
    held = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
    weights = held.get("weight_drop")
    model = held["model"] if "model" in held else held["gbtree"]["model"]
    weights = [1.0] * len(model["trees"]) if weights is None else weights
    leaves = []
    for tree, weight in zip(model["trees"], weights, strict=True):
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise ModelError("XGBoost's trees with several outputs a leaf can't be read")
        left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
        held_nodes, fresh = np.zeros(len(left), dtype=np.bool_), np.zeros(1, dtype=np.intp)
        while len(fresh):
            held_nodes[fresh] = True
            inner = fresh[left[fresh] >= 0]
            fresh = np.concatenate([left[inner], right[inner]])
        value = np.array(tree["split_conditions"], dtype=np.float32)[held_nodes & (left < 0)]
        leaves.append(value.astype(np.float64) * weight)
    return leaves, [int(column) for column in model["tree_info"]]


def _lightgbm(estimator: Any) -> Valued:
    booster = getattr(estimator, "booster_", estimator)
    dump = booster.dump_model()
    objective, *settings = dump.get("objective", "none").split()
    told = dict(setting.split(":", 1) for setting in settings if ":" in setting)
    if objective not in ("binary", "multiclass") or dump.get("average_output"):
        raise ModelError(
            f"LightGBM with the objective {objective}{' as a forest' if dump.get('average_output') else ''} can't be "
            "read; boosted trees for binary and multiclass can"
        )
    read = trees.read(booster)
    binary = objective == "binary"
    columns = int(dump["num_tree_per_iteration"])
    slope = float(told.get("sigmoid", 1.0)) if binary else 1.0
    leaves = []
    for info in dump["tree_info"]:
        held = dict(_lightgbm_leaves(info["tree_structure"]))
        leaves.append(slope * np.array([held[number] for number in range(len(held))]))
    classes = 2 if binary else columns
    places = [number % columns + binary for number in range(len(leaves))]
    filled = _in_columns(leaves, places, classes)
    return Valued(read, filled, np.zeros(classes), "softmax", int(dump["max_feature_idx"]) + 1)


def _lightgbm_leaves(node: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """(number, value) of each leaf below a node."""
    if "split_feature" in node:
        yield from _lightgbm_leaves(node["left_child"])
        yield from _lightgbm_leaves(node["right_child"])
        return
    if "leaf_const" in node:
        raise ModelError("LightGBM's linear trees can't be read")
    yield int(node.get("leaf_index", 0)), float(node["leaf_value"])
