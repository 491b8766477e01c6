"""The sequential half of scoring: one compiled walk over the rows of a batch, in order.

For each row: the client's history (exact duplicates, nearest earlier row, cluster evidence), the client's sequential
test over rows that are fresh evidence, and the account-oblivious index. The walk stops after a row at which something
happened that a person or the intent test must look at, so that what they see never depends on where a batch was cut.

Cluster evidence: each row is compared with the client's last rows in two geometries (projected L2, L0 by sketches); its
nearest row's distance, normalised by the density of the reference there, becomes a conformal p-value; rows with
p <= `JOIN_P` join the cluster of their nearest row, whose evidence grows by ln(JOIN_P / p) and decays with the rows in
between. The index does the same over the last rows of all accounts. As it has thousands of rows, those whose simhash
differs least are looked for first, and only they are measured in both geometries. A single account that hides its
queries among hundreds of others is seen there too; but what its own history keeps and examines is that history's
business.

A single row that is odder than its threshold is told of too: of each client, and of all anonymous rows together, the
1st, 2nd, 4th, 8th, ..., so that who sends many doesn't flood anybody.

No logarithm is taken here, as its last bit differs between machines: squared ratios and products of p-values order as
their logarithms do, and gains stand in tables.

Blind to: cluster evidence, to queries that stay farther apart than benign rows do, to a client's near rows with more
than its last 48 different ones in between, and to whether what repeats itself means harm (the intent test is asked);
the index, to rows that many others of the partition have pushed out, to near rows whose simhash differs more than that
of many others, and to what comes by another partition. Anonymous rows have no history; the index sees them.

References
----------
That queries near earlier ones betray attacks by questions: Chen, Carlini & Wagner, "Stateful Detection of Black-Box
Adversarial Attacks", 2019; without accounts: Li, Shan, Wenger, Zhang, Zheng & Zhao, "Blacklight: Scalable Defense for
Neural Networks against Query-Based Black-Box Attacks", USENIX Security 2022. Simhashes: Charikar, "Similarity
Estimation Techniques from Rounding Algorithms", STOC 2002. P-values within bins are Mondrian conformal ones: Vovk,
Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005. Evidence that grows by joins and decays, and its two
geometries, are Vedette's own method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from detectors.kernels.prefetch import prefetch
from detectors.kernels.recency import TAKEN_OVER, home, use
from detectors.kernels.rows import CODE_DIMS, differing_bits, popcount32
from detectors.kernels.sieves import MASK_VALUES, at_most, highest_bit
from detectors.queries.memory import (
    CLUSTERS,
    DUPLICATES,
    INDEX_CLUSTERS,
    INDEX_ROWS_SEEN,
    MEMBERS,
    NEXT_UID,
    NO_CLUSTER,
    ODD_ANONYMOUS,
    WINDOW_ROWS,
    Memory,
)
from detectors.stored import stored, within

#: A row joins the cluster of its nearest row when its p-value is at most this.
JOIN_P = 0.1
#: Evidence lost for every row of the client between two joins.
DECAY = 0.05
#: Most evidence that one row can bring: the gap it bridges is GAIN_CAP / DECAY rows.
GAIN_CAP = 4.0
#: The same loss for the index, where rows of all accounts lie in between: an attack may have one of a thousand.
INDEX_DECAY = 0.002
#: The index keeps members that a client's own history keeps too where other accounts' rows brought this share.
SHARED_SHARE = 0.5
#: Most evidence of a cluster of the index: what many ask about for weeks on end would grow without end.
INDEX_CEILING = 50.0 * GAIN_CAP
#: From this evidence on the intent test is asked about a cluster of the index; its ticket threshold is no lower.
INDEX_EXAMINED = 3.0 * GAIN_CAP
#: Members are kept from this share of the ticket threshold on; of the index from this share of `INDEX_EXAMINED`.
KEEP_FROM = 0.34
#: Clip of the client residual, in standard deviations.
RESIDUAL_CLIP = 2.0
#: Fewest rows that the prior of the client residual weighs.
LEAST_TAU = 1.0
#: The sequential statistic stays below this, so that it can't overflow.
SEQUENCE_CEILING = 1e280
#: Size of a cluster at the first intent test.
FIRST_CHECK = 16
#: Rows of the partition after which a silent cluster's claim to its place in the pool has halved.
PLACE_AGE_ROWS = 2000.0
#: Strength beyond this doesn't strengthen the claim: what waits for its first intent test goes first.
PLACE_STRENGTH_CAP = 2.0
#: Bits of a simhash.
SIM_BITS = 64
#: Bins of the density: p-values of distances are taken within its quintiles (Mondrian).
BINS = 5
#: Places of a table by difference of sketch bits (-32 to 32), and by differing simhash bits (0 to 64).
SKETCH_PLACES, SIM_PLACES, SKETCH_SHIFT = 65, SIM_BITS + 1, 32
#: Rows of the index are measured when their simhash differs in so many bits more than the nearest one's, at most; the
#: newest so many of them, up to the end of a block.
SLACK_BITS, MOST_MEASURED = 2, 32
#: Rows of the index that are passed over together where none of them is near.
BLOCK_ROWS = MASK_VALUES
#: Marks "none" where bits are counted.
NO_BITS = 99
#: Added to a density, in standard deviations, so that copies of reference rows stay finite.
DENSITY_FLOOR = 1e-6
#: Added to a squared distance of codes, in squared steps: what rounding hides.
CODE_FLOOR = 0.25

#: Kinds of rows.
PLAIN, DUPLICATE, JOINED = 0, 1, 2
#: Kinds of events.
CLUSTER_TICKET, CLUSTER_CHECK, SEQUENCE_CROSSED, INDEX_TICKET, INDEX_CHECK, ODD_ROW = 1, 2, 3, 4, 5, 6
#: Thresholds: ticket A, ticket B, ticket index, sequential test, ticket of one row.
THRESHOLDS = 5
#: Odd rows of a client that are counted.
MOST_ODD = 255
#: Most events of one row.
EVENTS = 4
#: What stands in a row of events: kind, place in the pool or -1, owner of the place (`memory.HEAD`).
EVENT_FIELDS = 3

#: So many rows ahead, a client's place in the table and then its history are fetched into the cache.
FIND_AHEAD, FETCH_AHEAD = 16, 8

_FAR = np.int32(2**30)
_SAME_ANSWER = np.uint8(128)


#: What the walk reads of a row.
ROW = np.dtype(
    [
        ("client", "u8"),
        ("simhash", "u8"),
        ("hash", "u8"),
        ("offset", "i8"),
        ("own", "f8"),  # score of the predicted class, NaN where the event has none
        ("rival", "f8"),  # the largest other one
        ("density", "f8"),  # distance to the 5th nearest reference row of the predicted class
        ("oddness", "f8"),  # fused score of the single input
        ("label", "i4"),
        ("row", "i4"),
        ("sketch", "u4"),
        ("sketch_rank", "i4"),  # bits to the 5th nearest reference sketch
        ("bin", "i4"),  # quintile of the density
        ("rank", "i4"),  # of the fused score among calibration rows
        ("codes", "i1", (CODE_DIMS,)),
        ("spare", "u1", (4,)),
    ],
    align=True,
)

#: What the walk writes for a row.
TRACE = np.dtype(
    [
        ("near", "f8"),  # squared ratio of nearest L2 to density, NaN where there is no history
        ("opposite", "f8"),  # squared ratio, NaN where there is none
        ("p_a", "f8"),
        ("p_b", "f8"),
        ("evidence_a", "f8"),  # of the cluster that the row joined, else 0
        ("evidence_b", "f8"),
        ("residual", "f8"),  # NaN where the row is no fresh evidence
        ("sequence", "f8"),  # statistic of the client after the row
        ("index_near", "f8"),  # as near, of the rows of all accounts; NaN where there is none
        ("index_p", "f8"),
        ("index_evidence", "f8"),
        ("index_shared", "f8"),  # of it what rows brought whose nearest one was another account's
        ("near_bits", "i4"),  # sketch bits to the nearest row less those of the reference
        ("index_bits", "i4"),  # the same of the rows of all accounts
        ("index_opposite", "i4"),  # simhash bits to the nearest differently answered one
        ("kind", "i4"),
    ],
    align=True,
)


class Columns(NamedTuple):
    """What the walk reads of a batch. n rows."""

    inputs: NDArray[np.float64]  # (n, d)
    rows: NDArray[Any]  # (n,) ROW


class Tables(NamedTuple):
    """Calibration of the walk. Ascending arrays hold benign values; small ones are suspicious."""

    grain: NDArray[np.float64]  # (1,) standard deviations a code step
    near_l2: NDArray[np.float64]  # (5, m) squared ratio of the nearest distance to the density
    near_l0: NDArray[np.float64]  # (5, 65) p-value by sketch difference + 32
    combined: NDArray[np.float64]  # (m',) the smaller p
    gain_a: NDArray[np.float64]  # (m' + 2,) evidence by the number of smaller or equal values, plus one
    opposite: NDArray[np.float64]  # (5, m'') squared ratio of the nearest differently answered row to the density
    both: NDArray[np.float64]  # (m',) p_A p_O
    gain_b: NDArray[np.float64]  # (m' + 2,)
    index_l2: NDArray[np.float64]  # (5, m) as near_l2, of the rows of all accounts
    index_l0: NDArray[np.float64]  # (5, 65) as near_l0
    index_combined: NDArray[np.float64]  # (m',) the smaller p
    index_opposite: NDArray[np.float64]  # (5, 65) p-value by differing simhash bits
    index_both: NDArray[np.float64]  # (m',) product
    index_least: NDArray[np.float64]  # (m',) the smaller of combined and both
    index_gain: NDArray[np.float64]  # (m' + 2,)
    normal: NDArray[np.float64]  # (c + 1,) standard normal score by fused rank
    tau: NDArray[np.float64]  # (1,) weight of the prior of the client residual, in rows
    residual: NDArray[np.float64]  # (c',) ascending residual scores of fresh rows
    evalue: NDArray[np.float64]  # (c' + 1,) e-value by rank
    thresholds: NDArray[np.float64]  # ticket A, ticket B, ticket index, sequential test, ticket of one row

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], fused_values: int) -> Tables:
        """Stored tables, checked: the walk looks into them without asking whether a place exists."""

        def table(name: str, *shape: int | None) -> NDArray[Any]:
            return stored(arrays, name, np.float64, *shape)

        combined, both, index_combined, index_both, index_least, residual = (
            table(name, None)
            for name in ("combined", "both", "index_combined", "index_both", "index_least", "residual")
        )
        thresholds = stored(arrays, "thresholds", np.float64, THRESHOLDS, finite=False)
        return cls(
            grain=within("grain", table("grain", 1), np.finfo(np.float64).tiny, np.inf),
            near_l2=table("near_l2", BINS, None),
            near_l0=table("near_l0", BINS, SKETCH_PLACES),
            combined=combined,
            gain_a=table("gain_a", len(combined) + 2),
            opposite=table("opposite", BINS, None),
            both=both,
            gain_b=table("gain_b", len(both) + 2),
            index_l2=table("index_l2", BINS, None),
            index_l0=table("index_l0", BINS, SKETCH_PLACES),
            index_combined=index_combined,
            index_opposite=table("index_opposite", BINS, SIM_PLACES),
            index_both=index_both,
            index_least=index_least,
            index_gain=table("index_gain", len(index_least) + 2),
            normal=table("normal", fused_values + 1),
            tau=within("tau", table("tau", 1), LEAST_TAU, np.inf),
            residual=residual,
            evalue=table("evalue", len(residual) + 1),
            thresholds=within("thresholds", thresholds, np.finfo(np.float64).tiny, np.inf),
        )

    def packed(self) -> Packed:
        """The same numbers as one array."""
        parts = [np.ascontiguousarray(table, dtype=np.float64) for table in self]
        ends = np.cumsum([part.size for part in parts])
        return Packed(
            values=np.concatenate([part.ravel() for part in parts]),
            first=np.concatenate([[0], ends[:-1]]).astype(np.int64),
            size=np.array([part.shape[-1] for part in parts], dtype=np.int64),
        )


class Packed(NamedTuple):
    """All tables in one array: one by one, row by row."""

    values: NDArray[np.float64]
    first: NDArray[np.int64]  # (20,) where each table starts
    size: NDArray[np.int64]  # (20,) length of its rows


(
    _GRAIN, _NEAR_L2, _NEAR_L0, _COMBINED, _GAIN_A, _OPPOSITE, _BOTH, _GAIN_B, _INDEX_L2, _INDEX_L0, _INDEX_COMBINED,
    _INDEX_OPPOSITE, _INDEX_BOTH, _INDEX_LEAST, _INDEX_GAIN, _NORMAL, _TAU, _RESIDUAL, _EVALUE, _THRESHOLDS,
) = range(len(Tables._fields))  # fmt: skip

#: A kernel that only kernels call.
_inner: Callable[..., Any] = njit(
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)


@_inner
def _count_at_most(values: Any, first: int, size: int, x: float) -> int:
    """How many of values[first : first + size], ascending, are <= x, by a search that never waits for a branch."""
    base = first
    while size > 1:
        half = size >> 1
        base = base + half if values[base + half - 1] <= x else base
        size -= half
    if size == 1 and values[base] <= x:
        base += 1
    return base - first


@_inner
def _count_below(values: Any, first: int, size: int, x: float) -> int:
    """How many of values[first : first + size], ascending, are < x."""
    base = first
    while size > 1:
        half = size >> 1
        base = base + half if values[base + half - 1] < x else base
        size -= half
    if size == 1 and values[base] < x:
        base += 1
    return base - first


@_inner
def _start_over(slots: Any, heads: Any, slot: int) -> None:
    """An empty history in place of another client's."""
    s = slots[slot]
    for c in range(CLUSTERS):
        if s.place[c] >= 0:
            heads[s.place[c]].owner = -1
        s.evidence_a[c] = 0.0
        s.evidence_b[c] = 0.0
        s.joined[c] = 0
        s.place[c] = -1
        s.ticketed[c] = 0
    for k in range(WINDOW_ROWS):
        s.cluster[k] = NO_CLUSTER
    s.distinct = 0
    s.odd = 0
    s.residual_sum = 0.0
    s.residual_count = 0
    s.sequence = 0.0


