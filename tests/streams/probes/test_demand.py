"""Probes on demand, and what the prober says of objectives and model versions, on real Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from redis import Redis

from streams.cli import invoke
from streams.config import ObjectiveSettings, ScheduleSettings, parse
from streams.errors import ConfigError, Conflict
from streams.incidents.ledger import Ledger
from streams.incidents.monitoring import objective, regression
from streams.probes import requests
from streams.probes.prober import Crafter, Kind, Probe, seeds_under
from streams.probes.store import MOST_REQUESTS, ProbeStore
from streams.store.messages import Answers, Incident, ProbePlan, ProbeRequest
from tests.streams.probes.test_prober import KEYS, NEVER, TOPIC, Scripted, Worker, outcomes, running, settings

WaitUntil = Callable[..., Any]
SETTINGS = parse({"models": [{"name": "digits", "topic": TOPIC, "bundle": "b"}]}, "test")


def store_of(redis: Redis) -> ProbeStore:
    return ProbeStore(redis, "digits", TOPIC)


def ask(redis: Redis, **changes: Any) -> ProbeRequest:
    wanted: dict[str, Any] = {"attack": "hop_skip_jump", "by": "ada", **changes}
    return requests.ask(store_of(redis), SETTINGS, **wanted)


def test_probes_that_are_asked_for_are_started_once_each_and_say_for_whom(redis: Redis, wait_until: WaitUntil) -> None:
    worker = Worker(redis, pages_at=3)
    made: list[ProbeRequest] = []

    def make(request: ProbeRequest) -> Crafter:
        made.append(request)
        return Scripted(worker, request.attack, request.kind or "campaign", threat=request.threat or "own")

    wanted = ask(redis, count=5, threat_name="image-l2")
    with running(redis, {}, settings(requests_at_once=2), make=make):
        wait_until(lambda: len(requests.answers(store_of(redis), wanted.id)) == 5, 30, "five probes")
        assert store_of(redis).requests() == []
        wait_until(lambda: not redis.hlen(KEYS.probe_plans), 20, "all of them to be finished")
    found = requests.answers(store_of(redis), wanted.id)
    assert len(found) == 5
    assert {(o.attack, o.threat, o.schedule, o.detected) for o in found} == {("hop_skip_jump", "image-l2", "", True)}
    assert sorted(o.number for o in found) == [1, 2, 3, 4, 5]
    assert len({o.seed for o in found}) == 5
    assert made[0].by == "ada"


def test_what_cannot_be_made_is_answered_with_the_reason(redis: Redis, wait_until: WaitUntil) -> None:
    def make(_: ProbeRequest) -> Crafter:
        raise ConfigError("square under threat model 'near': its norm is l1")

    wanted, late = ask(redis, attack="square", count=3), ask(redis)
    old = msgspec.structs.replace(late, id="0" * 16, at=late.at - 3601 * 1_000_000)
    redis.hset(KEYS.probe_requests, old.id, msgspec.json.encode(old))
    redis.hset(KEYS.probe_requests, "broken", b"{")
    with running(redis, {}, make=make):
        wait_until(lambda: len(outcomes(redis)) == 3, 20, "three refusals")
    said = {outcome.request: outcome.abandoned for outcome in outcomes(redis)}
    assert "its norm is l1" in said[wanted.id]
    assert "nobody served the request for 60 minutes" in said[old.id]
    assert redis.hlen(KEYS.probe_requests) == 0
    assert redis.hgetall(KEYS.probe_results) == {}, "a refusal counts in no recall"


def test_a_request_is_counted_down_in_the_step_that_writes_the_plan(redis: Redis) -> None:
    store = store_of(redis)
    redis.set(KEYS.fence("prober"), 7)
    plan = ProbePlan("aa", "square", "burst", "Linf", "c", 0, 0, 1, 2)
    wanted = ask(redis, count=2)
    assert store.put_plan(plan, 7, wanted)
    (left,) = store.requests()
    assert left.count == 1
    assert store.put_plan(msgspec.structs.replace(plan, campaign="bb"), 7, left)
    assert store.requests() == []
    assert not store.put_plan(msgspec.structs.replace(plan, campaign="cc"), 7, left), "a standby cannot start it again"
    assert {one.campaign for one in store.plans()} == {"aa", "bb"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attack": "pgdd"}, "no attack 'pgdd'"),
        ({"kind": "burst", "attack": "fuzz"}, "cannot be sent as burst"),
        ({"threat_name": "nowhere"}, "no threat model 'nowhere'"),
        ({"threat_name": "image-l2", "attack": "control_direct"}, "knows no threat model"),
        ({"count": 0}, "ask for 1 to 50"),
        ({"by": "  "}, "say who asks"),
    ],
)
def test_senseless_requests_are_refused_at_once(redis: Redis, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ask(redis, **changes)
    assert redis.hlen(KEYS.probe_requests) == 0


def test_requests_do_not_pile_up(redis: Redis) -> None:
    for _ in range(MOST_REQUESTS):
        ask(redis)
    with pytest.raises(Conflict, match="is `vedette prober` running"):
        ask(redis)


# Model versions and objectives ----------------------------------------------------------------------------------------


class Crafting:
    """A burst whose rows the model of one version bears, and that of the next does not."""

    attack = "transfer_pgd"
    kind: Kind = "burst"
    threat = "Linf 0.2, transfer"

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.seeds: dict[str, list[int]] = {}

    def seconds(self) -> float:
        return 30.0

    def run(self, probe: Probe) -> None:
        version = probe.model_version
        self.seeds.setdefault(version, []).append(probe.seed)
        fooled = probe.rng().random(20) < (0.1 if version == "1" else 0.8)
        probe.fooled, probe.fooled_rows = int(fooled.sum()), np.packbits(fooled).tobytes().hex()
        for counter in range(20):
            self._worker.see(probe.campaign, counter)
        probe.sent = probe.inputs = 20


def test_a_new_version_is_probed_at_once_and_its_regression_is_named(redis: Redis, wait_until: WaitUntil) -> None:
    version = ["1"]
    crafter = Crafting(Worker(redis, pages_at=4))
    own = (
        ScheduleSettings(name="burst", enabled=False),
        ScheduleSettings(name="steady", attacks={"transfer_pgd": 1.0}, every_seconds=0.05),
        ScheduleSettings(name="new", attacks={"transfer_pgd": 1.0}, on_new_version=True),
    )
    options = settings(schedules=own)
    with running(
        redis, {"steady": (crafter,), "new": (crafter,)}, options, version=lambda: version[0], seeds=seeds_under(b"k")
    ):
        wait_until(lambda: len(outcomes(redis)) >= 12, 30, "probes of version 1")
        version[0] = "2"
        stored = wait_until(
            lambda: Ledger(redis, KEYS).open_incident(regression("transfer_pgd").group), 30, "the regression"
        )
    incident: Incident = stored.incident
    assert (incident.technique, incident.entity, incident.level) == ("model-regression", "monitoring", "ticket")
    assert "version 2 against version 1: robust accuracy under transfer_pgd (Linf 0.2, transfer)" in incident.title
    assert "exact McNemar p = " in incident.title
    found = outcomes(redis)
    new = [outcome for outcome in found if outcome.schedule == "new"]
    assert [outcome.model_version for outcome in new] == ["1", "2"], "the first version that is seen is new as well"
    matched = min(len(seeds) for seeds in crafter.seeds.values())
    assert matched >= 5
    assert set(crafter.seeds["1"][:matched]) == set(crafter.seeds["2"][:matched])
    parts = [part for part in store_of(redis).breakdown() if part.model_version]  # it changed under one, perhaps
    assert [(part.attack, part.threat, part.model_version) for part in parts] == [
        ("transfer_pgd", "Linf 0.2, transfer", "1"),
        ("transfer_pgd", "Linf 0.2, transfer", "2"),
    ]
    assert parts[0].robust_accuracy is not None
    assert parts[1].robust_high is not None
    assert parts[0].robust_accuracy > 0.8 > 0.4 > parts[1].robust_high


class Suffering(Scripted):
    """The model fails some of its calls."""

    errors = 0

    def run(self, probe: Probe) -> None:
        probe.tally = _Said(Answers(calls=40, timeouts=self.errors, times={60: 40}))  # type: ignore[assignment]
        super().run(probe)


class _Said:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def message(self) -> Answers:
        return self._answers


def test_a_missed_objective_opens_an_incident_which_is_resolved_when_it_is_met(
    redis: Redis, wait_until: WaitUntil
) -> None:
    crafter = Suffering(Worker(redis, pages_at=2))
    crafter.errors = 9
    wanted = ObjectiveSettings(model_error_rate=0.05, latency_ms=1_000)

    def open_of(name: str) -> Any:
        return Ledger(redis, KEYS).open_incident(objective(name).group)

    with running(redis, {"campaign": (crafter,)}, objectives=wanted):
        stored = wait_until(lambda: open_of("model-errors"), 20, "the incident")
        assert stored.incident.technique == "objective-missed"
        assert stored.incident.level == "ticket"
        assert "the model failed" in stored.incident.title
        assert open_of("latency") is None
        crafter.errors = 0
        wait_until(lambda: open_of("model-errors") is None, 60, "the incident to be resolved")
    assert Ledger(redis, KEYS).incident(stored.incident.id).incident.state == "resolved"


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path: Path, redis_url: str) -> str:
    path = tmp_path / "vedette.toml"
    path.write_text(
        f'[redis]\nurl = "{redis_url}"\n'
        '[[probes.schedules]]\nname = "x"\nattacks = { nes = 1.0 }\ncron = "0 0 * * *"\n'
        f'[[models]]\nname = "digits"\ntopic = "{TOPIC}"\nbundle = "b"\n'
    )
    return str(path)


def test_the_command_asks_waits_and_tells(
    redis: Redis, config_file: str, capsys: pytest.CaptureFixture[str], wait_until: WaitUntil
) -> None:
    seen, blind = Worker(redis, pages_at=4), Worker(redis, pages_at=None)

    def make(request: ProbeRequest) -> Crafter:
        return Scripted(blind if request.attack == "square" else seen, request.attack, threat="t")

    assert invoke(["--config", config_file, "probe", "now", "--attack", "nes", "--json"]) == 0
    (waiting,) = json.loads(capsys.readouterr().out)
    assert (waiting["attack"], waiting["count"]) == ("nes", 1)
    with running(redis, {}, settings(campaign_every_seconds=NEVER), make=make):
        wait_until(lambda: requests.answers(store_of(redis), waiting["id"]), 20, "the first one")
        command = ["--config", config_file, "probe", "now", "--count", "2", "--wait", "30"]
        assert invoke([*command, "--attack", "hop_skip_jump"]) == 0
        said = capsys.readouterr().out
        assert said.count("hop_skip_jump (t): paged after 4 queries") == 2
        assert invoke([*command, "--attack", "square"]) == 1
        assert "square (t): missed" in capsys.readouterr().out
    assert invoke(["--config", config_file, "probe", "results"]) == 0
    assert "100%" in capsys.readouterr().out
    assert invoke(["--config", config_file, "probe", "results", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {part["attack"] for part in found["summaries"]} == {"nes", "hop_skip_jump", "square"}
    began = time.monotonic()
    assert invoke(["--config", config_file, "probe", "now", "--wait", "0.3"]) == 1
    assert time.monotonic() - began < 10
    assert "5 have no outcome yet; is `vedette prober` running?" in capsys.readouterr().err
    assert {one.attack for one in store_of(redis).requests()} == {
        "nes", "transfer_pgd", "hop_skip_jump", "control_direct", "control_front_door",
    }  # fmt: skip
    assert invoke(["--config", config_file, "probe", "now", "--attack", "pgdd"]) == 2
    assert "no attack 'pgdd'" in capsys.readouterr().err
    assert invoke(["probe", "list"]) == 0
    assert "hop_skip_jump: campaign or burst" in capsys.readouterr().out
