"""Weeks of benign traffic: does the budget of false pages hold, and does the stale mark come before drift breaks it?

    python -m benchmarks.budget --json --check [--quick | --tenth] [--write]

The world is scikit-learn's digits behind an MLP that makes errors; every row is a fresh picture (turned, shifted,
noisy). Clients differ in what they send and how (the share of the scores' variance that lies between them is measured),
and depend on themselves: a client's tilt wanders (AR(1), .9), and half of its pictures repeat the class before. A
client-week has a log-normal number of events of median 100 and spread 1; 1 % are exact duplicates, 1 % are sent again.
Repeaters are the kinds of `benchmarks.repeaters`, 150 rows each.

Camera, clients and ensemble are drawn anew for each seed; weeks and runs are divided among seeds, and intervals draw
seeds anew, then weeks of each (and are never narrower than Wilson's over all weeks).

The ensemble is the default one, fitted on tuning clients. Every client-week of a large pool is scored with it once, and
its maxima are kept. A simulated week deals the pool's clients out anew: m = 2 C of them calibrate, as `vedette
calibrate` does, C others are the week to come. No client stands on both sides. Clients are drawn without replacement
where the pool suffices; where it does not, the two sides are split first, then bootstrapped, and the table says so:
copies of one client are not independent, so a bootstrapped week breaks the budget more often than one of real clients.
Such a row shows how much. The target stands beside every row.

Drift: streams of three weeks, the last of which changes for every client at one hour (`sudden`, and less: `slight`),
from its beginning on more and more (`gradual`), or not at all (`none`: false alarms of the mark). A run draws its
clients from the pool of streams without replacement and deals them out to blocks anew; runs share clients, so their
intervals are too narrow. 2 C others of the pool calibrate, by their third weeks without a change. Evidence of a client
grows with its age; what first weeks would have made of the same third weeks stands beside. The mark counts as raised at
the end of the hour that raised it; the budget is broken in the hour in which client N + 1 pages. A run in which it is
never broken counts as held.

``--write`` puts the tables between the marks in docs/detection.md.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.signal import lfilter
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from benchmarks import report
from benchmarks.repeaters import KINDS, Site
from benchmarks.report import Figure, Target
from detectors.calibration import repeaters as repeating_clients
from detectors.calibration.decision import SHARED_LEAST, by_intent, odd_row
from detectors.calibration.drift import BLOCKS, RISK, TICKET_RISK, DriftWatch, crossing_limit
from detectors.calibration.history import History, measure
from detectors.calibration.order_statistics import best_rank
from detectors.calibration.thresholds import combine
from detectors.contract import Batch, Reference
from detectors.ensemble import fit
from detectors.kernels import limit_blas_threads
from detectors.queries import walk as walking
from detectors.queries.walk import Columns
from detectors.schema import FeatureSchema
from detectors.scorer import Ensemble
from streams.worker.tally import buckets

Rows = NDArray[np.float64]
Change = Literal["none", "sudden", "slight", "gradual"]
#: The first one is what the others are calibrated on.
CHANGES: tuple[Change, ...] = ("none", "sudden", "slight", "gradual")
#: Size of the slight change.
SLIGHT = 0.4

HOUR_US, HOURS = 3_600_000_000, 168
WEEK_US = HOURS * HOUR_US
#: False pages a week, and calibration client-weeks for each client of a week.
BUDGET, UNITS_A_CLIENT = 5, 2
#: Events of a client-week: median, spread of the logarithm, and the most.
MEDIAN_EVENTS, EVENTS_SPREAD, MOST_EVENTS = 100, 1.0, 4000
#: Shares of exact duplicates and of retries; of a class that follows itself; what a client's tilt keeps of itself.
DUPLICATES, RETRIES, SAME_CLASS, KEEPS = 0.01, 0.01, 0.5, 0.9
#: Clients that are scored at a time.
CHUNK_CLIENTS = 400
#: How clients differ: spread of their tilt, noise and contrast, so that their share of variance is low and high.
SPREADS = {"alike": 0.2, "apart": 0.5, "unlike": 0.8}
#: Weeks before the change.
BEFORE = 2
#: The change at its full size: degrees, share of contrast lost, noise.
TURN, FADE, NOISE = 10.0, 0.15, 0.04
DOCS = Path(__file__).resolve().parents[1] / "docs"
TARGET = 0.95


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is simulated."""

    clients: dict[str, int]
    """World -> ordinary clients in the pool."""
    coming: tuple[int, ...]
    shares: tuple[float, ...]
    weeks: int
    drifting: int
    drift_coming: int
    runs: int
    seeds: int
    """Over which weeks and runs are divided."""


