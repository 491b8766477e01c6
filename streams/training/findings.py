"""The outcome of a fit or a calibration, for a person and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detectors.calibration.examination import CONFIDENCE, FUSED, RATE, Examination, LeftOut, Source
from detectors.calibration.report import FitReport, ordinal
from detectors.manifest import Origin

#: The weekly count of false pages lies between these quantiles in 90 % of weeks.
QUANTILES = (0.05, 0.95)
#: Numbers of false pages beyond this chance are not shown.
RAREST = 1e-3
#: Where the weights of detectors come from.
WEIGHED_BY = {
    "logistic": "weights from crafted rows",
    "rehearsed": "weights from attacks rehearsed at the fit",
    "mean": "mean of e-values",
}
#: What the crafted rows of ROC curves are.
CRAFTED_FROM: dict[Source, str] = {
    "none": "no crafted rows were held out",
    "probes": "the given probes, of which nothing was learned",
    "rehearsed": "rehearsed on benign rows that set no table, such as change the surrogate's answer",
}
#: Clients that are named at most, and numbers of false pages that the terminal tells one by one.
SHOWN_CLIENTS, SHOWN_COUNTS = 20, 7
#: Columns of the terminal that the table of detectors takes whole, and what its last ones are.
WIDE_TABLE, FARTHEST = 96, "Then the class that is farthest."
#: Said of C where there were no benign events.
UNCOUNTED = "without benign events C is what --clients-per-week says, or else the stand-ins made of reference rows"
#: Said of what a calibration takes over.
OF_THE_FIT = " (of the fit)"


@dataclass(frozen=True, slots=True)
class Findings:
    """What was made, and what is promised of it.

    Attributes
    ----------
    bundle : str
        Where it was written.
    digest : str
        Identity of its content.
    report : FitReport
    week_seconds : float
        Length of what the report calls a week.
    events, clients : int
        Benign events and their clients; 0 where there were none.
    seconds : float
        What it took.
    notes : tuple of str
        Beside those of the report.
    origin : Origin
        The watched model, and what made the bundle.
    classes : tuple of str
        Names of the schema's classes.
    page : str or None
        Where the HTML page was written.
    """

    bundle: str
    digest: str
    report: FitReport
    week_seconds: float
    events: int
    clients: int
    seconds: float
    notes: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)
    classes: tuple[str, ...] = ()
    page: str | None = None

    @property
    def pages_a_week(self) -> tuple[int, int] | None:
        """False pages in 90 % of weeks, by the beta-binomial count; None where nothing pages."""
        from scipy.stats import betabinom

        report = self.report
        if not report.pages:
            return None
        low, high = betabinom.ppf(
            QUANTILES, report.clients_per_week, report.rank, report.client_weeks + 1 - report.rank
        )
        return int(low), int(high)

    @property
    def false_pages(self) -> list[tuple[int, float]]:
        """Chance of each number of false pages a week, exact; numbers too rare to matter are left out.

        Beta-binomial (C, j, m + 1 - j) over calibration and coming week together, where client-weeks are exchangeable.
        """
        from scipy.stats import betabinom

        report = self.report
        if not report.pages:
            return []
        rest = report.client_weeks + 1 - report.rank
        most = int(betabinom.isf(RAREST, report.clients_per_week, report.rank, rest))
        counts = range(max(most, report.budget_clients) + 1)
        return [(n, float(betabinom.pmf(n, report.clients_per_week, report.rank, rest))) for n in counts]

    @property
    def of_the_fit(self) -> str:
        """Marks what a calibration has taken over from the fit; empty in a fit's own report."""
        return OF_THE_FIT if self.report.calibrated else ""

    def class_name(self, label: int | None) -> str:
        """The schema's name of a class."""
        return self.classes[label] if label is not None and label < len(self.classes) else str(label)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        interval, examined = self.pages_a_week, self.report.examination
        left = None if examined is None else LeaveOneOut.of(examined.left_out)
        return {
            "bundle": self.bundle,
            "page": self.page,
            "digest": self.digest,
            "origin": asdict(self.origin),
            "week_seconds": self.week_seconds,
            "events": self.events,
            "clients": self.clients,
            "pages_a_week_90": None if interval is None else list(interval),
            "false_pages": [{"pages": number, "chance": chance} for number, chance in self.false_pages],
            "refused": refusals(self.report),
            "leave_one_out": None if left is None else asdict(left),
            "seconds": round(self.seconds, 2),
            **self.report.to_dict(),
            "notes": [*self.report.notes, *self.notes],
        }


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Mean and worst over attacks, each judged by weights of the others (`examination.LeftOut`)."""

    area_mean: float
    area_worst: float
    area_worst_attack: str
    found_mean: float
    found_worst: float
    found_worst_attack: str

    @classmethod
    def of(cls, attacks: Sequence[LeftOut]) -> Self | None:
        """None where there are none."""
        if not attacks:
            return None
        area, found = min(attacks, key=lambda one: one.area), min(attacks, key=lambda one: one.found)
        return cls(
            area_mean=sum(one.area for one in attacks) / len(attacks),
            area_worst=area.area,
            area_worst_attack=area.family,
            found_mean=sum(one.found for one in attacks) / len(attacks),
            found_worst=found.found,
            found_worst_attack=found.family,
        )


def show(found: Findings, console: Console) -> None:
    """Print it for a person."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines(found):
        table.add_row(name, Text(value))
    console.print(table)
    examined = found.report.examination
    if examined is not None and examined.uniformity:
        console.print(_singles(found, examined, narrow=console.width < WIDE_TABLE))


