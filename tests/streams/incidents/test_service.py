from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest
from redis import Redis

from streams.errors import ConfigError, Conflict, UnknownIncident
from streams.incidents.ledger import Ledger, fold
from streams.incidents.service import IncidentService
from streams.store.keys import ModelKeys
from streams.store.messages import Alert, IncidentChange, SignalMessage

SignalFactory = Callable[..., SignalMessage]
KEYS = ModelKeys("digits")


def add(redis: Redis, *signals: SignalMessage) -> list[str]:
    ledger = Ledger(redis, KEYS)
    entries = [(signal, msgspec.json.encode(signal).decode()) for signal in signals]
    drafts = list(fold("digits", ledger.book("events:0", signals), entries, now=1).drafts)
    ledger.apply(drafts)
    return [draft.incident.id for draft in drafts]


@pytest.fixture
def name(redis: Redis, make_signal: SignalFactory) -> str:
    return add(redis, make_signal(1))[0]


@pytest.fixture
def desk(redis: Redis) -> IncidentService:
    return IncidentService(redis, "digits")


def alerts(redis: Redis) -> list[Alert]:
    return [msgspec.json.decode(fields[b"m"], type=Alert) for _, fields in redis.xrange(KEYS.alerts)]


def test_acknowledge_resolve_reopen_are_logged_and_announced(redis: Redis, desk: IncidentService, name: str) -> None:
    taken = desk.acknowledge(name, "ada", now=10)
    assert (taken.state, taken.assignee) == ("in_progress", "ada")
    closed = desk.resolve(name, "ada", "false", "a new sensor", now=20)
    assert (closed.state, closed.verdict, closed.resolved_at) == ("resolved", "false", 20)
    assert redis.hlen(KEYS.open_incidents) == 0
    again = desk.reopen(name, "bob", now=30)
    assert (again.state, again.assignee, again.verdict, again.resolved_at) == ("new", None, None, None)
    assert list(redis.hvals(KEYS.open_incidents)) == [name.encode()]
    assert [alert.change for alert in alerts(redis)] == ["opened", "acknowledged", "resolved", "reopened"]
    assert [alert.id for alert in alerts(redis)] == [f"{name}#{n}" for n in (1, 2, 3, 4)]
    log = [msgspec.json.decode(fields[b"m"], type=IncidentChange) for _, fields in redis.xrange(KEYS.log)]
    assert [(entry.change, entry.by, entry.at) for entry in log[1:]] == [
        ("acknowledged", "ada", 10),
        ("resolved", "ada", 20),
        ("reopened", "bob", 30),
    ]
    assert [change.what for change in desk.show(name).incident.history][2] == "resolved as false: a new sensor"


def test_same_change_twice_happens_once(redis: Redis, desk: IncidentService, name: str) -> None:
    for _ in range(2):
        desk.acknowledge(name, "ada")
    for _ in range(2):
        desk.resolve(name, "ada", "true")
    assert [alert.change for alert in alerts(redis)] == ["opened", "acknowledged", "resolved"]


def test_second_of_two_people_who_agree_may_say_why(redis: Redis, desk: IncidentService, name: str) -> None:
    desk.resolve(name, "ada", "true", "seen in the logs")
    agreed = desk.resolve(name, "bob", "true", "the tenant has confirmed it")
    assert (agreed.verdict_by, agreed.history[-1].by, agreed.history[-1].what) == (
        "ada",
        "bob",
        "note: the tenant has confirmed it",
    )
    assert [alert.change for alert in alerts(redis)] == ["opened", "resolved"]


@pytest.mark.parametrize("name_of_bob", ["ADA", " a\u200bda", "\u202eada", "ａｄａ", "ada\x00"])
def test_what_nobody_sees_makes_no_second_person(desk: IncidentService, name: str, name_of_bob: str) -> None:
    desk.resolve(name, "ada", "false")
    with pytest.raises(Conflict, match="somebody else must approve"):
        desk.approve_verdict(name, name_of_bob)
    with pytest.raises(ConfigError, match="must be named"):
        desk.approve_verdict(name, "\u200b\x00 \u202e")


