"""A synthetic model's world for speed: rows, answers, clients, and walkers along its decision boundary.

Speed needs shapes and traffic like production's, not a hard problem: classes are Gaussian clouds of low rank, the model
is the exact posterior of a mixture of round ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Batch, Reference
from detectors.schema import Feature, FeatureSchema

#: Sizes that the benchmark states.
FEATURES, CLASSES = 64, 10
#: Directions in which rows of a class vary, beside noise.
RANK = 12
#: Standard deviations of that variation, of noise, and between classes' centres.
SPREAD, NOISE, APART = 1.0, 0.25, 1.2
#: Rows that a walker sends; its queries stay within its window of history.
WALK_ROWS = 40
#: Share of the stream that a walk is spread over.
WALK_SHARE = 0.2
#: Share of rows that repeat the one before them exactly.
DUPLICATE_SHARE = 0.01
MICROSECONDS_PER_WEEK = 604_800_000_000


@dataclass(frozen=True, slots=True)
class Events:
    """Events in order: inputs float32 (n, 64), outputs float32 (n, 10), client numbers (n,), 0-based."""

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    clients: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)


class Traffic:
    """The world of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(0, APART, (CLASSES, FEATURES))
        self.bases = self.rng.normal(0, SPREAD / np.sqrt(RANK), (CLASSES, RANK, FEATURES))

    @property
    def schema(self) -> FeatureSchema:
        """64 unbounded features, 10 classes."""
        return FeatureSchema(tuple(Feature(f"f{i}") for i in range(FEATURES)), tuple(str(k) for k in range(CLASSES)))

    def rows(self, n: int) -> NDArray[np.float32]:
        """Fresh benign rows (n, 64)."""
        labels = self.rng.integers(0, CLASSES, n)
        latent = self.rng.standard_normal((n, RANK), dtype=np.float32)
        made = np.empty((n, FEATURES), dtype=np.float32)
        for k in range(CLASSES):
            mine = np.flatnonzero(labels == k)
            made[mine] = self.centres[k] + latent[mine] @ self.bases[k]
        made += NOISE * self.rng.standard_normal((n, FEATURES), dtype=np.float32)
        return made

    def answers(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's scores (n, 10)."""
        logits = inputs @ self.centres.T.astype(np.float32) - 0.5 * (self.centres**2).sum(axis=1).astype(np.float32)
        logits /= FEATURES / 8
        logits -= logits.max(axis=1, keepdims=True)
        scores = np.exp(logits)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True), dtype=np.float32)

    def reference(self, n: int) -> Reference:
        """Rows to fit on."""
        inputs = self.rows(n)
        outputs = self.answers(inputs)
        return Reference(
            inputs.astype(np.float64), np.argmax(outputs, axis=1).astype(np.int32), outputs.astype(np.float64)
        )

    def benign(self, clients: int, weeks: int, rows_a_week: int) -> Batch:
        """Benign events of clients over weeks, to calibrate on."""
        n = clients * weeks * rows_a_week
        events = self.events(n, clients)
        return Batch(
            inputs=events.inputs.astype(np.float64),
            labels=np.argmax(events.outputs, axis=1).astype(np.int32),
            clients=(events.clients + 1).astype(np.uint64),
            times=np.sort(self.rng.integers(0, weeks * MICROSECONDS_PER_WEEK, n)),
            offsets=np.arange(n, dtype=np.int64),
            rows=np.zeros(n, dtype=np.int32),
            outputs=events.outputs.astype(np.float64),
        )

    def events(self, n: int, clients: int) -> Events:
        """Benign events of so many clients, 1 % of them exact duplicates of their client's row before."""
        inputs = self.rows(n)
        who = self.rng.integers(0, clients, n)
        again = np.flatnonzero(self.rng.random(n) < DUPLICATE_SHARE)
        again = again[again > 0]
        inputs[again], who[again] = inputs[again - 1], who[again - 1]
        return Events(inputs, self.answers(inputs), who)

    def warm(self, clients: int, each: int) -> Events:
        """`each` rows of every client."""
        inputs = self.rows(clients * each)
        return Events(inputs, self.answers(inputs), np.tile(np.arange(clients), each))

    def with_walkers(self, n: int, clients: int, walkers: int) -> Events:
        """Benign events with walkers among them: new clients whose queries creep along a decision boundary."""
        events = self.events(n, clients)
        # Every walker begins somewhere and takes a part of the stream, so that they come one by one and overlap.
        span = max(WALK_ROWS, round(WALK_SHARE * n))
        begin = self.rng.integers(0, max(1, n - span), walkers)
        wanted = np.sort(begin[:, None] + self.rng.integers(0, span, (walkers, WALK_ROWS)), axis=1)
        places, first = np.unique(wanted.ravel(), return_index=True)
        who, step = np.divmod(first, WALK_ROWS)
        starts = self.rows(walkers)
        labels = np.argmax(self.answers(starts), axis=1)
        towards = self.centres[(labels + 1) % CLASSES].astype(np.float32) - starts
        share = 0.5 + 0.02 * self.rng.standard_normal((len(places), 1), dtype=np.float32)
        walk = starts[who] + share * towards[who]
        walk += 0.02 * self.rng.standard_normal(walk.shape, dtype=np.float32) * (1 + step[:, None] / WALK_ROWS)
        events.inputs[places] = walk
        events.outputs[places] = self.answers(walk)
        events.clients[places] = clients + who
        return events