@_inner
def _client(table: Any, keys: Any, newer: Any, older: Any, slots: Any, scalars: Any, heads: Any, key: Any) -> Any:
    """The client's slot, made the most recently used; a client that takes over another's begins with nothing."""
    slot, happened = use(table, keys, newer, older, scalars, key)
    if happened == TAKEN_OVER:
        _start_over(slots, heads, slot)
    return slot


@_inner
def _take_place(slots: Any, clusters: Any, heads: Any, origin: Any, owner: int, strength: float, clock: int) -> int:
    """A place in the pool: a free one, else that of the weakest claim if that is weaker; -1 if none.

    A claim weakens with silence and with every intent test that has been made, so that neither clusters of the past nor
    clients that repeat themselves for ever keep newcomers from being examined.
    """
    worst, least = -1, min(strength, PLACE_STRENGTH_CAP)
    for e in range(heads.shape[0]):
        head = heads[e]
        if head.owner == -1:
            worst = e
            break
        claim = min(head.strength, PLACE_STRENGTH_CAP) * (FIRST_CHECK / np.float64(head.check))
        claim *= PLACE_AGE_ROWS / (PLACE_AGE_ROWS + np.float64(clock - head.joined))
        if claim < least:
            worst, least = e, claim
    if worst < 0:
        return -1
    head = heads[worst]
    before = head.owner
    if before >= 0:
        slots[before >> 3].place[before & 7] = -1
    elif before <= -2:
        clusters[-2 - before].place = -1
    head.owner = owner
    head.size = 0
    head.check = FIRST_CHECK
    head.told = 0
    head.paged = 0
    for f in range(origin.shape[1]):
        origin[worst, f] = 0.0
    return worst


