from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.incidents.grouping import (
    FLOOD_GROUP,
    OPENINGS_PER_PARTITION_MINUTE,
    REOPEN_MICROSECONDS,
    Book,
    Draft,
    Fold,
    Stored,
)
from streams.store.messages import SignalMessage

SignalFactory = Callable[..., SignalMessage]

MINUTE = 60_000_000
#: Broker time of offset 0.
START = 1_700_000_000_000_000 // MINUTE * MINUTE
NOW = START + 3600_000_000


def fold(signals: Sequence[SignalMessage], book: Book | None = None, now: int = NOW) -> Fold:
    folded = Fold("digits", book or Book(), now)
    for signal in signals:
        folded.add(signal, msgspec.json.encode(signal).decode())
    return folded


Evidence = dict[str, list[tuple[str, bool]]]


def keep(evidence: Evidence, folded: Fold) -> None:
    """Append the fold's evidence to that of each incident."""
    for draft in folded.drafts:
        evidence.setdefault(draft.incident.id, []).extend(draft.evidence)


def proofs(evidence: Evidence) -> dict[str, tuple[str, str]]:
    """What `Ledger.book` reads of the evidence."""
    return {
        name: (entries[0][0], next((text for text, is_page in entries if is_page), ""))
        for name, entries in evidence.items()
    }


def carry(book: Book, folded: Fold) -> Book:
    """What Redis would hold after the fold."""
    after = Book(dict(book.aliases), dict(book.open), dict(book.recent), dict(book.incidents), folded.opening)
    after.aliases.update(folded.aliases)
    for draft in folded.drafts:
        after.incidents[draft.incident.id] = Stored(draft.incident, draft.version, draft.group)
        after.recent[draft.group] = draft.incident.id
        if draft.is_open:
            after.open[draft.group] = draft.incident.id
        else:
            after.open.pop(draft.group, None)
    return after


def only(folded: Fold) -> Draft:
    (draft,) = folded.drafts
    return draft


def resolved(book: Book, at: int) -> Book:
    """The same with every incident resolved."""
    after = Book(dict(book.aliases), {}, dict(book.recent), {}, book.opening)
    for name, stored in book.incidents.items():
        closed = msgspec.structs.replace(stored.incident, state="resolved", resolved_at=at, verdict="true")
        after.incidents[name] = Stored(closed, stored.version + 1, stored.group)
    return after


def test_signals_of_one_client_are_one_incident(make_signal: SignalFactory) -> None:
    draft = only(fold([make_signal(offset) for offset in range(30, 35)]))
    assert draft.incident.signals == 5
    assert draft.incident.rules == {"query-cluster": 5}
    assert (draft.incident.first_seen, draft.incident.last_seen) == (START + 30_000, START + 34_000)
    assert [alert.change for alert in draft.alerts] == ["opened"]
    assert [entry.id for entry in draft.log] == [f"{draft.incident.id}#{n}" for n in range(1, 6)]


def test_techniques_and_clients_are_kept_apart(make_signal: SignalFactory) -> None:
    signals = [
        make_signal(1),
        make_signal(2, client="b" * 16),
        make_signal(3, technique="AML.T0015", rule="input-sequence"),
    ]
    assert {draft.group for draft in fold(signals).drafts} == {
        "AML.T0043.001|client|" + "3fa1" * 4,
        "AML.T0043.001|client|" + "b" * 16,
        "AML.T0015|client|" + "3fa1" * 4,
    }


def test_page_raises_a_ticket_once(make_signal: SignalFactory) -> None:
    page = {"level": "page", "rule": "query-intent", "measures": {"size": 48.0}}
    draft = only(fold([make_signal(1), make_signal(2, **page), make_signal(3, **page), make_signal(4)]))
    assert draft.incident.level == "page"
    assert [alert.change for alert in draft.alerts] == ["opened", "raised"]
    assert draft.incident.title == (
        "Query-based evasion by client 3fa1…: 48 near-identical queries seeking a decision boundary"
    )


def test_pilot_says_what_it_would_have_paged(make_signal: SignalFactory) -> None:
    draft = only(fold([make_signal(1), make_signal(2, pilot=True)]))
    assert draft.incident.level == "ticket"
    assert draft.incident.title.startswith("Possible query-based evasion by client 3fa1…")
    assert draft.incident.title.endswith("(pilot: would have paged)")


def test_updates_are_announced_at_powers_of_two(make_signal: SignalFactory) -> None:
    draft = only(fold([make_signal(offset) for offset in range(40)]))
    assert [alert.id.partition("#")[2] for alert in draft.alerts] == ["1", "8", "16", "32"]


