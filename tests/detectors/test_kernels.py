"""Kernels against plain references, and the bits that decisions rest on."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from detectors import kernels
from detectors.contract import Batch
from detectors.kernels import exact, rows, sieves, siphash
from detectors.view import BatchView, ReferenceFrame

KEY = bytes(range(16))
#: Outputs for the key 00..0f and the input 00, 01 ... of each length: appendix A of the paper (15), and the authors'
#: reference implementation (the others).
VECTORS = {
    0: 0x726FDB47DD0E0E31,
    1: 0x74F839C593DC67FD,
    2: 0x0D6C8009D9A94F5A,
    7: 0xAB0200F58B01D137,
    8: 0x93F5F5799A932462,
    15: 0xA129CA6149BE45E5,
}
MASK = 2**64 - 1


def plain_siphash(key: bytes, data: bytes) -> int:
    """SipHash-2-4 with Python's integers, straight from section 2 of the paper."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turn(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & MASK

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & MASK
            v[2] = (v[2] + v[3]) & MASK
            v[1], v[3] = turn(v[1], 13) ^ v[0], turn(v[3], 16) ^ v[2]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[1]) & MASK
            v[0] = (v[0] + v[3]) & MASK
            v[1], v[3] = turn(v[1], 17) ^ v[2], turn(v[3], 21) ^ v[0]
            v[2] = turn(v[2], 32)

    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) % 256])
    for start in range(0, len(padded), 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


@pytest.mark.parametrize(("length", "expected"), VECTORS.items())
def test_siphash_matches_published_vectors(length: int, expected: int) -> None:
    assert siphash.hash_bytes(KEY, bytes(range(length))) == expected
    assert plain_siphash(KEY, bytes(range(length))) == expected


@settings(deadline=None)
@given(st.lists(st.binary(max_size=70), min_size=1, max_size=8), st.binary(min_size=16, max_size=16))
def test_siphash_of_slices_matches_plain_python(parts: list[bytes], key: bytes) -> None:
    stops = np.cumsum([len(part) for part in parts])
    starts = stops - [len(part) for part in parts]
    out = np.empty(len(parts), dtype=np.uint64)
    data = np.frombuffer(bytearray(b"".join(parts)), dtype=np.uint8)
    siphash.siphash_slices(data, starts, stops, *siphash.key_words(key), out)
    assert out.tolist() == [plain_siphash(key, part) for part in parts]


def test_siphash_refuses_a_key_of_another_length() -> None:
    with pytest.raises(ValueError, match="16 bytes, got 15"):
        siphash.key_words(bytes(15))


@settings(deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e300))
def test_steady_log_is_within_two_units(x: float) -> None:
    true = math.log(x)
    assert abs(rows.steady_log(x) - true) <= 2 * math.ulp(true) + 2.0**-60


@settings(deadline=None)
@given(st.floats(min_value=-1000, max_value=1000))
def test_steady_exp2_is_within_four_units(x: float) -> None:
    true = 2.0**x
    assert abs(rows.steady_exp2(x) - true) <= 4 * math.ulp(true)


# --- exact products ---------------------------------------------------------------------------------------------------


def on_grid_rows(n: int, d: int, seed: int, sd: float = 1.0) -> NDArray[np.float64]:
    return exact.on_grid(np.random.default_rng(seed).normal(0, sd, (n, d)), exact.grid_for(d))


@pytest.mark.parametrize("d", [1, 2, 3, 8, 57, 64, 784, 3072])
def test_largest_products_stay_exact(d: int) -> None:
    grid = exact.grid_for(d)
    extreme = np.full(d, exact.CLIP_SD)
    extreme[::2] -= 1 / grid
    steps = (extreme * grid).astype(int).tolist()
    whole = sum(step * step for step in steps)
    assert 4 * whole <= 2**53  # room for |x|^2 - 2 x.y + |y|^2
    assert int(float(extreme @ extreme) * grid * grid) == whole


