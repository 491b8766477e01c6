"""Silences, maintenance windows and quiet: through the real correlator on real Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from redis import Redis

from streams.errors import ConfigError, Conflict, UnknownIncident
from streams.incidents.care import MICROSECONDS_PER_HOUR, Quiet
from streams.incidents.correlator import Correlator
from streams.incidents.monitoring import open_blind
from streams.incidents.service import IncidentService
from streams.incidents.silences import ENDED_MICROSECONDS, SILENCES_KEPT, describe, matches
from streams.lease import Lease
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import Alert, Incident, IncidentChange, Matcher, SignalMessage

SignalFactory = Callable[..., SignalMessage]
Send = Callable[[SignalMessage], None]
KEYS = ModelKeys("digits")
HOUR = MICROSECONDS_PER_HOUR
START = 1_700_000_000_000_000 // 60_000_000 * 60_000_000
CLIENT = "3fa1" * 4


class World:
    """A correlator, a desk and a clock."""

    def __init__(self, redis: Redis, send: Send, make_signal: SignalFactory) -> None:
        self.redis = redis
        self.now = START + HOUR
        lease = Lease(redis, KEYS, "correlator", seconds=300)
        assert lease.acquire()
        self.correlator = Correlator(redis, "digits", "events", lease, lambda: self.now, Quiet(24 * HOUR, 72 * HOUR))
        self.desk = IncidentService(redis, "digits")
        self._send, self._make = send, make_signal
        self._offset = 0

    def signal(self, **changes: Any) -> None:
        """Record one and correlate."""
        self._offset += 1
        message = self._make(self._offset, **{"time": self.now, **changes})
        self._send(message)
        self.recorded(self.now)
        self.correlator.load()
        while self.correlator.step(1):
            continue

    def recorded(self, at: int) -> None:
        """What a worker says it has recorded last."""
        self.redis.hset(PartitionKeys("events", 0).watermark, mapping={"w": 1, "identity": f"7:{at // 1000}:00000000"})

    def quiet(self, hours: int) -> None:
        """Let hours pass in which workers record others' rows, and tend."""
        self.now += hours * HOUR
        self.recorded(self.now)
        self.correlator.tend()

    def only(self) -> Incident:
        (name,) = self.redis.zrange(KEYS.incidents, 0, -1)
        return self.desk.show(name.decode()).incident

    def alerts(self) -> list[str]:
        return [msgspec.json.decode(fields[b"m"], type=Alert).change for _, fields in self.redis.xrange(KEYS.alerts)]

    def log(self) -> list[IncidentChange]:
        return [msgspec.json.decode(fields[b"m"], type=IncidentChange) for _, fields in self.redis.xrange(KEYS.log)]

    def silence(self, hours: float = 2, **options: Any) -> Any:
        matcher = options.pop("matcher", Matcher(client=CLIENT))
        return self.desk.silence(
            matcher, "ada", self.now + round(hours * HOUR), "a known test", now=self.now, **options
        )


@pytest.fixture
def world(redis: Redis, send: Send, make_signal: SignalFactory) -> World:
    return World(redis, send, make_signal)


def test_silenced_incident_is_counted_shown_and_not_announced(world: World) -> None:
    made = world.silence()
    world.signal()
    world.signal()
    incident = world.only()
    assert (incident.state, incident.silence, incident.signals) == ("suppressed", made.id, 2)
    assert world.alerts() == []
    assert incident.history[-1].what == (
        f"quiet until 2023-11-15 01:13:00 UTC by silence {made.id} of ada: a known test"
    )
    assert [entry.change for entry in world.log()] == ["silence-made", "opened", "silenced", "signal"]


def test_open_incident_is_announced_when_its_silence_ends(world: World) -> None:
    world.silence(hours=2)
    world.signal()
    world.now += HOUR
    world.correlator.tend()
    assert world.only().state == "suppressed"
    world.now += HOUR
    world.correlator.tend()
    incident = world.only()
    assert (incident.state, incident.silence) == ("new", "")
    assert world.alerts() == ["reopened"]
    assert incident.history[-1].what == "the silence has ended"


