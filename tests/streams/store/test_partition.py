"""Taking a partition and recording: compare-and-set on a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from streams.errors import Fenced, StoreError, TopicRecreated, WatermarkMissing
from streams.store.partition import Plan, Scripts
from tests.streams.store.conftest import KEYS, Play

Dump = Callable[[], dict[bytes, Any]]


def plan(base: int, following: int, **changes: Any) -> Plan:
    full: dict[str, Any] = {
        "mark": {"bundle": "b1", "bundle_from": "0", "identity": f"{following - 1}:5:00"},
        "totals": {"records": following - base, "rows": 7},
        "minutes": {60: {"rows": 4}, 61: {"rows": 3}},
        "hours": {1: {"rows": 7}},
        "histograms": {"trust_ratio": bytes([0, 255, 128, 1])},
        "signals": [(f"{base + 1}-0", '{"offset":1}'), (f"{base + 1}-1", '{"offset":1}')],
        "verdicts": [(f"{base + 1}-0", '{"probe":"x"}')],
        "uses": {"id-1": f"{base}-0:99"},
        "expired": ["id-0"],
    }
    return Plan(base, following, **{**full, **changes})


def test_a_partition_begins_where_it_is_told(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        store = make()
        assert not await store.begun()
        with pytest.raises(WatermarkMissing, match="events/2"):
            await store.claim("t1", None)
        assert not redis.keys("*")
        claim = await store.claim("t1", 40)
        assert (claim.epoch, claim.before, claim.watermark, claim.since, claim.bundle) == (1, 0, 40, 40, "")
        assert await store.begun()
        again = await store.claim("t1", None)
        assert (again.epoch, again.before, again.watermark) == (2, 1, 40)

    play(scene)


def test_everything_of_a_batch_is_written_at_once(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        store = make()
        claim = await store.claim("t1", 0)
        redis.hset(KEYS.probe_uses, "id-0", "1-0:2")
        await store.record(plan(0, 10), claim.epoch)
        await store.record(plan(10, 30), claim.epoch)
        assert await store.histograms() == {"trust_ratio": bytes([0, 255, 128, 1])}
        assert await store.probe_uses() == {"id-1": (10, 0, 99)}

    play(scene)
    assert redis.hmget(KEYS.watermark, "w", "since", "bundle", "identity") == [b"30", b"0", b"b1", b"29:5:00"]
    assert redis.hgetall(KEYS.totals) == {b"records": b"30", b"rows": b"14"}
    assert redis.hgetall(KEYS.minute(60)) == {b"rows": b"8"}
    assert redis.hgetall(KEYS.hour(1)) == {b"rows": b"14"}
    assert 0 < redis.ttl(KEYS.minute(61)) <= 2 * 24 * 3600 < redis.ttl(KEYS.hour(1))
    assert [entry for entry, _ in redis.xrange(KEYS.signals)] == [b"1-0", b"1-1", b"11-0", b"11-1"]
    assert redis.xlen(KEYS.probes) == 2


def test_a_fenced_worker_writes_nothing(play: Play, dump: Dump) -> None:
    async def scene(make: Any) -> None:
        old, new = make(), make()
        stale = await old.claim("t1", 0)
        await old.record(plan(0, 10), stale.epoch)
        await new.claim("t1", None)
        before = dump()
        with pytest.raises(Fenced, match="another worker took events/2: its epoch is 2, ours 1"):
            await old.record(plan(10, 20), stale.epoch)
        assert dump() == before

    play(scene)


def test_a_batch_that_began_elsewhere_is_refused(play: Play, dump: Dump) -> None:
    async def scene(make: Any) -> None:
        store = make()
        claim = await store.claim("t1", 0)
        await store.record(plan(0, 10), claim.epoch)
        before = dump()
        for wrong in (plan(0, 5), plan(9, 20), plan(11, 20)):
            with pytest.raises(Fenced, match="the watermark of events/2 is 10"):
                await store.record(wrong, claim.epoch)
        assert dump() == before

    play(scene)


def test_a_repeated_call_changes_nothing_and_says_that_it_was_applied(play: Play, dump: Dump) -> None:
    async def scene(make: Any) -> None:
        store = make()
        claim = await store.claim("t1", 0)
        await store.record(plan(0, 10), claim.epoch)
        before = dump()
        await store.record(plan(0, 10), claim.epoch)
        assert dump() == before

    play(scene)


def test_a_lost_reply_is_resolved_by_sending_again(play: Play, redis: Redis) -> None:
    """The connection breaks when Redis has run the call and its reply has not been read."""
    broken = []

    def sent() -> None:
        if not broken:
            broken.append(True)
            while redis.hget(KEYS.watermark, "w") != b"10":
                pass
            raise RedisConnectionError("reset by peer")

    async def scene(make: Any) -> None:
        store = make(sent=sent)
        claim = await store.claim("t1", 0)
        with pytest.raises(RedisConnectionError):
            await store.record(plan(0, 10), claim.epoch)
        await store.record(plan(0, 10), claim.epoch)
        await store.record(plan(10, 20), claim.epoch)

    play(scene)
    assert redis.hgetall(KEYS.totals) == {b"records": b"20", b"rows": b"14"}


def test_without_compare_and_set_a_repeated_call_counts_twice(play: Play, redis: Redis) -> None:
    """The mutant shows that the test above can fail."""
    text = Scripts().record
    mutant = text.replace("if stored[1] ~= ARGV[1] then", "if false then")
    mutant = mutant.replace("append(KEYS[4], signals)\nappend(KEYS[5], verdicts, ARGV[5])", "")
    assert mutant.count("append(KEYS") == 0
    assert mutant != text

    async def scene(make: Any) -> None:
        store = make(Scripts(record=mutant))
        claim = await store.claim("t1", 0)
        await store.record(plan(0, 10), claim.epoch)
        await store.record(plan(0, 10), claim.epoch)

    play(scene)
    assert redis.hget(KEYS.totals, "records") == b"20"


def test_another_topic_of_the_same_name_is_refused(play: Play, dump: Dump) -> None:
    async def scene(make: Any) -> None:
        store = make()
        await store.claim("t1", 0)
        before = dump()
        with pytest.raises(TopicRecreated, match="its id is t2, and the watermark of events/2 belongs to t1"):
            await store.claim("t2", None)
        assert dump() == before
        await store.claim("", None)  # a broker that tells no id

    play(scene)


def test_keys_of_a_newer_layout_are_left_alone(play: Play, redis: Redis, dump: Dump) -> None:
    async def scene(make: Any) -> None:
        redis.hset(KEYS.watermark, mapping={"w": 5, "layout": 2, "epoch": 9})
        before = dump()
        with pytest.raises(StoreError, match="layout 2"):
            await make().claim("t1", None)
        assert dump() == before

    play(scene)


def test_a_large_batch_passes(play: Play, redis: Redis) -> None:
    """More values than Lua can unpack at once."""
    many = {f"id-{n}": f"{n}-0:9" for n in range(9_000)}
    minutes = {n: {"rows": 1} for n in range(3_000)}

    async def scene(make: Any) -> None:
        store = make()
        claim = await store.claim("t1", 0)
        signals = [(f"{n + 1}-0", "{}") for n in range(9_000)]
        await store.record(plan(0, 9_000, uses=many, minutes=minutes, signals=signals), claim.epoch)
        await store.record(plan(9_000, 9_001, expired=list(many)), claim.epoch)

    play(scene)
    assert redis.xlen(KEYS.signals) == 9_002
    assert redis.hlen(KEYS.probe_uses) == 0


def test_a_refusal_before_anything_is_written_leaves_everything(play: Play, redis: Redis, dump: Dump) -> None:
    async def scene(make: Any) -> None:
        store = make()
        claim = await store.claim("t1", 0)
        redis.set(KEYS.signals, "no stream")
        before = dump()
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await store.record(plan(0, 10), claim.epoch)
        assert dump() == before
        redis.delete(KEYS.signals)
        await store.record(plan(0, 10), claim.epoch)

    play(scene)


def test_scripts_are_sent_whole_after_redis_forgot_them(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        store = make()
        claim = await store.claim("t1", 0)
        redis.script_flush()  # as after a restart
        await store.record(plan(0, 10), claim.epoch)

    play(scene)
    assert redis.hget(KEYS.watermark, "w") == b"10"
