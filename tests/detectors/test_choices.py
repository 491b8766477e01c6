"""Detectors of usual values and of margins, and the choices of how scores become one."""

from __future__ import annotations

import numpy as np
import pytest

from detectors import registry
from detectors.calibration.conformal import ScoreCalibration, pvalue_table, surprise_of
from detectors.calibration.evalues import evalue
from detectors.calibration.fusion import Fusion, equal_weights
from detectors.contract import Batch, Reference
from detectors.inputs.pattern import PRIOR_ROWS, Pattern
from detectors.responses.margin import Margin
from detectors.schema import Feature, FeatureSchema
from detectors.view import BatchView, ReferenceFrame

SCHEMA = FeatureSchema(tuple(Feature(f"x{f}") for f in range(5)), ("ham", "spam"))


def mails(n: int, seed: int) -> Reference:
    """Word counts: zeros mostly, more of some words in class 1; the last feature never repeats."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    used = rng.random((n, 5)) < np.where(labels[:, None] == 1, [0.6, 0.5, 0.1, 0.02, 1.0], [0.05, 0.1, 0.1, 0.02, 1.0])
    return Reference(np.where(used, rng.lognormal(size=(n, 5)), 0.0), labels)


def view_of(rows: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None) -> BatchView:
    frame = ReferenceFrame.fit(mails(300, 1), 2, np.random.default_rng(0), size=50)
    wide = np.zeros(len(rows), dtype=np.int64)
    batch = Batch(rows, labels.astype(np.int32), wide.astype(np.uint64), wide, wide, wide.astype(np.int32), outputs)
    return BatchView(frame, batch)


def test_pattern_is_the_chance_of_the_zeros_for_the_class() -> None:
    known, fresh = mails(900, 1), mails(60, 2)
    detector = Pattern().fit(known, SCHEMA, np.random.default_rng(0))
    scores = detector.score(view_of(fresh.inputs, fresh.labels))
    zero = known.inputs[:, :4] == 0.0
    pooled = (zero.sum(axis=0) + 0.5) / 901.0
    expected = np.zeros(60)
    for row in range(60):
        mine = zero[known.labels == fresh.labels[row]]
        share = (mine.sum(axis=0) + PRIOR_ROWS * pooled) / (len(mine) + PRIOR_ROWS)
        expected[row] = -np.log(np.where(fresh.inputs[row, :4] == 0.0, share, 1.0 - share)).sum()
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_small_changes_everywhere_break_the_pattern_and_one_value_in_place_of_another_does_not() -> None:
    known, fresh = mails(900, 1), mails(200, 2)
    detector = Pattern().fit(known, SCHEMA, np.random.default_rng(0))
    usual = detector.score(view_of(fresh.inputs, fresh.labels))
    shaken = detector.score(view_of(fresh.inputs + 1e-3, fresh.labels))
    scaled = detector.score(view_of(fresh.inputs * 1.5, fresh.labels))
    assert (shaken > usual + 1.0).mean() > 0.95
    assert scaled.tobytes() == usual.tobytes()
    assert "2 features" in detector.explain(view_of(np.full((1, 5), 0.01), np.zeros(1)), 0)


def test_pattern_takes_numbers_of_single_precision_for_the_usual_value() -> None:
    rng = np.random.default_rng(0)
    inputs = np.column_stack([np.where(rng.random(500) < 0.7, 0.1, rng.random(500)), rng.random((500, 4))])
    detector = Pattern().fit(Reference(inputs, np.zeros(500, dtype=np.int32)), SCHEMA, rng)
    row = inputs[inputs[:, 0] == 0.1][:1]
    single = row.astype(np.float32).astype(np.float64)
    assert single[0, 0] != 0.1
    scores = [float(detector.score(view_of(rows, np.zeros(1)))[0]) for rows in (row, single, row + 1e-3)]
    assert scores[0] == scores[1] < scores[2]


def test_margin_is_that_of_the_two_largest_scores() -> None:
    outputs = np.array([[0.5, 0.5], [0.9, 0.1], [0.0, 1.0], [np.nan, 0.3]])
    scores = Margin().score(view_of(np.ones((4, 5)), np.zeros(4), outputs))
    np.testing.assert_allclose(scores, [1.0, 0.2, 0.0, 0.0], atol=1e-12)
    without = view_of(np.ones((4, 5)), np.zeros(4))
    assert (Margin().score(without) == 0.0).all()
    assert "no scores" in Margin().explain(without, 0)


def test_sets_hold_registered_detectors_once() -> None:
    for chosen in registry.SETS.values():
        assert len(set(chosen)) == len(chosen)
        for name in chosen:
            assert registry.kind(name).name == name
    assert registry.SETS["default"] == registry.DEFAULT


# --- schemes ----------------------------------------------------------------------------------------------------------


def classes_that_differ_in_their_tails(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    heavy = rng.lognormal(0.0, 1.5, n)
    return np.where(labels == 1, heavy, rng.normal(size=n))[:, None], labels


@pytest.mark.parametrize("spread", ["median", "tail"])
def test_pvalues_are_super_uniform_whatever_the_spread(spread: str) -> None:
    below = []
    for seed in range(120):
        scores, labels = classes_that_differ_in_their_tails(900, seed)
        fitted = ScoreCalibration.fit(scores[:300], labels[:300], scores[300:600], labels[300:600], 2, spread)
        below.append((fitted.pvalues(fitted.ranks(scores[600:], labels[600:])) <= 0.05).mean())
    assert np.mean(below) <= 0.056


def test_spread_of_the_tail_shares_alarms_more_evenly_between_classes() -> None:
    scores, labels = classes_that_differ_in_their_tails(60_000, 1)
    shares = {}
    for spread in ("median", "tail"):
        fitted = ScoreCalibration.fit(
            scores[:20_000], labels[:20_000], scores[20_000:40_000], labels[20_000:40_000], 2, spread
        )
        spoken = fitted.pvalues(fitted.ranks(scores[40_000:], labels[40_000:]))[:, 0] <= 0.05
        shares[spread] = spoken[labels[40_000:] == 0].mean()
    assert shares["median"] < 0.01  # the other class takes nearly all alarms
    assert shares["tail"] > 0.02


def test_mean_fusion_is_the_mean_of_evalues_and_still_conformal() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(3000, 4)), np.zeros(3000, dtype=np.int32)
    scores[:, 1] = scores[:, 0]  # dependent
    fitted = ScoreCalibration.fit(scores[:500], labels[:500], scores[500:1000], labels[500:1000], 1, "tail", evalue)
    assert fitted.surprise.tobytes() == evalue(pvalue_table(500)).tobytes()
    product = ScoreCalibration.fit(scores[:500], labels[:500], scores[500:1000], labels[500:1000], 1)
    assert product.surprise.tobytes() == surprise_of(pvalue_table(500)).tobytes()
    fusion = Fusion.fit(equal_weights(4), fitted, fitted.ranks(scores[1000:2000], labels[1000:2000]))
    ranks = fitted.ranks(scores[2000:], labels[2000:])
    sums, rank = fusion.fuse(ranks, fitted.surprise)
    np.testing.assert_allclose(sums, evalue(fitted.pvalues(ranks)).mean(axis=1), rtol=1e-12)
    p = fusion.pvalues(rank)
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.05)
    loud = np.zeros((1, 4))
    loud[0, 2] = 50.0  # one of four speaks
    _, rank = fusion.fuse(fitted.ranks(loud, labels[:1]), fitted.surprise)
    assert fusion.pvalues(rank)[0] < 0.02
