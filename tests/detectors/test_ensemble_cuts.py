"""score(a + b) = score(a) then score(b), to the bit, state and decisions included."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.contract import Batch, Level, Signal, Verdicts
from detectors.kernels import rows
from detectors.queries.memory import Memory
from detectors.scorer import Ensemble

#: Room for far fewer clients, rows and clusters than the traffic has.
CLIENTS, INDEX_ROWS, PLACES = 24, 96, 6
CUTS = 100


@pytest.fixture(scope="module")
def traffic(small_world: Any) -> Batch:
    """Benign clients, a sensor, attackers alone and over accounts, duplicates, bursts of one client, nobody's rows."""
    home, rng = small_world.world(), np.random.default_rng(11)
    base = small_world.benign(home, rng, clients=40, weeks=1, a_week=20)
    pieces = [base.inputs]
    who = [base.clients.astype(np.int64)]
    when = [base.times / small_world.WEEK_US]
    for number, craft in enumerate(small_world.ATTACKS.values()):
        trace = craft(home, rng, 120)
        pieces.append(trace)
        who.append(np.full(len(trace), 1000 + number))
        when.append(np.sort(0.3 * number + 0.3 * rng.random(len(trace))))
    shared = small_world.boundary_walk(home, rng, 120)
    pieces.append(shared)
    who.append(2000 + np.arange(len(shared)) % 5)
    when.append(np.linspace(0.1, 0.9, len(shared)))
    nobodys = home.fresh(80, rng)
    pieces.append(nobodys)
    who.append(np.zeros(80, dtype=np.int64))
    when.append(rng.random(80))
    burst = home.fresh(25, rng)
    burst[5] = burst[4]
    pieces.append(np.concatenate([burst, base.inputs[:15]]))
    who.append(np.concatenate([np.full(25, 3000), base.clients[:15].astype(np.int64)]))
    when.append(np.full(40, 0.5))
    made = small_world.batch_of(home.predict, np.concatenate(pieces), np.concatenate(who), np.concatenate(when))
    wild = made.inputs.copy()
    wild[700] = 1e300
    return replace(made, inputs=wild, offsets=made.offsets // 3 + 5, rows=(made.offsets % 3).astype(np.int32))


def state_of(ensemble: Ensemble) -> Memory:
    return Memory(ensemble.single.frame.width, CLIENTS, INDEX_ROWS, PLACES)


def said(signal: Signal, first: int) -> tuple[Any, ...]:
    arrays = (signal.members, signal.member_clients, signal.input, signal.nearest)
    plain = (
        signal.row + first, signal.rule, signal.level, signal.technique, signal.entity, signal.entity_id,
        signal.statistic, signal.threshold, signal.reasons, signal.label, signal.nearest_label,
        tuple(sorted(signal.measures.items())),
    )  # fmt: skip
    return (*plain, *((array.dtype.str, array.shape, array.tobytes()) for array in arrays))


def bits(parts: list[Verdicts]) -> dict[str, Any]:
    """Everything that verdicts say, as bytes."""
    columns = ("scores", "pvalues", "fused", "statistics", "levels")
    found: dict[str, Any] = {name: b"".join(getattr(part, name).tobytes() for part in parts) for name in columns}
    firsts = np.cumsum([0, *(len(part.fused) for part in parts)])
    found["signals"] = [said(s, int(first)) for part, first in zip(parts, firsts, strict=False) for s in part.signals]
    return found


def score_in_pieces(ensemble: Ensemble, batch: Batch, cuts: list[int], state: Memory) -> list[Verdicts]:
    bounds = [0, *cuts, len(batch)]
    return [ensemble.score(batch.take(slice(a, b)), state) for a, b in itertools.pairwise(bounds)]


def differing_cuts(ensemble: Ensemble, batch: Batch, cut_lists: list[list[int]]) -> list[list[int]]:
    """The ways of cutting that change anything."""
    whole_state = state_of(ensemble)
    whole = bits([ensemble.score(batch, whole_state)])
    digest = whole_state.digest()
    wrong = []
    for cuts in cut_lists:
        state = state_of(ensemble)
        if bits(score_in_pieces(ensemble, batch, cuts, state)) != whole or state.digest() != digest:
            wrong.append(cuts)
    return wrong


def random_cuts(n: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    single = [[int(cut)] for cut in rng.integers(0, n + 1, count)]
    several = [sorted(int(cut) for cut in rng.integers(0, n + 1, pieces)) for pieces in (2, 5, 9, 30, 100)]
    return single + several + [list(range(1, n)), list(range(0, n, 7)), list(range(0, n, 128))]


def test_traffic_holds_what_the_test_is_about(ensemble: Ensemble, traffic: Batch) -> None:
    state = state_of(ensemble)
    verdicts = ensemble.score(traffic, state)
    rules = {(signal.rule, signal.level) for signal in verdicts.signals}
    assert {("query-cluster", Level.TICKET), ("query-intent", Level.PAGE)} <= rules
    assert any(rule.startswith("index") for rule, _ in rules)
    used, _, _, evicted, duplicates, _ = state.clients.scalars
    assert used == CLIENTS
    assert evicted > 200
    assert duplicates > 3
    assert state.index.scalars[0] > 5 * INDEX_ROWS
    assert (state.pool.heads["size"] > 0).all()
    assert (traffic.clients == 0).any()
    assert (verdicts.levels == max_levels(verdicts, len(traffic))).all()


def max_levels(verdicts: Verdicts, n: int) -> NDArray[np.uint8]:
    levels = np.zeros(n, dtype=np.uint8)
    for signal in verdicts.signals:
        levels[signal.row] = max(levels[signal.row], signal.level)
    return levels


def test_cuts_change_nothing(ensemble: Ensemble, traffic: Batch) -> None:
    assert differing_cuts(ensemble, traffic, random_cuts(len(traffic), CUTS)) == []


def test_cuts_change_nothing_with_room_for_all(ensemble: Ensemble, traffic: Batch) -> None:
    whole, cut = ensemble.new_state(2000, 5000), ensemble.new_state(2000, 5000)
    expected = bits([ensemble.score(traffic, whole)])
    assert bits(score_in_pieces(ensemble, traffic, [1, 2, 333, 334, 700], cut)) == expected
    assert cut.digest() == whole.digest()
    assert whole.clients.scalars[3] == 0


def test_memory_layout_changes_nothing(ensemble: Ensemble, traffic: Batch) -> None:
    state, other = state_of(ensemble), state_of(ensemble)
    inputs = np.asfortranarray(traffic.inputs)
    inputs.flags.writeable = False
    clients = np.repeat(traffic.clients, 2)[::2]
    given = replace(traffic, inputs=inputs, clients=clients)
    assert bits([ensemble.score(given, other)]) == bits([ensemble.score(traffic, state)])
    assert state.digest() == other.digest()


# --- what the test sees -----------------------------------------------------------------------------------------------


def rough_neighbours(
    thin: Any, standard: Any, norms: Any, labels: Any, reference: Any, reference_norms: Any, bounds: Any,
    longest: float, columns: Any, own: Any, own_first: Any, own_index: Any, other: Any,
) -> None:  # fmt: skip
    """`rows.neighbours` that believes a single-precision product."""
    reference_thin = np.ascontiguousarray(reference.T, dtype=np.float32)
    squared = norms[:, None] + reference_norms - 2.0 * (thin @ reference_thin).astype(np.float64)
    fill_nearest(np.maximum(squared, 0.0), labels, bounds, own, own_first, own_index, other)


def product_neighbours(
    thin: Any, standard: Any, norms: Any, labels: Any, reference: Any, reference_norms: Any, bounds: Any,
    longest: float, columns: Any, own: Any, own_first: Any, own_index: Any, other: Any,
) -> None:  # fmt: skip
    """`rows.neighbours` from a double-precision product of the whole batch, exact only on the grid."""
    squared = np.maximum(norms[:, None] + reference_norms - 2.0 * (standard @ reference.T), 0.0)
    fill_nearest(squared, labels, bounds, own, own_first, own_index, other)


def fill_nearest(
    squared: NDArray[np.float64], labels: Any, bounds: Any, own: Any, own_first: Any, own_index: Any, other: Any
) -> None:
    for i, label in enumerate(labels):
        mine = squared[i, bounds[label] : bounds[label + 1]]
        own[i], own_first[i] = np.sort(mine)[rows.OWN_RANK - 1], mine.min()
        own_index[i] = bounds[label] + mine.argmin()
        other[i] = np.delete(squared[i], slice(bounds[label], bounds[label + 1])).min()


FEW = [[1], [100], [301], [302, 303], [5, 6, 7, 500]]


def test_products_on_the_grid_are_exact_and_without_the_rounding_the_test_fails(
    ensemble: Ensemble, traffic: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tame = replace(traffic, inputs=np.minimum(traffic.inputs, 2.0)).take(slice(0, 600))
    monkeypatch.setattr(rows, "neighbours", product_neighbours)
    assert differing_cuts(ensemble, tame, FEW) == []

    frame = ensemble.single.frame
    fine = 2.0**44
    unrounded = np.clip((frame.inputs - frame.mean) / frame.scale, -64, 64)
    loose = replace(frame, grid=fine, standardised=unrounded, norms=np.einsum("ij,ij->i", unrounded, unrounded))
    mutant = replace(ensemble, single=replace(ensemble.single, frame=loose))
    assert differing_cuts(mutant, tame, FEW) != []


def test_without_the_exact_second_measurement_the_test_fails(
    ensemble: Ensemble, traffic: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "neighbours", rough_neighbours)
    assert differing_cuts(ensemble, traffic.take(slice(0, 600)), FEW) != []
