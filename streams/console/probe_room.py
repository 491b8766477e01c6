"""Probes: which detector sees which attack, recall and robust accuracy over time, by threat model and model version,
the newest outcomes; and probes on demand."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aiohttp import web

from streams.config import THREATS, ModelSettings
from streams.console import plots
from streams.console.data import Watch, decoded, text
from streams.console.front import Front, form_of, status_of
from streams.console.plots import Point
from streams.errors import ConfigError, Conflict
from streams.probes import requests
from streams.probes.catalogue import entries
from streams.probes.outcome import ALARMS, RECENT_UNITS, SPEAKS_AT, corrected, faults, wilson
from streams.probes.regression import Comparison, compare, sentence
from streams.probes.store import ProbeStore
from streams.store.client import connect
from streams.store.keys import PartitionKeys
from streams.store.messages import ProbeOutcome, ProbePlan, ProbeRequest, ProbeSummary, ProbeVerdict

#: Outcomes and verdicts (over all partitions) that the page looks back over.
OUTCOMES, VERDICTS = 1_000, 6_000
#: Fewest verdicts read of a partition.
LEAST_VERDICTS = 50
#: Looks are at least so far apart.
REFRESH_SECONDS = 5.0
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
    breakdown: list[ProbeSummary]
    """By attack, threat model and model version."""
    comparisons: list[Comparison]
    """The newest model version against the one before."""
    requests: list[ProbeRequest]
    """What was asked for and has not been started."""
    prober: str
    """Who holds the prober's lease; empty: nobody."""


class ProbeRoom:
    """Routes of the page."""

    def __init__(self, front: Front, clock: Callable[[], float] = time.monotonic) -> None:
        self.front = front
        self._clock = clock
        self._looks: dict[str, ProbeLook] = {}
        self._stores: dict[str, ProbeStore] = {}
        self._lock = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [web.get("/probes", self.page), web.post("/probes", self.start)]

    async def page(self, request: web.Request) -> web.Response:
        """How well Vedette sees."""
        return await self._page(request, self.front.watch(request))

    async def start(self, request: web.Request) -> web.Response:
        """Ask for probes by a form."""
        watch = self.front.watch(request)
        form = await form_of(request)
        self.front.check_change(request, form)
        by = self.front.actor(request, form.get("by", ""))
        try:
            count = int(form.get("count", "1"))
        except ValueError:
            count = 0
        try:
            await self.ask(watch.model, form.get("attack", ""), by, form.get("kind", ""), form.get("threat", ""), count)
        except (ConfigError, Conflict) as error:
            return await self._page(request, watch, str(error), status_of(error)[0])
        response = web.Response(status=303, headers={"Location": self.front.pages.link("/probes", watch.model)})
        self.front.remember_name(request, response, by)
        return response

    async def ask(self, model: ModelSettings, attack: str, by: str, kind: str, threat: str, count: int) -> ProbeRequest:
        """Leave a request for the active prober; the next look shows it.

        Raises
        ------
        ConfigError, Conflict
        """

        def leave() -> ProbeRequest:
            if model.name not in self._stores:
                self._stores[model.name] = ProbeStore(connect(self.front.settings.redis), model.name, model.topic)
            return requests.ask(
                self._stores[model.name],
                self.front.settings,
                attack=attack,
                by=by,
                kind=kind,
                threat_name=threat,
                count=count,
            )

        made = await asyncio.to_thread(leave)
        self._looks.pop(model.name, None)
        return made

    async def _page(self, request: web.Request, watch: Watch, problem: str = "", status: int = 200) -> web.Response:
        look, probes = await watch.look(), await self.look(watch)
        settings, own = self.front.settings.probes, watch.model.objectives.recall
        return self.front.page(
            request,
            "probes.html",
            status,
            model=watch.model,
            problem=problem,
            look=look,
            objective=settings.min_recall if own is None else own,
            matrix=probes.matrix,
            courses=[
                (
                    course,
                    plots.course(
                        course.recall,
                        self.front.settings.recall_objective(watch.model, course.attack, course.kind),
                        "recall",
                    ),
                    plots.course(course.robust, None, "robust accuracy") if course.robust else "",
                )
                for course in probes.courses
            ],
            outcomes=probes.outcomes[:LISTED],
            plans=probes.plans,
            speaks_at=SPEAKS_AT,
            min_units=settings.min_units,
            recent=RECENT_UNITS,
            breakdown=probes.breakdown,
            comparisons=[(found, sentence(found)) for found in probes.comparisons],
            requests=probes.requests,
            prober=probes.prober,
            attacks=await asyncio.to_thread(entries),
            threats=sorted({*self.front.settings.threats, *THREATS}),
            most=requests.MOST_PROBES,
            faults=faults,
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
        pipe.hvals(watch.keys.probe_breakdown)
        pipe.hvals(watch.keys.probe_requests)
        pipe.hget(watch.keys.lease("prober"), "holder")
        for partition in partitions:
            pipe.xrevrange(PartitionKeys(watch.model.topic, partition).probes, count=each)
        logged, plans, parts, waiting, holder, *streams = await pipe.execute()
        outcomes = decoded((fields.get(b"m", b"") for _, fields in logged), ProbeOutcome)
        verdicts = decoded((fields.get(b"m", b"") for stream in streams for _, fields in stream), ProbeVerdict)
        return ProbeLook(
            at=now,
            outcomes=outcomes,
            plans=decoded(plans, ProbePlan),
            matrix=matrix(outcomes, verdicts),
            courses=courses(outcomes),
            breakdown=sorted(
                decoded(parts, ProbeSummary), key=lambda part: (part.kind, part.attack, part.threat, part.model_version)
            ),
            comparisons=compare(outcomes[::-1], self.front.settings.probes.significance),
            requests=sorted(decoded(waiting, ProbeRequest), key=lambda one: one.at),
            prober=text(holder) if holder else "",
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
            count[1] += corrected(p, verdict.rows) <= SPEAKS_AT
    detectors = sorted({name for seen in counts.values() for name in seen} - {"fused"})
    if counts:
        detectors.append("fused")
    rows = []
    for (name, kind), seen in sorted(counts.items(), key=lambda item: (item[0][1] in ALARMS, item[0])):
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
    for (attack, kind), units in sorted(groups.items(), key=lambda item: (item[0][1] in ALARMS, item[0])):
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
