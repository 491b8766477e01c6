"""Who was seen and who was wronged, from signals, journal and the places of records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from streams.config import KafkaSettings
from streams.demo.attackers import Attacker, Journal, Line, read_journal
from streams.demo.figures import Who, about, attackers, latency, places, recall, wronged
from streams.demo.watch import SignalSeen, Watch
from streams.store.messages import ProbeSummary

ALONE = Attacker("alone", "nes", "linf")
DILUTED = Attacker("diluted", "nes", "linf", diluted=1)


def signal(
    offset: int,
    members: list[int],
    level: Any = "ticket",
    entity: str = "client",
    entity_id: str = "aa",
    clients: tuple[str, ...] = ("aa",),
    partition: int = 0,
    pilot: bool = False,
) -> SignalSeen:
    places = [(member, 0) for member in members]
    return SignalSeen(
        f"{partition}-{offset}",
        partition,
        offset,
        0,
        "query-cluster",
        level,
        entity,
        entity_id,
        places,
        list(clients),
        pilot,
    )


JOURNAL = {
    "alone": [Line("alone", f"alone-{n}", True) for n in range(40)],
    "diluted": [Line("diluted", f"diluted-{n}", n % 2 == 0) for n in range(40)],
}
WHERE = {line.request: (0, 100 + n) for n, line in enumerate(JOURNAL["alone"])} | {
    line.request: (1, 500 + n) for n, line in enumerate(JOURNAL["diluted"])
}


def test_queries_are_the_attackers_own_up_to_and_with_the_row_that_signalled() -> None:
    signals = [
        signal(105, [102, 103, 105]),
        signal(120, list(range(105, 121)), "page"),
        signal(130, list(range(105, 131)), "page"),
        signal(509, [505, 509], partition=1),
        signal(520, [509, 520], "page", partition=1),
    ]
    alone, diluted = attackers((ALONE, DILUTED), JOURNAL, WHERE, signals, signals)
    assert (alone.queries_before_ticket, alone.queries_before_page, alone.paged) == (6, 21, True)
    assert (diluted.queries_before_ticket, diluted.queries_before_page, diluted.paged) == (5, 11, True)
    assert (diluted.attack, diluted.accounts, diluted.diluted) == ("diluted", 1, 1)


def test_a_page_counts_as_the_first_ticket_too() -> None:
    (alone,) = attackers((ALONE,), JOURNAL, WHERE, [signal(103, [103], "page")], [])
    assert (alone.queries_before_ticket, alone.queries_before_page) == (4, 4)


def test_an_attacker_is_paged_only_by_the_evidence_of_an_open_incident() -> None:
    pages = [signal(120, [119, 120], "page")]
    assert not attackers((ALONE,), JOURNAL, WHERE, pages, [])[0].paged
    assert not attackers((ALONE,), JOURNAL, WHERE, pages, [signal(120, [119, 120])])[0].paged
    assert not attackers((ALONE,), JOURNAL, WHERE, pages, [signal(120, [119, 120], "page", pilot=True)])[0].paged
    assert attackers((ALONE,), JOURNAL, WHERE, pages, pages)[0].paged


def test_a_signal_about_others_rows_is_not_about_the_attacker() -> None:
    numbers = {(0, 100): 0, (0, 101): 1}
    assert about(signal(101, [100, 101]), numbers) == 1
    assert about(signal(101, [7, 8, 101]), numbers) is None
    assert about(signal(101, [100, 101], partition=1), numbers) is None
    assert about(signal(7, [7]), numbers) is None


def test_an_attacker_who_was_never_seen_has_no_counts() -> None:
    (alone,) = attackers((ALONE,), JOURNAL, WHERE, [signal(520, [520], "page", partition=1)], [])
    assert (alone.paged, alone.queries_before_ticket, alone.queries_before_page) == (False, None, None)


WHO = Who(attackers={"aa": "alone"}, benign={"b1": "live-1", "b2": "live-2"}, sensors={"5e": "live-sensor-0"})


@pytest.mark.parametrize(
    ("seen", "benign", "sensors"),
    [
        (signal(1, [1], "page", entity_id="b1", clients=("b1",)), {"live-1"}, set()),
        (signal(1, [1], "ticket", entity_id="b1", clients=("b1",)), set(), set()),
        (signal(1, [1], "page", entity_id="b1", clients=("b1",), pilot=True), set(), set()),
        (signal(1, [1], "page", entity_id="5e", clients=("5e",)), set(), {"live-sensor-0"}),
        (signal(1, [1], "page", entity_id="aa", clients=("aa",)), set(), set()),
        (signal(1, [1], "page", "cluster", "1-0", ("b1", "b2", "5e")), {"live-1", "live-2"}, {"live-sensor-0"}),
        (signal(1, [1], "page", "cluster", "1-0", ("aa", "b2")), set(), set()),
    ],
)
def test_the_wronged_are_those_whom_a_page_names(seen: SignalSeen, benign: set[str], sensors: set[str]) -> None:
    assert wronged([seen], WHO) == (benign, sensors)


def test_controls_are_no_attacks() -> None:
    def summary(attack: str, kind: str) -> ProbeSummary:
        return ProbeSummary(attack, kind, "t", 40, 2, 20, 0.5, 0.1, 0.9, None, None, 0)

    found = recall([summary("transfer_pgd", "burst"), summary("control_direct", "control")])
    assert list(found) == ["transfer_pgd"]
    assert (found["transfer_pgd"].n, found["transfer_pgd"].detected) == (40, 20)


def test_latency_quantiles_are_of_what_was_measured(redis: Any) -> None:
    watch = Watch(redis, "digits", "events", 1)
    assert latency(watch).p99 is None
    watch.latencies_ms = [float(n) for n in range(1, 101)]
    found = latency(watch)
    assert found.p50 == 51.0
    assert found.p99 == 100.0


def test_the_journal_says_who_asked_what(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == {}
    with path.open("ab") as out:
        journal = Journal(out)
        for lines in JOURNAL.values():
            for line in lines:
                journal.note(line)
    assert read_journal(path) == JOURNAL


def test_places_of_requests_are_found_in_the_topic(kafka: str, topic: Callable[..., str]) -> None:
    name = topic(2)
    producer = KafkaProducer(bootstrap_servers=kafka)
    sent = {}
    for number in range(20):
        value = json.dumps({"request": {"id": f"r{number}", "inputs": []}, "response": {}}).encode()
        sent[f"r{number}"] = producer.send(name, value, partition=number % 2)
    again = producer.send(name, json.dumps({"request": {"id": "r3"}}).encode(), partition=1)
    producer.send(name, b'{"request":{"inputs":[]}}', partition=0)
    producer.flush()
    found = places(KafkaSettings(bootstrap=kafka), name, frozenset({"r3", "r4", "other"}))
    assert found == {key: (sent[key].get(5).partition, sent[key].get(5).offset) for key in ("r3", "r4")}
    assert again.get(5).offset > found["r3"][1]
    producer.close()
