"""The sequential half of scoring: one compiled walk over the rows of a batch, in order.

For each row: the client's history (exact duplicates, nearest earlier row, cluster evidence), the client's sequential
test over rows that are fresh evidence, and the account-oblivious index. The walk stops after a row at which something
happened that a person or the intent test must look at, so that what they see never depends on where a batch was cut.

Cluster evidence: each row is compared with the client's last rows in two geometries (projected L2, L0 by sketches); its
nearest row's distance, normalised by the density of the reference there, becomes a conformal p-value; rows with
p <= `JOIN_P` join the cluster of their nearest row, whose evidence grows by ln(JOIN_P / p) and decays with the rows in
between. The index does the same over the rows of all *other* accounts: what a single account repeats is the business of
its own history.

No logarithm is taken here, as its last bit differs between machines: squared ratios and products of p-values order as
their logarithms do, and gains stand in tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from detectors.kernels.rows import CODE_DIMS, popcount32, popcount64
from detectors.queries.memory import CLUSTERS, INDEX_CLUSTERS, MEMBERS, NO_CLUSTER, WINDOW_ROWS, Memory

#: A row joins the cluster of its nearest row when its p-value is at most this.
JOIN_P = 0.1
#: Evidence lost for every row of the client between two joins.
DECAY = 0.05
#: Most evidence that one row can bring: the gap it bridges is GAIN_CAP / DECAY rows.
GAIN_CAP = 4.0
#: The same loss for the index, where rows of all accounts lie in between.
INDEX_DECAY = 0.02
#: Members are kept from this share of the ticket threshold on.
KEEP_FROM = 0.34
#: Clip of the client residual, in standard deviations, and its prior weight in rows.
RESIDUAL_CLIP = 2.0
RESIDUAL_TAU = 5.0
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
#: Marks "none" where bits are counted.
NO_BITS = 99
#: Added to a density, in standard deviations, so that copies of reference rows stay finite.
DENSITY_FLOOR = 1e-6
#: Added to a squared distance of codes, in squared steps: what rounding hides.
CODE_FLOOR = 0.25

#: Kinds of rows.
PLAIN, DUPLICATE, JOINED = 0, 1, 2
#: Kinds of events.
CLUSTER_TICKET, CLUSTER_CHECK, SEQUENCE_CROSSED, INDEX_TICKET, INDEX_CHECK = 1, 2, 3, 4, 5
#: Most events of one row.
EVENTS = 4
#: What stands in a row of events: kind, place in the pool or -1, owner of the place (`Pool.owner`).
EVENT_FIELDS = 3

_FAR = np.int32(2**30)
_SAME_OWNER = np.uint8(128)


class Columns(NamedTuple):
    """What the walk reads of each row. n rows."""

    inputs: NDArray[np.float64]  # (n, d)
    labels: NDArray[np.int32]
    clients: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    codes: NDArray[np.int8]  # (n, 12)
    sketches: NDArray[np.uint32]
    simhash: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    sketch_rank: NDArray[np.int32]
    density: NDArray[np.float64]  # distance to the 5th nearest reference row of the predicted class
    bin: NDArray[np.int32]  # quintile of the density
    rank: NDArray[np.int32]  # of the fused score among calibration rows


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
    index_near: NDArray[np.float64]  # (5, 65) p-value by differing simhash bits
    index_opposite: NDArray[np.float64]  # (5, 65)
    index_both: NDArray[np.float64]  # (m',) product
    index_gain: NDArray[np.float64]  # (m' + 2,)
    normal: NDArray[np.float64]  # (c + 1,) standard normal score by fused rank
    residual: NDArray[np.float64]  # (c',) ascending residual scores of fresh rows
    evalue: NDArray[np.float64]  # (c' + 1,) e-value by rank
    thresholds: NDArray[np.float64]  # ticket A, ticket B, ticket index, sequential test


class Trace(NamedTuple):
    """What the walk writes for each row. n rows."""

    kind: NDArray[np.uint8]
    near: NDArray[np.float64]  # squared ratio of nearest L2 to density, NaN where there is no history
    near_bits: NDArray[np.int32]  # sketch bits to the nearest row less those of the reference
    opposite: NDArray[np.float64]  # squared ratio, NaN where there is none
    p_a: NDArray[np.float64]
    p_b: NDArray[np.float64]
    evidence_a: NDArray[np.float64]  # of the cluster that the row joined, else 0
    evidence_b: NDArray[np.float64]
    residual: NDArray[np.float64]  # NaN where the row is no fresh evidence
    sequence: NDArray[np.float64]  # statistic of the client after the row
    index_bits: NDArray[np.int32]  # to the nearest row of another account
    index_opposite: NDArray[np.int32]  # to the nearest differently answered one
    index_p: NDArray[np.float64]
    index_evidence: NDArray[np.float64]


@njit(cache=True, nogil=True)
def _count_at_most(values: Any, x: float) -> int:
    """How many of the ascending values are <= x, by a binary search that never waits for a branch."""
    base, size = 0, values.shape[0]
    while size > 1:
        half = size >> 1
        base = base + half if values[base + half - 1] <= x else base
        size -= half
    if size == 1 and values[base] <= x:
        base += 1
    return base


@njit(cache=True, nogil=True)
def _home(table: Any, key: Any) -> Any:
    z = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((z ^ (z >> np.uint64(32))) & np.uint64(table.shape[0] - 1))


@njit(cache=True, nogil=True)
def _forget(table: Any, keys: Any, slot: int) -> None:
    """Take a slot's key out of the table (deletion by shifting back, Knuth 6.4 R)."""
    mask = table.shape[0] - 1
    at = _home(table, keys[slot])
    while table[at] != slot:
        at = (at + 1) & mask
    hole = at
    at = (at + 1) & mask
    while table[at] >= 0:
        home = _home(table, keys[table[at]])
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole] = table[at]
            hole = at
        at = (at + 1) & mask
    table[hole] = -1


