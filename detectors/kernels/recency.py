"""Clients in a hash table whose slots stand in their order of use: one piece for all that remember clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

#: Places of the scalars of a table: slots in use, the most and the least recently used one, clients forgotten.
USED, NEWEST, OLDEST, EVICTED = range(4)
#: What happened to the slot of a client: it was the client's, nobody's, or another client's.
KNOWN, NEW, TAKEN_OVER = range(3)

_inner: Callable[..., Any] = njit(
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)


@_inner
def home(key: Any, mask: int) -> Any:
    """Where in the table the search for a key begins."""
    z = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((z ^ (z >> np.uint64(32))) & np.uint64(mask))


@_inner
def _forget(table: Any, keys: Any, slot: int) -> None:
    """Take a slot's key out of the table (deletion by shifting back, Knuth 6.4 R)."""
    mask = table.shape[0] - 1
    at = home(keys[slot], mask)
    while table[at] != slot:
        at = (at + 1) & mask
    hole = at
    at = (at + 1) & mask
    while table[at] >= 0:
        wanted = home(keys[table[at]], mask)
        if ((at - wanted) & mask) >= ((at - hole) & mask):
            table[hole] = table[at]
            hole = at
        at = (at + 1) & mask
    table[hole] = -1


@_inner
def use(table: Any, keys: Any, newer: Any, older: Any, scalars: Any, key: Any) -> Any:
    """The client's slot, made the most recently used, and what happened to it.

    A new client takes a free slot or the least recently used one.

    Parameters
    ----------
    table : int32 (a power of 2,)
        Slots, -1 for none.
    keys : uint64 (room,)
    newer, older : int32 (room,)
        Neighbours in the order of use, -1 for none.
    scalars : int64 (4 or more,)
    key : uint64

    Returns
    -------
    (int64, int64)
        The slot, and one of `KNOWN`, `NEW`, `TAKEN_OVER`.
    """
    mask = table.shape[0] - 1
    at = home(key, mask)
    while table[at] >= 0 and keys[table[at]] != key:
        at = (at + 1) & mask
    slot = np.int64(table[at])
    happened = KNOWN
    if slot >= 0:
        if scalars[NEWEST] == slot:
            return slot, happened
        n, o = newer[slot], older[slot]
        if o >= 0:
            newer[o] = n
        else:
            scalars[OLDEST] = n
        older[n] = o
    else:
        if scalars[USED] < keys.shape[0]:
            happened = NEW
            slot = scalars[USED]
            scalars[USED] += 1
        else:
            happened = TAKEN_OVER
            slot = scalars[OLDEST]
            scalars[OLDEST] = newer[slot]
            older[newer[slot]] = -1
            scalars[EVICTED] += 1
            _forget(table, keys, slot)
            at = home(key, mask)
            while table[at] >= 0:
                at = (at + 1) & mask
        table[at] = slot
        keys[slot] = key
    older[slot] = scalars[NEWEST]
    newer[slot] = -1
    if scalars[NEWEST] >= 0:
        newer[scalars[NEWEST]] = slot
    else:
        scalars[OLDEST] = slot
    scalars[NEWEST] = slot
    return slot, happened
