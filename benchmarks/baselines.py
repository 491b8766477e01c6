"""Published defences against query attacks, as their papers describe them: what Vedette is measured against.

Each gives a statistic for every row of a stream or of an account, larger where it is more suspicious, so that it can be
judged at its published threshold and at one that keeps the same budget of false pages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.stats import shapiro

from detectors.inputs.isolation_forest import IsolationForest
from detectors.inputs.outliers.ecod import Ecod
from detectors.inputs.outliers.knn import Knn
from detectors.kernels import exact
from detectors.kernels.rows import popcount32
from detectors.view import feature_scales

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
#: Max-softmax: share of benign rows that it takes for odd where nothing else is said (the custom of "FPR at 95 % TPR").
DOUBTED = 0.05


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


@njit(cache=True)
def _least_distances(rows: Rows, classes: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(n,) distance of each row to the nearest kept row of its class; kept are the first and the far ones."""
    n, width = rows.shape
    kept = np.empty((count, n), dtype=np.int64)
    sizes = np.zeros(count, dtype=np.int64)
    means, squares, bounds = np.zeros(count), np.zeros(count), np.zeros(count)
    found = np.zeros(n)
    for row in range(n):
        label = classes[row]
        least = np.inf
        for at in range(sizes[label]):
            other = kept[label, at]
            total = 0.0
            for feature in range(width):
                apart = rows[row, feature] - rows[other, feature]
                total += apart * apart
                if total >= least:
                    break
            least = min(least, total)
        own = 0.0 if sizes[label] == 0 else np.sqrt(least)
        found[row] = own
        if sizes[label] == 0 or own > bounds[label]:
            kept[label, sizes[label]] = row
            sizes[label] += 1
            step = own - means[label]
            means[label] += step / sizes[label]
            squares[label] += step * (own - means[label])
            bounds[label] = max(bounds[label], means[label] - np.sqrt(squares[label] / sizes[label]))
    return found


def normality(rows: Rows, labels: NDArray[np.int32], enough: float = 0.0) -> NDArray[np.float64]:
    """(n,) Shapiro-Wilk's W of the least distances within predicted classes of one account; infinity where not tested.

    Stops where W falls below `enough`.

    References
    ----------
    Juuti, Szyller, Marchal & Asokan, "PRADA: Protecting Against DNN Model Stealing Attacks", EuroS&P 2019, algorithm 3.
    """
    found = np.full(len(rows), np.inf)
    if len(rows) < LEAST_DISTANCES:
        return found
    known, classes = np.unique(labels, return_inverse=True)
    distances = _least_distances(np.ascontiguousarray(rows), classes.astype(np.int64), len(known))
    for row in range(-(-(LEAST_DISTANCES - 1) // EVERY) * EVERY, len(rows), EVERY):
        sample = distances[max(0, row + 1 - MOST_DISTANCES) : row + 1]
        kept = sample[np.abs(sample - sample.mean()) <= TRIM * sample.std()]
        if len(kept) >= LEAST_DISTANCES // 2 and np.ptp(kept) > 0:
            found[row] = shapiro(kept).statistic
        if found[row] < enough:
            break
    return found


class Outliers:
    """Detectors of single rows, alone: PyOD's IForest, KNN and ECOD with its defaults, and the model's doubt.

    Scores are those of PyOD's `decision_function`, one row at a time for ECOD, by the compiled forms.

    Parameters
    ----------
    known : float64 (n, d)
        Rows that PyOD's detectors are fitted on.
    seed : int
        Of the forest.

    References
    ----------
    Liu, Ting & Zhou, "Isolation Forest", ICDM 2008; Ramaswamy, Rastogi & Shim, SIGMOD 2000 (KNN); Li et al., "ECOD",
    TKDE 2022; Zhao, Nasrullah & Li, "PyOD", JMLR 2019. Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and
    Out-of-Distribution Examples in Neural Networks", ICLR 2017 (max-softmax).
    """

    def __init__(self, known: Rows, seed: int) -> None:
        from pyod.models.ecod import ECOD
        from pyod.models.iforest import IForest
        from pyod.models.knn import KNN

        self.mean, self.scale = feature_scales(known)
        rows = self._standard(known)
        fitted = {"IForest": IForest(random_state=seed), "KNN": KNN(), "ECOD": ECOD()}
        for detector in fitted.values():
            detector.fit(rows)
        #: What PyOD takes for an outlier at its default contamination, .1.
        self.published = {name: float(detector.threshold_) for name, detector in fitted.items()}
        self._score: dict[str, Callable[[Rows], Rows]] = {
            "IForest": IsolationForest().compile(fitted["IForest"]).decision_function,
            "KNN": Knn().compile(fitted["KNN"]).decision_function,
            "ECOD": Ecod().compile(fitted["ECOD"]).decision_function,
        }

    def _standard(self, rows: Rows) -> Rows:
        return np.ascontiguousarray(exact.standardise(rows, self.mean, self.scale, exact.grid_for(rows.shape[1])))

    def scores(self, rows: Rows, outputs: Rows) -> dict[str, Rows]:
        """(n,) scores of rows (n, d) with the model's probabilities (n, K), by name."""
        standard = self._standard(rows)
        found = {name: score(standard) for name, score in self._score.items()}
        return found | {"max-softmax": -outputs.max(axis=1)}
