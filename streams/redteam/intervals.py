"""Shares, differences of shares on the same rows, and how sure one can be of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from streams.probes.outcome import wilson


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `n` rows with Wilson's 95 % interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share itself; not a number of no rows."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        return wilson(self.hits, self.n)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        low, high = self.interval
        return {
            "value": round(self.value, 6) if self.n else None,
            "low": round(low, 6),
            "high": round(high, 6),
            "hits": self.hits,
            "n": self.n,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%})" if self.n else "of no rows"


def share(hits: NDArray[np.bool_]) -> Share:
    """The share of rows (n,) that are true."""
    return Share(int(np.count_nonzero(hits)), len(hits))


@dataclass(frozen=True, slots=True)
class Change:
    """How a share changed between two models on the same rows.

    Attributes
    ----------
    gained, lost : int
        Rows that are true only after, only before.
    n : int
    value, low, high : float
        After minus before, with Newcombe's 95 % interval for paired rows.
    p : float
        Exact two-sided p-value of McNemar's test: gained and lost would be equally likely.

    References
    ----------
    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17, 1998, method 10. McNemar, Psychometrika 12, 1947, in its exact binomial form.
    """

    gained: int
    lost: int
    n: int
    value: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "value": round(self.value, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "gained": self.gained,
            "lost": self.lost,
            "n": self.n,
            "p": self.p,
        }

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def change(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Change:
    """From `before` to `after`, both (n,) about the same n > 0 rows."""
    n = len(before)
    both, gained = int((before & after).sum()), int((~before & after).sum())
    lost = int((before & ~after).sum())
    neither = n - both - gained - lost
    first, second = (both + gained) / n, (both + lost) / n
    (low1, high1), (low2, high2) = wilson(both + gained, n), wilson(both + lost, n)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    phi = 0.0 if margins == 0 else _corrected(both * neither - gained * lost, n) / math.sqrt(margins)
    value = first - second
    down, up = first - low1, high1 - first
    other_down, other_up = second - low2, high2 - second
    low = value - math.sqrt(max(0.0, down**2 - 2 * phi * down * other_up + other_up**2))
    high = value + math.sqrt(max(0.0, up**2 - 2 * phi * up * other_down + other_down**2))
    return Change(gained, lost, n, value, low, high, mcnemar(gained, lost))


def _corrected(cross: int, n: int) -> float:
    """Newcombe's continuity correction of phi's numerator, for positive correlation only."""
    return max(cross - n / 2, 0.0) if cross > 0 else float(cross)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that discordant rows fall either way with probability one half."""
    n = gained + lost
    return 1.0 if n == 0 else float(min(1.0, 2 * binom.cdf(min(gained, lost), n, 0.5)))


def holm(pvalues: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the order given."""
    order = sorted(range(len(pvalues)), key=lambda place: pvalues[place])
    adjusted = [1.0] * len(pvalues)
    worst = 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (len(pvalues) - rank) * pvalues[place]))
        adjusted[place] = worst
    return adjusted


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent repetitions with its 95 % interval by Student's distribution; one has none."""
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return mean, mean - half, mean + half


__all__ = ["Change", "Share", "change", "holm", "mcnemar", "mean_interval", "share", "wilson"]
