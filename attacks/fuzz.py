"""Malformed and extreme inputs, each with what a sound service does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.errors import ThreatModelError
from attacks.threat import Domain

Expected = Literal["refused", "flagged", "scored"]
"""``refused``: no batch of numbers of the right shape, or not finite; no model should answer it. ``flagged``: finite
and of the right shape, outside the domain. ``scored``: legal, however odd it looks."""

#: Beyond the largest single-precision number (3.4e38), within double precision.
BEYOND_SINGLE = 1e39
#: The smallest positive number of double and of single precision.
DENORMALS = (5e-324, 1e-45)


@dataclass(frozen=True, slots=True, eq=False)
class FuzzCase:
    """One input to send.

    Attributes
    ----------
    kind : str
        What is wrong with it, or odd.
    inputs : object
        An array of any shape and dtype, or nested lists as they come out of JSON, of one row where that makes sense.
    expected : {"refused", "flagged", "scored"}
    """

    kind: str
    inputs: Any
    expected: Expected


Maker = Callable[[NDArray[np.float64], Domain, np.random.Generator], Any]


def _with(value: float) -> Maker:
    def make(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
        out = row.copy()
        count = int(rng.integers(1, max(2, len(row) // 4)))
        out[rng.choice(len(row), count, replace=False)] = value
        return out[None, :]

    return make


def _beyond(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    out = row.copy()
    bounded = np.flatnonzero((np.isfinite(domain.low) | np.isfinite(domain.high)) & ~domain.grouped)
    at = int(rng.choice(bounded))
    reach = domain.ranges[at] * (1 + rng.integers(1, 100))
    out[at] = domain.high[at] + reach if np.isfinite(domain.high[at]) else domain.low[at] - reach
    return out[None, :]


def _just_beyond(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    out = row.copy()
    bounded = np.flatnonzero((np.isfinite(domain.low) | np.isfinite(domain.high)) & ~domain.grouped)
    at = int(rng.choice(bounded))
    step = 1.0 if domain.integral[at] else 0.01 * domain.ranges[at]
    out[at] = domain.high[at] + step if np.isfinite(domain.high[at]) else domain.low[at] - step
    return out[None, :]


def _fraction(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    out = row.copy()
    at = int(rng.choice(np.flatnonzero(domain.integral & ~domain.grouped)))
    out[at] = min(out[at], domain.high[at] - 1) + 0.5 if np.isfinite(domain.high[at]) else out[at] + 0.5
    return out[None, :]


def _hot(ones: int) -> Maker:
    def make(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
        out = row.copy()
        wide = [group for group in domain.groups if len(group) >= max(ones, 1)]
        group = wide[int(rng.integers(len(wide)))]
        out[group] = 0.0
        out[rng.choice(group, ones, replace=False)] = 1.0
        return out[None, :]

    return make


def _tiny(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    out = row.copy()
    out[_small(domain)] = rng.choice(np.array(DENORMALS))
    return out[None, :]


def _negative_zero(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    out = row.copy()
    out[_zero(domain)] = -0.0
    return out[None, :]


def _small(domain: Domain) -> NDArray[np.bool_]:
    return ~domain.grouped & ~domain.integral & (domain.low <= 0) & (domain.high > DENORMALS[1])


def _zero(domain: Domain) -> NDArray[np.bool_]:
    return ~domain.grouped & (domain.low <= 0) & (domain.high >= 0)


def _text(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    cells: list[Any] = row.tolist()
    cells[int(rng.integers(len(cells)))] = rng.choice(np.array(["", "1.0", "NaN", "DROP TABLE", "\x00"])).item()
    return [cells]


def _hole(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    cells: list[Any] = row.tolist()
    cells[int(rng.integers(len(cells)))] = None
    return [cells]


def _nested(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    cells: list[Any] = row.tolist()
    at = int(rng.integers(len(cells)))
    cells[at] = [cells[at]]
    return [cells]


def _ragged(row: NDArray[np.float64], domain: Domain, rng: np.random.Generator) -> Any:
    return [row.tolist(), row[:-1].tolist()]


def _any(domain: Domain) -> bool:
    return True


def _bounded(domain: Domain) -> bool:
    return bool(((np.isfinite(domain.low) | np.isfinite(domain.high)) & ~domain.grouped).any())


def _capped(domain: Domain) -> bool:
    return bool(np.isfinite(domain.high).all())


#: kind: (how it is made, what it needs of the domain, what a sound service does with it)
KINDS: dict[str, tuple[Maker, Callable[[Domain], bool], Expected]] = {
    "not a number": (_with(np.nan), _any, "refused"),
    "infinity": (_with(np.inf), _any, "refused"),
    "minus infinity": (_with(-np.inf), _any, "refused"),
    "one column too many": (lambda row, domain, rng: np.append(row, 0.0)[None, :], _any, "refused"),
    "one column too few": (lambda row, domain, rng: row[None, :-1], _any, "refused"),
    "no columns": (lambda row, domain, rng: np.empty((1, 0)), _any, "refused"),
    "three dimensions": (lambda row, domain, rng: np.tile(row, (1, 2, 1)), _any, "refused"),
    "a scalar": (lambda row, domain, rng: float(row[0]), _any, "refused"),
    "rows of different length": (_ragged, _any, "refused"),
    "nested cell": (_nested, _any, "refused"),
    "text": (_text, _any, "refused"),
    "null": (_hole, _any, "refused"),
    "an object": (lambda row, domain, rng: {"inputs": row.tolist()}, _any, "refused"),
    "complex numbers": (lambda row, domain, rng: row[None, :] + 1j, _any, "refused"),
    "raw bytes": (lambda row, domain, rng: row.tobytes(), _any, "refused"),
    "beyond the range": (_beyond, _bounded, "flagged"),
    "just beyond the range": (_just_beyond, _bounded, "flagged"),
    "beyond single precision": (_with(BEYOND_SINGLE), _capped, "flagged"),
    "largest double": (
        _with(float(np.finfo(np.float64).max)),
        _capped,
        "flagged",
    ),
    "fraction of a whole number": (
        _fraction,
        lambda domain: bool((domain.integral & ~domain.grouped & (domain.high > domain.low)).any()),
        "flagged",
    ),
    "no category": (_hot(0), lambda domain: len(domain.groups) > 0, "flagged"),
    "two categories": (_hot(2), lambda domain: any(len(group) > 1 for group in domain.groups), "flagged"),
    "denormals": (_tiny, lambda domain: domain.relations is None and bool(_small(domain).any()), "scored"),
    "minus zero": (_negative_zero, lambda domain: domain.relations is None and bool(_zero(domain).any()), "scored"),
    "unchanged": (lambda row, domain, rng: row[None, :].copy(), _any, "scored"),
    "column-major": (lambda row, domain, rng: np.asfortranarray(np.tile(row, (3, 1))), _any, "scored"),
}


def cases(x: NDArray[np.float64], domain: Domain, n: int, rng: np.random.Generator) -> list[FuzzCase]:
    """`n` inputs made of random legal rows (m, d); every kind that the domain allows comes up in turn.

    Raises
    ------
    ThreatModelError
        A row is illegal, or there is none.
    """
    rows = np.array(x, dtype=np.float64, order="C")
    if rows.ndim != 2 or rows.shape[1] != domain.width or len(rows) == 0:
        raise ThreatModelError(f"fuzz: rows have shape {rows.shape}; it needs (m, {domain.width}), m >= 1")
    complaint = domain.complaint(rows)
    if complaint is not None:
        raise ThreatModelError(f"fuzz: {complaint}")
    able = [name for name, (_, fits, _) in KINDS.items() if fits(domain)]
    order = [able[place] for _ in range(-(-n // len(able))) for place in rng.permutation(len(able))][:n]
    made = []
    for name in order:
        maker, _, expected = KINDS[name]
        made.append(FuzzCase(name, maker(rows[int(rng.integers(len(rows)))], domain, rng), expected))
    return made
