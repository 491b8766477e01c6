"""Query attacks in the traffic of a site: what the whole ensemble tickets and pages, and after how many queries.

    python -m benchmarks.queries [--json] [--check] [--quick] [--tasks "digits mlp,..."] [--write]
                               [--keep DIRECTORY [--accept-older]]

For each data set, model and seed the ensemble is fitted and calibrated as `vedette fit` does it, for one false page a
week, on weeks of benign clients that hold one in twenty of kinds that repeat themselves: every other kind, and never
one that searches the boundary itself. Attackers are watched for 400 queries of their own and go from start row to start
row; those of a cell are in one stream, among a week of other clients whose rows come from a part of the data that
nothing was fitted on.

* undiluted, and with 4 and 20 benign queries beside each of their own; some also with 60, more than the history of a
  client remembers;
* over 10 accounts, one in a hundred rows of the partition, and over 100, one in three hundred;
* benign clients of special kinds: share that page and that ticket, apart for kinds that the history held and not. The
  same clients are judged twice in each seed, by an ensemble whose history held every other kind and by one whose held
  the others, so each kind is left out once and held once;
* an attacker who tunes: strategies for noise, distance, cover and few features, 2,000 queries (benign ones included)
  for one start row. It succeeds when a row with another answer lies as near as HopSkipJump's median after 400 queries.
  Of the strategies that succeed often enough unmonitored, the one that does best unseen on tuning rows is reported;
* Blacklight, stateful detection (Chen et al.), PRADA, PyOD's IForest, KNN and ECOD and max-softmax against some of the
  same attackers, at their published thresholds and at those that order statistics of the same client-weeks give for the
  same budget (`benchmarks.queries_rivals`);
* a site without repeaters, in history and traffic, undiluted and 1:4, with baselines and ordinary clients: there a
  crossed threshold pages. Under a seed its attackers are the same, query by query, as those of the site with
  repeaters, so the two are a paired comparison, and no independent ones.

An attacker that is never seen counts as seen after the last query but one more: medians are over all attackers.
Intervals: Wilson's for shares; for medians, seeds and then attackers are drawn anew.

``--keep`` stores each attack of each data set, model and seed as it is done, with its settings and a digest of the code
that decides, and takes up what is there; a file of other settings or other code stops the run and stays as it is.
``--accept-older`` takes up parts of the same settings that other code measured; the tables then say so. ``--check``
without ``--tasks`` and ``--quick`` wants every usual task installed and a figure for every target. ``--write`` puts
tables and plot into docs.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import kept, queries_tables, report
from benchmarks.crafted import Task, task
from benchmarks.datasets import Data, Kind, named, split_installed
from benchmarks.queries_attackers import (
    PLANS,
    STRATEGIES,
    Plan,
    askers,
    at_once,
    attacked,
    covered,
    first_success,
)
from benchmarks.queries_cells import BUDGET, Benign, Found, Hunt, Part, Settings, Tuned
from benchmarks.queries_clients import KINDS, Counter, Rows, Supply, Week, known_kinds, turns, week
from benchmarks.queries_rivals import PLACES, Rivals, parts_of, rival_hunts
from benchmarks.repeaters import Site
from benchmarks.report import progress
from detectors import ensemble
from detectors.contract import Batch, Level, Reference
from detectors.kernels import limit_blas_threads
from detectors.scorer import Ensemble

#: What is run in full; MNIST has fewer clients, as its rows are long.
TASKS: tuple[tuple[Data, Kind], ...] = (
    ("digits", "mlp"),
    ("digits", "forest"),
    ("mnist", "mlp"),
    ("spambase", "mlp"),
    ("spambase", "logistic"),
    ("spambase", "forest"),
    ("spambase", "boosting"),
    ("spambase", "xgboost"),
    ("cancer", "mlp"),
    ("phishing", "mlp"),
    ("phishing", "forest"),
    ("kddcup", "mlp"),
    ("kddcup", "forest"),
)
FULL = Settings(queries=400, attackers=120, rivals=24, campaigns=10, specials=24, tuners=24, clients=200, weeks=7)
QUICK = Settings(queries=60, attackers=3, rivals=1, campaigns=1, specials=1, tuners=1, clients=16, weeks=7)
SEEDS, QUICK_SEEDS = 5, 1
QUICK_TASKS: tuple[tuple[Data, Kind], ...] = (("digits", "mlp"),)
#: Most clients a week where rows are longer than this.
LONG_ROWS, LONG_CLIENTS = 400, 60
#: One special client in so many.
SPECIAL_EVERY = 20
#: Accounts of a campaign and rows of the partition to each of its own; campaigns of one stream.
CAMPAIGNS, AT_ONCE = ((10, 100), (100, 300)), 5
#: Benign queries beside each own; beyond the second figure as few attackers as campaigns.
DILUTIONS, FAR = (0, 4, 20, 60), 20
#: Dilutions at which a site without repeaters is measured.
PLAIN_DILUTIONS = (0, 4)
#: Weeks of ordinary clients that are judged.
ORDINARY_WEEKS = 3
#: Budget of the attacker who tunes, over that of the others.
TUNED_BUDGET = 5
#: Rows that detectors learn from, rows of a batch, microseconds between rows.
REFERENCE_ROWS, BATCH_ROWS, ROW_US = 2000, 4000, 1000
#: Values that the rows of one stream's attackers may have.
STREAM_VALUES = 60_000_000
#: A week, in microseconds.
WEEK_US = 1_000_000_000
#: Modules of this directory that decide what is measured; tables only tell it.
DECIDING = (
    "baselines",
    "crafted",
    "datasets",
    "queries",
    "queries_attackers",
    "queries_cells",
    "queries_clients",
    "queries_rivals",
    "repeaters",
)


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Rows of a partition in order. n rows.

    Attributes
    ----------
    rows : float64 (n, d)
    accounts : uint64 (n,)
    attacker : int64 (n,)
        Place of the attacker (or benign client that is watched) whose row it is; -1 for others.
    asked : int64 (n,)
        Own queries of that attacker so far.
    """

    rows: Rows
    accounts: NDArray[np.uint64]
    attacker: NDArray[np.int64]
    asked: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """One task with everything that watches it.

    Attributes
    ----------
    known : tuple of str
        Kinds of repeaters that the history holds; without any there are none in the traffic either.
    learned : float64 (n, d)
        Rows that detectors learn from.
    scale : float64 (d,)
        Their standard deviations.
    """

    made: Task
    settings: Settings
    known: tuple[str, ...]
    watch: Ensemble
    learned: Rows
    scale: Rows
    history: tuple[Week, ...]
    report: Counter
    background: tuple[Week, ...]
    mode: str
    reason: str

    @property
    def repeaters(self) -> bool:
        """Whether history and traffic hold clients of special kinds."""
        return bool(self.known)

    @classmethod
    def make(cls, made: Task, settings: Settings, known: tuple[str, ...]) -> World:
        """Fit and calibrate on a history of `known` kinds of repeaters; where it has none, nobody at the site repeats
        itself."""
        shape = made.schema.image_shape
        rng = np.random.default_rng([made.seed, 11])
        train, past, live = (Supply(part, shape, made.domain) for part in (made.train, made.tuning, made.report))
        rows, truth = train.strangers(REFERENCE_ROWS, rng)
        outputs = made.model.predict(rows)
        reference = Reference(rows, outputs.argmax(axis=1).astype(np.int32), outputs, truth)
        site = Site(lambda asked: made.model.predict(live.legal(asked)), rows.mean(axis=0))
        specials, clients = -(-settings.clients // SPECIAL_EVERY) if known else 0, settings.clients
        history = tuple(week(Counter(site, past), clients, specials, known, rng) for _ in range(settings.weeks))
        progress(f"  {sum(len(one.rows) for one in history)} rows of {settings.weeks} weeks")
        watch, told = ensemble.fit(
            reference,
            made.schema,
            history_batch(made, history, rng),
            budget=BUDGET,
            clients_per_week=clients,
            week_us=WEEK_US,
            partitions=1,
            rng=np.random.default_rng([made.seed, 12]),
            progress=report.Told(),
        )
        progress(f"  mode {told.mode}: {told.reason}")
        counter = Counter(site, live)
        background = tuple(week(counter, clients, specials, tuple(KINDS) if known else (), rng) for _ in range(2))
        spread = rows.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        return cls(made, settings, known, watch, rows, scale, history, counter, background, told.mode, told.reason)

    def stream(
        self, sequences: Sequence[tuple[Rows, NDArray[np.bool_]]], accounts: int, others: int, rng: np.random.Generator
    ) -> Stream:
        """Sequences of rows (and which are the attacker's own), each over so many accounts in turn, mixed with rows of
        the background's first clients: `others` of them, or a whole week where that is 0."""
        week_of = self.background[0]
        clients, rows = week_of.clients, week_of.rows
        if others:
            clients = np.concatenate([one.clients + 10_000 * at for at, one in enumerate(self.background)])
            rows = np.concatenate([one.rows for one in self.background])
            reach = np.arange(others) % len(rows)
            clients, rows = clients[reach] + 100_000 * (np.arange(others) // len(rows)), rows[reach]
        lengths = [len(rows), *(len(part) for part, _ in sequences)]
        order = turns(lengths, rng)
        attacker = np.repeat(np.arange(-1, len(sequences)), lengths)
        inside = np.concatenate([np.arange(length) for length in lengths])
        names = np.where(attacker < 0, 0, 1_000_000 + attacker * 1000 + inside % accounts).astype(np.uint64)
        names[: len(rows)] = 1 + clients
        asked = np.concatenate([np.zeros(len(rows), dtype=np.int64), *(np.cumsum(own) for _, own in sequences)])
        every = np.concatenate([rows, *(part for part, _ in sequences)])
        return Stream(every[order], names[order], attacker[order], asked[order])

    def watched(self, stream: Stream, count: int) -> tuple[list[int | None], list[int | None]]:
        """Own queries of each of `count` attackers until its first ticket (or page) and its first page."""
        state = self.watch.new_state(clients=8192)
        tickets: list[int | None] = [None] * count
        pages: list[int | None] = [None] * count
        for start in range(0, len(stream.rows), BATCH_ROWS):
            end = min(start + BATCH_ROWS, len(stream.rows))
            rows, place = np.ascontiguousarray(stream.rows[start:end]), np.arange(start, end, dtype=np.int64)
            outputs = self.made.model.predict(rows)
            batch = Batch(
                inputs=rows,
                labels=outputs.argmax(axis=1).astype(np.int32),
                clients=stream.accounts[start:end],
                times=place * ROW_US,
                offsets=place,
                rows=np.zeros(len(rows), dtype=np.int32),
                outputs=outputs,
            )
            for signal in self.watch.score(batch, state).signals:
                who, asked = int(stream.attacker[start + signal.row]), int(stream.asked[start + signal.row])
                if who < 0:
                    continue
                for level, seen in ((Level.TICKET, tickets), (Level.PAGE, pages)):
                    if signal.level >= level and seen[who] is None:
                        seen[who] = asked
        return tickets, pages


def history_batch(made: Task, history: Sequence[Week], rng: np.random.Generator) -> Batch:
    """Benign events of some weeks, each with clients of its own."""
    rows = np.concatenate([one.rows for one in history])
    names = rng.integers(1, 1 << 62, sum(len(one.kinds) for one in history)).astype(np.uint64)
    firsts = np.cumsum([0, *(len(one.kinds) for one in history)])
    times = [
        number * WEEK_US + np.linspace(0, 0.999 * WEEK_US, len(one.rows)).astype(np.int64)
        for number, one in enumerate(history)
    ]
    outputs = made.model.predict(rows)
    return Batch(
        inputs=rows,
        labels=outputs.argmax(axis=1).astype(np.int32),
        clients=np.concatenate([names[first + one.clients] for first, one in zip(firsts[:-1], history, strict=True)]),
        times=np.concatenate(times),
        offsets=np.arange(len(rows), dtype=np.int64),
        rows=np.zeros(len(rows), dtype=np.int32),
        outputs=outputs,
    )


def lots(count: int, values: int) -> list[range]:
    """Attackers of one stream at a time."""
    step = max(1, STREAM_VALUES // values)
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def hunts(world: World, rivals: Rivals, plan: Plan) -> list[Hunt]:
    """One attack: every dilution, and over many accounts; baselines where they are judged."""
    made, settings, number = world.made, world.settings, [plan.name for plan in PLANS].index(plan.name)
    rng = np.random.default_rng([made.seed, 21, number])
    supply = world.report.supply
    own = askers(made, plan, supply, max(settings.attackers, settings.campaigns), settings.queries, rng)
    found = []
    for each in DILUTIONS:
        count = settings.attackers if each <= FAR else min(settings.attackers, settings.campaigns)
        found.append(diluted(world, plan, own[:count], each, rng))
    for accounts, rows_to_each in CAMPAIGNS:
        spread = Hunt("Vedette", "", plan.name, 0, accounts, [], [])
        for start in range(0, settings.campaigns, AT_ONCE):
            some = own[start : min(start + AT_ONCE, settings.campaigns)]
            rows = rows_to_each * settings.queries - len(some) * settings.queries
            sequences = [(part, np.ones(len(part), dtype=np.bool_)) for part in some]
            tickets, pages = world.watched(world.stream(sequences, accounts, rows, rng), len(some))
            spread.tickets.extend(tickets)
            spread.pages.extend(pages)
        found.append(spread)
    return found + rival_hunts(rivals, plan, own, PLACES)


def diluted(world: World, plan: Plan, own: list[Rows], each: int, rng: np.random.Generator) -> Hunt:
    """What Vedette sees of some attackers, with `each` benign queries beside each of their own."""
    made, supply = world.made, world.report.supply
    hunt = Hunt("Vedette", "", plan.name, each, 1, [], [], world.repeaters)
    for lot in lots(len(own), world.settings.queries * (1 + each) * made.schema.width):
        hidden = [
            covered(own[at], each, supply.client(each * len(own[at]), rng) if each else own[at], rng) for at in lot
        ]
        tickets, pages = world.watched(world.stream(hidden, 1, 0, rng), len(hidden))
        hunt.tickets.extend(tickets)
        hunt.pages.extend(pages)
    return hunt


def plain_hunts(world: World, rivals: Rivals, plan: Plan) -> list[Hunt]:
    """One attack on a site without repeaters: nothing in history or traffic repeats itself but the attackers."""
    made, settings, number = world.made, world.settings, [plan.name for plan in PLANS].index(plan.name)
    rng = np.random.default_rng([made.seed, 21, number])
    own = askers(made, plan, world.report.supply, settings.attackers, settings.queries, rng)
    places = tuple((each, 1) for each in PLAIN_DILUTIONS)
    return [
        *(diluted(world, plan, own, each, rng) for each in PLAIN_DILUTIONS),
        *rival_hunts(rivals, plan, own, places),
    ]


def benign(world: World, rivals: Rivals | None) -> list[Benign]:
    """Ordinary clients, and special ones where the site has some: who tickets and pages in a week.

    Ordinary ones are judged in weeks of their own, in which as many clients are special as in the history; special
    ones, of which there are several of each kind, all together beside ordinary ones. All worlds of a seed have the
    same.
    """
    made, settings = world.made, world.settings
    rng = np.random.default_rng([made.seed, 31])
    weeks = [week(world.report, settings.clients, 0, (), rng) for _ in range(ORDINARY_WEEKS)]
    ordinary = [[one.rows[mine] for mine in parts_of(one.clients, settings.clients)] for one in weeks]
    kinds = KINDS if world.repeaters else {}
    special = [(kind, made_of(world.report, rng)) for kind, made_of in kinds.items() for _ in range(settings.specials)]
    found = [row for some in ordinary for row in _judged(world, rivals, some, [""] * len(some), rng)]
    if special:
        beside = ordinary[0]
        names = [""] * len(beside) + [kind for kind, _ in special]
        rows = _judged(world, rivals, [*beside, *(rows for _, rows in special)], names, rng)
        found += [row for row in rows if row.kind]
    return found


def _judged(
    world: World, rivals: Rivals | None, sequences: list[Rows], names: list[str], rng: np.random.Generator
) -> list[Benign]:
    """What becomes of clients of such kinds in one stream, by everybody who watches."""
    stream = world.stream([(rows, np.ones(len(rows), dtype=np.bool_)) for rows in sequences], 1, 0, rng)
    tickets, pages = world.watched(stream, len(sequences))
    seen: dict[tuple[str, str], tuple[list[int | None], list[int | None]]] = {("Vedette", ""): (tickets, pages)}
    if rivals is not None:
        seen |= {key: (alarms, alarms) for key, alarms in rivals.first(stream, len(sequences)).items()}
    found = []
    for (scheme, setting), (ticketed, paged) in seen.items():
        for kind in dict.fromkeys(names):
            mine = [at for at, name in enumerate(names) if name == kind]
            hits = sum(ticketed[at] is not None for at in mine), sum(paged[at] is not None for at in mine)
            found.append(Benign(scheme, setting, kind, kind in world.known, len(mine), *hits, world.repeaters))
    return found


def tuned(world: World) -> tuple[float, list[Tuned]]:
    """The distance of its goal, and the attacker who tunes with every strategy, on tuning rows and on report rows."""
    made, settings = world.made, world.settings
    rng = np.random.default_rng([made.seed, 41])
    budget = TUNED_BUDGET * settings.queries
    past, live = Supply(made.tuning, made.schema.image_shape, made.domain), world.report.supply
    goals = attacked(made, STRATEGIES[0], past.strangers(30, rng)[0], settings.queries, rng)
    goal = float(np.median(goals.distances[goals.success]))
    found = []
    for plan in STRATEGIES:
        for part, supply in (("tuning", past), ("report", live)):
            starts, _ = supply.strangers(settings.tuners, rng)
            labels = made.model.predict(starts).argmax(axis=1)
            own = budget // (1 + plan.each)
            one = Tuned(plan.name, part, [], [])
            step = at_once(made.schema.width, own)
            for first in range(0, len(starts), step):
                some = starts[first : first + step]
                trace = attacked(made, plan, some, own, rng).trace
                hidden = []
                for at in range(len(some)):
                    asked = trace.of(at)
                    one.successes.append(first_success(some[at], asked, int(labels[first + at]), goal))
                    cover = supply.client(plan.each * len(asked), rng) if plan.each else asked.inputs
                    hidden.append(covered(asked.inputs, plan.each, cover, rng))
                one.pages.extend(world.watched(world.stream(hidden, 1, 0, rng), len(hidden))[1])
            found.append(one)
        progress(f"  tuning, {plan.name}: {found[-1].unseen:.2f} unseen, {found[-1].unmonitored:.2f} unmonitored")
    return goal, found


class Bench:
    """One task: everything that is measured on it, part by part; what is stored isn't measured again.

    Parameters
    ----------
    data, kind, seed
        The task.
    settings : Settings
    folder : Path or None
        Where parts are stored.
    accept_older : bool
        Whether stored parts that other code measured are taken up.
    """

    def __init__(
        self,
        data: Data,
        kind: Kind,
        seed: int,
        settings: Settings,
        folder: Path | None,
        accept_older: bool = False,
    ) -> None:
        self.made = task(data, kind, seed)
        if self.made.schema.width > LONG_ROWS:
            settings = msgspec.structs.replace(settings, clients=min(settings.clients, LONG_CLIENTS))
        self.settings = settings
        place = None if folder is None else folder / f"{data}-{kind}-{seed}"
        self._parts = kept.Parts(place, kept.deciding_sources(DECIDING), accept_older)
        self._began = time.monotonic()

    @functools.cached_property
    def world(self) -> World:
        """Fitted when it is first asked for; its history holds one half of the kinds of repeaters."""
        return World.make(self.made, self.settings, known_kinds(self.made.seed))

    @functools.cached_property
    def rivals(self) -> Rivals:
        """Calibrated when they are first asked for."""
        world = self.world
        progress("  calibrating baselines")
        return Rivals(world, BUDGET, np.random.default_rng([self.made.seed, 13]))

    @functools.cached_property
    def plain(self) -> tuple[World, Rivals]:
        """The same site without repeaters, and baselines on it."""
        progress("  a site without repeaters")
        world = World.make(self.made, self.settings, ())
        return world, Rivals(world, BUDGET, np.random.default_rng([self.made.seed, 13]))

    def part(self, name: str, measured: Callable[[], Part]) -> Part:
        """One part, stored or measured now; ends where what is stored can't be taken up."""
        return self._parts.part(name, Part, self.settings, measured)

    def found(self) -> Found:
        """Everything, with progress."""
        made, settings = self.made, self.settings
        progress(f"{made.data} {made.kind}, seed {made.seed}")

        def attack(plan: Plan) -> Part:
            return Part(settings, hunts=hunts(self.world, self.rivals, plan))

        def alone(plan: Plan) -> Part:
            return Part(settings, mode=self.plain[0].mode, hunts=plain_hunts(*self.plain, plan))

        def alone_clients() -> Part:
            return Part(settings, mode=self.plain[0].mode, benign=benign(*self.plain))

        def tuning() -> Part:
            goal, rows = tuned(self.world)
            return Part(settings, goal=goal, tuned=rows)

        def clients() -> Part:
            rows = benign(self.world, self.rivals)
            return Part(settings, mode=self.world.mode, reason=self.world.reason, benign=rows)

        def others() -> Part:
            progress("  a history of the other kinds")
            world = World.make(made, settings, known_kinds(made.seed + 1))
            rows = [row for row in benign(world, None) if row.kind]
            return Part(settings, mode=world.mode, reason=world.reason, benign=rows)

        cells: list[Hunt] = []
        for plan in PLANS:
            some = self.part(plan.name, functools.partial(attack, plan)).hunts
            cells += some
            told = ", ".join(hunt.told() for hunt in some if hunt.scheme == "Vedette")
            progress(f"  {time.monotonic() - self._began:5.0f} s  {plan.name}: {told}")
        for plan in PLANS:
            some = self.part(f"{plan.name}, no repeaters", functools.partial(alone, plan)).hunts
            cells += some
            told = ", ".join(hunt.told() for hunt in some if hunt.scheme == "Vedette")
            progress(f"  {time.monotonic() - self._began:5.0f} s  {plan.name}, no repeaters: {told}")
        ordinary = self.part("benign clients", clients)
        swapped = self.part("benign clients, the other kinds known", others)
        quiet = self.part("benign clients, no repeaters", alone_clients)
        for row in (row for row in [*ordinary.benign, *swapped.benign] if row.scheme == "Vedette"):
            name = f"{row.kind}, {'known' if row.known else 'left out'}" if row.kind else "ordinary clients"
            progress(f"  {name}: {row.tickets} ticketed, {row.pages} paged of {row.clients}")
        tries = self.part("attacker who tunes", tuning)
        return Found(
            made.data,
            made.kind,
            made.seed,
            settings,
            ordinary.mode,
            ordinary.reason,
            tries.goal,
            cells,
            ordinary.benign + swapped.benign + quiet.benign,
            tries.tuned,
            self._parts.older,
        )


def chosen_tasks(wanted: str | None, quick: bool, check: bool = False) -> tuple[list[tuple[Data, Kind]], list[str]]:
    """Tasks by name, or the usual ones, whose data and model are installed, and the names of the others; a check of
    the usual ones wants all of them."""
    return split_installed(
        named(wanted) if wanted else QUICK_TASKS if quick else TASKS, check and not (wanted or quick)
    )


def main() -> int:
    """Entry point."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--tasks", help="such as 'digits mlp,phishing forest', instead of the usual ones")
    parser.add_argument("--seeds", type=int)
    kept.arguments(parser)
    parser.add_argument("--write", action="store_true", help="write tables and plot into docs/")
    whole: Callable[[str], int] = int
    for name in Settings.__struct_fields__:
        parser.add_argument(f"--{name}", type=whole)
    options = kept.parsed(parser)
    limit_blas_threads()
    settings = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in Settings.__struct_fields__}
    settings = msgspec.structs.replace(settings, **{name: n for name, n in given.items() if n is not None})
    seeds = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    tasks, left_out = chosen_tasks(options.tasks, options.quick, options.check)
    found = [
        Bench(data, kind, seed, settings, options.keep, options.accept_older).found()
        for data, kind in tasks
        for seed in range(options.seed, options.seed + seeds)
    ]
    if not found:
        progress("nothing is left to measure")
        return 2
    rng = np.random.default_rng(options.seed)
    figures, targets = queries_tables.figures_of(found, rng)
    if options.write:
        queries_tables.write(found)
    context: dict[str, Any] = {"seeds": seeds, "settings": msgspec.structs.asdict(settings)}
    context["modes"] = {f"{one.task}, seed {one.seed}": f"{one.mode}: {one.reason}" for one in found}
    context["cells"] = queries_tables.cells_of(found)
    context["left_out"] = left_out
    context["measured_by_earlier_code"] = {f"{one.task}, seed {one.seed}": one.older for one in found if one.older}
    code = report.finish(options, figures, targets, context)
    complete = options.check and not (options.tasks or options.quick)
    return code if not complete or report.all_measured(figures, queries_tables.TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())
