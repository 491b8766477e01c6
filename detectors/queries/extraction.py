"""Extraction: distances between a client's queries that are not those of natural inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.conformal import MAD_TO_SD
from detectors.contract import Reference, View
from detectors.kernels import exact, histories
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.view import correct_rows, feature_scales

#: Distances that the test is over; the paper's begins at as many.
DISTANCES = 100
#: The test is made at every tenth distance.
EVERY = 10
#: Rows of the growing sets, all classes together; the paper's have no bound.
KEPT_ROWS = 48
#: Coefficients of Royston's approximation of the outer weights, from the constant up.
_LAST = (0.0, 0.221157, -0.147981, -2.071190, 4.434685, -2.706056)
_LAST_BUT_ONE = (0.0, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633)
#: Dimensions that rows are kept in; rows of more features are projected to so many.
MOST_DIMS = 64
#: Steps a standard deviation of what is kept; 16 bits reach 64 of them.
STEPS = 511.0
#: Clients that the fit simulates, of so many rows each at most.
CLIENTS, CLIENT_ROWS = 40, 400
#: The deviation of W is not taken for smaller.
LEAST_DEVIATION = 1e-3
#: Fewest values that weights are made for: so many of `DISTANCES` lie within three deviations (Chebyshev).
LEAST_VALUES = 80


class Extraction:
    """Squared deviation of Shapiro and Wilk's W, over the client's last 100 minimum distances, from what is usual.

    Each query's distance to the nearest of a growing set of the client's queries of the same predicted class counts. A
    query joins the set when its distance exceeds the class's threshold, the largest mean less one deviation so far.
    Distances of natural queries have one shape, those of synthetic ones, made from each other by steps of a fixed
    length, another. The paper takes the first for normal; in tables whose distances have long tails the second are
    nearer to normal. So the fit learns the usual W, in deviations from its median, from rows of the reference in any
    order, and both directions count. The row's score is that of its client; 0 before the hundredth distance.

    Differences to the paper: distances are between standardised rows, of more than 64 features between random
    projections to 64; the sets hold the last 48 rows (the paper's grow without a bound), the test the last 100
    distances (all); W is compared with the usual one; and its threshold is the calibration's.

    Blind to: a client of fewer than about 100 queries; an extraction that asks natural rows; a model that is stolen
    through many accounts.

    References
    ----------
    Juuti, Szyller, Marchal & Asokan, "PRADA: Protecting Against DNN Model Stealing Attacks", EuroS&P 2019, algorithm 3.
    Weights by Royston, "Approximating the Shapiro-Wilk W-test for non-normality", Statistics and Computing 2, 1992.
    """

    name = "extraction"

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn the usual W from clients that send rows of the reference in any order."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        width = kept.inputs.shape[1]
        drawn = rng.normal(size=(width, MOST_DIMS)) / np.sqrt(MOST_DIMS) if width > MOST_DIMS else np.eye(width)
        self.projection_ = exact.on_grid(drawn, exact.grid_for(width))
        self._classes, self._weights = len(schema.classes), weights()
        mean, scale = feature_scales(kept.inputs)
        points = self._points(exact.standardise(kept.inputs, mean, scale, exact.grid_for(width)))
        count = min(CLIENT_ROWS, len(kept))
        drawn = np.concatenate([rng.permutation(len(kept))[:count] for _ in range(CLIENTS)])
        place = np.arange(len(drawn), dtype=np.int64)
        found = self._statistics(
            np.ascontiguousarray(points[drawn]),
            np.ascontiguousarray(kept.labels[drawn], dtype=np.int32),
            place // count,
            (place % count == 0).astype(np.uint8),
            np.zeros(CLIENTS, dtype=self.record),
        )
        usual = found[found > 0.0]
        self.centre_, self.deviation_ = 0.0, LEAST_DEVIATION
        if len(usual):
            self.centre_ = float(np.median(usual))
            self.deviation_ = max(MAD_TO_SD * float(np.median(np.abs(usual - self.centre_))), LEAST_DEVIATION)
        return self

    @property
    def record(self) -> np.dtype[Any]:
        """What is kept of a client: about 7 KiB of 64 features and 10 classes."""
        classes = self._classes
        return np.dtype(
            [
                ("statistic", "f8"),
                ("sums", "f8", (classes,)),
                ("squares", "f8", (classes,)),
                ("least", "f8", (classes,)),
                ("counts", "u4", (classes,)),
                ("seen", "u4"),
                ("kept", "u4"),
                ("distances", "f4", (DISTANCES,)),
                ("points", "i2", (KEPT_ROWS, self.projection_.shape[1])),
                ("labels", "i4", (KEPT_ROWS,)),
            ],
            align=True,
        )

    def advance(
        self, view: View, slots: NDArray[np.int64], fresh: NDArray[np.uint8], records: NDArray[Any]
    ) -> NDArray[np.float64]:
        """(n,) squared deviations of the clients' W after each row."""
        found = self._statistics(self._points(view.standardised), view.batch.labels, slots, fresh, records)
        return np.where(found > 0.0, np.square((found - self.centre_) / self.deviation_), 0.0)

    def _points(self, standardised: NDArray[np.float64]) -> NDArray[np.int16]:
        steps = np.clip(np.rint(STEPS * (standardised @ self.projection_)), -32767.0, 32767.0)
        return np.ascontiguousarray(steps, dtype=np.int16)

    def _statistics(
        self,
        points: NDArray[np.int16],
        labels: NDArray[np.int32],
        slots: NDArray[np.int64],
        fresh: NDArray[np.uint8],
        records: NDArray[Any],
    ) -> NDArray[np.float64]:
        """(n,) 1 - W of the clients after each row; 0 where there is none yet."""
        out = np.empty(len(points))
        histories.extraction(points, STEPS, labels, slots, fresh, records, self._weights, EVERY, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """What the test says."""
        return (
            "distances between this client's queries of one class are not spread as between natural inputs: they may "
            "be made to copy the model"
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The projection, how many classes there are, and the usual 1 - W: median and deviation."""
        return {
            "projection": self.projection_,
            "classes": np.array([self._classes], dtype=np.int64),
            "usual": np.array([self.centre_, self.deviation_]),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made.projection_ = stored(arrays, "projection", np.float64, schema.width, min(schema.width, MOST_DIMS))
        made._classes, made._weights = len(schema.classes), weights()
        usual = stored(arrays, "usual", np.float64, 2)
        made.centre_, made.deviation_ = float(usual[0]), float(within("usual", usual[1:], LEAST_DEVIATION, np.inf)[0])
        if int(stored(arrays, "classes", np.int64, 1)[0]) != made._classes:
            raise ValueError(f"extraction was fitted for {arrays['classes'][0]} classes, not {made._classes}")
        return made


def weights() -> NDArray[np.float64]:
    """(101, 101) weights of ascending values by their number, from `LEAST_VALUES` on; others are 0.

    W is the squared weighted sum over the sum of squared deviations.
    """
    from scipy.special import ndtri

    found = np.zeros((DISTANCES + 1, DISTANCES + 1))
    for n in range(LEAST_VALUES, DISTANCES + 1):
        scores = ndtri((np.arange(1, n + 1) - 0.375) / (n + 0.25))
        square, root = float(scores @ scores), 1.0 / np.sqrt(n)
        last = np.polynomial.polynomial.polyval(root, _LAST) + scores[-1] / np.sqrt(square)
        next_to = np.polynomial.polynomial.polyval(root, _LAST_BUT_ONE) + scores[-2] / np.sqrt(square)
        rest = square - 2.0 * scores[-1] ** 2 - 2.0 * scores[-2] ** 2
        line = scores / np.sqrt(rest / (1.0 - 2.0 * last**2 - 2.0 * next_to**2))
        line[[0, 1, -2, -1]] = -last, -next_to, next_to, last
        found[n, :n] = line
    return found