SHARES = (0.01, 0.05, 0.10)
FULL = Sizes(
    {"alike": 4_000, "apart": 4_000, "unlike": 30_000}, (100, 1_000, 10_000), SHARES, 1_000, 1_600, 500, 200, 5
)
TENTH = Sizes({"alike": 320, "apart": 320, "unlike": 3_000}, (100, 1_000), SHARES, 900, 330, 110, 90, 3)
QUICK = Sizes({"unlike": 300}, (100,), (0.01, 0.10), 200, 105, 35, 20, 1)


class Camera:
    """Digits, a model, and pictures that the model has not seen."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        pixels, truth = load_digits(return_X_y=True)
        order = rng.permutation(len(pixels))
        pixels, truth = pixels[order] / 16.0, truth[order]
        train = np.repeat(np.arange(900), 4)
        inputs = self.taken(pixels[train], rng.normal(0, 6, len(train)), np.ones(len(train)), 0.04, rng)
        self.model = MLPClassifier((32,), max_iter=40, random_state=1, learning_rate_init=5e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.fit(inputs, truth[train])
        self.reference = Reference(inputs, self.labels(inputs), truth=truth[train].astype(np.int32))
        self.pictures, self.truth = pixels[900:], truth[900:]
        self.of_class = [np.flatnonzero(self.truth == k) for k in range(10)]
        self.errors = float(np.mean(self.labels(self.pictures) != self.truth))

    def labels(self, inputs: Rows) -> NDArray[np.int32]:
        """The model's answers."""
        return np.asarray(self.model.predict(inputs), dtype=np.int32)

    @staticmethod
    def taken(pictures: Rows, degrees: Rows, contrast: Rows, noise: Rows | float, rng: np.random.Generator) -> Rows:
        """Fresh rows (n, 64): turned, shifted, paler, noisy."""
        n = len(pictures)
        shift = rng.normal(0, 0.3, (n, 2, 1))
        grid = np.indices((8, 8)).reshape(2, 64) - 3.5
        angle = np.deg2rad(degrees)[:, None]
        down = np.cos(angle) * grid[0] + np.sin(angle) * grid[1] + 3.5 + shift[:, 0]
        right = np.cos(angle) * grid[1] - np.sin(angle) * grid[0] + 3.5 + shift[:, 1]
        framed = np.pad(pictures.reshape(n, 8, 8), ((0, 0), (2, 2), (2, 2))).reshape(n, 144)
        down, right = np.clip(down + 2, 0, 10.999), np.clip(right + 2, 0, 10.999)
        top, left = down.astype(np.int64), right.astype(np.int64)
        down, right = down - top, right - left
        made = np.zeros((n, 64))
        for low, weight in ((0, 1 - down), (1, down)):
            for side, other in ((0, 1 - right), (1, right)):
                place = (top + low) * 12 + left + side
                made += weight * other * np.take_along_axis(framed, place, axis=1)
        grain = np.asarray(noise).reshape(-1, 1) * rng.standard_normal((n, 64))
        return np.clip(made * contrast[:, None] + grain, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Habits:
    """What one client does."""

    mix: Rows
    tilt: float
    contrast: float
    noise: float
    events: int

    @classmethod
    def drawn(cls, spread: float, rng: np.random.Generator) -> Habits:
        """Of a new client."""
        events = int(np.clip(rng.lognormal(np.log(MEDIAN_EVENTS), EVENTS_SPREAD), 2, MOST_EVENTS))
        return cls(
            mix=rng.dirichlet(np.full(10, 1.2)),
            tilt=rng.normal(0, 10 * spread),
            contrast=float(np.clip(1.0 - 0.15 * spread * abs(rng.normal()), 0.6, 1.0)),
            noise=float(np.clip(0.035 * np.exp(0.5 * spread * rng.normal()), 0.01, 0.12)),
            events=events,
        )


def traffic(
    camera: Camera, people: Sequence[Habits], weeks: int, rng: np.random.Generator, change: Callable[[Rows], Rows]
) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """Rows, clients (1 ...) and times of these clients, in order of time; `change` gives its size at each hour."""
    who, chosen, tilt, contrast, noise, when = [], [], [], [], [], []
    for number, one in enumerate(people):
        n = max(2, rng.poisson(one.events * weeks))
        classes = rng.choice(10, n, p=one.mix)
        stays = np.flatnonzero(rng.random(n) < SAME_CLASS)
        for place in stays[stays > 0]:
            classes[place] = classes[place - 1]
        draw = rng.random(n)
        chosen.append(np.array([camera.of_class[k][int(u * len(camera.of_class[k]))] for k, u in zip(classes, draw)]))
        wander = lfilter([1.0], [1.0, -KEEPS], rng.normal(0, 3 * np.sqrt(1 - KEEPS**2), n))
        tilt.append(one.tilt + wander + rng.normal(0, 4, n))
        contrast.append(np.full(n, one.contrast))
        noise.append(np.full(n, one.noise))
        who.append(np.full(n, number + 1))
        when.append(np.sort(rng.integers(0, weeks * WEEK_US, n)))
    times = np.concatenate(when)
    size = change(times / HOUR_US)
    rows = camera.taken(
        camera.pictures[np.concatenate(chosen)],
        np.concatenate(tilt) + TURN * size,
        np.concatenate(contrast) * (1 - FADE * size),
        np.concatenate(noise) + NOISE * size,
        rng,
    )
    clients = np.concatenate(who)
    again = np.flatnonzero((rng.random(len(rows)) < DUPLICATES + RETRIES)[1:] & (clients[1:] == clients[:-1])) + 1
    for place in again:
        rows[place] = rows[place - 1]
    order = np.argsort(times, kind="stable")
    return rows[order], clients[order], times[order]


def batch(camera: Camera, rows: Rows, clients: NDArray[np.int64], times: NDArray[np.int64]) -> Batch:
    """As the worker hands it over."""
    n = len(rows)
    return Batch(
        np.ascontiguousarray(rows),
        camera.labels(rows),
        clients.astype(np.uint64),
        times,
        np.arange(n, dtype=np.int64),
        np.zeros(n, dtype=np.int32),
    )


@dataclass(frozen=True, slots=True)
class Maxima:
    """Largest statistics of units (client-weeks, or client-hours); (u,) each."""

    client: NDArray[np.int64]
    period: NDArray[np.int64]
    same: Rows
    opposite: Rows
    sequence: Rows
    tested: Rows
    oddest: Rows
    repeating: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Maxima]) -> Maxima:
        """All units; clients keep their numbers apart."""
        firsts = np.cumsum([0, *(int(part.client.max()) + 1 for part in parts[:-1])])
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("period", "same", "opposite", "sequence", "tested", "oddest", "repeating")
        }
        client = np.concatenate([part.client + first for part, first in zip(parts, firsts, strict=True)])
        return cls(client=client, **columns)

    def __len__(self) -> int:
        return len(self.client)