def test_cluster_of_one_client_belongs_to_the_client(make_signal: SignalFactory) -> None:
    cluster = {"entity": "cluster", "entity_id": "17-0", "rule": "index-cluster"}
    draft = only(fold([make_signal(20), make_signal(21, **cluster)]))
    assert draft.incident.rules == {"index-cluster": 1, "query-cluster": 1}
    assert draft.incident.entity == "client"


def test_cluster_of_unknown_senders_names_no_client(make_signal: SignalFactory) -> None:
    anonymous = make_signal(21, entity="cluster", entity_id="17-0", rule="index-cluster", clients=["0" * 16])
    draft = only(fold([anonymous]))
    assert (draft.incident.entity, draft.incident.entity_id, draft.incident.clients) == ("cluster", "0:17-0", [])


def test_clusters_that_share_their_clients_are_one_incident(make_signal: SignalFactory) -> None:
    accounts = [f"{n:016x}" for n in range(1, 6)]
    cluster = {"entity": "cluster", "rule": "index-intent", "level": "page"}
    signals = [
        make_signal(30, entity_id="17-0", clients=accounts[:3], **cluster),
        make_signal(40, entity_id="33-0", clients=accounts[1:5], **cluster),
        make_signal(50, entity_id="45-0", clients=accounts[3:4], **cluster),
        make_signal(60, entity_id="33-0", clients=["f" * 16, "e" * 16], **cluster),
    ]
    whole = only(fold(signals))
    assert whole.incident.clients == [*accounts, "e" * 16, "f" * 16]
    assert [alert.change for alert in whole.alerts] == ["opened"]
    book = Book()
    for signal in signals:
        book = carry(book, fold([signal], book))
    assert book.incidents[whole.incident.id].incident == whole.incident


def test_clusters_of_other_clients_are_another_incident(make_signal: SignalFactory) -> None:
    cluster = {"entity": "cluster", "rule": "index-cluster"}
    signals = [
        make_signal(30, entity_id="17-0", clients=["a" * 16, "b" * 16, "c" * 16], **cluster),
        make_signal(40, entity_id="33-0", clients=["c" * 16, "d" * 16, "e" * 16], **cluster),
        make_signal(30, partition=1, entity_id="17-0", clients=["f" * 16, "9" * 16], **cluster),
    ]
    assert len(list(fold(signals).drafts)) == 3


def test_new_signal_reopens_a_resolved_incident(make_signal: SignalFactory) -> None:
    first = fold([make_signal(1)])
    book = resolved(carry(Book(), first), at=START + 5_000)
    late = only(fold([make_signal(4)], book))
    assert (late.incident.state, late.incident.signals, late.alerts) == ("resolved", 2, [])
    again = only(fold([make_signal(4), make_signal(6)], book))
    assert again.incident.id == only(first).incident.id
    assert (again.incident.state, again.incident.verdict, again.incident.resolved_at) == ("new", None, None)
    assert [alert.change for alert in again.alerts] == ["reopened"]


def test_page_that_the_responder_had_not_seen_reopens(make_signal: SignalFactory) -> None:
    book = resolved(carry(Book(), fold([make_signal(1)])), at=START + 5_000)
    draft = only(fold([make_signal(4, level="page", rule="query-intent")], book))
    assert (draft.incident.state, draft.incident.level) == ("new", "page")


def test_signal_long_after_the_resolution_opens_another_incident(make_signal: SignalFactory) -> None:
    first = fold([make_signal(1)])
    book = resolved(carry(Book(), first), at=START + 5_000)
    late = make_signal(3)
    signals = [late, make_signal(9, time=late.time + REOPEN_MICROSECONDS + 1)]
    old, new = fold(signals, book).drafts
    assert old.incident.id == only(first).incident.id
    assert (old.incident.state, old.incident.signals) == ("resolved", 2)
    assert (new.incident.state, new.incident.signals) == ("new", 1)
    assert new.incident.id != old.incident.id


def test_suppressed_incident_counts_and_says_nothing(make_signal: SignalFactory) -> None:
    book = carry(Book(), fold([make_signal(1)]))
    ((name, stored),) = book.incidents.items()
    book.incidents[name] = Stored(msgspec.structs.replace(stored.incident, state="suppressed"), 2, stored.group)
    draft = only(fold([make_signal(2, level="page", rule="query-intent")], book))
    assert (draft.incident.state, draft.incident.signals, draft.alerts) == ("suppressed", 2, [])


