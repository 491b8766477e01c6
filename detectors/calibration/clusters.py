"""The walk's tables, from walks over benign rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.conformal import lower_pvalues, thinned
from detectors.calibration.evalues import evalue_table, normal_scores
from detectors.calibration.residual import TAUS
from detectors.queries.walk import (
    BINS,
    DUPLICATE,
    GAIN_CAP,
    JOIN_P,
    NO_BITS,
    SIM_PLACES,
    SKETCH_PLACES,
    SKETCH_SHIFT,
    THRESHOLDS,
    Tables,
)

#: A bin with fewer values than this uses those of all bins.
MIN_VALUES = 100
#: Values of a table at most.
MAX_NEAR, MAX_COMBINED = 2000, 8000


def blank_tables(grain: float, fused_values: int) -> Tables:
    """Tables with which a walk measures, but joins nothing and crosses nothing."""
    none = np.array([-1.0])
    return Tables(
        grain=np.array([grain]),
        near_l2=np.full((BINS, 1), -1.0),
        near_l0=np.ones((BINS, SKETCH_PLACES)),
        combined=none,
        gain_a=np.zeros(3),
        opposite=np.full((BINS, 1), -1.0),
        both=none.copy(),
        gain_b=np.zeros(3),
        index_l2=np.full((BINS, 1), -1.0),
        index_l0=np.ones((BINS, SKETCH_PLACES)),
        index_combined=none.copy(),
        index_opposite=np.ones((BINS, SIM_PLACES)),
        index_both=none.copy(),
        index_least=none.copy(),
        index_gain=np.zeros(3),
        normal=normal_scores(fused_values),
        tau=np.array([TAUS[0]]),
        residual=none.copy(),
        evalue=np.zeros(2),
        thresholds=np.full(THRESHOLDS, np.inf),
    )


def gain_table(m: int) -> NDArray[np.float64]:
    """(m + 2,) evidence ln(`JOIN_P` / p) by 1 + number of smaller or equal values, from 0 to `GAIN_CAP`."""
    p = np.arange(m + 2) / (m + 1.0)
    p[0] = 1.0
    return np.minimum(GAIN_CAP, np.log(np.maximum(JOIN_P / p, 1.0)))


def distance_tables(
    tables: Tables, trace: NDArray[Any], bins: NDArray[np.int32], use: NDArray[np.bool_], full: NDArray[np.bool_]
) -> Tables:
    """Tables of distances to near rows, from the rows that `use` selects; of the index, from those when it was full."""
    use = use & (trace["kind"] != DUPLICATE)
    near, opposite = use & np.isfinite(trace["near"]), use & np.isfinite(trace["opposite"])
    index, across = full & np.isfinite(trace["index_near"]), full & (trace["index_opposite"] < NO_BITS)
    return tables._replace(
        near_l2=_by_bin(trace["near"][near], bins[near]),
        near_l0=_counted(trace["near_bits"][near] + SKETCH_SHIFT, bins[near], SKETCH_PLACES),
        opposite=_by_bin(trace["opposite"][opposite], bins[opposite]),
        index_l2=_by_bin(trace["index_near"][index], bins[index]),
        index_l0=_counted(trace["index_bits"][index] + SKETCH_SHIFT, bins[index], SKETCH_PLACES),
        index_opposite=_counted(trace["index_opposite"][across], bins[across], SIM_PLACES),
    )


def combined_tables(
    tables: Tables,
    trace: NDArray[Any],
    bins: NDArray[np.int32],
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    full: NDArray[np.bool_],
) -> Tables:
    """Tables of combined p-values: the smaller of both geometries from `first`, the products from `second`.

    Those of the index come from the rows that `full` selects.
    """
    near = np.isfinite(trace["near"]) & (trace["kind"] != DUPLICATE)
    smaller = smaller_pvalues(trace["near"], trace["near_bits"], bins, tables.near_l2, tables.near_l0)
    combined = thinned(np.sort(smaller[near & first]), MAX_COMBINED, small=True)
    p_a = lower_pvalues(smaller, combined)
    p_o = np.where(np.isfinite(trace["opposite"]), bin_pvalues(trace["opposite"], bins, tables.opposite), 1.0)
    both = thinned(np.sort((p_a * p_o)[near & second]), MAX_COMBINED, small=True)
    seen, across = full & np.isfinite(trace["index_near"]), trace["index_opposite"] < NO_BITS
    smaller = smaller_pvalues(trace["index_near"], trace["index_bits"], bins, tables.index_l2, tables.index_l0)
    index_combined = thinned(np.sort(smaller[seen]), MAX_COMBINED, small=True)
    p_a = lower_pvalues(smaller, index_combined)
    p_o = np.where(across, tables.index_opposite[bins, np.where(across, trace["index_opposite"], 0)], 1.0)
    index_both = thinned(np.sort((p_a * p_o)[seen]), MAX_COMBINED, small=True)
    least = np.minimum(p_a, lower_pvalues(p_a * p_o, index_both))
    index_least = thinned(np.sort(least[seen]), MAX_COMBINED, small=True)
    return tables._replace(
        combined=combined,
        gain_a=gain_table(len(combined)),
        both=both,
        gain_b=gain_table(len(both)),
        index_combined=index_combined,
        index_both=index_both,
        index_least=index_least,
        index_gain=gain_table(len(index_least)),
    )


def residual_tables(tables: Tables, residuals: NDArray[np.float64], most: int) -> Tables:
    """Tables of the sequential test, from residual scores of fresh rows; NaN where a row was not fresh."""
    values = thinned(np.sort(residuals[np.isfinite(residuals)]), most)
    return tables._replace(residual=values, evalue=evalue_table(len(values)))


def sizes(tables: Tables) -> dict[str, int]:
    """Sizes of the tables, for the report."""
    return {
        name: int(getattr(tables, name).shape[-1])
        for name in ("near_l2", "combined", "opposite", "both", "index_least", "residual")
    }


def _by_bin(values: NDArray[np.float64], bins: NDArray[np.int32]) -> NDArray[np.float64]:
    """(5, m) ascending values of each bin, thinned to one size."""
    groups = [np.sort(values[bins == b]) for b in range(BINS)]
    everything = np.sort(values)
    if len(everything) == 0:
        return np.full((BINS, 1), -1.0)
    groups = [group if len(group) >= MIN_VALUES else everything for group in groups]
    size = min(MAX_NEAR, *(len(group) for group in groups))
    return np.stack([thinned(group, size, small=True) for group in groups])


def bin_pvalues(
    values: NDArray[np.float64], bins: NDArray[np.int32], table: NDArray[np.float64]
) -> NDArray[np.float64]:
    """p-values of small values (n,) within the bin of each; table (5, m) ascending."""
    found = np.ones(len(values))
    for b in range(BINS):
        inside = bins == b
        found[inside] = lower_pvalues(values[inside], table[b])
    return found


def smaller_pvalues(
    near: NDArray[np.float64],
    bits: NDArray[np.int32],
    bins: NDArray[np.int32],
    by_distance: NDArray[np.float64],
    by_bits: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The smaller p-value of both geometries; 1 where `near` (n,) is NaN. Tables as `near_l2` and `near_l0`."""
    known = np.isfinite(near)
    of_bits = by_bits[bins, np.where(known, bits + SKETCH_SHIFT, 0)]
    return np.where(known, np.minimum(bin_pvalues(near, bins, by_distance), of_bits), 1.0)


def _counted(values: NDArray[Any], bins: NDArray[np.int32], places: int) -> NDArray[np.float64]:
    """(5, places) p-value of each whole number: (1 + #{values <= it}) / (m + 1)."""
    counts = np.zeros((BINS, places))
    np.add.at(counts, (bins, values), 1.0)
    total = counts.sum(axis=1)
    counts[total < MIN_VALUES] = counts.sum(axis=0)
    below = counts.cumsum(axis=1)
    return np.asarray((1.0 + below) / (1.0 + below[:, -1:]))