def _singles(found: Findings, examined: Examination, narrow: bool) -> Table:
    """Each detector: its weight, what it finds, and how far its p-values are from uniform.

    At most `WIDE_TABLE` columns; a narrow one leaves the farthest class out and needs 76.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", title_style="dim")
    table.title = Text(
        f"Single inputs. ROC{found.of_the_fit}: {CRAFTED_FROM[examined.source]}. KS: distance of benign p-values from "
        "uniform; small: the part that makes them too small (equal scores make p larger, which is safe), and its "
        "chance were rows independent. "
        + (f"For the class that is farthest too, {WIDE_TABLE} columns are needed." if narrow else FARTHEST)
    )
    names = ("detector", "weight", "AUC", f"TPR at {RATE:.0%}", "KS", "small", "chance", "class", "KS", "chance")
    shown = 7 if narrow else len(names)
    for name in names[:shown]:
        words, width = name in ("detector", "class"), 12 if name == "class" else 16
        table.add_column(name, justify="left" if words else "right", no_wrap=True, overflow="ellipsis", max_width=width)
    weights = dict(zip(found.report.detectors, found.report.weights, strict=True))
    curves = {one.detector: one for one in examined.curves}
    for name in (*found.report.detectors, FUSED):
        curve, whole, worst = curves.get(name), examined.overall(name), examined.farthest(name)
        cells = (
            Text(name),
            f"{weights[name]:.2f}" if name in weights else "",
            "" if curve is None else f"{curve.area:.3f}",
            "" if curve is None else f"{curve.at_rate:.1%}",
            "" if whole is None else f"{whole.distance:.3f}",
            "" if whole is None else f"{whole.excess:.3f}",
            "" if whole is None else chance_in_words(whole.chance),
            Text("" if worst is None else found.class_name(worst.label)),
            "" if worst is None else f"{worst.distance:.3f}",
            "" if worst is None else chance_in_words(worst.chance),
        )
        table.add_row(*cells[:shown])
    return table


def lines(found: Findings) -> list[tuple[str, str]]:
    """Everything found, as names and values for a person."""
    report = found.report
    loud = {"tickets": "tickets only", "at-once": "pages at once", "intent": "ticket, then page by the intent test"}
    told = [
        ("bundle", f"{found.bundle}  ({found.digest})"),
        ("model", found.origin.named() or "not named"),
        ("made by", found.origin.made_by() or "not known"),
        ("mode", f"{loud[report.mode]}: {report.reason}"),
        ("detectors", _weighed(report) + found.of_the_fit),
        ("reference rows", f"{report.rows.get('reference', 0):,}{found.of_the_fit}"),
        ("benign", f"{found.events:,} events of {found.clients:,} clients" if found.events else "none"),
        ("a week", period_in_words(found.week_seconds)),
        ("client-weeks m", f"{report.client_weeks:,}, for C = {report.clients_per_week:,} clients a week"),
    ]
    if report.client_weeks < report.client_weeks_needed:
        needed = f"{report.client_weeks_needed:,} client-weeks to page at this budget"
        told.append(("needed", needed if report.client_weeks else f"{needed} with C clients a week; {UNCOUNTED}"))
    interval = found.pages_a_week
    if interval is not None:
        told += [
            ("rank j", f"thresholds A are the {ordinal(report.rank)} largest client-week maxima"),
            (
                "false pages a week",
                f"{report.expected_pages:.2g} on average, {interval[0]} to {interval[1]} in 90 % of weeks",
            ),
            ("", _distribution(found)),
            ("", f"more than N = {report.budget_clients} of clients with chance {report.excess:.2g}"),
            (
                "budget N",
                f"{report.budget}, held in all but {report.risk:.0%} of weeks",
            ),
            (
                "split",
                f"clients {report.budget_clients}, index {report.budget_index}, population {report.budget_population}",
            ),
        ]
    told.append(("thresholds A", ", ".join(f"{name} {value:.4g}" for name, value in report.thresholds.items())))
    told.append(("tickets", report.tickets_a_week))
    told.append(
        (
            "between clients",
            f"{report.between_clients:.1%} of the variance of scores; prior of {report.tau:g} rows{found.of_the_fit}",
        )
    )
    told += [
        (f"fastest {rule}", "never" if queries is None else f"{queries} queries")
        for rule, queries in report.fastest.items()
    ]
    if report.partition_weeks < report.partition_weeks_needed:
        told.append(("index", report.index_pages))
    told += _examined(found)
    told += [
        ("repeaters seen", _named(report.repeaters)),
        ("proposed repeaters", _named(report.proposed_repeaters)),
        ("took", f"{found.seconds:.1f} s"),
    ]
    told += [("page", found.page)] if found.page is not None else []
    told += [("note", note) for note in (*report.notes, *found.notes)]
    return told + [("more data", sentence) for sentence in report.more]


def refusals(report: FitReport) -> list[str]:
    """What the data can't support, a sentence each."""
    told = []
    if not report.pages:
        told.append(f"Nothing pages: {report.reason}.")
    if not report.client_weeks:
        told.append(f"How many clients come a week isn't known: {UNCOUNTED}.")
    if report.partition_weeks < report.partition_weeks_needed:
        told.append(f"The account-oblivious index: {report.index_pages}.")
    if report.would_page > report.budget_clients:
        told.append(
            f"{report.would_page} benign client-weeks of the calibration would have paged; a responder should look at "
            "the proposed repeaters."
        )
    never = [rule for rule, queries in report.fastest.items() if queries is None]
    told += [f"No {rule} can ever be reached with so few calibration rows: give more benign events." for rule in never]
    return told


