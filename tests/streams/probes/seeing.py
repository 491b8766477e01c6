"""A detector of which it is known what it sees, and a worker with it: ``python -m tests.streams.probes.seeing CONFIG``.

It pages a client at its `VISIBLE_ROWS`-th row whose first feature is above one half, and tickets it at half of them.
Switched off, it sees nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from detectors.contract import ANONYMOUS, Batch, Level, Signal, Verdicts
from streams import config
from streams.errors import VedetteError
from streams.worker import app
from tests.streams.worker.counting import CountingScorer, CountingState

VISIBLE_ROWS = 12


class SeeingScorer(CountingScorer):
    """Counts the visible rows of each client."""

    def __init__(self, width: int, classes: int, off: bool = False) -> None:
        super().__init__(width, classes, f"seeing, off: {off}")
        self.off = off

    def score(self, batch: Batch, state: object) -> Verdicts:
        assert isinstance(state, CountingState)
        n = len(batch)
        counts, levels = np.zeros(n), np.zeros(n, dtype=np.uint8)
        signals: list[Signal] = []
        visible = (batch.inputs[:, 0] > 0.5) & (batch.clients != ANONYMOUS)
        for row in range(n):
            if batch.clients[row] == ANONYMOUS:
                continue
            place = state.slot(int(batch.clients[row]))
            state.sums[place] += batch.inputs[row].sum()
            if self.off:
                continue
            state.counts[place] += visible[row]
            counts[row] = state.counts[place]
            if visible[row] and counts[row] in (VISIBLE_ROWS // 2, VISIBLE_ROWS):
                level = Level.PAGE if counts[row] == VISIBLE_ROWS else Level.TICKET
                levels[row] = level
                signals.append(self._signal(batch, row, level, float(counts[row]), 0.0))
        pvalues = np.where(visible & (not self.off), 0.001, 0.5)
        return Verdicts(
            detectors=("eye",),
            scores=counts[:, None],
            pvalues=pvalues[:, None],
            fused=pvalues,
            tests=("count",),
            statistics=(counts / VISIBLE_ROWS)[:, None],
            levels=levels,
            signals=tuple(signals),
        )


def load(path: Path) -> SeeingScorer:
    """A scorer from a file with its parameters."""
    return SeeingScorer(**json.loads(path.read_text()))


def main() -> int:
    try:
        settings = config.load(sys.argv[1])
        return app.run(settings, settings.models[0].name, load=load)
    except VedetteError as error:
        print(f"vedette: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