def scored(ensemble: Ensemble, events: Batch, period_us: int) -> tuple[Maxima, NDArray[np.int64]]:
    """Maxima of every client in every period, and the bucket of each row's fused p-value."""
    parts, fused = [], []
    for start in range(0, len(events), 8192):
        made = ensemble.single.score(events.take(slice(start, start + 8192)))
        parts.append(made.columns)
        fused.append(buckets(made.fused))
    columns = Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    silent = ensemble.tables._replace(thresholds=np.full_like(ensemble.tables.thresholds, np.inf))
    near = measure(columns, silent, ensemble.index_rows)["near"]
    repeating = repeating_clients.near(events.clients, near)
    everything = np.ones(len(events), dtype=np.bool_)
    past = History.replay(columns, events.times, everything, silent, ensemble.index_rows, period_us, 1, repeating)
    spoke = past.intentions(ensemble.tables, ensemble.intent, lambda _what, _share: None)
    tested = np.maximum(spoke.own, spoke.together / max(SHARED_LEAST, spoke.elsewhere))
    maxima = Maxima(
        past.weeks.clients.astype(np.int64) - 1,
        past.weeks.weeks,
        past.same,
        past.opposite,
        past.sequence,
        tested,
        past.oddest,
        past.repeating,
    )
    return maxima, np.concatenate(fused)


@functools.cache
def rank_of(coming: int, units: int) -> int:
    """The rank of thresholds, the same for every simulated calibration of one size."""
    return best_rank(coming, units, BUDGET)


