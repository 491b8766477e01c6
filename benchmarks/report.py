"""How benchmarks report: figures as JSON, targets beside them, exit code 1 when one is missed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from streams.probes.outcome import wilson

#: Resamples of a bootstrap interval.
BOOTSTRAP_RESAMPLES = 4000
#: Width of the table where it goes into a file.
LOG_COLUMNS = 130


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure with its 95 % interval; a single run has no interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must hold."""

    figure: str
    relation: Literal[">=", "<="]
    bound: float

    def met(self, value: float) -> bool:
        """Whether the figure holds; a figure that is not a number never does."""
        return value >= self.bound if self.relation == ">=" else value <= self.bound


def median_figure(name: str, values: Sequence[float], rng: np.random.Generator, unit: str = "") -> Figure:
    """The median of repeated measurements with a bootstrap interval (percentiles 2.5 and 97.5)."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 1:
        return Figure(name, float(sample[0]), unit=unit)
    medians = np.median(rng.choice(sample, (BOOTSTRAP_RESAMPLES, len(sample))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Figure(name, float(np.median(sample)), float(low), float(high), unit)


def median_over_seeds(name: str, values: Sequence[Sequence[float]], rng: np.random.Generator, unit: str = "") -> Figure:
    """The median over seeds of each seed's median; its interval draws seeds anew, then measurements of each."""
    if len(values) == 1:
        return median_figure(name, values[0], rng, unit)
    seeds = rng.integers(len(values), size=(BOOTSTRAP_RESAMPLES, len(values)))
    drawn = np.array([np.median(rng.choice(seed, (BOOTSTRAP_RESAMPLES, len(seed))), axis=1) for seed in values])
    low, high = np.percentile(np.median(drawn[seeds, np.arange(BOOTSTRAP_RESAMPLES)[:, None]], axis=1), [2.5, 97.5])
    return Figure(name, float(np.median([np.median(seed) for seed in values])), float(low), float(high), unit)


def share_over_seeds(name: str, hits: Sequence[int], totals: Sequence[int], rng: np.random.Generator) -> Figure:
    """A share with an interval over seeds: seeds are drawn anew, then trials of each; never narrower than Wilson's."""
    seeds = rng.integers(len(hits), size=(BOOTSTRAP_RESAMPLES, len(hits)))
    trials = np.asarray(totals)[seeds]
    drawn = rng.binomial(trials, np.asarray(hits)[seeds] / trials)
    low, high = np.percentile(drawn.sum(axis=1) / trials.sum(axis=1), [2.5, 97.5])
    least, most = wilson(sum(hits), sum(totals))
    return Figure(name, sum(hits) / sum(totals), min(float(low), least), max(float(high), most))


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print figures as JSON on standard output")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--quick", action="store_true", help="a sample in minutes")
    parser.add_argument("--seed", type=int, default=7)
    return parser


def progress(text: str) -> None:
    """Tell a person what is being done; standard output stays clean for programs."""
    print(text, file=sys.stderr, flush=True)


class Told:
    """A progress callback of the form (what, share) that tells each stage once; stages differ in their first words."""

    def __init__(self, words: int = 2) -> None:
        self._words = words
        self._last: list[str] = []

    def __call__(self, what: str, _share: float) -> None:
        stage = what.split()[: self._words]
        if stage != self._last:
            self._last = stage
            progress(f"  {what}")


def write_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between the lines ``<!-- mark: begin -->`` and ``<!-- mark: end -->`` of a page."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def all_measured(figures: Sequence[Figure], targets: Sequence[Target]) -> bool:
    """Whether every target has a figure; tells which have none."""
    names = {figure.name for figure in figures}
    missing = [target.figure for target in targets if target.figure not in names]
    if missing:
        progress(f"--check judges every target, and there is no figure for: {'; '.join(missing)}")
    return not missing


def finish(
    options: argparse.Namespace,
    figures: Sequence[Figure],
    targets: Sequence[Target],
    context: dict[str, Any],
    extra: Callable[[Console], None] | None = None,
) -> int:
    """Print everything and return the exit code."""
    by_name = {figure.name: figure for figure in figures}
    verdicts = [
        {
            "figure": target.figure,
            "target": f"{target.relation} {target.bound:g}",
            "value": by_name[target.figure].value,
            "met": target.met(by_name[target.figure].value),
        }
        for target in targets
    ]
    if options.json:
        values = {figure.name: figure.value for figure in figures}
        document = {**values, "figures": [asdict(f) for f in figures], "targets": verdicts, "context": context}
        print(json.dumps(document, indent=2))
    console = Console(stderr=options.json)
    if not console.is_terminal:
        console = Console(stderr=options.json, width=LOG_COLUMNS)
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "value", "95 % interval", "target", ""):
        table.add_column(name, no_wrap=True)
    bounds = {target.figure: target for target in targets}
    for figure in figures:
        interval = "" if figure.low is None else f"{figure.low:,.4g} - {figure.high:,.4g}"
        target = bounds.get(figure.name)
        wanted = "" if target is None else f"{target.relation} {target.bound:g}"
        mark = "" if target is None else ("[green]met" if target.met(figure.value) else "[red]missed")
        table.add_row(figure.name, f"{figure.value:,.4g} {figure.unit}", interval, wanted, mark)
    console.print(table)
    if extra is not None:
        extra(console)
    missed = [verdict for verdict in verdicts if not verdict["met"]]
    return 1 if options.check and missed else 0
