from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from streams.redteam.intervals import Share, change, holm, mcnemar, mean_interval


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, False, True, False], [both, gained, lost, neither])
    after = np.repeat([True, True, False, False], [both, gained, lost, neither])
    return before, after


def test_newcombes_own_example_is_met() -> None:
    # Newcombe 1998, the example of cells 36, 12, 2, 0 under method 10.
    found = change(*pairs(36, 12, 2, 0))
    assert (found.gained, found.lost) == (12, 2)
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0569, abs=5e-4)
    assert found.high == pytest.approx(0.3404, abs=5e-4)


def test_no_change_has_an_interval_about_zero() -> None:
    found = change(*pairs(40, 0, 0, 60))
    assert found.value == 0.0
    assert found.low <= 0.0 <= found.high
    assert found.p == 1.0
    assert not found.significant


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda cells: sum(cells) > 0))
def test_a_change_lies_in_its_interval_and_turns_round_with_its_sides(cells: tuple[int, int, int, int]) -> None:
    before, after = pairs(*cells)
    there, back = change(before, after), change(after, before)
    assert -1 - 1e-9 <= there.low <= there.value + 1e-9
    assert there.value - 1e-9 <= there.high <= 1 + 1e-9
    assert back.low == pytest.approx(-there.high)
    assert back.p == there.p


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    wanted = 1.0 if gained + lost == 0 else binomtest(gained, gained + lost, 0.5).pvalue
    assert mcnemar(gained, lost) == pytest.approx(wanted)


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_shares_of_no_rows_say_so() -> None:
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).to_dict()["value"] is None
    assert Share(9, 10).to_dict() == {"value": 0.9, "low": 0.59585, "high": 0.982124, "hits": 9, "n": 10}


def test_the_mean_of_one_repetition_has_no_interval() -> None:
    mean, low, high = mean_interval([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