@njit(cache=True, nogil=True)
def _client(clients: Any, pool: Any, key: Any) -> int:
    """The client's slot, made the most recently used; a new client takes a free slot or the least recently used one."""
    table, keys, newer, older, scalars = clients.table, clients.keys, clients.newer, clients.older, clients.scalars
    mask = table.shape[0] - 1
    at = _home(table, key)
    while table[at] >= 0 and keys[table[at]] != key:
        at = (at + 1) & mask
    slot = table[at]
    if slot >= 0:
        if scalars[1] == slot:
            return slot
        n, o = newer[slot], older[slot]
        if o >= 0:
            newer[o] = n
        else:
            scalars[2] = n
        older[n] = o
    elif scalars[0] < keys.shape[0]:
        slot = np.int32(scalars[0])
        scalars[0] += 1
        table[at] = slot
        keys[slot] = key
    else:
        slot = np.int32(scalars[2])
        scalars[2] = newer[slot]
        older[newer[slot]] = -1
        scalars[3] += 1
        _forget(table, keys, slot)
        for c in range(CLUSTERS):
            if clients.place[slot, c] >= 0:
                pool.owner[clients.place[slot, c]] = -1
        clients.cluster[slot, :] = NO_CLUSTER
        clients.distinct[slot] = 0
        clients.evidence_a[slot, :] = 0.0
        clients.evidence_b[slot, :] = 0.0
        clients.joined[slot, :] = 0
        clients.place[slot, :] = -1
        clients.ticketed[slot, :] = 0
        clients.residual_sum[slot] = 0.0
        clients.residual_count[slot] = 0
        clients.sequence[slot] = 0.0
        keys[slot] = key
        at = _home(table, key)
        while table[at] >= 0:
            at = (at + 1) & mask
        table[at] = slot
    older[slot] = np.int32(scalars[1])
    newer[slot] = -1
    if scalars[1] >= 0:
        newer[scalars[1]] = slot
    else:
        scalars[2] = slot
    scalars[1] = slot
    return slot


