"""What detectors remember of clients: a record a client and detector, forgotten with the client's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.kernels import histories


class Past:
    """Records of clients, one table for all detectors.

    Parameters
    ----------
    layouts : mapping of str to dtype
        Detector -> layout of a client's record.
    clients : int
        Room; the least recently seen client is forgotten, at the row at which the walk's history of as much room
        forgets it.
    """

    def __init__(self, layouts: Mapping[str, np.dtype[Any]], clients: int) -> None:
        room = max(clients, 2)
        self.table = np.full(1 << int(2 * room - 1).bit_length(), -1, dtype=np.int32)
        self.keys = np.zeros(room, dtype=np.uint64)
        self.newer, self.older = (np.full(room, -1, dtype=np.int32) for _ in range(2))
        self.scalars = np.array([0, -1, -1, 0], dtype=np.int64)
        self.records: dict[str, NDArray[Any]] = {name: np.zeros(room, dtype=kind) for name, kind in layouts.items()}

    def places(self, clients: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """(n,) record of each row's client, -1 for anonymous rows; (n,) where the record changes hands. Moves on."""
        slots, fresh = np.empty(len(clients), dtype=np.int64), np.empty(len(clients), dtype=np.uint8)
        senders = np.require(clients, dtype=np.uint64, requirements=["C", "W"])
        histories.places(senders, self.table, self.keys, self.newer, self.older, self.scalars, slots, fresh)
        return slots, fresh

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Named views of everything; records as they are."""
        table = {name: getattr(self, name) for name in ("table", "keys", "newer", "older", "scalars")}
        return {**table, **{f"of.{name}": records for name, records in self.records.items()}}
