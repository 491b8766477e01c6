"""Workers are killed, stopped and cut off at named points under load; at the end nothing differs.

One round a point; ``VEDETTE_FAULTS=full`` makes several, at other times, and runs the mutants.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from streams.store.keys import PartitionKeys
from tests.faults.harness import MUTANT_SECONDS, PARTITIONS, Run, audited, state_of, stopped, wake

FULL = os.environ.get("VEDETTE_FAULTS") == "full"
ROUNDS = (3, 11, 1, 23, 40) if FULL else (7,)

WaitUntil = Callable[..., Any]


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    names = sorted(found.keys() | wanted.keys())
    return [
        f"{name}: {str(found.get(name))[:300]} instead of {str(wanted.get(name))[:300]}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def assert_same(run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil) -> None:
    found = state_of(run, redis, wait_until)
    assert differences(found, undisturbed) == []
    report = audited(run, redis)
    assert report.passed, report.to_dict()
    assert (report.rows_lost, report.rows_double_counted) == (0, 0)


def harm(run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil, ended: bool) -> list[str]:
    """What a run got wrong: it did not come to its end, the independent count differs, or what it left differs."""
    if not ended:
        return [f"stuck at {run.watermarks(redis)} of {run.log.ends}\n{run.last_words()}"]
    report = audited(run, redis)
    wrong = [] if report.passed else [f"audit: {report.to_dict()}"]
    return wrong + differences(state_of(run, redis, wait_until), undisturbed)


def hit(run: Run, name: str) -> bool:
    return (run.directory / name).exists()


def test_the_undisturbed_run_leaves_nothing_empty(undisturbed: dict[str, Any]) -> None:
    kinds = ("totals", "histograms", "uses", "signals", "probes")
    empty = [f"{p}.{kind}" for p in range(PARTITIONS) for kind in kinds if not undisturbed[f"{p}.{kind}"]]
    assert empty == []
    totals = [undisturbed[f"{p}.totals"] for p in range(PARTITIONS)]
    for name in (
        "records",
        "rows",
        "scored",
        "probes",
        "probes_excluded",
        "invalid",
        "anonymous",
        "signals",
        "tickets",
    ):
        assert sum(int(one.get(name.encode(), 0)) for one in totals) > 0, name
    incidents = [value for name, value in undisturbed.items() if name.startswith("incident ")]
    assert len(incidents) >= 5
    assert any(one[3] == "page" for one in incidents)
    assert any(":minute:" in name for name in undisturbed)


@pytest.mark.parametrize("at", ROUNDS)
@pytest.mark.parametrize("point", ["after-score", "record-sent", "between-record-and-commit", "during-snapshot"])
def test_kill_at_a_point_changes_nothing(
    point: str, at: int, run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil
) -> None:
    if point == "during-snapshot":
        at = 1 + ROUNDS.index(at)  # a busy machine makes few snapshots before the log ends
    fault = {"point": point, "at": at, "action": "kill", "marker": str(run.directory / "hit")}
    for _ in range(2):  # whichever comes to the point first
        run.start(**fault)
    wait_until(lambda: hit(run, "hit"), 60, f"a worker to die at {point}\n{run.last_words()}")
    run.finish(redis)
    assert_same(run, redis, undisturbed, wait_until)


# In units of 200 recorded rows; later the log ends before another worker has joined.
@pytest.mark.parametrize("at", (1, 3, 7, 11, 17) if FULL else (1,))
def test_kill_during_a_rebalance_changes_nothing(
    at: int, run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil
) -> None:
    marker = str(run.directory / "hit")
    dying = run.start(point="during-rebalance", at=1, action="kill", marker=marker, pause=0.15)
    wait_until(lambda: sum(run.watermarks(redis).values()) > 200 * at, 60, "work to begin")
    assert not hit(run, "hit")
    run.start()
    wait_until(lambda: hit(run, "hit"), 60, "a worker to die in the rebalance")
    assert dying.wait(30) == -9
    assert not run.done(redis), "the rebalance came after the end of the log"
    run.finish(redis)
    assert_same(run, redis, undisturbed, wait_until)


def test_kill_of_connections_loses_replies_and_changes_nothing(
    run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil
) -> None:
    run.start(point="record-sent", at=5, action="cut", marker=str(run.directory / "hit"))
    run.finish(redis, keep=1)
    assert hit(run, "hit")
    assert_same(run, redis, undisturbed, wait_until)


def zombie(run: Run, redis: Redis, wait_until: WaitUntil, mutant: str = "") -> list[str]:
    """A worker is stopped with scored rows, its partitions move to one that is held; the first wakes. What it wrote."""
    sleeper = run.start(point="after-score", at=6, action="stop", marker=str(run.directory / "asleep"), mutant=mutant)
    wait_until(lambda: hit(run, "asleep") and stopped(sleeper), 60, f"a worker to be stopped\n{run.last_words()}")
    held = str(run.directory / "held")
    gate = str(run.directory / "gate")
    owner = run.start(point="after-score", at=1, action="hold", marker=held, gate=gate, mutant=mutant)
    wait_until(lambda: hit(run, "held"), 90, f"the partitions to move\n{run.last_words()}")

    def epochs() -> list[int]:
        return [int(redis.hget(PartitionKeys(run.log.topic, p).watermark, "epoch") or 0) for p in range(PARTITIONS)]

    def written() -> dict[str, Any]:
        found = {}
        for partition in range(PARTITIONS):
            keys = PartitionKeys(run.log.topic, partition)
            mark = redis.hgetall(keys.watermark)
            mark.pop(b"epoch", None)
            found[f"{partition}"] = (mark, redis.hgetall(keys.totals))
        return found

    assert owner.poll() is None
    taken = [partition for partition, epoch in enumerate(epochs()) if epoch >= 2]
    assert taken
    before = written()
    wake(sleeper)
    fenced = "another worker took"
    log = run.directory / "worker-0.log"

    def answered() -> bool:
        return fenced in log.read_text(errors="replace") or written() != before

    wait_until(answered, 60, f"the woken worker to be answered\n{run.last_words()}")
    after = written()
    (run.directory / "gate").touch()
    return [name for name in before if before[name] != after[name] and int(name) in taken]


def test_kill_signal_is_not_needed_a_zombie_writes_nothing(
    run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil
) -> None:
    assert zombie(run, redis, wait_until) == []
    run.finish(redis)
    assert_same(run, redis, undisturbed, wait_until)


@pytest.mark.skipif(not FULL, reason="mutants run in `make faults`")
class TestMutants:
    """Each worker that lacks one of the guards is caught."""

    def test_without_the_epoch_a_zombie_writes(self, run: Run, redis: Redis, wait_until: WaitUntil) -> None:
        assert zombie(run, redis, wait_until, mutant="epoch") != []

    def test_without_the_compare_and_set_lost_replies_do_harm(
        self, run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil
    ) -> None:
        for _ in range(2):
            fault = {"point": "record-sent", "at": 2, "action": "cut", "marker": str(run.directory / "hit")}
            run.start(**fault, mutant="compare-and-set")
        ended = run.ends(redis, MUTANT_SECONDS)
        assert hit(run, "hit")
        assert harm(run, redis, undisturbed, wait_until, ended) != []

    def test_without_s_below_w_a_kill_does_harm(
        self, run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil
    ) -> None:
        marker = run.directory / "hit"
        dying = run.start(point="record-sent", at=1, action="kill-ahead", marker=str(marker), mutant="s<=w")
        wait_until(lambda: dying.poll() is not None or run.done(redis), 120, f"the fault\n{run.last_words()}")
        assert marker.exists(), "no snapshot was ever ahead of its watermark"
        run.start(mutant="s<=w")
        ended = run.ends(redis, MUTANT_SECONDS)
        assert harm(run, redis, undisturbed, wait_until, ended) != []


def test_a_snapshot_is_never_ahead_of_its_watermark(
    run: Run, redis: Redis, undisturbed: dict[str, Any], wait_until: WaitUntil
) -> None:
    run.start(point="record-sent", at=1, action="kill-ahead", marker=str(run.directory / "hit"), mutant="slow")
    run.finish(redis, keep=1)
    assert not hit(run, "hit")
    assert_same(run, redis, undisturbed, wait_until)
    manifests = [redis.hgetall(PartitionKeys(run.log.topic, p).snapshots) for p in range(PARTITIONS)]
    assert any(manifests), "no snapshot was published"
