"""Kernels over single rows: neighbours, residuals, trees, p-values, codes and sketches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: Neighbour of the predicted class whose distance is the yardstick.
OWN_RANK = 5
#: Rows of a tree's walk that go side by side.
TREE_LANES = 16
#: Dimensions of the secret random projection.
CODE_DIMS = 12
#: Standard deviations of a projected value that int8 spans on each side.
CODE_RANGE_SD = 6.0


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def nearest(
    products: Any,
    norms: Any,
    labels: Any,
    reference_norms: Any,
    bounds: Any,
    own: Any,
    own_index: Any,
    other: Any,
) -> None:
    """Squared distance to the 5th nearest row of the predicted class, the nearest's index, and the nearest other's.

    products (n, r) exact inner products; reference rows are sorted by class, class c in bounds[c]:bounds[c + 1].
    The flags only let minima be taken in any order, which is exact.
    """
    r = products.shape[1]
    best = np.empty(OWN_RANK, dtype=np.float64)
    for i in range(products.shape[0]):
        c = labels[i]
        low, high = bounds[c], bounds[c + 1]
        row = products[i]
        best[:] = np.inf
        where = -1
        for j in range(low, high):
            d = reference_norms[j] - 2.0 * row[j]
            if d < best[OWN_RANK - 1]:
                if d < best[0]:
                    where = j
                k = OWN_RANK - 1
                while k > 0 and best[k - 1] > d:
                    best[k] = best[k - 1]
                    k -= 1
                best[k] = d
        least = np.inf
        for j in range(low):
            d = reference_norms[j] - 2.0 * row[j]
            least = d if d < least else least
        for j in range(high, r):
            d = reference_norms[j] - 2.0 * row[j]
            least = d if d < least else least
        last = min(OWN_RANK, high - low) - 1
        own_index[i] = where
        own[i] = max(norms[i] + best[last], 0.0) if last >= 0 else np.inf
        other[i] = max(norms[i] + least, 0.0)


@njit(cache=True, nogil=True)
def log_ratio(own: Any, other: Any, floor: float, out: Any) -> None:
    """ln((sqrt(own) + floor) / (sqrt(other) + floor)) of squared distances; 0 where one of them is unknown."""
    for i in range(own.shape[0]):
        if math.isinf(own[i]) or math.isinf(other[i]):
            out[i] = 0.0
        else:
            out[i] = math.log((math.sqrt(own[i]) + floor) / (math.sqrt(other[i]) + floor))


@njit(cache=True, nogil=True)
def residual(rows: Any, labels: Any, means: Any, bases: Any, out: Any) -> None:
    """Length of what remains of a row after projection on its predicted class's basis (d, q)."""
    d, q = bases.shape[1], bases.shape[2]
    part = np.empty(q, dtype=np.float64)
    for i in range(rows.shape[0]):
        c = labels[i]
        part[:] = 0.0
        total = 0.0
        for f in range(d):
            x = rows[i, f] - means[c, f]
            total += x * x
            for j in range(q):
                part[j] += x * bases[c, f, j]
        for j in range(q):
            total -= part[j] * part[j]
        out[i] = math.sqrt(total) if total > 0.0 else 0.0


@njit(cache=True, nogil=True)
def forest_depth(rows: Any, features: Any, thresholds: Any, leaves: Any, depth: int, out: Any) -> None:
    """Summed leaf values over complete trees of one depth; a row goes right where row[feature] > threshold.

    rows (n, d) float32, features and thresholds (t, 2**depth - 1), leaves (t, 2**depth), out (n,) float64.
    """
    n = rows.shape[0]
    place = np.zeros(TREE_LANES, dtype=np.int64)
    inner = (1 << depth) - 1
    out[:] = 0.0
    for t in range(features.shape[0]):
        feature, threshold, leaf = features[t], thresholds[t], leaves[t]
        for start in range(0, n, TREE_LANES):
            lanes = min(TREE_LANES, n - start)
            for lane in range(lanes):
                place[lane] = 0
            for _ in range(depth):
                for lane in range(lanes):
                    at = place[lane]
                    right = 1 if rows[start + lane, feature[at]] > threshold[at] else 0
                    place[lane] = 2 * at + 1 + right
            for lane in range(lanes):
                out[start + lane] += leaf[place[lane] - inner]


