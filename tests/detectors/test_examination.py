"""What a report tells of single inputs and of more data, beside what scipy and simple counting say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from detectors.calibration import order_statistics
from detectors.calibration.conformal import upper_pvalues
from detectors.calibration.examination import (
    Examination,
    FixedRate,
    LeftOut,
    curve,
    fixed_rates,
    left_out,
    uniformities,
)
from detectors.calibration.rehearsal import fooling
from detectors.contract import Reference


def test_distance_from_uniform_and_its_chance_are_smirnovs() -> None:
    rng = np.random.default_rng(0)
    calibration, fresh = np.sort(rng.normal(size=1500)), rng.normal(0.1, 1.0, size=700)
    (found, *_) = uniformities(["one"], upper_pvalues(fresh, calibration)[:, None], np.zeros(700, np.int32), [1500])
    both = stats.ks_2samp(fresh, calibration)
    larger = stats.ks_2samp(fresh, calibration, alternative="less", method="asymp")
    assert found.distance == pytest.approx(both.statistic, abs=2e-3)
    assert found.excess == pytest.approx(larger.statistic, abs=2e-3)
    assert found.chance == pytest.approx(larger.pvalue, rel=0.15)


def test_a_silent_detector_is_far_from_uniform_and_harmless() -> None:
    (found, *_) = uniformities(["one"], np.ones((300, 1)), np.zeros(300, np.int32), [500])
    assert (found.distance, found.excess, found.chance) == (1.0, 0.0, 1.0)


def test_the_farthest_class_is_the_one_whose_rows_were_moved() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3, dtype=np.int32), 100)
    pvalues = np.where(labels == 1, rng.random(300) ** 3, rng.random(300))[:, None]
    examined = Examination(uniformities(["one"], pvalues, labels, [1000]), (), 300, 0)
    farthest = examined.farthest("one")
    assert farthest is not None and farthest.label == 1
    assert farthest.chance is not None and farthest.chance < 1e-4
    assert Examination.from_dict(examined.to_dict()) == examined


def test_an_examination_of_before_is_read() -> None:
    benign = np.random.default_rng(4).random(50)
    whole = uniformities(["one"], benign[:, None], np.zeros(50, np.int32), [100])
    told = Examination(whole, (curve("one", benign, benign + 0.5),), 50, 50).to_dict()
    for name in ("against", "source", "left_out", "fixed"):
        del told[name]
    for one in told["uniformity"]:
        del one["chance"]
    read = Examination.from_dict(told)
    assert (read.against, read.source, read.left_out, read.fixed) == (50, "probes", (), ())
    assert read.uniformity[0].chance is None


def test_fixed_thresholds_have_betas_bound() -> None:
    assert fixed_rates(660, 660) == tuple(
        FixedRate(level, rank, 660, pytest.approx(stats.beta.ppf(0.95, rank, 661 - rank)))
        for level, rank in ((0.01, 6), (0.1, 66))
    )
    (least, *_) = fixed_rates(8000, 20_000)
    assert least.rank == 8 * 20_001 // 8001
    assert stats.beta.ppf(0.95, 1, 2995) <= 1e-3 < stats.beta.ppf(0.95, 1, 2994)


def test_fixed_thresholds_hold_in_repeated_calibrations() -> None:
    rng = np.random.default_rng(2)
    one = next(rate for rate in fixed_rates(500, 500) if rate.level == 0.01)
    thresholds = np.sort(rng.random((4000, 500)), axis=1)[:, -one.rank]
    assert np.mean(1.0 - thresholds <= one.bound) == pytest.approx(0.95, abs=0.015)


def test_left_out_attack_is_told_by_its_curve() -> None:
    rng = np.random.default_rng(3)
    benign, odd = rng.normal(size=1000), rng.normal(2.0, 1.0, 300)
    told = left_out("pgd", benign, odd)
    assert told == LeftOut("pgd", 300, curve("", benign, odd).area, float(np.mean(odd > np.sort(benign)[-11])))


def test_only_rehearsed_rows_that_change_the_answer_are_judged() -> None:
    def rows(labels: list[int]) -> Reference:
        answers = np.array(labels, dtype=np.int32)
        return Reference(np.arange(len(labels), dtype=np.float64)[:, None], answers, truth=np.zeros_like(answers))

    ((name, kept),) = fooling([("none", rows([0, 0])), ("some", rows([0, 2, 1]))])
    assert name == "some"
    assert kept.inputs[:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("coming", "most"), [(40, 1), (100, 5), (1000, 0)])
def test_more_units_buy_what_the_report_says(coming: int, most: int) -> None:
    for rank in (1, 2, 5):
        needed = order_statistics.units_needed(coming, most, rank=rank)
        assert order_statistics.best_rank(coming, needed, most) >= rank
        assert order_statistics.best_rank(coming, needed - 1, most) < rank
    units = order_statistics.units_needed(coming, most)
    assert order_statistics.least_budget(coming, units) <= most
    assert order_statistics.least_budget(coming, units - 1) > most


def test_endless_calibration_spends_the_whole_risk() -> None:
    limit = order_statistics.most_expected(100, 5)
    assert stats.binom.sf(5, 100, limit / 100) == pytest.approx(order_statistics.RISK)
    units = 10_000_000
    assert 100 * order_statistics.best_rank(100, units, 5) / units == pytest.approx(limit, rel=1e-3)
    assert math.isclose(order_statistics.most_expected(5, 5), 5.0)
