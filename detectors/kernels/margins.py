"""Kernels of the surrogate and the intent test: standard form, sign-flipped copies, activations, margins, links.

The products themselves are BLAS's: both factors lie on the grid of exact products, so their order can't matter. What is
done here are single operations a value, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from detectors.kernels.exact import CLIP_SD
from detectors.kernels.rows import mix64

#: Increment of splitmix64 (Steele, Lea & Flood 2014).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def standard_rows(inputs: Any, mean: Any, scale: Any, grid: float, out: Any) -> None:
    """Rows in standard deviations, rounded to 1/grid and clipped, as `exact.standardise` gives them.

    inputs (n, d), mean and scale (d,), out (n, d).
    """
    limit = CLIP_SD * grid
    for i in range(inputs.shape[0]):
        for f in range(inputs.shape[1]):
            v = np.rint((inputs[i, f] - mean[f]) / scale[f] * grid)
            v = min(v, limit)
            v = max(v, -limit)
            out[i, f] = v / grid


@njit(cache=True, nogil=True)
def flipped_rows(
    rows: Any,
    origin: Any,
    low: Any,
    high: Any,
    seed: Any,
    first: int,
    mean: Any,
    scale: Any,
    grid: float,
    out: Any,
) -> None:
    """Rows whose displacements from the origin have the signs of one random vector a copy, in standard form.

    Copy c has its signs from the words mix64(seed + (c w + j) golden), w words of 64 bits a copy: a function of the
    seed alone.

    Parameters
    ----------
    rows : float64 (m, d)
    origin, low, high : float64 (d,)
        A flipped value is clipped to low..high.
    seed : uint64
    first : int
        Number of the first copy to make.
    mean, scale : float64 (d,)
    grid : float
    out : float64 (k m, d), filled
        Copies first .. first + k - 1 one after another.
    """
    m, d = rows.shape
    words = (d + 63) // 64
    limit = CLIP_SD * grid
    sign = np.empty(d, dtype=np.float64)
    for c in range(out.shape[0] // m):
        for f in range(d):
            place = np.uint64((first + c) * words + (f >> 6) + 1)
            word = mix64(np.uint64(seed) + place * GOLDEN)
            sign[f] = 1.0 if (word >> np.uint64(f & 63)) & np.uint64(1) else -1.0
        for i in range(m):
            for f in range(d):
                x = origin[f] + sign[f] * (rows[i, f] - origin[f])
                x = min(x, high[f])
                x = max(x, low[f])
                v = np.rint((x - mean[f]) / scale[f] * grid)
                v = min(v, limit)
                v = max(v, -limit)
                out[c * m + i, f] = v / grid


@njit(cache=True, nogil=True)
def activate(hidden: Any, bias: Any, grid: float) -> None:
    """max(0, hidden + bias) in place, rounded to 1/grid and clipped. hidden (n, h), bias (h,)."""
    limit = CLIP_SD * grid
    for i in range(hidden.shape[0]):
        for j in range(hidden.shape[1]):
            v = np.rint((hidden[i, j] + bias[j]) * grid)
            v = max(0.0, v)
            v = min(v, limit)
            hidden[i, j] = v / grid


@njit(cache=True, nogil=True)
def label_margins(logits: Any, bias: Any, labels: Any, out: Any) -> None:
    """Logit of the given class less the largest other one. logits (n, k), bias (k,), labels (n,), out (n,)."""
    for i in range(logits.shape[0]):
        c = labels[i]
        best = -np.inf
        for j in range(logits.shape[1]):
            z = logits[i, j] + bias[j]
            best = z if j != c and z > best else best
        out[i] = logits[i, c] + bias[c] - best


@njit(cache=True, nogil=True)
def copy_means(values: Any, m: int, mean: Any, size: Any) -> None:
    """Mean, and mean absolute value, of every m values, added in order. values (k m,); mean and size (k,), filled."""
    for c in range(mean.shape[0]):
        total, absolute = 0.0, 0.0
        for i in range(c * m, (c + 1) * m):
            total += values[i]
            absolute += abs(values[i])
        mean[c] = total / m
        size[c] = absolute / m


@njit(cache=True, nogil=True)
def link(products: Any, norms: Any, labels: Any, parent: Any, squared: Any) -> float:
    """Nearest earlier row of every row, and the nearest pair of rows with different labels.

    products (m, m) and norms (m,): exact inner products and squared lengths. parent (m,) int64, filled: -1 for the
    first row. squared (m,) float64, filled: squared distance to the parent, 0 for the first row. Of equal distances
    the earliest row counts.

    Returns
    -------
    float
        Squared distance of the nearest pair of different labels; infinite where all labels are equal.
    """
    opposite = np.inf
    for i in range(norms.shape[0]):
        best, where = np.inf, -1
        for j in range(i):
            e = norms[i] + norms[j] - 2.0 * products[i, j]
            if e < best:
                best, where = e, j
            if labels[i] != labels[j] and e < opposite:
                opposite = e
        parent[i] = where
        squared[i] = best if where >= 0 else 0.0
    return opposite


@njit(cache=True, nogil=True)
def changed_features(rows: Any, bases: Any, which: Any, scale: Any, least: float, out: Any) -> None:
    """In how many features a row differs from its base by more than `least` standard deviations.

    rows (m, d), bases (b, d), which (m,) int64 place of each row's base or -1 for none, scale (d,), out (m,) int64.
    """
    for i in range(rows.shape[0]):
        count = 0
        if which[i] >= 0:
            for f in range(rows.shape[1]):
                count += 1 if abs(rows[i, f] - bases[which[i], f]) > least * scale[f] else 0
        out[i] = count


@njit(cache=True, nogil=True)
def components(parent: Any, cut: Any, out: Any) -> int:
    """Number the trees that remain when links are cut. parent (m,) int64, cut (m,) bool, out (m,) int64."""
    found = 0
    for i in range(parent.shape[0]):
        if parent[i] < 0 or cut[i]:
            out[i] = found
            found += 1
        else:
            out[i] = out[parent[i]]
    return found


def warm_up() -> None:
    """Compile, or load from the cache, with the types that the surrogate and the intent test pass."""
    n, d = 2, 3
    rows, column, ones = np.zeros((n, d)), np.zeros(d), np.ones(d)
    standard_rows(rows, column, ones, 1.0, np.empty((n, d)))
    flipped_rows(rows, column, column, ones, np.uint64(1), 0, column, ones, 1.0, np.empty((n, d)))
    activate(np.zeros((n, d)), column, 1.0)
    labels = np.zeros(n, dtype=np.int32)
    label_margins(np.zeros((n, d)), column, labels, np.empty(n))
    copy_means(np.zeros(n), 1, np.empty(n), np.empty(n))
    parent, cut, counts = np.empty(n, dtype=np.int64), np.zeros(n, dtype=np.bool_), np.empty(n, dtype=np.int64)
    link(np.zeros((n, n)), np.zeros(n), labels, parent, np.empty(n))
    changed_features(rows, rows, parent, ones, 1e-5, counts)
    components(parent, cut, counts)
