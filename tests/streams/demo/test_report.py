"""The judgement of a demo fails on each criterion that is broken, and on nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streams.demo.report import (
    AttackerFigures,
    LatencyFigures,
    RecallFigures,
    Report,
    judge,
)

SECONDS = 60.0


def attacker(name: str = "nes", paged: bool = True, ticket: int | None = 6, page: int | None = 21) -> AttackerFigures:
    return AttackerFigures(name, 1, 0, paged, ticket, page)


def good() -> Report:
    return Report(
        records_produced=12_000,
        rows_scored=11_500,
        rows_invalid=0,
        rows_lost=0,
        rows_double_counted=0,
        attackers=[attacker("a"), attacker("b", ticket=20, page=60), attacker("c", ticket=None, page=300)],
        budget_n=1,
        benign_clients=199,
        benign_clients_paged=1,
        sensors_paged=0,
        probe_recall={"transfer_pgd": RecallFigures(20, 18, 0.5, 1.0), "hop_skip_jump": RecallFigures(3, 3, 0.4, 1.0)},
        latency_ms=LatencyFigures(40.0, 1000.0),
        startup_seconds=30.0,
    )


def test_a_demo_at_every_limit_holds() -> None:
    assert judge(good(), SECONDS) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"records_produced": 11_999}, "11,999 records"),
        ({"rows_scored": 0}, "no row was scored"),
        ({"rows_invalid": 1}, "refused"),
        ({"rows_lost": 1}, "1 rows were lost"),
        ({"rows_double_counted": 2}, "2 rows were counted twice"),
        ({"attackers": [attacker("a"), attacker("b", paged=False)]}, "attacker b was not paged"),
        ({"attackers": [attacker(ticket=21)]}, "ticketed after 21 queries, not 20"),
        ({"attackers": [attacker(ticket=None)]}, "ticketed after inf"),
        ({"attackers": [attacker(page=61)]}, "paged after 61 queries, not 60"),
        ({"budget_n": 2}, "budget is 2"),
        ({"benign_clients_paged": 2}, "2 benign clients"),
        ({"budget_n": 0}, "1 benign clients were paged, the budget is 0"),
        ({"sensors_paged": 1}, "1 sensors"),
        ({"latency_ms": LatencyFigures(40.0, 1001.0)}, "1001 ms"),
        ({"latency_ms": LatencyFigures(None, None)}, "no signal became an incident"),
    ],
)
def test_each_broken_criterion_is_told(change: dict[str, Any], says: str) -> None:
    failed = judge(msgspec.structs.replace(good(), **change), SECONDS)
    assert len(failed) == 1, failed
    assert says in failed[0]


def test_a_demo_without_attackers_shows_nothing() -> None:
    failed = judge(msgspec.structs.replace(good(), attackers=[]), SECONDS)
    assert "there was no attacker" in failed


@pytest.mark.parametrize(
    ("attack", "figures", "says"),
    [
        ("transfer_pgd", None, "0 probes of transfer_pgd finished, not 20"),
        ("transfer_pgd", RecallFigures(19, 19, 0.5, 1.0), "19 probes of transfer_pgd finished"),
        ("transfer_pgd", RecallFigures(100, 89, 0.5, 1.0), "89% of the probes of transfer_pgd"),
        ("hop_skip_jump", None, "0 probes of hop_skip_jump finished, not 3"),
        ("hop_skip_jump", RecallFigures(2, 2, 0.3, 1.0), "2 probes of hop_skip_jump finished"),
        ("hop_skip_jump", RecallFigures(3, 2, 0.3, 1.0), "67% of the probes of hop_skip_jump"),
    ],
)
def test_each_broken_probe_criterion_is_told(attack: str, figures: RecallFigures | None, says: str) -> None:
    recall = dict(good().probe_recall)
    del recall[attack]
    if figures is not None:
        recall[attack] = figures
    failed = judge(msgspec.structs.replace(good(), probe_recall=recall), SECONDS)
    assert len(failed) == 1, failed
    assert says in failed[0]


def test_records_are_judged_by_the_length_of_the_traffic() -> None:
    assert judge(msgspec.structs.replace(good(), records_produced=6_000), 30.0) == []
    assert judge(good(), 61.0) != []


def test_the_report_has_the_keys_that_are_promised() -> None:
    written = msgspec.json.decode(msgspec.json.encode(good()))
    assert list(written) == [
        "records_produced", "rows_scored", "rows_invalid", "rows_lost", "rows_double_counted", "attackers", "budget_n",
        "benign_clients", "benign_clients_paged", "sensors_paged", "probe_recall", "latency_ms", "startup_seconds",
    ]  # fmt: skip
    assert list(written["attackers"][0]) == [
        "attack", "accounts", "diluted", "paged", "queries_before_ticket", "queries_before_page",
    ]  # fmt: skip
    assert list(written["probe_recall"]["transfer_pgd"]) == ["n", "detected", "low", "high"]
    assert list(written["latency_ms"]) == ["p50", "p99"]