def _examined(found: Findings) -> list[tuple[str, str]]:
    """What was seen of single inputs beside the table of detectors."""
    examined = found.report.examination
    if examined is None:
        return []
    told, fit = [], found.of_the_fit
    if (fused := examined.fused) is not None:
        value = (
            f"AUC {fused.area:.3f}, TPR {fused.at_rate:.1%} at {RATE:.0%} FPR{fit}: {examined.crafted:,} rows, "
            f"{CRAFTED_FROM[examined.source]}; {examined.against:,} benign rows"
        )
        told.append(("single inputs", value))
    if (left := LeaveOneOut.of(examined.left_out)) is not None:
        value = (
            f"AUC {left.area_mean:.3f} on average, {left.area_worst:.3f} at worst ({left.area_worst_attack}); "
            f"TPR at {RATE:.0%} FPR {left.found_mean:.1%} on average, {left.found_worst:.1%} at worst "
            f"({left.found_worst_attack}); each of {len(examined.left_out)} attacks by weights of the others{fit}"
        )
        told.append(("left-out attacks", value))
    elif found.report.fusion == "logistic":
        told.append(("left-out attacks", "one attack was given; give several --crafted, or rows that name families"))
    if examined.fixed:
        bounds = ", ".join(f"{one.bound:.2%} at p <= {one.level:g}" for one in examined.fixed)
        rows = examined.fixed[0].rows
        value = f"FPR of the fused p-value at most {bounds}; {CONFIDENCE:.0%} sure, by {rows:,} rows{fit}"
        told.append(("fixed thresholds", value))
    return told


def _distribution(found: Findings) -> str:
    """Chances of the first numbers of false pages, and of more."""
    chances = found.false_pages[:SHOWN_COUNTS]
    rest = 1.0 - sum(chance for _, chance in chances)
    told = [f"P({number}) {chance:.3f}" for number, chance in chances]
    return "  ".join([*told, f"P(more) {max(rest, 0.0):.3f}"])


def chance_in_words(chance: float | None) -> str:
    """A chance in three figures at most."""
    if chance is None:
        return ""
    return f"{chance:.2f}" if chance >= 0.01 else f"{chance:.0e}" if chance >= 1e-99 else "0"


def _weighed(report: FitReport) -> str:
    weighed = zip(report.detectors, report.weights, strict=True)
    return ", ".join(f"{name} {weight:.2f}" for name, weight in weighed) + f" ({WEIGHED_BY[report.fusion]})"


def _named(clients: Sequence[str]) -> str:
    if not clients:
        return "none"
    more = "" if len(clients) <= SHOWN_CLIENTS else f" and {len(clients) - SHOWN_CLIENTS} more"
    return f"{len(clients)}: {', '.join(clients[:SHOWN_CLIENTS])}{more}"


def period_in_words(seconds: float) -> str:
    """A length of time in its largest whole unit."""
    for name, length in (("week", 604_800.0), ("day", 86_400.0), ("hour", 3_600.0), ("minute", 60.0)):
        if seconds >= length and seconds % length == 0:
            count = int(seconds // length)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{seconds:g} seconds"
