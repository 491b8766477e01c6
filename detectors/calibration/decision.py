"""From benign client-weeks to thresholds and a policy: what tickets, what pages, and what is promised."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import order_statistics
from detectors.calibration.budget import INDEX_SHARE, Split, split
from detectors.calibration.evalues import updates_to_cross
from detectors.calibration.history import History
from detectors.calibration.order_statistics import RISK, Threshold
from detectors.calibration.thresholds import CLEAR_POWER, ROUNDING, Combined, combine, own_scales
from detectors.contract import Progress
from detectors.policy import Policy
from detectors.queries import walk as walking
from detectors.queries.intent import IntentTest
from detectors.queries.walk import Tables
from detectors.signals import client_name

#: What the thresholds are of (`walk.Tables.thresholds`).
THRESHOLD_NAMES = ("client-cluster", "client-opposite", "index-cluster", "input-sequence", "input-row")
#: Tickets a week that are accepted from ordinary clients: this share of them, or N if that is more; as many again by
#: single odd rows.
TICKET_SHARE = 0.01
#: Where the page score is larger, the clients that set it are named, so many at most.
COSTLY_SCORE, MOST_COSTLY = 1.01, 5
#: Of clusters of several accounts the intent test must speak so many times more clearly, at least.
SHARED_LEAST = 1.5
#: The index's ticket threshold is at most this share of the most evidence that there is.
MOST_TICKET = 0.9
#: Rows after the last whole week are told where they are more than this share.
REST_SHARE = 0.05
#: Largest logarithm of a sequential statistic.
LARGEST_LOG = 640.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Thresholds, what becomes of crossing them, and why.

    Attributes
    ----------
    thresholds : float64 (5,)
        Ticket A, ticket B, ticket index, sequential test, ticket of one row.
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
    alone : bool (m,)
        Those that are so by their own rows, not by a cluster of several accounts.
    fastest : dict of str to (int or None)
    costly : tuple of (int, float)
        Clients whose near-duplicates raise `Policy.page_score`, the one that costs most first, and what it would be
        were they and those before them excused.
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
    alone: NDArray[np.bool_]
    fastest: dict[str, int | None]
    costly: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What statistics are measured by, from clients that set no thresholds.

    Attributes
    ----------
    scales : float64 (3,)
        Of evidence A, evidence B, and ln(1 + R) of the sequential test.
    tickets : float64 (2,) or None
        Ticket thresholds A and B; None leaves them to the clients that set thresholds.
    shared : float
        Least `Policy.shared_score`: rows of other clients that are replayed beside may raise it.
    """

    scales: NDArray[np.float64]
    tickets: NDArray[np.float64] | None = None
    shared: float = SHARED_LEAST

    @classmethod
    def of(cls, history: History, budget: int, coming: int) -> Yardstick:
        """From other clients' weeks."""
        ordinary = _ordinary(history)
        statistics = _statistics(history, ordinary)
        accepted = _accepted(budget, coming)
        rank = max(1, order_statistics.best_rank(coming, int(ordinary.sum()), accepted))
        scales = own_scales(statistics, rank)
        tickets = combine(statistics[:2], scales[:2], rank, coming, accepted).values
        return cls(scales, tickets)

    @classmethod
    def known(cls, thresholds: NDArray[np.float64], policy: Policy) -> Yardstick:
        """From the thresholds and the policy of an ensemble that was calibrated on other clients."""
        sequence = np.log1p(min(thresholds[3], walking.SEQUENCE_CEILING))
        return cls(np.array([thresholds[0], thresholds[1], sequence]), shared=max(SHARED_LEAST, policy.shared_score))


