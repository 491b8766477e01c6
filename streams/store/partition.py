"""What a worker writes of one partition: it takes the partition, records batches, publishes snapshots.

Each is one script and a compare-and-set. A reply that was lost is found again by sending the same call once more: the
script then answers that the watermark stands where the call wanted it, under our own epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from streams.errors import Fenced, StoreError, TopicRecreated, WatermarkMissing
from streams.store.keys import LAYOUT_VERSION, PartitionKeys

#: Counters of a minute live so long, those of an hour so long.
MINUTE_TTL_SECONDS = 2 * 24 * 3600
HOUR_TTL_SECONDS = 90 * 24 * 3600
#: Verdicts that a partition's probes stream keeps, about.
VERDICTS_KEPT = 20_000
#: A chunk that no published manifest names is forgotten after so long.
ORPHAN_SECONDS = 3600

_HERE = Path(__file__).parent


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Scripts:
    """The Lua that a worker writes by."""

    claim: str = field(default_factory=lambda: _text("claim.lua"))
    record: str = field(default_factory=lambda: _text("record.lua"))
    publish: str = field(default_factory=lambda: _text("publish.lua"))


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition as a worker finds it on taking it.

    Attributes
    ----------
    epoch, before : int
        Our fencing token, and the one before it.
    watermark, since : int
        Next offset to record, and the one at which recording began.
    bundle, bundle_from : str, int
        Digest of the bundle that decided last (empty: none yet), and from which offset on.
    identity : str
        ``offset:timestamp:crc32`` of the last recorded record, empty if there is none.
    manifests : tuple of bytes
        Published snapshots at or below the watermark, newest first.
    """

    epoch: int
    before: int
    watermark: int
    since: int
    bundle: str
    bundle_from: int
    identity: str
    manifests: tuple[bytes, ...]


@dataclass(slots=True)
class Plan:
    """What one batch does to a partition; see record.lua."""

    base: int
    next: int
    mark: dict[str, str] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    minutes: dict[int, dict[str, int]] = field(default_factory=dict)
    hours: dict[int, dict[str, int]] = field(default_factory=dict)
    histograms: dict[str, bytes] = field(default_factory=dict)
    signals: list[tuple[str, str]] = field(default_factory=list)
    verdicts: list[tuple[str, str]] = field(default_factory=list)
    uses: dict[str, str] = field(default_factory=dict)
    expired: list[str] = field(default_factory=list)