@_inner
def _remember(pool: Any, e: int, inputs: Any, rows: Any, i: int, strength: float) -> None:
    """Add row i to the members at a place of the pool."""
    head, row = pool.heads[e], rows[i]
    n = head.size
    at = n % MEMBERS
    if n == 0:
        head.offset = row.offset
        head.row = row.row
    for f in range(inputs.shape[1]):
        x = inputs[i, f]
        pool.rows[e, at, f] = x
        if n < 4:
            pool.origin[e, f] += (x - pool.origin[e, f]) / (n + 1.0)
    member = pool.members[e, at]
    member.client = row.client
    member.offset = row.offset
    member.own = row.own
    member.rival = row.rival
    member.row = row.row
    member.label = row.label
    head.strength = strength
    head.joined = pool.clock[0]
    head.size = n + 1


@_inner
def _tell(events: Any, found: int, kind: int, place: int, owner: int) -> int:
    events[found, 0] = kind
    events[found, 1] = place
    events[found, 2] = owner
    return found + 1


@_inner
def _new_cluster(slots: Any, heads: Any, slot: int, count: int, parent: int) -> int:
    """A cluster for a row and its parent: the one with the least evidence left is given up."""
    s = slots[slot]
    cluster, least = 0, np.inf
    for c in range(CLUSTERS):
        left = np.float64(max(s.evidence_a[c], s.evidence_b[c])) - DECAY * np.float64(count - np.int64(s.joined[c]))
        if left < least:
            cluster, least = c, left
    for k in range(WINDOW_ROWS):
        if s.cluster[k] == cluster:
            s.cluster[k] = NO_CLUSTER
    if s.place[cluster] >= 0:
        heads[s.place[cluster]].owner = -1
        s.place[cluster] = -1
    s.ticketed[cluster] = 0
    s.evidence_a[cluster] = 0.0
    s.evidence_b[cluster] = 0.0
    s.cluster[parent] = cluster
    return cluster


