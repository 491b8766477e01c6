"""Crafted rows made at the fit, so that detectors can be weighed where nobody has given any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference
from detectors.queries.intent import IntentTest
from detectors.schema import FeatureSchema

#: Start rows of each kind.
START_ROWS = 200
#: Linf sizes of steps, as shares of a feature's range.
STEPS = (0.05, 0.1, 0.2)
#: Step of the difference that a slope is taken from, in the same units.
DIFFERENCE = 0.02
#: Halvings of the way between two classes, and how far beyond the boundary the row goes.
HALVINGS, BEYOND = 12, 0.02
#: The attacks, by name.
RANDOM_SIGNS, ONE_STEP, BOUNDARY = "random signs", "one step", "boundary"


def rehearse(
    start: NDArray[np.float64],
    labels: NDArray[np.int32],
    intent: IntentTest,
    schema: FeatureSchema,
    rng: np.random.Generator,
) -> list[tuple[str, Reference]]:
    """Crafted rows of several kinds, each under the name of its attack, with the surrogate's answers; `truth` is the
    watched model's answer to the row that each began as.

    Random signs, one step against the surrogate's slope (Goodfellow, Shlens & Szegedy, ICLR 2015), and rows just beyond
    the surrogate's boundary on the way to a row of another class, as decision-based attacks end. They only weigh
    detectors against each other, so it does not matter how strong they are, but that they differ.

    Parameters
    ----------
    start : float64 (n, d)
        Benign rows.
    labels : int32 (n,)
        The watched model's answers.
    intent : IntentTest
        For its surrogate and the ranges of features.
    schema : FeatureSchema
    rng : numpy.random.Generator
    """
    chosen = rng.permutation(len(start))[:START_ROWS]
    x, own = start[chosen], labels[chosen]
    width = np.where(intent.high > intent.low, intent.high - intent.low, 1.0) * schema.mutable()

    def legal(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = np.clip(rows, schema.lows(), schema.highs())
        return np.where(schema.integral(), np.rint(rows), rows)

    def answered(attack: str, rows: NDArray[np.float64]) -> tuple[str, Reference]:
        return attack, Reference(rows, _answers(intent, rows, len(schema.classes)), truth=own)

    slope = _slopes(intent, x, own, width)
    made = []
    for step in STEPS:
        made.append(answered(RANDOM_SIGNS, legal(x + step * width * rng.choice([-1.0, 1.0], x.shape))))
        made.append(answered(ONE_STEP, legal(x - step * width * np.sign(slope))))
    made.append(answered(BOUNDARY, legal(_beyond_boundary(intent, x, own, start, labels, rng))))
    return made


def fooling(rehearsed: Sequence[tuple[str, Reference]]) -> list[tuple[str, Reference]]:
    """The rows whose answer is no longer the one they began with, of attacks that have any."""
    found = []
    for attack, rows in rehearsed:
        changed = rows.labels != rows.truth
        if changed.any():
            found.append((attack, Reference(rows.inputs[changed], rows.labels[changed])))
    return found


def _answers(intent: IntentTest, rows: NDArray[np.float64], classes: int) -> NDArray[np.int32]:
    """The surrogate's class of each row: the one whose margin is largest."""
    margins = [intent.surrogate.margins(rows, np.full(len(rows), label, dtype=np.int32)) for label in range(classes)]
    return np.argmax(margins, axis=0).astype(np.int32)


def _slopes(
    intent: IntentTest, x: NDArray[np.float64], labels: NDArray[np.int32], width: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, d) slope of the margin along each feature."""
    slope = np.zeros(x.shape)
    for feature in np.flatnonzero(width):
        moved = x.copy()
        moved[:, feature] += DIFFERENCE * width[feature]
        up = intent.surrogate.margins(moved, labels)
        moved[:, feature] -= 2.0 * DIFFERENCE * width[feature]
        slope[:, feature] = up - intent.surrogate.margins(moved, labels)
    return slope


def _beyond_boundary(
    intent: IntentTest,
    x: NDArray[np.float64],
    own: NDArray[np.int32],
    start: NDArray[np.float64],
    labels: NDArray[np.int32],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Rows between x and rows of other classes, just where the surrogate no longer says `own`."""
    target = x.copy()
    for label in np.unique(own):
        mine, others = np.flatnonzero(own == label), np.flatnonzero(labels != label)
        if len(others):
            target[mine] = start[rng.choice(others, len(mine))]
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        same = intent.surrogate.margins(x + middle[:, None] * (target - x), own) > 0.0
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.asarray(x + np.minimum(1.0, high + BEYOND)[:, None] * (target - x))
