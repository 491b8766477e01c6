"""The drift watch: how often it speaks without cause, how soon with one, and what it says of who moved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.calibration import drift
from detectors.calibration.drift import BLOCKS, HOURS_A_DAY, HOURS_A_WEEK, KAPPAS, DriftWatch, crossing_limit, log_bets

Counts = NDArray[np.int64]


class Site:
    """Blocks of clients that differ, have a daily rhythm and heavy tails; `hour` makes one hour of them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.level = 4.0 + 0.5 * self.rng.standard_normal(BLOCKS)

    def hour(self, number: int, shift: NDArray[np.float64] | float = 0.0) -> tuple[Counts, Counts]:
        rows = self.rng.poisson(15.0, BLOCKS)
        rhythm = 0.6 * np.sin(2 * np.pi * number / HOURS_A_DAY)
        mean = self.level + rhythm + shift
        noise = 0.4 * self.rng.standard_normal(BLOCKS)  # dependence within a block and hour
        oddness = rows * (mean + noise) + np.sqrt(rows) * self.rng.exponential(2.0, BLOCKS)
        return rows, np.maximum(0, oddness).astype(np.int64)


def watched(site: Site, hours: int, shift: NDArray[np.float64] | float = 0.0, since: int = 10**9) -> DriftWatch:
    watch = DriftWatch()
    for hour in range(hours):
        watch.observe(hour, *site.hour(hour, shift if hour >= since else 0.0))
    return watch


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_a_bet_is_fair_for_any_ties(values: list[int]) -> None:
    """Over all orders of values the mean of the averaged bet is 1: which of them comes last is left to chance."""
    sample = np.array(values, dtype=np.float64)
    gains = []
    for last in range(len(sample)):
        low, high = drift.rank_intervals(sample[last : last + 1], np.delete(sample, last)[:, None])
        gains.append(np.exp(log_bets(low, high))[:, 0])
    assert np.mean(gains, axis=0) == pytest.approx(np.ones(len(KAPPAS)))


def test_false_alarms_are_as_rare_as_stated() -> None:
    spoke = 0
    weeks = 0
    for seed in range(7):
        site, watch = Site(seed), DriftWatch()
        for hour in range(3 * HOURS_A_WEEK):
            watch.observe(hour, *site.hour(hour))
            if hour % HOURS_A_WEEK == HOURS_A_WEEK - 1:
                weeks += 1
                spoke += watch.speaks
    assert weeks == 21
    assert spoke <= 2  # P(more) < .01 at the stated chance of .02


def test_mean_wealth_is_one() -> None:
    """Not only below the limit: the martingale keeps its stake, whatever it loses in between."""
    rng = np.random.default_rng(1)
    ends = []
    for _ in range(150):
        martingale = drift.Martingale()
        for _ in range(24):
            place = rng.integers(0, 6, 3)
            martingale.bet(place / 6.0, (place + 1.0) / 6.0)
        ends.append(martingale.value)
    assert np.mean(ends) == pytest.approx(1.0, abs=0.2)
    assert np.max(ends) > 1.2  # it does bet


@pytest.mark.parametrize("since", [2 * HOURS_A_DAY, 10 * HOURS_A_DAY, 24 * HOURS_A_DAY])
def test_a_change_of_many_clients_is_seen_within_hours(since: int) -> None:
    site, watch = Site(3), DriftWatch()
    for hour in range(since):
        watch.observe(hour, *site.hour(hour))
    assert not watch.speaks
    hour = since
    while not watch.speaks:
        watch.observe(hour, *site.hour(hour, 0.6))
        hour += 1
        assert hour < since + 8
    for more in range(hour, hour + 6):
        watch.observe(more, *site.hour(more, 0.6))
    assert watch.kind() == "drift"
    assert (watch.breadth() or 0.0) >= drift.MANY


def test_slow_drift_is_seen_although_the_past_moves_along() -> None:
    site, watch = Site(4), DriftWatch()
    for hour in range(6 * HOURS_A_WEEK):
        watch.observe(hour, *site.hour(hour, 0.6 * max(0, hour - 2 * HOURS_A_WEEK) / HOURS_A_WEEK))
        if watch.speaks:
            break
    assert watch.speaks
    assert hour > 2 * HOURS_A_WEEK


def test_few_clients_that_move_far_do_not_make_it_speak_and_are_told_apart() -> None:
    shift = np.zeros(BLOCKS)
    shift[[3, 40]] = 12.0
    watch = watched(Site(5), 11 * HOURS_A_DAY, shift, 10 * HOURS_A_DAY)
    assert not watch.speaks  # two clients cannot mark the calibration of everybody as stale
    assert (watch.breadth() or 1.0) <= drift.FEW
    assert drift.kind_of(watch.breadth()) == "attack"


def test_looking_again_or_restoring_changes_nothing() -> None:
    whole, again = watched(Site(6), 200), DriftWatch()
    site = Site(6)
    for hour in range(200):
        made = site.hour(hour)
        again.observe(hour, *made)
        again.observe(hour, *made)
        if hour % 17 == 0:
            again = DriftWatch.restore(again.arrays())
    for name, array in whole.arrays().items():
        assert np.array_equal(array, again.arrays()[name], equal_nan=True), name


def test_silent_hours_and_blocks_are_no_evidence() -> None:
    watch = DriftWatch()
    nothing = np.zeros(BLOCKS, dtype=np.int64)
    for hour in range(3 * HOURS_A_DAY):
        watch.observe(hour, nothing, nothing)
    assert watch.martingale.steps == 0
    assert watch.breadth() is None
    site = Site(7)
    for hour in range(80, 80 + 5 * HOURS_A_DAY):
        rows, oddness = site.hour(hour)
        rows[:60], oddness[:60] = 0, 0
        watch.observe(hour, rows, oddness)
    assert watch.martingale.steps == 0  # four blocks are too few


def test_what_is_no_watch_is_refused() -> None:
    arrays = DriftWatch().arrays()
    with pytest.raises(ValueError, match="no drift watch"):
        DriftWatch.restore({**arrays, "values": np.zeros((3, BLOCKS))})


@pytest.mark.parametrize(("coming", "units", "rate"), [(200, 400, 0.02), (1000, 2000, 0.01), (50, 40, 0.1)])
def test_counts_exceed_their_limit_as_rarely_as_stated(coming: int, units: int, rate: float) -> None:
    rng = np.random.default_rng(2)
    crossed, later = rng.binomial(units, rate, 2000), rng.binomial(coming, rate, 2000)
    limits = {int(c): crossing_limit(coming, int(c), units, drift.TICKET_RISK) for c in np.unique(crossed)}
    beyond = np.mean([count > limits[int(c)] for c, count in zip(crossed, later, strict=True)])
    assert beyond <= 1.3 * drift.TICKET_RISK


def test_a_limit_without_units_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot have crossed"):
        crossing_limit(10, 3, 2, 0.01)
    assert crossing_limit(10, 2, 2, 0.01) == 10


def test_blocks_are_about_equally_filled() -> None:
    blocks = drift.block_of(np.random.default_rng(0).integers(0, 2**63, 64_000).astype(np.uint64))
    counts = np.bincount(blocks, minlength=BLOCKS)
    assert len(counts) == BLOCKS
    assert counts.min() > 850
    assert counts.max() < 1150
