"""Trajectory: how a client's successive queries move, and whether they keep to the boundary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Batch, Reference, View
from detectors.kernels import exact, histories
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.view import BatchView, ReferenceFrame, correct_rows

#: Dimensions that rows are projected to before they are remembered.
DIMS = 12
#: Queries of a client that a new one is compared with.
LAST_ROWS = 8
#: Weight of the newest query in the means.
SHARE = 1.0 / 16.0
#: Queries before a client is judged.
LEAST_ROWS = 8
#: Means of a client: nearness of the parent, edge, turn, change of the edge.
MEANS = 4
#: Simulated clients of the fit, each of so many held out rows.
CLIENTS, CLIENT_ROWS = 40, 60
#: No deviation of a mean is taken for smaller.
LEAST_DEVIATION = 1e-3


class Trajectory:
    """Squared deviation of how a client moves from how rows of the reference follow each other by chance.

    Each query is compared with its parent, the nearest of the client's last eight. Four quantities are averaged with
    exponentially falling weights: how near the parent is (a half where the step is as long as the distance to the 5th
    nearest reference row); how near the row is to the boundary (own over own and other class's distance); the cosine
    between the step and the step that led to the parent; how the nearness to the boundary changes along the step. Of
    the first two only more than usual counts. The row's score is that of its client; 0 before its eighth query.

    Blind to: queries kept apart, far from each other and the boundary; what eight other queries separate. Sensors and
    what-if users look like attackers to it.

    References
    ----------
    The angle of consecutive differences: Park, McLaughlin & Alouani, "Mind the Gap: Detecting Black-box Adversarial
    Attacks in the Making through Query Update Analysis" (GWAD), CVPR 2025, whose Delta Similarity it is; theirs are
    classified by their histogram, here they are averaged, and from the query's parent. The distance of a query to its
    predecessors: Chen, Carlini & Wagner, "Stateful Detection of Black-Box Adversarial Attacks", 2019.
    """

    name = "trajectory"

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn what the means are when held out rows follow each other in any order."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        width = kept.inputs.shape[1]
        self.projection_ = exact.on_grid(rng.normal(size=(width, DIMS)) / np.sqrt(DIMS), exact.grid_for(width))
        order = rng.permutation(len(kept))
        half = max(1, len(kept) // 2)
        known, held = np.sort(order[:half]), order[half:] if len(order) > half else order
        frame = ReferenceFrame.fit(Reference(kept.inputs[known], kept.labels[known]), len(schema.classes), rng)
        drawn = rng.choice(held, size=CLIENTS * CLIENT_ROWS)
        place = np.arange(len(drawn), dtype=np.int64)
        view = BatchView(
            frame,
            Batch(
                inputs=np.ascontiguousarray(kept.inputs[drawn]),
                labels=kept.labels[drawn],
                clients=(1 + place // CLIENT_ROWS).astype(np.uint64),
                times=place,
                offsets=place,
                rows=np.zeros(len(place), dtype=np.int32),
            ),
        )
        slots, fresh = place // CLIENT_ROWS, (place % CLIENT_ROWS == 0).astype(np.uint8)
        means = self._means(view, slots, fresh, np.zeros(CLIENTS, dtype=self.record))
        means = means[~np.isnan(means).any(axis=1)]
        self.centre_, self.deviation_ = means.mean(axis=0), np.maximum(means.std(axis=0), LEAST_DEVIATION)
        return self

    @property
    def record(self) -> np.dtype[Any]:
        """What is kept of a client: 872 bytes."""
        return np.dtype(
            [
                ("means", "f8", (MEANS,)),
                ("edges", "f8", (LAST_ROWS,)),
                ("points", "f4", (LAST_ROWS, DIMS)),
                ("steps", "f4", (LAST_ROWS, DIMS)),
                ("count", "u4"),
            ],
            align=True,
        )

    def advance(
        self, view: View, slots: NDArray[np.int64], fresh: NDArray[np.uint8], records: NDArray[Any]
    ) -> NDArray[np.float64]:
        """(n,) squared deviations of the clients' means after each row."""
        normal = (self._means(view, slots, fresh, records) - self.centre_) / self.deviation_
        normal[:, :2] = np.maximum(normal[:, :2], 0.0)
        squares = np.square(normal)
        return np.asarray(np.nan_to_num(squares[:, 0] + squares[:, 1] + squares[:, 2] + squares[:, 3], nan=0.0))

    def explain(self, view: View, row: int) -> str:
        """Where the row stands."""
        own, other = float(view.own_distance[row]), float(view.other_distance[row])
        return (
            "this client's queries follow each other as a search does; the last one lies at "
            f"{own:.3g} of its own class and {other:.3g} of another"
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Projection, and centre and deviations of the means."""
        return {"projection": self.projection_, "centre": self.centre_, "deviation": self.deviation_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made.projection_ = stored(arrays, "projection", np.float64, schema.width, DIMS)
        made.centre_ = stored(arrays, "centre", np.float64, MEANS)
        made.deviation_ = within("deviation", stored(arrays, "deviation", np.float64, MEANS), LEAST_DEVIATION, np.inf)
        return made

    def _means(
        self, view: View, slots: NDArray[np.int64], fresh: NDArray[np.uint8], records: NDArray[Any]
    ) -> NDArray[np.float64]:
        own, other = view.own_distance, view.other_distance
        total = own + other
        edges = np.divide(own, total, out=np.full(len(own), 0.5), where=total > 0.0)
        means = np.empty((len(own), MEANS))
        points = np.ascontiguousarray(view.standardised @ self.projection_, dtype=np.float32)
        histories.trajectory(points, edges, own, slots, fresh, records, SHARE, LEAST_ROWS, means)
        return means
