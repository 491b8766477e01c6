"""Fuzz cases are what they say they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks import fuzz
from attacks.errors import ThreatModelError
from attacks.threat import Domain

WIDTH = 7


def domain(**changes: Any) -> Domain:
    low, high = np.zeros(WIDTH), np.ones(WIDTH)
    high[3] = 9
    values: dict[str, Any] = {
        "low": low,
        "high": high,
        "integral": np.arange(WIDTH) == 3,
        "mutable": np.ones(WIDTH, dtype=bool),
        "groups": (np.array([4, 5, 6]),),
        **changes,
    }
    return Domain(**values)


def rows(n: int = 20) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    x = rng.random((n, WIDTH))
    x[:, 3] = rng.integers(0, 10, n)
    x[:, 4:] = np.eye(3)[rng.integers(0, 3, n)]
    return x


def as_rows(inputs: Any) -> NDArray[np.float64] | None:
    """What a careful service makes of an input: numbers of the right shape, or nothing."""
    if isinstance(inputs, list):
        cells = [cell for row in inputs for cell in row]
        if any(isinstance(cell, bool) or not isinstance(cell, int | float) for cell in cells):
            return None
    try:
        array = np.asarray(inputs)
    except ValueError:
        return None
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != WIDTH:
        return None
    array = array.astype(np.float64)
    return array if np.isfinite(array).all() else None


def test_every_case_is_what_it_says() -> None:
    made = fuzz.cases(rows(), domain(), 2000, np.random.default_rng(1))
    assert len(made) == 2000
    for case in made:
        array = as_rows(case.inputs)
        if case.expected == "refused":
            assert array is None, case.kind
        else:
            assert array is not None, case.kind
            assert domain().holds(array).all() == (case.expected == "scored"), case.kind


def test_every_kind_comes_up_in_turn() -> None:
    made = fuzz.cases(rows(), domain(), len(fuzz.KINDS), np.random.default_rng(1))
    assert {case.kind for case in made} == set(fuzz.KINDS)


def test_kinds_that_a_domain_does_not_know_stay_away() -> None:
    bare = domain(low=np.full(WIDTH, -np.inf), high=np.full(WIDTH, np.inf), integral=np.zeros(WIDTH, bool), groups=())
    kinds = {case.kind for case in fuzz.cases(rows(), bare, 500, np.random.default_rng(1))}
    assert kinds.isdisjoint({"two categories", "fraction of a whole number", "beyond the range", "largest double"})
    assert {"not a number", "denormals", "text"} <= kinds


def test_same_seed_same_cases() -> None:
    once, again = (fuzz.cases(rows(), domain(), 200, np.random.default_rng(3)) for _ in range(2))
    assert [repr(case) for case in once] == [repr(case) for case in again]


def test_start_rows_are_checked_and_left_alone() -> None:
    x = rows()
    before = x.tobytes()
    fuzz.cases(x, domain(), 300, np.random.default_rng(0))
    assert x.tobytes() == before
    x[4, 0] = 2.0
    with pytest.raises(ThreatModelError, match="fuzz: row 4: feature 0 is 2"):
        fuzz.cases(x, domain(), 3, np.random.default_rng(0))
    with pytest.raises(ThreatModelError, match="fuzz: rows have shape"):
        fuzz.cases(x[:0], domain(), 3, np.random.default_rng(0))
