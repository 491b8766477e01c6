"""Detection of single crafted inputs: what the ensemble sees, against each detector alone.

    python -m benchmarks.detection --json --check [--quick] [--write] [--keep DIRECTORY [--accept-older]]

Successful examples only. Benign rows are the report part of each deal, the model's errors included; starts of attacks
are of the same part, correctly classified. Thresholds of "TPR at 1 % FPR" are those of the benign report rows, ties
counted against the detector. Crafted pictures of mnist are rounded to 8 bits a pixel before they are judged, as a file
would; those that then fail don't count. An attack "zeros kept" gives back what it changed of features that were zero
(the attacker who knows `pattern`); it stands beside the others, not in the worst over attacks.

Detectors are fitted on the model's training rows, calibrated on tuning rows, and weighed on attacks made from tuning
rows, without the attack's own family. Intervals are over seeds (bootstrap) where a figure is a mean over seeds, and
Wilson's over examples where it is one share.

Schemes:

* ``default``: the default detectors as `vedette fit` calibrates them without crafted rows (weights rehearsed on its own
  surrogate);
* ``without pattern``: the same but for that detector; ``, tail``: with spreads of the tail; ``, crafted``: with weights
  learned from tuning attacks of other families;
* ``lean``: the default detectors and `margin`, spreads of the tail, mean of e-values;
* ``extended``: the set of that name, spreads of the tail, mean of e-values; nothing learned from attacks;
* ``extended, product`` and ``extended, median``: the same with equal weights of -ln p, and with median spreads;
* ``extended, crafted``: the same scores, weights learned from tuning attacks of other families;
* ``escalation``: ``extended`` and the two inquiries that ask the model again, mean of e-values;
* ``trees`` (tree ensembles): the set of that name, spreads of the median, equal weights; nothing learned from attacks;
* ``supervised, leaves`` and ``supervised, scores`` (table of tree ensembles): random forests that learned this attack
  on this model, from tuning rows and what the attack made of them, by the leaves that a row reaches, or by the row, the
  model's answer and all scores above. No site can have them; they show what there is to gain;
* single detectors on raw scores: max-softmax, OC-score (trees), PyOD's IForest, KNN and ECOD.

``--write`` puts the tables between the marks in docs/detection.md, and the plot into docs/images. ``--keep`` stores
each data set, model and seed as it is done, with its settings and a digest of the code that decides, and takes up what
is there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from benchmarks import kept, report
from benchmarks.crafted import (
    KEPT,
    Examples,
    Part,
    Plan,
    Task,
    craft,
    plans,
    task,
    tree_plans,
)
from benchmarks.datasets import Data, Kind, named, split_installed
from benchmarks.report import Figure, Target
from detectors import registry, trees
from detectors.calibration.conformal import ScoreCalibration, surprise_of
from detectors.calibration.evalues import evalue
from detectors.calibration.fusion import equal_weights, hedged, logistic_weights
from detectors.calibration.rehearsal import rehearse
from detectors.calibration.scheme import Fusion, Spread
from detectors.contract import Batch, Detector, Reference
from detectors.kernels import limit_blas_threads
from detectors.queries.intent import IntentTest
from detectors.responses.contract import Inquiry
from detectors.responses.feature_squeezing import FeatureSqueezing
from detectors.responses.noise_stability import NoiseStability
from detectors.view import BatchView, ReferenceFrame

#: Starts of each attack on report and tuning rows, seeds, and what is run.
STARTS, TUNING_STARTS, SEEDS = 60, 30, 5
QUICK_STARTS, QUICK_TUNING_STARTS, QUICK_SEEDS = 20, 8, 1
TASKS: tuple[tuple[Data, Kind], ...] = tuple(
    (data, kind)
    for data in ("mnist", "spambase", "digits", "cancer", "phishing", "kddcup")
    for kind in ("mlp", "logistic", "forest", "boosting", "xgboost")
)
QUICK_TASKS: tuple[tuple[Data, Kind], ...] = (("digits", "mlp"), ("spambase", "mlp"), ("cancer", "forest"))
#: Tuning rows that the supervised detectors of the table of OC-score have attacks of; breast-cancer has 142.
TREE_TUNING_STARTS = 142
#: Tree ensembles of that table.
TREES: tuple[Kind, ...] = ("forest", "boosting", "xgboost")
QUICK_TREES: tuple[Kind, ...] = ("boosting",)
#: A quick run attacks trees by one attack in so many.
QUICK_EVERY = 3
#: Fewest examples, over all seeds, of a cell that a worst case is taken over.
LEAST_EXAMPLES = 20
#: Share of tuning rows that the normalisation by class is learned on; p-values are taken on the rest.
SHAPE_EVERY = 4
TARGET_MNIST, TARGET_SPAMBASE, TARGET_TREES = 0.90, 0.80, 0.95
DOCS = Path(__file__).resolve().parents[1] / "docs"
SINGLES = {"IForest": "isolation_forest", "KNN": "pyod.KNN", "ECOD": "pyod.ECOD", "max-softmax": "max_softmax"}

#: Detectors that learned the attack that they are judged on.
SUPERVISED = ("supervised, leaves", "supervised, scores")

#: Modules beside `detectors` and `attacks` that decide what is measured.
DECIDING = ("crafted", "datasets", "detection")

Scores = dict[str, NDArray[np.float64]]


class Judge:
    """Every detector fitted on one task, and the scores they give."""

    def __init__(self, made: Task, inquiries: bool) -> None:
        rng = np.random.default_rng([made.seed, 2])
        self.task = made
        self.names = list(dict.fromkeys([*registry.SETS["extended"], "dknn", "pyod.KNN"]))
        if made.kind in ("forest", "boosting", "xgboost"):
            self.names = list(dict.fromkeys([*self.names, *registry.SETS["trees"]]))
        reference = Reference(made.train.x, made.train.labels, made.train.outputs, made.train.truth)
        self.frame = ReferenceFrame.fit(reference, len(made.schema.classes), rng)
        made_detectors: dict[str, Any] = {name: registry.made(name, made.model.estimator) for name in self.names}
        self.detectors: dict[str, Detector] = {
            name: detector.fit(reference, made.schema, rng) for name, detector in made_detectors.items()
        }
        self.inquiries: dict[str, Inquiry] = {}
        if inquiries:
            # The model is too sure of its training rows: usual answers to noise are learned on half of the tuning rows.
            half = Reference(made.tuning.x[::2], made.tuning.labels[::2], None, made.tuning.truth[::2])
            for kind, known in ((NoiseStability, half), (FeatureSqueezing, reference)):
                inquiry = kind().fit(known, made.schema, made.model.predict, rng)
                self.inquiries[inquiry.name] = inquiry
        self.rehearsed = self._rehearse(reference, rng)

    def scores(self, x: NDArray[np.float64], labels: NDArray[np.int32], outputs: NDArray[np.float64] | None) -> Scores:
        """Scores of rows by name."""
        x = np.ascontiguousarray(x)
        wide = np.zeros(len(x), dtype=np.int64)
        batch = Batch(x, labels, wide.astype(np.uint64), wide, wide, wide.astype(np.int32), outputs)
        view = BatchView(self.frame, batch)
        found = {name: detector.score(view) for name, detector in self.detectors.items()}
        found |= {name: inquiry.score(x, labels, self.task.model.predict) for name, inquiry in self.inquiries.items()}
        if outputs is not None:
            found["max_softmax"] = -outputs.max(axis=1)
        return found

    def _rehearse(self, reference: Reference, rng: np.random.Generator) -> list[tuple[Scores, NDArray[np.int32]]]:
        made = self.task
        tuning = Reference(made.tuning.x, made.tuning.labels, made.tuning.outputs)
        wide = np.zeros(len(made.tuning.x), dtype=np.int64)
        benign = Batch(
            tuning.inputs, tuning.labels, wide.astype(np.uint64), wide, wide, wide.astype(np.int32), tuning.outputs
        )
        intent = IntentTest.fit(reference, made.schema, self.frame, rng, benign)
        kinds = rehearse(tuning.inputs, tuning.labels, intent, made.schema, rng)
        kept = self.inquiries
        self.inquiries = {}
        found = [(self.scores(kind.inputs, kind.labels, None), kind.labels) for _, kind in kinds]
        self.inquiries = kept
        return found


def stack(scores: Scores, names: Sequence[str]) -> NDArray[np.float64]:
    """(n, D) scores of these detectors."""
    return np.ascontiguousarray(np.stack([scores[name] for name in names], axis=1))


@dataclass(frozen=True, slots=True)
class Case:
    """Scores of one attack's examples."""

    plan: Plan
    examples: Examples
    scores: Scores