@njit(cache=True, nogil=True)
def _take_place(clients: Any, index: Any, pool: Any, owner: int, strength: float) -> int:
    """A place in the pool: a free one, else that of the weakest claim if that is weaker; -1 if none.

    A claim weakens with silence and with every intent test that has been made, so that neither clusters of the past nor
    clients that repeat themselves for ever keep newcomers from being examined.
    """
    worst, least = -1, min(strength, PLACE_STRENGTH_CAP)
    for e in range(pool.owner.shape[0]):
        if pool.owner[e] == -1:
            worst = e
            break
        age = np.float64(pool.clock[0] - pool.joined[e])
        claim = min(pool.strength[e], PLACE_STRENGTH_CAP) * (FIRST_CHECK / np.float64(pool.check[e]))
        claim *= PLACE_AGE_ROWS / (PLACE_AGE_ROWS + age)
        if claim < least:
            worst, least = e, claim
    if worst < 0:
        return -1
    before = pool.owner[worst]
    if before >= 0:
        clients.place[before >> 3, before & 7] = -1
    elif before <= -2:
        index.place[-2 - before] = -1
    pool.owner[worst] = owner
    pool.size[worst] = 0
    pool.check[worst] = FIRST_CHECK
    pool.told[worst] = 0
    pool.paged[worst] = 0
    pool.origin[worst, :] = 0.0
    return worst


@njit(cache=True, nogil=True)
def _remember(pool: Any, e: int, columns: Any, i: int, strength: float) -> None:
    n = pool.size[e]
    at = n % MEMBERS
    if n == 0:
        pool.first[e, 0] = columns.offsets[i]
        pool.first[e, 1] = columns.rows[i]
    if n < 4:
        for f in range(columns.inputs.shape[1]):
            pool.origin[e, f] += (columns.inputs[i, f] - pool.origin[e, f]) / (n + 1.0)
    for f in range(columns.inputs.shape[1]):
        pool.rows[e, at, f] = columns.inputs[i, f]
    pool.labels[e, at] = columns.labels[i]
    pool.offsets[e, at] = columns.offsets[i]
    pool.places[e, at] = columns.rows[i]
    pool.clients[e, at] = columns.clients[i]
    pool.strength[e] = strength
    pool.joined[e] = pool.clock[0]
    pool.size[e] = n + 1


@njit(cache=True, nogil=True)
def _tell(events: Any, found: int, kind: int, place: int, owner: int) -> int:
    events[found, 0] = kind
    events[found, 1] = place
    events[found, 2] = owner
    return found + 1


@njit(cache=True, nogil=True)
def _new_cluster(clients: Any, pool: Any, slot: int, count: int, parent: int) -> int:
    """A cluster for a row and its parent: the one with the least evidence left is given up."""
    cluster, least = 0, np.inf
    for c in range(CLUSTERS):
        left = max(clients.evidence_a[slot, c], clients.evidence_b[slot, c])
        left -= DECAY * np.float64(count - np.int64(clients.joined[slot, c]))
        if left < least:
            cluster, least = c, left
    for k in range(WINDOW_ROWS):
        if clients.cluster[slot, k] == cluster:
            clients.cluster[slot, k] = NO_CLUSTER
    if clients.place[slot, cluster] >= 0:
        pool.owner[clients.place[slot, cluster]] = -1
        clients.place[slot, cluster] = -1
    clients.ticketed[slot, cluster] = 0
    clients.evidence_a[slot, cluster] = 0.0
    clients.evidence_b[slot, cluster] = 0.0
    clients.cluster[slot, parent] = cluster
    return cluster


