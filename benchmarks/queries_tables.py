"""Figures, targets, tables and plot of the benchmark of query attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from benchmarks.queries_attackers import PLANS, STRATEGIES
from benchmarks.queries_cells import BUDGET, Found, Hunt, Tuned
from benchmarks.queries_clients import KINDS, NEVER_KNOWN
from benchmarks.report import BOOTSTRAP_RESAMPLES, Figure, Target, write_between
from streams.probes.outcome import wilson

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: Cells of the tables, (benign queries beside each own, accounts), and their names.
CELLS = {
    (0, 1): "undiluted",
    (4, 1): "1:4",
    (20, 1): "1:20",
    (60, 1): "1:60",
    (0, 10): "10 accounts",
    (0, 100): "100 accounts",
}
#: Names of attacks that keep their queries apart.
APART = tuple(plan.name for plan in PLANS if plan.apart)
#: How often a strategy succeeds unmonitored that an attacker who tunes may choose.
GOOD_ENOUGH = 0.8

#: Most own queries to the median attacker's ticket, by cell.
MEDIANS = {"undiluted": 15.0, "1:4": 20.0}


def _told(
    where: str, level: str, share: float, apart: float, median: float, late: float | None, site: str = ""
) -> list[Target]:
    """Targets of both kinds of attacks: share seen, median and 90th percentile of queries."""
    found = []
    for word, least in (("worst", share), ("worst kept apart", apart)):
        found.append(Target(f"{site}{word} / {where}: {level}", ">=", least))
        found.append(Target(f"{site}{word} / {where}: queries to {level}, median", "<=", median))
        if late is not None:
            found.append(Target(f"{site}{word} / {where}: queries to {level}, p90", "<=", late))
    return found


#: What the streams must hold, row by row; "worst" is over attacks and tasks, those that keep apart by themselves.
TARGETS = (
    *(
        target
        for where, median in MEDIANS.items()
        for target in (
            *_told(where, "ticket", 0.995, 0.95, median, 40.0),
            *_told(where, "page", 0.95, 0.95, 60.0, None),
            Target(f"mean of the worst task / {where}: page", ">=", 0.97),
            *_told(where, "page", 0.995, 0.95, median, 40.0, "no repeaters / "),
        )
    ),
    Target("worst / 1:20: ticket", ">=", 0.97),
    Target("worst kept apart / 1:20: ticket", ">=", 0.60),
    Target("worst / 1:20: page", ">=", 0.80),
    Target("worst / 10 accounts: ticket", ">=", 0.90),
    Target("worst kept apart / 10 accounts: ticket", ">=", 0.90),
    Target("ordinary clients: pages a week", "<=", BUDGET),
    Target("no repeaters / ordinary clients: pages a week", "<=", BUDGET),
    *(Target(f"{kind}, left out: paged", "<=", 0.05) for kind in KINDS),
    *(Target(f"{kind}, in the history: paged", "<=", 0.05) for kind in KINDS if kind not in NEVER_KNOWN),
    Target("tuned attacker, worst task: success before a page", "<=", 0.04),
    Target("tuned attacker, least over tasks: success unmonitored", ">=", 0.80),
    Target("least lead over a baseline at the same budget", ">=", 0.0),
    Target("least lead over a baseline at the same budget, mean over attacks", ">=", 0.0),
    Target("least lead over a baseline at the same budget, worst over attacks", ">=", 0.0),
)
#: The setting of baselines that Vedette is measured against.
SAME_BUDGET = "same budget"

Queries = list[list[int | None]]


@dataclass(frozen=True, slots=True)
class Cell:
    """Attackers of one cell, a list a seed: own queries until the first ticket or page.

    Attributes
    ----------
    queries : int
        Own queries that were watched; one more stands for never.
    """

    seen: Queries
    queries: int

    @property
    def hits(self) -> int:
        return sum(found is not None for seed in self.seen for found in seed)

    @property
    def total(self) -> int:
        return sum(len(seed) for seed in self.seen)

    @property
    def share(self) -> float:
        """Share of attackers seen."""
        return self.hits / self.total

    def values(self) -> list[NDArray[np.float64]]:
        """Queries by seed."""
        never = self.queries + 1
        return [np.array([never if found is None else found for found in seed], dtype=np.float64) for seed in self.seen]

    def quantile(self, share: float) -> float:
        """Over all attackers, the unseen ones included."""
        return float(np.quantile(np.concatenate(self.values()), share, method="higher"))

    def interval(self, share: float, rng: np.random.Generator) -> tuple[float, float]:
        """95 % interval of a quantile: seeds are drawn anew, then attackers of each."""
        values = np.array(self.values())
        turns, (seeds, attackers) = BOOTSTRAP_RESAMPLES // 4, values.shape
        drawn = rng.integers(seeds, size=(turns, seeds, 1)), rng.integers(attackers, size=(turns, seeds, attackers))
        found = np.quantile(values[drawn].reshape(turns, -1), share, axis=1)
        low, high = np.percentile(found, [2.5, 97.5])
        return float(low), float(high)


def cell_of(found: Sequence[Found], pick: Callable[[Hunt], list[int | None]], wanted: Callable[[Hunt], bool]) -> Cell:
    """The cell that `wanted` names, over seeds."""
    seen = [pick(hunt) for one in found for hunt in one.hunts if wanted(hunt)]
    return Cell(seen, found[0].settings.queries)


def ours(found: Sequence[Found], attack: str, place: tuple[int, int], page: bool, repeaters: bool = True) -> Cell:
    """Vedette's cell of one task."""
    return cell_of(
        found,
        lambda hunt: hunt.pages if page else hunt.tickets,
        lambda hunt: (
            (hunt.scheme, hunt.attack, hunt.each, hunt.accounts, hunt.repeaters)
            == ("Vedette", attack, *place, repeaters)
        ),
    )