def test_ending_a_silence_early_lets_its_incidents_speak(world: World) -> None:
    made = world.silence()
    world.signal()
    ended = world.desk.end_silence(made.id, "bob", now=world.now + 1)
    assert ended.ends == world.now + 1
    world.now += 2
    world.correlator.tend()
    assert world.alerts() == ["reopened"]
    assert world.desk.end_silence(made.id, "bob", now=world.now) == ended
    assert [(entry.change, entry.by) for entry in world.log() if entry.change.startswith("silence-")] == [
        ("silence-made", "ada"),
        ("silence-ended", "bob"),
    ]


def test_silence_made_later_suppresses_what_nobody_works_on(world: World) -> None:
    world.signal()
    world.signal(client="b" * 16)
    names = {
        world.desk.show(name.decode()).incident.entity_id: name.decode()
        for name in world.redis.zrange(KEYS.incidents, 0, -1)
    }
    world.desk.acknowledge(names["b" * 16], "bob", now=world.now)
    world.silence(matcher=Matcher(entity="client"))
    world.correlator.tend()
    assert world.desk.show(names[CLIENT]).incident.state == "suppressed"
    assert world.desk.show(names["b" * 16]).incident.state == "in_progress"


def test_silence_of_tickets_is_none_of_the_page(world: World) -> None:
    world.silence(matcher=Matcher(client=CLIENT, level="ticket"))
    world.signal()
    assert world.alerts() == []
    world.signal(level="page", rule="query-intent")
    incident = world.only()
    assert (incident.state, incident.level, incident.silence) == ("new", "page", "")
    assert world.alerts() == ["raised"]


def test_page_under_a_silence_of_both_stays_quiet(world: World) -> None:
    world.silence()
    world.signal()
    world.signal(level="page", rule="query-intent")
    assert (world.only().state, world.only().level) == ("suppressed", "page")
    assert world.alerts() == []


def test_somebody_who_takes_a_suppressed_incident_ends_its_quiet(world: World) -> None:
    world.silence()
    world.signal()
    taken = world.desk.acknowledge(world.only().id, "bob", now=world.now)
    assert (taken.state, taken.silence) == ("in_progress", "")
    assert world.alerts() == ["acknowledged"]
    world.correlator.tend()
    assert world.only().state == "in_progress"


def test_maintenance_window_holds_for_everything_while_it_lasts(world: World) -> None:
    starts = world.now + HOUR
    world.desk.silence(
        Matcher(), "ada", starts + HOUR, "broker upgrade", starts=starts, kind="maintenance", now=world.now
    )
    world.signal()
    assert world.alerts() == ["opened"]
    world.now = starts
    world.signal(client="b" * 16)
    open_blind(world.redis, KEYS, "no verdicts", world.now)
    assert world.alerts() == ["opened"]
    world.correlator.tend()
    states = [world.desk.show(name.decode()).incident.state for name in world.redis.zrange(KEYS.incidents, 0, -1)]
    assert states == ["suppressed"] * 3
    world.now = starts + HOUR
    world.correlator.tend()
    assert world.alerts() == ["opened", "reopened", "reopened", "reopened"]


def test_quiet_ticket_is_resolved_by_itself_and_reopens(world: World) -> None:
    world.signal()
    world.quiet(25)
    incident = world.only()
    assert (incident.state, incident.verdict, incident.resolved_at) == ("resolved", None, world.now)
    assert incident.history[-1] == msgspec.structs.replace(
        incident.history[-1], by="vedette", what="no signal for 24 hours"
    )
    assert world.alerts() == ["opened", "resolved"]
    assert world.redis.hlen(KEYS.open_incidents) == 0


def test_what_ended_by_itself_is_judged_afterwards(world: World) -> None:
    world.signal()
    world.quiet(25)
    ended = world.only()
    judged = world.desk.resolve(ended.id, "ada", "false", "a test of ours", now=world.now + HOUR)
    assert (judged.state, judged.resolved_at) == ("resolved", ended.resolved_at)
    assert (judged.verdict, judged.verdict_by, judged.verdict_approved_by) == ("false", "ada", "")
    assert (judged.history[-1].by, judged.history[-1].what) == ("ada", "judged as false: a test of ours")
    assert world.only() == judged
    assert world.log()[-1].change == "resolved"
    assert world.alerts() == ["opened", "resolved"], "its end was announced already"
    with pytest.raises(Conflict, match="already resolved as false"):
        world.desk.resolve(ended.id, "bob", "true", now=world.now + HOUR)


