"""Tree ensembles as arrays: scikit-learn's, XGBoost's and LightGBM's, read once and never asked again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.errors import FitError
from detectors.kernels import trees as kernels
from detectors.stored import stored, within

#: Trees of scikit-learn that keep one tree an estimator.
_FORESTS = frozenset({"RandomForestClassifier", "ExtraTreesClassifier", "BaggingClassifier"})
_NODES = (("feature", np.int32), ("threshold", np.float64), ("left", np.int32), ("right", np.int32), ("leaf", np.int32))


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """All trees of an ensemble in one set of arrays; a row goes right where row[feature] > threshold.

    Attributes
    ----------
    feature, left, right : int32 (m,)
        Of each node; children stand behind their parent.
    threshold : float64 (m,)
    leaf : int32 (m,)
        Number of the leaf within its tree, or -1 at an inner node.
    roots : int32 (t,)
    single : bool
        Rows are rounded to single precision first.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    leaf: NDArray[np.int32]
    roots: NDArray[np.int32]
    single: bool

    def leaves(self, inputs: NDArray[np.float64]) -> NDArray[np.int32]:
        """(n, t) number of the leaf that each row reaches in each tree."""
        rows = np.asarray(inputs, dtype=np.float64)
        if self.single:
            with np.errstate(over="ignore"):
                rows = rows.astype(np.float32).astype(np.float64)
        out = np.empty((len(rows), len(self.roots)), dtype=np.int32)
        rows = np.ascontiguousarray(rows)
        kernels.leaves(rows, self.feature, self.threshold, self.left, self.right, self.leaf, self.roots, out)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything."""
        nodes = {name: getattr(self, name) for name, _ in _NODES}
        return {**nodes, "roots": self.roots, "single": np.array([self.single])}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], width: int) -> Self:
        """The inverse of `arrays`; ValueError where a walk could leave the arrays or never end."""
        count = len(stored(arrays, "leaf", np.int32, None))
        nodes = {name: stored(arrays, name, kind, count, finite=False) for name, kind in _NODES}
        within("feature", nodes["feature"], 0, width - 1)
        roots = within("roots", stored(arrays, "roots", np.int32, None), 0, count - 1)
        inner = np.flatnonzero(nodes["leaf"] < 0)
        for name in ("left", "right"):
            within(name, nodes[name][inner], 0, count - 1)
            if np.any(nodes[name][inner] <= inner):
                raise ValueError(f"{name}: a node stands before its parent")
        return cls(**nodes, roots=roots, single=bool(stored(arrays, "single", np.bool_, 1)[0]))


class _Grove:
    """Trees as they are read, one after another."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, float, int, int, int]] = []
        self.roots: list[int] = []

    def add(self, feature: Any, threshold: Any, left: Any, right: Any, is_leaf: Any, numbers: Any = None) -> None:
        """One tree of arrays over its nodes, root first; leaves get numbers in the order of nodes unless given."""
        order: list[int] = []
        place: dict[int, int] = {}
        stack = [0]
        while stack:  # parents before children, whatever the order was
            node = stack.pop()
            place[node] = len(order)
            order.append(node)
            if not is_leaf[node]:
                stack += [int(right[node]), int(left[node])]
        base = len(self.nodes)
        self.roots.append(base)
        ranks = {node: rank for rank, node in enumerate(sorted(node for node in order if is_leaf[node]))}
        for node in order:
            if is_leaf[node]:
                number = ranks[node] if numbers is None else int(numbers[node])
                self.nodes.append((0, np.inf, 0, 0, number))
            else:
                children = base + place[int(left[node])], base + place[int(right[node])]
                self.nodes.append((int(feature[node]), float(threshold[node]), *children, -1))

    def trees(self, single: bool) -> Trees:
        columns = list(zip(*self.nodes, strict=True))
        arrays = {name: np.array(column, dtype=kind) for (name, kind), column in zip(_NODES, columns, strict=True)}
        return Trees(**arrays, roots=np.array(self.roots, dtype=np.int32), single=single)


