"""What a partition remembers: client histories, the account-oblivious index, members of suspicious clusters.

Everything is a flat array of a fixed size, a function of the log and the bundle alone. A tracked client costs about one
KiB; members of clusters (raw rows) are kept only where evidence grows, in a pool of a fixed number of places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.kernels.rows import CODE_DIMS

#: Rows of a client that are remembered.
WINDOW_ROWS = 48
#: Live clusters a client.
CLUSTERS = 6
#: Marks a remembered row that belongs to no cluster.
NO_CLUSTER = 255
#: Members of a cluster whose raw rows are kept, the last ones.
MEMBERS = 128
#: Places of the pool of members.
POOL_PLACES = 192
#: Live clusters of the account-oblivious index.
INDEX_CLUSTERS = 1024


class Clients(NamedTuple):
    """Histories, one slot a client. c slots."""

    table: NDArray[np.int32]  # (2 ** b,) open addressing: slot or -1
    keys: NDArray[np.uint64]  # (c,)
    newer: NDArray[np.int32]  # (c,) towards the most recently used
    older: NDArray[np.int32]  # (c,)
    codes: NDArray[np.int8]  # (c, 12, 48)
    sketches: NDArray[np.uint32]  # (c, 48)
    hashes: NDArray[np.uint8]  # (c, 48)
    labels: NDArray[np.uint8]  # (c, 48)
    cluster: NDArray[np.uint8]  # (c, 48)
    distinct: NDArray[np.uint32]  # (c,) distinct rows so far
    evidence_a: NDArray[np.float32]  # (c, 6)
    evidence_b: NDArray[np.float32]  # (c, 6)
    joined: NDArray[np.uint32]  # (c, 6) distinct rows at the last join
    place: NDArray[np.int16]  # (c, 6) place in the pool or -1
    ticketed: NDArray[np.uint8]  # (c, 6)
    residual_sum: NDArray[np.float32]  # (c,)
    residual_count: NDArray[np.uint32]  # (c,)
    sequence: NDArray[np.float64]  # (c,) Shiryaev-Roberts statistic
    scalars: NDArray[np.int64]  # used, newest, oldest, evicted, exact duplicates


class Index(NamedTuple):
    """The last rows of all accounts."""

    simhash: NDArray[np.uint64]  # (w,)
    labels: NDArray[np.uint8]  # (w,)
    owners: NDArray[np.uint8]  # (w,) one byte of the sender's hash, 1 to 255; 0 for anonymous rows
    hashes: NDArray[np.uint64]  # (w,)
    cluster: NDArray[np.int64]  # (w,) cluster uid or -1
    uid: NDArray[np.int64]  # (1024,)
    evidence: NDArray[np.float64]  # (1024,)
    joined: NDArray[np.int64]  # (1024,)
    place: NDArray[np.int16]  # (1024,)
    ticketed: NDArray[np.uint8]  # (1024,)
    scalars: NDArray[np.int64]  # rows so far, next uid


class Pool(NamedTuple):
    """Members of clusters with growing evidence. e places."""

    owner: NDArray[np.int64]  # (e,) -1 free; client slot * 8 + cluster; or -2 - index cluster slot
    strength: NDArray[np.float64]  # (e,) statistic over ticket threshold at the last join
    joined: NDArray[np.int64]  # (e,) clock at the last join
    size: NDArray[np.int64]  # (e,) members so far
    check: NDArray[np.int64]  # (e,) size at which the intent test is due
    told: NDArray[np.int64]  # (e,) size at the last signal
    paged: NDArray[np.uint8]  # (e,)
    origin: NDArray[np.float64]  # (e, d) mean of the first four members
    rows: NDArray[np.float64]  # (e, 128, d)
    labels: NDArray[np.int32]  # (e, 128)
    offsets: NDArray[np.int64]  # (e, 128)
    places: NDArray[np.int32]  # (e, 128) row of the record
    clients: NDArray[np.uint64]  # (e, 128)
    first: NDArray[np.int64]  # (e, 2) coordinates of the first member
    clock: NDArray[np.int64]  # (1,) rows walked so far


class Memory:
    """The state of one partition (`contract.PartitionState`)."""

    def __init__(self, width: int, clients: int, index_rows: int, pool: int = POOL_PLACES) -> None:
        if clients < 2 or index_rows < 1 or pool < 1:
            raise ValueError(
                f"a state needs room: clients {clients} >= 2, index rows {index_rows} >= 1, pool {pool} >= 1"
            )
        size = 1 << int(2 * clients - 1).bit_length()
        self.clients = Clients(
            table=np.full(size, -1, dtype=np.int32),
            keys=np.zeros(clients, dtype=np.uint64),
            newer=np.full(clients, -1, dtype=np.int32),
            older=np.full(clients, -1, dtype=np.int32),
            codes=np.zeros((clients, CODE_DIMS, WINDOW_ROWS), dtype=np.int8),
            sketches=np.zeros((clients, WINDOW_ROWS), dtype=np.uint32),
            hashes=np.zeros((clients, WINDOW_ROWS), dtype=np.uint8),
            labels=np.zeros((clients, WINDOW_ROWS), dtype=np.uint8),
            cluster=np.full((clients, WINDOW_ROWS), NO_CLUSTER, dtype=np.uint8),
            distinct=np.zeros(clients, dtype=np.uint32),
            evidence_a=np.zeros((clients, CLUSTERS), dtype=np.float32),
            evidence_b=np.zeros((clients, CLUSTERS), dtype=np.float32),
            joined=np.zeros((clients, CLUSTERS), dtype=np.uint32),
            place=np.full((clients, CLUSTERS), -1, dtype=np.int16),
            ticketed=np.zeros((clients, CLUSTERS), dtype=np.uint8),
            residual_sum=np.zeros(clients, dtype=np.float32),
            residual_count=np.zeros(clients, dtype=np.uint32),
            sequence=np.zeros(clients, dtype=np.float64),
            scalars=np.array([0, -1, -1, 0, 0], dtype=np.int64),
        )
        self.index = Index(
            simhash=np.zeros(index_rows, dtype=np.uint64),
            labels=np.zeros(index_rows, dtype=np.uint8),
            owners=np.zeros(index_rows, dtype=np.uint8),
            hashes=np.zeros(index_rows, dtype=np.uint64),
            cluster=np.full(index_rows, -1, dtype=np.int64),
            uid=np.full(INDEX_CLUSTERS, -1, dtype=np.int64),
            evidence=np.zeros(INDEX_CLUSTERS, dtype=np.float64),
            joined=np.zeros(INDEX_CLUSTERS, dtype=np.int64),
            place=np.full(INDEX_CLUSTERS, -1, dtype=np.int16),
            ticketed=np.zeros(INDEX_CLUSTERS, dtype=np.uint8),
            scalars=np.zeros(2, dtype=np.int64),
        )
        self.pool = Pool(
            owner=np.full(pool, -1, dtype=np.int64),
            strength=np.zeros(pool, dtype=np.float64),
            joined=np.zeros(pool, dtype=np.int64),
            size=np.zeros(pool, dtype=np.int64),
            check=np.zeros(pool, dtype=np.int64),
            told=np.zeros(pool, dtype=np.int64),
            paged=np.zeros(pool, dtype=np.uint8),
            origin=np.zeros((pool, width), dtype=np.float64),
            rows=np.zeros((pool, MEMBERS, width), dtype=np.float64),
            labels=np.zeros((pool, MEMBERS), dtype=np.int32),
            offsets=np.zeros((pool, MEMBERS), dtype=np.int64),
            places=np.zeros((pool, MEMBERS), dtype=np.int32),
            clients=np.zeros((pool, MEMBERS), dtype=np.uint64),
            first=np.zeros((pool, 2), dtype=np.int64),
            clock=np.zeros(1, dtype=np.int64),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Named views of the whole state."""
        parts = (("clients", self.clients), ("index", self.index), ("pool", self.pool))
        return {f"{name}.{field}": array for name, part in parts for field, array in part._asdict().items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Overwrite the state; ValueError names what differs."""
        mine = self.arrays()
        if set(mine) != set(arrays):
            raise ValueError(f"the stored state has other arrays: {', '.join(sorted(set(mine) ^ set(arrays)))}")
        for name, array in mine.items():
            given = arrays[name]
            if given.shape != array.shape or given.dtype != array.dtype:
                raise ValueError(f"{name}: stored {given.dtype}{given.shape}, expected {array.dtype}{array.shape}")
        for name, array in mine.items():
            array[...] = arrays[name]

    def digest(self) -> str:
        """Hex digest of the state's bytes."""
        total = hashlib.blake2b(digest_size=16)
        for name, array in sorted(self.arrays().items()):
            total.update(name.encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()

    def bytes_a_client(self) -> float:
        """Bytes of state a tracked client, table included."""
        return sum(array.nbytes for array in self.clients) / len(self.clients.keys)
