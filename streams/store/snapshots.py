"""Snapshots of a partition's state: named arrays in content-addressed chunks, of which only new ones are written.

A snapshot at offset S is published only when everything below S is recorded; two are kept. Its manifest says what the
arrays are and which chunks they are made of, for which bundle, topic and layout.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from itertools import islice

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.errors import VedetteError
from streams.store.partition import PartitionStore

log = logging.getLogger("vedette.worker")

#: Version of what is in a manifest and in the arrays; a snapshot of another version is not used.
SNAPSHOT_LAYOUT = 1
CHUNK_BYTES = 64 * 1024
#: Chunks read in one round trip.
CHUNKS_AT_ONCE = 16
#: Chunks hashed and written in one step. Records are written to the same disk meanwhile, so steps are small, and after
#: each comes a rest of so many times as long as it took.
STEP_CHUNKS = 4
REST = 2.0
#: Bytes of a chunk's digest.
_DIGEST_BYTES = 16

Arrays = Mapping[str, NDArray[np.generic]]


class UnusableSnapshot(VedetteError):
    """A published snapshot cannot be used here; the message says why. Another one, or the log, is used instead."""


class ArrayEntry(msgspec.Struct, frozen=True, array_like=True):
    """One array: dtype as numpy spells it, shape, digests of its chunks in order."""

    dtype: str
    shape: tuple[int, ...]
    chunks: list[str]


class Manifest(msgspec.Struct, frozen=True):
    """What a published snapshot is made of."""

    layout: int
    offset: int
    bundle: str
    topic_id: str
    arrays: dict[str, ArrayEntry]

    def chunks(self) -> list[str]:
        """Digests of all chunks, each once."""
        return _chunks(self.arrays)


class Snapshots:
    """Writes and reads one partition's snapshots.

    Parameters
    ----------
    store : PartitionStore
    pool : Executor
        A thread of its own for hashing, so that neither the event loop nor scoring waits.
    """

    def __init__(self, store: PartitionStore, pool: Executor) -> None:
        self._store = store
        self._pool = pool
        self._published: list[Manifest] = []

    async def write(self, arrays: Arrays, offset: int, bundle: str, topic_id: str) -> Manifest:
        """Write the chunks that are not there yet; nothing is published.

        Parameters
        ----------
        arrays : mapping of str to array
            Copies that nobody changes any more.

        Raises
        ------
        RedisError
        """
        loop = asyncio.get_running_loop()
        known = {digest for manifest in self._published for digest in manifest.chunks()}
        cut = {name: _cut(array) for name, array in arrays.items()}
        pieces = [piece for some in cut.values() for piece in some]
        digests: list[str] = []
        for start in range(0, len(pieces), STEP_CHUNKS):
            began = time.monotonic()
            some = pieces[start : start + STEP_CHUNKS]
            hashed, fresh = await loop.run_in_executor(self._pool, _hashed, some, known)
            if fresh:
                await self._store.write_chunks(fresh)
            digests += hashed
            known.update(hashed)
            await asyncio.sleep(REST * (time.monotonic() - began))
        ordered = iter(digests)
        entries = {
            name: ArrayEntry(array.dtype.str, array.shape, list(islice(ordered, len(cut[name]))))
            for name, array in arrays.items()
        }
        return Manifest(SNAPSHOT_LAYOUT, offset, bundle, topic_id, entries)

    async def publish(self, manifest: Manifest, epoch: int) -> str:
        """Make a written snapshot the newest, and forget the chunks of the one that falls out.

        Returns "ok", "beyond" (its offset is not recorded yet), "older" (a later one is there), or "incomplete".

        Raises
        ------
        Fenced
            Another worker took the partition.
        RedisError
        """
        chunks = manifest.chunks()
        kept = {*chunks, *(digest for old in self._published[-1:] for digest in old.chunks())}
        forgotten = {digest for old in self._published[:-1] for digest in old.chunks()} - kept
        packed = msgspec.msgpack.encode(manifest)
        status = await self._store.publish(epoch, manifest.offset, packed, chunks, sorted(forgotten))
        if status == "ok":
            self._published = [*self._published[-1:], manifest]
        elif status == "incomplete":
            self._published = []  # chunks that should be there are gone: write everything next time
        return status

    def found(self, packed: Sequence[bytes]) -> list[Manifest]:
        """The manifests that a claim brought, newest first; unreadable ones are left out."""
        manifests = []
        for content in packed:
            try:
                manifests.append(msgspec.msgpack.decode(content, type=Manifest))
            except msgspec.DecodeError as error:
                log.warning("%s: a snapshot's manifest cannot be read: %s", self._store.keys.tag, error)
        self._published = list(reversed(manifests))
        return manifests

    async def read(
        self, manifest: Manifest, topic_id: str, wanted: Callable[[str], bool] | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """The arrays of a published snapshot, or those whose names are wanted, verified chunk by chunk.

        Raises
        ------
        UnusableSnapshot
            It has another layout or topic, or a chunk is missing or damaged.
        RedisError
        """
        if manifest.layout != SNAPSHOT_LAYOUT:
            raise UnusableSnapshot(f"it has layout {manifest.layout}, this version knows {SNAPSHOT_LAYOUT}")
        if manifest.topic_id and topic_id and manifest.topic_id != topic_id:
            raise UnusableSnapshot("it belongs to an earlier topic of this name")
        entries = {name: entry for name, entry in manifest.arrays.items() if wanted is None or wanted(name)}
        contents: dict[str, bytes] = {}
        digests = _chunks(entries)
        loop = asyncio.get_running_loop()
        for start in range(0, len(digests), CHUNKS_AT_ONCE):
            some = digests[start : start + CHUNKS_AT_ONCE]
            read = await self._store.read_chunks(some)
            contents.update(await loop.run_in_executor(self._pool, _verified, some, read))
        return {name: _assembled(entry, contents) for name, entry in entries.items()}


def _chunks(entries: Mapping[str, ArrayEntry]) -> list[str]:
    return list(dict.fromkeys(digest for entry in entries.values() for digest in entry.chunks))


def _cut(array: NDArray[np.generic]) -> list[memoryview]:
    whole = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return [whole[start : start + CHUNK_BYTES] for start in range(0, len(whole), CHUNK_BYTES)]


def _hashed(pieces: Sequence[memoryview], known: set[str]) -> tuple[list[str], list[tuple[str, bytes]]]:
    """The pieces' digests, and those chunks that are not known."""
    digests = [hashlib.blake2b(piece, digest_size=_DIGEST_BYTES).hexdigest() for piece in pieces]
    fresh = {digest: bytes(piece) for digest, piece in zip(digests, pieces, strict=True) if digest not in known}
    return digests, list(fresh.items())


def _verified(digests: Sequence[str], contents: Sequence[bytes | None]) -> dict[str, bytes]:
    found = {}
    for digest, content in zip(digests, contents, strict=True):
        if content is None:
            raise UnusableSnapshot(f"its chunk {digest} is missing")
        if hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest() != digest:
            raise UnusableSnapshot(f"its chunk {digest} is damaged")
        found[digest] = content
    return found


def _assembled(entry: ArrayEntry, contents: Mapping[str, bytes]) -> NDArray[np.generic]:
    whole = b"".join(contents[digest] for digest in entry.chunks)
    try:
        return np.frombuffer(whole, dtype=np.dtype(entry.dtype)).reshape(entry.shape)
    except (TypeError, ValueError) as error:
        raise UnusableSnapshot(f"an array does not fit its description: {error}") from None