def theirs(
    found: Sequence[Found], key: tuple[str, str], attack: str, place: tuple[int, int], repeaters: bool = True
) -> Cell:
    """A baseline's cell of one task."""
    return cell_of(
        found,
        lambda hunt: hunt.pages,
        lambda hunt: (
            (hunt.scheme, hunt.setting, hunt.attack, hunt.each, hunt.accounts, hunt.repeaters)
            == (*key, attack, *place, repeaters)
        ),
    )


def by_task(found: Sequence[Found]) -> dict[str, list[Found]]:
    """Seeds of each task."""
    tasks: dict[str, list[Found]] = {}
    for one in found:
        tasks.setdefault(one.task, []).append(one)
    return tasks


def settings_of(found: Sequence[Found], repeaters: bool = True) -> list[tuple[str, str]]:
    """Baselines and their settings."""
    hunts = [hunt for hunt in found[0].hunts if hunt.setting and hunt.repeaters == repeaters]
    return list(dict.fromkeys((hunt.scheme, hunt.setting) for hunt in hunts))


def rival_places(found: Sequence[Found], repeaters: bool = True) -> list[tuple[int, int]]:
    """Cells in which baselines were judged, in the order of `CELLS`."""
    seen = {(hunt.each, hunt.accounts) for hunt in found[0].hunts if hunt.setting and hunt.repeaters == repeaters}
    return [place for place in CELLS if place in seen]


def share_figure(name: str, hits: int, total: int) -> Figure:
    """A share with Wilson's interval."""
    return Figure(name, hits / total, *wilson(hits, total))


def stream_figures(found: Sequence[Found], rng: np.random.Generator, repeaters: bool = True) -> list[Figure]:
    """Worst and mean over attacks: of each task, and of all; at sites with or without repeaters."""
    figures = []
    every: dict[tuple[str, bool], list[tuple[str, Cell, Cell]]] = {}
    site, cells = "", CELLS
    if not repeaters:
        site, cells = "no repeaters / ", {place: CELLS[place] for place in rival_places(found, repeaters)}
    for name, some in by_task(found).items():
        for place, where in cells.items():
            for plan in PLANS:
                tickets, pages = (ours(some, plan.name, place, page, repeaters) for page in (False, True))
                every.setdefault((where, plan.apart), []).append((name, tickets, pages))
    means: dict[str, list[tuple[int, int]]] = {}
    for prefix, chosen in [*((f"{site}{name} / ", name) for name in by_task(found)), (site, None)]:
        for where in cells.values():
            for apart, word in ((False, "worst"), (True, "worst kept apart")):
                rows = [row for row in every[where, apart] if chosen in (None, row[0])]
                figures += _extremes(f"{prefix}{word} / {where}", rows, rng)
            both = [row for apart in (False, True) for row in every[where, apart] if chosen in (None, row[0])]
            hits, total = sum(row[2].hits for row in both), sum(row[2].total for row in both)
            figures.append(share_figure(f"{prefix}mean / {where}: page", hits, total))
            means.setdefault(where, []).append((hits, total))
    for where, of_tasks in means.items():
        worst = min(of_tasks, key=lambda mean: mean[0] / mean[1])
        figures.append(share_figure(f"{site}mean of the worst task / {where}: page", *worst))
    return figures


