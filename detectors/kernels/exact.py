"""Products that are exact in float64, so that their order of operations, and so the cut of a batch, can't matter."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: Standardised values are clipped to this many standard deviations.
CLIP_SD = 64.0
#: Whole numbers up to 2**53 are exact in float64.
MANTISSA_BITS = 53


def grid_for(width: int) -> float:
    """Steps a standard deviation such that every sum of `width` products of two clipped values is exact.

    With d products of two numbers of b bits each, sums stay below 2**(2 b + log2 d); b = floor((53 - log2 d) / 2) in
    all, of which 6 bits and a sign are taken by the range of +-64.
    """
    bits = math.floor((MANTISSA_BITS - math.log2(max(width, 1))) / 2)
    return float(2 ** (bits - 1 - int(math.log2(CLIP_SD))))


def on_grid(values: NDArray[np.float64], grid: float) -> NDArray[np.float64]:
    """Values rounded to multiples of 1/grid and clipped to `CLIP_SD`."""
    return np.asarray(np.rint(np.clip(values, -CLIP_SD, CLIP_SD) * grid) / grid)


def standardise(
    inputs: NDArray[np.float64], mean: NDArray[np.float64], scale: NDArray[np.float64], grid: float
) -> NDArray[np.float64]:
    """(n, d) inputs in standard deviations, on the grid."""
    return on_grid((inputs - mean) / scale, grid)


def square_norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) exact squared lengths of rows on the grid."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows))
