"""The outcome of a fit or a calibration, for a person and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
#: Clients that are named at most.
SHOWN_CLIENTS = 20


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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        interval = self.pages_a_week
        return {
            "bundle": self.bundle,
            "digest": self.digest,
            "origin": asdict(self.origin),
            "week_seconds": self.week_seconds,
            "events": self.events,
            "clients": self.clients,
            "pages_a_week_90": None if interval is None else list(interval),
            "seconds": round(self.seconds, 2),
            **self.report.to_dict(),
            "notes": [*self.report.notes, *self.notes],
        }


def show(found: Findings, console: Console) -> None:
    """Print it for a person."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines(found):
        table.add_row(name, Text(value))
    console.print(table)


def lines(found: Findings) -> list[tuple[str, str]]:
    """Everything found, as names and values for a person."""
    report = found.report
    loud = {"tickets": "tickets only", "at-once": "pages at once", "intent": "ticket, then page by the intent test"}
    told = [
        ("bundle", f"{found.bundle}  ({found.digest})"),
        ("model", found.origin.named() or "not named"),
        ("made by", found.origin.made_by() or "not known"),
        ("mode", f"{loud[report.mode]}: {report.reason}"),
        ("detectors", _weighed(report)),
        ("reference rows", f"{report.rows.get('reference', 0):,}"),
        ("benign", f"{found.events:,} events of {found.clients:,} clients" if found.events else "none"),
        ("a week", period_in_words(found.week_seconds)),
        ("client-weeks m", f"{report.client_weeks:,}, for C = {report.clients_per_week:,} clients a week"),
    ]
    if report.client_weeks < report.client_weeks_needed:
        told.append(("needed", f"{report.client_weeks_needed:,} client-weeks to page at this budget"))
    interval = found.pages_a_week
    if interval is not None:
        told += [
            ("rank j", f"thresholds A are the {ordinal(report.rank)} largest client-week maxima"),
            (
                "false pages a week",
                f"{report.expected_pages:.2g} on average, {interval[0]} to {interval[1]} in 90 % of weeks",
            ),
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
    told.append(("tickets a week", f"about {report.expected_tickets:.2g} benign clients"))
    told += [
        (f"fastest {rule}", "never" if queries is None else f"{queries} queries")
        for rule, queries in report.fastest.items()
    ]
    if report.partition_weeks < report.partition_weeks_needed:
        told.append(("index", report.index_pages))
    told += [
        ("repeaters seen", _named(report.repeaters)),
        ("proposed repeaters", _named(report.proposed_repeaters)),
        ("took", f"{found.seconds:.1f} s"),
    ]
    return told + [("note", note) for note in (*report.notes, *found.notes)]


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
