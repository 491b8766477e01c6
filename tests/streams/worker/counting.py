"""A small scorer whose every verdict depends on the client's history, and on nothing but the log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.contract import ANONYMOUS, Batch, Level, Reason, Signal, Technique, Verdicts
from detectors.schema import Feature, FeatureSchema

#: A client's rows at which it is ticketed, and at which it is paged.
TICKET_EVERY, PAGE_AT = 7, 21


class CountingState:
    """Rows and a decaying sum of each client, and of all."""

    def __init__(self, clients: int) -> None:
        self.keys = np.zeros(clients, dtype=np.uint64)
        self.counts = np.zeros(clients, dtype=np.int64)
        self.sums = np.zeros(clients, dtype=np.float64)
        self.used = np.zeros(1, dtype=np.int64)
        self._slots: dict[int, int] = {}

    def slot(self, client: int) -> int:
        """The client's place; the oldest one is given away when all are taken."""
        found = self._slots.get(client)
        if found is None:
            found = int(self.used[0]) % len(self.keys)
            self.used[0] += 1
            self._slots.pop(int(self.keys[found]), None)
            self._slots[client] = found
            self.keys[found], self.counts[found], self.sums[found] = client, 0, 0.0
        return found

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"keys": self.keys, "counts": self.counts, "sums": self.sums, "used": self.used}

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        for name, mine in self.arrays().items():
            theirs = arrays[name]
            if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
                raise ValueError(f"{name} differs")
            mine[...] = theirs
        taken = min(int(self.used[0]), len(self.keys))
        self._slots = {int(key): place for place, key in enumerate(self.keys[:taken])}

    def digest(self) -> str:
        return hashlib.sha256(b"".join(array.tobytes() for array in self.arrays().values())).hexdigest()


class CountingScorer:
    """p = 1 / rows of the client so far; a ticket every few rows, a page at one of them."""

    def __init__(self, width: int, classes: int, name: str = "counting") -> None:
        self.schema = FeatureSchema(
            tuple(Feature(f"f{i}") for i in range(width)), tuple(f"c{i}" for i in range(classes))
        )
        self.digest = hashlib.sha256(f"{name}/{width}/{classes}".encode()).hexdigest()[:32]

    def new_state(self, clients: int = 20_000, index_rows: int = 10_000) -> CountingState:
        return CountingState(clients)

    def warm_up(self) -> None:
        return

    def score(self, batch: Batch, state: object) -> Verdicts:
        assert isinstance(state, CountingState)
        n = len(batch)
        assert n == 0 or np.all(np.diff(batch.times) >= 0)
        counts, sums = np.zeros(n), np.zeros(n)
        signals = []
        levels = np.zeros(n, dtype=np.uint8)
        for row in range(n):
            client = int(batch.clients[row])
            if client == ANONYMOUS:
                counts[row] = 1
                continue
            place = state.slot(client)
            state.counts[place] += 1
            state.sums[place] = state.sums[place] * 0.5 + batch.inputs[row, 0]
            counts[row], sums[row] = state.counts[place], state.sums[place]
            if state.counts[place] % TICKET_EVERY == 0:
                level = Level.PAGE if state.counts[place] == PAGE_AT else Level.TICKET
                levels[row] = level
                signals.append(self._signal(batch, row, level, float(counts[row]), float(sums[row])))
        pvalues = 1.0 / np.maximum(counts, 1.0)
        return Verdicts(
            detectors=("count", "sum"),
            scores=np.column_stack([counts, sums]),
            pvalues=np.column_stack([pvalues, 1.0 / (1.0 + np.abs(sums))]),
            fused=pvalues,
            tests=("count",),
            statistics=(counts / PAGE_AT)[:, None],
            levels=levels,
            signals=tuple(signals),
        )

    def _signal(self, batch: Batch, row: int, level: Level, count: float, total: float) -> Signal:
        return Signal(
            row=row,
            rule="query-cluster" if level == Level.TICKET else "query-intent",
            level=level,
            technique=Technique.CRAFT_BLACK_BOX,
            entity="client",
            entity_id=f"{int(batch.clients[row]):016x}",
            statistic=count,
            threshold=float(TICKET_EVERY),
            members=np.array([[batch.offsets[row], batch.rows[row]]], dtype=np.int64),
            member_clients=batch.clients[row : row + 1],
            reasons=(Reason("count", 1.0 / count, f"its {count:.0f}th row"),),
            input=batch.inputs[row],
            nearest=np.zeros(batch.inputs.shape[1]),
            label=int(batch.labels[row]),
            nearest_label=0,
            measures={"sum": total},
        )


def load(path: Path) -> CountingScorer:
    """A scorer from a file with its parameters."""
    return CountingScorer(**json.loads(path.read_text()))


def save(path: Path, **parameters: object) -> Path:
    path.write_text(json.dumps(parameters))
    return path
