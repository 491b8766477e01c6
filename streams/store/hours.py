"""How rows and oddness of blocks of clients stand in Redis: the last day, beside a partition's histograms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.drift import BLOCKS

#: Hours that a partition keeps; the correlator takes each in within so long, or it is lost to the drift watch.
HOURS_KEPT = 24
_PREFIX = "hour:"
_BYTES = 8 + 2 * 4 * BLOCKS
_LARGEST = 2**32 - 1


def hour_field(hour: int) -> str:
    """Field of an hour since the epoch in the hash of histograms; hours a day apart share one."""
    return f"{_PREFIX}{hour % HOURS_KEPT}"


def pack_hour(hour: int, counts: NDArray[np.int64]) -> bytes:
    """The hour as int64, then rows and oddness of each block (2, `BLOCKS`) as uint32, all little-endian."""
    return int(hour).to_bytes(8, "little") + np.minimum(counts, _LARGEST).astype("<u4").tobytes()


def unpack_hour(content: bytes) -> tuple[int, NDArray[np.int64]] | None:
    """The inverse of `pack_hour`; None for anything else."""
    if len(content) != _BYTES:
        return None
    counts = np.frombuffer(content, dtype="<u4", offset=8).astype(np.int64)
    return int.from_bytes(content[:8], "little"), counts.reshape(2, BLOCKS)
