"""Kernels over single rows: standard form, neighbours, residuals, trees, constraints, p-values, codes and sketches.

`math.log` and `exp` come from the machine's C library and differ in the last bit between libraries and processors, so
what decides uses `steady_log` and `steady_exp2`, made of correctly rounded operations alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from detectors.kernels.exact import CLIP_SD
from detectors.kernels.sieves import (
    BLOCK_ROWS,
    COLUMNS,
    MASK_VALUES,
    ROWS_AT_ONCE,
    SINGLE_ROUNDOFF,
    TILE_GROUPS,
    TILE_ROWS,
    at_most,
    columns_within,
    lane_minima,
    least_of,
    packed,
    places_of,
    rough_products,
)

#: Neighbour of the predicted class whose distance is the yardstick.
OWN_RANK = 5
#: Rows that walk down a tree side by side.
TREE_LANES = 8
#: Rows that stay in the first-level cache while all trees pass.
TREE_BLOCK_ROWS = 64
#: Dimensions of the secret random projection.
CODE_DIMS = 12
#: Standard deviations of a projected value that int8 spans on each side.
CODE_RANGE_SD = 6.0
#: Bytes that are counted at a time; their number stays below 256.
COUNT_ROWS = 128
#: What a feature adds that was constant in the reference and is not now.
PATTERN_WEIGHT = 0.25
#: Most that one feature can add to the sum of violations, so that sums stay finite.
VIOLATION_CAP = 16.0

_SINGLE_INF = np.float32(np.inf)
_SINGLE_ONE = np.float32(1.0)
_ONE = np.uint64(1)
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_LN2 = math.log(2.0)


@njit(cache=True, nogil=True)
def steady_log(x: float) -> float:
    """ln x of a positive normal number, the same bits on every machine; within 2 units in the last place.

    x = m 2^e with m in [1/sqrt 2, sqrt 2); ln m = 2 artanh((m - 1) / (m + 1)).
    """
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m *= 2.0
        e -= 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 1.0 / 23.0
    for k in range(10, 0, -1):
        series = series * z + 1.0 / (2.0 * k + 1.0)
    return e * _LN2_HIGH + (2.0 * s + (2.0 * s * (z * series) + e * _LN2_LOW))


@njit(cache=True, nogil=True)
def steady_exp2(x: float) -> float:
    """2**x for -1000 <= x <= 1000, the same bits on every machine; within 2 units in the last place."""
    whole = math.floor(x + 0.5)
    y = (x - whole) * _LN2
    series = 1.0
    for k in range(15, 0, -1):
        series = series * y / k + 1.0
    return math.ldexp(series, int(whole))


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def exact_dot(a: Any, i: int, b: Any, j: int) -> float:
    """Inner product of row i of `a` and row j of `b`, both on the grid: exact, so any order of additions will do."""
    total = 0.0
    for f in range(a.shape[1]):
        total += a[i, f] * b[j, f]
    return total


@njit(cache=True, nogil=True)
def prepare(
    inputs: Any, labels: Any, mean: Any, scale: Any, grid: float, classes: int, standard: Any, thin: Any, norms: Any
) -> int:
    """Check rows and bring them into standard form.

    Parameters
    ----------
    inputs : float64 (n, d)
    labels : int32 (n,)
    mean, scale : float64 (d,)
    grid : float
        Steps a standard deviation (`exact.grid_for`).
    classes : int
    standard : float64 (n, d), filled
        As `exact.standardise` gives it.
    thin : float32 (n, d), filled
        The same, rounded.
    norms : float64 (n,), filled
        Exact squared lengths.

    Returns
    -------
    int
        -1, or the first row that holds a value that is not finite, or a label that is not 0 <= label < classes.
    """
    limit = CLIP_SD * grid
    for i in range(inputs.shape[0]):
        bad = labels[i] < 0 or labels[i] >= classes
        for f in range(inputs.shape[1]):
            x = inputs[i, f]
            bad |= not (abs(x) < np.inf)
            v = np.rint((x - mean[f]) / scale[f] * grid)
            v = min(v, limit)
            v = max(v, -limit)
            standard[i, f] = v / grid
            thin[i, f] = np.float32(v / grid)
        if bad:
            return i
        norms[i] = exact_dot(standard, i, standard, i)
    return -1


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _five_least(values: Any, count: int, least: Any) -> None:
    """The five least of the first `count` float32 values, ascending, into least (5,); no branch to guess.

    The flags only allow minima in any order: no value is a NaN, and a zero's sign doesn't matter.
    """
    a = b = c = d = e = _SINGLE_INF
    for place in range(count):
        x = values[place]
        a, x = min(a, x), max(a, x)
        b, x = min(b, x), max(b, x)
        c, x = min(c, x), max(c, x)
        d, x = min(d, x), max(d, x)
        e = min(e, x)
    least[0], least[1], least[2], least[3], least[4] = a, b, c, d, e


@njit(cache=True, nogil=True)
def _padded(count: int) -> int:
    """Rows of a block of which `count` are wanted, as `rough_products` takes them."""
    return 1 if count <= 1 else -(-count // ROWS_AT_ONCE) * ROWS_AT_ONCE


@njit(cache=True, nogil=True)
def neighbours(
    thin: Any,
    standard: Any,
    norms: Any,
    labels: Any,
    reference: Any,
    reference_norms: Any,
    bounds: Any,
    longest: float,
    columns: Any,
    own: Any,
    own_first: Any,
    own_index: Any,
    other: Any,
) -> None:
    """Exact squared distances to the 5th nearest and the nearest row of the predicted class, and to the nearest other.

    Products |y|^2 - 2 x.y in single precision, whose bits may depend on batch and machine, only propose: every
    reference row that could be a wanted one within the bound of their error (Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, section 3.1) is measured again, exactly. Standardised values are clipped and on a grid,
    so that nothing overflows or is too small for single precision. Of equal distances the first row counts. Reference
    rows are sorted by class, class c in bounds[c]:bounds[c + 1]. Where the predicted class has no reference rows, its
    distance is that of the nearest other and its index -1; where no other class has, the other distance is the own one.

    Parameters
    ----------
    thin : float32 (n, d)
        The standardised rows, rounded.
    standard, norms : float64 (n, d), (n,)
    labels : int32 (n,)
    reference, reference_norms : float64 (r, d), (r,)
    bounds : int64 (k + 1,)
    longest : float
        Length of the longest reference row.
    columns : float32 (c, d + 1, COLUMNS)
        The reference rows y as columns: -2 y, and |y|^2, which is infinite beyond r. Their number is r rounded up to a
        multiple of `TILE_ROWS`.
    own, own_first, other : float64 (n,), filled
    own_index : int64 (n,), filled
        The nearest row of the predicted class.
    """
    n, d = standard.shape
    r, tiles = reference.shape[0], columns.shape[0] * COLUMNS // TILE_ROWS
    width = tiles * TILE_ROWS
    block_rows = min(_padded(n), BLOCK_ROWS)
    full = np.zeros((block_rows, d + 1), dtype=np.float32)
    rough = np.empty((block_rows, tiles, TILE_ROWS), dtype=np.float32)
    flat = rough.reshape(block_rows, width)
    # Products with the class's own rows, and room for what `at_most` reads beyond them.
    mine = np.full(width + MASK_VALUES, _SINGLE_INF, dtype=np.float32)
    lows = np.empty((tiles, TILE_GROUPS), dtype=np.float32)
    lanes, least = np.empty(COLUMNS, dtype=np.float32), np.empty(OWN_RANK, dtype=np.float32)
    found, near = np.empty(width + 1, dtype=np.int64), np.empty(width + 1, dtype=np.float32)
    best = np.empty(OWN_RANK, dtype=np.float64)
    for start in range(0, n, block_rows):
        count = min(block_rows, n - start)
        for b in range(count):
            for f in range(d):
                full[b, f] = thin[start + b, f]
            full[b, d] = _SINGLE_ONE
        rough_products(full, 0, columns, rough[: _padded(count)])
        for b in range(count):
            i = start + b
            low, high = bounds[labels[i]], bounds[labels[i] + 1]
            # (d + 4) u (2 |x||y| + |y|^2) for d + 1 terms, the casts and that of a limit; twice, and some slack.
            doubt = 2.2 * SINGLE_ROUNDOFF * (d + 5) * longest * (2.0 * math.sqrt(norms[i]) + longest)
            last = min(OWN_RANK, high - low) - 1
            mine_first = mine_fifth = nearest_other = np.inf
            where = -1
            if last >= 0:
                groups = -(-(high - low) // COLUMNS)
                for j in range(high - low):
                    mine[j] = flat[b, low + j]
                    flat[b, low + j] = _SINGLE_INF
                for j in range(high - low, groups * COLUMNS):
                    mine[j] = _SINGLE_INF
                # Columns are dealt out to lanes; the 5th smallest of the lanes' minima is at least the 5th smallest of
                # all, as five lanes have one that is no larger.
                lane_minima(mine, 0, groups, lanes, 0)
                _five_least(lanes, COLUMNS, least)
                limit = np.float32(least[last] + doubt)
                candidates = 0
                for at in range(0, groups * COLUMNS, MASK_VALUES):
                    word = at_most(mine, at, limit)
                    if groups * COLUMNS - at < MASK_VALUES:
                        word &= (_ONE << np.uint64(groups * COLUMNS - at)) - _ONE
                    candidates = places_of(word, at, found, candidates)
                # Only what may be the nearest or the 5th nearest is measured: what is less than the 5th least product
                # by more than the doubt is surely nearer.
                for m in range(candidates):
                    near[m] = mine[found[m]]
                _five_least(near, candidates, least)
                first, fifth = least[0] + doubt, least[last]
                nearer, measured = 0, 0
                for m in range(candidates):
                    x, j = near[m], found[m]
                    surely = x < fifth - doubt
                    nearer += surely
                    near[measured], found[measured] = x, j
                    measured += (x <= first) | ((x <= fifth + doubt) & (not surely))
                best[:] = np.inf
                for m in range(measured):
                    x, j = near[m], low + found[m]
                    e = reference_norms[j] - 2.0 * exact_dot(standard, i, reference, j)
                    if x <= first and (e < mine_first or (e == mine_first and j < where)):
                        mine_first, where = e, j
                    if not x < fifth - doubt and x <= fifth + doubt and e < best[OWN_RANK - 1]:
                        k = OWN_RANK - 1
                        while k > 0 and best[k - 1] > e:
                            best[k] = best[k - 1]
                            k -= 1
                        best[k] = e
                mine_fifth = best[last - nearer]
            if high - low < r:
                limit = np.float32(least_of(rough, b, lows) + doubt)
                for m in range(columns_within(rough, b, lows, limit, found)):
                    e = reference_norms[found[m]] - 2.0 * exact_dot(standard, i, reference, found[m])
                    nearest_other = min(nearest_other, e)
            else:
                nearest_other = mine_fifth
            if last < 0:
                mine_first = mine_fifth = nearest_other
            own_index[i] = where
            own[i] = max(norms[i] + mine_fifth, 0.0)
            own_first[i] = max(norms[i] + mine_first, 0.0)
            other[i] = max(norms[i] + nearest_other, 0.0)


@njit(cache=True, nogil=True)
def log_ratio(own: Any, other: Any, floor: float, out: Any) -> None:
    """ln((own + floor) / (other + floor)) of distances (n,)."""
    for i in range(own.shape[0]):
        out[i] = steady_log((own[i] + floor) / (other[i] + floor))


@njit(cache=True, nogil=True)
def residual(standard: Any, labels: Any, means: Any, bases: Any, ranks: Any, out: Any) -> None:
    """Length of what remains of a row after projection on its predicted class's basis.

    standard (n, d), means (k, d), bases (k, d, q) orthonormal columns, of which ranks (k,) int64 are in use, out (n,).
    """
    d, q = bases.shape[1], bases.shape[2]
    part = np.empty(q, dtype=np.float64)
    for i in range(standard.shape[0]):
        c = labels[i]
        part[:] = 0.0
        total = 0.0
        for f in range(d):
            x = standard[i, f] - means[c, f]
            total += x * x
            for j in range(q):
                part[j] += x * bases[c, f, j]
        for j in range(ranks[c]):
            total -= part[j] * part[j]
        out[i] = math.sqrt(total) if total > 0.0 else 0.0


@njit(cache=True, nogil=True)
def whitened_length(standard: Any, labels: Any, means: Any, factors: Any, out: Any) -> None:
    """Length of (row - mean) times the predicted class's matrix.

    standard (n, d), means (k, d), factors (k, d, q), out (n,).
    """
    d, q = factors.shape[1], factors.shape[2]
    part = np.empty(q, dtype=np.float64)
    for i in range(standard.shape[0]):
        c = labels[i]
        part[:] = 0.0
        for f in range(d):
            x = standard[i, f] - means[c, f]
            for j in range(q):
                part[j] += x * factors[c, f, j]
        total = 0.0
        for j in range(q):
            total += part[j] * part[j]
        out[i] = math.sqrt(total)


@njit(cache=True, nogil=True)
def forest_depth(inputs: Any, features: Any, thresholds: Any, leaves: Any, depth: int, out: Any) -> None:
    """Summed leaf values over complete trees of one depth; a row goes right where row[feature] > threshold.

    inputs (n, d) float32, features (t, 2**depth - 1) uint16, thresholds (t, 2**depth - 1) float32,
    leaves (t, 2**depth) float64, out (n,) float64. Each row adds its leaves in the order of the trees.

    Eight rows go side by side, in names of their own: the compiler keeps names in registers, but not an array.
    """
    n = inputs.shape[0]
    inner = np.uint64((1 << depth) - 1)
    out[:] = 0.0
    for start in range(0, n, TREE_BLOCK_ROWS):
        stop = min(n, start + TREE_BLOCK_ROWS)
        for t in range(features.shape[0]):
            i = start
            while i + TREE_LANES <= stop:
                a = b = c = d = e = f = g = h = np.uint64(0)
                for _ in range(depth):
                    a = a + a + _ONE + np.uint64(inputs[i, features[t, a]] > thresholds[t, a])
                    b = b + b + _ONE + np.uint64(inputs[i + 1, features[t, b]] > thresholds[t, b])
                    c = c + c + _ONE + np.uint64(inputs[i + 2, features[t, c]] > thresholds[t, c])
                    d = d + d + _ONE + np.uint64(inputs[i + 3, features[t, d]] > thresholds[t, d])
                    e = e + e + _ONE + np.uint64(inputs[i + 4, features[t, e]] > thresholds[t, e])
                    f = f + f + _ONE + np.uint64(inputs[i + 5, features[t, f]] > thresholds[t, f])
                    g = g + g + _ONE + np.uint64(inputs[i + 6, features[t, g]] > thresholds[t, g])
                    h = h + h + _ONE + np.uint64(inputs[i + 7, features[t, h]] > thresholds[t, h])
                out[i] += leaves[t, a - inner]
                out[i + 1] += leaves[t, b - inner]
                out[i + 2] += leaves[t, c - inner]
                out[i + 3] += leaves[t, d - inner]
                out[i + 4] += leaves[t, e - inner]
                out[i + 5] += leaves[t, f - inner]
                out[i + 6] += leaves[t, g - inner]
                out[i + 7] += leaves[t, h - inner]
                i += TREE_LANES
            while i < stop:
                a = np.uint64(0)
                for _ in range(depth):
                    a = a + a + _ONE + np.uint64(inputs[i, features[t, a]] > thresholds[t, a])
                out[i] += leaves[t, a - inner]
                i += 1


@njit(cache=True, nogil=True)
def isolation(depths: Any, denominator: float, offset: float, out: Any) -> None:
    """2 ** (-depth / denominator) + offset (Liu et al. 2008, equation 2, as scikit-learn and PyOD shift it)."""
    for i in range(depths.shape[0]):
        out[i] = steady_exp2(-depths[i] / denominator) + offset


@njit(cache=True, nogil=True)
def violations(
    inputs: Any,
    low: Any,
    high: Any,
    width: Any,
    learned_low: Any,
    learned_high: Any,
    learned_width: Any,
    constant: Any,
    whole: Any,
    groups: Any,
    group_bounds: Any,
    tolerance: float,
    out: Any,
) -> None:
    """What each feature adds to the sum of violations.

    inputs (n, d); per feature (d,): stated range low, high (infinite where there is none) and its width, learned range
    and its width, constant bool (learned_low is then the only value seen), whole bool. groups int64: columns of the
    one-hot groups one after another, group g in group_bounds[g]:group_bounds[g + 1]. out (n, d), filled.
    """
    for i in range(inputs.shape[0]):
        for f in range(inputs.shape[1]):
            x = inputs[i, f]
            stated = max(low[f] - x, x - high[f]) / width[f] - tolerance
            seen = max(learned_low[f] - x, x - learned_high[f]) / learned_width[f]
            part = max(0.0, stated)
            if constant[f]:
                part += PATTERN_WEIGHT if seen > tolerance else 0.0
            else:
                part += max(0.0, seen)
            if whole[f] and abs(x - np.rint(x)) > tolerance:
                part += 1.0
            out[i, f] = min(VIOLATION_CAP, part)
        for g in range(group_bounds.shape[0] - 1):
            hot, total = 0, 0.0
            for k in range(group_bounds[g], group_bounds[g + 1]):
                x = inputs[i, groups[k]]
                hot += 1 if abs(x) > tolerance else 0
                total += x
            if hot != 1 or abs(total - 1.0) > tolerance:
                out[i, groups[group_bounds[g]]] += 1.0


@njit(cache=True, nogil=True)
def row_sums(parts: Any, out: Any) -> None:
    """Sums of rows (n, d), from left to right."""
    for i in range(parts.shape[0]):
        total = 0.0
        for f in range(parts.shape[1]):
            total += parts[i, f]
        out[i] = total


@njit(cache=True, nogil=True)
def at_least(ascending: Any, x: float) -> int:
    """How many of the ascending values (m,) are >= x, by a binary search that never waits for a branch."""
    base, size = 0, ascending.shape[0]
    while size > 1:
        half = size >> 1
        base = base + half if ascending[base + half - 1] < x else base
        size -= half
    if size == 1 and ascending[base] < x:
        base += 1
    return int(ascending.shape[0]) - base


@njit(cache=True, nogil=True)
def conformal_ranks(scores: Any, labels: Any, centres: Any, spreads: Any, calibration: Any, out: Any) -> None:
    """Number of calibration scores that are >= each score, after normalisation by predicted class.

    scores (n, D), centres and spreads (k, D), calibration (D, m) ascending, out (n, D) int32.
    """
    for j in range(scores.shape[1]):
        ascending = calibration[j]
        for i in range(scores.shape[0]):
            c = labels[i]
            out[i, j] = at_least(ascending, (scores[i, j] - centres[c, j]) / spreads[c, j])


@njit(cache=True, nogil=True)
def fuse(ranks: Any, surprise: Any, weights: Any, calibration: Any, fused: Any, rank: Any) -> None:
    """Weighted sum of -ln p over detectors, and the number of calibration sums that are >= it.

    surprise (m + 1,) is -ln((1 + r) / (m + 1)) by rank; weights (D,); calibration (c,) ascending.
    """
    for i in range(ranks.shape[0]):
        total = 0.0
        for j in range(ranks.shape[1]):
            total += weights[j] * surprise[ranks[i, j]]
        fused[i] = total
        rank[i] = at_least(calibration, total)


@njit(cache=True, nogil=True)
def mix64(value: Any) -> Any:
    """Finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection of 64-bit words that mixes every bit."""
    z = np.uint64(value)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def codes(
    inputs: Any,
    products: Any,
    scales: Any,
    keys: Any,
    bits_a_feature: int,
    code: Any,
    sketch: Any,
    simhash: Any,
    row_hash: Any,
) -> None:
    """The small forms of a row that histories keep.

    Parameters
    ----------
    inputs : float64 (n, d)
        Raw rows.
    products : float64 (n, 12 + 64)
        Standardised rows times the code's projection and the planes of the sign hash; exact, as both lie on the grid.
    scales : float64 (12,)
        Code steps a standard deviation.
    keys : uint64 (d,)
        A secret for each feature.
    bits_a_feature : int
        1 or 2.
    code : int8 (n, 12), filled
    sketch : uint32 (n,), filled
        One or two hashed bits a feature, so that few differing bits mean few differing features.
    simhash : uint64 (n,), filled
        Signs of 64 random projections (Charikar 2002).
    row_hash : uint64 (n,), filled
        Of the raw row's bytes; both zeros are one. The features' keyed hashes are added, so their order costs nothing.
    """
    d = inputs.shape[1]
    raw = inputs.view(np.uint64)
    for i in range(inputs.shape[0]):
        mark = np.uint32(0)
        whole = np.uint64(0)
        for f in range(d):
            word = raw[i, f] if inputs[i, f] != 0.0 else np.uint64(0)
            hashed = mix64(word ^ keys[f])
            whole += hashed
            for b in range(bits_a_feature):
                bit = (hashed >> np.uint64(63 - b)) & np.uint64(1)
                mark ^= np.uint32(bit << np.uint64((f * bits_a_feature + b) % 32))
        whole = mix64(whole)
        part, plane = products[i, :CODE_DIMS], products[i, CODE_DIMS:]
        for j in range(CODE_DIMS):
            v = np.rint(part[j] * scales[j])
            v = 127.0 if v > 127.0 else max(v, -127.0)
            code[i, j] = np.int8(v)
        signs = np.uint64(0)
        for j in range(64):
            if plane[j] > 0.0:
                signs |= np.uint64(1) << np.uint64(j)
        simhash[i] = signs
        sketch[i] = mark
        row_hash[i] = whole


@njit(cache=True, nogil=True)
def popcount32(value: Any) -> Any:
    """Number of set bits (the compiler turns this into one instruction)."""
    v = np.uint32(value)
    v = v - ((v >> np.uint32(1)) & np.uint32(0x55555555))
    v = (v & np.uint32(0x33333333)) + ((v >> np.uint32(2)) & np.uint32(0x33333333))
    v = (v + (v >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.int32((np.uint32(v * np.uint32(0x01010101))) >> np.uint32(24))


@intrinsic
def popcount8(typing: Any, value: Any) -> Any:
    """Number of set bits of a byte, as a byte: the processor counts 16 to 64 of them at once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint8(types.uint8), generate


