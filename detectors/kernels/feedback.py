"""Kernels of the feedback test: does a client's next move follow the answers to its last queries?

Everything is made of exact inner products, sums in a fixed order and single rounded operations, so that a verdict is
the same to the bit on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from detectors.kernels.rows import steady_log

#: Fewest pairs, and fewest of them whose answers differ, of which anything is said.
LEAST_PAIRS, LEAST_CHANGES = 8, 4
#: A difference of answers counts at most as so many times the median one.
CLIP_CHANGE = 2.0
#: A move is no move where it is shorter than so many times the pair's distance.
LEAST_MOVE = 3e-5
#: A probability is taken as at least this: beyond it lies nothing that a margin has to tell.
LEAST_PROBABILITY = 1e-6


@njit(cache=True, nogil=True)
def strongest(outputs: Any, labels: Any, own: Any, rival: Any) -> None:
    """The score of the predicted class, and the largest other one.

    NaN where a score of the row is not finite, or the class has none.

    outputs (n, k) with k >= 2, labels (n,); own and rival (n,), filled.
    """
    for i in range(outputs.shape[0]):
        c, best = labels[i], -np.inf
        fine = 0 <= c < outputs.shape[1]
        for j in range(outputs.shape[1]):
            x = outputs[i, j]
            fine = fine and np.isfinite(x)
            best = x if j != c and x > best else best
        own[i] = outputs[i, c] if fine else np.nan
        rival[i] = best if fine else np.nan


@njit(cache=True, nogil=True)
def answered_margins(own: Any, rival: Any, labels: Any, which: int, out: Any) -> bool:
    """Margin of one class by the model's own scores, and whether all members have some.

    Log odds where all scores lie in 0 .. 1, else plain differences. Of a member with another answer only its own margin
    is known: it counts as so far on the other side, which is exact of two classes.

    own, rival and labels (m,); out (m,), filled where the answer is True.
    """
    probable = True
    for i in range(own.shape[0]):
        if not (np.isfinite(own[i]) and np.isfinite(rival[i])):
            return False
        if own[i] < 0.0 or own[i] > 1.0 or rival[i] < 0.0 or rival[i] > 1.0:
            probable = False
    for i in range(own.shape[0]):
        if probable:
            margin = steady_log(max(own[i], LEAST_PROBABILITY) / max(rival[i], LEAST_PROBABILITY))
        else:
            margin = own[i] - rival[i]
        out[i] = margin if labels[i] == which else -margin
    return True


@njit(cache=True, nogil=True)
def _block(sums: Any, a: int, b: int, c: int, d: int) -> float:
    """Sum of the products of rows a .. b - 1 with rows c .. d - 1."""
    return (sums[b, d] - sums[a, d]) - (sums[b, c] - sums[a, c])


@njit(cache=True, nogil=True)
def _along(sums: Any, t: int, u: int, reach: int) -> float:
    """Inner product of the client's own steps around rows t and u: mean of the rows after less mean of those before."""
    m = sums.shape[0] - 1
    t_end, t_start, u_end, u_start = min(m, t + 1 + reach), max(0, t - reach), min(m, u + 1 + reach), max(0, u - reach)
    t_after, t_before = np.float64(t_end - t - 1), np.float64(t - t_start)
    u_after, u_before = np.float64(u_end - u - 1), np.float64(u - u_start)
    return (
        _block(sums, t + 1, t_end, u + 1, u_end) / (t_after * u_after)
        - _block(sums, t + 1, t_end, u_start, u) / (t_after * u_before)
        - _block(sums, t_start, t, u + 1, u_end) / (t_before * u_after)
        + _block(sums, t_start, t, u_start, u) / (t_before * u_before)
    )


@njit(cache=True, nogil=True)
def leanings(products: Any, parent: Any, squared: Any, reach: int, short_reach: int, onward: Any, closer: Any) -> float:
    """Towards which row of each pair (a row and its nearest earlier one) the client goes on.

    Parameters
    ----------
    products : float64 (m, m)
        Exact inner products of the rows, in order.
    parent, squared : (m,)
        Nearest earlier row of every row, and the squared distance (`margins.link`).
    reach, short_reach : int
        Rows before and after that tell where the client has been and where it goes; for `closer`.
    onward : float64 (m,), filled
        Cosine between the pair's step (from the earlier row to the later one) and the client's own, from the mean of
        the `reach` rows before to that of the `reach` rows after. NaN where there is no pair or no step.
    closer : float64 (m,), filled
        Cosine between the pair's step and the way from its middle to the mean of the `short_reach` rows after.

    Returns
    -------
    float
        How far chance goes in `agreement` of `onward` with a margin that changes evenly: sqrt(1 + k R^2 / D) of k
        pairs, R the length of the mean of the client's k directions and D the effective number of dimensions of its
        steps. 1 of a client without direction; large where one drifts in few dimensions.
    """
    m = squared.shape[0]
    sums = np.zeros((m + 1, m + 1))
    for i in range(m):
        run = 0.0
        for j in range(m):  # from the first row, so that sums over near rows don't cancel
            run += (products[i, j] - products[i, 0]) - (products[0, j] - products[0, 0])
            sums[i + 1, j + 1] = sums[i, j + 1] + run
    moved = np.zeros(m)
    for t in range(m):
        onward[t] = np.nan
        closer[t] = np.nan
        p = parent[t]
        if p < 0 or t == m - 1 or not squared[t] > 0.0:
            continue
        least = LEAST_MOVE * LEAST_MOVE * squared[t]
        way = _along(sums, t, t, reach)
        if way > least:
            moved[t] = np.sqrt(way)
            end, start = min(m, t + 1 + reach), max(0, t - reach)
            after, before = np.float64(end - t - 1), np.float64(t - start)
            along = (_block(sums, t, t + 1, t + 1, end) - _block(sums, p, p + 1, t + 1, end)) / after
            along -= (_block(sums, t, t + 1, start, t) - _block(sums, p, p + 1, start, t)) / before
            onward[t] = min(1.0, max(-1.0, along / np.sqrt(squared[t] * way)))
        end = min(m, t + 1 + short_reach)
        after = np.float64(end - t - 1)
        here = _block(sums, t, t + 1, t + 1, end) / after
        there = _block(sums, p, p + 1, t + 1, end) / after
        row, other = _block(sums, t, t + 1, t, t + 1), _block(sums, p, p + 1, p, p + 1)
        middle = (row + 2.0 * _block(sums, t, t + 1, p, p + 1) + other) / 4.0
        way = _block(sums, t + 1, end, t + 1, end) / (after * after) - (here + there) + middle
        if way > least:
            closer[t] = min(1.0, max(-1.0, (here - there - (row - other) / 2.0) / np.sqrt(squared[t] * way)))
    pairs, together, repeated = 0, 0.0, 0.0
    for t in range(m):
        if moved[t] == 0.0:
            continue
        pairs += 1
        p = parent[t]
        for u in range(m):
            if moved[u] > 0.0:
                q = parent[u]
                step = (products[t, u] - products[t, q]) - (products[p, u] - products[p, q])
                together += _along(sums, t, u, reach) / (moved[t] * moved[u])
                repeated += step * step / (squared[t] * squared[u])
    if pairs == 0:
        return 1.0
    count = np.float64(pairs)
    return np.sqrt(1.0 + max(0.0, together) * repeated / (count * count * count))


