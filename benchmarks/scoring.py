"""What scoring costs: microseconds a row of the full default ensemble on one core, in all and by stage.

64 features, 10 classes, a reference condensed to about 1,000 rows, 20,000 clients with histories, a full index of
10,000 rows; every row is new. Site, ensemble and traffic are drawn anew for each seed; figures are medians over seeds
with intervals over them. ``python -m benchmarks.scoring --check`` compares with the target; ``--write`` puts the table
into docs/detection.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from detectors import kernels
from detectors.contract import Batch, Detector, Reference
from detectors.ensemble import fit
from detectors.queries import walk as walking
from detectors.schema import FeatureSchema
from detectors.scorer import Ensemble
from detectors.single import columns_of, raw_scores
from detectors.view import BatchView

WIDTH, CLASSES = 64, 10
REFERENCE_ROWS, CLIENTS, INDEX_ROWS, BATCH_ROWS = 5000, 20_000, 10_000, 1000
WEEK_US = 600_000_000
#: What issue and design ask for, in microseconds a row.
TARGET_US = 12.0
#: Seeds, and measurements on each.
SEEDS, QUICK_SEEDS = 5, 1
REPEATS, QUICK_REPEATS = 7, 5
PAGE = Path(__file__).parent.parent / "docs" / "detection.md"


def rows(n: int, rng: np.random.Generator, centres: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pictures of ten kinds, n of them, and their classes."""
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    inputs = centres[labels] + rng.normal(0, 0.12, (n, 8)) @ rng.normal(size=(8, WIDTH)) * 0.3
    return np.clip(inputs + rng.normal(0, 0.08, (n, WIDTH)), 0, 1), labels


