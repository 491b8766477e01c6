"""What a fit found and promises, as plain data and in sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from detectors.calibration.examination import Examination
from detectors.policy import Mode


@dataclass(frozen=True, slots=True)
class FitReport:
    """The outcome of a fit, or of the calibration of what was fitted. Every number is about what is called a week.

    Attributes
    ----------
    mode : {"tickets", "at-once", "intent"}
    reason : str
        Why this mode.
    budget, budget_clients, budget_index, budget_population : int
        N false pages a week, and its split.
    risk : float
        Chance that a week has more, over calibration and coming week together.
    client_weeks, clients_per_week : int
        m of the calibration, C of a week to come.
    client_weeks_needed : int
        The fewest with which clients may page within this budget.
    rank : int
        j: thresholds are the j-th largest maxima; 0 where nothing pages.
    expected_pages, excess : float
        Mean number of false pages a week, and chance of more than the budget, by the beta-binomial count.
    expected_tickets : float
        Mean number of benign clients with a ticket a week, repeaters included, as counted in the calibration.
    partition_weeks, partition_weeks_needed : int
        Of the index.
    thresholds : dict of str to float
        ``client-cluster``, ``client-opposite``, ``index-cluster``, ``input-row`` (tickets), ``input-sequence``,
        ``page_score``.
    fastest : dict of str to (int or None)
        Queries until the fastest possible page (ticket) by rule; None where it can't be reached.
    repeaters : tuple of str
        Client hashes (16 hex digits) that repeat themselves in the benign history: they may ticket.
    proposed_repeaters : tuple of str
        Benign clients that would page for all that; a responder should look at them.
    would_page : int
        Client-weeks of the calibration beyond the paging thresholds.
    detectors : tuple of str
    fusion : str
        ``logistic`` (weighed by given crafted rows), ``rehearsed`` (by rows crafted at the fit, hedged) or ``mean``
        (mean of e-values, which learns no weights).
    weights : tuple of float
        Of the detectors in the fusion.
    between_clients : float
        Share of the variance of normal scores that lies between clients: of the fit's or of the pilot's.
    tau : float
        Weight of the prior of the client residual, in rows; of the fit, whatever has been calibrated since.
    rows : dict of str to int
        Sizes of pools and tables.
    notes : tuple of str
        What weakens the promise.
    data_digest : str
        Hex digest of the rows that it was fitted and calibrated on.
    examination : Examination or None
        Of single inputs; None in the bundles of older releases.
    more : tuple of str
        What more benign data would buy, a sentence each.
    calibrated : bool
        Whether thresholds are those of a pilot (`recalibration`): then detectors, weights, `tau`, and of the
        examination all but the uniformity of p-values, are of the fit before it.
    """

    mode: Mode
    reason: str
    budget: int
    budget_clients: int
    budget_index: int
    budget_population: int
    risk: float
    client_weeks: int
    clients_per_week: int
    client_weeks_needed: int
    rank: int
    expected_pages: float
    excess: float
    expected_tickets: float
    partition_weeks: int
    partition_weeks_needed: int
    thresholds: dict[str, float]
    fastest: dict[str, int | None]
    repeaters: tuple[str, ...]
    proposed_repeaters: tuple[str, ...]
    would_page: int
    detectors: tuple[str, ...]
    fusion: str
    weights: tuple[float, ...]
    between_clients: float
    tau: float
    rows: dict[str, int]
    notes: tuple[str, ...]
    data_digest: str
    examination: Examination | None = None
    more: tuple[str, ...] = ()
    calibrated: bool = False

    @property
    def pages(self) -> bool:
        """Whether anything can page."""
        return self.mode != "tickets"

    @property
    def index_pages(self) -> str:
        """What the index of all accounts may do, in words."""
        if not self.pages:
            return "tickets only"
        wanted = f"{self.partition_weeks} partition-weeks, of {self.partition_weeks_needed} with which it would"
        if self.partition_weeks >= self.partition_weeks_needed:
            return "pages on a budget of its own"
        if self.mode == "intent":
            return f"its pages count as clients' ({wanted} page by itself), and rows without a client only ticket"
        return f"tickets only, but for clients beyond their own thresholds ({wanted} page by itself)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        lists = ("repeaters", "proposed_repeaters", "detectors", "weights", "notes")
        examined = data.get("examination")
        return cls(
            **{
                **data,
                **{name: tuple(data[name]) for name in lists},
                "more": tuple(data.get("more", ())),
                "examination": None if examined is None else Examination.from_dict(examined),
            }
        )

    @property
    def tickets_a_week(self) -> str:
        """Benign clients with a ticket a week, in words."""
        if not self.client_weeks:
            return "not known before benign events of real clients are given"
        return f"about {self.expected_tickets:.2g} benign clients a week"

    def sentences(self) -> list[str]:
        """The report for a person, a line each."""
        lines = [f"mode: {self.mode} - {self.reason}"]
        if self.pages:
            lines.append(
                f"budget: at most {self.budget} false pages a week in all but {self.risk:.0%} of weeks "
                f"(clients {self.budget_clients}, index {self.budget_index}, population {self.budget_population})"
            )
            lines.append(
                f"thresholds: the {ordinal(self.rank)} largest of {self.client_weeks} benign client-weeks, for "
                f"{self.clients_per_week} clients a week; {self.expected_pages:.2g} false pages a week on average, "
                f"more than the budget with chance {self.excess:.2g}"
            )
        else:
            lines.append(f"budget: {self.budget} false pages a week; nothing pages yet, everything opens tickets")
        lines.append(
            "detectors: "
            + ", ".join(f"{name} {weight:.2f}" for name, weight in zip(self.detectors, self.weights, strict=True))
            + f" ({self.fusion})"
        )
        lines.append(
            f"clients: {self.between_clients:.0%} of the variance of scores lies between them; a client's own past "
            f"weighs against a prior of {self.tau:g} rows"
        )
        lines.append(f"tickets: {self.tickets_a_week}")
        for rule, queries in self.fastest.items():
            lines.append(f"fastest possible {rule}: " + ("never" if queries is None else f"{queries} queries"))
        if self.partition_weeks_needed > self.partition_weeks:
            lines.append(f"index: {self.index_pages}")
        if self.repeaters:
            lines.append(f"repeaters in the benign history: {len(self.repeaters)} ({', '.join(self.repeaters[:5])})")
        if self.proposed_repeaters:
            lines.append(
                "benign clients that would page, to be looked at and approved as repeaters: "
                + ", ".join(self.proposed_repeaters[:20])
            )
        return [*lines, *self.notes, *self.more]


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th ... ."""
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{last}"
