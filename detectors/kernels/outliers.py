"""Kernels of compiled outlier detectors and of neighbour searches that keep whole reference rows.

Rows never meet: a loop over rows stands outside or inside a loop over what was learned, but what is added up for a row
is added in one order whatever the batch. Compiled when first used, not by `kernels.warm_up`: the default ensemble needs
none of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from detectors.kernels.rows import steady_exp2, steady_log
from detectors.kernels.sieves import (
    BLOCK_ROWS,
    COLUMNS,
    ROWS_AT_ONCE,
    SINGLE_ROUNDOFF,
    TILE_GROUPS,
    TILE_ROWS,
    columns_within,
    rough_products,
    small_of,
)

#: Beyond this squared length a row is measured against every reference row: single precision can't hold it.
LARGEST_NORM = 1e30
#: More than sums of numbers that are too small for single precision can be off by.
LEAST_SINGLE = 1e-30
#: Scores are kept finite at this size, so that they can be ranked and stored.
LARGEST_SCORE = 1e300
_SINGLE_INF = np.float32(np.inf)
_LARGEST_SINGLE = np.finfo(np.float32).max
_SINGLE_TWO = np.float32(2.0)
_LOG2_E = 1.0 / math.log(2.0)
#: 2**-1000 is nothing beside 1.
_LEAST_EXPONENT = -1000.0


@njit(cache=True, nogil=True)
def square_distance(a: Any, i: int, b: Any, j: int) -> float:
    """Squared distance of row i of `a` and row j of `b`, added up in one stated order."""
    d = a.shape[1]
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    f = 0
    while f + 8 <= d:
        t0, t1, t2, t3 = (
            a[i, f] - b[j, f],
            a[i, f + 1] - b[j, f + 1],
            a[i, f + 2] - b[j, f + 2],
            a[i, f + 3] - b[j, f + 3],
        )
        s0, s1, s2, s3 = s0 + t0 * t0, s1 + t1 * t1, s2 + t2 * t2, s3 + t3 * t3
        t0, t1, t2, t3 = (
            a[i, f + 4] - b[j, f + 4],
            a[i, f + 5] - b[j, f + 5],
            a[i, f + 6] - b[j, f + 6],
            a[i, f + 7] - b[j, f + 7],
        )
        s4, s5, s6, s7 = s4 + t0 * t0, s5 + t1 * t1, s6 + t2 * t2, s7 + t3 * t3
        f += 8
    while f < d:
        t0 = a[i, f] - b[j, f]
        s0 += t0 * t0
        f += 1
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@njit(cache=True, nogil=True)
def _place(squared: Any, index: Any, i: int, e: float, j: int) -> None:
    """Put row j at squared distance e among the nearest so far; of equal ones the first row counts."""
    k = squared.shape[1] - 1
    if e > squared[i, k] or not (e < np.inf) or (e == squared[i, k] and j > index[i, k]):
        return
    while k > 0 and (squared[i, k - 1] > e or (squared[i, k - 1] == e and index[i, k - 1] > j)):
        squared[i, k] = squared[i, k - 1]
        index[i, k] = index[i, k - 1]
        k -= 1
    squared[i, k] = e
    index[i, k] = j


@njit(cache=True, nogil=True)
def project(rows: Any, centre: Any, basis: Any, norms: Any, out: Any) -> None:
    """Rows about the centre along orthonormal directions, and the length of what remains of them.

    rows (n, d); centre (d,); basis (d, p); norms (n,), filled with squared lengths; out float32 (n, p + 1 or more),
    whose first p + 1 columns are filled.
    """
    p = basis.shape[1]
    part = np.empty(p)
    for i in range(rows.shape[0]):
        part[:] = 0.0
        whole = 0.0
        for f in range(rows.shape[1]):
            x = rows[i, f] - centre[f]
            whole += x * x
            for j in range(p):
                part[j] += x * basis[f, j]
        kept = 0.0
        for j in range(p):
            kept += part[j] * part[j]
            out[i, j] = np.float32(part[j])
        out[i, p] = np.float32(math.sqrt(max(whole - kept, 0.0)))
        norms[i] = whole


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def single_distances(row: Any, rows: Any, which: Any, count: int, out: Any) -> None:
    """Squared distances of a row and `count` others in single precision, added up in whatever order is fastest."""
    for m in range(count):
        j = which[m]
        total = np.float32(0.0)
        for f in range(row.shape[0]):
            t = row[f] - rows[j, f]
            total += t * t
        out[m] = total


@njit(cache=True, nogil=True)
def nearest_of(
    inputs: Any,
    reference: Any,
    centre: Any,
    basis: Any,
    thin: Any,
    single: Any,
    longest: float,
    squared: Any,
    index: Any,
) -> int:
    """Squared distances to the k nearest reference rows, and which they are; of equal ones the first counts.

    Three sieves, each dearer and finer than the one before. First a product in single precision and fewer dimensions:
    with x' the coordinates of x along p orthonormal directions and, last, the length of the rest,
    |x - y|^2 >= |x|^2 + |y|^2 - 2 x'y'. Then the distance in single precision. What neither rules out is measured in
    double precision, in one order. Limits are widened by the most that rounding can do (Higham, "Accuracy and Stability
    of Numerical Algorithms", 2002, section 3.1), so the sieves, whose bits depend on batch and machine, decide nothing.

    Parameters
    ----------
    inputs : float64 (n, d)
    reference : float64 (r, d)
    centre : float64 (d,)
    basis : float64 (d, p)
    thin : float32 (c, q, COLUMNS)
        Reference rows as columns: the q - 1 = p + 1 numbers of `project`, and the squared length about the centre
        (infinite beyond r). The number of columns is r rounded up to a multiple of `TILE_ROWS`.
    single : float32 (r, d')
        Reference rows about the centre, and zeros beyond d.
    longest : float
        Length of the longest reference row about the centre.
    squared : float64 (n, k), filled
        Ascending; infinite beyond the number of rows, or where a square overflows.
    index : int64 (n, k), filled
        -1 where the distance is infinite.

    Returns
    -------
    int
        Number of distances in single precision.
    """
    n, d = inputs.shape
    r, q, tiles = reference.shape[0], thin.shape[1], thin.shape[0] * COLUMNS // TILE_ROWS
    k, p = squared.shape[1], basis.shape[1]
    squared[:] = np.inf
    index[:] = -1
    norms = np.empty(n)
    short = np.zeros((-(-n // BLOCK_ROWS) * BLOCK_ROWS, q), dtype=np.float32)
    project(inputs, centre, basis, norms, short)
    short[:, : p + 1] *= -_SINGLE_TWO
    short[:, p + 1] = 1.0
    block_rows = min(-(-n // ROWS_AT_ONCE) * ROWS_AT_ONCE, BLOCK_ROWS)
    rough = np.empty((block_rows, tiles, TILE_ROWS), dtype=np.float32)
    lows = np.empty((tiles, TILE_GROUPS), dtype=np.float32)
    first = np.empty(k, dtype=np.float32)
    mine = np.zeros(single.shape[1], dtype=np.float32)
    found = np.empty(tiles * TILE_ROWS + 1, dtype=np.int64)
    apart = np.empty(tiles * TILE_ROWS, dtype=np.float32)
    of_product = 2.2 * SINGLE_ROUNDOFF * (2 * q + 4 + math.sqrt((math.sqrt(p) + 4.0) * d))
    of_norms = 2.2 * SINGLE_ROUNDOFF * (q + 4)
    of_distance = 1.0 + 2.2 * SINGLE_ROUNDOFF * (d + 4)
    compared = 0
    for start in range(0, n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n)
        rough_products(short, start, thin, rough)
        for i in range(start, stop):
            if not norms[i] < LARGEST_NORM or not longest * longest < LARGEST_NORM:
                for j in range(r):
                    _place(squared, index, i, square_distance(inputs, i, reference, j), j)
                continue
            for f in range(d):
                mine[f] = np.float32(inputs[i, f] - centre[f])
            length = math.sqrt(norms[i])
            doubt = of_product * length * longest + of_norms * (longest * longest + norms[i]) + LEAST_SINGLE
            slack = 2.2 * SINGLE_ROUNDOFF * (length + longest)
            limit, near, b = np.inf, np.inf, i - start
            # A few near rows come first: they tell how near the others have to be.
            for cut in (small_of(rough, b, lows, first), _LARGEST_SINGLE):
                count = columns_within(rough, b, lows, min(cut, np.float32(limit), _LARGEST_SINGLE), found)
                for m in range(count):
                    rough[b, found[m] // TILE_ROWS, found[m] % TILE_ROWS] = _SINGLE_INF
                single_distances(mine, single, found, count, apart)
                compared += count
                for m in range(count):
                    if apart[m] <= near:
                        j = found[m]
                        _place(squared, index, i, square_distance(inputs, i, reference, j), j)
                        furthest = squared[i, k - 1]
                        limit = furthest - norms[i] + doubt
                        near = (math.sqrt(furthest) + slack) ** 2 * of_distance + LEAST_SINGLE
    return compared


@njit(cache=True, nogil=True)
def neighbour_distance(squared: Any, method: int, out: Any) -> None:
    """Of ascending squared distances (n, k) the largest distance (0), the mean (1) or the median (2)."""
    k = squared.shape[1]
    for i in range(squared.shape[0]):
        if method == 0:
            found = math.sqrt(squared[i, k - 1])
        elif method == 1:
            found = 0.0
            for j in range(k):
                found += math.sqrt(squared[i, j])
            found /= k
        else:
            found = 0.5 * (math.sqrt(squared[i, (k - 1) // 2]) + math.sqrt(squared[i, k // 2]))
        out[i] = min(found, LARGEST_SCORE)


@njit(cache=True, nogil=True)
def local_outlier(squared: Any, index: Any, kth: Any, density: Any, out: Any) -> None:
    """Local outlier factor of new rows.

    squared, index (n, k) as `nearest_of` fills them; per reference row (r,): kth its distance to its own k-th
    neighbour, density its local reachability density.
    """
    k = squared.shape[1]
    for i in range(squared.shape[0]):
        reach, near = 0.0, 0.0
        for j in range(k):
            row = max(index[i, j], 0)
            reach += max(math.sqrt(squared[i, j]), kth[row])
            near += density[row]
        own = 1.0 / (reach / k + 1e-10)
        out[i] = min(near / k / own, LARGEST_SCORE) if own > 0.0 else LARGEST_SCORE


@njit(cache=True, nogil=True)
def histograms(inputs: Any, edges: Any, last: Any, slack_low: Any, slack_high: Any, surprise: Any, out: Any) -> None:
    """Summed surprise over features, each read from a histogram.

    Parameters
    ----------
    inputs : float64 (n, d)
    edges : float64 (b + 1, d)
        Ascending edges of each feature's bins; infinite beyond the last one.
    last : int64 (d,)
        Number of bins.
    slack_low, slack_high : float64 (d,)
        The first bin reaches to this value, the last one to that.
    surprise : float64 (b + 2, d)
        Of values far below, in each bin, and far above (at last + 1).
    out : float64 (n,), filled
    """
    n, d = inputs.shape
    place = np.empty(d, dtype=np.int64)
    for i in range(n):
        place[:] = 0
        for b in range(edges.shape[0]):
            edge = edges[b]
            for f in range(d):
                place[f] += edge[f] < inputs[i, f]
        total = 0.0
        for f in range(d):
            x, b = inputs[i, f], place[f]
            if b == 0 and x >= slack_low[f]:
                b = 1
            elif b == last[f] + 1 and x <= slack_high[f]:
                b = last[f]
            total += surprise[b, f]
        out[i] = total


@njit(cache=True, nogil=True)
def bucket_of(x: float, low: float, steps: float, buckets: int) -> int:
    """Place of x among equal steps from `low` on; it never falls as x grows."""
    place = (x - low) * steps
    if not place > 0.0:
        return 0
    return buckets - 1 if place >= buckets else int(place)


@njit(cache=True, nogil=True)
def bucket_starts(values: Any, offsets: Any, lows: Any, steps: Any, starts: Any) -> None:
    """For each feature and bucket the first of its ascending values, within values[offsets[f]:offsets[f + 1]], in it.

    lows, steps (d,); starts int32 (d, buckets + 1), filled.
    """
    buckets = starts.shape[1] - 1
    for f in range(starts.shape[0]):
        begin, end = offsets[f], offsets[f + 1]
        b = 0
        for k in range(begin, end):
            mine = bucket_of(values[k], lows[f], steps[f], buckets)
            while b <= mine:
                starts[f, b] = k - begin
                b += 1
        while b <= buckets:
            starts[f, b] = end - begin
            b += 1


@njit(cache=True, nogil=True)
def empirical_tails(
    inputs: Any,
    values: Any,
    counts: Any,
    offsets: Any,
    lows: Any,
    steps: Any,
    starts: Any,
    means: Any,
    second: Any,
    third: Any,
    surprise: Any,
    total: Any,
) -> None:
    """ECOD's score of each row as if it alone stood behind the n' rows that were learned from.

    With N = n' + 1 the tails of a value are (1 + #{learned <= x}) / N and (1 + #{learned >= x}) / N; the sign of the
    skewness is that of the third central moment of all N values, which follows from those of n'.

    Parameters
    ----------
    inputs : float64 (n, d)
    values : float64 (v,)
        Learned values of each feature, ascending, each once; feature f in offsets[f]:offsets[f + 1].
    counts : int32 (v + d,)
        How many learned values are below each of them, and after the last their number; of feature f from
        offsets[f] + f on.
    offsets : int64 (d + 1,)
    lows, steps : float64 (d,)
    starts : int32 (d, buckets + 1)
        As `bucket_starts` fills them.
    means, second, third : float64 (d,)
        Mean, and sums of squares and cubes about it.
    surprise : float64 (n' + 2,)
        -ln(count / N) by count.
    total : float64 (n,), filled
    """
    count = surprise.shape[0] - 2
    whole = count + 1.0
    buckets = starts.shape[1] - 1
    total[:] = 0.0
    for f in range(inputs.shape[1]):
        mine = values[offsets[f] : offsets[f + 1]]
        below_of = counts[offsets[f] + f : offsets[f + 1] + f + 1]
        for i in range(inputs.shape[0]):
            x = inputs[i, f]
            b = bucket_of(x, lows[f], steps[f], buckets)
            base, size = starts[f, b], starts[f, b + 1] - starts[f, b]
            while size > 1:
                half = size >> 1
                base = base + half if mine[base + half - 1] < x else base
                size -= half
            if size == 1 and mine[base] < x:
                base += 1
            below = below_of[base]
            up_to = below_of[base + 1] if base < mine.shape[0] and mine[base] == x else below
            left, right = surprise[up_to + 1], surprise[count - below + 1]
            away = x - means[f]
            step = away * (away * (away * (count * (count - 1.0) / (whole * whole))) - 3.0 * second[f] / whole)
            lean = third[f] + step
            if lean > 0.0:
                skewed = right
            elif lean < 0.0:
                skewed = left
            else:
                skewed = left + right
            total[i] += max(skewed, max(left, right))


@njit(cache=True, nogil=True)
def scattered_distances(inputs: Any, mean: Any, scale: Any, columns: Any, weights: Any, out: Any) -> None:
    """Weighted sum of distances between standardised rows and components.

    inputs (n, d); mean, scale (d,); columns (d, c) components as columns; weights (c,); out (n,).
    """
    c = columns.shape[1]
    part = np.empty(c)
    for i in range(inputs.shape[0]):
        part[:] = 0.0
        for f in range(inputs.shape[1]):
            x = (inputs[i, f] - mean[f]) / scale[f]
            for j in range(c):
                away = columns[f, j] - x
                part[j] += away * away
        total = 0.0
        for j in range(c):
            total += math.sqrt(part[j]) * weights[j]
        out[i] = min(total, LARGEST_SCORE)


@njit(cache=True, nogil=True)
def quadratic_form(inputs: Any, centre: Any, matrix: Any, out: Any) -> None:
    """(x - centre)' matrix (x - centre), kept from being negative."""
    d = inputs.shape[1]
    part = np.empty(d)
    for i in range(inputs.shape[0]):
        part[:] = 0.0
        for f in range(d):
            x = inputs[i, f] - centre[f]
            for j in range(d):
                part[j] += x * matrix[f, j]
        total = 0.0
        for j in range(d):
            total += part[j] * (inputs[i, j] - centre[j])
        out[i] = min(max(total, 0.0), LARGEST_SCORE)


@njit(cache=True, nogil=True)
def mixture_surprise(inputs: Any, centres: Any, factors: Any, offsets: Any, out: Any) -> None:
    """-ln of a Gaussian mixture's density.

    centres (m, d); factors (m, d, d) with W W' = inverse covariance; offsets (m,): ln weight + ln |W| - d/2 ln 2 pi.
    """
    m, d = centres.shape
    part, level = np.empty(d), np.empty(m)
    for i in range(inputs.shape[0]):
        most = -np.inf
        for c in range(m):
            part[:] = 0.0
            factor = factors[c]
            for f in range(d):
                x = inputs[i, f] - centres[c, f]
                for j in range(d):
                    part[j] += x * factor[f, j]
            total = 0.0
            for j in range(d):
                total += part[j] * part[j]
            level[c] = offsets[c] - 0.5 * min(total, LARGEST_SCORE)
            most = max(most, level[c])
        share = 0.0
        for c in range(m):
            share += steady_exp2(max((level[c] - most) * _LOG2_E, _LEAST_EXPONENT))
        out[i] = -(most + steady_log(share))


@njit(cache=True, nogil=True)
def projected_histograms(inputs: Any, features: Any, loadings: Any, limits: Any, surprise: Any, out: Any) -> None:
    """Mean surprise of one-dimensional histograms of sparse projections.

    features, loadings (c, s): the features that a projection reads and what it multiplies them by; limits (c, b - 1)
    ascending; surprise (c, b) weighted -ln of each bin's share; out (n,): the sum.
    """
    out[:] = 0.0
    for c in range(features.shape[0]):
        edges = limits[c]
        for i in range(inputs.shape[0]):
            x = 0.0
            for s in range(features.shape[1]):
                x += loadings[c, s] * inputs[i, features[c, s]]
            b = 0
            for k in range(edges.shape[0]):
                b += edges[k] < x
            out[i] += surprise[c, b]


@njit(cache=True, nogil=True)
def foreign_share(index: Any, reference_labels: Any, labels: Any, out: Any) -> None:
    """Of neighbours (n, k), nearest first and weighed by 1 / rank, the share that has another class than the row."""
    k = index.shape[1]
    for i in range(index.shape[0]):
        foreign, whole = 0.0, 0.0
        for j in range(k):
            weight = 1.0 / (j + 1.0)
            whole += weight
            if index[i, j] < 0 or reference_labels[index[i, j]] != labels[i]:
                foreign += weight
        out[i] = foreign / whole


@njit(cache=True, nogil=True)
def pattern_surprise(inputs: Any, labels: Any, usual: Any, slack: Any, cost: Any, out: Any) -> None:
    """Sum over features of cost[0] where the value is within slack of the usual one, of cost[1] where it is not.

    inputs (n, d); labels int32 (n,); usual, slack (d,); cost (2, k, d); out (n,). Four sums are kept and added at the
    end, so that the processor need not wait for one.
    """
    d = inputs.shape[1]
    for i in range(inputs.shape[0]):
        row, has, lacks = inputs[i], cost[0, labels[i]], cost[1, labels[i]]
        s0 = s1 = s2 = s3 = 0.0
        f = 0
        while f + 4 <= d:
            s0 += has[f] if abs(row[f] - usual[f]) <= slack[f] else lacks[f]
            s1 += has[f + 1] if abs(row[f + 1] - usual[f + 1]) <= slack[f + 1] else lacks[f + 1]
            s2 += has[f + 2] if abs(row[f + 2] - usual[f + 2]) <= slack[f + 2] else lacks[f + 2]
            s3 += has[f + 3] if abs(row[f + 3] - usual[f + 3]) <= slack[f + 3] else lacks[f + 3]
            f += 4
        while f < d:
            s0 += has[f] if abs(row[f] - usual[f]) <= slack[f] else lacks[f]
            f += 1
        out[i] = (s0 + s1) + (s2 + s3)