def _extremes(label: str, rows: Sequence[tuple[str, Cell, Cell]], rng: np.random.Generator) -> list[Figure]:
    """Least share, and largest median and 90th percentile of queries, of tickets and pages."""
    figures = []
    for level, cells in (("ticket", [row[1] for row in rows]), ("page", [row[2] for row in rows])):
        least = min(cells, key=lambda cell: cell.share)
        figures.append(share_figure(f"{label}: {level}", least.hits, least.total))
        for share, told in ((0.5, "median"), (0.9, "p90")):
            slowest = max(cells, key=lambda cell: cell.quantile(share))
            name = f"{label}: queries to {level}, {told}"
            figures.append(Figure(name, slowest.quantile(share), *slowest.interval(share, rng)))
    return figures


def weekly_figure(name: str, found: Sequence[Found], repeaters: bool) -> Figure:
    """Ordinary clients paged a week, mean over weeks of tasks and seeds, with Poisson's exact interval (Garwood 1936).

    The budget of every week is N whatever its clients, so the bound on the mean is N.
    """
    rows = [
        row
        for one in found
        for row in one.benign
        if (row.scheme, row.kind, row.repeaters) == ("Vedette", "", repeaters)
    ]
    pages, weeks = sum(row.pages for row in rows), len(rows)
    low = float(chi2.ppf(0.025, 2 * pages)) / 2 if pages else 0.0
    return Figure(name, pages / weeks, low / weeks, float(chi2.ppf(0.975, 2 * pages + 2)) / (2 * weeks))


def benign_rows(
    found: Sequence[Found], key: tuple[str, str], kind: str, known: bool | None, repeaters: bool = True
) -> tuple[int, int, int]:
    """Clients of a kind, and how many of them ticketed and paged; `known` None takes all."""
    rows = [
        row
        for one in found
        for row in one.benign
        if (row.scheme, row.setting, row.kind, row.repeaters) == (*key, kind, repeaters) and known in (None, row.known)
    ]
    return sum(row.clients for row in rows), sum(row.tickets for row in rows), sum(row.pages for row in rows)


def benign_figures(found: Sequence[Found]) -> list[Figure]:
    """Ordinary clients, and special ones of kinds that the history did not hold and that it held; also by task."""
    figures = _benign_figures("", found)
    if len(by_task(found)) > 1:
        figures += [figure for name, some in by_task(found).items() for figure in _benign_figures(f"{name} / ", some)]
    return figures


def _benign_figures(prefix: str, found: Sequence[Found]) -> list[Figure]:
    figures = []
    for kind, known in [("", None), *((kind, known) for known in (False, True) for kind in KINDS)]:
        clients, tickets, pages = benign_rows(found, ("Vedette", ""), kind, known)
        if clients:
            told = "ordinary clients" if kind == "" else f"{kind}, {'in the history' if known else 'left out'}"
            name = f"{prefix}{told}"
            figures.append(share_figure(f"{name}: paged", pages, clients))
            figures.append(share_figure(f"{name}: ticketed", tickets, clients))
            if kind == "":
                figures.append(weekly_figure(f"{name}: pages a week", found, repeaters=True))
    return figures


def pooled(found: Sequence[Found], strategy: str, part: str) -> Tuned:
    """One strategy over seeds."""
    some = [row for one in found for row in one.tuned if (row.strategy, row.part) == (strategy, part)]
    successes = [success for row in some for success in row.successes]
    return Tuned(strategy, part, successes, [page for row in some for page in row.pages])