def test_grid_clips_and_rounds() -> None:
    grid = exact.grid_for(64)
    assert grid == 2.0**16
    values = np.array([0.3, -0.3, 1e9, -1e9, 64.0])
    found = exact.on_grid(values, grid)
    assert found[2:].tolist() == [64.0, -64.0, 64.0]
    assert (found * grid == np.rint(found * grid)).all()
    assert np.abs(found[:2] - values[:2]).max() <= 0.5 / grid


def differing_cuts(left: NDArray[np.float64], right: NDArray[np.float64]) -> int:
    """At how many cuts a BLAS product in pieces differs, in any bit, from the product in one piece."""
    whole = left @ right.T
    pieces = (1, 2, 3, 5, 7, 33, 128, 333)
    cut = [np.concatenate([left[s : s + p] @ right.T for s in range(0, len(left), p)]) for p in pieces]
    return sum(part.tobytes() != whole.tobytes() for part in cut)


def test_products_on_the_grid_do_not_depend_on_cuts_and_plain_ones_do() -> None:
    left, right = np.random.default_rng(0).normal(size=(1000, 64)), np.random.default_rng(1).normal(size=(300, 64))
    assert differing_cuts(left, right) > 0
    grid = exact.grid_for(64)
    assert differing_cuts(exact.on_grid(left, grid), exact.on_grid(right, grid)) == 0


def test_products_on_the_grid_do_not_depend_on_order_and_plain_ones_do() -> None:
    plain = np.random.default_rng(0).normal(size=(200, 64))
    gridded = exact.on_grid(plain, exact.grid_for(64))

    def forwards_and_backwards(values: NDArray[np.float64]) -> tuple[list[float], list[float]]:
        squares = (values * values).tolist()
        return [sum(row) for row in squares], [sum(reversed(row)) for row in squares]

    there, back = forwards_and_backwards(gridded)
    assert there == back == exact.square_norms(gridded).tolist()
    there, back = forwards_and_backwards(plain)
    assert there != back


def test_prepared_rows_equal_the_plain_formula() -> None:
    rng = np.random.default_rng(4)
    inputs = rng.normal(0, 3, (50, 7)) * 10.0 ** rng.integers(-3, 6, 7)
    inputs[3], inputs[4] = 1e308, -1e308
    mean, scale, grid = rng.normal(size=7), rng.uniform(0.1, 9, 7), exact.grid_for(7)
    standard, thin, norms = np.empty((50, 7)), np.empty((50, 7), dtype=np.float32), np.empty(50)
    labels = np.zeros(50, dtype=np.int32)
    assert rows.prepare(inputs, labels, mean, scale, grid, 1, standard, thin, norms) == -1
    expected = exact.standardise(inputs, mean, scale, grid)
    assert standard.tobytes() == expected.tobytes()
    assert thin.tobytes() == expected.astype(np.float32).tobytes()
    assert norms.tobytes() == exact.square_norms(expected).tobytes()
    inputs[20, 6] = np.nan
    assert rows.prepare(inputs, labels, mean, scale, grid, 1, standard, thin, norms) == 20


# --- neighbours -------------------------------------------------------------------------------------------------------


def frame_of(reference: NDArray[np.float64], labels: NDArray[np.int32], classes: int) -> ReferenceFrame:
    """A frame whose standardised rows are the given ones, rounded."""
    order = np.argsort(labels, kind="stable")
    d = reference.shape[1]
    chosen = reference[order]
    given: dict[str, NDArray[Any]] = {
        "mean": np.zeros(d),
        "scale": np.ones(d),
        "inputs": chosen,
        "labels": labels[order],
        "centres": chosen,
    }
    return ReferenceFrame.restore(given, classes)


def batch_of(inputs: NDArray[np.float64], labels: NDArray[np.int32]) -> Batch:
    wide = np.zeros(len(inputs), dtype=np.int64)
    return Batch(inputs, labels, wide.astype(np.uint64), wide, wide, labels)