def test_part_of_another_incident_is_not_judged_alone(world: World) -> None:
    near = {"nearest": [1.0, 2.0], "time": world.now}
    world.signal(**near)
    world.signal(client="b" * 16, **near)
    names = [name.decode() for name in world.redis.zrange(KEYS.incidents, 0, -1)]
    ((part, whole),) = [
        (one.id, one.merged_into) for one in (world.desk.show(name).incident for name in names) if one.merged_into
    ]
    with pytest.raises(Conflict, match=f"is part of incident {whole}; judge that one"):
        world.desk.resolve(part, "ada", "true", now=world.now)


def test_nothing_is_quiet_while_nothing_is_recorded(world: World) -> None:
    world.signal()
    world.now += 100 * HOUR
    world.correlator.tend()
    assert world.only().state == "new"
    world.recorded(world.now)
    world.correlator.tend()
    assert world.only().state == "resolved"


def test_pages_wait_longer_and_work_in_progress_for_ever(world: World) -> None:
    world.signal(level="page")
    world.signal(client="b" * 16)
    names = {
        world.desk.show(name.decode()).incident.level: name.decode()
        for name in world.redis.zrange(KEYS.incidents, 0, -1)
    }
    world.desk.acknowledge(names["ticket"], "bob", now=world.now)
    for hours, state in ((71, "new"), (2, "resolved")):
        world.quiet(hours)
        assert world.desk.show(names["page"]).incident.state == state
    assert world.desk.show(names["ticket"]).incident.state == "in_progress"


def test_correlator_without_the_lease_tends_nothing(world: World) -> None:
    world.silence()
    world.signal()
    world.redis.incr(KEYS.fence("correlator"))
    world.now += 3 * HOUR
    from streams.errors import Fenced

    with pytest.raises(Fenced):
        world.correlator.tend()
    assert world.only().state == "suppressed"


def test_ended_silences_are_forgotten_after_a_week(world: World) -> None:
    world.silence()
    world.now += 2 * HOUR + ENDED_MICROSECONDS
    world.correlator.tend()
    assert len(world.desk.silences()) == 1
    world.now += 1
    world.correlator.tend()
    assert world.desk.silences() == ()


@pytest.mark.parametrize(
    ("matcher", "options", "sentence"),
    [
        (Matcher(), {}, "only a maintenance window is about everything"),
        (Matcher(technique="*", rule="**", client="*?"), {}, "only a maintenance window is about everything"),
        (Matcher(client="a"), {"ends": START}, "must end after it starts"),
        (Matcher(client="a"), {"starts": START - 2 * HOUR, "ends": START - HOUR}, "must end later than now"),
        (Matcher(client="a"), {"ends": START + 91 * 24 * HOUR}, "at most 90 days"),
        (Matcher(client="a" * 201), {}, "at most 200 characters"),
        (Matcher(client="a"), {"by": " "}, "must be named"),
    ],
)
def test_senseless_silences_are_refused(redis: Redis, matcher: Matcher, options: dict[str, Any], sentence: str) -> None:
    desk = IncidentService(redis, "digits")
    wanted = {"by": "ada", "ends": START + HOUR, **options}
    with pytest.raises(ConfigError, match=sentence):
        desk.silence(matcher, wanted["by"], wanted["ends"], starts=wanted.get("starts"), now=START)
    assert desk.silences() == ()
    with pytest.raises(ConfigError, match="no silence"):
        desk.end_silence("ffffffff", "ada")


def test_silences_are_limited_in_number(redis: Redis) -> None:
    desk = IncidentService(redis, "digits")
    for number in range(SILENCES_KEPT):
        desk.silence(Matcher(client=str(number)), "ada", START + HOUR, now=START)
    with pytest.raises(ConfigError, match="end some first"):
        desk.silence(Matcher(client="one more"), "ada", START + HOUR, now=START)
    desk.silence(Matcher(client="one more"), "ada", START + 3 * HOUR, now=START + HOUR)