def read(model: Any) -> Trees:
    """The trees of a fitted classifier.

    Parameters
    ----------
    model : object
        scikit-learn's DecisionTree-, RandomForest-, ExtraTrees-, GradientBoosting- or HistGradientBoostingClassifier;
        an ``XGBClassifier`` or ``xgboost.Booster``; an ``LGBMClassifier`` or ``lightgbm.Booster``; or a pipeline of one
        of them alone.

    Raises
    ------
    FitError
        For any other model, one that is not fitted, or one that splits by sets of categories or by missing values.
    """
    steps = getattr(model, "steps", None)
    if steps:
        if any(step not in (None, "passthrough") for _, step in steps[:-1]):
            raise FitError("the model transforms its inputs before its trees; give the trees on the inputs of events")
        return read(steps[-1][1])
    name = type(model).__name__
    if hasattr(model, "get_booster"):
        return _xgboost(model.get_booster())
    if hasattr(model, "save_raw") and hasattr(model, "get_dump"):
        return _xgboost(model)
    if hasattr(model, "booster_") or hasattr(model, "dump_model"):
        return _lightgbm(model if hasattr(model, "dump_model") else model.booster_)
    if hasattr(model, "_predictors"):
        return _histogram(model)
    if hasattr(model, "tree_"):
        return _scikit([model])
    if hasattr(model, "estimators_") and (name in _FORESTS or name == "GradientBoostingClassifier"):
        return _scikit(list(np.ravel(model.estimators_)), getattr(model, "estimators_features_", None))
    raise FitError(
        f"{name} is no fitted tree ensemble that can be read; scikit-learn's trees, forests and boosted trees, "
        "XGBoost's and LightGBM's are"
    )


def _scikit(estimators: list[Any], drawn: Sequence[NDArray[np.intp]] | None = None) -> Trees:
    """Trees on all features, or each on those `drawn` for it."""
    grove = _Grove()
    for place, estimator in enumerate(estimators):
        if not hasattr(estimator, "tree_"):
            raise FitError(f"{type(estimator).__name__} is no tree")
        tree = estimator.tree_
        feature = tree.feature if drawn is None else drawn[place][np.maximum(tree.feature, 0)]
        grove.add(feature, tree.threshold, tree.children_left, tree.children_right, tree.children_left < 0)
    return grove.trees(single=True)


def _histogram(model: Any) -> Trees:
    grove = _Grove()
    for step in model._predictors:  # noqa: SLF001  (scikit-learn has no public name for the trees)
        for predictor in step:
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise FitError("trees that split by sets of categories can't be read; encode categories as numbers")
            leaf = nodes["is_leaf"].astype(bool)
            grove.add(nodes["feature_idx"], nodes["num_threshold"], nodes["left"], nodes["right"], leaf)
    return grove.trees(single=False)


def _xgboost(booster: Any) -> Trees:
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
    found = (learner.get("model") or learner.get("gbtree", {}).get("model") or {}).get("trees")
    if not found:
        raise FitError("the XGBoost model holds no trees (a linear booster?)")
    grove = _Grove()
    for tree in found:
        if any(tree.get("split_type", [])):
            raise FitError("trees that split by sets of categories can't be read; encode categories as numbers")
        left = np.array(tree["left_children"])
        below = np.array(tree["split_conditions"], dtype=np.float32)
        at_most = np.nextafter(below, np.float32(-np.inf))  # XGBoost goes left where x < t
        grove.add(tree["split_indices"], at_most, left, tree["right_children"], left < 0)
    return grove.trees(single=True)


def _lightgbm(booster: Any) -> Trees:
    grove = _Grove()
    for info in booster.dump_model()["tree_info"]:
        nodes: list[tuple[int, float, int, int, bool, int]] = []
        _flatten(info["tree_structure"], nodes)
        feature, threshold, left, right, leaf, numbers = zip(*nodes, strict=True)
        grove.add(feature, threshold, left, right, leaf, numbers)
    return grove.trees(single=False)


def _flatten(node: Mapping[str, Any], nodes: list[tuple[int, float, int, int, bool, int]]) -> int:
    """Append a node of LightGBM and what hangs on it; its place."""
    place = len(nodes)
    if "split_feature" not in node:
        nodes.append((0, 0.0, 0, 0, True, int(node.get("leaf_index", 0))))
        return place
    if node["decision_type"] != "<=" or node.get("missing_type") == "Zero":
        raise FitError("trees that split by sets of categories or by zeros as missing can't be read")
    nodes.append((0, 0.0, 0, 0, False, 0))
    left, right = _flatten(node["left_child"], nodes), _flatten(node["right_child"], nodes)
    nodes[place] = (int(node["split_feature"]), float(node["threshold"]), left, right, False, 0)
    return place