def chosen_strategy(found: Sequence[Found]) -> str:
    """What the attacker takes after tuning: of what succeeds often enough, what succeeds most often unseen."""
    tried = [pooled(found, plan.name, "tuning") for plan in STRATEGIES]
    good = [one for one in tried if one.unmonitored >= GOOD_ENOUGH]
    if good:
        return max(good, key=lambda one: (one.unseen, one.unmonitored)).strategy
    return max(tried, key=lambda one: (one.unmonitored, one.unseen)).strategy


def tuned_figures(found: Sequence[Found]) -> list[Figure]:
    """Of each task, and the worst."""
    figures, rows = [], []
    for name, some in by_task(found).items():
        one = pooled(some, chosen_strategy(some), "report")
        successes, total = round(one.unmonitored * len(one.successes)), len(one.successes)
        figures.append(share_figure(f"{name} / tuned attacker: success before a page", one.wins, total))
        figures.append(share_figure(f"{name} / tuned attacker: success unmonitored", successes, total))
        rows.append((one.wins, successes, total))
    wins, _, total = max(rows, key=lambda row: row[0] / row[2])
    figures.append(share_figure("tuned attacker, worst task: success before a page", wins, total))
    _, successes, total = min(rows, key=lambda row: row[1] / row[2])
    figures.append(share_figure("tuned attacker, least over tasks: success unmonitored", successes, total))
    return figures


def plain_figures(found: Sequence[Found], rng: np.random.Generator) -> list[Figure]:
    """A site without repeaters: attackers, and ordinary clients."""
    if not rival_places(found, repeaters=False):
        return []
    figures = stream_figures(found, rng, repeaters=False)
    clients, tickets, pages = benign_rows(found, ("Vedette", ""), "", None, repeaters=False)
    if clients:
        figures.append(share_figure("no repeaters / ordinary clients: paged", pages, clients))
        figures.append(share_figure("no repeaters / ordinary clients: ticketed", tickets, clients))
        figures.append(weekly_figure("no repeaters / ordinary clients: pages a week", found, repeaters=False))
    return figures


@dataclass(frozen=True, slots=True)
class Duel:
    """Vedette and a baseline against the same attackers, one cell of one task.

    Attributes
    ----------
    hits, others : int
        Attackers that Vedette pages, and the baseline.
    total : int
    median, other_median : float
        Own queries until the page.
    """

    task: str
    attack: str
    place: tuple[int, int]
    hits: int
    others: int
    total: int
    median: float
    other_median: float

    @property
    def lead(self) -> float:
        """Share of attackers by which Vedette is ahead."""
        return (self.hits - self.others) / self.total

    @property
    def slower(self) -> bool:
        """Whether the baseline needs fewer queries at the median; never is more than were watched."""
        return self.median > self.other_median


def duels(found: Sequence[Found], key: tuple[str, str], repeaters: bool = True) -> list[Duel]:
    """Every cell in which this baseline was judged."""
    rows = []
    for name, some in by_task(found).items():
        for place in rival_places(found, repeaters):
            for plan in PLANS:
                their = theirs(some, key, plan.name, place, repeaters)
                whole = ours(some, plan.name, place, page=True, repeaters=repeaters)
                pairs = zip(whole.seen, their.seen, strict=True)
                mine = Cell([seed[: len(other)] for seed, other in pairs], whole.queries)
                counts = mine.hits, their.hits, their.total
                rows.append(Duel(name, plan.name, place, *counts, mine.quantile(0.5), their.quantile(0.5)))
    return rows


def gathered(rows: Sequence[Duel]) -> dict[str, list[Duel]]:
    """Duels of every row of the table against baselines: each attack, then the mean and the worst over attacks.

    The mean pools the attackers of a task, with means of medians; the worst sets Vedette's worst attack beside the
    baseline's worst one.
    """
    found = {plan.name: [row for row in rows if row.attack == plan.name] for plan in PLANS}
    mean, worst = [], []
    for task, place in dict.fromkeys((row.task, row.place) for row in rows):
        some = [row for row in rows if (row.task, row.place) == (task, place)]
        hits, others, total = (sum(getattr(row, name) for row in some) for name in ("hits", "others", "total"))
        medians = np.mean([row.median for row in some]), np.mean([row.other_median for row in some])
        mean.append(Duel(task, "mean", place, hits, others, total, float(medians[0]), float(medians[1])))
        hits, others, total = (min(getattr(row, name) for row in some) for name in ("hits", "others", "total"))
        slowest = max(row.median for row in some), max(row.other_median for row in some)
        worst.append(Duel(task, "worst", place, hits, others, total, *slowest))
    return found | {"mean over attacks": mean, "worst over attacks": worst}


