"""Which rows of a client are remembered: the last different ones, counted from when each was last sent."""

from __future__ import annotations

from typing import Any

import numpy as np

from detectors.contract import Batch
from detectors.queries.memory import WINDOW_ROWS
from detectors.scorer import Ensemble


def batch_of(small_world: Any, rows: np.ndarray[Any, Any]) -> Batch:
    home = small_world.world()
    return small_world.batch_of(
        home.predict, rows, np.full(len(rows), 7), np.linspace(0.1, 0.9, len(rows)).astype(np.float64)
    )


def test_a_row_that_comes_again_is_the_newest(ensemble: Ensemble, small_world: Any) -> None:
    """The ring against a list that is kept in plain words, for places before, at and after where the ring wraps."""
    rng = np.random.default_rng(5)
    for seed in range(3):
        different = small_world.world().fresh(140, rng)
        order: list[int] = []
        kept: list[int] = []
        for turn in range(len(different)):
            order.append(turn)
            if rng.random() < 0.4:
                order.append(order[-1 - int(rng.integers(min(len(order), 40)))])
        batch = batch_of(small_world, different[np.array(order)])
        state = ensemble.new_state(8)
        ensemble.score(batch, state)
        for row in order:
            kept = [one for one in kept if one != row] + [row]
            kept = kept[-WINDOW_ROWS:]
        slot = state.clients.slots[0]
        count = int(slot["distinct"])
        ring = (count - 1 - np.arange(WINDOW_ROWS)) % WINDOW_ROWS  # newest first
        columns = ensemble.single.score(batch).columns
        where = np.array([len(order) - 1 - order[::-1].index(row) for row in kept[::-1]])
        rows = columns.rows[where]
        assert (slot["hashes"][ring] == (rows["hash"] & np.uint64(255)).astype(np.uint8)).all(), seed
        assert (slot["sketches"][ring] == rows["sketch"]).all()
        assert (slot["codes"][:, ring] == rows["codes"].T).all()
        assert (slot["labels"][ring] == (rows["label"] & 255).astype(np.uint8)).all()


def test_who_keeps_coming_back_to_a_row_is_seen_to_start_from_it(ensemble: Ensemble, small_world: Any) -> None:
    """Sixty other rows lie between the first and the last, which is nearly the first; it came again in between."""
    rng = np.random.default_rng(9)
    others = small_world.world().fresh(60, rng)
    base = small_world.world().fresh(1, rng)
    near = np.clip(base + 0.001 * rng.standard_normal(base.shape), 0, 1)
    for again in (True, False):
        middle = np.concatenate([others[:30], base, others[30:]]) if again else others
        batch = batch_of(small_world, np.concatenate([base, middle, near]))
        state = ensemble.new_state(8)
        scored = ensemble.score(batch, state)
        slot = state.clients.slots[0]
        newest = (int(slot["distinct"]) - 1) % WINDOW_ROWS
        joined = slot["cluster"][newest] != 255
        assert bool(joined) is again, scored.levels[-1]