@njit(cache=True, nogil=True)
def differing_bits(word: Any, planes: Any, m: int, out: Any) -> None:
    """Number of bits in which a 64-bit word differs from each of m others.

    planes (8, w) uint8: byte p of word k in [p, k], w >= m; out (w,) uint8, filled up to m.
    """
    w = np.uint64(word)
    m0, m1 = np.uint8(w), np.uint8(w >> np.uint64(8))
    m2, m3 = np.uint8(w >> np.uint64(16)), np.uint8(w >> np.uint64(24))
    m4, m5 = np.uint8(w >> np.uint64(32)), np.uint8(w >> np.uint64(40))
    m6, m7 = np.uint8(w >> np.uint64(48)), np.uint8(w >> np.uint64(56))
    p0, p1, p2, p3 = planes[0], planes[1], planes[2], planes[3]
    p4, p5, p6, p7 = planes[4], planes[5], planes[6], planes[7]
    for k in range(m):
        low = popcount8(np.uint8(m0 ^ p0[k])) + popcount8(np.uint8(m1 ^ p1[k]))
        low += popcount8(np.uint8(m2 ^ p2[k])) + popcount8(np.uint8(m3 ^ p3[k]))
        high = popcount8(np.uint8(m4 ^ p4[k])) + popcount8(np.uint8(m5 ^ p5[k]))
        high += popcount8(np.uint8(m6 ^ p6[k])) + popcount8(np.uint8(m7 ^ p7[k]))
        out[k] = np.uint8(low + high)


