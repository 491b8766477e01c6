"""What an inquiry is given and what the model answers, checked before anything is computed from it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.errors import InquiryError
from detectors.responses.contract import Ask

#: Answers are taken for probabilities when none is below 0 and a row's sum is 1, both within this.
TOLERANCE = 1e-2


def asked(ask: Ask, rows: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """What the model says of rows (m, d): probabilities float64 (m, `classes`), C order.

    The model always sees float64 in C order, and what it answers is laid out so too: sums over other layouts are
    rounded otherwise.

    Raises
    ------
    InquiryError
        The answer has another shape, holds NaN or infinity, or is no probabilities.
    """
    try:
        found = np.array(ask(np.ascontiguousarray(rows, dtype=np.float64)), dtype=np.float64, order="C")
    except (TypeError, ValueError) as wrong:
        raise InquiryError(f"the model's answer to {len(rows)} rows is no array of numbers: {wrong}") from None
    if found.shape != (len(rows), classes):
        raise InquiryError(
            f"the model answered {len(rows)} rows with an array of shape {found.shape}; an inquiry needs one "
            f"probability of each of the {classes} classes, ({len(rows)}, {classes})"
        )
    if not np.isfinite(found).all():
        raise InquiryError(f"the model answered {len(rows)} rows with NaN or infinity")
    if found.size and (found.min() < -TOLERANCE or np.abs(found.sum(axis=1) - 1.0).max() > TOLERANCE):
        raise InquiryError(
            "the model answers with scores that are no probabilities (not negative, sum 1); name one that does, such "
            "as a function around it that ends in a softmax"
        )
    return found


def judged(
    inputs: ArrayLike, labels: ArrayLike, width: int, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Rows float64 (n, `width`), C order, and their labels int32 (n,).

    Raises
    ------
    InquiryError
        Rows or labels have another shape, a value is not finite, or a label is not 0 <= label < `classes`.
    """
    rows, given = np.ascontiguousarray(inputs, dtype=np.float64), np.asarray(labels)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise InquiryError(f"rows have shape {rows.shape}; the inquiry was fitted on {width} features, (n, {width})")
    if given.shape != (len(rows),):
        raise InquiryError(f"{len(rows)} rows come with labels of shape {given.shape}; give one label a row")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InquiryError(f"{len(bad)} rows hold NaN or infinity, first row {bad[0]}")
    wrong = np.flatnonzero((given < 0) | (given >= classes))
    if len(wrong):
        raise InquiryError(f"row {wrong[0]} has label {given[wrong[0]]}; labels are 0 to {classes - 1}")
    return rows, given.astype(np.int32)
