"""Intervals over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import report
from streams.probes.outcome import wilson


def test_intervals_are_wider_where_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    alike = report.share_over_seeds("share", [95, 95, 95], [100, 100, 100], rng)
    apart = report.share_over_seeds("share", [100, 100, 85], [100, 100, 100], rng)
    assert alike.value == apart.value == 0.95
    assert alike.low is not None
    assert apart.low is not None
    assert apart.low < alike.low <= wilson(285, 300)[0]


def test_interval_of_a_share_is_never_a_point() -> None:
    figure = report.share_over_seeds("share", [20, 20], [20, 20], np.random.default_rng(0))
    assert figure.high == 1.0
    assert figure.low == pytest.approx(wilson(40, 40)[0])


def test_median_over_seeds_is_that_of_their_medians() -> None:
    rng = np.random.default_rng(1)
    values = [[1.0, 1.1, 9.0], [2.0, 2.1, 2.2], [3.0, 3.1, 3.2]]
    figure = report.median_over_seeds("cost", values, rng, "us/row")
    assert figure.value == 2.1
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= 1.1
    assert 3.0 <= figure.high <= 9.0
    assert report.median_over_seeds("cost", [[1.0, 2.0, 6.0]], rng).value == 2.0
