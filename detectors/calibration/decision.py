"""From benign client-weeks to thresholds and a policy: what tickets, what pages, and what is promised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import order_statistics
from detectors.calibration.budget import Split, split
from detectors.calibration.evalues import updates_to_cross
from detectors.calibration.history import History
from detectors.calibration.order_statistics import RISK, Threshold
from detectors.calibration.thresholds import combine
from detectors.contract import Progress
from detectors.policy import Policy
from detectors.queries import walk as walking
from detectors.queries.intent import IntentTest
from detectors.queries.walk import Tables
from detectors.signals import client_name

#: Tickets a week that are accepted from ordinary clients: this share of them, or N if that is more.
TICKET_SHARE = 0.01
#: The index's ticket threshold is at least what three rows of full gain bring.
INDEX_FLOOR = 3.0 * walking.GAIN_CAP


@dataclass(frozen=True, slots=True)
class Decision:
    """Thresholds, what becomes of crossing them, and why.

    Attributes
    ----------
    thresholds : float64 (4,)
        Ticket A, ticket B, ticket index, sequential test.
    policy : Policy
    reason : str
    split : Split
    count : Threshold
        Of the statistic that pages (in tickets mode: that tickets).
    coming, needed, index_needed : int
        Clients a week; client-weeks and partition-weeks with which paging would be possible.
    expected_tickets : float
        Benign clients with a ticket a week.
    beyond : bool (m,)
        Client-weeks beyond the paging thresholds.
    fastest : dict of str to (int or None)
    """

    thresholds: NDArray[np.float64]
    policy: Policy
    reason: str
    split: Split
    count: Threshold
    coming: int
    needed: int
    index_needed: int
    expected_tickets: float
    beyond: NDArray[np.bool_]
    fastest: dict[str, int | None]


def decide(
    history: History,
    tables: Tables,
    intent: IntentTest,
    *,
    real: bool,
    budget: int,
    clients_per_week: int | None,
    partitions: int,
    progress: Progress,
) -> Decision:
    """Thresholds by order statistics of client-weeks.

    Parameters
    ----------
    history : History
    tables : Tables
        All but the thresholds.
    intent : IntentTest
    real : bool
        Whether the history is of real clients; a stand-in can't page.
    budget : int
        N.
    clients_per_week : int or None
    partitions : int
    progress : callable
    """
    coming = clients_per_week or max(1, history.clients_a_week)
    shares = split(budget, partitions, len(history.index) if real else 0)
    units = len(history.weeks)
    needed = order_statistics.units_needed(coming, shares.clients, shares.clients_risk)
    rank = order_statistics.best_rank(coming, units, shares.clients, shares.clients_risk) if real else 0
    index_ticket = max(INDEX_FLOOR, float(history.index.max()) if len(history.index) else 0.0)
    repeating = bool(history.repeating.any())
    beyond_none = np.zeros(units, dtype=np.bool_)

    if rank and not repeating:
        found = combine([history.same, history.opposite, history.sequence], rank, coming, shares.clients)
        a, b, sequence = found.values
        reason = (
            f"no client among {len(np.unique(history.weeks.clients))} repeats itself, so crossing a threshold is enough"
        )
        policy = Policy("at-once", 1.0, shares.index_pages)
        count = found.count
    else:
        ordinary = ~history.repeating if repeating and not history.repeating.all() else np.ones(units, dtype=np.bool_)
        accepted = max(budget, math.ceil(TICKET_SHARE * coming))
        ticket_rank = max(1, order_statistics.best_rank(coming, int(ordinary.sum()), accepted))
        clusters = [history.same[ordinary], history.opposite[ordinary]]
        if rank:
            a, b = combine(clusters, ticket_rank, coming, accepted).values
        else:
            found = combine([*clusters, history.sequence[ordinary]], ticket_rank, coming, accepted)
            a, b, sequence = found.values
            count = found.count
            policy = Policy("tickets")
            reason = _why_not(real, units, needed, coming, shares)
    thresholds = np.array([a, b, index_ticket, np.inf])
    tested = index_tested = None
    if rank and repeating:
        tested, index_tested = history.intentions(tables._replace(thresholds=thresholds), intent, progress)
        paging = combine([history.sequence, tested], rank, coming, shares.clients)
        sequence, count = paging.values[0], paging.count
        factor = max(1.0, float(paging.values[1]))
        repeaters = len(np.unique(history.weeks.clients[history.repeating]))
        reason = (
            f"{repeaters} of {len(np.unique(history.weeks.clients))} benign clients repeat themselves, "
            "so a cluster pages only when the intent test speaks too"
        )
        policy = Policy("intent", factor, shares.index_pages)
    thresholds[3] = sequence
    policy = _index_policy(
        policy, shares, history.index if index_tested is None else None, index_tested, partitions, thresholds
    )
    strength = np.maximum(history.same / thresholds[0], history.opposite / thresholds[1])
    crossed = history.sequence > thresholds[3]
    if policy.mode == "intent" and tested is not None:
        beyond = crossed | (tested > policy.page_factor)
    elif policy.mode == "at-once":
        beyond = crossed | (strength > 1.0)
    else:
        beyond = beyond_none
    tickets = (strength > 1.0) | crossed
    return Decision(
        thresholds=thresholds,
        policy=policy,
        reason=reason,
        split=shares,
        count=count,
        coming=coming,
        needed=needed,
        index_needed=order_statistics.units_needed(partitions, 0, 0.2 * RISK),
        expected_tickets=coming * float(tickets.mean()) if units else 0.0,
        beyond=beyond,
        fastest=_fastest(tables, thresholds, policy),
    )


def _why_not(real: bool, units: int, needed: int, coming: int, shares: Split) -> str:
    if not real:
        return "there are no benign events with clients and order, so nothing can be promised about pages"
    return (
        f"{units} benign client-weeks can't bear at most {shares.clients} false pages among {coming} clients a week; "
        f"{needed} would"
    )


def _index_policy(
    policy: Policy,
    shares: Split,
    crossed: NDArray[np.float64] | None,
    tested: NDArray[np.float64] | None,
    partitions: int,
    thresholds: NDArray[np.float64],
) -> Policy:
    """The index's paging factor, where it may page."""
    if not shares.index_pages or policy.mode == "tickets":
        return Policy(policy.mode, policy.page_factor)
    strengths = tested if tested is not None else crossed / thresholds[2] if crossed is not None else np.zeros(1)
    found = order_statistics.threshold(strengths, partitions, shares.index, shares.index_risk)
    if found is None:
        return Policy(policy.mode, policy.page_factor)
    return Policy(policy.mode, policy.page_factor, True, max(1.0, found.value))


