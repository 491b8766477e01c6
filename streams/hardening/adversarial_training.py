"""Adversarial training: learn from rows that are crafted against the model as it learns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline

from attacks import gradients, registry
from attacks.errors import ModelError
from attacks.network import Network
from attacks.pgd import ascend
from attacks.threat import ThreatModel
from detectors.contract import Progress
from streams.redteam.subject import of

#: Passes over the rows; crafted rows are renewed so many times in a pass.
PASSES, PORTIONS = 30, 6
#: With few rows there are more passes, until so many rows have been seen, but no more than so many passes.
ROWS_SEEN, MOST_PASSES = 100_000, 150
#: Steps of the ascent that crafts rows while learning, and the length of each as a share of eps.
STEPS, STEP = 7, 2.5 / 7
#: The distance grows to its full size over the first share of passes; weights are averaged over the last.
GROWING, AVERAGED = 0.3, 0.3
#: Rounds of crafting and fitting again, for estimators that learn in one go; queries of a crafted row in a round.
ROUNDS, ROUND_QUERIES = 4, 150
#: Rows that are crafted in each such round.
ROUND_ROWS = 2000


def silent(what: str, share: float) -> None:
    """No progress to tell."""


def train(
    estimator: Any,
    X: NDArray[np.float64],
    y: NDArray[np.int64],
    threat: ThreatModel,
    rng: np.random.Generator,
    progress: Progress = silent,
    passes: int | None = None,
) -> Any:
    """A copy of the estimator that has learned rows (n, d) of classes (n,) and rows crafted from them.

    Estimators that learn in passes and have gradients (`MLPClassifier`, `SGDClassifier`, bare or behind scalers) learn
    from projected gradient ascent against themselves, renewed all the time, and end with the mean of their last
    weights. Others are fitted again several times, each time with rows that fool what was fitted before.

    Parameters
    ----------
    threat : ThreatModel
        With a bound on the distance; knowledge and budget do not matter: who defends knows the model.
    passes : int, optional
        Over the rows, of estimators that learn in passes; default: 30, more with few rows.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
    2018, section 4. Mean of weights: Izmailov, Podoprikhin, Garipov, Vetrov & Wilson, UAI 2018. Refitting trees with
    evasive rows: Kantchelian, Tygar & Joseph, "Evasion and Hardening of Tree Ensemble Classifiers", ICML 2016,
    section 5.

    Raises
    ------
    ValueError
        The threat model has no bound.
    """
    if threat.eps is None:
        raise ValueError(f"{threat.name}: adversarial training needs a bound on the distance")
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    own = _against(threat, threat.eps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "Got `batch_size`")
        if hasattr(last, "partial_fit") and _has_gradients(estimator, X, y):
            return _in_passes(estimator, X, y, own, rng, progress, passes or default_passes(len(X)))
        return _in_rounds(estimator, X, y, own, rng, progress)


def default_passes(rows: int) -> int:
    """Passes over so many rows."""
    return max(PASSES, min(MOST_PASSES, -(-ROWS_SEEN // rows)))


def _against(threat: ThreatModel, eps: float) -> ThreatModel:
    """The defender's own threat model: everything is known, any wrong class counts."""
    return ThreatModel(threat.name, threat.norm, eps, threat.domain, "white-box", ROUND_QUERIES, "any", threat.scale)


def _has_gradients(estimator: Any, X: NDArray[np.float64], y: NDArray[np.int64]) -> bool:
    """Whether a copy that has learned a little can be read."""
    few = np.concatenate([np.flatnonzero(y == label)[:2] for label in np.unique(y)])
    try:
        _network(_begun(estimator, X[few], y[few], np.unique(y))[0])
    except (ModelError, TypeError, ValueError):
        return False
    return True


def _network(estimator: Any) -> Network:
    return gradients.adapt(estimator)