@dataclass(frozen=True, slots=True)
class Scene:
    """All scores of one deal."""

    judge: Judge
    tuning: Scores
    benign: Scores
    tried: list[Case]
    cases: list[Case]


def fuse(
    scene: Scene, case: Case, names: Sequence[str], spread: Spread, fusion: Fusion, weighing: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(benign, crafted) fused scores for one attack; `weighing` is equal, rehearsed or crafted."""
    made = scene.judge.task
    tuning, labels = stack(scene.tuning, names), made.tuning.labels
    shape = np.arange(len(tuning)) % SHAPE_EVERY == 0
    calibration = ScoreCalibration.fit(
        tuning[shape],
        labels[shape],
        tuning[~shape],
        labels[~shape],
        len(made.schema.classes),
        spread,
        evalue if fusion == "mean" else surprise_of,
    )

    def addends(scores: Scores, answers: NDArray[np.int32]) -> NDArray[np.float64]:
        return np.asarray(calibration.surprise[calibration.ranks(stack(scores, names), answers)])

    usual = addends({name: column[~shape] for name, column in scene.tuning.items()}, labels[~shape])
    if weighing == "equal":
        weights = equal_weights(len(names))
    elif weighing == "rehearsed":
        weights = hedged(logistic_weights(usual, np.concatenate([addends(*kind) for kind in scene.judge.rehearsed])))
    else:
        others = [other for other in scene.tried if other.plan.family != case.plan.family]
        shown = [addends(other.scores, other.examples.labels) for other in others if len(other.examples.x)]
        weights = hedged(logistic_weights(usual, np.concatenate(shown))) if shown else equal_weights(len(names))
    return (
        addends(scene.benign, made.report.labels) @ weights,
        addends(case.scores, case.examples.labels) @ weights,
    )


def scene_of(made: Task, attacks: Sequence[Plan], starts: int, tuning_starts: int, inquiries: bool) -> Scene:
    """Craft, fit, score."""
    judge = Judge(made, inquiries)

    def cases(part: Part, count: int, seed: int) -> list[Case]:
        found = []
        for plan in attacks:
            examples = craft(made, plan, part, count, seed)
            found.append(Case(plan, examples, judge.scores(examples.x, examples.labels, examples.outputs)))
        return found

    return Scene(
        judge,
        judge.scores(made.tuning.x, made.tuning.labels, made.tuning.outputs),
        judge.scores(made.report.x, made.report.labels, made.report.outputs),
        cases(made.tuning, tuning_starts, 1),
        cases(made.report, starts, 0),
    )


#: Sets of detectors beside those of the registry.
SETS = {
    **registry.SETS,
    "without pattern": tuple(name for name in registry.DEFAULT if name != "pattern"),
    "lean": (*registry.DEFAULT, "margin"),
}
SCHEMES: dict[str, tuple[str, Spread, Fusion, str]] = {
    "default": ("default", "median", "product", "rehearsed"),
    "without pattern": ("without pattern", "median", "product", "rehearsed"),
    "without pattern, tail": ("without pattern", "tail", "product", "rehearsed"),
    "without pattern, crafted": ("without pattern", "median", "product", "crafted"),
    "lean": ("lean", "tail", "mean", "equal"),
    "extended": ("extended", "tail", "mean", "equal"),
    "extended, product": ("extended", "tail", "product", "equal"),
    "extended, median": ("extended", "median", "mean", "equal"),
    "extended, crafted": ("extended", "tail", "product", "crafted"),
    "escalation": ("escalation", "tail", "mean", "equal"),
    "trees": ("trees", "median", "product", "equal"),
}


def judged(scene: Scene, case: Case) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(benign, crafted) scores of one attack under every scheme and by every single detector."""
    found = {}
    sets = SETS | {"escalation": (*registry.SETS["extended"], *scene.judge.inquiries)}
    for name, (chosen, spread, fusion, weighing) in SCHEMES.items():
        if all(detector in scene.benign for detector in sets[chosen]):
            found[name] = fuse(scene, case, sets[chosen], spread, fusion, weighing)
    singles = dict(SINGLES) | ({"OC-score": "oc_score"} if "oc_score" in scene.benign else {})
    for name, detector in singles.items():
        found[name] = scene.benign[detector], case.scores[detector]
    return found


#: Trees of a supervised detector.
SUPERVISED_TREES = 300


def supervised(scene: Scene, case: Case) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(benign, crafted) scores of one attack by detectors that learned it from tuning rows; none where it made none.

    References
    ----------
    Braun et al. (2025) compare OC-score with detectors that are trained on adversarial examples of each attack.
    """
    made = scene.judge.task
    known = next(other for other in scene.tried if other.plan.name == case.plan.name)
    if not len(known.examples.x):
        return {}
    parts = (
        (scene.tuning, made.tuning.x, made.tuning.outputs),
        (known.scores, known.examples.x, known.examples.outputs),
        (scene.benign, made.report.x, made.report.outputs),
        (case.scores, case.examples.x, case.examples.outputs),
    )
    reached = trees.read(made.model.estimator)
    names = sorted(scene.benign)
    described = {
        "supervised, leaves": [reached.leaves(x) for _, x, _ in parts],
        "supervised, scores": [np.concatenate([x, outputs, stack(scores, names)], 1) for scores, x, outputs in parts],
    }
    found = {}
    for name, (usual, odd, benign, crafted) in described.items():
        taught = RandomForestClassifier(
            SUPERVISED_TREES, class_weight="balanced", min_samples_leaf=2, random_state=made.seed, n_jobs=1
        )
        taught.fit(np.concatenate([usual, odd]), np.repeat([0, 1], [len(usual), len(odd)]))
        found[name] = taught.predict_proba(benign)[:, 1], taught.predict_proba(crafted)[:, 1]
    return found


def auroc(benign: NDArray[np.float64], crafted: NDArray[np.float64]) -> float:
    """Area under the ROC curve."""
    truth = np.concatenate([np.zeros(len(benign)), np.ones(len(crafted))])
    return float(roc_auc_score(truth, np.concatenate([benign, crafted])))


def detected(benign: NDArray[np.float64], crafted: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """Which crafted rows lie above the threshold that lets at most this share of the benign rows through."""
    allowed = int(np.floor(rate * len(benign)))
    threshold = np.sort(benign)[::-1][min(allowed, len(benign) - 1)]
    return np.asarray(crafted > threshold, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Cell:
    """One attack on one kind of task under one scheme, over all seeds.

    Attributes
    ----------
    aurocs : tuple of float
        One a seed that had examples.
    hits, tiny : tuple of (int, int)
        Detected and all examples a seed, at 1 % and at .1 %.
    """

    aurocs: tuple[float, ...]
    hits: tuple[tuple[int, int], ...]
    tiny: tuple[tuple[int, int], ...]

    @property
    def examples(self) -> int:
        return sum(total for _, total in self.hits)

    @property
    def auroc(self) -> float:
        return float(np.mean(self.aurocs)) if self.aurocs else float("nan")

    @property
    def tpr(self) -> float:
        return sum(hit for hit, _ in self.hits) / max(1, self.examples)

    @property
    def tiny_tpr(self) -> float:
        return sum(hit for hit, _ in self.tiny) / max(1, self.examples)

    @property
    def least(self) -> float:
        """The least share over seeds with enough examples to tell a share."""
        shares = [hit / total for hit, total in self.hits if total >= LEAST_EXAMPLES]
        return min(shares) if shares else self.tpr


Table3 = dict[tuple[str, str, str], Cell]
"""By task ("mnist mlp"), scheme and attack."""


class Settings(msgspec.Struct, frozen=True):
    """Starts of each attack on report and on tuning rows, and whether supervised detectors stand in place of inquiries
    (trees)."""

    starts: int
    tuning_starts: int
    of_trees: bool


class Judged(msgspec.Struct, frozen=True):
    """One attack's examples under one scheme: how many, those detected at 1 % and at .1 % FPR, and the AUROC."""

    scheme: str
    attack: str
    examples: int
    hits: int
    tiny: int
    auroc: float


class Deal(kept.Kept, frozen=True, kw_only=True):
    """One data set, model and seed: the model's error on report rows, success of attacks by name, what was judged."""

    settings: Settings
    error: float
    success: dict[str, float]
    judged: list[Judged]


def deal(made: Task, attacks: Sequence[Plan], settings: Settings) -> Deal:
    """Craft, fit, score and judge one task."""
    scene = scene_of(made, attacks, settings.starts, settings.tuning_starts, not settings.of_trees)
    rows = []
    for case in scene.cases:
        if not len(case.examples.x):
            continue
        found = judged(scene, case) | (supervised(scene, case) if settings.of_trees else {})
        for scheme, (benign, crafted) in found.items():
            one, tiny = (int(detected(benign, crafted, rate).sum()) for rate in (0.01, 0.001))
            rows.append(Judged(scheme, case.plan.name, len(crafted), one, tiny, auroc(benign, crafted)))
    return Deal(
        settings=settings,
        error=float((made.report.labels != made.report.truth).mean()),
        success={case.plan.name: case.examples.success for case in scene.cases},
        judged=rows,
    )


def measure(
    chosen: Sequence[tuple[Data, Kind]],
    attacks_of: Callable[[Task], list[Plan]],
    seeds: Sequence[int],
    settings: Settings,
    keep: Path | None = None,
    accept_older: bool = False,
) -> tuple[Table3, dict[str, Any], list[str]]:
    """Everything, cell by cell; also what the models did, and the deals taken up that other code measured."""
    found: dict[tuple[str, str, str], list[Judged]] = {}
    told: dict[str, Any] = {}
    older = []
    for data, kind in chosen:
        where, deals = f"{data} {kind}", []
        for seed in seeds:
            began = time.monotonic()
            place = None if keep is None else keep / f"{data}-{kind}-{seed}"
            parts = kept.Parts(place, kept.deciding_sources(DECIDING), accept_older)

            def fresh(data: Data = data, kind: Kind = kind, seed: int = seed) -> Deal:
                made = task(data, kind, seed)
                return deal(made, attacks_of(made), settings)

            deals.append(parts.part("trees" if settings.of_trees else "single inputs", Deal, settings, fresh))
            older += [f"{where}, seed {seed}"] * len(parts.older)
            report.progress(f"{where}, seed {seed}: {time.monotonic() - began:.0f} s")
        for row in (row for one in deals for row in one.judged):
            found.setdefault((where, row.scheme, row.attack), []).append(row)
        success: dict[str, list[float]] = {}
        for name, share in (pair for one in deals for pair in one.success.items()):
            success.setdefault(name, []).append(share)
        told[where] = {
            "error": float(np.mean([one.error for one in deals])),
            "success": {name: float(np.mean(shares)) for name, shares in success.items()},
        }
    cells = {
        key: Cell(
            tuple(row.auroc for row in rows),
            tuple((row.hits, row.examples) for row in rows),
            tuple((row.tiny, row.examples) for row in rows),
        )
        for key, rows in found.items()
    }
    return cells, told, older


def worst(cells: Table3, where: str, scheme: str, of: Callable[[Cell], float]) -> tuple[float, str]:
    """The smallest value over attacks with enough examples, and whose it is."""
    found = [
        (of(cell), attack)
        for (task_, scheme_, attack), cell in cells.items()
        if (task_, scheme_) == (where, scheme) and cell.examples >= LEAST_EXAMPLES and KEPT not in attack
    ]
    return min(found) if found else (float("nan"), "none")


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.959963985, hits / total
    middle, half = share + z * z / (2 * total), z * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return float((middle - half) / (1 + z * z / total)), float((middle + half) / (1 + z * z / total))


def kept_figures(cells: Table3) -> list[Figure]:
    """What is seen of an attacker who leaves features that are zero as they are."""
    found = []
    for (where, scheme, attack), cell in cells.items():
        if KEPT in attack and scheme in ("default", "without pattern", "extended"):
            low, high = wilson(sum(hit for hit, _ in cell.hits), cell.examples)
            found.append(Figure(f"{where} / {scheme}: TPR at 1 %, {attack}", cell.tpr, low, high))
    return found


def figures_of(cells: Table3, rng: np.random.Generator) -> list[Figure]:
    """Worst cases and means of every task and scheme."""
    found = []
    for where, scheme in dict.fromkeys((where, scheme) for where, scheme, _ in cells):
        value, attack = worst(cells, where, scheme, lambda cell: cell.tpr)
        if attack == "none":
            continue
        cell = cells[where, scheme, attack]
        low, high = wilson(sum(hit for hit, _ in cell.hits), cell.examples)
        found.append(Figure(f"{where} / {scheme}: worst TPR at 1 %", value, low, high))
        value, attack = worst(cells, where, scheme, lambda cell: cell.least)
        found.append(Figure(f"{where} / {scheme}: worst TPR at 1 %, least over seeds", value))
        value, attack = worst(cells, where, scheme, lambda cell: cell.tiny_tpr)
        cell = cells[where, scheme, attack]
        low, high = wilson(sum(hit for hit, _ in cell.tiny), cell.examples)
        found.append(Figure(f"{where} / {scheme}: worst TPR at .1 %", value, low, high))
        value, attack = worst(cells, where, scheme, lambda cell: cell.auroc)
        aurocs = np.array(cells[where, scheme, attack].aurocs)
        means = rng.choice(aurocs, (report.BOOTSTRAP_RESAMPLES, len(aurocs))).mean(axis=1)
        low, high = (float(bound) for bound in np.percentile(means, [2.5, 97.5]))
        found.append(Figure(f"{where} / {scheme}: worst AUROC", value, low, high))
    return found


#: The lead over every single detector, whose worst attack must not be ahead of ours.
LEAD = "least lead of the worst attack over a single detector (TPR at 1 %)"


def lead_figures(cells: Table3, scheme: str = "default") -> list[Figure]:
    """Lead of a scheme over each single detector at the same share of false alarms: of each task, and the least.

    By attack (least and mean), and with the worst attack of each beside the other's.
    """
    found, leads = [], []
    for where in dict.fromkeys(where for where, _, _ in cells):
        for single in SINGLES:
            pairs = [
                (cell.tpr, cells[where, single, attack].tpr)
                for (task_, scheme_, attack), cell in cells.items()
                if (task_, scheme_) == (where, scheme) and cell.examples >= LEAST_EXAMPLES and KEPT not in attack
            ]
            if not pairs:
                continue
            ours, theirs = np.array(pairs).T
            name = f"{where} / {scheme}"
            found.append(Figure(f"{name}: least lead over {single} (TPR at 1 %)", float((ours - theirs).min())))
            found.append(Figure(f"{name}: mean lead over {single} (TPR at 1 %)", float((ours - theirs).mean())))
            leads.append(float(ours.min() - theirs.min()))
    return [*found, *([Figure(LEAD, min(leads))] if leads else [])]


def tree_figures(cells: Table3) -> list[Figure]:
    """Of each kind of tree ensemble: the least lead over OC-score over attacks, the mean of AUROCs, and the largest gap
    to the better of the supervised detectors."""
    found = []
    for where in dict.fromkeys(where for where, _, _ in cells):
        attacks = [attack for where_, scheme, attack in cells if (where_, scheme) == (where, "OC-score")]
        mine = [cells[where, "trees", attack] for attack in attacks]
        theirs = [cells[where, "OC-score", attack] for attack in attacks]
        leads = [a.auroc - b.auroc for a, b in zip(mine, theirs, strict=True)]
        found.append(Figure(f"{where} / trees: least lead over OC-score (AUROC)", min(leads)))
        found.append(Figure(f"{where} / trees: mean AUROC", float(np.mean([cell.auroc for cell in mine]))))
        found.append(Figure(f"{where} / OC-score: mean AUROC", float(np.mean([cell.auroc for cell in theirs]))))
        gaps = [_gap(cells, where, attack) for attack in attacks]
        if np.isfinite(gaps).any():
            largest = float(np.nanmax(gaps))
            found.append(Figure(f"{where} / trees: largest gap to the best supervised (AUROC)", largest))
    return found


def _gap(cells: Table3, where: str, attack: str) -> float:
    """By how much the better supervised detector is ahead of `trees`, AUROC; not a number where none could learn."""
    taught = [cells[where, scheme, attack].auroc for scheme in SUPERVISED if (where, scheme, attack) in cells]
    return max(taught) - cells[where, "trees", attack].auroc if taught else float("nan")


#: Columns of the tables in docs: what a site chooses between, and how the choices came about.
CHIEF = ("default", "without pattern", "lean", "extended", "escalation", *SINGLES)
CHOICES = (
    "without pattern, crafted",
    "without pattern, tail",
    "extended, product",
    "extended, median",
    "extended, crafted",
    "trees",
)


def tables(cells: Table3, ensembles: Table3, measured: str = "") -> str:
    """Markdown of the worst cases, and of OC-score's table, below a sentence of what was measured."""
    lines = [measured, ""] if measured else []
    lines += ["Worst over attacks: TPR at 1 % FPR (95 % Wilson interval) / at .1 % FPR; AUROC.", ""]
    for columns in (CHIEF, CHOICES):
        lines += ["| task | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for where in dict.fromkeys(where for where, _, _ in cells):
            lines.append("| " + " | ".join([where, *(_worst_cell(cells, where, scheme) for scheme in columns)]) + " |")
        lines.append("")
    kept = {attack for _, _, attack in cells if KEPT in attack}
    for attack in sorted(kept):
        columns = tuple(scheme for scheme in CHIEF if any((s, a) == (scheme, attack) for _, s, a in cells))
        lines += [f"TPR at 1 % FPR of {attack}:", ""]
        lines += ["| task | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for where in dict.fromkeys(where for where, _, a in cells if a == attack):
            shares = [_dotted(f"{cells[where, scheme, attack].tpr:.2f}") for scheme in columns]
            lines.append("| " + " | ".join([where, *shares]) + " |")
        lines.append("")
    lines += ["ROC-AUC on tree ensembles by attack, mean over seeds (least to largest):", ""]
    for where in dict.fromkeys(where for where, _, _ in ensembles):
        attacks = list(dict.fromkeys(attack for where_, _, attack in ensembles if where_ == where))
        lines += [f"| {where} | " + " | ".join(attacks) + " |", "|---" * (len(attacks) + 1) + "|"]
        for scheme in ("trees", "OC-score", "default", "extended", *SINGLES, *SUPERVISED):
            row = []
            for attack in attacks:
                cell = ensembles.get((where, scheme, attack))
                if cell is None:
                    row.append("")
                    continue
                row.append(_dotted(f"{cell.auroc:.3f} ({min(cell.aurocs):.3f}-{max(cell.aurocs):.3f})"))
            lines.append(f"| {scheme} | " + " | ".join(row) + " |")
        gaps = (_gap(ensembles, where, attack) for attack in attacks)
        shown = (_dotted(f"{gap:+.3f}") if np.isfinite(gap) else "none" for gap in gaps)
        lines.append("| best supervised less trees | " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines)


def measured(seeds: range, starts: int, older: Sequence[str]) -> str:
    """What stands above the tables."""
    which = f"Seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"Seed {seeds[0]}"
    text = (
        f"{which}, {starts} starts a seed and attack. Cells of fewer than {LEAST_EXAMPLES} examples are left out of "
        "the worst case."
    )
    return text + (f" Measured by earlier code: {'; '.join(older)}." if older else "")


def _worst_cell(cells: Table3, where: str, scheme: str) -> str:
    value, attack = worst(cells, where, scheme, lambda cell: cell.tpr)
    if attack == "none":
        return ""
    cell = cells[where, scheme, attack]
    low, high = wilson(sum(hit for hit, _ in cell.hits), cell.examples)
    tiny = worst(cells, where, scheme, lambda cell: cell.tiny_tpr)[0]
    area = worst(cells, where, scheme, lambda cell: cell.auroc)[0]
    return _dotted(f"{value:.2f} ({low:.2f}-{high:.2f}) / {tiny:.2f}; {area:.3f}")


def _dotted(text: str) -> str:
    """Shares without their leading zero."""
    return text.replace("0.", ".")


def plot(cells: Table3, path: Path) -> None:
    """TPR at 1 % FPR of every attack, a panel a task of an MLP, a mark a scheme."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    places = [where for where in dict.fromkeys(where for where, _, _ in cells) if where.endswith(" mlp")]
    shown = {"default": "o", "without pattern": "s", "ECOD": "^", "KNN": "v", "IForest": "x", "max-softmax": "+"}
    figure, axes = plt.subplots(1, len(places), figsize=(3.6 * len(places), 4.8), sharey=True, squeeze=False)
    attacks = sorted({attack for where, _, attack in cells if where in places})  # panels share their rows
    for axis, where in zip(axes[0], places, strict=True):
        for number, (scheme, mark) in enumerate(shown.items()):
            found = [cells.get((where, scheme, attack)) for attack in attacks]
            values = [np.nan if cell is None else cell.tpr for cell in found]
            own = number < 2
            size, filled = (9, "full") if own else (6, "none")
            axis.plot(
                values, range(len(attacks)), mark, label=scheme, color=f"C{number}", markersize=size, fillstyle=filled
            )
        axis.set_yticks(range(len(attacks)), attacks)
        axis.set_title(where)
        axis.set_xlabel("TPR at 1 % FPR")
        axis.set_xlim(-0.05, 1.05)
        axis.grid(alpha=0.3)
    axes[0][0].invert_yaxis()
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(shown), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def write(text: str, cells: Table3) -> None:
    """Put the tables into docs/detection.md and the plot beside it."""
    report.write_between(DOCS / "detection.md", "single inputs", text)
    plot(cells, DOCS / "images" / "detection-single.svg")


def main() -> int:
    """Entry point."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--tasks", help="such as 'mnist mlp,phishing forest', instead of the usual ones")
    parser.add_argument("--seeds", type=int)
    kept.arguments(parser)
    parser.add_argument("--write", action="store_true", help="write tables and plot into docs/")
    options = kept.parsed(parser)
    limit_blas_threads()
    seeds = range(options.seed, options.seed + (options.seeds or (QUICK_SEEDS if options.quick else SEEDS)))
    starts, tuning_starts = (QUICK_STARTS, QUICK_TUNING_STARTS) if options.quick else (STARTS, TUNING_STARTS)
    usual = named(options.tasks) if options.tasks else QUICK_TASKS if options.quick else TASKS
    kinds = QUICK_TREES if options.quick else TREES
    whole = options.check and not (options.tasks or options.quick)
    chosen, left_out = split_installed(usual, whole)
    trees_chosen, trees_left_out = split_installed([("cancer", kind) for kind in kinds], whole)
    stored = options.keep, options.accept_older
    cells, told, older = measure(chosen, plans, seeds, Settings(starts, tuning_starts, of_trees=False), *stored)
    of_trees = Settings(starts, tuning_starts if options.quick else TREE_TUNING_STARTS, of_trees=True)
    ensembles, tree_told, older_trees = measure(
        trees_chosen, lambda made: tree_plans(made)[:: QUICK_EVERY if options.quick else 1], seeds, of_trees, *stored
    )
    rng = np.random.default_rng(options.seed)
    figures = [*figures_of(cells, rng), *kept_figures(cells), *lead_figures(cells), *tree_figures(ensembles)]
    names = {figure.name for figure in figures}
    targets = [
        Target("mnist mlp / default: worst TPR at 1 %, least over seeds", ">=", TARGET_MNIST),
        Target("spambase mlp / default: worst TPR at 1 %, least over seeds", ">=", TARGET_SPAMBASE),
        Target(LEAD, ">=", 0.0),
        *(Target(f"cancer {kind} / trees: least lead over OC-score (AUROC)", ">=", 0.0) for kind in kinds),
        *(Target(f"cancer {kind} / trees: mean AUROC", ">=", TARGET_TREES) for kind in kinds),
    ]
    if options.write:
        write(tables(cells, ensembles, measured(seeds, starts, [*older, *older_trees])), cells)

    def shown(console: Console) -> None:
        table = Table(box=None, pad_edge=False)
        for name in ("task", "attack", "scheme", "AUROC", "TPR at 1 %", "at .1 %", "examples"):
            table.add_column(name, no_wrap=True)
        for (where, scheme, attack), cell in {**cells, **ensembles}.items():
            if scheme in ("default", "without pattern", "extended", "trees", "OC-score", *SUPERVISED):
                numbers = f"{cell.auroc:.3f}", f"{cell.tpr:.2f}", f"{cell.tiny_tpr:.2f}", str(cell.examples)
                table.add_row(where, attack, scheme, *numbers)
        console.print(table)

    context = {"seeds": list(seeds), "starts": starts, "models": told, "trees": tree_told}
    context["measured_by_earlier_code"] = [*older, *older_trees]
    context["left_out"] = list(dict.fromkeys([*left_out, *trees_left_out]))
    code = report.finish(options, figures, [target for target in targets if target.figure in names], context, shown)
    return code if not whole or report.all_measured(figures, targets) else 1


if __name__ == "__main__":
    sys.exit(main())