@_inner
def _renew(s: Any, k: int, count: int) -> None:
    """Make the row at place k of a client's window its newest: an exact copy of it has just come.

    A ring of rows forgets the oldest. A row that keeps coming back is not old, however long ago it was first seen:
    somebody works on it.
    """
    newest = (count - 1) % WINDOW_ROWS
    if k == newest:
        return
    sketch, small, label, cluster = s.sketches[k], s.hashes[k], s.labels[k], s.cluster[k]
    steps = (newest - k) % WINDOW_ROWS
    for j in range(CODE_DIMS):
        code = s.codes[j, k]
        at = k
        for _ in range(steps):
            after = at + 1 if at + 1 < WINDOW_ROWS else 0
            s.codes[j, at] = s.codes[j, after]
            at = after
        s.codes[j, newest] = code
    at = k
    for _ in range(steps):
        after = at + 1 if at + 1 < WINDOW_ROWS else 0
        s.sketches[at] = s.sketches[after]
        s.hashes[at] = s.hashes[after]
        s.labels[at] = s.labels[after]
        s.cluster[at] = s.cluster[after]
        at = after
    s.sketches[newest] = sketch
    s.hashes[newest] = small
    s.labels[newest] = label
    s.cluster[newest] = cluster


@_inner
def _fetch_ahead(i: int, rows: Any, clients: Any) -> None:
    """Ask for the memory that rows soon after row i will need; a wrong guess costs only time."""
    mask = clients.table.shape[0] - 1
    j = i + FIND_AHEAD
    if j < rows.shape[0]:
        prefetch(clients.table, home(rows[j].client, mask))
    j = i + FETCH_AHEAD
    if j < rows.shape[0]:
        slot = np.int64(clients.table[home(rows[j].client, mask)])
        if slot >= 0:
            prefetch(clients.keys, slot)
            prefetch(clients.older, slot)
            prefetch(clients.newer, slot)
            prefetch(clients.slots, slot)