def _begun(
    estimator: Any, X: NDArray[np.float64], y: NDArray[np.int64], classes: NDArray[np.int64]
) -> tuple[Any, Callable[[NDArray[np.float64], NDArray[np.int64]], None]]:
    """A copy after a first pass, with its scalers fitted, and how it learns more.

    Early stopping is switched off: it looks at untouched rows alone, and learning in passes refuses it.
    """
    fresh = clone(estimator)
    last = fresh.steps[-1][1] if isinstance(fresh, Pipeline) else fresh
    if getattr(last, "early_stopping", False):
        last.set_params(early_stopping=False)
    if not isinstance(fresh, Pipeline):
        fresh.partial_fit(X, y, classes=classes)
        return fresh, lambda rows, labels: fresh.partial_fit(rows, labels)
    scaled = X
    for _, step in fresh.steps[:-1]:
        if step not in (None, "passthrough"):
            scaled = step.fit(scaled, y).transform(scaled)
    fresh.steps[-1][1].partial_fit(scaled, y, classes=classes)

    def learn(rows: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        for _, step in fresh.steps[:-1]:
            if step not in (None, "passthrough"):
                rows = step.transform(rows)
        fresh.steps[-1][1].partial_fit(rows, labels)

    return fresh, learn


def _in_passes(
    estimator: Any,
    X: NDArray[np.float64],
    y: NDArray[np.int64],
    threat: ThreatModel,
    rng: np.random.Generator,
    progress: Progress,
    passes: int,
) -> Any:
    fresh, learn = _begun(estimator, X, y, np.unique(y))
    last = fresh.steps[-1][1] if isinstance(fresh, Pipeline) else fresh
    codes = np.searchsorted(np.unique(y), y)
    legal = threat.domain.holds(X)
    means: list[NDArray[np.float64]] = []
    taken = 0
    for number in range(passes):
        progress("adversarial training", number / passes)
        eps = threat.radius * min(1.0, (number + 1) / (GROWING * passes))
        if threat.norm == "l0":
            eps = max(1.0, round(eps))
        within = _against(threat, eps)
        for portion in np.array_split(rng.permutation(len(X)), PORTIONS):
            crafting = portion[legal[portion]]
            if len(crafting):
                crafted = ascend(
                    _network(fresh), X[crafting], codes[crafting], within, rng, STEPS, 1, STEP, shaken=True
                )
                learn(np.concatenate([X[portion], crafted]), np.concatenate([y[portion], y[crafting]]))
            else:
                learn(X[portion], y[portion])
            if number >= int((1 - AVERAGED) * passes):
                taken += 1
                weights = _weights(last)
                means = (
                    [one + (now - one) / taken for one, now in zip(means, weights, strict=True)]
                    if means
                    else [one.copy() for one in weights]
                )
    _set_weights(last, means)
    return fresh


def _weights(estimator: Any) -> list[NDArray[np.float64]]:
    if hasattr(estimator, "coefs_"):
        return [*estimator.coefs_, *estimator.intercepts_]
    return [estimator.coef_, estimator.intercept_]


def _set_weights(estimator: Any, weights: list[NDArray[np.float64]]) -> None:
    if hasattr(estimator, "coefs_"):
        layers = len(estimator.coefs_)
        estimator.coefs_, estimator.intercepts_ = weights[:layers], weights[layers:]
    else:
        estimator.coef_, estimator.intercept_ = weights


def _in_rounds(
    estimator: Any,
    X: NDArray[np.float64],
    y: NDArray[np.int64],
    threat: ThreatModel,
    rng: np.random.Generator,
    progress: Progress,
) -> Any:
    fitted = _fit(estimator, X, y)
    rows, labels = [X], [y]
    codes = np.searchsorted(np.unique(y), y)
    legal = np.flatnonzero(threat.domain.holds(X))
    for number in range(ROUNDS):
        progress("adversarial training", number / ROUNDS)
        which = rng.permutation(legal)[:ROUND_ROWS]
        crafted = _crafted(fitted, X[which], codes[which], threat, rng)
        rows += [crafted, _pushed(X[which], crafted, threat)]
        labels += [y[which], y[which]]
        fitted = _fit(estimator, np.concatenate(rows), np.concatenate(labels))
    return fitted


def _fit(estimator: Any, X: NDArray[np.float64], y: NDArray[np.int64]) -> Any:
    return clone(estimator).fit(X, y)


def _crafted(
    fitted: Any, x: NDArray[np.float64], y: NDArray[np.int64], threat: ThreatModel, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Rows (n, d) near `x`: what the strongest way to read this model finds, else its best try."""
    subject = of(fitted, "model")
    if subject.gradients is not None:
        return ascend(subject.gradients, x, y, threat, rng, 4 * STEPS, 1, STEP / 2, shaken=True)
    # Trees read as arrays answer many times faster than the estimator. Square is about as strong as leaf search here
    # and a hundred times cheaper (breast cancer, Linf .1: 37 % fooled by either).
    model = subject.trees or subject.model
    name = "square" if threat.norm in ("l2", "linf") else "coordinate_search"
    return registry.kind(name)().craft(model, x, y, threat, rng).inputs


def _pushed(x: NDArray[np.float64], crafted: NDArray[np.float64], threat: ThreatModel) -> NDArray[np.float64]:
    """Rows (n, d) in the same direction, at the edge of what is allowed: attacks stop just behind the boundary."""
    if threat.norm == "l0":
        return crafted
    distance = np.maximum(threat.distances(x, crafted), 1e-12)
    return threat.project(x, x + (crafted - x) * (threat.radius / distance)[:, None])