@dataclass(frozen=True, slots=True)
class Rule:
    """Thresholds of one simulated calibration, as `detectors.calibration.decision` sets them."""

    intent: bool
    paging: Rows
    odd: float
    ensemble: Ensemble
    rank: int

    @classmethod
    def calibrated(cls, ensemble: Ensemble, pool: Maxima, chosen: NDArray[np.int64], coming: int) -> Rule:
        """From the client-weeks `chosen`, for so many clients a week."""
        rank = rank_of(coming, len(chosen))
        known = ensemble.tables.thresholds
        ceiling = float(np.log1p(min(known[3], walking.SEQUENCE_CEILING)))
        intent = bool(pool.repeating[chosen].any())
        sequence = np.log1p(pool.sequence[chosen])
        odd = odd_row(pool.oddest[chosen], BUDGET, coming)
        if intent:
            both, page_score = by_intent(sequence, pool.tested[chosen], ceiling, rank, coming, BUDGET)
            return cls(True, np.array([both.values[0], page_score]), odd, ensemble, rank)
        statistics = [pool.same[chosen], pool.opposite[chosen], sequence]
        found = combine(statistics, np.array([known[0], known[1], ceiling]), rank, coming, BUDGET).values
        return cls(False, found, odd, ensemble, rank)

    def pages(self, units: Maxima) -> NDArray[np.bool_]:
        """(u,) units that page."""
        sequence = np.log1p(units.sequence)
        if self.intent:
            return np.asarray((sequence > self.paging[0]) | (units.tested >= self.paging[1]))
        same, opposite = units.same > self.paging[0], units.opposite > self.paging[1]
        return np.asarray(same | opposite | (sequence > self.paging[2]))

    def tickets(self, units: Maxima) -> NDArray[np.bool_]:
        """(u,) units that open a ticket at least."""
        odd = units.oddest > self.odd
        if not self.intent:
            return np.asarray(self.pages(units) | odd)
        known = self.ensemble.tables.thresholds
        near = (units.same > known[0]) | (units.opposite > known[1])
        return np.asarray(near | (np.log1p(units.sequence) > self.paging[0]) | odd)