@njit(cache=True, nogil=True)
def agreement(leaning: Any, parent: Any, values: Any) -> float:
    """z of how much the client leans to the row of each pair with the smaller value: -sqrt(pairs) times correlation.

    leaning (m,) as `leanings` gives it; parent (m,); values (m,). 0 where too little is known.
    """
    m = leaning.shape[0]
    changes = np.empty(m)  # ascending
    pairs, different = 0, 0
    for t in range(m):
        if np.isfinite(leaning[t]):
            pairs += 1
            change = abs(values[t] - values[parent[t]])
            if change > 0.0:
                place = different
                while place > 0 and changes[place - 1] > change:
                    changes[place] = changes[place - 1]
                    place -= 1
                changes[place] = change
                different += 1
    if pairs < LEAST_PAIRS or different < LEAST_CHANGES:
        return 0.0
    limit = CLIP_CHANGE * (changes[(different - 1) // 2] + changes[different // 2]) / 2.0
    mean_leaning, mean_change = 0.0, 0.0
    for t in range(m):
        if np.isfinite(leaning[t]):
            mean_leaning += leaning[t]
            mean_change += min(limit, max(-limit, values[t] - values[parent[t]]))
    mean_leaning /= pairs
    mean_change /= pairs
    product, first, second = 0.0, 0.0, 0.0
    for t in range(m):
        if np.isfinite(leaning[t]):
            x = leaning[t] - mean_leaning
            y = min(limit, max(-limit, values[t] - values[parent[t]])) - mean_change
            product += x * y
            first += x * x
            second += y * y
    scale = np.sqrt(first * second)
    return -product / scale * np.sqrt(np.float64(pairs)) if scale > 0.0 else 0.0


@njit(cache=True, nogil=True)
def touched_features(rows: Any, base: Any, scale: Any, least: float) -> int:
    """Features in which two rows or more differ from the base by more than `least` standard deviations.

    rows (m, d); base and scale (d,).
    """
    found = 0
    for f in range(rows.shape[1]):
        count = 0
        for i in range(rows.shape[0]):
            count += 1 if abs(rows[i, f] - base[f]) > least * scale[f] else 0
            if count == 2:
                found += 1
                break
    return found


@njit(cache=True, nogil=True)
def two_valued_share(rows: Any, scale: Any, least: float) -> float:
    """Of the features that vary: the share that has two values only; 1 where none varies.

    Values are equal when they differ by at most `least` standard deviations. rows (m, d), scale (d,).
    """
    varying, two_valued = 0, 0
    for f in range(rows.shape[1]):
        first, second, levels = rows[0, f], 0.0, 1
        for i in range(rows.shape[0]):
            x = rows[i, f]
            if abs(x - first) <= least * scale[f]:
                continue
            if levels == 1:
                second, levels = x, 2
            elif abs(x - second) > least * scale[f]:
                levels = 3
                break
        varying += 1 if levels > 1 else 0
        two_valued += 1 if levels == 2 else 0
    return two_valued / varying if varying else 1.0


def warm_up() -> None:
    """Compile, or load from the cache, with the types that scoring and the intent test pass."""
    n = 3
    column, labels, parent = np.zeros(n), np.zeros(n, dtype=np.int32), np.array([-1, 0, 1])
    strongest(np.zeros((n, 2)), labels, np.empty(n), np.empty(n))
    answered_margins(column, column, labels, 0, np.empty(n))
    leanings(np.zeros((n, n)), parent, column, 1, 1, np.empty(n), np.empty(n))
    agreement(column, parent, column)
    touched_features(np.zeros((n, 2)), np.zeros(2), np.ones(2), 1e-5)
    two_valued_share(np.zeros((n, 2)), np.ones(2), 1e-5)