def test_more_openings_than_a_person_can_read_are_one_flood(make_signal: SignalFactory) -> None:
    many = 3 * OPENINGS_PER_PARTITION_MINUTE
    signals = [make_signal(n, client=f"{n:016x}", time=START + n) for n in range(1, many + 1)]
    signals.append(make_signal(many + 1, client=f"{1:016x}", time=START + many + 1))
    folded = fold(signals)
    drafts = {draft.group: draft for draft in folded.drafts}
    assert len(drafts) == OPENINGS_PER_PARTITION_MINUTE + 1
    assert drafts[FLOOD_GROUP].incident.signals == many - OPENINGS_PER_PARTITION_MINUTE
    assert sum(draft.incident.signals for draft in drafts.values()) == many + 1
    next_minute = make_signal(many + 2, client="f" * 16, time=START + MINUTE)
    after = fold([next_minute], carry(Book(), folded))
    assert only(after).incident.entity_id == "f" * 16


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, object]]:
    clients = [f"{n:016x}" for n in range(6)]
    rows: list[dict[str, object]] = []
    offset = draw(st.integers(0, 50))
    for _ in range(draw(st.integers(1, 60))):
        offset += draw(st.integers(1, 40))
        row: dict[str, object] = {"offset": offset, "time": START + offset * draw(st.sampled_from([1_000_000]))}
        row["level"] = draw(st.sampled_from(["ticket", "ticket", "page"]))
        row["nearest"] = [0.5, draw(st.sampled_from([0.0, 1.0]))]
        if draw(st.booleans()):
            members = draw(st.lists(st.sampled_from(clients), min_size=1, max_size=4, unique=True))
            row |= {"entity": "cluster", "entity_id": f"{draw(st.integers(0, 4))}-0", "clients": members}
        else:
            row["client"] = draw(st.sampled_from(clients))
        rows.append(row)
    return rows


@settings(max_examples=150, deadline=None)
@given(rows=streams(), seed=st.integers(0, 2**32), many=st.booleans())
def test_incidents_do_not_depend_on_how_the_stream_is_cut(
    make_signal: SignalFactory, rows: list[dict[str, object]], seed: int, many: bool
) -> None:
    signals = [make_signal(**row) for row in rows]
    if many:
        signals = [msgspec.structs.replace(s, entity_id=f"{n:016x}", entity="client") for n, s in enumerate(signals)]
    at_once = fold(signals)
    whole, kept = carry(Book(), at_once), Evidence()
    keep(kept, at_once)
    cuts = sorted(random.Random(seed).sample(range(len(signals) + 1), k=min(5, len(signals))))
    book, log, alerts, evidence = Book(), [], [], Evidence()
    for first, last in zip([0, *cuts], [*cuts, len(signals)], strict=True):
        folded = fold(signals[first:last], book)
        log += [entry.id for draft in folded.drafts for entry in draft.log if entry.change != "merged"]
        alerts += [alert.id for draft in folded.drafts for alert in draft.alerts]
        book = carry(book, folded)
        keep(evidence, folded)
        book.proof = proofs(evidence)
    assert book.incidents == whole.incidents
    assert evidence == kept
    assert (book.open, book.aliases, book.opening) == (whole.open, whole.aliases, whole.opening)
    assert len(set(log)) == len(log) == len(signals)
    assert sorted(alerts) == sorted(alert.id for draft in fold(signals).drafts for alert in draft.alerts)


NEAR = {"nearest": [1.0, 2.0]}
PAGE = {"level": "page", "rule": "query-intent"}


def test_clients_that_act_as_one_are_one_campaign(make_signal: SignalFactory) -> None:
    signals = [make_signal(n, client=f"{n:016x}", time=START + n, **NEAR) for n in range(1, 5_001)]
    drafts = list(fold(signals).drafts)
    (campaign,) = [draft for draft in drafts if draft.is_open]
    (first,) = [draft for draft in drafts if not draft.is_open]
    assert campaign.incident.signals == 4_999
    assert (
        campaign.incident.title
        == "Possible query-based evasion spread over 256 or more accounts: 20 near-identical queries"
    )
    assert campaign.incident.severity == "medium"
    assert first.incident.entity_id == f"{1:016x}"
    assert first.incident.merged_into == campaign.incident.id
    assert f"{1:016x}" in campaign.incident.clients
    assert [alert.change for alert in first.alerts] == ["opened", "resolved"]
    assert [alert.change for alert in campaign.alerts][:2] == ["opened", "updated"]
    assert first.incident.history[-1].what.startswith("merged into")
    told = [msgspec.json.decode(text, type=SignalMessage).entity_id for text, _ in campaign.evidence]
    assert told == [f"{n:016x}" for n in range(1, 5_001)]  # the first client's proof is there too


