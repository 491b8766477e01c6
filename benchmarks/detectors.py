"""Compiled detectors of PyOD against PyOD: the same scores, and what a row costs.

    python -m benchmarks.detectors --json --check [--quick] [--write]

64 features in pictures' manner (`benchmarks.scoring.rows`), 5,000 reference rows, standardised, one core. Times are
processor time a row at batches of 1, 100 and 1,000; the speed-up of a seed is PyOD's median over ours at a batch. Rows
and forests are drawn anew for each seed: figures are medians over seeds, with intervals over them, and the difference
of scores is the largest. Scores are compared on 300 fresh rows; those of ECOD with PyOD's for one row at a time, since
PyOD's own depend on the batch.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.report import Figure, Target
from benchmarks.scoring import CLASSES, WIDTH, rows
from detectors import registry
from detectors.contract import Batch, Detector, Reference
from detectors.inputs.isolation_forest import IsolationForest
from detectors.inputs.outliers.ecod import Ecod
from detectors.inputs.outliers.gmm import Gmm
from detectors.inputs.outliers.hbos import Hbos
from detectors.inputs.outliers.knn import Knn
from detectors.inputs.outliers.loda import Loda
from detectors.inputs.outliers.lof import Lof
from detectors.inputs.outliers.mcd import Mcd
from detectors.inputs.outliers.pca import Pca
from detectors.kernels import exact, limit_blas_threads
from detectors.schema import Feature, FeatureSchema
from detectors.view import BatchView, ReferenceFrame, feature_scales

REFERENCE_ROWS, FRESH_ROWS, ALONE_ROWS = 5_000, 300, 40
BATCHES = (1, 100, 1_000)
#: Where the table goes.
PAGE = Path(__file__).resolve().parents[1] / "docs" / "detection.md"
#: Seeds, and processor seconds that each measurement may take on all of them together.
SEEDS, QUICK_SEEDS = 5, 2
SECONDS, QUICK_SECONDS = 4.0, 0.8
#: Largest difference of scores, relative to their size where that is above 1.
TOLERANCE = 1e-9
#: Speed-up at a batch of 100.
TARGETS = {"IForest": 10.0, "ECOD": 50.0, "KNN": 5.0}


class Forest:
    """The isolation forest in the manner of the other compiled detectors."""

    def __init__(self, theirs: Any) -> None:
        self._mine = IsolationForest().compile(theirs)

    def decision_function(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) scores."""
        return self._mine.decision_function(inputs)


def pairs(reference: NDArray[np.float64], seed: int) -> dict[str, tuple[Any, Any]]:
    """(ours, PyOD's) of every compiled detector, fitted on the same rows."""
    from pyod.models.ecod import ECOD
    from pyod.models.gmm import GMM
    from pyod.models.hbos import HBOS
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN
    from pyod.models.loda import LODA
    from pyod.models.lof import LOF
    from pyod.models.mcd import MCD
    from pyod.models.pca import PCA

    theirs = {
        "IForest": IForest(random_state=seed),
        "HBOS": HBOS(),
        "ECOD": ECOD(),
        "PCA": PCA(random_state=seed),
        "KNN": KNN(),
        "LOF": LOF(novelty=True),
        "MCD": MCD(random_state=seed),
        "GMM": GMM(random_state=seed),
        "LODA": LODA(random_state=seed),
    }
    makers: dict[str, Callable[[Any], Any]] = {
        "IForest": Forest,
        "HBOS": lambda fitted: Hbos().compile(fitted),
        "ECOD": lambda fitted: Ecod().compile(fitted),
        "PCA": lambda fitted: Pca().compile(fitted),
        "KNN": lambda fitted: Knn().compile(fitted),
        "LOF": lambda fitted: Lof().compile(fitted),
        "MCD": lambda fitted: Mcd().compile(fitted),
        "GMM": lambda fitted: Gmm().compile(fitted),
        "LODA": lambda fitted: Loda().compile(fitted),
    }
    found = {}
    for name, detector in theirs.items():
        report.progress(f"fitting {name}")
        detector.fit(reference)
        found[name] = makers[name](detector), detector
    return found


def microseconds(
    score: Callable[[NDArray[np.float64]], Any], batch: NDArray[np.float64], seconds: float
) -> list[float]:
    """Processor microseconds a row, call by call."""
    score(batch)
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) * len(batch) / 1e6 < seconds and len(taken) < 300):
        began = time.process_time()
        score(batch)
        taken.append((time.process_time() - began) / len(batch) * 1e6)
    return taken


def difference(name: str, ours: Any, theirs: Any, fresh: NDArray[np.float64]) -> float:
    """Largest difference of scores, relative where they are large."""
    if name == "ECOD":
        fresh = fresh[:ALONE_ROWS]
        wanted = np.array([theirs.decision_function(row[None])[0] for row in fresh])
    else:
        wanted = theirs.decision_function(fresh)
    return float(np.max(np.abs(ours.decision_function(fresh) - wanted) / np.maximum(1.0, np.abs(wanted))))


