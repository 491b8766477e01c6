"""Reading fitted arrays back: whoever wrote them, kernels must find the shapes and values that they rely on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def stored(
    arrays: Mapping[str, NDArray[Any]], name: str, kind: type[np.generic], *shape: int | None, finite: bool = True
) -> NDArray[Any]:
    """A fresh copy of an array, checked.

    Parameters
    ----------
    arrays : mapping
    name : str
    kind : type
        The exact dtype.
    *shape : int or None
        Length of each axis; None allows any from 1 on.
    finite : bool
        Whether NaN and infinities are refused.

    Raises
    ------
    KeyError
        When it is missing.
    ValueError
        Which says what was found instead.
    """
    array = arrays[name]
    fits = array.ndim == len(shape) and all(
        length == wanted or (wanted is None and length > 0) for length, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != np.dtype(kind) or not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} is {array.dtype}{array.shape}, not {np.dtype(kind)}({wanted})")
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return np.array(array, order="C")


def within(name: str, array: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """The array, if low <= every value <= high; else ValueError."""
    if array.size and not (low <= array.min() and array.max() <= high):
        raise ValueError(f"{name} holds values outside {low:g} to {high:g}")
    return array


def part_of(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    """The arrays of one part, without its prefix."""
    prefix = part + "."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