def sites(found: Sequence[Found]) -> list[bool]:
    """Whether sites with repeaters (True) and without (False) were measured against baselines."""
    return [repeaters for repeaters in (True, False) if rival_places(found, repeaters)]


def rival_figures(found: Sequence[Found]) -> list[Figure]:
    """Least lead of our share of pages over that of each baseline, over tasks, attacks and cells.

    At the same budget also of the mean and of the worst over attacks, and the share of rows that are better or equal.
    """
    figures: list[Figure] = []
    rows_of: dict[str, list[Duel]] = {}
    for repeaters in sites(found):
        prefix = "" if repeaters else "no repeaters / "
        for key in settings_of(found, repeaters):
            rows = gathered(duels(found, key, repeaters))
            single = [row for plan in PLANS for row in rows[plan.name]]
            figures.append(Figure(f"{prefix}least lead over {key[0]}, {key[1]}", min(row.lead for row in single)))
            if key[1] == SAME_BUDGET:
                rows_of.setdefault("", []).extend(single)
                for name in ("mean over attacks", "worst over attacks"):
                    rows_of.setdefault(f", {name}", []).extend(rows[name])
    for name, some in rows_of.items():
        figures.append(Figure(f"least lead over a baseline at the same budget{name}", min(row.lead for row in some)))
        for word, count in (
            ("not behind", sum(row.lead >= 0 for row in some)),
            ("slower than", sum(row.slower for row in some)),
        ):
            figures.append(Figure(f"rows {word} a baseline at the same budget{name}", count / len(some)))
    return figures


def figures_of(found: Sequence[Found], rng: np.random.Generator) -> tuple[list[Figure], list[Target]]:
    """Everything, and the targets there are figures for."""
    figures = [*stream_figures(found, rng), *benign_figures(found), *tuned_figures(found), *rival_figures(found)]
    figures += plain_figures(found, rng)
    names = {figure.name for figure in figures}
    return figures, [target for target in TARGETS if target.figure in names]


