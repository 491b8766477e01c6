"""Repeaters: two people, an end, and what workers make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from redis import Redis

from streams.errors import ConfigError, Conflict
from streams.incidents import repeaters_terminal
from streams.incidents.correlator import Correlator
from streams.incidents.repeaters import ENDED_MICROSECONDS, REPEATERS_KEPT, Repeaters, standing
from streams.lease import Lease
from streams.store.approvals import Approvals
from streams.store.keys import ModelKeys
from streams.store.messages import IncidentChange, SignalMessage
from tests.streams.incidents.test_terminal import Shell, shell  # noqa: F401  a fixture

KEYS = ModelKeys("digits")
DAY = 24 * 3_600_000_000
NOW = 1_700_000_000_000_000
CLIENT = "3fa1" * 4


@pytest.fixture
def desk(redis: Redis) -> Repeaters:
    return Repeaters(redis, KEYS)


def approvals(redis: Redis) -> Approvals:
    return Approvals.decoded(redis.hgetall(KEYS.repeaters))


def log(redis: Redis) -> list[tuple[str, str, str]]:
    entries = [msgspec.json.decode(fields[b"m"], type=IncidentChange) for _, fields in redis.xrange(KEYS.log)]
    return [(entry.change, entry.by, entry.id) for entry in entries]


def test_only_a_second_person_makes_it_hold_from_then_up_to_its_end(desk: Repeaters, redis: Redis) -> None:
    desk.propose(CLIENT, "ada", NOW + 30 * DAY, "a sensor", now=NOW)
    client = int(CLIENT, 16)
    assert not approvals(redis).hold(client, NOW + DAY)
    for name in ("ada", " Ada ", "ADA"):
        with pytest.raises(Conflict, match="somebody else must approve it"):
            desk.approve(CLIENT, name, now=NOW + 1)
    made = desk.approve(CLIENT, "bob", now=NOW + DAY)
    assert (made.proposed_by, made.approved_by, standing(made, NOW + DAY)) == ("ada", "bob", "approved")
    held = approvals(redis)
    for at, holds in (
        (NOW, False),
        (NOW + DAY - 1, False),
        (NOW + DAY, True),
        (made.ends - 1, True),
        (made.ends, False),
    ):
        assert held.hold(client, at) is holds, at
    assert not held.hold(client + 1, NOW + 2 * DAY)
    assert desk.approve(CLIENT, "bob", now=NOW + 2 * DAY) == made
    with pytest.raises(Conflict, match="already approved by bob"):
        desk.approve(CLIENT, "carla", now=NOW + 2 * DAY)
    with pytest.raises(Conflict, match="already approved by bob"):
        desk.propose(CLIENT, "carla", NOW + 60 * DAY, "again", now=NOW + 2 * DAY)
    assert log(redis) == [("repeater-proposed", "ada", CLIENT), ("repeater-approved", "bob", CLIENT)]


def test_revoking_ends_it_and_leaves_a_trace(desk: Repeaters, redis: Redis) -> None:
    desk.propose(CLIENT, "ada", NOW + 30 * DAY, "a sensor", now=NOW)
    desk.approve(CLIENT, "bob", now=NOW)
    ended = desk.revoke(CLIENT, "ada", "it was replaced", now=NOW + DAY)
    assert (ended.ends, ended.revoked_by, standing(ended, NOW + DAY)) == (NOW + DAY, "ada", "ended")
    assert not approvals(redis).hold(int(CLIENT, 16), NOW + DAY)
    assert approvals(redis).hold(int(CLIENT, 16), NOW + DAY - 1)
    assert desk.revoke(CLIENT, "bob", now=NOW + 2 * DAY) == ended
    desk.propose(CLIENT, "bob", NOW + 9 * DAY, "the new one", now=NOW + 2 * DAY)
    refused = desk.revoke(CLIENT, "carla", now=NOW + 3 * DAY)
    assert (refused.approved_by, standing(refused, NOW + 3 * DAY)) == ("", "ended")
    with pytest.raises(ConfigError, match="not proposed"):
        desk.approve(CLIENT, "ada", now=NOW + 4 * DAY)
    assert [entry[:2] for entry in log(redis)[2:]] == [
        ("repeater-revoked", "ada"),
        ("repeater-proposed", "bob"),
        ("repeater-revoked", "carla"),
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"client": "3fa1"}, "no client's hash"),
        ({"client": "0" * 16}, "no client's hash"),
        ({"client": CLIENT.upper()}, "no client's hash"),
        ({"by": " "}, "must be named"),
        ({"reason": " "}, "say why"),
        ({"ends": NOW}, "later than now"),
        ({"ends": NOW + 91 * DAY}, "at most 90 days"),
    ],
)
def test_senseless_proposals_are_refused(desk: Repeaters, changes: dict[str, Any], sentence: str) -> None:
    wanted = {"client": CLIENT, "by": "ada", "ends": NOW + DAY, "reason": "a sensor", **changes}
    with pytest.raises(ConfigError, match=sentence):
        desk.propose(**wanted, now=NOW)
    assert desk.all() == ()


def test_they_are_limited_in_number_and_forgotten_after_their_end(desk: Repeaters, redis: Redis) -> None:
    for number in range(REPEATERS_KEPT):
        desk.propose(f"{number + 1:016x}", "ada", NOW + DAY, "a sensor", now=NOW)
    with pytest.raises(ConfigError, match="revoke some"):
        desk.propose(CLIENT, "ada", NOW + DAY, "a sensor", now=NOW)
    desk.propose(CLIENT, "ada", NOW + 3 * DAY, "a sensor", now=NOW + DAY)
    lease = Lease(redis, KEYS, "correlator", seconds=300)
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease, lambda: NOW + DAY + ENDED_MICROSECONDS + 1)
    correlator.tend()
    assert [one.client for one in desk.all()] == [CLIENT]


def test_of_two_who_change_one_at_once_one_is_told(desk: Repeaters, redis: Redis) -> None:
    desk.propose(CLIENT, "ada", NOW + DAY, "a sensor", now=NOW)

    class Slow(Repeaters):
        """Somebody else approves between its read and its write."""

        def __init__(self) -> None:
            super().__init__(redis, KEYS)
            replace = self._replace

            def late(**call: Any) -> Any:
                desk.approve(CLIENT, "carla", now=NOW + 1)
                return replace(**call)

            self._replace = late  # type: ignore[assignment]  # a script is called in this one way only

    with pytest.raises(Conflict, match="somebody else has just changed"):
        Slow().approve(CLIENT, "bob", now=NOW + 1)
    assert [one.approved_by for one in desk.all()] == ["carla"]


def test_what_cannot_be_read_approves_nobody(redis: Redis, desk: Repeaters) -> None:
    redis.hset(KEYS.repeaters, mapping={"x": b"{", "y": b'{"client": 3}', "z": b"\xff"})
    assert approvals(redis).spans == {}
    assert desk.all() == ()


def test_ticket_of_an_approved_repeater_says_so(
    redis: Redis, make_signal: Callable[..., SignalMessage], send: Callable[[SignalMessage], None]
) -> None:
    send(make_signal(1, repeater=True))
    lease = Lease(redis, KEYS, "correlator", seconds=300)
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease, lambda: NOW)
    correlator.redis.hset("vedette:{events:0}:w", "w", 1)
    correlator.load()
    assert correlator.step(1) == 1
    (body,) = [redis.hget(KEYS.incident(name.decode()), "m") for name in redis.zrange(KEYS.incidents, 0, -1)]
    incident = json.loads(body)
    assert (incident["level"], incident["repeater"]) == ("ticket", True)
    assert incident["title"].endswith("(approved repeater)")


def test_commands_propose_approve_list_and_revoke(
    redis: Redis,
    desk: Repeaters,
    shell: Shell,  # noqa: F811  the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(repeaters_terminal.repeaters, list(words), obj=shell, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return " ".join(done.output.split())

    assert run("list") == "No repeaters."
    assert "not approved yet" in run("propose", CLIENT, "--for", "30d", "--reason", "a [red]sensor", "--by", "ada")
    with pytest.raises(Conflict):
        run("approve", CLIENT, "--by", "ada")
    assert "approved by bob" in run("approve", CLIENT, "--by", "bob")
    assert [one["approved_by"] for one in json.loads(run("list", "--json"))] == ["bob"]
    assert "a [red]sensor" in run("list")
    with pytest.raises(ConfigError, match="name clients"):
        run("propose", "--for", "1d")
    monkeypatch.setattr(repeaters_terminal, "_reported", lambda path: ((CLIENT, "b" * 16), f"as {path} says"))
    assert "b" * 16 in run("propose", "--bundle", "new", "--for", "1d", "--by", "ada")
    assert [(one.client, one.reason) for one in desk.all()][-1] == ("b" * 16, "as new says")
    assert "revoked by carla" in run("revoke", CLIENT, "--by", "carla", "--comment", "gone")
    assert run("list").count("proposed") == 2  # the heading, and the other one
    assert "ended" in run("list", "--ended")
