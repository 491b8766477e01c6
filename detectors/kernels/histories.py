"""Kernels of detectors that remember a client: its place in a table, and what each detector does with its record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from detectors.kernels.recency import KNOWN, use

#: Client id of rows without a sender (`contract.ANONYMOUS`).
_NOBODY = np.uint64(0)

_kernel: Callable[..., Any] = njit(cache=True, nogil=True, error_model="numpy")
_inner: Callable[..., Any] = njit(
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)


@_kernel
def places(senders: Any, table: Any, keys: Any, newer: Any, older: Any, scalars: Any, slots: Any, fresh: Any) -> None:
    """The slot of each row's client, in order, made the most recently used; -1 for rows without a sender.

    `fresh` marks rows at which the slot changes hands. The order of use, and so who is forgotten when, is that of the
    walk's histories with as much room.
    """
    for i in range(senders.shape[0]):
        slots[i], fresh[i] = -1, 0
        if senders[i] != _NOBODY:
            slot, happened = use(table, keys, newer, older, scalars, senders[i])
            slots[i], fresh[i] = slot, happened != KNOWN


@_inner
def _departure(record: Any, weights: Any, room: Any) -> float:
    """1 - W of Shapiro and Wilk over the distances of a full ring, those beyond three deviations left out."""
    size = record.distances.shape[0]
    mean = 0.0
    for k in range(size):
        mean += np.float64(record.distances[k])
    mean /= size
    square = 0.0
    for k in range(size):
        square += (np.float64(record.distances[k]) - mean) ** 2
    reach = 3.0 * np.sqrt(square / size)
    n = 0
    for k in range(size):
        x = np.float64(record.distances[k])
        if abs(x - mean) <= reach:
            at = n
            while at > 0 and room[at - 1] > x:
                room[at] = room[at - 1]
                at -= 1
            room[at] = x
            n += 1
    mean = 0.0
    for k in range(n):
        mean += room[k]
    mean /= n
    square = 0.0
    product = 0.0
    for k in range(n):
        square += (room[k] - mean) ** 2
        product += weights[n, k] * room[k]
    if square <= 0.0:
        return 1.0
    return max(0.0, 1.0 - product * product / square)


@_kernel
def extraction(
    points: Any, steps: float, labels: Any, slots: Any, fresh: Any, records: Any, weights: Any, every: int, out: Any
) -> None:
    """Advance the records of `detectors.queries.extraction` by rows in order; `out` has each client's statistic.

    Points are whole numbers of `steps` a standard deviation.
    """
    room = np.empty(weights.shape[0])
    for i in range(points.shape[0]):
        slot = slots[i]
        out[i] = 0.0
        if slot < 0:
            continue
        record = records[slot]
        if fresh[i]:
            record.seen = 0
            record.kept = 0
            record.statistic = 0.0
            for c in range(record.least.shape[0]):
                record.least[c] = 0.0
                record.counts[c] = 0
                record.sums[c] = 0.0
                record.squares[c] = 0.0
        label = labels[i]
        size = record.labels.shape[0]
        nearest = np.int64(-1)
        for k in range(min(np.int64(record.kept), size)):
            if record.labels[k] == label:
                square = np.int64(0)
                for f in range(points.shape[1]):
                    apart = np.int64(record.points[k, f]) - np.int64(points[i, f])
                    square += apart * apart
                if nearest < 0 or square < nearest:
                    nearest = square
        take = nearest < 0
        if not take:
            distance = np.sqrt(np.float64(nearest)) / steps
            record.distances[np.int64(record.seen) % record.distances.shape[0]] = distance
            record.seen += 1
            take = distance > record.least[label]
            if take:
                record.counts[label] += 1
                record.sums[label] += distance
                record.squares[label] += distance * distance
                count = np.float64(record.counts[label])
                mean = record.sums[label] / count
                spread = np.sqrt(max(0.0, record.squares[label] / count - mean * mean))
                record.least[label] = max(record.least[label], mean - spread)
            seen = np.int64(record.seen)
            if seen >= record.distances.shape[0] and seen % every == 0:
                record.statistic = _departure(record, weights, room)
        if take:
            at = np.int64(record.kept) % size
            for f in range(points.shape[1]):
                record.points[at, f] = points[i, f]
            record.labels[at] = label
            record.kept += 1
        out[i] = record.statistic


@_kernel
def trajectory(
    points: Any, edges: Any, scales: Any, slots: Any, fresh: Any, records: Any, share: float, least: int, means: Any
) -> None:
    """Advance the records of `detectors.queries.trajectory` by rows in order; `means` (n, 4) has each client's means.

    The row's parent is the nearest of the client's last queries; means are exponential. They are NaN until the client
    has sent `least` rows.
    """
    for i in range(points.shape[0]):
        slot = slots[i]
        for k in range(4):
            means[i, k] = np.nan
        if slot < 0:
            continue
        record = records[slot]
        if fresh[i]:
            record.count = 0
            for k in range(4):
                record.means[k] = 0.0
        size = record.points.shape[0]
        count = np.int64(record.count)
        parent, nearest = -1, np.inf
        for k in range(min(count, size)):
            square = 0.0
            for f in range(points.shape[1]):
                square += (np.float64(record.points[k, f]) - np.float64(points[i, f])) ** 2
            if square < nearest:
                parent, nearest = k, square
        at = count % size
        moved, turn = 0.0, 0.0
        if parent >= 0:
            before = 0.0
            for f in range(points.shape[1]):
                step = np.float64(points[i, f]) - np.float64(record.points[parent, f])
                turn += step * np.float64(record.steps[parent, f])
                before += np.float64(record.steps[parent, f]) ** 2
            length = np.sqrt(before * nearest)
            turn = turn / length if length > 0.0 else 0.0
            moved = edges[i] - np.float64(record.edges[parent])
            scale = scales[i] * scales[i]
            values = (scale / (scale + nearest) if scale + nearest > 0.0 else 1.0, edges[i], turn, moved)
            weight = max(share, 1.0 / np.float64(count))
            for k in range(4):
                record.means[k] += weight * (values[k] - record.means[k])
        for f in range(points.shape[1]):
            record.steps[at, f] = points[i, f] - record.points[parent, f] if parent >= 0 else np.float32(0.0)
            record.points[at, f] = points[i, f]
        record.edges[at] = edges[i]
        record.count += 1
        if count + 1 >= least:
            for k in range(4):
                means[i, k] = record.means[k]
