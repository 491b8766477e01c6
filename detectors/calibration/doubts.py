"""What makes one doubt that reference and benign events are what they should be; none of it changes the fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Batch, Reference
from detectors.schema import FeatureSchema
from detectors.surrogate import unlearnable

#: Rows that are looked at, at most: the first ones.
LOOKED_AT = 20_000
#: Features that are named, at most.
NAMED = 5
#: A benign value is far away from this many ranges of the reference beyond its ends on.
FAR_RANGES = 1.0
#: Labels are doubted where class means name so few of the benign ones, as a share of those of the reference.
LEAST_AGREEMENT = 0.5


def doubts(reference: Reference, benign: Batch | None, schema: FeatureSchema) -> list[str]:
    """Sentences on scores that aren't learned from, values in other units, and classes in another order.

    Parameters
    ----------
    reference : Reference
        Checked rows.
    benign : Batch or None
    schema : FeatureSchema
    """
    said = _broken(reference.inputs, schema)
    for what, rows in (("reference", reference), ("benign events", benign)):
        if rows is not None and rows.outputs is not None:
            scored = np.isfinite(rows.outputs).all(axis=1) if rows is benign else np.ones(len(rows), dtype=np.bool_)
            why = unlearnable(rows.outputs[scored], rows.labels[scored])
            if why:
                said.append(
                    f"the scores of the {what} are not learned from, so the intent test knows the model by its labels "
                    f"alone: {why}"
                )
    if benign is not None:
        said += _far(reference.inputs, benign.inputs[:LOOKED_AT], schema) or _other_order(reference, benign)
    return said


def _broken(inputs: NDArray[np.float64], schema: FeatureSchema) -> list[str]:
    """On features of which most reference values (n, d) are not what the schema states."""
    odd = (inputs < schema.lows()) | (inputs > schema.highs()) | (schema.integral() & (inputs != np.rint(inputs)))
    names = [feature.name for feature, share in zip(schema.features, odd.mean(axis=0), strict=True) if share > 0.5]
    if not names:
        return []
    said = (
        f"most reference rows break what the schema states of {_some(names)}, so `constraints` can tell nothing by "
        "that: both must be in the units that the model gets"
    )
    return [said]


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + ("" if len(names) <= NAMED else f" and {len(names) - NAMED} more")


def _far(known: NDArray[np.float64], seen: NDArray[np.float64], schema: FeatureSchema) -> list[str]:
    """On features of which most benign values (n, d) lie far outside the range of the reference's."""
    low, high = known.min(axis=0), known.max(axis=0)
    room = FAR_RANGES * (high - low)
    far = np.mean((seen < low - room) | (seen > high + room), axis=0) > 0.5
    names = [feature.name for feature, is_far in zip(schema.features, far, strict=True) if is_far]
    if not names:
        return []
    said = (
        f"most benign events lie far outside the range of the reference in {_some(names)}: both must be in "
        "the units that the model gets"
    )
    return [said]


def _other_order(reference: Reference, benign: Batch) -> list[str]:
    """On labels that class means of the reference name in the reference, and not in the benign events."""
    mean, spread = reference.inputs.mean(axis=0), reference.inputs.std(axis=0)
    scale = np.where(spread > 0, spread, np.inf)  # constant features tell nothing
    classes = np.unique(reference.labels)
    means = np.stack([(reference.inputs[reference.labels == one].mean(axis=0) - mean) / scale for one in classes])

    def agreement(inputs: NDArray[np.float64], labels: NDArray[np.int32]) -> float:
        rows = (inputs[:LOOKED_AT] - mean) / scale
        nearest = classes[np.argmin((means**2).sum(axis=1) - 2.0 * rows @ means.T, axis=1)]
        return float(np.mean(nearest == labels[:LOOKED_AT]))

    usual, found = agreement(reference.inputs, reference.labels), agreement(benign.inputs, benign.labels)
    if found >= LEAST_AGREEMENT * usual:
        return []
    said = (
        f"class means of the reference name the label of {usual:.0%} of its rows, but of {found:.0%} of the benign "
        "events: look whether both number the classes in the same order, and are of the same model"
    )
    return [said]