def _fastest(tables: Tables, thresholds: NDArray[np.float64], policy: Policy) -> dict[str, int | None]:
    """Queries until the fastest ticket or page of each rule, every query bringing all it can."""
    gain = max(float(tables.gain_a.max()), float(tables.gain_b.max()))
    lowest = float(min(thresholds[0], thresholds[1]))
    ticket = 2 + math.floor(lowest / gain) if gain > 0.0 else None
    word = "page" if policy.mode != "tickets" else "ticket"
    found = {"ticket by cluster evidence": ticket} if policy.mode != "at-once" else {}
    if policy.mode == "at-once":
        found["page by cluster evidence"] = ticket
    elif policy.mode == "intent" and ticket is not None:
        kept = max(1, math.ceil(walking.KEEP_FROM * lowest / gain))
        found["page by the intent test"] = max(
            kept + walking.FIRST_CHECK, 2 + math.floor(lowest * policy.page_factor / gain)
        )
    found[f"{word} by single inputs"] = updates_to_cross(float(thresholds[3]), float(tables.evalue.max()))
    return found


def proposed(history: History, decision: Decision) -> tuple[str, ...]:
    """Benign clients that would page for all that, by name."""
    return tuple(client_name(int(client)) for client in np.unique(history.weeks.clients[decision.beyond]))