def traffic(n: int, clients: int, rng: np.random.Generator, centres: NDArray[Any], first: int = 0) -> Batch:
    """n events of so many clients."""
    inputs, labels = rows(n, rng, centres)
    place = np.arange(first, first + n, dtype=np.int64)
    return Batch(
        inputs=inputs,
        labels=labels,
        clients=rng.integers(1, clients + 1, n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        times=place * 1000,
        offsets=place,
        rows=np.zeros(n, dtype=np.int32),
    )


def fitted(rng: np.random.Generator, centres: NDArray[Any], quick: bool) -> Ensemble:
    """The default ensemble of such a site."""
    inputs, labels = rows(REFERENCE_ROWS, rng, centres)
    schema = FeatureSchema.image((8, 8), [str(label) for label in range(CLASSES)])
    benign = traffic(80_000 if quick else 160_000, 400, rng, centres)
    ensemble, _ = fit(
        Reference(inputs, labels),
        schema,
        benign,
        budget=1,
        clients_per_week=400,
        week_us=WEEK_US,
        partitions=1,
        rng=rng,
    )
    return ensemble


def seconds(action: Callable[[], Any]) -> float:
    """CPU seconds of one run."""
    start = time.process_time()
    action()
    return time.process_time() - start


def stages(ensemble: Ensemble, batch: Batch) -> list[tuple[str, Callable[[], Any]]]:
    """Parts of scoring a batch, each on its own; the walk stands apart, as it changes the state."""
    single = ensemble.single

    def view() -> BatchView:
        return BatchView(single.frame, batch)

    known = view()
    _ = known.own_squared, known.single  # computed on first use
    scores = raw_scores(single.detectors, known)
    ranks = single.scores.ranks(scores, batch.labels)
    sums, rank = single.fusion.fuse(ranks, single.scores.surprise)
    found: list[tuple[str, Callable[[], Any]]] = [
        ("standard form", view),
        ("neighbours", lambda: view().own_squared),
    ]
    found += [
        (detector.name, partial(detector.score, known))
        for detector in single.detectors
        if isinstance(detector, Detector)
    ]
    return [
        *found,
        (
            "p-values and fusion",
            lambda: single.fusion.fuse(single.scores.ranks(scores, batch.labels), single.scores.surprise),
        ),
        ("codes, sketches, hashes", lambda: columns_of(known, single.coder, single.edges, rank, sums)),
    ]


Times = dict[str, list[float]]
"""Processor microseconds a row by figure, measurement by measurement."""


def measured(seed: int, quick: bool) -> tuple[Times, dict[str, Any]]:
    """Everything of one seed, and what was measured."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.2, 0.8, (CLASSES, WIDTH))
    repeats = QUICK_REPEATS if quick else REPEATS
    report.progress(f"seed {seed}: fitting")
    start = time.process_time()
    ensemble = fitted(rng, centres, quick)
    fit_seconds = time.process_time() - start
    start = time.process_time()
    ensemble.warm_up()
    warm_seconds = time.process_time() - start
    report.progress("warming the state")
    state = ensemble.new_state(CLIENTS, INDEX_ROWS)
    warm = traffic(40 * CLIENTS if not quick else 4 * CLIENTS, CLIENTS, rng, centres)
    for at in range(0, len(warm), 4000):
        ensemble.score(warm.take(slice(at, at + 4000)), state)

    report.progress("measuring")
    found: Times = {}
    seen = len(warm)

    def fresh(n: int) -> Batch:
        """Rows that nothing has seen: a row met again is an exact duplicate, and takes a shorter way."""
        nonlocal seen
        seen += n
        return traffic(n, CLIENTS, rng, centres, seen - n)

    for size in (1, 10, 100, BATCH_ROWS):
        pieces = [fresh(size) for _ in range(repeats * min(BATCH_ROWS // size, 40))]
        taken = [seconds(partial(ensemble.score, piece, state)) / size * 1e6 for piece in pieces]
        if size < BATCH_ROWS:
            taken = [float(np.mean(group)) for group in np.array_split(taken, repeats)]
        found[f"score_{size}_us"] = taken
    for name, action in stages(ensemble, fresh(BATCH_ROWS)):
        found[f"stage {name}"] = [seconds(action) / BATCH_ROWS * 1e6 for _ in range(repeats)]
    found |= walk_times(ensemble, [fresh(BATCH_ROWS) for _ in range(2 * repeats)], state)
    context = {
        "features": WIDTH,
        "condensed_rows": len(ensemble.single.frame.labels),
        "clients": CLIENTS,
        "index_rows": state.index.simhash.shape[1],
        "batch_rows": BATCH_ROWS,
        "bytes_a_client": state.bytes_a_client(),
        "fit_cpu_seconds": fit_seconds,
        "warm_up_cpu_seconds": warm_seconds,
    }
    return found, context


def main() -> int:
    """Entry point."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--write", action="store_true", help="put the table into docs/detection.md")
    options = parser.parse_args()
    kernels.limit_blas_threads()
    count = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    seeds = [measured(seed, options.quick) for seed in range(options.seed, options.seed + count)]
    rng = np.random.default_rng(options.seed)
    figures = [
        report.median_over_seeds(name, [times[name] for times, _ in seeds], rng, "us/row") for name in seeds[0][0]
    ]
    by_name = {figure.name: figure.value for figure in figures}
    context: dict[str, Any] = {"seeds": count, "rows_a_second": 1e6 / by_name[f"score_{BATCH_ROWS}_us"]}
    context |= {name: value if count == 1 else [told[name] for _, told in seeds] for name, value in seeds[0][1].items()}
    if options.write:
        report.write_between(PAGE, "scoring", table(figures))
    return report.finish(options, figures, [report.Target(f"score_{BATCH_ROWS}_us", "<=", TARGET_US)], context)


def table(figures: list[report.Figure]) -> str:
    """What stands in the documentation."""
    lines = ["| what | us a row | 95 % interval |", "|---|---|---|"]
    for figure in figures:
        name = figure.name.removeprefix("stage ")
        if name.startswith("score_"):
            name = f"**all, in batches of {name.split('_')[1]}**"
        lines.append(f"| {name} | {figure.value:.3g} | {figure.low:.3g} to {figure.high:.3g} |")
    return "\n".join(lines)


def walk_times(ensemble: Ensemble, fresh: list[Batch], state: Any) -> Times:
    """The walk with and without clients, in turns: anonymous rows only meet the index."""
    tables = ensemble.tables.packed()
    names = ("walk", "walk of anonymous rows (index)")
    found: Times = {f"stage {name}": [] for name in names}
    for turn, batch in enumerate(fresh):
        columns = ensemble.single.score(batch).columns
        if turn % 2:
            columns.rows["client"] = 0
        trace = walking.empty_trace(len(batch))
        start = time.process_time()
        for _ in walking.stops(columns, tables, state, trace):
            pass
        found[f"stage {names[turn % 2]}"].append((time.process_time() - start) / len(batch) * 1e6)
    return found


if __name__ == "__main__":
    sys.exit(main())