def decide(
    history: History,
    yardstick: Yardstick,
    tables: Tables,
    intent: IntentTest,
    *,
    real: bool,
    budget: int,
    clients_per_week: int | None,
    partitions: int,
    progress: Progress,
    excused: Sequence[int] = (),
) -> Decision:
    """Thresholds by order statistics of client-weeks.

    Parameters
    ----------
    history : History
        Of the clients that set thresholds.
    yardstick : Yardstick
        Of other clients.
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
    excused : sequence of int
        Clients that are approved as repeaters: their near-duplicates never page, so they don't set what pages either.
        Clusters of several accounts count, but for those of which they sent three of four members.
    """
    coming = clients_per_week or max(1, history.clients_a_week)
    shares = split(budget, partitions, len(history.index) if real else 0)
    units = history.counted
    needed = order_statistics.units_needed(coming, shares.clients, shares.clients_risk)
    rank = order_statistics.best_rank(coming, units, shares.clients, shares.clients_risk) if real else 0
    distinct = len(np.unique(history.weeks.clients))
    everyone: NDArray[np.bool_] = np.ones(len(history.weeks), dtype=np.bool_)
    thresholds = np.full(walking.THRESHOLDS, np.inf)
    thresholds[4] = odd_row(history.oddest[~history.alarm], budget, coming)
    most = float(history.index.max()) if len(history.index) else 0.0
    thresholds[2] = min(max(walking.INDEX_EXAMINED, most), MOST_TICKET * walking.INDEX_CEILING)
    own, together, shared = np.zeros(len(everyone)), np.zeros(len(everyone)), history.index / thresholds[2]
    costly: tuple[tuple[int, float], ...] = ()

    quiet = np.isin(history.weeks.clients, np.array(list(excused), dtype=np.uint64))
    if rank and not history.repeating.any():
        same, opposite, sequence = _statistics(history, everyone)
        paging = [np.where(quiet, 0.0, same), np.where(quiet, 0.0, opposite), sequence]
        found = combine(paging, yardstick.scales, rank, coming, shares.clients)
        thresholds[[0, 1, 3]] = found.values
        reason = f"no client among {distinct} repeats itself, so crossing a threshold is enough"
        policy = Policy("at-once")
    elif rank:
        thresholds[:2] = _tickets(history, yardstick, budget, coming)
        spoke = history.intentions(tables._replace(thresholds=thresholds), intent, progress, excused)
        more = max(yardstick.shared, spoke.elsewhere)
        own, together = np.where(quiet, 0.0, spoke.own), spoke.together / more
        shared = np.maximum(spoke.index, spoke.shared / more)

        def asked(clear: NDArray[np.float64]) -> tuple[Combined, float]:
            scale, most = float(yardstick.scales[2]), np.maximum(clear, together)
            return by_intent(np.log1p(history.sequence), most, scale, rank, coming, shares.clients)

        found, page_score = asked(own)
        costly = _costly(history.weeks.clients, own, page_score, lambda clear: asked(clear)[1])
        thresholds[3] = found.values[0]
        reason = (
            f"{len(np.unique(history.weeks.clients[history.repeating]))} of {distinct} benign clients repeat "
            "themselves, so a cluster pages only when the intent test speaks too"
        )
        policy = Policy("intent", page_score, shared_score=more)
    else:
        ordinary, accepted = _ordinary(history), _accepted(budget, coming)
        ticket_rank = max(1, order_statistics.best_rank(coming, int(ordinary.sum()), accepted))
        found = combine(_statistics(history, ordinary), yardstick.scales, ticket_rank, coming, accepted)
        thresholds[[0, 1, 3]] = found.values
        reason = _why_not(real, units, needed, coming, shares)
        policy = Policy("tickets")
    thresholds[3] = min(np.expm1(min(thresholds[3], LARGEST_LOG)) * ROUNDING, walking.SEQUENCE_CEILING)
    policy = _index_policy(policy, shares, shared, partitions)

    strength = np.maximum(history.same / thresholds[0], history.opposite / thresholds[1])
    crossed = history.sequence > thresholds[3]
    alone = {
        "at-once": crossed | (strength > 1.0),
        "intent": crossed | (own >= policy.page_score),
        "tickets": ~everyone,
    }[policy.mode]
    tickets = (strength > 1.0) | crossed | (history.oddest > thresholds[4])
    return Decision(
        thresholds=thresholds,
        policy=policy,
        reason=reason,
        split=shares,
        count=found.count,
        coming=coming,
        needed=needed,
        index_needed=order_statistics.units_needed(partitions, int(INDEX_SHARE * budget), INDEX_SHARE * RISK),
        expected_tickets=coming * float(tickets.mean()) if units else 0.0,
        beyond=alone | (together >= policy.page_score) if policy.mode == "intent" else alone,
        alone=alone,
        fastest=_fastest(tables, thresholds, policy),
        costly=costly,
    )


