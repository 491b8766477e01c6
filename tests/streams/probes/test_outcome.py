"""Outcomes, recall with its interval, and what makes monitoring blind."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.probes.outcome import RECENT_UNITS, blindness, judge, summarise, wilson
from streams.store.messages import ProbeOutcome, ProbePlan, ProbeVerdict

PLAN = ProbePlan(
    campaign="00" * 8,
    attack="hop_skip_jump",
    kind="campaign",
    threat="L2",
    client="c",
    sent=4,
    inputs=4,
    issued=0,
    deadline=9,
)
OUTCOME = judge(PLAN, [], 7)


def verdict(counter: int, level: int = 0, **changes: Any) -> ProbeVerdict:
    plain = ProbeVerdict(
        probe=f"{'00' * 8}-{counter:08x}",
        status="scored",
        partition=0,
        offset=100 + counter,
        rows=1,
        time=1_000_000 + counter,
        at=1_000_000 + counter + 25_000,
        issued=0,
        level=level,
        ratio=0.5,
        pvalues={},
        fused=1.0,
    )
    return msgspec.structs.replace(plain, **changes)


def outcome(attack: str = "hop_skip_jump", detected: bool = True, **changes: Any) -> ProbeOutcome:
    kind = {"transfer_pgd": "burst", "control": "control"}.get(attack, "campaign")
    plain = msgspec.structs.replace(
        OUTCOME,
        attack=attack,
        kind=kind,
        inputs=20,
        arrived=20,
        detected=detected,
        latency_ms=9.0 if detected else None,
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize(
    ("detected", "n", "low", "high"),
    # The closed form by hand; at k = 0 its upper end is z^2 / (n + z^2).
    [(9, 10, 0.59585, 0.98212), (0, 5, 0.0, 0.43449), (5, 5, 0.56551, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_is_the_published_one(detected, n, low, high):
    assert wilson(detected, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(case):
    detected, n = case
    low, high = wilson(detected, n)
    assert 0 <= low <= detected / n <= high <= 1
    assert wilson(n - detected, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_queries_are_counted_in_the_order_of_the_log():
    said = [verdict(3, 2), verdict(0), verdict(2, 2), verdict(1, 1)]
    result = judge(PLAN, said, 7)
    assert (result.detected, result.ticketed) == (True, True)
    assert (result.queries_to_ticket, result.queries_to_page, result.arrived) == (2, 3, 4)
    assert result.latency_ms == 25.0


def test_rows_of_one_record_count_together():
    result = judge(PLAN, [verdict(0, rows=3), verdict(1, 2, rows=5)], 7)
    assert (result.arrived, result.queries_to_page, result.queries_to_ticket) == (8, 8, 8)


def test_expired_verdicts_are_excluded_and_never_detect():
    result = judge(PLAN, [verdict(0, 2, status="expired"), verdict(1)], 7)
    assert (result.arrived, result.excluded, result.detected) == (1, 1, False)


def test_nothing_back_is_not_detected():
    assert (OUTCOME.detected, OUTCOME.arrived, OUTCOME.latency_ms) == (False, 0, None)


def test_bursts_are_stated_over_inputs_with_an_interval_over_bursts():
    units = [outcome("transfer_pgd", True, fooled=15) for _ in range(3)] + [outcome("transfer_pgd", False, fooled=5)]
    (summary,) = summarise(units, 5)
    assert (summary.n, summary.detected, summary.units, summary.recall) == (80, 60, 4, 0.75)
    assert (summary.low, summary.high) == wilson(3, 4)
    assert summary.robust_accuracy == pytest.approx(1 - 50 / 80)


def test_campaigns_are_stated_over_campaigns_and_abandoned_ones_left_out():
    units = [
        outcome(detected=True, queries_to_page=30, latency_ms=10.0),
        outcome(detected=True, queries_to_page=50, latency_ms=30.0),
        outcome(detected=False),
        outcome(detected=False, abandoned="endpoint away"),
    ]
    (summary,) = summarise(units, 5)
    assert (summary.n, summary.detected, summary.units) == (3, 2, 3)
    assert summary.latency_p99_ms == 30.0
    assert summary.robust_accuracy is None
    assert summarise([outcome(abandoned="x")], 5) == []


def test_sight_is_not_judged_on_too_few_units():
    assert blindness([], 0.8, 3) is None
    assert blindness([outcome(detected=False)] * 2, 0.8, 3) is None
    assert "0 of the last 3 hop_skip_jump" in (blindness([outcome(detected=False)] * 3, 0.8, 3) or "")


def test_low_recall_of_one_attack_is_blindness_although_another_is_seen():
    units = [outcome("transfer_pgd", True)] * 10 + [outcome(detected=i % 2 == 0) for i in range(10)]
    assert "5 of the last 10 hop_skip_jump" in (blindness(units, 0.8, 3) or "")


def test_recall_on_the_objective_is_enough_and_old_misses_are_forgotten():
    assert blindness([outcome(detected=i >= 2) for i in range(10)], 0.8, 3) is None
    old = [outcome(detected=False)] * 20
    assert blindness(old + [outcome()] * RECENT_UNITS, 0.8, 3) is None


def test_undetected_controls_are_health():
    assert blindness([outcome("control", False)] * 10, 0.8, 3) is None


def test_one_probe_that_stays_away_is_blindness_until_enough_came_back():
    away = outcome("control", False, arrived=0)
    assert "0 of 20 rows of a control probe" in (blindness([outcome(), away], 0.8, 3) or "")
    assert blindness([away, outcome(), outcome()], 0.8, 3) is not None
    assert blindness([away, outcome(), outcome(), outcome()], 0.8, 3) is None


def test_expired_marks_point_at_the_clocks():
    assert "clocks" in (blindness([outcome(detected=False, arrived=0, excluded=20)], 0.8, 3) or "")


def test_probes_that_cannot_be_sent_are_blindness():
    failed = outcome(detected=False, arrived=0, abandoned="no answer from the endpoint")
    assert blindness([failed] * 2, 0.8, 3) is None
    assert "could not be sent: no answer from the endpoint" in (blindness([failed] * 3, 0.8, 3) or "")
    assert blindness([failed, failed, outcome()], 0.8, 3) is None
