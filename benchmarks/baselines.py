"""Published defences against query attacks, as their papers describe them: what Vedette is measured against.

Each gives a statistic for every row of a stream or of an account, larger where it is more suspicious, so that it can be
judged at its published threshold and at one that keeps the same budget of false pages.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.stats import shapiro

from detectors.kernels.rows import popcount32

Rows = NDArray[np.float64]

#: Blacklight: levels of a feature, step of the quantisation, hashes kept, and matching ones that raise an alarm.
LEVELS, STEP, KEPT, MATCHES = 255, 50, 50, 25
#: Windows of Blacklight: for small inputs, and for large pictures such as MNIST's.
WINDOW, LARGE_WINDOW, LARGE = 20, 50, 400
#: Odd multiplier of the rolling hash (2**64 over the golden ratio).
BASE = 0x9E3779B97F4A7C15
#: Words of 32 bits for Blacklight's most frequent hashes.
COMMON_WORDS = 8
#: Stateful detection: neighbours, and the share of benign rows below the threshold.
NEIGHBOURS, NEAR_SHARE = 50, 0.001
#: Rows of one block of distances.
BLOCK = 512
#: PRADA: distances needed, rows between two tests, standard deviations kept, and the published threshold.
LEAST_DISTANCES, EVERY, TRIM, NORMALITY = 100, 10, 3.0, 0.95
#: Most distances that one test reads.
MOST_DISTANCES = 5000


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words well mixed (splitmix64); the paper takes SHA-256, whose secrecy no figure here depends on."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))


def fingerprints(rows: Rows, salt: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n, 50) largest different hashes of the windows of rows (n, d) in [0, 1]; 0 where a row has fewer.

    References
    ----------
    Li, Shan, Wenger, Zhang, Zheng & Zhao, "Blacklight: Scalable Defense for Neural Networks against Query-Based
    Black-Box Attacks", USENIX Security 2022, section 5 (quantised by 50, windows of 20 or 50 by 1, 50 hashes kept).
    """
    width = rows.shape[1]
    window = min(LARGE_WINDOW if width >= LARGE else WINDOW, max(1, width // 2))
    powers, inverse = (
        np.array([pow(BASE, sign * place, 1 << 64) for place in range(width)], dtype=np.uint64) for sign in (1, -1)
    )
    found = np.zeros((len(rows), KEPT), dtype=np.uint64)
    for start in range(0, len(rows), BLOCK):
        levels = (np.rint(LEVELS * rows[start : start + BLOCK]).astype(np.int64) + salt) % LEVELS
        steps = (levels // STEP * STEP + 1).astype(np.uint64)
        sums = np.zeros((len(steps), width + 1), dtype=np.uint64)
        np.cumsum(steps * powers, axis=1, out=sums[:, 1:])
        hashes = _mixed((sums[:, window:] - sums[:, :-window]) * inverse[: width - window + 1])
        hashes.sort(axis=1)
        hashes[:, 1:][hashes[:, 1:] == hashes[:, :-1]] = 0
        hashes.sort(axis=1)
        kept = hashes[:, ::-1][:, :KEPT]
        found[start : start + BLOCK, : kept.shape[1]] = kept
    return found


@njit(cache=True)
def _most_shared(
    ids: NDArray[np.int64], count: int, bits: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Most hashes that each row shares with one earlier row, exact copies of it left out, and among all.

    Hashes that many rows have (zeros beside zeros) have a bit each, `bits` (count,), and are counted by words; the
    others, -1 there, by lists of the rows that have them.
    """
    n, width = ids.shape
    head = np.full(count, -1, dtype=np.int64)
    following = np.full(n * width, -1, dtype=np.int64)
    masks = np.zeros((COMMON_WORDS, n), dtype=np.uint32)
    shared = np.zeros(n, dtype=np.int64)
    best = np.zeros(n, dtype=np.int64)
    other = np.zeros(n, dtype=np.int64)
    for row in range(n):
        size = 0
        for place in range(width):
            word = ids[row, place]
            if word < 0:
                continue
            size += 1
            bit = bits[word]
            if bit >= 0:
                masks[bit >> 5, row] |= np.uint32(1) << np.uint32(bit & 31)
                continue
            at = head[word]
            while at >= 0:
                shared[at // width] += 1
                at = following[at]
        for part in range(COMMON_WORDS):
            mine = masks[part, row]
            if mine != np.uint32(0):
                for past in range(row):
                    shared[past] += popcount32(mine & masks[part, past])
        for past in range(row):
            if shared[past] > best[row]:
                best[row] = shared[past]
            if shared[past] < size and shared[past] > other[row]:
                other[row] = shared[past]
            shared[past] = 0
        for place in range(width):
            word = ids[row, place]
            if word >= 0 and bits[word] < 0:
                following[row * width + place] = head[word]
                head[word] = row * width + place
    return best, other


def blacklight(rows: Rows, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of its hashes that each row (n, d) of a stream has in common with one earlier row of anybody.

    Second, the same with earlier rows whose fingerprint is all the same left out: what a calibration on real traffic
    needs, as exact copies are part of it. The published alarm is at half of 50.
    """
    salt = rng.integers(0, LEVELS, size=(rows.shape[1],))
    words = fingerprints(rows, salt)
    names, ids = np.unique(words, return_inverse=True)
    ids = ids.reshape(words.shape).astype(np.int64) - int(names[0] == 0)
    rows_with = np.bincount(ids[ids >= 0], minlength=len(names))
    common = np.argsort(rows_with, kind="stable")[::-1][: 32 * COMMON_WORDS]
    bits = np.full(len(names), -1, dtype=np.int64)
    bits[common] = np.arange(len(common))
    best, other = _most_shared(ids, len(names), bits)
    full = np.maximum(1, (ids >= 0).sum(axis=1))
    return best / full, other / full


def mean_distances(rows: Rows, enough: float = 0.0) -> NDArray[np.float64]:
    """(n,) mean L2 distance of each row of one account to the 50 nearest earlier ones; infinity before there are 50.

    Stops after the block in which a distance falls below `enough`. The buffer is not cleared, which changes nothing
    until the first alarm. The paper compares codes of a learned encoder; this compares rows, in standard deviations.

    References
    ----------
    Chen, Carlini & Wagner, "Stateful Detection of Black-Box Adversarial Attacks", SPAI 2020, section 4.
    """
    found = np.full(len(rows), np.inf)
    squares = np.square(rows).sum(axis=1)
    for start in range(0, len(rows), BLOCK):
        end = min(start + BLOCK, len(rows))
        apart = squares[start:end, None] + squares[:end] - 2 * rows[start:end] @ rows[:end].T
        apart[np.arange(end) >= np.arange(start, end)[:, None]] = np.inf
        if end > NEIGHBOURS:
            near = np.partition(apart, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
            found[start:end] = np.sqrt(np.maximum(near, 0.0)).mean(axis=1)
        if found[start:end].min() < enough:
            break
    return found


def normality(rows: Rows, labels: NDArray[np.int32], enough: float = 0.0) -> NDArray[np.float64]:
    """(n,) Shapiro-Wilk's W of the least distances within predicted classes of one account; infinity where not tested.

    Stops where W falls below `enough`.

    References
    ----------
    Juuti, Szyller, Marchal & Asokan, "PRADA: Protecting Against DNN Model Stealing Attacks", EuroS&P 2019, algorithm 3.
    """
    found = np.full(len(rows), np.inf)
    grown: dict[int, list[int]] = {}
    own: dict[int, list[float]] = {}
    bound: dict[int, float] = {}
    distances: list[float] = []
    for row, label in enumerate(labels.tolist()):
        if label not in grown:
            grown[label], own[label], bound[label] = [row], [0.0], 0.0
            distances.append(0.0)
        else:
            least = float(np.sqrt(np.square(rows[grown[label]] - rows[row]).sum(axis=1).min()))
            distances.append(least)
            if least > bound[label]:
                grown[label].append(row)
                own[label].append(least)
                bound[label] = max(bound[label], float(np.mean(own[label]) - np.std(own[label])))
        if len(distances) >= LEAST_DISTANCES and row % EVERY == 0:
            sample = np.array(distances[-MOST_DISTANCES:])
            kept = sample[np.abs(sample - sample.mean()) <= TRIM * sample.std()]
            if len(kept) >= LEAST_DISTANCES // 2 and np.ptp(kept) > 0:
                found[row] = shapiro(kept).statistic
            if found[row] < enough:
                break
    return found
