"""What calibration promises: p-values, e-values, thresholds, pools, residuals, repeaters."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from detectors.calibration import budget, clusters, order_statistics, pools, repeaters, residual, weeks
from detectors.calibration.conformal import ScoreCalibration, lower_pvalues, pvalue_table, thinned, upper_pvalues
from detectors.calibration.evalues import evalue, evalue_table, normal_scores, updates_to_cross
from detectors.calibration.fusion import Fusion, equal_weights, hedged, logistic_weights
from detectors.calibration.tail import Tail
from detectors.calibration.thresholds import LEAST_SCALE, combine, own_scales
from detectors.queries.walk import GAIN_CAP, JOIN_P, NO_BITS, RESIDUAL_CLIP, TRACE

values_with_ties = st.lists(st.integers(-6, 6), min_size=2, max_size=60).map(lambda v: np.array(v, dtype=np.float64))

# --- p-values ---------------------------------------------------------------------------------------------------------


def each_against_the_others(values: NDArray[np.float64], small: bool, most: int) -> NDArray[np.float64]:
    """The p-value of each value by the others: by exchangeability, each is as likely as the next to be the new one."""
    found = []
    for i in range(len(values)):
        others = thinned(np.sort(np.delete(values, i)), most, small=small)
        found.append((lower_pvalues if small else upper_pvalues)(values[i : i + 1], others)[0])
    return np.array(found)


@settings(deadline=None)
@given(values_with_ties, st.booleans(), st.integers(1, 80))
def test_pvalues_are_super_uniform_thinned_or_not(values: NDArray[np.float64], small: bool, most: int) -> None:
    p = each_against_the_others(values, small, most)
    for level in np.unique(p):
        assert (p <= level).sum() <= level * len(values) + 1e-9


def test_pvalues_without_ties_waste_nothing() -> None:
    values = np.random.default_rng(0).normal(size=50)
    p = each_against_the_others(values, small=False, most=100)
    np.testing.assert_allclose(np.sort(p), pvalue_table(49))


@pytest.mark.parametrize("small", [False, True])
def test_thinning_keeps_quantiles(small: bool) -> None:
    values = np.sort(np.random.default_rng(1).exponential(size=20_000))
    kept = thinned(values, 500, small=small)
    assert len(kept) == 500
    for share in (0.01, 0.2, 0.5, 0.9, 0.99):
        assert np.searchsorted(values, np.quantile(kept, share)) / len(values) == pytest.approx(share, abs=0.005)


def test_scores_are_normalised_by_class_and_then_conformal() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 6000).astype(np.int32)
    scores = np.column_stack([rng.normal(5 * labels, 1 + labels), rng.exponential(size=6000)])
    calibration = ScoreCalibration.fit(scores[:2000], labels[:2000], scores[2000:4000], labels[2000:4000], 3)
    p = calibration.pvalues(calibration.ranks(scores[4000:], labels[4000:]))
    for detector, label, level in itertools.product(range(2), range(3), (0.02, 0.1, 0.5)):
        share = (p[labels[4000:] == label, detector] <= level).mean()
        assert share == pytest.approx(level, abs=4 * math.sqrt(level / 600) + 0.01)


def test_rare_classes_and_constant_scores_are_normalised_like_all() -> None:
    labels = np.array([0] * 100 + [1] * 3, dtype=np.int32)
    scores = np.column_stack([np.arange(103.0), np.zeros(103)])
    calibration = ScoreCalibration.fit(scores, labels, scores, labels, 3)
    assert (calibration.centres[1] == calibration.centres[2]).all()
    assert (calibration.spreads > 0).all()
    assert (calibration.pvalues(calibration.ranks(scores, labels))[:, 1] == 1.0).all()


# --- e-values ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 3000))
def test_mean_evalue_of_conformal_ranks_is_at_most_one(m: int) -> None:
    table = evalue_table(m)
    assert table.mean() <= 1.0 + 1e-12
    assert (np.diff(table) <= 1e-12).all()
    assert table[-1] == 0.5


def test_evalue_is_the_mixture_that_it_claims_to_be() -> None:
    for p in (1e-6, 0.003, 0.2, 0.7, 0.999, 0.99995, 1.0):
        mixed, _ = integrate.quad(lambda kappa, p=p: kappa * p ** (kappa - 1.0), 0.0, 1.0)
        assert evalue(np.array([p]))[0] == pytest.approx(mixed, rel=1e-6)

    def whole(low: float, high: float) -> float:
        return float(integrate.quad(lambda p: float(evalue(np.array([p]))[0]), low, high)[0])

    parts = [whole(10.0**power, 10.0 ** (power + 1)) for power in range(-12, 0)]
    assert sum(parts) == pytest.approx(1.0, abs=0.05)  # the rest lies below 1e-12, where the integrand has no end


def test_normal_scores_are_normal() -> None:
    scores = normal_scores(4001)
    assert np.isfinite(scores).all()
    assert (np.diff(scores) < 0).all()
    assert scores.std() == pytest.approx(1.0, abs=0.01)


def test_fastest_way_to_cross_counts_updates() -> None:
    assert updates_to_cross(0.5, 1.0) == 1
    assert updates_to_cross(2.0, 1.0) == 3
    assert updates_to_cross(1e4, 69.0) == 3
    assert updates_to_cross(10.0, 0.5) is None


# --- fusion and tail --------------------------------------------------------------------------------------------------


def made_surprise(n: int, rng: np.random.Generator, speaking: float = 0.0) -> NDArray[np.float64]:
    """-ln p of three detectors, of which the second speaks."""
    surprise = rng.exponential(size=(n, 3))
    surprise[:, 1] += speaking * rng.exponential(size=n)
    return surprise


def test_logistic_weights_follow_the_detector_that_tells() -> None:
    rng = np.random.default_rng(3)
    weights = logistic_weights(made_surprise(2000, rng), made_surprise(500, rng, speaking=4.0))
    assert weights.sum() == pytest.approx(1.0)
    assert weights[1] > 0.8
    assert (weights >= 0).all()


def test_logistic_weights_without_a_difference_are_equal() -> None:
    surprise = made_surprise(300, np.random.default_rng(4))
    assert logistic_weights(surprise, surprise * 0.2).tolist() == equal_weights(3).tolist()


def test_hedged_weights_leave_every_detector_a_voice() -> None:
    weights = hedged(np.array([0.0, 1.0, 0.0]))
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() == pytest.approx(0.25 / 3)


def test_fused_pvalues_are_calibrated_however_detectors_depend() -> None:
    rng = np.random.default_rng(5)
    common = rng.normal(size=(9000, 1))
    scores = 0.9 * common + 0.3 * rng.normal(size=(9000, 4))
    labels = np.zeros(9000, dtype=np.int32)
    calibration = ScoreCalibration.fit(scores[:1000], labels[:1000], scores[1000:3000], labels[1000:3000], 1)
    ranks = calibration.ranks(scores, labels)
    fusion = Fusion.fit(np.array([0.1, 0.2, 0.3, 0.4]), calibration, ranks[3000:6000])
    _, rank = fusion.fuse(ranks[6000:], calibration.surprise)
    p = fusion.pvalues(rank)
    for level in (0.005, 0.02, 0.1, 0.5, 0.9):
        assert (p <= level).mean() <= level + 4 * math.sqrt(level / 3000) + 0.01


def test_tail_of_exponential_values_is_exponential() -> None:
    ascending = np.sort(np.random.default_rng(6).exponential(size=20_000))
    tail = Tail.fit(ascending)
    assert tail.pvalue(1.0) is None
    for value in (6.0, 8.0, 10.0):
        found = tail.pvalue(value)
        assert found is not None
        assert math.log(found) == pytest.approx(-value, abs=0.25 * value)
    assert tail.pvalue(1e9) == pytest.approx(1e-12)


def test_no_tail_is_made_of_few_or_equal_values() -> None:
    assert Tail.fit(np.arange(50.0)).pvalue(1e9) is None
    assert Tail.fit(np.zeros(5000)).pvalue(1e9) is None


# --- thresholds -------------------------------------------------------------------------------------------------------


def test_excess_chance_is_that_of_all_orders() -> None:
    """Every order of 4 calibration and 3 coming units is equally likely: count them."""
    units, coming = 4, 3
    for rank, most in itertools.product((1, 2, 4), (0, 1, 2)):
        over = 0
        orders = list(itertools.combinations(range(units + coming), units))
        for calibration in orders:
            threshold = sorted(calibration)[units - rank]
            over += sum(place > threshold for place in range(units + coming) if place not in calibration) > most
        assert order_statistics.excess_chance(coming, rank, units, most) == pytest.approx(over / len(orders))


@pytest.mark.parametrize(("coming", "units", "most"), [(200, 900, 1), (1000, 2000, 5), (50, 1500, 0), (20, 100, 2)])
def test_rank_is_the_largest_that_fits(coming: int, units: int, most: int) -> None:
    rank = order_statistics.best_rank(coming, units, most)
    assert rank > 0
    assert order_statistics.excess_chance(coming, rank, units, most) <= 0.05
    assert order_statistics.excess_chance(coming, rank + 1, units, most) > 0.05


def test_units_needed_are_the_fewest() -> None:
    for coming, most in ((200, 0), (200, 1), (1000, 5), (1, 0), (3, 7)):
        needed = order_statistics.units_needed(coming, most)
        assert order_statistics.best_rank(coming, needed, most) > 0
        assert needed == 1 or order_statistics.best_rank(coming, needed - 1, most) == 0


def test_figures_of_the_design_hold() -> None:
    assert order_statistics.best_rank(1000, 1000, 5) == 1
    assert order_statistics.best_rank(1000, 2000, 5) == 4
    assert order_statistics.best_rank(1000, 8000, 5) == 19
    assert order_statistics.units_needed(1000, 1) == pytest.approx(3500, rel=0.02)
    assert order_statistics.units_needed(1000, 0) == 19_000


def heavy_maxima(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Maxima of clients of very different habits."""
    return np.exp(np.clip(rng.standard_t(2, n) * rng.gamma(1.0, 2.0, n), -500, 500))


