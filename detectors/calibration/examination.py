"""How the calibration of single inputs fares on benign rows that set no table, and on crafted rows held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

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
    """

    detector: str
    label: int | None
    rows: int
    distance: float
    excess: float
    shares: tuple[float, ...]
    bins: tuple[float, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Examination:
    """Single inputs, examined.

    Attributes
    ----------
    uniformity : tuple of Uniformity
    curves : tuple of Curve
        Empty where no crafted rows were held out.
    benign, crafted : int
        Rows of each kind.
    """

    uniformity: tuple[Uniformity, ...]
    curves: tuple[Curve, ...]
    benign: int
    crafted: int

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
        )


def uniformities(
    names: Sequence[str], pvalues: NDArray[np.float64], labels: NDArray[np.int32]
) -> tuple[Uniformity, ...]:
    """Of p-values (n, D) of benign rows: each column over all rows, then by predicted class."""
    found = []
    for column, name in enumerate(names):
        values = pvalues[:, column]
        found.append(_uniformity(name, None, values))
        found += [
            _uniformity(name, int(label), values[labels == label])
            for label in np.unique(labels)
            if np.count_nonzero(labels == label) >= LEAST_ROWS
        ]
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


def _uniformity(name: str, label: int | None, values: NDArray[np.float64]) -> Uniformity:
    ascending = np.sort(values)
    rank = np.arange(1, len(values) + 1) / max(len(values), 1)
    excess = max(float((rank - ascending).max()), 0.0) if len(values) else 0.0
    lack = float((ascending - rank).max()) + 1 / len(values) if len(values) else 0.0
    shares = tuple(float((values <= level).mean()) if len(values) else 0.0 for level in LEVELS)
    counts, _ = np.histogram(values, bins=BINS, range=(0.0, 1.0))
    bins = tuple(float(count) / max(len(values), 1) for count in counts) if label is None else ()
    return Uniformity(name, label, len(values), max(excess, lack), excess, shares, bins)
