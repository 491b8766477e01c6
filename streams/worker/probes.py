"""Which rows are probes: candidates are verified, first uses are remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streams.events.batch import InferenceBatch
from streams.probes.marks import Mark, verify

ProbeStatus = Literal["scored", "expired", "replayed"]

Use = tuple[int, int, int]

#: Bytes of a probe id in a snapshot: campaign, counter.
_ID_BYTES = 12


@dataclass(frozen=True, slots=True)
class Probe:
    """A record, or some rows of it, with a right mark: batch[start:stop]."""

    mark: Mark
    status: ProbeStatus
    offset: int
    row: int
    """Place of the first row in its record."""
    time: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the candidates of a batch turned out to be."""

    probes: tuple[Probe, ...]
    invalid: tuple[int, ...]
    """First rows in the batch of records whose mark is not right; they are ordinary traffic."""

    @property
    def offsets(self) -> frozenset[int]:
        """Of the probes' records."""
        return frozenset(probe.offset for probe in self.probes)


class ProbeUses:
    """First uses of probe ids within one partition: id -> (offset, row, expiry in microseconds of broker time).

    A mark is valid only until its expiry, and time does not run backwards; so a use is forgotten after it.
    """

    def __init__(self) -> None:
        self._uses: dict[str, Use] = {}
        self._next_expiry = 0

    def __len__(self) -> int:
        return len(self._uses)

    def merge(self, uses: Mapping[str, Use]) -> None:
        """Take in uses whose coordinates are known from elsewhere."""
        self._uses.update(uses)
        self._next_expiry = 0

    def first(self, identity: str, offset: int, row: int, expiry: int, now: int) -> bool:
        """Whether what stands there is the id's first use, expired ones left out; remembers it."""
        used = self._uses.get(identity)
        if used is None or used[2] < now:
            used = self._uses[identity] = (offset, row, expiry)
            self._next_expiry = min(self._next_expiry, expiry)
        return used[:2] == (offset, row)

    def forget(self, now: int) -> list[str]:
        """Remove what has expired; returns the ids."""
        if now <= self._next_expiry:
            return []
        gone = [identity for identity, (_, _, expiry) in self._uses.items() if expiry < now]
        for identity in gone:
            del self._uses[identity]
        self._next_expiry = min((expiry for _, _, expiry in self._uses.values()), default=now)
        return gone

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything, in the order of the log: ids (u, 12) uint8, offsets, rows and expiries (u,) int64."""
        order = sorted(self._uses, key=lambda identity: (self._uses[identity][:2], identity))
        packed = b"".join(bytes.fromhex(identity.replace("-", "")) for identity in order)
        places = np.array([self._uses[identity] for identity in order], dtype=np.int64).reshape(len(order), 3)
        return {
            "ids": np.frombuffer(packed, dtype=np.uint8).reshape(len(order), _ID_BYTES),
            "offsets": places[:, 0],
            "rows": places[:, 1],
            "expiries": places[:, 2],
        }

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """The inverse of `arrays`."""
        self._uses = {}
        places = (arrays[name].tolist() for name in ("offsets", "rows", "expiries"))
        for packed, *use in zip(arrays["ids"], *places, strict=True):
            digits = packed.tobytes().hex()
            self._uses[f"{digits[:16]}-{digits[16:]}"] = (use[0], use[1], use[2])
        self._next_expiry = 0


def find(
    batch: InferenceBatch,
    times: NDArray[np.int64],
    uses: ProbeUses,
    topic: str,
    partition: int,
    ttl_us: int,
    key: bytes,
) -> Found:
    """Verify a batch's candidates; first uses are remembered in `uses`.

    Parameters
    ----------
    batch : InferenceBatch
    times : int64 (n,)
        Broker time of each row, non-decreasing.
    """
    probes: list[Probe] = []
    invalid: list[int] = []
    incomplete = {letter.offset for letter in batch.dead}
    marked = np.flatnonzero(batch.marks >= 0)
    numbers = np.arange(len(batch.requests))
    firsts = np.searchsorted(batch.marks[marked], numbers, side="left")
    behind = np.searchsorted(batch.marks[marked], numbers, side="right")
    for candidate, first, last in zip(batch.requests, firsts.tolist(), behind.tolist(), strict=True):
        if first == last:
            continue  # a dead letter as a whole
        start, stop = int(marked[first]), int(marked[last - 1]) + 1
        time = int(times[start])
        inputs = None if candidate.offset in incomplete else batch.inputs[start:stop]
        mark = verify(candidate, topic, partition, time, ttl_us, key, inputs)
        if mark is None:
            invalid.append(start)
            continue
        row = int(batch.rows[start])
        status: ProbeStatus = "expired"
        if mark.elsewhere:
            status = "replayed"
        elif not mark.expired:
            fresh = uses.first(mark.id, candidate.offset, row, mark.issued + ttl_us, time)
            status = "scored" if fresh else "replayed"
        probes.append(Probe(mark, status, candidate.offset, row, time, start, stop))
    return Found(tuple(probes), tuple(invalid))