@njit(cache=True, nogil=True)
def sketch_rank(sketch: Any, reference: Any, out: Any) -> None:
    """Number of differing bits to the 5th nearest reference sketch; 32 where there are fewer than 5.

    sketch (n,) uint32; reference (4, r) uint8: byte p of sketch k in [p, k]; out (n,) int32, filled.
    """
    r = reference.shape[1]
    blocks = (r + COUNT_ROWS - 1) // COUNT_ROWS
    differing = np.full(blocks * COUNT_ROWS, np.uint8(255), dtype=np.uint8)
    p0, p1, p2, p3 = reference[0], reference[1], reference[2], reference[3]
    for i in range(sketch.shape[0]):
        s = sketch[i]
        m0, m1 = np.uint8(s), np.uint8(s >> np.uint32(8))
        m2, m3 = np.uint8(s >> np.uint32(16)), np.uint8(s >> np.uint32(24))
        for k in range(r):
            low = popcount8(np.uint8(m0 ^ p0[k])) + popcount8(np.uint8(m1 ^ p1[k]))
            high = popcount8(np.uint8(m2 ^ p2[k])) + popcount8(np.uint8(m3 ^ p3[k]))
            differing[k] = np.uint8(low + high)
        least, most = 0, 32
        while least < most:
            middle = (least + most) >> 1
            limit = np.uint8(middle)
            near = 0
            for b in range(blocks):
                some: Any = np.uint8(0)
                for k in range(COUNT_ROWS):
                    some = np.uint8(some + np.uint8(differing[b * COUNT_ROWS + k] <= limit))
                near += some
            if near >= OWN_RANK:
                most = middle
            else:
                least = middle + 1
        out[i] = least


