"""Whether a bundle's detectors would have seen a crafted row, and a trail of queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Trace
from detectors import bundle as bundles
from detectors.contract import ANONYMOUS, Batch, Level, Verdicts
from detectors.errors import BundleError, DetectorError
from detectors.schema import FeatureSchema
from detectors.scorer import Ensemble
from streams.errors import BundleMismatch

#: Time between two queries of an attacker, as told to the detectors.
QUERY_GAP_US = 1_000_000
#: The one client of a trail.
CLIENT = 1


@dataclass(frozen=True, slots=True)
class Trails:
    """What became of the queries of each start row (n,), each asked by a client of its own without a past.

    Attributes
    ----------
    ticket, page : int64 (n,)
        Queries until the first ticket or louder, until the first page; 0 where there was none.
    """

    ticket: NDArray[np.int64]
    page: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Witness:
    """A fitted ensemble, asked without Kafka or Redis.

    Attributes
    ----------
    path : str
    ensemble : Ensemble
    """

    path: str
    ensemble: Ensemble

    @classmethod
    def load(cls, path: str, schema: FeatureSchema) -> Witness:
        """Read a bundle for rows of this schema.

        Raises
        ------
        BundleMismatch
            Missing, damaged, or for rows of another width or number of classes.
        """
        try:
            ensemble = bundles.load(path)
        except BundleError as refusal:
            raise BundleMismatch(f"--bundle: {refusal}") from None
        ours, theirs = (schema.width, len(schema.classes)), (ensemble.schema.width, len(ensemble.schema.classes))
        if ours != theirs:
            raise BundleMismatch(
                f"--bundle: {path} is for {theirs[0]} features and {theirs[1]} classes; "
                f"the rows have {ours[0]} and {ours[1]}"
            )
        ensemble.warm_up()
        return cls(path, ensemble)

    def pvalues(self, inputs: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) fused p-values of single rows of nobody, from inputs (n, d) and the model's scores (n, k)."""
        if len(inputs) == 0:
            return np.empty(0)
        labels = np.argmax(scores, axis=1).astype(np.int32)
        return self._score(inputs, labels, ANONYMOUS, scores).fused

    def trails(self, trace: Trace, starts: int) -> Trails:
        """What the queries of each of the start rows, in their order, would have led to."""
        ticket, page = np.zeros(starts, dtype=np.int64), np.zeros(starts, dtype=np.int64)
        for start in range(starts):
            asked = trace.of(start)
            if len(asked):
                levels = self._score(asked.inputs, asked.labels.astype(np.int32), CLIENT, None).levels
                ticket[start] = _first(levels >= Level.TICKET)
                page[start] = _first(levels >= Level.PAGE)
        return Trails(ticket, page)

    def _score(
        self,
        inputs: NDArray[np.float64],
        labels: NDArray[np.int32],
        client: int,
        scores: NDArray[np.float64] | None,
    ) -> Verdicts:
        n = len(inputs)
        batch = Batch(
            inputs=np.ascontiguousarray(inputs, dtype=np.float64),
            labels=labels,
            clients=np.full(n, client, dtype=np.uint64),
            times=np.arange(n, dtype=np.int64) * QUERY_GAP_US,
            offsets=np.arange(n, dtype=np.int64),
            rows=np.zeros(n, dtype=np.int32),
            outputs=scores,
        )
        try:
            return self.ensemble.score(batch, self.ensemble.new_state(clients=2))
        except DetectorError as refusal:
            raise BundleMismatch(f"--bundle: {self.path}: {refusal}") from None


def _first(reached: NDArray[np.bool_]) -> int:
    """Rows up to the first that is true; 0 where none is."""
    return int(np.argmax(reached)) + 1 if reached.any() else 0