class PartitionStore:
    """One partition's keys, as its worker writes them.

    Parameters
    ----------
    redis : redis.asyncio.Redis
        Returns bytes and repeats nothing by itself.
    keys : PartitionKeys
    scripts : Scripts
    sent : callable
        Called when a record call is on the wire and its reply has not been read.
    """

    def __init__(
        self, redis: Redis, keys: PartitionKeys, scripts: Scripts, sent: Callable[[], None] | None = None
    ) -> None:
        self.redis = redis
        self.keys = keys
        self._scripts = scripts
        self._sent = sent
        self._digests = {
            text: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for text in (scripts.claim, scripts.record, scripts.publish)
        }

    async def begun(self) -> bool:
        """Whether the partition has a watermark."""
        return bool(await self.redis.hexists(self.keys.watermark, "w"))

    async def claim(self, topic_id: str, begin: int | None) -> Claim:
        """Take the partition: from now on whoever held it before can write nothing.

        Parameters
        ----------
        topic_id : str
            The broker's id of the topic; empty where it tells none.
        begin : int, optional
            Offset at which a partition without a watermark begins.

        Raises
        ------
        WatermarkMissing
            There is no watermark, and `begin` is None.
        TopicRecreated
        StoreError
            The keys were written by a newer version.
        RedisError
            Redis is away; nothing is known of the outcome, and the claim is to be made again.
        """
        where = f"{self.keys.topic}/{self.keys.partition}"
        for text in self._digests:
            await self.redis.script_load(text)
        arguments = [topic_id, "" if begin is None else begin, LAYOUT_VERSION]
        answer = await self._call(self._scripts.claim, [self.keys.watermark, self.keys.snapshots], arguments)
        status, before, epoch, flat, manifests = answer
        stored = {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}
        if status == b"missing":
            raise WatermarkMissing(f"Redis holds no watermark of {where}")
        if status == b"recreated":
            raise TopicRecreated(
                f"the topic {self.keys.topic} was created anew: its id is {topic_id}, and the watermark of {where} "
                f"belongs to {stored.get('topic_id')}; delete the keys {self.keys.tag}:* to begin anew"
            )
        if status == b"layout":
            raise StoreError(
                f"{self.keys.watermark} has layout {stored.get('layout')}, and this version knows {LAYOUT_VERSION}; "
                "update this worker"
            )
        return Claim(
            epoch=int(epoch),
            before=int(before),
            watermark=int(stored["w"]),
            since=int(stored.get("since", stored["w"])),
            bundle=stored.get("bundle", ""),
            bundle_from=int(stored.get("bundle_from", stored.get("since", stored["w"]))),
            identity=stored.get("identity", ""),
            manifests=tuple(manifests),
        )

    async def histograms(self) -> dict[str, bytes]:
        """Packed counts of each detector."""
        stored: Any = await self.redis.hgetall(self.keys.histograms)
        return {name.decode(): packed for name, packed in stored.items()}

    async def probe_uses(self) -> dict[str, tuple[int, int, int]]:
        """Probe id -> offset and row of its first use, and its expiry in microseconds."""
        stored: Any = await self.redis.hgetall(self.keys.probe_uses)
        uses = {}
        for name, value in stored.items():
            place, _, expiry = value.decode().partition(":")
            offset, _, row = place.partition("-")
            uses[name.decode()] = (int(offset), int(row), int(expiry))
        return uses

    async def record(self, plan: Plan, epoch: int) -> None:
        """Apply a plan, or nothing. Sending the same plan again is harmless, and tells whether it was applied.

        Raises
        ------
        Fenced
            Another worker took the partition, or the watermark is neither where the plan begins nor where it ends.
        RedisError
            Redis is away or refuses; the plan may or may not have been applied. Send it again.
        """
        periods: list[tuple[int, list[Any]]] = []
        keys = [
            self.keys.watermark,
            self.keys.totals,
            self.keys.histograms,
            self.keys.signals,
            self.keys.probes,
            self.keys.probe_uses,
        ]
        for minute, counts in plan.minutes.items():
            keys.append(self.keys.minute(minute))
            periods.append((MINUTE_TTL_SECONDS, _flat(counts)))
        for hour, counts in plan.hours.items():
            keys.append(self.keys.hour(hour))
            periods.append((HOUR_TTL_SECONDS, _flat(counts)))
        packed = msgspec.msgpack.encode(
            (
                _flat(plan.mark),
                _flat(plan.totals),
                periods,
                [part for entry in plan.signals for part in entry],
                [part for entry in plan.verdicts for part in entry],
                _flat(plan.uses),
                plan.expired,
            )
        )
        arguments = [plan.base, plan.next, epoch, packed, VERDICTS_KEPT, *_flat(plan.histograms)]
        status, watermark, newest = await self._call(self._scripts.record, keys, arguments, self._sent)
        if status == b"ok" or (status == b"moved" and watermark == b"%d" % plan.next):
            return
        where = f"{self.keys.topic}/{self.keys.partition}"
        if status == b"fenced":
            raise Fenced(f"another worker took {where}: its epoch is {newest.decode()}, ours {epoch}")
        raise Fenced(f"the watermark of {where} is {watermark.decode()}, and the batch began at {plan.base}")

    async def write_chunks(self, chunks: Sequence[tuple[str, bytes]]) -> None:
        """Store chunks of a snapshot by digest; those that are there already stay as they are."""
        pipe = self.redis.pipeline(transaction=False)
        for digest, content in chunks:
            pipe.set(self.keys.chunk(digest), content, nx=True, ex=ORPHAN_SECONDS)
        await pipe.execute()

    async def read_chunks(self, digests: Sequence[str]) -> list[bytes | None]:
        """Contents of chunks, None where one is missing."""
        found: Any = await self.redis.mget([self.keys.chunk(digest) for digest in digests])
        return list(found)

    async def publish(
        self, epoch: int, offset: int, manifest: bytes, chunks: Sequence[str], forgotten: Sequence[str]
    ) -> str:
        """Publish a snapshot whose chunks are written; returns ok, beyond, older or incomplete.

        Raises
        ------
        Fenced
        """
        keys = [self.keys.watermark, self.keys.snapshots]
        keys += [self.keys.chunk(digest) for digest in (*chunks, *forgotten)]
        status, _ = await self._call(self._scripts.publish, keys, [epoch, offset, manifest, len(chunks)])
        if status == b"fenced":
            raise Fenced(f"another worker took {self.keys.topic}/{self.keys.partition}; the snapshot is dropped")
        return str(status.decode())

    async def _call(
        self, script: str, keys: Sequence[str], arguments: Sequence[Any], sent: Callable[[], None] | None = None
    ) -> list[Any]:
        pool: Any = self.redis.connection_pool
        connection = await pool.get_connection()
        try:
            try:
                await connection.send_command("EVALSHA", self._digests[script], len(keys), *keys, *arguments)
                if sent is not None:
                    sent()
                answer = await connection.read_response()
            except NoScriptError:
                await connection.send_command("EVAL", script, len(keys), *keys, *arguments)
                if sent is not None:
                    sent()
                answer = await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            await connection.disconnect(nowait=True)  # the reply is still to come; nobody else may read it
            raise
        finally:
            await pool.release(connection)
        result: list[Any] = answer
        return result


def _flat(pairs: dict[Any, Any]) -> list[Any]:
    return [part for pair in pairs.items() for part in pair]