def plain_neighbours(view: BatchView) -> tuple[list[float], list[float], list[int], list[float]]:
    """Whole numbers of grid steps, sorted: no rounding anywhere."""
    frame = view.frame
    steps = (view.standardised * frame.grid).astype(np.int64).astype(object)
    reference = (frame.standardised * frame.grid).astype(np.int64).astype(object)
    own, nearest, index, other = [], [], [], []
    for row, label in zip(steps, view.batch.labels, strict=True):
        squared = [int(((row - r) ** 2).sum()) for r in reference]
        mine = sorted((s, j) for j, s in enumerate(squared) if frame.labels[j] == label)
        others = sorted(s for j, s in enumerate(squared) if frame.labels[j] != label)
        first = mine[min(rows.OWN_RANK, len(mine)) - 1][0] if mine else others[0]
        own.append(first / frame.grid**2)
        nearest.append((mine[0][0] if mine else others[0]) / frame.grid**2)
        index.append(mine[0][1] if mine else -1)
        other.append((others[0] if others else first) / frame.grid**2)
    return own, nearest, index, other


@pytest.mark.parametrize(
    ("n", "d", "sizes", "sd"),
    [
        (150, 64, (90, 100, 75), 1.0),
        (40, 64, (3, 1, 0, 70), 1.0),
        (30, 1, (20, 30), 1.0),
        (30, 3, (200, 10), 30.0),
        (20, 300, (40, 41), 1.0),
        (9, 8, (12, 0), 1.0),
        (30, 5, (64, 64), 1e-4),
    ],
)
def test_neighbours_match_whole_numbers(n: int, d: int, sizes: tuple[int, ...], sd: float) -> None:
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    reference = np.random.default_rng(1).normal(0, sd, (len(labels), d))
    reference[1::4] = reference[::4][: len(reference[1::4])]  # equal distances
    inputs = np.random.default_rng(2).normal(0, sd, (n, d))
    inputs[:5] = reference[:5]
    inputs[5] = 1e9
    predicted = np.random.default_rng(3).integers(0, len(sizes), n).astype(np.int32)
    view = BatchView(frame_of(reference, labels, len(sizes)), batch_of(inputs, predicted))
    own, nearest, index, other = plain_neighbours(view)
    assert view.own_squared.tolist() == own
    assert view.nearest_own.tolist() == index
    assert view.other_squared.tolist() == other
    assert view.own_distance.tolist() == [math.sqrt(s) for s in own]
    assert view.own_nearest.tolist() == [math.sqrt(s) for s in nearest]
    assert view.other_distance.tolist() == [math.sqrt(s) for s in other]


def whole_number_neighbours(view: BatchView) -> tuple[NDArray[Any], ...]:
    """Own, own nearest, its index and other by a product of whole numbers of grid steps, every pair measured."""
    frame = view.frame
    steps, reference = (np.rint(part * frame.grid) for part in (view.standardised, frame.standardised))
    squared = (steps**2).sum(axis=1)[:, None] + (reference**2).sum(axis=1) - 2.0 * (steps @ reference.T)
    squared /= frame.grid**2
    mine = frame.labels == view.batch.labels[:, None]
    count = mine.sum(axis=1)
    own, others = np.where(mine, squared, np.inf), np.where(mine, np.inf, squared).min(axis=1)
    place = np.clip(count, 1, rows.OWN_RANK) - 1
    fifth = np.sort(own, axis=1)[np.arange(len(own)), place]
    fifth, first = (np.where(count > 0, found, others) for found in (fifth, own.min(axis=1)))
    index = np.where(count > 0, own.argmin(axis=1), -1)
    return fifth, first, index, np.where(count < len(frame.labels), others, fifth)


