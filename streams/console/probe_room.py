"""Probes: which detector sees which attack, recall and robust accuracy over time, objectives, the newest outcomes."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aiohttp import web

from streams.console import plots
from streams.console.data import Watch, decoded
from streams.console.front import Front
from streams.console.plots import Point
from streams.probes.outcome import RECENT_UNITS, wilson
from streams.store.keys import PartitionKeys
from streams.store.messages import ProbeOutcome, ProbePlan, ProbeVerdict

#: Outcomes and verdicts (over all partitions) that the page looks back over.
OUTCOMES, VERDICTS = 1_000, 6_000
#: Fewest verdicts read of a partition.
LEAST_VERDICTS = 50
#: Looks are at least so far apart.
REFRESH_SECONDS = 5.0
#: Share of benign rows at which a detector may speak in the matrix.
SPEAKS_AT = 0.01
#: Points of the plots over time, at most, and outcomes in the table.
POINTS, LISTED = 60, 20


@dataclass(frozen=True, slots=True)
class Cell:
    """How often one detector alone speaks on the rows of one attack."""

    share: float
    low: float
    high: float
    n: int

    @property
    def tenth(self) -> int:
        """The share in tenths, for its shade."""
        return round(10 * self.share)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Attack by detector."""

    detectors: list[str]
    rows: list[tuple[str, str, list[Cell | None]]]
    """(attack, kind, cells in the order of `detectors`)."""


@dataclass(frozen=True, slots=True)
class Course:
    """One attack over time."""

    attack: str
    kind: str
    recall: list[Point]
    robust: list[Point]


@dataclass(frozen=True, slots=True)
class ProbeLook:
    """Everything that the page shows beside the summaries."""

    at: float
    outcomes: list[ProbeOutcome]
    """Newest first."""
    plans: list[ProbePlan]
    matrix: Matrix
    courses: list[Course]


class ProbeRoom:
    """Route of the page."""

    def __init__(self, front: Front, clock: Callable[[], float] = time.monotonic) -> None:
        self.front = front
        self._clock = clock
        self._looks: dict[str, ProbeLook] = {}
        self._lock = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [web.get("/probes", self.page)]

    async def page(self, request: web.Request) -> web.Response:
        """How well Vedette sees."""
        watch = self.front.watch(request)
        look, probes = await watch.look(), await self.look(watch)
        settings = self.front.settings.probes
        return self.front.page(
            request,
            "probes.html",
            model=watch.model,
            look=look,
            matrix=probes.matrix,
            courses=[
                (
                    course,
                    plots.course(course.recall, None if course.kind == "control" else settings.min_recall, "recall"),
                    plots.course(course.robust, None, "robust accuracy") if course.robust else "",
                )
                for course in probes.courses
            ],
            outcomes=probes.outcomes[:LISTED],
            plans=probes.plans,
            speaks_at=SPEAKS_AT,
            min_units=settings.min_units,
            recent=RECENT_UNITS,
        )

    async def look(self, watch: Watch) -> ProbeLook:
        """The last look at the log, or a new one when it is older than `REFRESH_SECONDS`."""
        async with self._lock:
            now = self._clock()
            kept = self._looks.get(watch.model.name)
            if kept is None or not 0 <= now - kept.at < REFRESH_SECONDS:
                kept = self._looks[watch.model.name] = await self._take(watch, now)
            return kept

    async def _take(self, watch: Watch, now: float) -> ProbeLook:
        partitions = await watch.partitions()
        each = max(LEAST_VERDICTS, VERDICTS // max(len(partitions), 1))
        pipe = self.front.redis.pipeline(transaction=False)
        pipe.xrevrange(watch.keys.probe_log, count=OUTCOMES)
        pipe.hvals(watch.keys.probe_plans)
        for partition in partitions:
            pipe.xrevrange(PartitionKeys(watch.model.topic, partition).probes, count=each)
        logged, plans, *streams = await pipe.execute()
        outcomes = decoded((fields.get(b"m", b"") for _, fields in logged), ProbeOutcome)
        verdicts = decoded((fields.get(b"m", b"") for stream in streams for _, fields in stream), ProbeVerdict)
        return ProbeLook(
            at=now,
            outcomes=outcomes,
            plans=decoded(plans, ProbePlan),
            matrix=matrix(outcomes, verdicts),
            courses=courses(outcomes),
        )


def matrix(outcomes: Iterable[ProbeOutcome], verdicts: Iterable[ProbeVerdict]) -> Matrix:
    """How often each detector alone gives a record of an attack a p-value of at most `SPEAKS_AT`.

    Of a record with several rows only the smallest p-value is known; it is corrected for their number (Šidák 1967).
    """
    attack_of = {outcome.campaign: (outcome.attack, outcome.kind) for outcome in outcomes}
    counts: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for verdict in verdicts:
        attack = attack_of.get(verdict.probe.rpartition("-")[0])
        if attack is None or verdict.status != "scored":
            continue
        for detector, p in {**verdict.pvalues, "fused": verdict.fused}.items():
            count = counts[attack][detector]
            count[0] += 1
            count[1] += 1 - (1 - min(max(p, 0.0), 1.0)) ** max(verdict.rows, 1) <= SPEAKS_AT
    detectors = sorted({name for seen in counts.values() for name in seen} - {"fused"})
    if counts:
        detectors.append("fused")
    rows = []
    for (name, kind), seen in sorted(counts.items(), key=lambda item: (item[0][1] == "control", item[0])):
        cells = [_cell(*seen[detector]) if detector in seen else None for detector in detectors]
        rows.append((name, kind, cells))
    return Matrix(detectors, rows)


def courses(outcomes: Iterable[ProbeOutcome]) -> list[Course]:
    """Recall and robust accuracy of each attack, each point over the last `RECENT_UNITS` units before it.

    Parameters
    ----------
    outcomes
        In any order; abandoned ones are left out.
    """
    groups: dict[tuple[str, str], list[ProbeOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if not outcome.abandoned:
            groups[outcome.attack, outcome.kind].append(outcome)
    found = []
    for (attack, kind), units in sorted(groups.items(), key=lambda item: (item[0][1] == "control", item[0])):
        units.sort(key=lambda unit: unit.finished)
        step = max(1, math.ceil(len(units) / POINTS))
        ends = range(len(units), 0, -step)
        windows = [units[max(0, end - RECENT_UNITS) : end] for end in reversed(ends)]
        asked = [[unit for unit in window if unit.fooled is not None and unit.inputs] for window in windows]
        robust = [_robust(window) for window in asked if window]
        found.append(Course(attack, kind, [_recall(window) for window in windows], robust))
    return found


def _recall(units: Sequence[ProbeOutcome]) -> Point:
    hits = sum(unit.detected for unit in units)
    return Point(units[-1].finished, hits / len(units), *wilson(hits, len(units)), len(units))


def _robust(units: Sequence[ProbeOutcome]) -> Point:
    inputs = sum(unit.inputs for unit in units)
    held = inputs - sum(unit.fooled or 0 for unit in units)
    return Point(units[-1].finished, held / inputs, *wilson(held, inputs), inputs)


def _cell(n: int, spoke: int) -> Cell:
    low, high = wilson(spoke, n)
    return Cell(spoke / n, low, high, n)
