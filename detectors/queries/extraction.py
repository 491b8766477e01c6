"""Extraction: distances between a client's queries that are not those of natural inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import exact, histories
from detectors.schema import FeatureSchema
from detectors.stored import stored
from detectors.view import correct_rows

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
#: Fewest values that weights are made for: so many of `DISTANCES` lie within three deviations (Chebyshev).
LEAST_VALUES = 80


class Extraction:
    """1 - W of Shapiro and Wilk's test for normality over the client's last 100 minimum distances.

    Each query's distance to the nearest of a growing set of the client's queries of the same predicted class counts. A
    query joins the set when its distance exceeds the class's threshold, the largest mean less one deviation so far.
    Distances of natural queries are near to normal; those of synthetic ones, made from each other by steps of a fixed
    length, are not. The row's score is that of its client; 0 before the hundredth distance.

    Differences to the paper: distances are between standardised rows, of more than 64 features between random
    projections to 64; the sets hold the last 48 rows (the paper's grow without a bound), the test the last 100
    distances (all); and its threshold is the calibration's.

    Blind to: a client of fewer than about 100 queries; an extraction that asks natural rows; a model that is stolen
    through many accounts.

    References
    ----------
    Juuti, Szyller, Marchal & Asokan, "PRADA: Protecting Against DNN Model Stealing Attacks", EuroS&P 2019, algorithm 3.
    Weights by Royston, "Approximating the Shapiro-Wilk W-test for non-normality", Statistics and Computing 2, 1992.
    """

    name = "extraction"

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Draw the projection; nothing else is learned."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        width = kept.inputs.shape[1]
        drawn = rng.normal(size=(width, MOST_DIMS)) / np.sqrt(MOST_DIMS) if width > MOST_DIMS else np.eye(width)
        self.projection_ = exact.on_grid(drawn, exact.grid_for(width))
        self._classes, self._weights = len(schema.classes), weights()
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
        """(n,) statistics of the clients after each row."""
        out = np.empty(len(view.batch))
        steps = np.clip(np.rint(STEPS * (view.standardised @ self.projection_)), -32767.0, 32767.0)
        points = np.ascontiguousarray(steps, dtype=np.int16)
        histories.extraction(points, STEPS, view.batch.labels, slots, fresh, records, self._weights, EVERY, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """What the test says."""
        return (
            "distances between this client's queries of one class are not spread as between natural inputs: they may "
            "be made to copy the model"
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The projection, and how many classes there are."""
        return {"projection": self.projection_, "classes": np.array([self._classes], dtype=np.int64)}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made.projection_ = stored(arrays, "projection", np.float64, schema.width, min(schema.width, MOST_DIMS))
        made._classes, made._weights = len(schema.classes), weights()
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