@_inner
def _walk_client(
    i: int, inputs: Any, rows: Any, tables: Any, clients: Any, clusters: Any, pool: Any, trace: Any, events: Any,
    squares: Any, bits: Any,
) -> Any:  # fmt: skip
    """The history's part of one row; returns the number of events, and whether the members of the row's cluster are
    kept."""
    found, kept = 0, False
    values, first, size = tables.values, tables.first, tables.size
    row, out, slots = rows[i], trace[i], clients.slots
    slot = _client(
        clients.table, clients.keys, clients.newer, clients.older, slots, clients.scalars, pool.heads, row.client
    )
    s = slots[slot]
    count = np.int64(s.distinct)
    m: Any = min(count, WINDOW_ROWS)
    label = np.uint8(row.label & 255)
    for k in range(WINDOW_ROWS):
        squares[k] = 0
    for j in range(CODE_DIMS):
        x = np.int32(row.codes[j])
        for k in range(WINDOW_ROWS):
            delta = x - np.int32(s.codes[j, k])
            squares[k] += delta * delta
    sketch = row.sketch
    small = np.uint8(row.hash & np.uint64(255))
    for k in range(WINDOW_ROWS):
        bits[k] = popcount32(sketch ^ s.sketches[k])
    near, near_at = _FAR, -1
    few, few_at = np.int32(NO_BITS), -1
    other = _FAR
    for k in range(m):
        if squares[k] < near:
            near, near_at = squares[k], k
        if bits[k] < few:
            few, few_at = bits[k], k
        if s.labels[k] != label and squares[k] < other:
            other = squares[k]
    if near == 0 and few == 0:
        for k in range(m):
            if squares[k] == 0 and bits[k] == 0 and s.hashes[k] == small:
                out.kind = DUPLICATE
                out.sequence = s.sequence
                clients.scalars[DUPLICATES] += 1
                _renew(s, k, count)
                return 0, False
    cluster: Any = NO_CLUSTER
    if near_at >= 0:
        q = np.int64(row.bin)
        unit = values[first[_GRAIN]] / (row.density + DENSITY_FLOOR)
        unit *= unit
        r = (np.float64(near) + CODE_FLOOR) * unit
        out.near = r
        n = size[_NEAR_L2]
        p_l2 = (1.0 + _count_at_most(values, first[_NEAR_L2] + q * n, n, r)) / (n + 1.0)
        gap = few - row.sketch_rank
        out.near_bits = gap
        p_l0 = values[first[_NEAR_L0] + q * size[_NEAR_L0] + gap + SKETCH_SHIFT]
        parent = near_at if p_l2 <= p_l0 else few_at
        n = size[_COMBINED]
        rank_a = 1 + _count_at_most(values, first[_COMBINED], n, min(p_l2, p_l0))
        p_a = rank_a / (n + 1.0)
        p_o = 1.0
        if other < _FAR:
            o = (np.float64(other) + CODE_FLOOR) * unit
            out.opposite = o
            n = size[_OPPOSITE]
            p_o = (1.0 + _count_at_most(values, first[_OPPOSITE] + q * n, n, o)) / (n + 1.0)
        n = size[_BOTH]
        rank_b = 1 + _count_at_most(values, first[_BOTH], n, p_a * p_o)
        p_b = rank_b / (n + 1.0)
        out.p_a = p_a
        out.p_b = p_b
        if p_a <= JOIN_P or p_b <= JOIN_P:
            out.kind = JOINED
            cluster = np.int64(s.cluster[parent])
            if cluster == NO_CLUSTER:
                cluster = _new_cluster(slots, pool.heads, slot, count, parent)
            loss = DECAY * np.float64(count - np.int64(s.joined[cluster]))
            a = max(0.0, np.float64(s.evidence_a[cluster]) - loss) + values[first[_GAIN_A] + rank_a]
            b = max(0.0, np.float64(s.evidence_b[cluster]) - loss) + values[first[_GAIN_B] + rank_b]
            s.evidence_a[cluster] = a
            s.evidence_b[cluster] = b
            s.joined[cluster] = count + 1
            out.evidence_a = a
            out.evidence_b = b
            strength = max(a / values[first[_THRESHOLDS]], b / values[first[_THRESHOLDS] + 1])
            owner = slot * 8 + cluster
            e = np.int64(s.place[cluster])
            if e < 0 and strength >= KEEP_FROM:
                e = _take_place(slots, clusters, pool.heads, pool.origin, owner, strength, pool.clock[0])
                s.place[cluster] = e
            if e >= 0:
                _remember(pool, e, inputs, rows, i, strength)
                kept = True
            if strength > 1.0:
                if e >= 0 and pool.heads[e].size >= pool.heads[e].check:
                    found = _tell(events, found, CLUSTER_CHECK, e, owner)
                elif s.ticketed[cluster] == 0:
                    found = _tell(events, found, CLUSTER_TICKET, e, owner)
                s.ticketed[cluster] = 1
    at = count % WINDOW_ROWS
    for j in range(CODE_DIMS):
        s.codes[j, at] = row.codes[j]
    s.sketches[at] = sketch
    s.hashes[at] = small
    s.labels[at] = label
    s.cluster[at] = cluster
    s.distinct = count + 1
    if out.kind == PLAIN:
        z = values[first[_NORMAL] + np.int64(row.rank)]
        left = z - np.float64(s.residual_sum) / (np.float64(s.residual_count) + values[first[_TAU]])
        out.residual = left
        n = size[_RESIDUAL]
        above = n - _count_below(values, first[_RESIDUAL], n, left)
        sequence = min((1.0 + s.sequence) * values[first[_EVALUE] + above], SEQUENCE_CEILING)
        s.residual_sum = np.float32(s.residual_sum + np.float32(min(max(z, -RESIDUAL_CLIP), RESIDUAL_CLIP)))
        s.residual_count = s.residual_count + 1
        out.sequence = sequence
        if sequence > values[first[_THRESHOLDS] + 3]:
            found = _tell(events, found, SEQUENCE_CROSSED, -1, -1)
            sequence = 0.0
        s.sequence = sequence
    else:
        out.sequence = s.sequence
    if row.oddness > values[first[_THRESHOLDS] + 4] and s.odd < MOST_ODD:
        s.odd += 1
        if s.odd & (s.odd - 1) == 0:
            found = _tell(events, found, ODD_ROW, -1, -1)
    return found, kept