def test_second_of_two_people_meets_a_conflict(desk: IncidentService, name: str) -> None:
    desk.acknowledge(name, "ada", now=0)
    desk.note(name, "carl", "a note is not what was faster")
    with pytest.raises(Conflict, match=r"already acknowledged by ada \(acknowledged by ada, 1970-01-01 00:00:00 UTC\)"):
        desk.acknowledge(name, "bob")
    desk.resolve(name, "ada", "true")
    with pytest.raises(Conflict, match="already resolved as true"):
        desk.resolve(name, "bob", "false")
    with pytest.raises(Conflict, match="re-open it first"):
        desk.acknowledge(name, "bob")


def test_many_people_at_once_leave_one_assignee(redis_url: str, redis: Redis, name: str) -> None:
    start, outcomes = threading.Barrier(8), []

    def take(person: str) -> None:
        own = Redis.from_url(redis_url, socket_timeout=10)
        start.wait(10)
        try:
            outcomes.append(IncidentService(own, "digits").acknowledge(name, person).assignee)
        except Conflict:
            outcomes.append(None)
        own.close()

    threads = [threading.Thread(target=take, args=(f"p{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == 8
    (winner,) = [person for person in outcomes if person]
    assert IncidentService(redis, "digits").show(name).incident.assignee == winner
    assert [alert.change for alert in alerts(redis)] == ["opened", "acknowledged"]


def test_list_filters_and_is_newest_first(redis: Redis, desk: IncidentService, make_signal: SignalFactory) -> None:
    names = [add(redis, make_signal(n, client=f"{n:016x}", level="page" if n % 2 else "ticket"))[0] for n in range(6)]
    desk.resolve(names[5], "ada", "true")
    desk.acknowledge(names[3], "ada")
    assert [i.id for i in desk.list()] == names[::-1]
    assert [i.id for i in desk.list(state="open", level="page")] == [names[3], names[1]]
    assert [i.id for i in desk.list(state="resolved")] == [names[5]]
    assert [i.id for i in desk.list(state="in_progress")] == [names[3]]
    assert [i.id for i in desk.list(limit=2)] == names[:3:-1]


def test_list_looks_beyond_its_first_page(
    redis: Redis, desk: IncidentService, make_signal: SignalFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.incidents.service.PAGE", 2)
    names = [add(redis, make_signal(n, client=f"{n:016x}", level="ticket" if n else "page"))[0] for n in range(7)]
    assert [i.id for i in desk.list(level="page")] == [names[0]]


def test_show_has_the_evidence_newest_first(redis: Redis, desk: IncidentService, make_signal: SignalFactory) -> None:
    signals = [make_signal(n) for n in range(3)]
    (name,) = add(redis, *signals)
    view = desk.show(name)
    assert (view.version, view.evidence) == (3, signals[::-1])


def test_reopen_yields_to_a_newer_incident_of_the_same_client(
    redis: Redis, desk: IncidentService, make_signal: SignalFactory
) -> None:
    (old,) = add(redis, make_signal(1))
    desk.resolve(old, "ada", "true")
    redis.delete(*redis.keys(f"{KEYS.tag}:recent:*"))
    (new,) = add(redis, make_signal(2))
    assert new != old
    with pytest.raises(Conflict, match=new):
        desk.reopen(old, "ada")


def test_wrong_names_are_refused(redis: Redis, desk: IncidentService, name: str) -> None:
    with pytest.raises(UnknownIncident, match="no incident 'ffff'"):
        desk.show("ffff")
    with pytest.raises(UnknownIncident):
        desk.resolve("ffff", "ada", "true")
    with pytest.raises(ConfigError, match="'maybe'; there are true, false, benign"):
        desk.resolve(name, "ada", "maybe")
    with pytest.raises(ConfigError, match="must be named"):
        desk.acknowledge(name, "  ")
    for hostile in ("../x", "A", "", "a" * 64, "x}:{y"):
        with pytest.raises(ConfigError, match="model name"):
            IncidentService(redis, hostile)