class World:
    """One kind of clients, an ensemble fitted on some of them, and a pool of client-weeks of others."""

    def __init__(self, name: str, camera: Camera, clients: int, seed: int) -> None:
        self.name, self.camera, self.spread = name, camera, SPREADS[name]
        rng = np.random.default_rng([seed, 2, round(100 * self.spread)])
        tuning = [Habits.drawn(self.spread, rng) for _ in range(400)]
        rows, who, when = traffic(camera, tuning, 1, rng, np.zeros_like)
        more = self.repeating(26, rng, first=len(tuning))
        events = merged([(rows, who, when), more])
        report.progress(f"{name}: fitting on {len(tuning)} clients")
        self.ensemble, self.report = fit(
            camera.reference,
            FeatureSchema.image((8, 8), [str(k) for k in range(10)]),
            batch(camera, *events),
            budget=BUDGET,
            clients_per_week=None,
            week_us=WEEK_US,
            partitions=8,
            rng=rng,
        )
        self.pool = self._pool(clients, rng)
        self.repeaters = self._repeaters(max(60, clients // 9), rng)

    def repeating(
        self, count: int, rng: np.random.Generator, first: int = 0
    ) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
        """A week of so many repeaters, kind after kind."""
        site = Site(self.camera.model.predict_proba, self.camera.reference.inputs.mean(axis=0))
        parts = []
        for number in range(count):
            x = self.camera.pictures[rng.integers(len(self.camera.pictures))]
            made = np.clip(KINDS[number % len(KINDS)](site, x, rng), 0.0, 1.0)
            parts.append((made, np.full(len(made), first + number + 1), np.sort(rng.integers(0, WEEK_US, len(made)))))
        return merged(parts)

    def _pool(self, clients: int, rng: np.random.Generator) -> Maxima:
        parts, events = [], 0
        for start in range(0, clients, CHUNK_CLIENTS):
            people = [Habits.drawn(self.spread, rng) for _ in range(min(CHUNK_CLIENTS, clients - start))]
            made = batch(self.camera, *traffic(self.camera, people, 1, rng, np.zeros_like))
            events += len(made)
            parts.append(scored(self.ensemble, made, WEEK_US)[0])
            if start % (10 * CHUNK_CLIENTS) == 0:
                report.progress(f"  {self.name}: {start + len(people)} of {clients} clients, {events:,} events")
        return Maxima.joined(parts)

    def _repeaters(self, count: int, rng: np.random.Generator) -> Maxima:
        parts = []
        for start in range(0, count, CHUNK_CLIENTS):
            few = min(CHUNK_CLIENTS, count - start)
            parts.append(scored(self.ensemble, batch(self.camera, *self.repeating(few, rng)), WEEK_US)[0])
        report.progress(f"  {self.name}: {count} repeaters")
        return Maxima.joined(parts)

    def drifting(self, clients: int, change: Change, seed: int) -> tuple[Maxima, Drifting]:
        """Client-hours of three weeks, and what workers would have counted of them."""
        rng = np.random.default_rng([seed, 3])  # the same clients for every kind of change
        people = [Habits.drawn(self.spread, rng) for _ in range(clients)]
        parts, hours = [], []
        since = BEFORE * HOURS + int(rng.integers(24, 120))

        def size(hour: Rows) -> Rows:
            if change == "none":
                return np.zeros_like(hour)
            if change in ("sudden", "slight"):
                return np.where(hour >= since, 1.0 if change == "sudden" else SLIGHT, 0.0)
            return np.clip((hour - BEFORE * HOURS) / HOURS, 0.0, 1.0)

        for start in range(0, clients, CHUNK_CLIENTS):
            few = people[start : start + CHUNK_CLIENTS]
            made = batch(self.camera, *traffic(self.camera, few, BEFORE + 1, rng, size))
            maxima, fused = scored(self.ensemble, made, HOUR_US)
            counts = np.zeros((len(few), (BEFORE + 1) * HOURS, 2), dtype=np.int32)
            place = (made.clients.astype(np.int64) - 1) * counts.shape[1] + made.times // HOUR_US
            for column, weights in enumerate((None, fused)):
                found = np.bincount(place, weights, counts.shape[0] * counts.shape[1])
                counts[:, :, column] = found.reshape(counts.shape[:2])
            parts.append(maxima)
            hours.append(counts)
        return Maxima.joined(parts), Drifting(np.concatenate(hours), since)


@dataclass(frozen=True, slots=True)
class Drifting:
    """Rows and oddness (clients, hours, 2), and the hour of a sudden change."""

    counts: NDArray[np.int32]
    since: int


def merged(
    parts: Sequence[tuple[Rows, NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """Several streams in order of time."""
    rows, who, when = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(when, kind="stable")
    return rows[order], who[order], when[order]


@dataclass(frozen=True, slots=True)
class Cell:
    """Simulated weeks of one world, number of clients and share of repeaters; weeks and those that held by seed."""

    world: str
    coming: int
    share: float
    weeks: tuple[int, ...]
    held: tuple[int, ...]
    pages: float
    rank: int
    bootstrapped: bool

    @property
    def name(self) -> str:
        return f"weeks_within_{self.world}_{self.coming}_{self.share * 100:g}"

    @property
    def within(self) -> float:
        """Share of the weeks that held."""
        return sum(self.held) / sum(self.weeks)

    @property
    def least(self) -> float:
        """The least share over seeds."""
        return min(held / weeks for held, weeks in zip(self.held, self.weeks, strict=True))

    @classmethod
    def joined(cls, cells: Sequence[Cell]) -> Cell:
        """One cell of several seeds."""
        weeks = [sum(cell.weeks) for cell in cells]
        return cls(
            cells[0].world,
            cells[0].coming,
            cells[0].share,
            tuple(week for cell in cells for week in cell.weeks),
            tuple(held for cell in cells for held in cell.held),
            float(np.average([cell.pages for cell in cells], weights=weeks)),
            cells[0].rank,
            any(cell.bootstrapped for cell in cells),
        )


def simulate(world: World, coming: int, share: float, weeks: int, rng: np.random.Generator) -> Cell:
    """Calibrate on some clients, count the pages of others, again and again."""
    pages, rank, bootstrapped = np.zeros(weeks), 0, False
    for week in range(weeks):
        calibration, report_week = [], []
        for pool, part in ((world.pool, 1.0 - share), (world.repeaters, share)):
            need, later = round(UNITS_A_CLIENT * coming * part), round(coming * part)
            order = rng.permutation(len(pool))
            if need + later <= len(pool):
                chosen, fresh = order[:need], order[need : need + later]
            else:
                bootstrapped = True
                cut = round(len(pool) * need / (need + later))
                chosen, fresh = rng.choice(order[:cut], need), rng.choice(order[cut:], later)
            calibration.append(chosen)
            report_week.append(fresh)
        whole = both(world)
        shift = len(world.pool)
        rule = Rule.calibrated(world.ensemble, whole, np.concatenate([calibration[0], calibration[1] + shift]), coming)
        rank = rule.rank
        coming_week = np.concatenate([report_week[0], report_week[1] + shift])
        pages[week] = np.count_nonzero(rule.pages(taken(whole, coming_week)))
    return Cell(
        world.name,
        coming,
        share,
        (weeks,),
        (int(np.count_nonzero(pages <= BUDGET)),),
        float(pages.mean()),
        rank,
        bootstrapped,
    )


def both(world: World) -> Maxima:
    """Ordinary clients, then repeaters."""
    return Maxima.joined([world.pool, world.repeaters])


def taken(units: Maxima, which: NDArray[np.int64]) -> Maxima:
    """The units `which` selects."""
    return Maxima(*(getattr(units, name)[which] for name in Maxima.__slots__))


@dataclass(frozen=True, slots=True)
class DriftCell:
    """Runs of one kind of change, by seed.

    Attributes
    ----------
    runs, marked, broken, in_time : tuple of int
        Runs of each seed; those in which the mark was raised, the budget broken, and one not before the other.
    delays : tuple of float
        Hours from the change to the mark, of every run that was marked.
    pages : float
        Mean of a run.
    young : int
        Runs whose calm third week would have broken the budget, had first weeks calibrated.
    """

    change: Change
    runs: tuple[int, ...]
    marked: tuple[int, ...]
    broken: tuple[int, ...]
    in_time: tuple[int, ...]
    delays: tuple[float, ...]
    pages: float
    young: int

    @property
    def judged(self) -> tuple[str, tuple[int, ...]]:
        """Name of the figure, and the runs that it counts."""
        if self.change == "none":
            return "mark_without_cause", self.marked
        return f"mark_in_time_{self.change}", self.in_time

    @classmethod
    def joined(cls, cells: Sequence[DriftCell]) -> DriftCell:
        """Runs of several seeds."""
        return cls(
            cells[0].change,
            tuple(runs for cell in cells for runs in cell.runs),
            tuple(marked for cell in cells for marked in cell.marked),
            tuple(broken for cell in cells for broken in cell.broken),
            tuple(in_time for cell in cells for in_time in cell.in_time),
            tuple(delay for cell in cells for delay in cell.delays),
            float(np.average([cell.pages for cell in cells], weights=[sum(cell.runs) for cell in cells])),
            sum(cell.young for cell in cells),
        )


def drift_runs(
    world: World,
    change: Change,
    calm: tuple[Maxima, Maxima],
    made: tuple[Maxima, Drifting],
    coming: int,
    runs: int,
    seed: int,
) -> DriftCell:
    """Three weeks of some of the clients, again and again; `calm`: first and third weeks without a change, of all."""
    units, stream = made
    clients = len(stream.counts)
    rng = np.random.default_rng([seed, 4])
    last = BEFORE * HOURS
    need = UNITS_A_CLIENT * coming
    first, third = calm
    marked = broken = in_time = young = 0
    delays, pages = [], []
    inside = units.period >= last
    week = taken(units, np.flatnonzero(inside))
    for _ in range(runs):
        order = rng.permutation(clients)
        chosen = order[coming : coming + need]
        rule = Rule.calibrated(world.ensemble, third, chosen, coming)
        limit = crossing_limit(coming, int(rule.tickets(taken(third, chosen)).sum()), need, TICKET_RISK)
        times = np.zeros(clients, dtype=np.int64)
        times[order[:coming]] = 1
        page_hours = crossing_hours(week, rule.pages(week), times)
        early = Rule.calibrated(world.ensemble, first, chosen, coming).pages(taken(third, order[:coming]))
        young += bool(np.count_nonzero(early) > BUDGET)
        ticket_hours = crossing_hours(week, rule.tickets(week), times)
        break_hour = page_hours[BUDGET] if len(page_hours) > BUDGET else np.inf
        ticket_mark = ticket_hours[limit] if len(ticket_hours) > limit else np.inf
        mark = min(martingale_mark(stream, times, rng), ticket_mark)
        marked += bool(np.isfinite(mark))
        broken += bool(np.isfinite(break_hour))
        in_time += bool(mark <= break_hour if not np.isfinite(break_hour) else mark < break_hour)
        pages.append(len(page_hours))
        if np.isfinite(mark):
            delays.append(mark - (last if change == "gradual" else stream.since))
    counts = (runs,), (marked,), (broken,), (in_time,)
    return DriftCell(change, *counts, tuple(delays), float(np.mean(pages)), young)


def one_week(units: Maxima, clients: int, week: int) -> Maxima:
    """Client-weeks (clients,) of one week, from client-hours."""
    inside = np.flatnonzero(units.period // HOURS == week)
    who = units.client[inside]
    found = {}
    for name in ("same", "opposite", "sequence", "tested", "oddest"):
        found[name] = np.zeros(clients)
        np.maximum.at(found[name], who, getattr(units, name)[inside])
    repeating = np.zeros(clients, dtype=np.bool_)
    repeating[units.client[units.repeating]] = True
    nothing = np.arange(clients)
    return Maxima(client=nothing, period=np.zeros_like(nothing), repeating=repeating, **found)


def crossing_hours(units: Maxima, crossed: NDArray[np.bool_], times: NDArray[np.int64]) -> NDArray[np.int64]:
    """The hours, ascending, in which clients first cross; `times` says how often each was drawn."""
    first = np.full(len(times), np.iinfo(np.int64).max)
    np.minimum.at(first, units.client[crossed], units.period[crossed])
    seen = first < np.iinfo(np.int64).max
    return np.sort(np.repeat(first[seen], times[seen]))


def martingale_mark(stream: Drifting, times: NDArray[np.int64], rng: np.random.Generator) -> float:
    """The hour at whose end the martingale first speaks in the last week; infinity where it does not."""
    drawn = np.repeat(np.arange(len(times)), times)
    block = rng.integers(0, BLOCKS, len(drawn))
    deal = np.zeros((BLOCKS, len(times)))
    np.add.at(deal, (block, drawn), 1.0)
    counts = np.tensordot(deal, stream.counts.astype(np.float64), axes=(1, 0)).astype(np.int64)
    calm = counts[:, : BEFORE * HOURS]  # all that the weeks before leave to the last one is their values
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(calm[:, :, 0] > 0, calm[:, :, 1] / calm[:, :, 0], np.nan).astype(np.float32).T
    watch = DriftWatch(0, np.arange(BEFORE * HOURS), values)
    for hour in range(BEFORE * HOURS, counts.shape[1]):
        watch.observe(hour, counts[:, hour, 0], counts[:, hour, 1])
        if watch.speaks:
            return hour
    return np.inf


@dataclass(frozen=True, slots=True)
class Seed:
    """Everything of one seed."""

    cells: list[Cell]
    drifts: list[DriftCell]
    errors: float
    between: dict[str, float]
    """World -> share of the scores' variance that lies between clients."""

    @classmethod
    def measured(cls, sizes: Sizes, seed: int) -> Seed:
        """Fit, score, simulate."""
        camera = Camera(seed)
        report.progress(f"seed {seed}: the model errs on {camera.errors:.1%} of unseen pictures")
        cells: list[Cell] = []
        drifts: list[DriftCell] = []
        between: dict[str, float] = {}
        weeks, runs = sizes.weeks // sizes.seeds, sizes.runs // sizes.seeds
        for number, (name, clients) in enumerate(sizes.clients.items()):
            world = World(name, camera, clients, seed)
            between[name] = world.report.between_clients
            rng = np.random.default_rng([seed, 5, number])
            for coming in sizes.coming:
                if 0.3 * UNITS_A_CLIENT * coming > clients:
                    continue  # so few would stand in that nothing could be learned
                for share in sizes.shares:
                    cells.append(simulate(world, coming, share, weeks, rng))
                    report.progress(f"  {cells[-1]}")
            if name == list(sizes.clients)[-1]:
                calm: tuple[Maxima, Maxima] | None = None
                for change in CHANGES:
                    made = world.drifting(sizes.drifting, change, seed)
                    calm = calm or (one_week(made[0], sizes.drifting, 0), one_week(made[0], sizes.drifting, BEFORE))
                    drifts.append(drift_runs(world, change, calm, made, sizes.drift_coming, runs, seed))
                    report.progress(f"  {change}: {drifts[-1].in_time[0]} of {runs} in time")
        return cls(cells, drifts, camera.errors, between)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, judge."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--tenth", action="store_true", help="a tenth of the clients; 10,000 a week are left out")
    parser.add_argument("--seeds", type=int, help="seeds that weeks and runs are divided among")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/detection.md")
    options = parser.parse_args(arguments)
    limit_blas_threads()
    sizes = QUICK if options.quick else TENTH if options.tenth else FULL
    sizes = replace(sizes, seeds=options.seeds or sizes.seeds)
    seeds = [Seed.measured(sizes, seed) for seed in range(options.seed, options.seed + sizes.seeds)]
    cells = [Cell.joined(same) for same in zip(*(seed.cells for seed in seeds), strict=True)]
    drifts = [DriftCell.joined(same) for same in zip(*(seed.drifts for seed in seeds), strict=True)]
    rng = np.random.default_rng(options.seed)
    figures = [report.share_over_seeds(cell.name, cell.held, cell.weeks, rng) for cell in cells]
    targets = [Target(cell.name, ">=", TARGET) for cell in cells]
    for run in drifts:
        name, counted = run.judged
        figures.append(report.share_over_seeds(name, counted, run.runs, rng))
        targets.append(Target(name, "<=", RISK) if run.change == "none" else Target(name, ">=", TARGET))
    between = {name: [seed.between[name] for seed in seeds] for name in sizes.clients}
    page = table(cells, drifts, between, figures)
    if options.write:
        report.write_between(DOCS / "detection.md", "budget", page)
    context: dict[str, Any] = {
        "budget": BUDGET,
        "seeds": sizes.seeds,
        "model_errors": [seed.errors for seed in seeds],
        "worlds": {
            name: {"clients": sizes.clients[name], "between_clients": shares} for name, shares in between.items()
        },
        "held_by_seed": {cell.name: cell.held for cell in cells},
        "in_time_by_seed": {run.change: run.in_time for run in drifts},
    }
    return report.finish(options, figures, targets, context, lambda console: show(console, page))


def table(
    cells: Sequence[Cell],
    drifts: Sequence[DriftCell],
    between: dict[str, list[float]],
    figures: Sequence[Figure],
) -> str:
    """What stands in the documentation."""
    interval = {figure.name: f"{figure.value:.1%} ({figure.low:.1%}-{figure.high:.1%})" for figure in figures}
    heads = (
        "clients differ by",
        "a week",
        "repeaters",
        f"weeks within N = {BUDGET}",
        "worst seed",
        "pages a week",
        "j of m",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cell in cells:
        mark = " (bootstrapped)" if cell.bootstrapped else ""
        shares = between[cell.world]
        lines.append(
            f"| {np.mean(shares):.2f} of the variance ({min(shares):.2f}-{max(shares):.2f}) | {cell.coming:,}{mark} | "
            f"{cell.share:.0%} | {interval[cell.name]} | {cell.least:.1%} | {cell.pages:.2f} | "
            f"{cell.rank} of {UNITS_A_CLIENT * cell.coming:,} |"
        )
    lines += [
        "",
        "| change in the third week | mark raised | budget broken | in time, or not broken | hours to mark | pages |",
        "|---|---|---|---|---|---|",
    ]
    aged = ""
    for run in drifts:
        total = sum(run.runs)
        marked, broken, in_time = (sum(counts) / total for counts in (run.marked, run.broken, run.in_time))
        told = f"{in_time:.1%}" if run.change == "none" else interval[run.judged[0]]
        raised = interval[run.judged[0]] if run.change == "none" else f"{marked:.1%}"
        delay = f"{np.median(run.delays):.0f}" if run.delays else "-"
        lines.append(f"| {run.change} | {raised} | {broken:.1%} | {told} | {delay} | {run.pages:.1f} |")
        if run.change == "none":
            aged = f"{run.young / total:.1%}"
    lines += [
        "",
        f"Thresholds from clients' first weeks would have broken the budget in {aged} of the calm third weeks.",
    ]
    return "\n".join(lines)


def show(console: Console, page: str) -> None:
    """Print the tables."""
    console.print(page, markup=False)


if __name__ == "__main__":
    sys.exit(main())