def test_members_of_a_campaign_stay_in_it_wherever_they_go(make_signal: SignalFactory) -> None:
    signals = [
        make_signal(1, client="a" * 16, **NEAR),
        make_signal(2, client="b" * 16, **NEAR),
        make_signal(
            3, client="a" * 16, nearest=[7.0, 7.0]
        ),  # the first one too, and now the other corner belongs to it
        make_signal(4, client="c" * 16, nearest=[7.0, 7.0]),
    ]
    opened = [draft for draft in fold(signals).drafts if draft.is_open]
    assert [draft.incident.signals for draft in opened] == [3]
    assert opened[0].incident.clients == ["a" * 16, "b" * 16, "c" * 16]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ({"nearest": [3.0, 3.0]}, "another corner"),
        ({"technique": "AML.T0015"}, "another technique"),
        ({**PAGE}, "another level"),
        ({"partition": 1}, "another partition"),
        ({"time": START + 11 * MINUTE}, "much later"),
        ({"nearest": []}, "no corner"),
    ],
)
def test_what_is_not_near_is_no_campaign(make_signal: SignalFactory, second: dict[str, object], why: str) -> None:
    signals = [make_signal(1, client="a" * 16, **NEAR), make_signal(2, client="b" * 16, **{**NEAR, **second})]
    assert len([draft for draft in fold(signals).drafts if draft.is_open]) == 2, why


def test_who_was_only_ticketed_is_never_named_by_a_page(make_signal: SignalFactory) -> None:
    signals = [
        make_signal(1, client="a" * 16, **NEAR),
        make_signal(2, client="b" * 16, **NEAR),
        make_signal(3, client="c" * 16, **NEAR),
        make_signal(4, client="b" * 16, **NEAR, **PAGE),
        make_signal(5, client="c" * 16, **NEAR, **PAGE),
        make_signal(6, client="c" * 16, **NEAR),
    ]
    opened = {draft.incident.level: draft.incident for draft in fold(signals).drafts if draft.is_open}
    assert opened["page"].clients == ["b" * 16, "c" * 16]
    assert opened["page"].signals == 3
    assert opened["page"].entity_id == opened["ticket"].entity_id.replace("-ticket", "-page")
    assert opened["ticket"].clients == ["a" * 16, "b" * 16, "c" * 16]
    assert opened["page"].severity == "high"


def test_incident_that_somebody_works_on_is_not_merged(make_signal: SignalFactory) -> None:
    book = carry(Book(), fold([make_signal(1, client="a" * 16, **NEAR)]))
    ((name, stored),) = book.incidents.items()
    book.incidents[name] = Stored(msgspec.structs.replace(stored.incident, state="in_progress"), 2, stored.group)
    folded = fold([make_signal(2, client="b" * 16, **NEAR), make_signal(3, client="a" * 16, **NEAR)], book)
    drafts = {draft.incident.entity: draft.incident for draft in folded.drafts}
    assert (drafts["client"].state, drafts["client"].signals) == ("in_progress", 2)
    assert drafts["cluster"].clients == ["b" * 16]


def test_campaigns_of_partitions_are_one_in_any_order(make_signal: SignalFactory) -> None:
    def burst(partition: int) -> list[SignalMessage]:
        return [
            make_signal(n, partition=partition, client=f"{partition:08x}{n:08x}", time=START + n, **NEAR)
            for n in range(1, 6)
        ]

    def run(order: Sequence[int]) -> dict[str, tuple[object, ...]]:
        book = Book()
        for partition in order:
            book = carry(book, fold(burst(partition), book))
        return {
            name: (s.incident.signals, s.incident.clients, s.incident.partitions, s.incident.title, s.incident.state)
            for name, s in book.incidents.items()
        }

    assert run([0, 1, 2]) == run([2, 1, 0])
    assert sum(state != "resolved" for *_, state in run([0, 1, 2]).values()) == 1


def test_order_of_partitions_does_not_matter_to_the_flood(make_signal: SignalFactory) -> None:
    def burst(partition: int) -> list[SignalMessage]:
        return [
            make_signal(n, partition=partition, client=f"{partition:08x}{n:08x}", time=START + n)
            for n in range(1, 2 * OPENINGS_PER_PARTITION_MINUTE)
        ]

    def run(order: Sequence[int]) -> dict[str, tuple[object, ...]]:
        book = Book()
        for partition in order:
            book.opening = Book().opening
            book = carry(book, fold(burst(partition), book))
        return {
            name: (
                s.incident.signals,
                s.incident.title,
                s.incident.clients,
                s.incident.first_seen,
                s.incident.last_seen,
            )
            for name, s in book.incidents.items()
        }

    assert run([0, 1]) == run([1, 0])


@pytest.mark.parametrize("wide", [1, 40_000, 1_000_000])
def test_wide_evidence_keeps_fewer_entries(wide: int) -> None:
    from streams.incidents.grouping import EVIDENCE_BYTES, EVIDENCE_LEAST, evidence_kept

    kept = evidence_kept(["x" * wide])
    assert kept == EVIDENCE_LEAST or kept * wide <= EVIDENCE_BYTES