def test_threshold_holds_its_budget_exactly_by_simulation() -> None:
    rng, weeks_over, pages, runs = np.random.default_rng(7), 0, 0, 3000
    for _ in range(runs):
        found = order_statistics.threshold(heavy_maxima(250, rng), 60, 2)
        assert found is not None
        count = int((heavy_maxima(60, rng) > found.value).sum())
        weeks_over += count > 2
        pages += count
    low, high = stats.binom.interval(0.999, runs, found.excess)
    assert low <= weeks_over <= high
    assert found.excess <= 0.05
    assert pages / runs == pytest.approx(found.expected, rel=0.08)


def test_too_few_units_give_no_threshold() -> None:
    assert order_statistics.threshold(np.arange(1000.0), 1000, 1) is None
    assert order_statistics.threshold(np.empty(0), 10, 1) is None


def test_equal_maxima_never_page_more() -> None:
    found = order_statistics.threshold(np.zeros(400), 100, 1)
    assert found is not None
    assert found.value == 0.0
    assert (np.zeros(100) > found.value).sum() == 0


def dependent_maxima(n: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Three statistics of each unit, of different scales and tails, that depend on each other."""
    common = rng.normal(size=n)
    return [
        np.exp(common + rng.normal(size=n)),
        np.abs(0.5 * common + rng.standard_t(3, n)),
        1e6 * np.exp(4 * common) * rng.uniform(size=n),
    ]


def test_combined_statistics_share_one_budget() -> None:
    rng, over, runs = np.random.default_rng(8), 0, 1500
    coming, units, most = 50, 220, 2
    rank = order_statistics.best_rank(coming, units, most)
    for _ in range(runs):
        scales = own_scales(dependent_maxima(60, rng), 2)
        found = combine(dependent_maxima(units, rng), scales, rank, coming, most)
        new = dependent_maxima(coming, rng)
        crossed = np.any([part > value for part, value in zip(new, found.values, strict=True)], axis=0)
        over += crossed.sum() > most
    low, high = stats.binom.interval(0.999, runs, order_statistics.excess_chance(coming, rank, units, most))
    assert low <= over <= high


def test_statistic_that_no_unit_shows_costs_the_others_nothing() -> None:
    shown = np.random.default_rng(9).exponential(size=400)
    found = combine([shown, np.zeros(400)], np.array([0.7, 1.0]), 3, 100, 2)
    assert found.values[0] == pytest.approx(np.sort(shown)[-3])
    assert (shown > found.values[0]).sum() == 2
    assert own_scales([np.zeros(5)], 1).tolist() == [LEAST_SCALE]


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=50), st.floats(1e-3, 1e3), st.integers(1, 5))
def test_rounding_never_lets_the_rank_itself_cross(maxima: list[float], scale: float, rank: int) -> None:
    values = np.array(maxima)
    found = combine([values], np.array([scale]), rank, 10, 1)
    assert (values > found.values[0]).sum() < rank


def test_budget_leaves_the_index_nothing_until_it_can_bear_it() -> None:
    poor, rich = budget.split(5, 4, 5), budget.split(5, 4, 2000)
    assert (poor.clients, poor.index, poor.index_pages) == (5, 0, False)
    assert poor.clients_risk == pytest.approx(0.05)
    assert (rich.clients, rich.index, rich.index_pages) == (4, 1, True)
    assert rich.clients_risk + rich.index_risk == pytest.approx(0.05)
    assert poor.population == rich.population == 0


# --- pools and weeks --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=400), st.integers(0, 5))
def test_no_client_stands_in_two_pools(clients: list[int], seed: int) -> None:
    who = np.array(clients, dtype=np.uint64)
    pool = pools.split(who, np.random.default_rng(seed))
    member = np.stack([pool.shape, pool.ranks, pool.fusion, pool.thresholds])
    assert (member.sum(axis=0) == 1).all()
    for client in np.unique(who[who != 0]):
        assert len({tuple(column) for column in member[:, who == client].T}) == 1
    first, second = pools.halves(who, np.random.default_rng(seed))
    assert (first ^ second).all()
    assert not set(who[first].tolist()) & set(who[second].tolist())


def test_pools_have_their_shares() -> None:
    who = np.repeat(np.arange(1, 501, dtype=np.uint64), 3)
    pool = pools.split(who, np.random.default_rng(0))
    assert [int(part.sum()) // 3 for part in (pool.shape, pool.ranks, pool.fusion)] == [40, 70, 90]


def test_client_weeks_are_cut_by_time_and_leave_nobody_out() -> None:
    clients = np.array([7, 7, 0, 9, 7, 9, 9], dtype=np.uint64)
    times = np.array([0, 50, 60, 99, 100, 150, 205], dtype=np.int64)
    cut = weeks.client_weeks(clients, times, 0, 100, 2)
    assert list(zip(cut.clients.tolist(), cut.weeks.tolist(), strict=True)) == [(7, 0), (7, 1), (9, 0), (9, 1)]
    assert cut.unit.tolist() == [0, 0, -1, 2, 1, 3, -1]
    assert cut.maxima(np.arange(7.0)).tolist() == [1.0, 4.0, 3.0, 5.0]
    assert cut.clients_a_week() == 2


@pytest.mark.parametrize(("last", "whole"), [(99, 0), (899, 0), (905, 1), (1000, 1), (1890, 1), (1905, 2), (2000, 2)])
def test_a_last_week_counts_when_it_is_nearly_over(last: int, whole: int) -> None:
    assert weeks.whole_weeks(np.array([0, last]), 1000) == whole


# --- residuals --------------------------------------------------------------------------------------------------------


def test_residual_is_the_recursion_of_its_docstring() -> None:
    scores = np.random.default_rng(10).normal(1.0, 2.0, 40)
    found = residual.residuals(scores, 7.0)
    total = 0.0
    for t, z in enumerate(scores):
        assert found[t] == pytest.approx(z - total / (t + 7.0))
        total += min(max(z, -RESIDUAL_CLIP), RESIDUAL_CLIP)


def clients_with_habits(share: float, rng: np.random.Generator, clients: int = 80, rows: int = 60) -> Any:
    who = np.repeat(np.arange(1, clients + 1, dtype=np.uint64), rows)
    habit = np.repeat(rng.normal(0, math.sqrt(share), clients), rows)
    return habit + rng.normal(0, math.sqrt(1 - share), clients * rows), who


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_share_between_clients_is_found(share: float) -> None:
    scores, who = clients_with_habits(share, np.random.default_rng(11))
    assert residual.between_share(scores, who) == pytest.approx(share, abs=0.08)


def test_clients_that_differ_much_ask_for_a_quick_learner() -> None:
    chosen = [
        residual.choose_tau(*clients_with_habits(share, np.random.default_rng(12)), np.random.default_rng(0))
        for share in (0.0, 0.6)
    ]
    assert chosen[0] > chosen[1]


# --- tables of the walk -----------------------------------------------------------------------------------------------


def test_gains_are_logarithms_with_a_floor_and_a_cap() -> None:
    table = clusters.gain_table(9999)
    assert len(table) == 10_001
    for place in (1, 2, 50, 999, 1000, 1001, 10_000):
        p = place / 10_000
        assert table[place] == pytest.approx(min(GAIN_CAP, max(0.0, math.log(JOIN_P / p))))


def made_trace(n: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.int32]]:
    trace = np.zeros(n, dtype=TRACE)
    bins = rng.integers(0, 5, n).astype(np.int32)
    trace["near"] = rng.lognormal(bins, 1.0)
    trace["near_bits"] = rng.integers(-8, 8, n) + bins
    trace["opposite"] = np.where(rng.random(n) < 0.1, np.nan, trace["near"] * rng.lognormal(1.0, 0.5, n))
    trace["index_near"] = rng.lognormal(bins - 1.0, 0.5)
    trace["index_bits"] = rng.integers(-8, 8, n) + bins
    trace["index_opposite"] = np.where(rng.random(n) < 0.1, NO_BITS, rng.binomial(64, 0.3, n))
    return trace, bins


def test_combined_pvalues_of_the_walk_are_super_uniform() -> None:
    rng = np.random.default_rng(13)
    everything = np.ones(20_000, dtype=np.bool_)
    tables = clusters.blank_tables(0.1, 50)
    tables = clusters.distance_tables(tables, *made_trace(20_000, rng), everything, everything)
    first = rng.random(20_000) < 0.5
    tables = clusters.combined_tables(tables, *made_trace(20_000, rng), first, ~first, everything)
    trace, bins = made_trace(20_000, rng)
    smaller = np.minimum(
        clusters.bin_pvalues(trace["near"], bins, tables.near_l2), tables.near_l0[bins, trace["near_bits"] + 32]
    )
    p_a = lower_pvalues(smaller, tables.combined)
    p_o = np.where(np.isfinite(trace["opposite"]), clusters.bin_pvalues(trace["opposite"], bins, tables.opposite), 1.0)
    p_b = lower_pvalues(p_a * p_o, tables.both)
    across = np.minimum(trace["index_opposite"], 64)
    index_a = lower_pvalues(
        clusters.smaller_pvalues(trace["index_near"], trace["index_bits"], bins, tables.index_l2, tables.index_l0),
        tables.index_combined,
    )
    index_o = np.where(trace["index_opposite"] < NO_BITS, tables.index_opposite[bins, across], 1.0)
    index_b = lower_pvalues(index_a * index_o, tables.index_both)
    for p in (p_a, p_b, index_a, index_b, lower_pvalues(np.minimum(index_a, index_b), tables.index_least)):
        for level in (0.002, 0.01, 0.1, 0.5):
            assert (p <= level).mean() <= level + 4 * math.sqrt(level / 10_000) + 0.001
            assert (p <= level).mean() >= 0.5 * level - 0.001


# --- repeaters --------------------------------------------------------------------------------------------------------


def test_client_that_stays_close_to_its_past_is_told_from_those_who_differ() -> None:
    rng = np.random.default_rng(14)
    who = np.repeat(np.arange(1, 41, dtype=np.uint64), 50)
    near = np.exp(rng.normal(np.repeat(rng.normal(0, 0.3, 40), 50), 0.5))
    near[who == 17] *= 0.01
    near[::50] = np.nan
    close = repeaters.near(who, near)
    assert set(who[close].tolist()) == {17}


def test_poller_that_repeats_a_third_of_its_rows_is_told_too() -> None:
    rng = np.random.default_rng(15)
    who = np.repeat(np.arange(1, 41, dtype=np.uint64), 60)
    near = np.exp(rng.normal(0, 0.5, len(who)))
    near[(who == 5) & (rng.random(len(who)) < 0.4)] *= 0.001
    assert set(who[repeaters.near(who, near)].tolist()) == {5}


def test_without_histories_nobody_repeats() -> None:
    who = np.arange(1, 30, dtype=np.uint64)
    assert not repeaters.near(who, np.full(29, np.nan)).any()
    assert not repeaters.near(np.zeros(50, dtype=np.uint64), np.ones(50)).any()


# --- the fitted ensemble ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(fitted: Any, small_world: Any) -> Any:
    """Verdicts on clients that the fit never saw."""
    home = small_world.world()
    traffic = small_world.benign(home, np.random.default_rng(77), clients=60, weeks=4, a_week=40, sensors=0)
    ensemble = fitted[0]
    return ensemble, traffic, ensemble.score(traffic, ensemble.new_state())


def test_fused_pvalues_of_new_clients_are_nearly_uniform(fresh: Any) -> None:
    _, traffic, verdicts = fresh
    for level in (0.01, 0.05, 0.2, 0.5):
        share = np.array([(verdicts.fused[traffic.clients == c] <= level).mean() for c in np.unique(traffic.clients)])
        assert share.mean() <= level + 4 * share.std() / math.sqrt(len(share)) + 0.005


def test_evalues_of_new_clients_have_a_mean_of_at_most_one(fresh: Any) -> None:
    ensemble, traffic, _ = fresh
    from detectors.calibration.history import measure

    trace = measure(ensemble.single.score(traffic).columns, ensemble.tables, ensemble.index_rows)
    left = trace["residual"]
    tables = ensemble.tables
    above = len(tables.residual) - np.searchsorted(tables.residual, left[np.isfinite(left)], side="left")
    who = traffic.clients[np.isfinite(left)]
    means = np.array([tables.evalue[above][who == client].mean() for client in np.unique(who)])
    assert means.mean() <= 1.0 + 4 * means.std() / math.sqrt(len(means))


def test_columns_of_verdicts_fit_together(fresh: Any) -> None:
    ensemble, traffic, verdicts = fresh
    n = len(traffic)
    assert verdicts.detectors == ensemble.detectors
    assert verdicts.scores.shape == verdicts.pvalues.shape == (n, len(verdicts.detectors))
    assert verdicts.statistics.shape == (n, len(verdicts.tests))
    assert ((verdicts.pvalues > 0) & (verdicts.pvalues <= 1)).all()
    assert ((verdicts.fused > 0) & (verdicts.fused <= 1)).all()
    assert np.isfinite(verdicts.statistics).all()