def _costly(
    clients: NDArray[np.uint64],
    tested: NDArray[np.float64],
    score: float,
    asked: Callable[[NDArray[np.float64]], float],
) -> tuple[tuple[int, float], ...]:
    """`Decision.costly`: clients and what the intent test said of their weeks (m,), and what is asked of all."""
    left, useful = tested.copy(), 0
    found: list[tuple[int, float]] = []
    while score > COSTLY_SCORE and left.any() and len(found) < MOST_COSTLY:
        client = clients[left.argmax()]
        left[clients == client] = 0.0
        before, score = score, asked(left)
        found.append((int(client), score))
        useful = len(found) if score < before else useful
    return tuple(found[:useful])


def by_intent(
    sequence: NDArray[np.float64], clear: NDArray[np.float64], scale: float, rank: int, coming: int, most: int
) -> tuple[Combined, float]:
    """What pages in intent mode: the threshold of ln(1 + R), and `Policy.page_score`, which share one count.

    Parameters
    ----------
    sequence, clear : float64 (m,)
        Of each client-week: largest ln(1 + R), and how clearly the intent test spoke (`History.intentions`).
    scale : float
        Of `sequence`, from other clients.
    rank, coming, most : int
        As `combine` takes them.
    """
    found = combine([sequence, clear**CLEAR_POWER], np.array([scale, 1.0]), rank, coming, most)
    return found, max(1.0, float(found.values[1]) ** (1.0 / CLEAR_POWER) * ROUNDING)


