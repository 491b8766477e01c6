"""Kernels of straight lines: queries that search a line for the boundary, and queries that go along one evenly.

Everything is made of exact inner products and single rounded operations, so that a verdict is the same to the bit on
every machine.

Blind to: searches for the boundary along curves, or along lines whose ends are never asked; ways between rows that
differ in few features; rows that stray from their line by more than a fifth of an arm.

References
----------
Vedette's own method; the searches that it looks for are those of the attacks that `halvings` names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

#: One end of a line is among so many rows before; the other may be any earlier row.
REACH = 12
#: A row lies between two others when its arms to them make an angle whose cosine is at most minus this: room for a
#: sideways step of a fifth of an arm.
STRAIGHT = 0.9
#: Nearer to an end than this share of the other arm a row is not between.
LEAST_ARM = 0.05
#: Rows of one line that count at most.
MOST_OF_A_LINE = 2
#: Two lines go nearly the same way when the cosine between them is at least this.
SAME_WAY = 0.7
#: A row goes on in even steps where it lies within this share of a step from where that would have led; they make a
#: path from so many in a row on, and from so many its two first rows belong to it.
EVEN_STEP, LEAST_RUN, LONG_RUN = 0.1, 4, 8


@njit(cache=True, nogil=True)
def _changed(rows: Any, u: int, v: int, scale: Any, least: float, narrow: int) -> bool:
    """Whether two rows differ in more than `narrow` features."""
    found = 0
    for f in range(rows.shape[1]):
        found += 1 if abs(rows[u, f] - rows[v, f]) > least * scale[f] else 0
        if found > narrow:
            return True
    return False


@njit(cache=True, nogil=True)
def _same_way(products: Any, way: Any, a: int, b: int, c: int, d: int) -> bool:
    """Whether the line from row a to row b goes nearly the same way as that from c to d, or back."""
    inner = (products[a, c] - products[a, d]) - (products[b, c] - products[b, d])
    return abs(inner) >= SAME_WAY * way[a, b] * way[c, d]


@njit(cache=True, nogil=True)
def halvings(
    products: Any, norms: Any, labels: Any, rows: Any, scale: Any, least: float, narrow: int
) -> tuple[int, int, int]:
    """Rows that divide the way between two earlier ones that the model answers differently, on lines that turn slowly.

    A decision-based attack finds the boundary by binary search on straight lines, between a row with the answer to
    leave and one with another: in the steps of HopSkipJump (Chen, Jordan & Wainwright, IEEE S&P 2020, algorithm 1),
    in OPT's and Sign-OPT's distances (Cheng et al., ICLR 2019 and 2020), and in their cautious relatives. Its next row
    lies in the piece whose ends differ, and its next line goes nearly the same way as one before. Who looks for the
    boundary once from every row, as services for recourse do, mostly goes another way each time.

    Parameters
    ----------
    products : float64 (m, m)
        Exact inner products of the rows in standard form, oldest first.
    norms : float64 (m,)
        Their squares.
    labels : int32 (m,)
    rows : float64 (m, d)
        In the units of the schema.
    scale : float64 (d,)
        Standard deviations.
    least : float
        Two values differ when they do by more than so many.
    narrow : int
        The ends of a line differ in more features than this.

    Returns
    -------
    found : int
        Rows whose shortest piece (of all that they lie in) has ends that differ, at most `MOST_OF_A_LINE` of each line,
        over lines that go nearly the same way as another one.
    apart : int
        Lines with such rows that go a way of their own.
    members : int
        Rows of those, ends included.
    """
    m = norms.shape[0]
    squared, way = np.empty((m, m)), np.empty((m, m))
    for t in range(m):
        for u in range(t + 1):
            x = max(0.0, norms[t] + norms[u] - 2.0 * products[t, u])
            squared[t, u] = x
            squared[u, t] = x
            way[t, u] = np.sqrt(x)
            way[u, t] = way[t, u]
    line = np.full(m, -1)
    divided, size = np.zeros(m, dtype=np.int64), np.zeros(m, dtype=np.int64)
    start, end = np.zeros(m, dtype=np.int64), np.zeros(m, dtype=np.int64)
    lines = 0
    for t in range(2, m):
        shortest, first, second = np.inf, -1, -1
        for u in range(max(1, t - REACH), t):
            a, to_u = way[t, u], squared[t, u]
            if a == 0.0:
                continue
            for v in range(u):
                whole = squared[u, v]
                if whole >= shortest or whole <= to_u:
                    continue
                b = way[t, v]
                if min(a, b) < LEAST_ARM * max(a, b):
                    continue
                if whole >= to_u + squared[t, v] + 2.0 * STRAIGHT * a * b:
                    shortest, first, second = whole, u, v
        if first < 0 or not _changed(rows, first, second, scale, least, narrow):
            continue
        known = line[first] if line[first] >= 0 else line[second]
        if known < 0:
            known = lines
            start[known], end[known], size[known] = first, second, 2
            lines += 1
        line[t] = known
        size[known] += 1
        divided[known] += 1 if labels[first] != labels[second] else 0
    found, apart, members = 0, 0, 0
    for k in range(lines):
        if divided[k] == 0:
            continue
        alone = True
        for j in range(lines):
            if j != k and divided[j] > 0 and _same_way(products, way, start[k], end[k], start[j], end[j]):
                alone = False
        if alone:
            apart += 1
            members += size[k]
        else:
            found += min(MOST_OF_A_LINE, divided[k])
    return found, apart, members


@njit(cache=True, nogil=True)
def even_steps(rows: Any, scale: Any, out: Any) -> int:
    """Which rows only go on in the direction and by the length of the step before, `LEAST_RUN` and more in a row.

    An even step or two may be an attacker's decoy, so that the next query of his own looks like one; a path is longer.
    Of one of `LONG_RUN` steps the two rows that it begins with are told as well: he who hides his queries among such
    paths sends ten rows for each.

    rows (m, d), in the units of the schema, in order; scale (d,), standard deviations; out (m,) bool, filled. Returns
    how many.
    """
    found, run, m = 0, 0, rows.shape[0]
    for t in range(m + 1):
        even = False
        if 2 <= t < m:
            step, off = 0.0, 0.0
            for f in range(rows.shape[1]):
                before = (rows[t - 1, f] - rows[t - 2, f]) / scale[f]
                change = (rows[t, f] - rows[t - 1, f]) / scale[f] - before
                step += before * before
                off += change * change
            even = 0.0 < step < np.inf and off <= EVEN_STEP * EVEN_STEP * step
        if t < m:
            out[t] = False
        if even:
            run += 1
            continue
        if run >= LEAST_RUN:
            first = t - run - 2 if run >= LONG_RUN else t - run
            for u in range(first, t):
                found += 0 if out[u] else 1
                out[u] = True
        run = 0
    return found


def warm_up() -> None:
    """Compile, or load from the cache, with the types that the intent test passes."""
    n = 3
    halvings(np.zeros((n, n)), np.zeros(n), np.zeros(n, dtype=np.int32), np.zeros((n, 2)), np.ones(2), 1e-5, 6)
    even_steps(np.zeros((n, 2)), np.ones(2), np.empty(n, dtype=np.bool_))
