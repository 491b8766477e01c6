"""Compiled readers of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

import detectors.kernels  # noqa: F401  (it says where compiled code is kept)

_QUOTE, _BACKSLASH = 0x22, 0x5C
_OPEN, _CLOSE = (0x5B, 0x7B), (0x5D, 0x7D)


@njit(cache=True, nogil=True)
def nesting(data: Any) -> int:
    """Greatest depth of brackets outside strings in a JSON text, data (m,) uint8."""
    depth, deepest, at, text = 0, 0, 0, False
    while at < data.shape[0]:
        c = data[at]
        if text:
            if c == _BACKSLASH:
                at += 1
            elif c == _QUOTE:
                text = False
        elif c == _QUOTE:
            text = True
        elif c == _OPEN[0] or c == _OPEN[1]:
            depth += 1
            deepest = max(deepest, depth)
        elif c == _CLOSE[0] or c == _CLOSE[1]:
            depth -= 1
        at += 1
    return deepest


def warm_up() -> None:
    """Compile, or load from the cache."""
    nesting(np.zeros(1, dtype=np.uint8))
