"""How far rows break learned relations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def _capped(part: float, cap: float) -> float:
    """`part` within 0 and `cap`; an overflow (NaN) is `cap`."""
    if part <= 0.0:
        return 0.0
    return part if part < cap else cap  # noqa: FURB136  (min would let a NaN through)


@njit(cache=True, nogil=True, error_model="numpy")
def broken_relations(
    inputs: Any,
    columns: Any,
    coefficients: Any,
    bounds: Any,
    constant: Any,
    slack: Any,
    pairs: Any,
    units: Any,
    whole: Any,
    members: Any,
    member_bounds: Any,
    rounding: float,
    tolerance: float,
    cap: float,
    out: Any,
) -> None:
    """What each relation adds to the sum; sums of terms run from left to right, so a row's bits are its own.

    inputs (n, d). Equations: terms bounds[r]:bounds[r + 1] of columns int64 and coefficients, constant (r,), slack (r,)
    in the units of the equation; a miss counts in units of the slack and of `rounding` of the row's terms. Pairs int64
    (p, 2) of columns, the first at most the second, and units (p,). Columns int64 of whole numbers. One-hot groups:
    members int64, group g in member_bounds[g]:member_bounds[g + 1]. `tolerance` of the last two; no part is above
    `cap`, and a miss where nothing is allowed is `cap`. out (n, r + p + w + g), filled.
    """
    equations, count = constant.shape[0], pairs.shape[0]
    first_group = equations + count + whole.shape[0]
    for i in range(inputs.shape[0]):
        for r in range(equations):
            total, size = -constant[r], abs(constant[r])
            for t in range(bounds[r], bounds[r + 1]):
                term = coefficients[t] * inputs[i, columns[t]]
                total += term
                size += abs(term)
            allowed = slack[r] + rounding * size
            if abs(total) <= allowed < np.inf:
                out[i, r] = 0.0
            else:
                out[i, r] = _capped(abs(total) / allowed - 1.0, cap) if allowed < np.inf else cap
        for p in range(count):
            a, b = inputs[i, pairs[p, 0]], inputs[i, pairs[p, 1]]
            out[i, equations + p] = _capped((a - b - rounding * (abs(a) + abs(b))) / units[p], cap)
        for w in range(whole.shape[0]):
            x = inputs[i, whole[w]]
            out[i, equations + count + w] = 1.0 if abs(x - np.rint(x)) > tolerance else 0.0
        for g in range(member_bounds.shape[0] - 1):
            hot, total = 0, 0.0
            for k in range(member_bounds[g], member_bounds[g + 1]):
                x = inputs[i, members[k]]
                hot += 1 if abs(x) > tolerance else 0
                total += x
            out[i, first_group + g] = 1.0 if hot != 1 or abs(total - 1.0) > tolerance else 0.0