@_inner
def _owner_tag(client: Any) -> Any:
    """One byte of a client's hash, 1 to 255; 0 for anonymous rows."""
    if client == np.uint64(0):
        return np.uint8(0)
    return np.uint8(np.uint64(1) + (client * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) % np.uint64(255))


@_inner
def _new_index_cluster(index: Any, heads: Any, total: int) -> Any:
    """Uid of a new cluster of the index, in place of one whose evidence is gone."""
    uid = index.scalars[NEXT_UID]
    for _ in range(INDEX_CLUSTERS):
        c = index.clusters[uid % INDEX_CLUSTERS]
        if c.uid < 0 or c.evidence - INDEX_DECAY * np.float64(total - c.joined) < KEEP_FROM * INDEX_EXAMINED:
            break
        uid += 1
    index.scalars[NEXT_UID] = uid + 1
    c = index.clusters[uid % INDEX_CLUSTERS]
    if c.place >= 0:
        heads[c.place].owner = -1
        c.place = -1
    c.uid = uid
    c.evidence = 0.0
    c.shared = 0.0
    c.ticketed = 0
    return uid


@_inner
def _nearest_in_index(row: Any, index: Any, m: int, total: int, limit: Any, scratch: Any) -> Any:
    """Nearest row in both geometries, of the newest whose simhash differs in at most `limit` bits.

    `scratch` holds the differing bits of all m rows, and bytes beyond any limit up to the end of the last block.
    Returns the squared distance of codes of the nearest one and its place in the index, then its sketch's differing
    bits and its place.
    """
    near, near_at = _FAR, 0
    few, few_at = np.int32(NO_BITS), 0
    blocks = (m + BLOCK_ROWS - 1) // BLOCK_ROWS
    block, measured = (total - 1) % index.simhash.shape[1] // BLOCK_ROWS, 0
    for _ in range(blocks):
        hits = at_most(scratch, block * BLOCK_ROWS, limit)
        while hits != np.uint64(0):
            top = highest_bit(hits)
            hits ^= np.uint64(1) << np.uint64(top)
            k = block * BLOCK_ROWS + top
            square = np.int32(0)
            for j in range(CODE_DIMS):
                delta = np.int32(row.codes[j]) - np.int32(index.codes[k, j])
                square += delta * delta
            bits = np.int32(popcount32(row.sketch ^ index.sketches[k]))
            if square < near:
                near, near_at = square, k
            if bits < few:
                few, few_at = bits, k
            measured += 1
        if measured >= MOST_MEASURED:
            break
        block = block - 1 if block > 0 else blocks - 1
    return near, near_at, few, few_at