def _scored(detector: Detector, view: BatchView, _rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return detector.score(view)


def costs(inputs: NDArray[np.float64], labels: NDArray[np.int32], seed: int, seconds: float) -> dict[str, list[float]]:
    """What a row costs in every registered detector at a batch of 1,000; the shared view is computed before.

    Embeddings are the inputs once more.
    """
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(seed)
    n, fresh = REFERENCE_ROWS, len(inputs) - REFERENCE_ROWS
    forest = RandomForestClassifier(100, random_state=0).fit(inputs[:n], labels[:n])
    classes = tuple(str(label) for label in range(CLASSES))
    schema = FeatureSchema(tuple(Feature(f"x{f}") for f in range(WIDTH)), classes, embedding_width=WIDTH)
    known = Reference(inputs[:n], labels[:n], embeddings=inputs[:n])
    wide = np.zeros(fresh, dtype=np.int64)
    outputs = rng.dirichlet(np.ones(CLASSES), fresh)
    places = wide.astype(np.uint64), wide, wide, wide.astype(np.int32)
    batch = Batch(inputs[n:], labels[n:], *places, outputs, embeddings=inputs[n:])
    view = BatchView(ReferenceFrame.fit(known, CLASSES, rng), batch)
    found = {}
    for name in registry.names():
        if registry.remembers(name):  # benchmarks.extraction
            continue
        report.progress(f"measuring {name}")
        made: Any = registry.made(name, forest)
        detector: Detector = made.fit(known, schema, rng)
        found[f"cost of {name}"] = microseconds(partial(_scored, detector, view), batch.inputs, seconds)
    return found


@dataclass(frozen=True, slots=True)
class Seed:
    """Everything of one seed: microseconds a row call by call, speed-ups, and differences of scores, by figure."""

    taken: dict[str, list[float]]
    faster: dict[str, float]
    gaps: dict[str, float]

    @classmethod
    def measured(cls, seed: int, seconds: float) -> Seed:
        """Draw rows, fit, measure."""
        rng = np.random.default_rng(seed)
        centres = rng.uniform(0.2, 0.8, (CLASSES, WIDTH))
        inputs, labels = rows(REFERENCE_ROWS + max(FRESH_ROWS, *BATCHES), rng, centres)
        mean, scale = feature_scales(inputs[:REFERENCE_ROWS])
        standard = exact.standardise(inputs, mean, scale, exact.grid_for(WIDTH))
        reference = np.ascontiguousarray(standard[:REFERENCE_ROWS])
        fresh = np.ascontiguousarray(standard[REFERENCE_ROWS:])
        found = cls({}, {}, {})
        for name, (ours, theirs) in pairs(reference, seed).items():
            report.progress(f"measuring {name}")
            found.gaps[f"{name}: difference of scores"] = difference(name, ours, theirs, fresh[:FRESH_ROWS])
            for size in BATCHES:
                batch = np.ascontiguousarray(fresh[:size])
                mine = microseconds(ours.decision_function, batch, seconds)
                their = microseconds(theirs.decision_function, batch, seconds)
                found.taken[f"{name}, compiled: batch {size}"] = mine
                found.taken[f"{name}, PyOD: batch {size}"] = their
                found.faster[f"{name}: speed-up at batch {size}"] = float(np.median(their) / np.median(mine))
        found.taken.update(costs(inputs, labels, seed, seconds))
        return found


def figures_of(seeds: list[Seed], rng: np.random.Generator) -> list[Figure]:
    """Over seeds."""
    figures = [Figure(name, max(seed.gaps[name] for seed in seeds)) for name in seeds[0].gaps]
    figures += [
        report.median_over_seeds(name, [seed.taken[name] for seed in seeds], rng, "us/row") for name in seeds[0].taken
    ]
    figures += [report.median_figure(name, [seed.faster[name] for seed in seeds], rng, "x") for name in seeds[0].faster]
    return figures


def table(figures: list[Figure]) -> str:
    """Markdown of what a row costs, compiled and in PyOD."""
    by_name = {figure.name: figure.value for figure in figures}
    heads = [f"{who}, batch {size}" for size in BATCHES for who in ("compiled", "PyOD")]
    lines = ["| us a row | " + " | ".join(heads) + " | faster at 100 |", "|---" * (len(heads) + 2) + "|"]
    for name in dict.fromkeys(name.partition(":")[0] for name in by_name if name.endswith("difference of scores")):
        costs_ = [by_name[f"{name}, {who}: batch {size}"] for size in BATCHES for who in ("compiled", "PyOD")]
        cells = [f"{cost:,.0f}" if cost >= 100 else f"{cost:.2g}" for cost in costs_]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {by_name[f'{name}: speed-up at batch 100']:.3g} x |")
    return "\n".join(lines)


def main() -> int:
    """Entry point."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--write", action="store_true", help="write the table into docs/")
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    limit_blas_threads()
    warnings.simplefilter("ignore")
    count = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    seconds = (QUICK_SECONDS if options.quick else SECONDS) / count
    seeds = []
    for seed in range(options.seed, options.seed + count):
        report.progress(f"seed {seed}")
        seeds.append(Seed.measured(seed, seconds))
    figures = figures_of(seeds, np.random.default_rng(options.seed))
    targets = [Target(name, "<=", TOLERANCE) for name in seeds[0].gaps]
    targets += [Target(f"{name}: speed-up at batch 100", ">=", bound) for name, bound in TARGETS.items()]
    if options.write:
        report.write_between(PAGE, "compiled", table(figures))
    context = {"seeds": count, "features": WIDTH, "reference_rows": REFERENCE_ROWS, "compared_rows": FRESH_ROWS}
    return report.finish(options, figures, targets, context)


if __name__ == "__main__":
    sys.exit(main())