def test_patterns_fit_whole_incidents(world: World) -> None:
    world.signal(rule="query-cluster")
    incident = msgspec.structs.replace(
        world.only(), clients=["aa01", "aa02"], rules={"index-cluster": 1, "index-intent": 2}
    )
    for matcher, fits in (
        (Matcher(), True),
        (Matcher(technique="AML.T0043*"), True),
        (Matcher(technique="AML.T0043"), False),
        (Matcher(entity="client", level="ticket"), True),
        (Matcher(level="page"), False),
        (Matcher(rule="index-*"), True),
        (Matcher(rule="index-cluster"), False),
        (Matcher(client="aa0?"), True),
        (Matcher(client="aa01"), False),  # one known client does not silence the others
    ):
        assert matches(matcher, incident) is fits, matcher
    assert not matches(Matcher(client="*"), msgspec.structs.replace(incident, clients=[]))
    assert describe(Matcher(technique="AML.T0043*", level="page")) == "technique AML.T0043*, level page"
    assert describe(Matcher()) == "everything"


def test_notes_and_assignments_stand_in_history_and_log(world: World) -> None:
    world.signal()
    name = world.only().id
    world.desk.note(name, "ada", "looked at the gateway's log", now=world.now)
    given = world.desk.assign(name, "ada", "bob", now=world.now)
    assert (given.state, given.assignee) == ("in_progress", "bob")
    world.desk.assign(name, "ada", "bob", now=world.now)
    again = world.desk.assign(name, "bob", "carla", now=world.now)
    assert [change.what for change in again.history[1:]] == [
        "note: looked at the gateway's log",
        "assigned to bob",
        "assigned to carla",
    ]
    assert world.alerts() == ["opened", "acknowledged"]
    assert [(entry.change, entry.by) for entry in world.log()[1:]] == [
        ("noted", "ada"),
        ("assigned", "ada"),
        ("assigned", "bob"),
    ]
    world.desk.resolve(name, "carla", "benign", now=world.now)
    world.desk.note(name, "ada", "it was the load test", now=world.now)
    with pytest.raises(Conflict, match="re-open it first"):
        world.desk.assign(name, "ada", "bob")
    with pytest.raises(ConfigError, match="must say something"):
        world.desk.note(name, "ada", " ")
    with pytest.raises(UnknownIncident):
        world.desk.note("f" * 16, "ada", "text")


def test_a_false_alarm_counts_on_the_word_of_two_people(world: World) -> None:
    world.signal(level="page", rule="query-intent")
    name = world.only().id
    with pytest.raises(ConfigError, match="not resolved as a false alarm"):
        world.desk.approve_verdict(name, "bob")
    world.desk.resolve(name, "ada", "false", now=world.now)
    with pytest.raises(Conflict, match="somebody else must approve"):
        world.desk.approve_verdict(name, "Ada ")
    approved = world.desk.approve_verdict(name, "bob", now=world.now)
    assert (approved.verdict_by, approved.verdict_approved_by) == ("ada", "bob")
    assert world.desk.approve_verdict(name, "carla") == approved
    assert [(entry.change, entry.by) for entry in world.log()[-2:]] == [
        ("resolved", "ada"),
        ("verdict-approved", "bob"),
    ]
    again = world.desk.reopen(name, "ada", now=world.now)
    assert (again.verdict_by, again.verdict_approved_by) == ("", "")
    world.desk.resolve(name, "ada", "true", now=world.now)
    with pytest.raises(ConfigError, match="not resolved as a false alarm"):
        world.desk.approve_verdict(name, "bob")


def test_a_signal_that_reopens_takes_the_approval_back(world: World) -> None:
    world.signal(level="page", rule="query-intent")
    name = world.only().id
    world.desk.resolve(name, "ada", "false", now=world.now)
    world.desk.approve_verdict(name, "bob", now=world.now)
    world.now += HOUR
    world.signal(level="page", rule="query-intent")
    assert (world.only().state, world.only().verdict_by, world.only().verdict_approved_by) == ("new", "", "")


def test_severity_follows_level_and_reach(world: World) -> None:
    world.signal()
    assert world.only().severity == "low"
    world.signal(level="page", rule="query-intent")
    assert world.only().severity == "high"
    world.signal(level="page", rule="input-sequence")
    assert world.only().severity == "critical"
    alert = [msgspec.json.decode(fields[b"m"], type=Alert) for _, fields in world.redis.xrange(KEYS.alerts)]
    assert [(each.change, each.severity) for each in alert] == [("opened", "low"), ("raised", "high")]