@_inner
def _walk_index(
    i: int, inputs: Any, rows: Any, tables: Any, slots: Any, index: Any, pool: Any, trace: Any, events: Any, found: int,
    scratch: Any, kept: bool,
) -> int:  # fmt: skip
    """The index's part of one row; returns the number of events so far. `kept`: whether the client's history keeps the
    members of the row's cluster: then the index begins to only where several accounts share it."""
    values, first, size = tables.values, tables.first, tables.size
    row, out = rows[i], trace[i]
    room = index.simhash.shape[1]
    total = index.scalars[INDEX_ROWS_SEEN]
    m: Any = min(total, room)
    mine, whole = row.simhash, row.hash
    label = np.uint8(row.label & 255)
    owner = _owner_tag(row.client)
    differing_bits(mine, index.simhash, m, scratch)
    least, across = np.uint8(255), np.uint8(255)
    for k in range(m):
        # Every step is cast back to a byte, so that the loop runs on vectors of bytes.
        bits = scratch[k]
        least = bits if bits < least else least  # noqa: FURB136  (min would widen)
        bits = np.uint8(bits | (_SAME_ANSWER if index.labels[k] == label else np.uint8(0)))
        across = bits if bits < across else across  # noqa: FURB136
    if least == 0:
        for k in range(m):
            if scratch[k] == 0 and index.hashes[k] == whole:
                return found
    uid: Any = np.int64(-1)
    if m > 0:
        for k in range(m, (m + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS):
            scratch[k] = np.uint8(NO_BITS)
        limit = np.uint8(least + np.uint8(SLACK_BITS))
        near, near_at, few, few_at = _nearest_in_index(row, index, m, total, limit, scratch)
        q = np.int64(row.bin)
        unit = values[first[_GRAIN]] / (row.density + DENSITY_FLOOR)
        r = (np.float64(near) + CODE_FLOOR) * (unit * unit)
        out.index_near = r
        n = size[_INDEX_L2]
        p_l2 = (1.0 + _count_at_most(values, first[_INDEX_L2] + q * n, n, r)) / (n + 1.0)
        gap = few - row.sketch_rank
        out.index_bits = gap
        p_l0 = values[first[_INDEX_L0] + q * size[_INDEX_L0] + gap + SKETCH_SHIFT]
        parent: Any = near_at if p_l2 <= p_l0 else few_at
        n = size[_INDEX_COMBINED]
        p_a = (1.0 + _count_at_most(values, first[_INDEX_COMBINED], n, min(p_l2, p_l0))) / (n + 1.0)
        p_o = 1.0
        if across < _SAME_ANSWER:
            out.index_opposite = across
            p_o = values[first[_INDEX_OPPOSITE] + q * size[_INDEX_OPPOSITE] + across]
        n = size[_INDEX_BOTH]
        p_b = (1.0 + _count_at_most(values, first[_INDEX_BOTH], n, p_a * p_o)) / (n + 1.0)
        n = size[_INDEX_LEAST]
        rank = 1 + _count_at_most(values, first[_INDEX_LEAST], n, min(p_a, p_b))
        p = rank / (n + 1.0)
        out.index_p = p
        if p <= JOIN_P:
            ticket = values[first[_THRESHOLDS] + 2]
            examined = INDEX_EXAMINED if ticket < np.inf else np.inf
            uid = index.member_of[parent]
            if uid < 0 or index.clusters[uid % INDEX_CLUSTERS].uid != uid:
                uid = _new_index_cluster(index, pool.heads, total)
                index.member_of[parent] = uid
            at = uid % INDEX_CLUSTERS
            c = index.clusters[at]
            gain = values[first[_INDEX_GAIN] + rank]
            loss = INDEX_DECAY * np.float64(total - c.joined)
            s = min(INDEX_CEILING, max(0.0, c.evidence - loss) + gain)
            shared = max(0.0, c.shared - loss)
            if owner == 0 or index.owners[parent] != owner:
                shared = min(INDEX_CEILING, shared + gain)
            c.evidence = s
            c.shared = shared
            c.joined = total + 1
            out.index_evidence = s
            out.index_shared = shared
            strength = s / examined
            e = np.int64(c.place)
            if e < 0 and strength >= KEEP_FROM and (not kept or shared >= SHARED_SHARE * s):
                e = _take_place(slots, index.clusters, pool.heads, pool.origin, -2 - at, strength, pool.clock[0])
                c.place = e
            if e >= 0:
                _remember(pool, e, inputs, rows, i, strength)
            # A page counts for the row's client, so a row without one waits for one that has, as long as that may come.
            turns = 2 if owner == 0 else 1
            if strength >= 1.0 and e >= 0 and pool.heads[e].size >= turns * pool.heads[e].check:
                found = _tell(events, found, INDEX_CHECK, e, -2 - at)
            elif shared > ticket and c.ticketed == 0:
                found = _tell(events, found, INDEX_TICKET, e, -2 - at)
            if shared > ticket:
                c.ticketed = 1
    at = total % room
    for p in range(8):
        index.simhash[p, at] = np.uint8(mine >> np.uint64(8 * p))
    for j in range(CODE_DIMS):
        index.codes[at, j] = row.codes[j]
    index.sketches[at] = row.sketch
    index.labels[at] = label
    index.owners[at] = owner
    index.hashes[at] = whole
    index.member_of[at] = uid
    index.scalars[INDEX_ROWS_SEEN] = total + 1
    return found


@njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
def walk(
    start: int, inputs: Any, rows: Any, tables: Any, clients: Any, index: Any, pool: Any, trace: Any, events: Any,
    scratch: Any,
) -> Any:  # fmt: skip
    """Walk from row `start`; returns the next row and the number of events at the row before it.

    `inputs` and `rows` as in `Columns`, `tables` as `Packed`; `trace` (n,) `TRACE` and `events` (`EVENTS`,
    `EVENT_FIELDS`) int64 are filled; `scratch` (w,) uint8, up to the end of the index's last block.
    """
    squares = np.empty(WINDOW_ROWS, dtype=np.int32)
    bits = np.empty(WINDOW_ROWS, dtype=np.int32)
    for i in range(start, rows.shape[0]):
        out = trace[i]
        out.kind = PLAIN
        out.near = np.nan
        out.opposite = np.nan
        out.residual = np.nan
        out.p_a = 1.0
        out.p_b = 1.0
        out.evidence_a = 0.0
        out.evidence_b = 0.0
        out.sequence = 0.0
        out.index_near = np.nan
        out.index_p = 1.0
        out.index_evidence = 0.0
        out.index_shared = 0.0
        out.near_bits = NO_BITS
        out.index_bits = NO_BITS
        out.index_opposite = NO_BITS
        pool.clock[0] += 1
        found, kept = 0, False
        _fetch_ahead(i, rows, clients)
        if rows[i].client != np.uint64(0):
            found, kept = _walk_client(
                i, inputs, rows, tables, clients, index.clusters, pool, trace, events, squares, bits
            )
        elif rows[i].oddness > tables.values[tables.first[_THRESHOLDS] + 4]:
            odd = clients.scalars[ODD_ANONYMOUS] + 1
            clients.scalars[ODD_ANONYMOUS] = odd
            if odd & (odd - 1) == 0:
                found = _tell(events, found, ODD_ROW, -1, -1)
        found = _walk_index(i, inputs, rows, tables, clients.slots, index, pool, trace, events, found, scratch, kept)
        if found > 0:
            return i + 1, found
    return rows.shape[0], 0


def empty_trace(n: int) -> NDArray[Any]:
    """A trace for n rows."""
    return np.zeros(n, dtype=TRACE)


def empty_events() -> NDArray[np.int64]:
    """Room for the events of one row."""
    return np.zeros((EVENTS, EVENT_FIELDS), dtype=np.int64)


def empty_scratch(index_rows: int) -> NDArray[np.uint8]:
    """Room to compare a row with an index of so many."""
    return np.empty(-(-index_rows // BLOCK_ROWS) * BLOCK_ROWS, dtype=np.uint8)


def stops(
    columns: Columns, tables: Packed, memory: Memory, trace: NDArray[Any]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Walk over all rows; after each row at which something happened give it and its events (`EVENT_FIELDS` each).

    Whoever receives them may change the pool of `memory` before the walk goes on.
    """
    events, scratch = empty_events(), empty_scratch(memory.index.simhash.shape[1])
    clients, index, pool = memory.clients, memory.index, memory.pool
    at = 0
    while True:
        at, found = walk(at, columns.inputs, columns.rows, tables, clients, index, pool, trace, events, scratch)
        if found == 0:
            return
        yield at - 1, events[:found].copy()
