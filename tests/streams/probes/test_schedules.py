"""When probes are due, and what is drawn."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from streams import config
from streams.config import ProbeSettings, ScheduleSettings
from streams.errors import ConfigError
from streams.probes.catalogue import entries, kind_of
from streams.probes.prober import Kind, Probe
from streams.probes.schedules import Timetable, following, schedules

SECOND = 1_000_000


class Named:
    """A crafter that is only named."""

    kind: Kind = "burst"
    threat = "t"

    def __init__(self, attack: str) -> None:
        self.attack = attack

    def seconds(self) -> float:
        return 1.0

    def run(self, probe: Probe) -> None:
        raise AssertionError


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


def every(seconds: float, **changes: Any) -> ScheduleSettings:
    return ScheduleSettings(name="s", attacks={"a": 1.0}, every_seconds=seconds, **changes)


def test_what_was_held_up_does_not_catch_up() -> None:
    table = Timetable(every(10), [Named("a")], now=0)
    assert table.due(0, "")
    table.started(1 * SECOND, "")
    assert not table.due(9_900_000, "")
    assert table.due(10 * SECOND, "")
    table.started(75 * SECOND, "")
    assert not table.due(84_900_000, "")
    assert table.due(85 * SECOND, "")


def test_cron_goes_by_utc_and_makes_up_for_what_nobody_was_there_for() -> None:
    nightly = ScheduleSettings(name="n", attacks={"a": 1.0}, cron="30 3 * * *")
    assert following("30 3 * * *", at("2026-05-01T03:29:59")) == at("2026-05-01T03:30:00")
    assert following("30 3 * * *", at("2026-05-01T03:30:00")) == at("2026-05-02T03:30:00")
    assert following("*/15 * * * mon-fri", at("2026-05-01T23:50:00")) == at("2026-05-04T00:00:00")
    table = Timetable(nightly, [Named("a")], now=at("2026-05-01T03:00:00"))
    assert not table.due(at("2026-05-01T03:29:59"), "")
    assert table.due(at("2026-05-01T03:30:00"), "")
    table.started(at("2026-05-01T03:31:00"), "")
    assert not table.due(at("2026-05-02T03:29:00"), "")
    yesterday = at("2026-04-30T03:30:00")
    late = Timetable(nightly, [Named("a")], now=at("2026-05-01T03:50:00"), last=yesterday)
    assert late.due(at("2026-05-01T03:50:00"), ""), "a takeover in the wrong minute"
    too_late = Timetable(nightly, [Named("a")], now=at("2026-05-01T09:00:00"), last=yesterday)
    assert not too_late.due(at("2026-05-01T09:00:00"), "")


def test_a_new_version_is_due_once() -> None:
    schedule = ScheduleSettings(name="v", attacks={"a": 1.0}, on_new_version=True)
    table = Timetable(schedule, [Named("a")], now=0, version="7")
    assert not table.due(0, "7")
    assert not table.due(0, ""), "a version that is not told is no new one"
    assert table.due(0, "8")
    table.started(0, "8")
    assert not table.due(9 * SECOND, "8")
    assert Timetable(schedule, [Named("a")], now=0).due(0, "1"), "the first version that is seen"


def test_mixes_are_drawn_by_weight_or_sent_whole() -> None:
    crafters = [Named("a"), Named("b"), Named("c")]
    weights = {"a": 6.0, "b": 3.0, "c": 1.0}
    table = Timetable(ScheduleSettings(name="m", attacks=weights, every_seconds=1), crafters, now=0)
    rng = np.random.default_rng(1)
    drawn = Counter(crafter.attack for _ in range(2_000) for crafter in table.draw(rng))
    assert drawn.total() == 2_000
    for attack, weight in weights.items():
        assert abs(drawn[attack] / 2_000 - weight / 10) < 0.05
    assert table.room == 1
    whole = Timetable(ScheduleSettings(name="m", attacks=weights, every_seconds=1, mix="all"), crafters, now=0)
    assert whole.draw(rng) == tuple(crafters)
    assert whole.room == 3


def test_plain_settings_make_three_schedules_that_can_be_replaced_or_switched_off() -> None:
    plain = schedules(ProbeSettings(burst_every_seconds=7, concurrent_campaigns=3))
    assert [(s.name, s.every_seconds, s.at_once, s.mix) for s in plain] == [
        ("control", 300, 1, "all"), ("burst", 7, 1, "draw"), ("campaign", 900, 3, "draw"),
    ]  # fmt: skip
    own = (
        ScheduleSettings(name="campaign", attacks={"square": 1.0, "nes": 2.0}, every_seconds=60),
        ScheduleSettings(name="control", enabled=False),
        ScheduleSettings(name="theft", attacks={"random_extraction": 1.0}, cron="0 * * * *"),
    )
    found = schedules(ProbeSettings(schedules=own))
    assert [(s.name, sorted(s.attacks)) for s in found] == [
        ("burst", ["transfer_pgd"]), ("campaign", ["nes", "square"]), ("theft", ["random_extraction"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "x", "every_seconds": 1}, r"probes.schedules\[x\].attacks: empty"),
        ({"name": "x", "attacks": {"nes": 1}}, "set one of every_seconds, cron and on_new_version"),
        ({"name": "x", "attacks": {"nes": 1}, "every_seconds": 1, "cron": "* * * * *"}, "set one of"),
        ({"name": "x", "attacks": {"nes": 1}, "cron": "61 * * * *"}, r"probes.schedules\[x\].cron: .* five fields"),
        (
            {"name": "x", "attacks": {"nes": 1}, "cron": "* * * * * *"},
            r"Wrong number of fields; five fields",
        ),
        ({"name": "x", "attacks": {"nes": 0}, "every_seconds": 1}, "attacks"),
        ({"name": "x", "attacks": {"nes": float("inf")}, "every_seconds": 1}, r"schedules\[0\].attacks.nes is inf"),
        ({"name": "x", "attacks": {"nes": 1}, "every_seconds": float("inf")}, r"every_seconds is inf; .* finite"),
        ({"name": "X!", "attacks": {"nes": 1}, "every_seconds": 1}, "name"),
    ],
)
def test_a_wrong_schedule_stops_the_start(schedule: dict[str, Any], said: str) -> None:
    data = {"models": [{"name": "m", "topic": "t", "bundle": "b"}], "probes": {"schedules": [schedule]}}
    with pytest.raises(ConfigError, match=said):
        config.parse(data, "test")


def test_a_clock_that_is_set_back_does_not_silence_a_schedule() -> None:
    every = ScheduleSettings(name="n", attacks={"a": 1.0}, every_seconds=60)
    table = Timetable(every, (), 2_000_000_000_000)
    table.started(2_000_000_000_000, "")
    assert not table.due(2_000_000_000_000 + 59_000_000, "")
    back = 1_000_000_000_000
    assert table.due(back, "")
    table.started(back, "")
    assert not table.due(back + 59_000_000, "")
    assert table.due(back + 60_000_000, "")
    hourly = ScheduleSettings(name="h", attacks={"a": 1.0}, cron="0 * * * *")
    assert Timetable(hourly, (), back, last=2 * back).due(back + 3_600_000_000, "")


@pytest.mark.parametrize("setting", ["burst_every_seconds", "timeout_seconds", "mark_ttl_seconds", "eps"])
@pytest.mark.parametrize("value", [float("inf"), 1e300])
def test_numbers_that_no_clock_can_hold_stop_the_start(setting: str, value: float) -> None:
    data = {"models": [{"name": "m", "topic": "t", "bundle": "b"}], "probes": {setting: value}}
    with pytest.raises(ConfigError, match=f"test: probes.{setting} is .* finite"):
        config.parse(data, "test")


@pytest.mark.parametrize("name", ["", "A B", "X\r\nEvil: 1", "X\n"])
def test_the_client_header_is_a_name_that_http_can_carry(name: str) -> None:
    data = {"models": [{"name": "m", "topic": "t", "bundle": "b"}], "probes": {"client_header": name}}
    with pytest.raises(ConfigError, match=r"probes.client_header"):
        config.parse(data, "test")


def test_a_name_is_declared_once() -> None:
    one = {"name": "x", "attacks": {"nes": 1}, "every_seconds": 1}
    data = {"models": [{"name": "m", "topic": "t", "bundle": "b"}], "probes": {"schedules": [one, one]}}
    with pytest.raises(ConfigError, match="declared twice"):
        config.parse(data, "test")


def test_attacks_are_sent_as_they_can_be() -> None:
    known = {entry.attack: entry.kinds for entry in entries()}
    assert known["transfer_pgd"] == ("burst",)
    assert known["hop_skip_jump"] == ("campaign", "burst")
    assert known["fuzz"] == ("fuzz",)
    assert known["random_extraction"] == ("extraction",)
    assert not {"leaf_search", "leaf_tuple"} & set(known), "trees are not in the prober's hands"
    assert known["opt"] == known["cube"] == ("campaign", "burst")
    assert kind_of("square", "burst") == "burst"
    with pytest.raises(ConfigError, match="cannot be sent as campaign; it goes as burst"):
        kind_of("pgd", "campaign")
    with pytest.raises(ConfigError, match="no attack 'pdg'"):
        kind_of("pdg")
