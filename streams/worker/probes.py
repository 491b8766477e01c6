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

#: Bytes of a probe id in a snapshot: campaign, counter.
_ID_BYTES = 12


@dataclass(frozen=True, slots=True)
class Probe:
    """One record with a right mark: its rows are batch[start:stop]."""

    mark: Mark
    status: ProbeStatus
    offset: int
    time: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the candidates of a batch turned out to be."""

    probes: tuple[Probe, ...]
    invalid_times: tuple[int, ...]
    """Times of records whose mark is not right; they are ordinary traffic."""


class ProbeUses:
    """First uses of probe ids within one partition: id -> (offset, expiry in microseconds of broker time).

    A mark is valid only until its expiry, and time does not run backwards; so a use is forgotten after it.
    """

    def __init__(self) -> None:
        self._uses: dict[str, tuple[int, int]] = {}
        self._next_expiry = 0

    def __len__(self) -> int:
        return len(self._uses)

    def merge(self, uses: Mapping[str, tuple[int, int]]) -> None:
        """Take in uses whose coordinates are known from elsewhere."""
        self._uses.update(uses)
        self._next_expiry = 0

    def first(self, identity: str, offset: int, expiry: int) -> bool:
        """Whether the record at `offset` is the id's first use; remembers it."""
        used = self._uses.setdefault(identity, (offset, expiry))
        self._next_expiry = min(self._next_expiry, expiry)
        return used[0] == offset

    def forget(self, now: int) -> list[str]:
        """Remove what has expired; returns the ids."""
        if now <= self._next_expiry:
            return []
        gone = [identity for identity, (_, expiry) in self._uses.items() if expiry < now]
        for identity in gone:
            del self._uses[identity]
        self._next_expiry = min((expiry for _, expiry in self._uses.values()), default=now)
        return gone

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything: ids (u, 12) uint8, offsets (u,), expiries (u,) int64, in the order of the offsets."""
        order = sorted(self._uses, key=lambda identity: (self._uses[identity][0], identity))
        packed = b"".join(bytes.fromhex(identity.replace("-", "")) for identity in order)
        return {
            "ids": np.frombuffer(packed, dtype=np.uint8).reshape(len(order), _ID_BYTES),
            "offsets": np.array([self._uses[identity][0] for identity in order], dtype=np.int64),
            "expiries": np.array([self._uses[identity][1] for identity in order], dtype=np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """The inverse of `arrays`."""
        self._uses = {}
        for packed, offset, expiry in zip(
            arrays["ids"], arrays["offsets"].tolist(), arrays["expiries"].tolist(), strict=True
        ):
            digits = packed.tobytes().hex()
            self._uses[f"{digits[:16]}-{digits[16:]}"] = (offset, expiry)
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
    for candidate in batch.requests:
        start = int(np.searchsorted(batch.offsets, candidate.offset, side="left"))
        stop = int(np.searchsorted(batch.offsets, candidate.offset, side="right"))
        if start == stop:
            continue  # a dead letter as a whole
        time = int(times[start])
        inputs = None if candidate.offset in incomplete else batch.inputs[start:stop]
        mark = verify(candidate, topic, partition, time, ttl_us, key, inputs)
        if mark is None:
            invalid.append(time)
            continue
        status: ProbeStatus = "expired"
        if not mark.expired:
            first = uses.first(mark.id, candidate.offset, mark.issued + ttl_us)
            status = "scored" if first else "replayed"
        probes.append(Probe(mark, status, candidate.offset, time, start, stop))
    return Found(tuple(probes), tuple(invalid))