@njit(cache=True, nogil=True)
def walk(
    start: int, columns: Any, tables: Any, clients: Any, index: Any, pool: Any, trace: Any, events: Any, scratch: Any
) -> Any:
    """Walk from row `start`; returns the next row and the number of events at the row before it.

    `events` (`EVENTS`, `EVENT_FIELDS`) int64 is filled; `scratch` (w,) uint8.
    """
    n = columns.labels.shape[0]
    squares = np.empty(WINDOW_ROWS, dtype=np.int32)
    bits = np.empty(WINDOW_ROWS, dtype=np.int32)
    grain = tables.grain[0]
    for i in range(start, n):
        found = 0
        trace.kind[i] = PLAIN
        trace.near[i] = np.nan
        trace.near_bits[i] = NO_BITS
        trace.opposite[i] = np.nan
        trace.p_a[i] = 1.0
        trace.p_b[i] = 1.0
        trace.evidence_a[i] = 0.0
        trace.evidence_b[i] = 0.0
        trace.residual[i] = np.nan
        trace.sequence[i] = 0.0
        pool.clock[0] += 1
        label = np.uint8(columns.labels[i] & 255)
        q = columns.bin[i]
        key = columns.clients[i]
        if key != np.uint64(0):
            slot = _client(clients, pool, key)
            count = np.int64(clients.distinct[slot])
            m: Any = min(count, WINDOW_ROWS)
            squares[:] = 0
            for j in range(CODE_DIMS):
                x = np.int32(columns.codes[i, j])
                for k in range(WINDOW_ROWS):
                    delta = x - np.int32(clients.codes[slot, j, k])
                    squares[k] += delta * delta
            sketch = columns.sketches[i]
            small = np.uint8(columns.hashes[i] & np.uint64(255))
            for k in range(WINDOW_ROWS):
                bits[k] = popcount32(sketch ^ clients.sketches[slot, k])
            same = False
            near, near_at = _FAR, -1
            few, few_at = np.int32(NO_BITS), -1
            other = _FAR
            for k in range(m):
                if squares[k] == 0 and bits[k] == 0 and clients.hashes[slot, k] == small:
                    same = True
                    break
                if squares[k] < near:
                    near, near_at = squares[k], k
                if bits[k] < few:
                    few, few_at = bits[k], k
                if clients.labels[slot, k] != label and squares[k] < other:
                    other = squares[k]
            if same:
                trace.kind[i] = DUPLICATE
                clients.scalars[4] += 1
                trace.sequence[i] = clients.sequence[slot]
            else:
                cluster: Any = NO_CLUSTER
                if near_at >= 0:
                    unit = grain / (columns.density[i] + DENSITY_FLOOR)
                    unit *= unit
                    r = (np.float64(near) + CODE_FLOOR) * unit
                    trace.near[i] = r
                    nears = tables.near_l2[q]
                    p_l2 = (1.0 + _count_at_most(nears, r)) / (nears.shape[0] + 1.0)
                    gap = few - columns.sketch_rank[i]
                    trace.near_bits[i] = gap
                    p_l0 = tables.near_l0[q, gap + 32]
                    parent = near_at if p_l2 <= p_l0 else few_at
                    rank_a = 1 + _count_at_most(tables.combined, min(p_l2, p_l0))
                    p_a = rank_a / (tables.combined.shape[0] + 1.0)
                    p_o = 1.0
                    if other < _FAR:
                        o = (np.float64(other) + CODE_FLOOR) * unit
                        trace.opposite[i] = o
                        opposites = tables.opposite[q]
                        p_o = (1.0 + _count_at_most(opposites, o)) / (opposites.shape[0] + 1.0)
                    rank_b = 1 + _count_at_most(tables.both, p_a * p_o)
                    p_b = rank_b / (tables.both.shape[0] + 1.0)
                    trace.p_a[i] = p_a
                    trace.p_b[i] = p_b
                    if p_a <= JOIN_P or p_b <= JOIN_P:
                        trace.kind[i] = JOINED
                        cluster = np.int64(clients.cluster[slot, parent])
                        if cluster == NO_CLUSTER:
                            cluster = _new_cluster(clients, pool, slot, count, parent)
                        loss = DECAY * np.float64(count - np.int64(clients.joined[slot, cluster]))
                        a = max(0.0, clients.evidence_a[slot, cluster] - loss) + tables.gain_a[rank_a]
                        b = max(0.0, clients.evidence_b[slot, cluster] - loss) + tables.gain_b[rank_b]
                        clients.evidence_a[slot, cluster] = a
                        clients.evidence_b[slot, cluster] = b
                        clients.joined[slot, cluster] = count + 1
                        trace.evidence_a[i] = a
                        trace.evidence_b[i] = b
                        strength = max(a / tables.thresholds[0], b / tables.thresholds[1])
                        owner = np.int64(slot) * 8 + cluster
                        e = np.int64(clients.place[slot, cluster])
                        if e < 0 and strength >= KEEP_FROM:
                            e = _take_place(clients, index, pool, owner, strength)
                            clients.place[slot, cluster] = e
                        if e >= 0:
                            _remember(pool, e, columns, i, strength)
                        if strength > 1.0:
                            if e >= 0 and pool.size[e] >= pool.check[e]:
                                found = _tell(events, found, CLUSTER_CHECK, e, owner)
                            elif clients.ticketed[slot, cluster] == 0:
                                found = _tell(events, found, CLUSTER_TICKET, e, owner)
                            clients.ticketed[slot, cluster] = 1
                at = count % WINDOW_ROWS
                for j in range(CODE_DIMS):
                    clients.codes[slot, j, at] = columns.codes[i, j]
                clients.sketches[slot, at] = sketch
                clients.hashes[slot, at] = small
                clients.labels[slot, at] = label
                clients.cluster[slot, at] = np.uint8(cluster)
                clients.distinct[slot] = count + 1
                if trace.kind[i] == PLAIN:
                    z = tables.normal[columns.rank[i]]
                    t = np.float64(clients.residual_count[slot])
                    left = z - np.float64(clients.residual_sum[slot]) / (t + RESIDUAL_TAU)
                    trace.residual[i] = left
                    above = tables.residual.shape[0] - _count_below(tables.residual, left)
                    value = (1.0 + clients.sequence[slot]) * tables.evalue[above]
                    value = min(value, SEQUENCE_CEILING)
                    clients.residual_sum[slot] += np.float32(min(max(z, -RESIDUAL_CLIP), RESIDUAL_CLIP))
                    clients.residual_count[slot] += 1
                    clients.sequence[slot] = value
                    trace.sequence[i] = value
                    if value > tables.thresholds[3]:
                        found = _tell(events, found, SEQUENCE_CROSSED, -1, -1)
                        clients.sequence[slot] = 0.0
                else:
                    trace.sequence[i] = clients.sequence[slot]
        found = _walk_index(i, columns, tables, clients, index, pool, trace, events, found, scratch, label, q)
        if found > 0:
            return i + 1, found
    return n, 0


