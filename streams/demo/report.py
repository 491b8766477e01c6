"""The figures of a demo, and what they must show."""

from __future__ import annotations

import math
import statistics

import msgspec

#: Records that the topic must hold, for each second of traffic (12,000 in a minute).
RECORDS_PER_SECOND = 200
#: Median of an attacker's own queries until the first ticket and the first page.
TICKET_QUERIES, PAGE_QUERIES = 20, 60
#: Most that the demo's budget may be.
BUDGET = 1
#: Probes of each attack that must have finished (inputs of bursts, campaigns), and how many must be detected.
PROBES = {"transfer_pgd": 20, "hop_skip_jump": 3}
RECALL = 0.9
#: From the broker's time of an event to its incident in Redis, 99 % quantile.
LATENCY_MS = 1000.0


class AttackerFigures(msgspec.Struct, frozen=True):
    """One attacker and how soon it was seen, in its own queries."""

    attack: str
    accounts: int
    diluted: int
    paged: bool
    """An open incident's evidence holds a page on events of this attacker."""
    queries_before_ticket: int | None
    queries_before_page: int | None


class RecallFigures(msgspec.Struct, frozen=True):
    """Probes of one attack: inputs of bursts, or campaigns; the interval is Wilson's, 95 %."""

    n: int
    detected: int
    low: float
    high: float


class LatencyFigures(msgspec.Struct, frozen=True):
    """From the broker's time of an event to the change of its incident; None where nothing was signalled."""

    p50: float | None
    p99: float | None


class Report(msgspec.Struct, frozen=True):
    """What `vedette demo --report` writes."""

    records_produced: int
    rows_scored: int
    rows_invalid: int
    rows_lost: int
    rows_double_counted: int
    attackers: list[AttackerFigures]
    budget_n: int
    benign_clients: int
    benign_clients_paged: int
    sensors_paged: int
    probe_recall: dict[str, RecallFigures]
    latency_ms: LatencyFigures
    startup_seconds: float


def judge(report: Report, seconds: float) -> list[str]:
    """What the main job did not show, a sentence each; empty when it did.

    Parameters
    ----------
    report : Report
    seconds : float
        Length of the traffic.
    """
    failed = []

    def must(holds: bool, sentence: str) -> None:
        if not holds:
            failed.append(sentence)

    wanted = math.floor(RECORDS_PER_SECOND * seconds)
    must(report.records_produced >= wanted, f"{report.records_produced:,} records were produced, not {wanted:,}")
    must(report.rows_scored > 0, "no row was scored")
    must(report.rows_invalid == 0, f"{report.rows_invalid:,} rows were refused although all were valid")
    must(report.rows_lost == 0, f"{report.rows_lost:,} rows were lost")
    must(report.rows_double_counted == 0, f"{report.rows_double_counted:,} rows were counted twice")
    must(bool(report.attackers), "there was no attacker")
    for attacker in report.attackers:
        must(attacker.paged, f"the attacker {attacker.attack} was not paged")
    ticket = median([attacker.queries_before_ticket for attacker in report.attackers])
    page = median([attacker.queries_before_page for attacker in report.attackers])
    must(ticket <= TICKET_QUERIES, f"the median attacker was ticketed after {ticket:g} queries, not {TICKET_QUERIES}")
    must(page <= PAGE_QUERIES, f"the median attacker was paged after {page:g} queries, not {PAGE_QUERIES}")
    must(report.budget_n <= BUDGET, f"the budget is {report.budget_n} false pages, not {BUDGET} at most")
    must(
        report.benign_clients_paged <= report.budget_n,
        f"{report.benign_clients_paged} benign clients were paged, the budget is {report.budget_n}",
    )
    must(report.sensors_paged == 0, f"{report.sensors_paged} sensors were paged")
    for attack, least in PROBES.items():
        found = report.probe_recall.get(attack)
        n = 0 if found is None else found.n
        must(n >= least, f"{n} probes of {attack} finished, not {least}")
        if found is not None and n:
            share = found.detected / n
            must(share >= RECALL, f"{share:.0%} of the probes of {attack} were detected, not {RECALL:.0%}")
    p99 = report.latency_ms.p99
    must(
        p99 is not None and p99 <= LATENCY_MS,
        "no signal became an incident" if p99 is None else f"99 % of signals took {p99:.0f} ms, not {LATENCY_MS:.0f}",
    )
    return failed


def median(values: list[int | None]) -> float:
    """The median; never seen counts as infinite."""
    return statistics.median([math.inf if value is None else value for value in values]) if values else math.inf