def byte_planes(words: NDArray[Any]) -> NDArray[np.uint8]:
    """(b, n) bytes of words (n,) of b bytes, the lowest first."""
    lowest_first = np.ascontiguousarray(words).astype(words.dtype.newbyteorder("<"))
    return np.ascontiguousarray(lowest_first.view(np.uint8).reshape(len(words), words.dtype.itemsize).T)


def empty_codes(n: int) -> tuple[NDArray[np.int8], NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint64]]:
    """Arrays for `codes` to fill."""
    return (
        np.empty((n, CODE_DIMS), dtype=np.int8),
        np.empty(n, dtype=np.uint32),
        np.empty(n, dtype=np.uint64),
        np.empty(n, dtype=np.uint64),
    )


def warm_up() -> None:
    """Compile, or load from the cache, with the types that the detectors and the ensemble pass."""
    n, d, k, m = 2, 3, 2, 4
    inputs, standard = np.zeros((n, d)), np.empty((n, d))
    thin, norms = np.zeros((n, d), dtype=np.float32), np.empty(n)
    labels = np.zeros(n, dtype=np.int32)
    column, ones = np.zeros(d), np.ones(d)
    prepare(inputs, labels, column, ones, 1.0, k, standard, thin, norms)
    own, other, index = np.empty(n), np.empty(n), np.empty(n, dtype=np.int64)
    bounds = np.array([0, 1, 2], dtype=np.int64)
    flat = np.zeros((TILE_ROWS, d + 1), dtype=np.float32)
    flat[n:, -1] = np.inf
    columns = packed(flat)
    neighbours(thin, standard, norms, labels, standard, norms, bounds, 1.0, columns, own, norms.copy(), index, other)
    out = np.empty(n)
    log_ratio(own, other, 1.0, out)
    residual(standard, labels, np.zeros((k, d)), np.zeros((k, d, 1)), np.ones(k, dtype=np.int64), out)
    whitened_length(standard, labels, np.zeros((k, d)), np.zeros((k, d, d)), out)
    node = np.zeros((1, 1), dtype=np.uint16)
    forest_depth(thin, node, np.zeros((1, 1), dtype=np.float32), np.zeros((1, 2)), 1, out)
    isolation(out, 1.0, 0.0, own)
    flags, none = np.zeros(d, dtype=np.bool_), np.zeros(0, dtype=np.int64)
    limits = (column, ones, ones, column, ones, ones, flags, flags)
    violations(inputs, *limits, none, np.zeros(1, dtype=np.int64), 1e-6, standard)
    row_sums(standard, out)
    ranks = np.zeros((n, d), dtype=np.int32)
    conformal_ranks(inputs, labels, np.zeros((k, d)), np.ones((k, d)), np.zeros((d, m)), ranks)
    fuse(ranks, np.zeros(m + 1), ones, np.zeros(m), out, np.empty(n, dtype=np.int32))
    code, sketch, simhash, row_hash = empty_codes(n)
    keys = np.zeros(d, dtype=np.uint64)
    codes(inputs, np.zeros((n, CODE_DIMS + 64)), np.ones(CODE_DIMS), keys, 1, code, sketch, simhash, row_hash)
    sketch_rank(sketch, byte_planes(sketch), np.empty(n, dtype=np.int32))
    differing_bits(np.uint64(1), byte_planes(simhash), n, np.empty(n, dtype=np.uint8))