@njit(cache=True, nogil=True)
def _count_below(values: Any, x: float) -> int:
    """How many of the ascending values are < x."""
    base, size = 0, values.shape[0]
    while size > 1:
        half = size >> 1
        base = base + half if values[base + half - 1] < x else base
        size -= half
    if size == 1 and values[base] < x:
        base += 1
    return base


@njit(cache=True, nogil=True)
def owner_tag(client: Any) -> Any:
    """One byte of a client's hash, 1 to 255; 0 for anonymous rows."""
    z = np.uint64(client)
    if z == np.uint64(0):
        return np.uint8(0)
    return np.uint8(np.uint64(1) + (z * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) % np.uint64(255))


@njit(cache=True, nogil=True)
def _walk_index(
    i: int,
    columns: Any,
    tables: Any,
    clients: Any,
    index: Any,
    pool: Any,
    trace: Any,
    events: Any,
    found: int,
    scratch: Any,
    label: Any,
    q: int,
) -> int:
    """The index's part of one row; returns the number of events so far."""
    size = index.simhash.shape[0]
    total = index.scalars[0]
    m = min(total, size)
    mine = columns.simhash[i]
    owner = owner_tag(columns.clients[i])
    trace.index_bits[i] = NO_BITS
    trace.index_opposite[i] = NO_BITS
    trace.index_p[i] = 1.0
    trace.index_evidence[i] = 0.0
    for k in range(m):
        scratch[k] = np.uint8(popcount64(mine ^ index.simhash[k]))
    least, across, any_owner = np.uint8(255), np.uint8(255), np.uint8(255)
    hidden = owner if owner != 0 else np.uint8(1)
    masked = np.uint8(0) if owner == 0 else _SAME_OWNER
    for k in range(m):
        b = scratch[k]
        any_owner = min(any_owner, b)
        b = b | (masked if index.owners[k] == hidden else np.uint8(0))
        least = min(least, b)
        b = b | (_SAME_OWNER if index.labels[k] == label else np.uint8(0))
        across = min(across, b)
    if any_owner == 0:
        whole = columns.hashes[i]
        for k in range(m):
            if scratch[k] == 0 and index.hashes[k] == whole:
                return found
    cluster = np.int64(-1)
    if least < _SAME_OWNER:
        trace.index_bits[i] = least
        trace.index_opposite[i] = across if across < _SAME_OWNER else NO_BITS
        p_a = tables.index_near[q, least]
        p_o = tables.index_opposite[q, across] if across < _SAME_OWNER else 1.0
        rank = 1 + _count_at_most(tables.index_both, p_a * p_o)
        p = rank / (tables.index_both.shape[0] + 1.0)
        trace.index_p[i] = p
        if p <= JOIN_P:
            parent = 0
            for k in range(m):
                if scratch[k] == least and (index.owners[k] != owner or owner == 0):
                    parent = k
            uid = index.cluster[parent]
            at = uid % INDEX_CLUSTERS if uid >= 0 else 0
            s = 0.0
            if uid >= 0 and index.uid[at] == uid:
                s = max(0.0, index.evidence[at] - INDEX_DECAY * np.float64(total - index.joined[at]))
            else:
                uid = index.scalars[1]
                for _ in range(INDEX_CLUSTERS):
                    at = uid % INDEX_CLUSTERS
                    left = index.evidence[at] - INDEX_DECAY * np.float64(total - index.joined[at])
                    if index.uid[at] < 0 or left < KEEP_FROM * tables.thresholds[2]:
                        break
                    uid += 1
                at = uid % INDEX_CLUSTERS
                index.scalars[1] = uid + 1
                if index.place[at] >= 0:
                    pool.owner[index.place[at]] = -1
                    index.place[at] = -1
                index.uid[at] = uid
                index.ticketed[at] = 0
                index.cluster[parent] = uid
            s += tables.index_gain[rank]
            index.evidence[at] = s
            index.joined[at] = total + 1
            cluster = uid
            trace.index_evidence[i] = s
            strength = s / tables.thresholds[2]
            e = np.int64(index.place[at])
            if e < 0 and strength >= KEEP_FROM:
                e = _take_place(clients, index, pool, -2 - at, strength)
                index.place[at] = e
            if e >= 0:
                _remember(pool, e, columns, i, strength)
            if strength > 1.0:
                if e >= 0 and pool.size[e] >= pool.check[e]:
                    found = _tell(events, found, INDEX_CHECK, e, -2 - at)
                elif index.ticketed[at] == 0:
                    found = _tell(events, found, INDEX_TICKET, e, -2 - at)
                index.ticketed[at] = 1
    at = total % size
    index.simhash[at] = mine
    index.labels[at] = label
    index.owners[at] = owner
    index.hashes[at] = columns.hashes[i]
    index.cluster[at] = cluster
    index.scalars[0] = total + 1
    return found