def rows_of(kind: str, r: int, d: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reference rows (r, d) and inputs (70, d)."""
    if kind == "noise":
        return rng.normal(size=(r, d)), rng.normal(size=(70, d))
    if kind == "clusters":
        centres = rng.normal(size=(7, d)) * 2
        near = centres[rng.integers(0, 7, r + 70)] + rng.normal(0, 0.2, (r + 70, d))
        return near[:r], near[r:]
    if kind == "ties":
        return rng.integers(-1, 2, (r, d)).astype(float), rng.integers(-1, 2, (70, d)).astype(float)
    if kind == "one row":
        return np.full((r, d), 0.3), np.full((70, d), 0.3)
    if kind == "far":
        return 60.0 + rng.normal(0, 1e-4, (r, d)), rng.choice([-1e9, 59.9999, 60.0, 1e9], (70, d))
    heavy = rng.standard_t(1, (r + 70, d))
    return heavy[:r], heavy[r:]


@pytest.mark.parametrize("kind", ["noise", "clusters", "ties", "one row", "far", "heavy tails"])
@pytest.mark.parametrize(
    ("d", "sizes"),
    [
        (64, (100,) * 10),
        (64, (0, 1, 2, 5, 300, 4, 0)),
        (1, (300, 20, 255)),
        (7, (16, 240, 256, 1)),
        (64, (1,)),
        (64, (257,)),
        (64, (0, 31, 0)),
        (784, (150, 150)),
        (20, (5000, 3)),
        (3, (1, 2) * 40),
    ],
)
def test_neighbours_are_those_of_all_pairs_however_cut(kind: str, d: int, sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    rng = np.random.default_rng(len(labels) + d)
    reference, inputs = rows_of(kind, len(labels), d, rng)
    some = rng.choice(len(reference), 5)
    inputs[:5] = reference[some]
    reference[rng.choice(len(reference), 5)] = reference[some]
    batch = batch_of(inputs, rng.integers(0, len(sizes), len(inputs)).astype(np.int32))
    frame = frame_of(reference, labels, len(sizes))

    def found(start: int, stop: int) -> list[NDArray[Any]]:
        view = BatchView(frame, batch.take(slice(start, stop)))
        return [view.own_squared, view.own_nearest, view.nearest_own, view.other_squared]

    own, first, index, other = whole_number_neighbours(BatchView(frame, batch))
    for cuts in ([0, 70], [0, 0, 1, 2, 4, 7, 12, 20, 29, 45, 70]):
        parts = [np.concatenate(part) for part in zip(*(found(a, b) for a, b in itertools.pairwise(cuts)), strict=True)]
        assert parts[0].tobytes() == own.tobytes()
        assert parts[1].tobytes() == np.sqrt(first).tobytes()
        assert parts[2].tolist() == index.tolist()
        assert parts[3].tobytes() == other.tobytes()


def test_far_from_the_origin_the_proposals_still_hold_the_nearest() -> None:
    labels = np.repeat(np.arange(2, dtype=np.int32), 400)
    reference = 63.0 + np.random.default_rng(1).normal(0, 2e-4, (800, 64))
    inputs = 63.0 + np.random.default_rng(2).normal(0, 2e-4, (20, 64))
    view = BatchView(frame_of(reference, labels, 2), batch_of(inputs, np.zeros(20, dtype=np.int32)))
    rough = view.frame.norms.astype(np.float32) - 2 * (inputs.astype(np.float32) @ thin_of(view.frame.standardised))
    own, nearest, index, other = plain_neighbours(view)
    assert rough[:, :400].argmin(axis=1).tolist() != index  # single precision alone is lost here
    assert view.nearest_own.tolist() == index
    assert (view.own_squared.tolist(), view.other_squared.tolist()) == (own, other)
    assert view.own_nearest.tolist() == [math.sqrt(s) for s in nearest]


def thin_of(reference: NDArray[np.float64]) -> NDArray[np.float32]:
    """(d, r) reference rows as columns in single precision."""
    return np.ascontiguousarray(reference.T, dtype=np.float32)


def proposals_only(
    thin: Any, standard: Any, norms: Any, labels: Any, reference: Any, reference_norms: Any, bounds: Any,
    longest: float, columns: Any, own: Any, own_first: Any, own_index: Any, other: Any,
) -> None:  # fmt: skip
    """`rows.neighbours` without the exact second measurement."""
    squared = norms[:, None] + reference_norms - 2.0 * (thin @ thin_of(reference)).astype(np.float64)
    for i, label in enumerate(labels):
        mine = squared[i, bounds[label] : bounds[label + 1]]
        own[i] = np.sort(mine)[rows.OWN_RANK - 1]
        own_first[i], own_index[i] = mine.min(), bounds[label] + mine.argmin()
        other[i] = np.delete(squared[i], slice(bounds[label], bounds[label + 1])).min()


def cut_and_whole(frame: ReferenceFrame, batch: Batch) -> tuple[bytes, bytes]:
    def bits(part: Batch) -> tuple[bytes, bytes]:
        view = BatchView(frame, part)
        return view.own_squared.tobytes(), view.other_squared.tobytes()

    bounds = [0, 1, 2, 5, 38, 38, 200, 201, 330, len(batch)]
    parts = [bits(batch.take(slice(a, b))) for a, b in itertools.pairwise(bounds)]
    whole = bits(batch)
    return b"".join(own for own, _ in parts) + b"".join(other for _, other in parts), whole[0] + whole[1]


def test_distances_do_not_depend_on_cuts_and_without_the_recheck_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.int32), 30)
    frame = frame_of(rng.normal(size=(300, 64)), labels, 10)
    batch = batch_of(rng.normal(size=(400, 64)), rng.integers(0, 10, 400).astype(np.int32))
    cut, whole = cut_and_whole(frame, batch)
    assert cut == whole
    monkeypatch.setattr(rows, "neighbours", proposals_only)
    cut, whole = cut_and_whole(frame, batch)
    assert cut != whole


# --- p-values, sketches, codes ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(-5, 5), max_size=40).map(sorted),
    st.lists(st.floats(-6, 6), min_size=1, max_size=20),
)
def test_at_least_counts(values: list[int], queries: list[float]) -> None:
    ascending = np.array(values, dtype=np.float64)
    for x in [*queries, *map(float, range(-6, 7))]:
        assert rows.at_least(ascending, x) == sum(v >= x for v in values)


def test_conformal_ranks_and_fusion_match_numpy() -> None:
    rng = np.random.default_rng(0)
    n, detectors, classes, m = 200, 4, 3, 57
    scores, labels = rng.normal(size=(n, detectors)).round(1), rng.integers(0, classes, n).astype(np.int32)
    centres, spreads = rng.normal(size=(classes, detectors)), rng.uniform(0.5, 2, (classes, detectors))
    calibration = np.sort(rng.normal(size=(detectors, m)).round(1), axis=1)
    ranks = np.empty((n, detectors), dtype=np.int32)
    rows.conformal_ranks(scores, labels, centres, spreads, calibration, ranks)
    normal = (scores - centres[labels]) / spreads[labels]
    expected = (calibration[None] >= normal[:, :, None]).sum(axis=2)
    assert (ranks == expected).all()

    surprise, weights = -np.log((1 + np.arange(m + 1)) / (m + 1)), rng.uniform(size=detectors)
    sums = np.sort(rng.exponential(2, 31))
    fused, rank = np.empty(n), np.empty(n, dtype=np.int32)
    rows.fuse(ranks, surprise, weights, sums, fused, rank)
    np.testing.assert_allclose(fused, surprise[ranks] @ weights, rtol=1e-14)
    assert (rank == (sums[None] >= fused[:, None]).sum(axis=1)).all()


@pytest.mark.parametrize("reference_rows", [0, 3, 5, 64, 1000])
def test_sketch_rank_matches_numpy(reference_rows: int) -> None:
    rng = np.random.default_rng(0)
    sketch = rng.integers(0, 2**32, 60, dtype=np.uint32)
    reference = rng.integers(0, 2**32, reference_rows, dtype=np.uint32)
    reference[: len(reference) // 2] = sketch[: len(reference) // 2] if reference_rows <= 100 else 7
    out = np.empty(60, dtype=np.int32)
    rows.sketch_rank(sketch, rows.byte_planes(reference), out)
    differing = [[(int(s) ^ int(r)).bit_count() for r in reference] for s in sketch]
    assert out.tolist() == [sorted(d)[rows.OWN_RANK - 1] if len(d) >= rows.OWN_RANK else 32 for d in differing]


def test_differing_bits_match_python() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, 333, dtype=np.uint64)
    out = np.full(333, 77, dtype=np.uint8)
    rows.differing_bits(words[5], rows.byte_planes(words), 300, out)
    assert out[:300].tolist() == [int(words[5] ^ word).bit_count() for word in words[:300]]
    assert (out[300:] == 77).all()


@njit
def hits_of(values: Any, first: int, limit: int) -> Any:
    """The mask of 64 bytes, and its bits from the highest down."""
    mask = sieves.at_most(values, first, np.uint8(limit))
    left, found = mask, [np.int64(0) for _ in range(0)]
    while left != np.uint64(0):
        top = sieves.highest_bit(left)
        left ^= np.uint64(1) << np.uint64(top)
        found.append(top)
    return mask, found


@pytest.mark.parametrize("limit", [0, 1, 9, 127, 128, 254, 255])
def test_a_mask_of_bytes_at_most_a_limit_matches_numpy(limit: int) -> None:
    values = np.random.default_rng(limit).integers(0, 256, 200, dtype=np.uint8)
    values[[3, 3 + sieves.MASK_VALUES - 1]] = limit
    mask, found = hits_of(values, 3, limit)
    expected = np.flatnonzero(values[3 : 3 + sieves.MASK_VALUES] <= limit)
    assert found == expected[::-1].tolist()
    assert int(mask) == sum(1 << int(k) for k in expected)


def test_a_mask_of_bytes_above_the_limit_is_empty() -> None:
    mask, found = hits_of(np.full(sieves.MASK_VALUES, 8, dtype=np.uint8), 0, 7)
    assert int(mask) == 0 and found == []


@njit
def word_of(values: Any, first: int, limit: Any) -> Any:
    return sieves.at_most(values, first, limit)


@pytest.mark.parametrize("limit", [-np.inf, -1.0, 0.0, 0.3, np.inf])
def test_a_mask_of_singles_at_most_a_limit_matches_numpy(limit: float) -> None:
    values = np.random.default_rng(1).normal(size=(3, 128)).astype(np.float32)
    values[1, 5:9] = limit, np.inf, np.nan, -np.inf
    expected = np.flatnonzero(values.ravel()[130 : 130 + sieves.MASK_VALUES] <= np.float32(limit))
    assert int(word_of(values, 130, np.float32(limit))) == sum(1 << int(k) for k in expected)


def projection_of(width: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(5).normal(size=(width, rows.CODE_DIMS + 64)) / math.sqrt(width)
    return exact.on_grid(drawn, exact.grid_for(width))


def coded(inputs: NDArray[np.float64], salt: int = 1) -> tuple[NDArray[Any], ...]:
    n, d = inputs.shape
    keys = np.random.default_rng(salt).integers(0, 2**64, size=d, dtype=np.uint64)
    out = rows.empty_codes(n)
    products = exact.on_grid(inputs, exact.grid_for(d)) @ projection_of(d)
    rows.codes(inputs, products, np.full(rows.CODE_DIMS, 127 / rows.CODE_RANGE_SD), keys, 1, *out)
    return out


def test_codes_match_the_plain_projection_and_do_not_depend_on_cuts() -> None:
    inputs = np.random.default_rng(0).normal(0, 2, (90, 20))
    whole = coded(inputs)
    products = exact.on_grid(inputs, exact.grid_for(20)) @ projection_of(20)
    steps = products[:, : rows.CODE_DIMS] * (127 / rows.CODE_RANGE_SD)
    assert np.abs(whole[0] - np.clip(steps, -127, 127)).max() <= 0.5 + 1e-9
    signs = products[:, rows.CODE_DIMS :] > 0
    assert [[bool(int(word) >> j & 1) for j in range(64)] for word in whole[2]] == signs.tolist()
    for cut in (1, 13, 89):
        parts = zip(coded(inputs[:cut]), coded(inputs[cut:]), strict=True)
        for all_at_once, (first, second) in zip(whole, parts, strict=True):
            assert np.concatenate([first, second]).tobytes() == all_at_once.tobytes()


def test_sketches_differ_in_few_bits_where_few_features_do() -> None:
    inputs = np.random.default_rng(0).normal(0, 2, (200, 40))
    changed = inputs.copy()
    changed[:, :3] += 1.0
    one, other = coded(inputs)[1], coded(changed)[1]
    differing = [int(a ^ b).bit_count() for a, b in zip(one, other, strict=True)]
    assert max(differing) <= 3
    assert 1.2 < np.mean(differing) < 1.8


def test_row_hash_tells_rows_apart_and_takes_both_zeros_for_one() -> None:
    inputs = np.random.default_rng(0).integers(0, 2, (500, 12)).astype(np.float64)
    hashes = coded(inputs)[3]
    same = (inputs[:, None] == inputs[None]).all(axis=2)
    assert ((hashes[:, None] == hashes[None]) == same).all()
    assert (coded(np.where(inputs == 0.0, -0.0, inputs))[3] == hashes).all()
    assert (coded(inputs, salt=2)[3] != hashes).all()


# --- the cache and the threads ----------------------------------------------------------------------------------------


def test_source_digest_follows_names_and_contents(tmp_path: Path) -> None:
    source = tmp_path / "detectors" / "kernels" / "one.py"
    source.parent.mkdir(parents=True)
    source.write_text("x = 1\n")
    first = kernels.source_digest(tmp_path)
    assert kernels.source_digest(tmp_path) == first
    source.write_text("x = 2\n")
    second = kernels.source_digest(tmp_path)
    source.rename(source.with_name("two.py"))
    third = kernels.source_digest(tmp_path)
    assert len({first, second, third}) == 3


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_cache_is_keyed_by_sources_wherever_it_lies(tmp_path: Path) -> None:
    ask = "import os; from detectors import kernels; print(os.environ['NUMBA_CACHE_DIR'])"
    outer = run(ask, NUMBA_CACHE_DIR=str(tmp_path))
    name = kernels.CACHE_PREFIX + kernels.source_digest(Path(kernels.__file__).parents[2])
    assert outer == str(tmp_path / name)
    assert run(ask, NUMBA_CACHE_DIR=outer) == outer
    stale = str(tmp_path / (kernels.CACHE_PREFIX + "0" * 16))
    assert run(ask, NUMBA_CACHE_DIR=stale) == outer


def test_cache_falls_back_to_the_users_when_the_environment_is_read_only(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, so no directory can be made below it")
    program = (
        "import os, sys; os.environ.pop('NUMBA_CACHE_DIR', None); "
        f"sys.prefix = {str(blocked)!r}; from detectors import kernels; print(os.environ['NUMBA_CACHE_DIR'])"
    )
    found = run(program, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert Path(found).parent == tmp_path / "cache" / "vedette"


def test_warm_up_compiles_all_that_scoring_uses() -> None:
    program = """
import numpy as np
from detectors import kernels, registry
from detectors.contract import Batch, Reference
from detectors.kernels import rows
from detectors.schema import FeatureSchema
from detectors.view import BatchView, ReferenceFrame
kernels.warm_up()
compiled = {n: len(k.signatures) for n, k in vars(rows).items() if hasattr(k, "signatures")}
rng = np.random.default_rng(0)
inputs, labels = rng.uniform(size=(300, 4)), rng.integers(0, 2, 300).astype(np.int32)
schema = FeatureSchema.image((2, 2), ("a", "b"))
reference = Reference(inputs, labels)
frame = ReferenceFrame.fit(reference, 2, rng)
wide = np.zeros(300, dtype=np.int64)
inputs.flags.writeable = labels.flags.writeable = False
view = BatchView(frame, Batch(inputs, labels, wide.astype(np.uint64), wide, wide, labels))
for name in registry.DEFAULT:
    registry.kind(name)().fit(reference, schema, rng).score(view)
after = {n: len(k.signatures) for n, k in vars(rows).items() if hasattr(k, "signatures")}
print(after == compiled, max(after.values()))
"""
    assert run(program) == "True 1"


def test_blas_keeps_to_one_thread() -> None:
    program = """
import numpy, os
from detectors import kernels
kernels.limit_blas_threads()
from threadpoolctl import threadpool_info
print({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}, os.environ["OMP_NUM_THREADS"])
"""
    assert run(program, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2") == "{1} 1"
