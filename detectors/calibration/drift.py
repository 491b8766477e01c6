"""Whether benign traffic is still what the calibration was made on: an exchangeability martingale, and exact counts.

Two watches, each with a stated chance of a false alarm within a week:

* `DriftWatch` looks at how odd rows are, hour by hour, in blocks of clients. It sees a change since it began, long
  before anything pages.
* `crossing_limit` bounds how many clients may cross a threshold in a week. It sees that the threshold no longer means
  what the calibration said, whatever the reason.

What neither sees: a change that makes rows less odd; one that is as old as the watch and crosses no threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

#: Clients are dealt out to so many blocks by their hash: units that differ only by chance.
BLOCKS = 64
#: Chance of a false alarm a week: of the martingale, of the count of clients with a ticket, and of clients that page.
MARTINGALE_RISK, TICKET_RISK, PAGE_RISK = 0.02, 0.01, 0.01
#: All together (Boole's inequality).
RISK = MARTINGALE_RISK + TICKET_RISK + PAGE_RISK
HOURS_A_DAY, HOURS_A_WEEK = 24, 168
#: Hours from the beginning that later weeks are compared with; what follows is kept for its own week only.
BASELINE_HOURS = 2 * HOURS_A_WEEK
#: Bets of the mixture: kappa p ** (kappa - 1).
KAPPAS = np.array([0.2, 0.4, 0.6, 0.8, 0.9])
#: Fewest clients' blocks with rows that make an hour worth a look.
LEAST_BLOCKS = 8
#: Hours that the spread over blocks is judged by, and fewest hours before them.
RECENT_HOURS, LEAST_BEFORE = 6, 24
#: Spread over blocks from which on a change is one of the population, and up to which it is a few clients'.
MANY, FEW = 0.4, 0.25
#: Largest excess of a block, in standard deviations of its past, so that one number cannot be infinite.
MOST_EXCESS = 100.0
_LARGEST_LOG = 700.0
#: Multiplier of Fibonacci hashing (Knuth 6.4), and the shift that leaves `BLOCKS` values.
_SPREAD, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(58)

Kind = Literal["", "drift", "attack", "unclear"]


def block_of(clients: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(n,) block of each client, 0 to `BLOCKS` - 1."""
    return np.asarray((clients * _SPREAD) >> _SHIFT, dtype=np.int64)


