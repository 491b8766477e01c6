"""What a partition remembers: client histories, the account-oblivious index, members of suspicious clusters.

Everything is a flat array of a fixed size, a function of the log and the bundle alone. What belongs together lies
together, as a record: a tracked client costs 1 KiB. Members of clusters (raw rows) are kept only where evidence grows,
in a pool of a fixed number of places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.kernels.recency import EVICTED
from detectors.kernels.rows import CODE_DIMS
from detectors.queries.past import Past

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

#: One client's history; its rows stand in rings of `WINDOW_ROWS`.
SLOT = np.dtype(
    [
        ("sequence", "f8"),  # Shiryaev-Roberts statistic
        ("distinct", "u4"),  # rows so far, exact duplicates left out
        ("residual_count", "u4"),
        ("residual_sum", "f4"),
        ("joined", "u4", (CLUSTERS,)),  # distinct rows at the last join
        ("evidence_a", "f4", (CLUSTERS,)),
        ("evidence_b", "f4", (CLUSTERS,)),
        ("sketches", "u4", (WINDOW_ROWS,)),
        ("codes", "i1", (CODE_DIMS, WINDOW_ROWS)),
        ("hashes", "u1", (WINDOW_ROWS,)),  # one byte of the row's hash
        ("labels", "u1", (WINDOW_ROWS,)),
        ("cluster", "u1", (WINDOW_ROWS,)),
        ("place", "i2", (CLUSTERS,)),  # in the pool, or -1
        ("ticketed", "u1", (CLUSTERS,)),
        ("odd", "u1"),  # rows odder than their threshold so far
        ("spare", "u1", (1,)),
    ],
    align=True,
)

#: One live cluster of the index.
INDEX_CLUSTER = np.dtype(
    [
        ("uid", "i8"),  # -1 free
        ("joined", "i8"),
        ("evidence", "f8"),
        ("shared", "f8"),  # of it what rows brought whose nearest one was another account's
        ("place", "i2"),
        ("ticketed", "u1"),
        ("spare", "u1", (5,)),
    ],
    align=True,
)

#: One place of the pool.
HEAD = np.dtype(
    [
        ("owner", "i8"),  # -1 free; client slot * 8 + cluster; or -2 - index cluster
        ("strength", "f8"),  # at the last join, statistic over ticket threshold; of the index over `INDEX_EXAMINED`
        ("joined", "i8"),  # clock at the last join
        ("size", "i8"),  # members so far
        ("check", "i8"),  # size at which the intent test is due
        ("told", "i8"),  # size at the last signal
        ("paged", "i8"),
        ("offset", "i8"),  # coordinates of the first member
        ("row", "i8"),
    ],
    align=True,
)

#: One member of a cluster.
MEMBER = np.dtype(
    [
        ("client", "u8"),
        ("offset", "i8"),
        ("own", "f8"),  # score of the predicted class, NaN where the event has none
        ("rival", "f8"),  # the largest other one
        ("row", "i4"),
        ("label", "i4"),
    ],
    align=True,
)

#: Place of exact duplicates in `Clients.scalars`, after those of `recency`.
DUPLICATES = EVICTED + 1
#: Place of anonymous rows odder than their threshold.
ODD_ANONYMOUS = DUPLICATES + 1
#: Places of `Index.scalars`.
INDEX_ROWS_SEEN, NEXT_UID = range(2)


class Clients(NamedTuple):
    """Histories, one slot a client. c slots."""

    table: NDArray[np.int32]  # (2 ** b,) open addressing: slot or -1
    keys: NDArray[np.uint64]  # (c,)
    newer: NDArray[np.int32]  # (c,) towards the most recently used
    older: NDArray[np.int32]  # (c,)
    slots: NDArray[Any]  # (c,) SLOT
    scalars: NDArray[np.int64]  # used, newest, oldest, evicted, exact duplicates, odd anonymous rows


class Index(NamedTuple):
    """The last rows of all accounts, in a ring of w."""

    simhash: NDArray[np.uint8]  # (8, w) byte by byte
    codes: NDArray[np.int8]  # (w, 12)
    sketches: NDArray[np.uint32]  # (w,)
    labels: NDArray[np.uint8]  # (w,)
    owners: NDArray[np.uint8]  # (w,) one byte of the sender's hash, 1 to 255; 0 for anonymous rows
    hashes: NDArray[np.uint64]  # (w,)
    member_of: NDArray[np.int64]  # (w,) cluster uid or -1
    clusters: NDArray[Any]  # (1024,) INDEX_CLUSTER
    scalars: NDArray[np.int64]  # rows so far, next uid


class Pool(NamedTuple):
    """Members of clusters with growing evidence. e places."""

    heads: NDArray[Any]  # (e,) HEAD
    members: NDArray[Any]  # (e, 128) MEMBER, a ring
    rows: NDArray[np.float64]  # (e, 128, d), the same ring
    origin: NDArray[np.float64]  # (e, d) mean of the first four members
    clock: NDArray[np.int64]  # (1,) rows walked so far


class Memory:
    """The state of one partition (`contract.PartitionState`).

    Parameters
    ----------
    width : int
        Features, d.
    clients, index_rows, pool : int
        Room for so many clients, rows of the index, and clusters whose members are kept.
    past : Past or None
        What detectors remember of clients, with as much room.
    """

    def __init__(
        self, width: int, clients: int, index_rows: int, pool: int = POOL_PLACES, past: Past | None = None
    ) -> None:
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
            slots=np.zeros(clients, dtype=SLOT),
            scalars=np.array([0, -1, -1, 0, 0, 0], dtype=np.int64),
        )
        self.clients.slots["cluster"] = NO_CLUSTER
        self.clients.slots["place"] = -1
        self.index = Index(
            simhash=np.zeros((8, index_rows), dtype=np.uint8),
            codes=np.zeros((index_rows, CODE_DIMS), dtype=np.int8),
            sketches=np.zeros(index_rows, dtype=np.uint32),
            labels=np.zeros(index_rows, dtype=np.uint8),
            owners=np.zeros(index_rows, dtype=np.uint8),
            hashes=np.zeros(index_rows, dtype=np.uint64),
            member_of=np.full(index_rows, -1, dtype=np.int64),
            clusters=np.zeros(INDEX_CLUSTERS, dtype=INDEX_CLUSTER),
            scalars=np.zeros(2, dtype=np.int64),
        )
        self.index.clusters["uid"] = -1
        self.index.clusters["place"] = -1
        self.pool = Pool(
            heads=np.zeros(pool, dtype=HEAD),
            members=np.zeros((pool, MEMBERS), dtype=MEMBER),
            rows=np.zeros((pool, MEMBERS, width), dtype=np.float64),
            origin=np.zeros((pool, width), dtype=np.float64),
            clock=np.zeros(1, dtype=np.int64),
        )
        self.pool.heads["owner"] = -1
        self.past = past

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Named views of the whole state; records as rows of bytes."""
        parts: tuple[tuple[str, Mapping[str, NDArray[Any]]], ...] = (
            ("clients", self.clients._asdict()),
            ("index", self.index._asdict()),
            ("pool", self.pool._asdict()),
            ("past", {} if self.past is None else self.past.arrays()),
        )
        return {f"{part}.{name}": _plain(array) for part, fields in parts for name, array in fields.items()}

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
        """Bytes of state a tracked client, table included; what opt-in detectors remember is beside it."""
        return sum(array.nbytes for array in self.clients) / len(self.clients.keys)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """An array of plain numbers over the same memory."""
    if array.dtype.names is None:
        return array
    return array.view(np.uint8).reshape(*array.shape, array.dtype.itemsize)
