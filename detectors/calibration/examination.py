"""How the calibration of single inputs fares on benign rows that set no table, and on crafted rows held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

#: Name of the fused p-value among those of detectors.
FUSED = "fused"
#: Shares of benign rows with p-values up to these are told.
LEVELS = (0.01, 0.05, 0.1)
#: Equal bins of p-values, between 0 and 1.
BINS = 20
#: A class with fewer rows than this is not told apart.
LEAST_ROWS = 20
#: False positive rates of a curve, in equal steps of their logarithm.
RATES = tuple(float(rate) for rate in np.round(np.logspace(-3, 0, 31), 6))
#: The rate at which attacks are compared.
RATE = 0.01
#: Levels of the fused p-value whose false positive rate is bounded, and the confidence of the bound.
FIXED_LEVELS, CONFIDENCE = (0.001, 0.01, 0.1), 0.95

#: Where the crafted rows of the curves come from: given as probes, or rehearsed from rows of clients that set no table;
#: ``none`` where none of these changed an answer, and in the bundles of older releases.
Source = Literal["none", "probes", "rehearsed"]


@dataclass(frozen=True, slots=True)
class Uniformity:
    """p-values of benign rows beside the uniform distribution.

    Attributes
    ----------
    detector : str
        A detector's name, or ``fused``.
    label : int or None
        Predicted class; None for all together.
    rows : int
    distance : float
        Kolmogorov's: the largest difference between the distribution functions.
    excess : float
        The part of it that harms: the largest surplus of P(p <= a) over a. Equal scores (a detector that is silent on
        most rows) make p-values larger, which only makes the distance.
    shares : tuple of float
        Of rows with p <= each of `LEVELS`; a calibrated p-value has the level itself.
    bins : tuple of float
        Share of rows in each of `BINS` equal bins; empty for single classes.
    chance : float or None
        Of such an excess or a larger one, were these rows and those that calibrated the p-values independent (Smirnov's
        one-sided test of two samples, asymptotic); equal scores only make the excess smaller. Rows of one client are
        not independent, so it comes out too small. None in the bundles of older releases.
    """

    detector: str
    label: int | None
    rows: int
    distance: float
    excess: float
    shares: tuple[float, ...]
    bins: tuple[float, ...] = ()
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Crafted rows that nothing was learned from, against benign rows.

    Attributes
    ----------
    detector : str
        A detector's name, or ``fused``.
    area : float
        Under the ROC curve.
    found : tuple of float
        Share of crafted rows found at each of `RATES`.
    """

    detector: str
    area: float
    found: tuple[float, ...]

    @property
    def at_rate(self) -> float:
        """Share found at `RATE`."""
        return self.found[RATES.index(RATE)]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An attack that the weights of a second fusion were not learned from, by the fused score of that fusion.

    Attributes
    ----------
    family : str
    rows : int
    area : float
        Under the ROC curve, against benign rows that set no table.
    found : float
        Share found at `RATE`.
    """

    family: str
    rows: int
    area: float
    found: float


@dataclass(frozen=True, slots=True)
class FixedRate:
    """What a fixed threshold on the fused p-value costs, whatever is promised of client-weeks.

    With the threshold at the `rank`-th largest of `rows` calibration sums the false positive rate is Beta(rank, rows +
    1 - rank), were rows independent (Vovk, "Conditional validity of inductive conformal predictors", ACML 2012).

    Attributes
    ----------
    level : float
        Rows with p <= level are taken.
    rank, rows : int
    bound : float
        The rate is at most this with confidence `CONFIDENCE`.
    """

    level: float
    rank: int
    rows: int
    bound: float


@dataclass(frozen=True, slots=True)
class Examination:
    """Single inputs, examined.

    Attributes
    ----------
    uniformity : tuple of Uniformity
    curves : tuple of Curve
        Empty where `source` is ``none``.
    benign, crafted : int
        Benign rows of `uniformity`, crafted rows of `curves`.
    against : int
        Benign rows of `curves` and `left_out`: those of the fit, whatever has been calibrated since.
    source : {"none", "probes", "rehearsed"}
        What the rows of `curves` are.
    left_out : tuple of LeftOut
        Leave-one-attack-out; empty where the fusion learned from one attack alone, or from none.
    fixed : tuple of FixedRate
        Levels that the calibration rows are too few for are left out.
    """

    uniformity: tuple[Uniformity, ...]
    curves: tuple[Curve, ...]
    benign: int
    crafted: int
    against: int = 0
    source: Source = "none"
    left_out: tuple[LeftOut, ...] = ()
    fixed: tuple[FixedRate, ...] = ()

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"source {self.source!r} is none of {', '.join(get_args(Source))}")

    @property
    def fused(self) -> Curve | None:
        """The curve of the fused score."""
        return next((one for one in self.curves if one.detector == FUSED), None)

    def overall(self, detector: str) -> Uniformity | None:
        """p-values of all rows together."""
        return next((one for one in self.uniformity if one.detector == detector and one.label is None), None)

    def farthest(self, detector: str) -> Uniformity | None:
        """The predicted class whose p-values are farthest from uniform; None where none has rows enough."""
        classes = [one for one in self.uniformity if one.detector == detector and one.label is not None]
        return max(classes, key=lambda one: one.distance, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            uniformity=tuple(
                Uniformity(**{**one, "shares": tuple(one["shares"]), "bins": tuple(one["bins"])})
                for one in data["uniformity"]
            ),
            curves=tuple(Curve(**{**one, "found": tuple(one["found"])}) for one in data["curves"]),
            benign=data["benign"],
            crafted=data["crafted"],
            against=data.get("against", data["benign"]),
            source=data.get("source", "probes" if data["curves"] else "none"),
            left_out=tuple(LeftOut(**one) for one in data.get("left_out", ())),
            fixed=tuple(FixedRate(**one) for one in data.get("fixed", ())),
        )


def uniformities(
    names: Sequence[str], pvalues: NDArray[np.float64], labels: NDArray[np.int32], units: Sequence[int]
) -> tuple[Uniformity, ...]:
    """Of p-values (n, D) of benign rows: each column over all rows, then by predicted class.

    `units` (D,) says how many calibration scores each column's p-values were taken from.
    """
    found = []
    for column, (name, many) in enumerate(zip(names, units, strict=True)):
        values = pvalues[:, column]
        found.append(_uniformity(name, None, values, many))
        found += [
            _uniformity(name, int(label), values[labels == label], many)
            for label in np.unique(labels)
            if np.count_nonzero(labels == label) >= LEAST_ROWS
        ]
    return tuple(found)


def left_out(family: str, benign: NDArray[np.float64], crafted: NDArray[np.float64]) -> LeftOut:
    """Of fused scores (n,) and (n',), larger for crafted."""
    told = curve(family, benign, crafted)
    return LeftOut(family, len(crafted), told.area, told.at_rate)


def fixed_rates(kept: int, rows: int) -> tuple[FixedRate, ...]:
    """What fixed thresholds cost where `rows` calibration sums were thinned to `kept` (`conformal.thinned`)."""
    from scipy.stats import beta

    found = []
    for level in FIXED_LEVELS:
        place = int(level * (kept + 1) * (1 + 1e-12))
        rank = place * (rows + 1) // (kept + 1)
        if rank >= 1:
            found.append(FixedRate(level, rank, rows, float(beta.ppf(CONFIDENCE, rank, rows + 1 - rank))))
    return tuple(found)


def curve(name: str, benign: NDArray[np.float64], crafted: NDArray[np.float64]) -> Curve:
    """ROC of scores (n,) and (n',), larger for crafted; at a rate f at most floor(f n) benign rows are found."""
    ascending = np.sort(benign)
    below, equal = (np.searchsorted(ascending, crafted, side=side) for side in ("left", "right"))
    area = float((below + equal).mean() / (2 * len(benign)))
    allowed = [min(int(rate * len(benign) * (1 + 1e-12)), len(benign)) for rate in RATES]
    found = [
        1.0 if most == len(benign) else float((crafted > ascending[len(benign) - 1 - most]).mean()) for most in allowed
    ]
    return Curve(name, area, tuple(found))


def _uniformity(name: str, label: int | None, values: NDArray[np.float64], units: int) -> Uniformity:
    ascending = np.sort(values)
    rank = np.arange(1, len(values) + 1) / max(len(values), 1)
    excess = max(float((rank - ascending).max()), 0.0) if len(values) else 0.0
    lack = float((ascending - rank).max()) + 1 / len(values) if len(values) else 0.0
    shares = tuple(float((values <= level).mean()) if len(values) else 0.0 for level in LEVELS)
    counts, _ = np.histogram(values, bins=BINS, range=(0.0, 1.0))
    bins = tuple(float(count) / max(len(values), 1) for count in counts) if label is None else ()
    chance = math.exp(-2.0 * excess * excess * len(values) * units / max(len(values) + units, 1))
    return Uniformity(name, label, len(values), max(excess, lack), excess, shares, bins, chance)
