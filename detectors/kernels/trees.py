"""Kernels of tree ensembles and small networks as arrays: leaves, distances between sets of leaves, answers.

Compiled when first used: the default ensemble needs none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from detectors.kernels.rows import steady_exp2, steady_log

_LOG2_E = 1.4426950408889634
#: 2**-1000 is nothing beside 1.
_LEAST_EXPONENT = -1000.0


@njit(cache=True, nogil=True)
def leaves(inputs: Any, feature: Any, threshold: Any, left: Any, right: Any, leaf: Any, roots: Any, out: Any) -> None:
    """The leaf that each row reaches in each tree; a row goes right where row[feature] > threshold.

    inputs float64 (n, d); per node (m,): feature, left, right int32, threshold float64, leaf int32 its number or -1 at
    an inner node; roots int32 (t,); out int32 (n, t), filled.
    """
    for i in range(inputs.shape[0]):
        for t in range(roots.shape[0]):
            node = roots[t]
            while leaf[node] < 0:
                node = right[node] if inputs[i, feature[node]] > threshold[node] else left[node]
            out[i, t] = leaf[node]


@njit(cache=True, nogil=True)
def cells(
    inputs: Any,
    feature: Any,
    threshold: Any,
    left: Any,
    right: Any,
    leaf: Any,
    roots: Any,
    low: Any,
    high: Any,
    next_low: Any,
    next_high: Any,
    low_tree: Any,
    high_tree: Any,
) -> None:
    """The box in which no tree gives another leaf than at the row: low < x <= high; and the box without one tree each.

    Inputs as in `leaves`. low, high float64 (n, d), filled with infinities before; next_low, next_high (n, d) likewise:
    the bounds without the tree low_tree, high_tree int32 (n, d) that sets low, high.
    """
    for i in range(inputs.shape[0]):
        for t in range(roots.shape[0]):
            node = roots[t]
            while leaf[node] < 0:
                f = feature[node]
                edge = threshold[node]
                if inputs[i, f] > edge:
                    node = right[node]
                    if edge > low[i, f]:
                        if low_tree[i, f] != t:
                            next_low[i, f] = low[i, f]
                        low[i, f] = edge
                        low_tree[i, f] = t
                    elif low_tree[i, f] != t and edge > next_low[i, f]:
                        next_low[i, f] = edge
                else:
                    node = left[node]
                    if edge < high[i, f]:
                        if high_tree[i, f] != t:
                            next_high[i, f] = high[i, f]
                        high[i, f] = edge
                        high_tree[i, f] = t
                    elif high_tree[i, f] != t and edge < next_high[i, f]:
                        next_high[i, f] = edge


@njit(cache=True, nogil=True)
def nearest_leaves(found: Any, labels: Any, reference: Any, bounds: Any, out: Any) -> None:
    """Numbers of trees in which a row's leaf differs from that of the k nearest reference rows of its class.

    found uint16 (n, t); reference uint16 (r, t), class c in rows bounds[c]:bounds[c + 1]; out int32 (n, k), filled,
    ascending; t where the class has fewer rows.
    """
    trees = reference.shape[1]
    k = out.shape[1]
    out[:] = trees
    for i in range(found.shape[0]):
        mine = found[i]
        for j in range(bounds[labels[i]], bounds[labels[i] + 1]):
            theirs = reference[j]
            differing = np.int32(0)
            for t in range(trees):
                differing += np.int32(mine[t] != theirs[t])
            if differing < out[i, k - 1]:
                at = k - 1
                while at > 0 and out[i, at - 1] > differing:
                    out[i, at] = out[i, at - 1]
                    at -= 1
                out[i, at] = differing


@njit(cache=True, nogil=True)
def add_leaves(found: Any, values: Any, columns: Any, out: Any) -> None:
    """Add to scores (n, k) what each tree's leaf says.

    found int32 (n, t), values (leaves,), columns int32 (t,), out (n, k).
    """
    for i in range(found.shape[0]):
        for t in range(found.shape[1]):
            out[i, columns[t]] += values[found[i, t]]


@njit(cache=True, nogil=True)
def layer(inputs: Any, weights: Any, bias: Any, rectified: bool, out: Any) -> None:
    """inputs (n, d) @ weights (d, u) + bias (u,), added up in the order of features; out (n, u)."""
    units = weights.shape[1]
    for i in range(inputs.shape[0]):
        sums = out[i]
        for j in range(units):
            sums[j] = bias[j]
        for f in range(weights.shape[0]):
            x = inputs[i, f]
            row = weights[f]
            for j in range(units):
                sums[j] += x * row[j]
        if rectified:
            for j in range(units):
                sums[j] = max(sums[j], 0.0)


@njit(cache=True, nogil=True)
def log_softmax(logits: Any, floor: float) -> None:
    """ln of probabilities, none below `floor`, in place."""
    for i in range(logits.shape[0]):
        most = -np.inf
        for c in range(logits.shape[1]):
            most = max(most, logits[i, c])
        total = 0.0
        for c in range(logits.shape[1]):
            total += steady_exp2(max((logits[i, c] - most) * _LOG2_E, _LEAST_EXPONENT))
        shift = most + steady_log(total)
        for c in range(logits.shape[1]):
            logits[i, c] = max(logits[i, c] - shift, floor)


@njit(cache=True, nogil=True)
def divergence(answers: Any, known: Any, labels: Any, surrogate: Any, least: float, out: Any) -> None:
    """Add to out (n,) the Kullback-Leibler divergence of the answer from a surrogate's.

    answers (n, k) probabilities, looked at where known (n,) is true; elsewhere the label is all that was answered.
    surrogate (n, k) ln of probabilities; probabilities below `least` add nothing.
    """
    for i in range(labels.shape[0]):
        if known[i]:
            total = 0.0
            for c in range(answers.shape[1]):
                p = answers[i, c]
                if p > least:
                    total += p * (steady_log(p) - surrogate[i, c])
            out[i] += max(total, 0.0)
        else:
            out[i] -= surrogate[i, labels[i]]