@njit(cache=True, nogil=True)
def conformal_ranks(scores: Any, labels: Any, centres: Any, spreads: Any, calibration: Any, out: Any) -> None:
    """Number of calibration scores that are >= each score, after normalisation by predicted class.

    scores (n, D), centres and spreads (k, D), calibration (D, m) ascending, out (n, D) int32.
    """
    m = calibration.shape[1]
    for i in range(scores.shape[0]):
        c = labels[i]
        for j in range(scores.shape[1]):
            s = (scores[i, j] - centres[c, j]) / spreads[c, j]
            low, high = 0, m
            while low < high:
                middle = (low + high) >> 1
                if calibration[j, middle] < s:
                    low = middle + 1
                else:
                    high = middle
            out[i, j] = m - low


@njit(cache=True, nogil=True)
def fuse(ranks: Any, surprise: Any, weights: Any, calibration: Any, fused: Any, rank: Any) -> None:
    """Weighted sum of -ln p over detectors, and the number of calibration sums that are >= it.

    surprise (m + 1,) is -ln((1 + r) / (m + 1)) by rank; weights (D,); calibration (c,) ascending.
    """
    m = calibration.shape[0]
    for i in range(ranks.shape[0]):
        total = 0.0
        for j in range(ranks.shape[1]):
            total += weights[j] * surprise[ranks[i, j]]
        low, high = 0, m
        while low < high:
            middle = (low + high) >> 1
            if calibration[middle] < total:
                low = middle + 1
            else:
                high = middle
        fused[i] = total
        rank[i] = m - low


@njit(cache=True, nogil=True)
def mix64(value: Any) -> Any:
    """Finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection of 64-bit words that mixes every bit."""
    z = np.uint64(value)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def codes(
    rows: Any,
    inputs: Any,
    projection: Any,
    scales: Any,
    simhash_planes: Any,
    salt: Any,
    bits_a_feature: int,
    code: Any,
    sketch: Any,
    simhash: Any,
    row_hash: Any,
) -> None:
    """The small forms of a row that histories keep.

    code (n, 12) int8: random projection of the standardised row in steps of its spread; sketch (n,) uint32: one or two
    hashed bits a feature, so that few differing bits mean few differing features; simhash (n,) uint64: signs of 64 random
    projections (Charikar 2002); row_hash (n,) uint64 of the raw row's bytes.
    """
    d = rows.shape[1]
    raw = inputs.view(np.uint64)
    part = np.empty(CODE_DIMS, dtype=np.float64)
    plane = np.empty(64, dtype=np.float64)
    for i in range(rows.shape[0]):
        part[:] = 0.0
        plane[:] = 0.0
        mark = np.uint32(0)
        whole = np.uint64(salt)
        for f in range(d):
            x = rows[i, f]
            for j in range(CODE_DIMS):
                part[j] += x * projection[f, j]
            for j in range(64):
                plane[j] += x * simhash_planes[f, j]
            word = raw[i, f]
            if inputs[i, f] == 0.0:
                word = np.uint64(0)
            hashed = mix64(word ^ mix64(np.uint64(salt) + np.uint64(f + 1)))
            whole = mix64(whole ^ hashed)
            for b in range(bits_a_feature):
                bit = (hashed >> np.uint64(b)) & np.uint64(1)
                mark ^= np.uint32(bit << np.uint64((f * bits_a_feature + b) % 32))
        for j in range(CODE_DIMS):
            v = np.rint(part[j] * scales[j])
            v = 127.0 if v > 127.0 else (-127.0 if v < -127.0 else v)
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


@njit(cache=True, nogil=True)
def popcount64(value: Any) -> Any:
    """Number of set bits of a 64-bit word."""
    v = np.uint64(value)
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((v * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def sketch_rank(sketch: Any, reference: Any, out: Any) -> None:
    """Number of differing bits to the 5th nearest reference sketch."""
    counts = np.empty(reference.shape[0], dtype=np.int32)
    tally = np.zeros(33, dtype=np.int32)
    for i in range(sketch.shape[0]):
        s = sketch[i]
        for j in range(reference.shape[0]):
            counts[j] = popcount32(s ^ reference[j])
        tally[:] = 0
        for j in range(reference.shape[0]):
            tally[counts[j]] += 1
        seen = 0
        bits = 32
        for b in range(33):
            seen += tally[b]
            if seen >= OWN_RANK:
                bits = b
                break
        out[i] = bits


def empty_codes(n: int) -> tuple[NDArray[np.int8], NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint64]]:
    """Arrays for `codes` to fill."""
    return (
        np.empty((n, CODE_DIMS), dtype=np.int8),
        np.empty(n, dtype=np.uint32),
        np.empty(n, dtype=np.uint64),
        np.empty(n, dtype=np.uint64),
    )