def rank_intervals(
    values: NDArray[np.float64], past: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the smoothed conformal p-value of each value lies, (b,) low and (b,) high.

    A smoothed p-value is uniform between (number of larger ones) and (number of larger or equal ones, itself included)
    over their whole number. Nothing is drawn here: bets are averaged over the interval instead.

    Parameters
    ----------
    values : float64 (b,)
    past : float64 (t, b)
        NaN where a block had no rows.
    """
    known = np.isfinite(past)
    total = known.sum(axis=0) + 1.0
    low = (known & (past > values)).sum(axis=0) / total
    return low, low + ((known & (past == values)).sum(axis=0) + 1.0) / total


def log_bets(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, b) logarithm of each bet of `KAPPAS`, averaged over the interval of p from `low` to `high` (b,)."""
    power = KAPPAS[:, None]
    return np.asarray(np.log((high**power - low**power) / (high - low)))


@dataclass(slots=True)
class Martingale:
    """A mixture of power martingales over when the change began, for one week.

    The wealth is an exact test martingale: it begins at 1 and, while p-values are independent and uniform, its mean
    stays 1, so it ever reaches 1/a with chance a at most (Ville). Each hour 1/168 of the first stake is put in, which
    is the mixture over the hour of the change: hours that brought nothing do not use the wealth up.

    References
    ----------
    Vovk, Nouretdinov & Gammerman 2003, "Testing exchangeability on-line"; Vovk 2021, "Testing randomness online".
    """

    wealth: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(KAPPAS)))
    """(k,) of each bet."""
    steps: int = 0
    peak: float = 1.0

    @property
    def value(self) -> float:
        """The wealth now: what the bets hold, and what has not been put in."""
        return float(self.wealth.mean()) + max(0.0, 1.0 - self.steps / HOURS_A_WEEK)

    def bet(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        """Bet on independent p-values that lie in the intervals (b,)."""
        if self.steps >= HOURS_A_WEEK:
            return
        gain = log_bets(low, high).sum(axis=1)
        stake = np.log(self.wealth + 1.0 / HOURS_A_WEEK)
        self.wealth = np.exp(np.minimum(stake + gain, _LARGEST_LOG))
        self.steps += 1
        self.peak = max(self.peak, self.value)


@dataclass(slots=True)
class DriftWatch:
    """Hourly oddness of blocks of clients, tested for exchangeability.

    A value is the mean oddness of one block's rows in one hour, its rank that among the same block at the same hour of
    other days: clients are compared with themselves, so that they may differ, depend on their own past and have a daily
    rhythm. The premise is: hours of equal number are exchangeable within a block, and blocks are independent. A weekly
    rhythm, or one cause that moves all clients for an hour, is outside it, and is what the watch calls a change.

    Attributes
    ----------
    start : int or None
        First hour (since the epoch) of the bundle in force.
    hours : int64 (h,)
        Ascending.
    values : float32 (h, `BLOCKS`)
        NaN where a block had no rows.
    martingale : Martingale
        Of the week under way.
    """

    start: int | None = None
    hours: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    values: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, BLOCKS), dtype=np.float32))
    martingale: Martingale = field(default_factory=Martingale)

    def observe(self, hour: int, rows: NDArray[np.int64], oddness: NDArray[np.int64]) -> None:
        """Take in a whole hour; one that is not later than the last changes nothing.

        Parameters
        ----------
        hour : int
            Since the epoch.
        rows, oddness : int64 (`BLOCKS`,)
            Rows of each block, and the sum of their oddness (any increasing function of -ln p).
        """
        if len(self.hours) and hour <= self.hours[-1]:
            return
        if self.start is None:
            self.start = hour
        if len(self.hours) and self._week(hour) != self._week(int(self.hours[-1])):
            self.martingale = Martingale()
            kept = self.hours < self.start + BASELINE_HOURS
            self.hours, self.values = self.hours[kept], self.values[kept]
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.where(rows > 0, oddness / rows, np.nan).astype(np.float32)
        past = self.values[self.hours % HOURS_A_DAY == hour % HOURS_A_DAY]
        judged = np.isfinite(value) & np.isfinite(past).any(axis=0)
        if np.count_nonzero(judged) >= LEAST_BLOCKS:
            self.martingale.bet(*rank_intervals(value[judged].astype(np.float64), past[:, judged].astype(np.float64)))
        self.hours = np.append(self.hours, np.int64(hour))
        self.values = np.vstack([self.values, value])

    @property
    def speaks(self) -> bool:
        """Whether the wealth has reached 1 / `MARTINGALE_RISK` in the week under way."""
        return self.martingale.peak >= 1.0 / MARTINGALE_RISK

    def excess(self) -> NDArray[np.float64]:
        """(`BLOCKS`,) how far the last hours lie above each block's past, in its standard deviations; NaN: unknown."""
        nothing = np.full(BLOCKS, np.nan)
        before = len(self.hours) - RECENT_HOURS
        if before < LEAST_BEFORE:
            return nothing
        values = self.values.astype(np.float64)
        phase = self.hours % HOURS_A_DAY
        rests = np.full_like(values, np.nan)
        for hour in range(HOURS_A_DAY):
            here = np.flatnonzero(phase == hour)
            past = values[here[here < before]]
            known = np.isfinite(past)
            count = known.sum(axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.where(known, past, 0.0).sum(axis=0) / count
                # A value lies nearer to a mean that it is part of; widened to what a fresh one has.
                widen = np.where(here[:, None] < before, np.sqrt(count / np.maximum(count - 1.0, 0.0)), 1.0)
                rests[here] = np.where(np.isfinite(widen), (values[here] - mean) * widen, np.nan)
        usual, recent = rests[:before], rests[before:]
        known, fresh = np.isfinite(usual), np.isfinite(recent)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(np.where(known, usual**2, 0.0).sum(axis=0) / known.sum(axis=0))
            found = np.where(fresh, recent, 0.0).sum(axis=0) / fresh.sum(axis=0) / spread
        return np.clip(np.where(known.any(axis=0) & fresh.any(axis=0), found, nothing), -MOST_EXCESS, MOST_EXCESS)

    def breadth(self) -> float | None:
        """Share of clients' blocks that carry the excess; None while it can't be told.

        (sum x)^2 / (b sum x^2) over blocks, x the positive part of `excess`: 1 where all carry the same, 1/b where one
        carries all of it, about a third where there is none.
        """
        found = self.excess()
        positive = np.maximum(found[np.isfinite(found)], 0.0)
        if len(positive) < LEAST_BLOCKS or not positive.any():
            return None
        return float(positive.sum() ** 2 / (len(positive) * (positive**2).sum()))

    def kind(self) -> Kind:
        """``drift`` where many clients moved, ``attack`` where few did, empty while the martingale is silent."""
        if not self.speaks:
            return ""
        return kind_of(self.breadth())

    def _week(self, hour: int) -> int:
        return (hour - (self.start or 0)) // HOURS_A_WEEK

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that is remembered."""
        return {
            "start": np.array([-1 if self.start is None else self.start], dtype=np.int64),
            "hours": self.hours,
            "values": self.values,
            "wealth": self.martingale.wealth,
            "progress": np.array([self.martingale.steps, self.martingale.peak]),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`.

        Raises
        ------
        KeyError, ValueError
        """
        hours, values = arrays["hours"].astype(np.int64), arrays["values"].astype(np.float32)
        wealth, progress = arrays["wealth"].astype(np.float64), arrays["progress"]
        if values.shape != (len(hours), BLOCKS) or wealth.shape != KAPPAS.shape or progress.shape != (2,):
            raise ValueError(f"{len(hours)} hours, values {values.shape} and wealth {wealth.shape} are no drift watch")
        start = int(arrays["start"][0])
        martingale = Martingale(wealth, int(progress[0]), float(progress[1]))
        return cls(None if start < 0 else start, hours, values, martingale)


def kind_of(breadth: float | None) -> Kind:
    """What a change is that so large a share of blocks carries."""
    if breadth is None:
        return "unclear"
    if breadth >= MANY:
        return "drift"
    return "attack" if breadth <= FEW else "unclear"


def crossing_limit(coming: int, crossed: int, units: int, risk: float) -> int:
    """Most clients of a week that cross a threshold, but with chance `risk`.

    Of `units` client-weeks of the calibration `crossed` lay beyond the threshold, so it is no lower than the
    (`crossed` + 1)-th largest of them, and the number of the week's `coming` exchangeable clients beyond it is at most
    beta-binomial (`coming`, `crossed` + 1, `units` - `crossed`). The count only grows within a week: looking at it
    again and again costs nothing.

    Raises
    ------
    ValueError
        When there are no units, or fewer than crossed.
    """
    from scipy.stats import betabinom

    if not 0 <= crossed <= units or units < 1:
        raise ValueError(f"{crossed} of {units} client-weeks cannot have crossed")
    if crossed == units:
        return coming
    limit = int(betabinom.isf(risk, coming, crossed + 1, units - crossed))
    while limit < coming and float(betabinom.sf(limit, coming, crossed + 1, units - crossed)) > risk:
        limit += 1
    return limit


def warm_up() -> None:
    """Load what `crossing_limit` uses, which takes seconds, at a time when nobody waits."""
    crossing_limit(coming=1, crossed=0, units=1, risk=0.5)


def log10_wealth(watch: DriftWatch) -> float:
    """Decimal logarithm of the largest wealth of the week under way."""
    return math.log10(max(watch.martingale.peak, 1e-300))