def cells_of(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Every cell, for programs."""
    rows = []
    for name, some in by_task(found).items():
        for place, where in CELLS.items():
            for plan in PLANS:
                row: dict[str, Any] = {"task": name, "attack": plan.name, "cell": where}
                for page, level in ((False, "ticket"), (True, "page")):
                    cell = ours(some, plan.name, place, page)
                    row |= {"attackers": cell.total, level: cell.share}
                    row |= {f"{level}_median": cell.quantile(0.5), f"{level}_p90": cell.quantile(0.9)}
                rows.append(row)
    return rows


def _percent(hits: int, total: int) -> str:
    low, high = wilson(hits, total)
    return f"{100 * hits / total:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _queries(cell: Cell, share: float) -> str:
    value = cell.quantile(share)
    return "never" if value > cell.queries else f"{value:.0f}"


def stream_tables(found: Sequence[Found]) -> list[str]:
    """A table a task: shares, medians and 90th percentiles."""
    lines = []
    for name, some in by_task(found).items():
        rows = []
        for plan in PLANS:
            row = [plan.name]
            for place in CELLS:
                for page in (False, True):
                    cell = ours(some, plan.name, place, page)
                    row.append(f"{_percent(cell.hits, cell.total)} {_queries(cell, 0.5)}/{_queries(cell, 0.9)}")
            rows.append(row)
        settings, first = some[0].settings, ours(some, PLANS[0].name, (0, 1), page=True)
        spread = ours(some, PLANS[0].name, (0, 10), page=True)
        told = (
            f"**{name}**: {len(some)} seed{'s' if len(some) > 1 else ''}, {first.total} attackers a cell "
            f"({spread.total} at 1:60, and campaigns over many accounts), "
            f"N = 1 page a week of {settings.clients} clients."
        )
        head = ["attack", *(f"{where}: {level}" for where in CELLS.values() for level in ("ticket", "page"))]
        lines += [told, "", *_table(head, rows)]
    return lines


def plain_tables(found: Sequence[Found]) -> list[str]:
    """A site without repeaters: one row an attack, shares paged and their queries."""
    told = (
        "A site without repeaters, in history and in traffic, where a crossed threshold pages: share of attackers "
        "paged, median / 90th percentile of own queries; then baselines there, and ordinary clients paged:"
    )
    places, tasks = rival_places(found, repeaters=False), by_task(found)
    rows = []
    for plan in PLANS:
        cells = [ours(some, plan.name, place, True, False) for some in tasks.values() for place in places]
        shares = [f"{_percent(cell.hits, cell.total)} {_queries(cell, 0.5)}/{_queries(cell, 0.9)}" for cell in cells]
        rows.append([plan.name, *shares])
    return [told, "", *_table(["attack", *(f"{name}: {CELLS[place]}" for name in tasks for place in places)], rows)]


def benign_table(found: Sequence[Found]) -> list[str]:
    """Benign clients: paged and ticketed, kinds the history did not hold and those it held."""
    tasks = by_task(found)
    rows = []
    for kind in ("", *KINDS):
        row = [kind or "ordinary clients"]
        for some in tasks.values():
            parts = []
            for known, word in ((None, ""),) if kind == "" else ((False, ""), (True, "known: ")):
                clients, tickets, pages = benign_rows(some, ("Vedette", ""), kind, known)
                if clients:
                    parts.append(f"{word}{pages} / {tickets} of {clients}")
            row.append("; ".join(parts))
        rows.append(row)
    return _table(["benign clients, paged / ticketed in a week", *tasks], rows)


def tuned_table(found: Sequence[Found]) -> list[str]:
    """The attacker who tunes: what it chose, and the strategy that was best on report rows, as an upper bound."""
    rows = []
    for name, some in by_task(found).items():
        one = pooled(some, chosen_strategy(some), "report")
        tried = [pooled(some, plan.name, "report") for plan in STRATEGIES]
        best = max(tried, key=lambda row: row.unseen)
        total = len(one.successes)
        rows.append(
            [
                name,
                one.strategy,
                _percent(round(one.unmonitored * total), total),
                _percent(one.wins, total),
                f"{best.strategy}: {_percent(best.wins, total)}, unmonitored {100 * best.unmonitored:.0f} %",
            ]
        )
    head = ["task", "chosen on tuning rows", "succeeds unmonitored", "before a page", "best of all on report rows"]
    return _table(head, rows)


def rival_table(found: Sequence[Found], repeaters: bool = True) -> list[str]:
    """Baselines beside Vedette: mean and worst share of attackers paged, and benign clients paged."""
    tasks = by_task(found)
    rows = []
    for key in [("Vedette", ""), *settings_of(found, repeaters)]:
        row = [" ".join(key).strip() if not key[1] else f"{key[0]}, {key[1]}"]
        for some in tasks.values():
            parts = []
            for place in rival_places(found, repeaters):
                cells = [
                    theirs(some, key, plan.name, place, repeaters)
                    if key[1]
                    else ours(some, plan.name, place, page=True, repeaters=repeaters)
                    for plan in PLANS
                ]
                mean = sum(cell.hits for cell in cells) / sum(cell.total for cell in cells)
                parts.append(f"{100 * mean:.0f} ({100 * min(cell.share for cell in cells):.0f})")
            plain = benign_rows(some, key, "", None, repeaters)
            false = f"{100 * plain[2] / max(1, plain[0]):.1f}"
            if repeaters:
                special = [benign_rows(some, key, kind, None) for kind in KINDS]
                paged, clients = sum(pages for _, _, pages in special), sum(clients for clients, _, _ in special)
                false += f", {100 * paged / max(1, clients):.0f}"
            row.append(f"{', '.join(parts)}; {false}")
        rows.append(row)
    return _table(["% paged", *tasks], rows)


def _verdict(rows: Sequence[Duel]) -> str:
    """One cell of the table against baselines: a row a task."""
    behind = ", ".join(f"{row.task} {100 * row.lead:.0f}" for row in rows if row.lead < 0)
    ahead = sum(row.lead > 0 for row in rows)
    slower = sum(row.slower for row in rows)
    verdict = f"**behind**: {behind}" if behind else "better" if ahead == len(rows) else "better or equal"
    return f"{verdict}; slower on {slower}" if slower else verdict


def against_table(found: Sequence[Found], repeaters: bool = True) -> list[str]:
    """Every attack and dilution against every baseline at the same budget: where Vedette is behind or slower."""
    keys = [key for key in settings_of(found, repeaters) if key[1] == SAME_BUDGET]
    against = {key: gathered(duels(found, key, repeaters)) for key in keys}
    rows = []
    for place in rival_places(found, repeaters):
        for name in (*(plan.name for plan in PLANS), "mean over attacks", "worst over attacks"):
            told = []
            for key in keys:
                some = [row for row in against[key][name] if row.place == place]
                told.append(_verdict(some))
            rows.append([f"{name}, {CELLS[place]}", *told])
    return _table(["paged at the same budget", *(name for name, _ in keys)], rows)


def text_of(found: Sequence[Found]) -> str:
    """All tables."""
    seeds = sorted({one.seed for one in found})
    told = (
        f"Seeds {', '.join(map(str, seeds))}. A cell: share of attackers (95 % Wilson interval), then median / 90th "
        f"percentile of own queries over all attackers; {found[0].settings.queries} own queries are watched."
    )
    older = {f"{one.task}, seed {one.seed}": len(one.older) for one in found if one.older}
    if older:
        parts = "; ".join(f"{name}: {count}" for name, count in older.items())
        told += f" Some parts were measured by earlier code ({parts})."
    where = ", ".join(CELLS[place] for place in rival_places(found))
    few = " / ".join(
        str(theirs(found[:1], settings_of(found)[0], PLANS[0].name, place).total) for place in rival_places(found)
    )
    rivals = (
        f"Baselines, with {few} of the attackers a seed: mean (worst) share of attackers paged over attacks, {where}; "
        "then ordinary clients paged a week, and clients of special kinds:"
    )
    against = (
        "Vedette against every baseline at the same budget, by the share of the same attackers that are paged, over "
        "all tasks; where it is behind, on which, and by how many points; and on how many the baseline's median of own "
        "queries is less:"
    )
    kinds = (
        "Clients of special kinds by an ensemble whose history did not hold their kind, and by one whose did (known). "
        "Each seed has two histories, each with half of the kinds, and the same clients meet both:"
    )
    lines = [told, "", *stream_tables(found)]
    lines += [kinds, "", *benign_table(found)]
    lines += ["The attacker who tunes:", "", *tuned_table(found), rivals, "", *rival_table(found)]
    lines += [against, "", *against_table(found)]
    if False in sites(found):
        lines += [*plain_tables(found), *rival_table(found, repeaters=False), against, ""]
        lines += against_table(found, repeaters=False)
    return "\n".join(lines).rstrip()


def plot(found: Sequence[Found], path: Path) -> None:
    """Median own queries to ticket (hollow) and page (filled), a panel a task, a colour a dilution."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tasks = by_task(found)
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.0 * len(tasks) + 1.2, 4.2), sharey=True, squeeze=False)
    names = [plan.name for plan in PLANS]
    for axis, (name, some) in zip(axes[0], tasks.items(), strict=True):
        for number, (place, where) in enumerate(CELLS.items()):
            for page in (False, True):
                medians = [ours(some, attack, place, page).quantile(0.5) for attack in names]
                rows = [at + 0.18 * (number - 1.5) for at in range(len(names))]
                style = "full" if page else "none"
                label = f"{where}, {'page' if page else 'ticket'}"
                axis.plot(medians, rows, "o", color=f"C{number}", fillstyle=style, markersize=5, label=label)
        never = some[0].settings.queries + 1
        axis.axvline(never, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.set_xlim(2, 1.15 * never)
        axis.set_title(name)
        axis.set_xlabel("median own queries (dotted: never)")
        axis.grid(alpha=0.3)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", ncols=4 if len(tasks) > 1 else 2, frameon=False, fontsize="small"
    )
    figure.tight_layout(rect=(0, 0, 1, 0.88 if len(tasks) > 1 else 0.8))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def write(found: Sequence[Found]) -> None:
    """Put the tables into docs/detection.md and the plot beside it."""
    picture = "![Median own queries to ticket and page by attack](images/detection-streams.svg)"
    write_between(DOCS / "detection.md", "streams", f"{text_of(found)}\n\n{picture}\n")
    plot(found, DOCS / "images" / "detection-streams.svg")