def empty_trace(n: int) -> Trace:
    """A trace for n rows."""
    return Trace(
        kind=np.zeros(n, dtype=np.uint8),
        near=np.empty(n),
        near_bits=np.empty(n, dtype=np.int32),
        opposite=np.empty(n),
        p_a=np.empty(n),
        p_b=np.empty(n),
        evidence_a=np.empty(n),
        evidence_b=np.empty(n),
        residual=np.empty(n),
        sequence=np.empty(n),
        index_bits=np.empty(n, dtype=np.int32),
        index_opposite=np.empty(n, dtype=np.int32),
        index_p=np.empty(n),
        index_evidence=np.empty(n),
    )


def empty_events() -> NDArray[np.int64]:
    """Room for the events of one row."""
    return np.zeros((EVENTS, EVENT_FIELDS), dtype=np.int64)


def stops(columns: Columns, tables: Tables, memory: Memory, trace: Trace) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Walk over all rows; after each row at which something happened give it and its events (`EVENT_FIELDS` each).

    Whoever receives them may change the pool of `memory` before the walk goes on.
    """
    events, scratch = empty_events(), np.empty(len(memory.index.simhash), dtype=np.uint8)
    at = 0
    while True:
        at, found = walk(at, columns, tables, memory.clients, memory.index, memory.pool, trace, events, scratch)
        if found == 0:
            return
        yield at - 1, events[:found].copy()