def _statistics(history: History, units: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Maxima of the three statistics of a client, comparable: the sequential test's on the scale of evidence."""
    return [history.same[units], history.opposite[units], np.log1p(history.sequence[units])]


def _ordinary(history: History) -> NDArray[np.bool_]:
    """(m,) client-weeks that set ticket thresholds: of clients that don't repeat themselves, if there are any.

    Approved false alarms are none of them: they were selected for what they are.
    """
    ordinary = ~history.repeating & ~history.alarm
    return ordinary if ordinary.any() else ~history.alarm


def _accepted(budget: int, coming: int) -> int:
    """Tickets a week that are accepted from ordinary clients."""
    return max(budget, math.ceil(TICKET_SHARE * coming))


def _tickets(history: History, yardstick: Yardstick, budget: int, coming: int) -> NDArray[np.float64]:
    """Ticket thresholds A and B."""
    if yardstick.tickets is not None:
        return yardstick.tickets
    ordinary, accepted = _ordinary(history), _accepted(budget, coming)
    rank = max(1, order_statistics.best_rank(coming, int(ordinary.sum()), accepted))
    return combine(_statistics(history, ordinary)[:2], yardstick.scales[:2], rank, coming, accepted).values


def odd_row(oddest: NDArray[np.float64], budget: int, coming: int) -> float:
    """Ticket threshold of a single row's fused score: of the largest one in each client-week (m,), repeaters' too.

    Where there are too few client-weeks for what is accepted, it is the largest of all.
    """
    accepted = min(_accepted(budget, coming), coming - 1)
    if not len(oddest):
        return np.inf
    rank = max(1, order_statistics.best_rank(coming, len(oddest), accepted))
    return max(order_statistics.at_rank(oddest, rank, coming, accepted).value, float(np.finfo(np.float64).tiny))


def _why_not(real: bool, units: int, needed: int, coming: int, shares: Split) -> str:
    if not real:
        return "there are no benign events with clients and order, so nothing can be promised about pages"
    return (
        f"{units} benign client-weeks can't bear at most {shares.clients} false pages among {coming} clients a week; "
        f"{needed} would"
    )


def _index_policy(policy: Policy, shares: Split, strengths: NDArray[np.float64], partitions: int) -> Policy:
    """The same policy with what the index needs to page, where it may; strengths (u,) of partition-weeks."""
    if not shares.index_pages or policy.mode == "tickets":
        return policy
    found = order_statistics.threshold(strengths, partitions, shares.index, shares.index_risk)
    if found is None:
        return policy
    least = max(1.0, found.value * ROUNDING)
    if policy.mode == "intent":
        return replace(policy, index_pages=True, index_score=least)
    return replace(policy, index_pages=True, index_factor=least)


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
        found["page by the intent test"] = max(kept + walking.FIRST_CHECK, ticket)
        most = float(tables.index_gain.max())
        if most > 0.0:
            kept = max(1, math.ceil(walking.KEEP_FROM * walking.INDEX_EXAMINED / most))
            joined = math.ceil(walking.INDEX_EXAMINED / most)
            found["page by the intent test, many accounts"] = max(kept + walking.FIRST_CHECK, 1 + joined)
    found[f"{word} by single inputs"] = updates_to_cross(float(thresholds[3]), float(tables.evalue.max()))
    return found


def excuses(decision: Decision, history: History, week_us: int) -> tuple[str, ...]:
    """Sentences on what the promise lacks, and on what makes the site ask for more of everybody.

    Parameters
    ----------
    decision : Decision
    history : History
        What it was made of.
    week_us : int
        Length of a week, as it was asked for.
    """
    said = (
        *_short_said(history, week_us),
        *_gaps_said(history),
        *_rest_said(history),
        *_counts_said(decision, history),
        *_costly_said(decision),
    )
    shared = decision.policy.shared_score
    if shared > SHARED_LEAST:
        text = (
            f"shared_score is {shared:.3g}: accounts of the history have something in common of which the intent test "
            "spoke, so it must speak so many times more clearly of clusters of several accounts"
        )
        said = (*said, text)
    return said


def _short_said(history: History, week_us: int) -> tuple[str, ...]:
    """On events that are not of a whole week."""
    if history.week_us >= week_us:
        return ()
    text = (
        f"the events reach over {_duration(history.week_us)}, less than the week of {_duration(week_us)}, and count as "
        f"one: what is said of a week is said of such a stretch, of which a week has {week_us / history.week_us:,.3g}, "
        "so expect more false pages than the budget; give events of whole weeks"
    )
    return (text,)


def _gaps_said(history: History) -> tuple[str, ...]:
    """On weeks without an event."""
    count, seen = history.weeks.whole_weeks, history.weeks_seen
    if not history.parts or seen == count:
        return ()
    text = (
        f"of the {count:,} weeks between the first and the last event {count - seen:,} have none and count for "
        "nothing: look whether all times are right"
    )
    return (text,)


def _rest_said(history: History) -> tuple[str, ...]:
    """On rows after the last whole week, which belong to no client-week."""
    weeks = [week for _, _, week in history.parts]
    rows = sum(map(len, weeks))
    rest = sum(int(np.count_nonzero(week >= history.weeks.whole_weeks)) for week in weeks)
    if rest <= REST_SHARE * rows:
        return ()
    return (f"{rest:,} rows ({rest / rows:.0%}) come after the last whole week and set no thresholds",)


def _counts_said(decision: Decision, history: History) -> tuple[str, ...]:
    """On numbers of clients that make the promise say little."""
    said = []
    coming, seen = decision.coming, history.clients_a_week
    if coming < seen:
        said.append(
            f"what is promised is for C = {coming:,} clients a week, but a week of the events saw {seen:,}; with so "
            f"many, {seen / coming:,.3g} times as many false pages are to be expected (--clients-per-week)"
        )
    if decision.policy.mode != "tickets" and decision.split.clients >= coming:
        said.append(
            f"a budget of {decision.split.clients:,} false pages among {coming:,} clients a week lets every benign "
            "client page, and thresholds lie as low as that; give a smaller --budget"
        )
    return tuple(said)


def _duration(microseconds: int) -> str:
    """A length of time in its largest unit of which it has one."""
    seconds = microseconds / 1e6
    for name, length in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.3g} seconds"


def _costly_said(decision: Decision) -> tuple[str, ...]:
    """On clients that make the site ask for more."""
    if not decision.costly:
        return ()
    steps = "; without ".join(f"{client_name(client)} it would be {score:.3g}" for client, score in decision.costly)
    said = (
        f"page_score is {decision.policy.page_score:.3g}, which attackers must reach too, and few benign clients set "
        f"it: without {steps}, each without those before it. Look at what they do, approve as repeaters those that are "
        "known and harmless, and calibrate with --repeaters"
    )
    return (said,)


def proposed(history: History, decision: Decision) -> tuple[str, ...]:
    """Benign clients that would page by their own rows for all that, by name."""
    return tuple(client_name(int(client)) for client in np.unique(history.weeks.clients[decision.alone]))
