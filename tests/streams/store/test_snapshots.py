"""Snapshots on a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from redis import Redis

from streams.errors import Fenced
from streams.store.partition import PartitionStore, Plan
from streams.store.snapshots import CHUNK_BYTES, SNAPSHOT_LAYOUT, Manifest, Snapshots, UnusableSnapshot
from tests.streams.store.conftest import KEYS, Play

POOL = ThreadPoolExecutor(1)


def state(seed: int, changed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    large = rng.integers(0, 2**60, 5 * CHUNK_BYTES // 8 + 11, dtype=np.int64)
    large[:changed] += 1
    return {
        "large": large,
        "square": rng.normal(size=(7, 3)).astype(np.float32),
        "empty": np.zeros((0, 12), dtype=np.uint8),
        "zeros": np.zeros(3 * CHUNK_BYTES, dtype=np.uint8),
        "scalar": np.array([5], dtype=np.int64),
    }


def chunks(redis: Redis) -> set[bytes]:
    return set(redis.scan_iter(f"{KEYS.tag}:chunk:*"))


async def reached(store: PartitionStore, watermark: int) -> int:
    """A claimed partition whose watermark stands there; its epoch."""
    claim = await store.claim("t1", 0)
    await store.record(Plan(0, watermark), claim.epoch)
    return claim.epoch


def same(found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name]) for name in wanted
    )


def test_what_is_published_is_read_again(play: Play) -> None:
    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 50)
        snapshots = Snapshots(store, POOL)
        manifest = await snapshots.write(state(1), 40, "b1", "t1")
        assert await snapshots.publish(manifest, epoch) == "ok"
        claim = await store.claim("t1", None)
        other = Snapshots(store, POOL)
        (found,) = other.found(claim.manifests)
        assert (found.offset, found.bundle, found.layout) == (40, "b1", SNAPSHOT_LAYOUT)
        assert same(await other.read(found, "t1"), state(1))
        part = await other.read(found, "t1", lambda name: name == "square")
        assert list(part) == ["square"]

    play(scene)


def test_only_changed_chunks_are_written_and_two_snapshots_are_kept(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 500)
        snapshots = Snapshots(store, POOL)
        sizes = []
        for number in range(4):
            before = chunks(redis)
            manifest = await snapshots.write(state(1, changed=number), 100 + number, "b1", "t1")
            sizes.append(len(chunks(redis) - before))
            assert await snapshots.publish(manifest, epoch) == "ok"
        # 6 of `large`, one of each small array, one for all zeros; then only the first of `large`.
        assert sizes == [6 + 1 + 1 + 1, 1, 1, 1]
        assert len(chunks(redis)) == 9 + 1
        claim = await store.claim("t1", None)
        newest, older = Snapshots(store, POOL).found(claim.manifests)
        assert (newest.offset, older.offset) == (103, 102)
        assert same(await snapshots.read(older, "t1"), state(1, changed=2))
        assert all(redis.ttl(key) == -1 for key in chunks(redis))

    play(scene)


def test_a_snapshot_beyond_the_watermark_is_not_published(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 50)
        snapshots = Snapshots(store, POOL)
        manifest = await snapshots.write(state(1), 51, "b1", "t1")
        assert await snapshots.publish(manifest, epoch) == "beyond"
        assert not redis.exists(KEYS.snapshots)
        assert all(0 < redis.ttl(key) <= 3600 for key in chunks(redis))  # they go by themselves
        await store.record(Plan(50, 60), epoch)
        assert await snapshots.publish(manifest, epoch) == "ok"

    play(scene)


def test_a_snapshot_beyond_the_watermark_is_not_given_out(play: Play, redis: Redis) -> None:
    """As after Redis lost its last second: the watermark fell behind a snapshot."""

    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 50)
        snapshots = Snapshots(store, POOL)
        for offset in (30, 50):
            await snapshots.publish(await snapshots.write(state(offset), offset, "b1", "t1"), epoch)
        redis.hset(KEYS.watermark, "w", 49)
        claim = await store.claim("t1", None)
        assert [manifest.offset for manifest in snapshots.found(claim.manifests)] == [30]

    play(scene)


def test_a_fenced_worker_publishes_and_forgets_nothing(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 50)
        snapshots = Snapshots(store, POOL)
        for offset in (10, 20):
            await snapshots.publish(await snapshots.write(state(offset), offset, "b1", "t1"), epoch)
        await make().claim("t1", None)
        before = redis.hgetall(KEYS.snapshots), chunks(redis)
        manifest = await snapshots.write(state(30), 30, "b1", "t1")
        with pytest.raises(Fenced):
            await snapshots.publish(manifest, epoch)
        assert redis.hgetall(KEYS.snapshots) == before[0]
        assert before[1] <= chunks(redis)

    play(scene)


def test_an_older_snapshot_does_not_replace_a_newer_one(play: Play) -> None:
    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 50)
        snapshots = Snapshots(store, POOL)
        assert await snapshots.publish(await snapshots.write(state(1), 40, "b1", "t1"), epoch) == "ok"
        assert await snapshots.publish(await snapshots.write(state(2), 30, "b1", "t1"), epoch) == "older"

    play(scene)


def test_a_snapshot_with_a_missing_chunk_is_not_published(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 50)
        snapshots = Snapshots(store, POOL)
        manifest = await snapshots.write(state(1), 40, "b1", "t1")
        redis.delete(next(iter(chunks(redis))))
        assert await snapshots.publish(manifest, epoch) == "incomplete"
        again = await snapshots.write(state(1), 41, "b1", "t1")
        assert await snapshots.publish(again, epoch) == "ok"

    play(scene)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda redis, one: redis.delete(one), "is missing"),
        (lambda redis, one: redis.setrange(one, 1, b"?"), "is damaged"),
    ],
)
def test_a_spoilt_snapshot_is_not_used(play: Play, redis: Redis, spoil: Callable[..., None], words: str) -> None:
    async def scene(make: Any) -> None:
        store = make()
        epoch = await reached(store, 50)
        snapshots = Snapshots(store, POOL)
        manifest = await snapshots.write(state(1), 40, "b1", "t1")
        await snapshots.publish(manifest, epoch)
        spoil(redis, min(chunks(redis)))
        with pytest.raises(UnusableSnapshot, match=words):
            await snapshots.read(manifest, "t1")

    play(scene)


def test_another_layout_topic_or_nonsense_is_not_used(play: Play, redis: Redis) -> None:
    async def scene(make: Any) -> None:
        snapshots = Snapshots(make(), POOL)
        manifest = await snapshots.write(state(1), 40, "b1", "t1")
        with pytest.raises(UnusableSnapshot, match="layout 2"):
            await snapshots.read(msgspec.structs.replace(manifest, layout=2), "t1")
        with pytest.raises(UnusableSnapshot, match="earlier topic"):
            await snapshots.read(manifest, "t2")
        assert snapshots.found([b"nonsense", msgspec.msgpack.encode(manifest)]) == [manifest]
        assert isinstance(manifest, Manifest)

    play(scene)
