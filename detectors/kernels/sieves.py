"""Sieves of neighbour searches: products in single precision that say which reference rows have to be measured.

Their bits depend on batch and machine, so they decide nothing: what they can't rule out is measured again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

#: Values of which `at_most` tells in one word.
MASK_VALUES = 64
#: Unit roundoff of float32.
SINGLE_ROUNDOFF = 2.0**-24
#: Rows whose products with all reference rows stand in the second-level cache at once.
BLOCK_ROWS = 8
#: Rows, and reference rows, whose products are added up in registers.
ROWS_AT_ONCE, COLUMNS = 4, 16
#: Groups of so many columns whose products with a row that is alone are added up in registers.
GROUPS_AT_ONCE = 4
#: Reference rows of a tile in which products are looked through, and the groups of which the least give a first limit.
TILE_ROWS, TILE_GROUPS = 256, COLUMNS

_SINGLE_INF = np.float32(np.inf)
_ONE = np.uint64(1)


@intrinsic
def at_most(typing: Any, values: Any, first: Any, limit: Any) -> Any:
    """Which of 64 bytes or float32 from place `first` of a whole array on are at most `limit`: bit k of a word for k.

    The processor compares 16 to 64 bytes at once; a loop over words of eight takes four times as long.
    """
    kind = values.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        index, lanes = ir.IntType(32), ir.VectorType(context.get_value_type(kind), MASK_VALUES)
        loaded = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), lanes.as_pointer()))
        loaded.align = kind.bitwidth // 8
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), arguments[2], ir.Constant(index, 0))
        every = ir.Constant(ir.VectorType(index, MASK_VALUES), [0] * MASK_VALUES)
        limits = builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), every)
        compare = builder.fcmp_ordered if isinstance(kind, types.Float) else builder.icmp_unsigned
        return builder.bitcast(compare("<=", loaded, limits), ir.IntType(MASK_VALUES))

    return types.uint64(values, types.intp, kind), generate


@intrinsic
def highest_bit(typing: Any, word: Any) -> Any:
    """Place of the highest set bit of a word that isn't zero, 0 to 63."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

    return types.int64(types.uint64), generate


def _multiplier(rows: int, groups: int) -> Any:
    """Products of so many rows with so many groups of `COLUMNS`, added up in registers: a loop would store each sum."""

    @intrinsic
    def multiply(typing: Any, short: Any, row: Any, thin: Any, some: Any, rough: Any, out_row: Any) -> Any:
        """Write them: short from `row` on, thin from `some` on, rough from `out_row` on; as in `rough_products`."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def array(place: int) -> Any:
                return context.make_array(signature.args[place])(context, builder, arguments[place])

            left, columns, out = array(0), array(2), array(4)
            single, word = ir.FloatType(), ir.IntType(64)
            lanes = ir.VectorType(single, COLUMNS)
            shape = ir.FunctionType(lanes, [lanes] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, shape, f"llvm.fmuladd.v{COLUMNS}f32")
            every = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), [0] * COLUMNS)
            undefined, zeros = ir.Constant(lanes, ir.Undefined), ir.Constant(lanes, [0.0] * COLUMNS)
            size = builder.extract_value(left.shape, 1)
            width = builder.mul(builder.extract_value(out.shape, 1), word(TILE_ROWS))
            packed_columns = builder.bitcast(columns.data, lanes.as_pointer())
            these = [builder.add(arguments[3], word(g)) for g in range(groups)]
            starts = [builder.mul(group, size) for group in these]
            sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(groups)] for _ in range(rows)]
            with cgutils.for_range(builder, size) as loop:
                column = []
                for start in starts:
                    loaded = builder.load(builder.gep(packed_columns, [builder.add(start, loop.index)]))
                    loaded.align = 4
                    column.append(loaded)
                for r, totals in enumerate(sums):
                    place = builder.mul(builder.add(arguments[1], word(r)), size)
                    x = builder.load(builder.gep(left.data, [builder.add(place, loop.index)]))
                    one = builder.insert_element(undefined, x, ir.Constant(ir.IntType(32), 0))
                    x_lanes = builder.shuffle_vector(one, undefined, every)
                    for y_lanes, total in zip(column, totals, strict=True):
                        builder.store(builder.call(multiply_add, [x_lanes, y_lanes, builder.load(total)]), total)
            for r, totals in enumerate(sums):
                place = builder.mul(builder.add(arguments[5], word(r)), width)
                for group, total in zip(these, totals, strict=True):
                    at = builder.add(place, builder.mul(group, word(COLUMNS)))
                    to = builder.bitcast(builder.gep(out.data, [at]), lanes.as_pointer())
                    builder.store(builder.load(total), to).align = 4
            return context.get_dummy_value()

        return types.void(short, types.intp, thin, types.intp, rough, types.intp), generate

    return multiply


_multiply_rows = _multiplier(ROWS_AT_ONCE, 1)
_multiply_row = _multiplier(1, GROUPS_AT_ONCE)


@njit(cache=True, nogil=True)
def rough_products(short: Any, start: int, thin: Any, rough: Any) -> None:
    """Products of a block of rows with all columns.

    Parameters
    ----------
    short : float32 (n, q)
    start : int
        First row of the block.
    thin : float32 (c, q, COLUMNS)
        Of whole tiles.
    rough : float32 (b, tiles, TILE_ROWS), filled
        b is 1 or a multiple of ROWS_AT_ONCE; start + b <= n.
    """
    if rough.shape[0] == 1:
        for some in range(0, thin.shape[0], GROUPS_AT_ONCE):
            _multiply_row(short, start, thin, some, rough, 0)
        return
    for some in range(thin.shape[0]):
        for i in range(0, rough.shape[0], ROWS_AT_ONCE):
            _multiply_rows(short, start + i, thin, some, rough, i)


@intrinsic
def lane_minima(typing: Any, values: Any, first: Any, groups: Any, out: Any, place: Any) -> Any:
    """Least of each of `COLUMNS` lanes over so many groups of values from place `first` of a whole array on.

    values, out: float32 arrays, none of whose values is a NaN; out is filled from `place` on. groups >= 1.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, word = ir.VectorType(ir.FloatType(), COLUMNS), ir.IntType(64)

        def at(which: int, offset: Any) -> Any:
            data = context.make_array(signature.args[which])(context, builder, arguments[which]).data
            return builder.bitcast(builder.gep(data, [offset]), lanes.as_pointer())

        def load(group: Any) -> Any:
            loaded = builder.load(at(0, builder.add(arguments[1], builder.mul(group, word(COLUMNS)))))
            loaded.align = 4
            return loaded

        least = cgutils.alloca_once_value(builder, load(word(0)))
        with cgutils.for_range_slice(builder, word(1), arguments[2], word(1), inc=True) as (group, _):
            one, other = load(group), builder.load(least)
            builder.store(builder.select(builder.fcmp_ordered("<", one, other), one, other), least)
        builder.store(builder.load(least), at(3, arguments[4])).align = 4
        return context.get_dummy_value()

    return types.void(values, types.intp, types.intp, out, types.intp), generate


@njit(cache=True, nogil=True)
def group_minima(rough: Any, i: int, lows: Any) -> None:
    """Least products of row i in each group of columns: rough (b, tiles, TILE_ROWS); lows (tiles, TILE_GROUPS)."""
    tiles = rough.shape[1]
    for t in range(tiles):
        lane_minima(rough, (i * tiles + t) * TILE_ROWS, TILE_ROWS // COLUMNS, lows, t * TILE_GROUPS)


@njit(cache=True, nogil=True)
def small_of(rough: Any, i: int, lows: Any, first: Any) -> Any:
    """A number that at least k products of row i lie at or below; infinite where there may be fewer.

    It is the k-th least of the minima of many groups of columns. rough (b, tiles, TILE_ROWS); lows (tiles, TILE_GROUPS)
    and first (k,) are filled; all float32.
    """
    k = first.shape[0]
    group_minima(rough, i, lows)
    first[:] = _SINGLE_INF
    for t in range(lows.shape[0]):
        for g in range(TILE_GROUPS):
            low = lows[t, g]
            if low < first[k - 1]:
                at = k - 1
                while at > 0 and first[at - 1] > low:
                    first[at] = first[at - 1]
                    at -= 1
                first[at] = low
    return first[k - 1]


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def least_of(rough: Any, i: int, lows: Any) -> Any:
    """The least product of row i, and in lows (tiles, TILE_GROUPS) those of each group of columns."""
    group_minima(rough, i, lows)
    least = _SINGLE_INF
    for t in range(lows.shape[0]):
        for g in range(TILE_GROUPS):
            least = min(least, lows[t, g])
    return least


@njit(cache=True, nogil=True)
def places_of(word: Any, first: int, found: Any, count: int) -> int:
    """Add first + k to found[count:] for every set bit k of a word, and say how many there are then.

    The first two are written without a branch to guess, whether there are any or not: found has room for one more.
    """
    for _ in range(2):
        bit = highest_bit(word | _ONE)
        found[count] = first + bit
        count += word != 0
        word &= ~(_ONE << np.uint64(bit))
    while word != 0:
        bit = highest_bit(word)
        word ^= _ONE << np.uint64(bit)
        found[count] = first + bit
        count += 1
    return count


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def columns_within(rough: Any, i: int, lows: Any, limit: Any, found: Any) -> int:
    """Columns whose products with row i are at most `limit`, and how many.

    rough, lows as `group_minima` leaves them; limit float32, finite; found int64 (tiles * TILE_ROWS + 1,), filled from
    the start.
    """
    count = 0
    tiles = rough.shape[1]
    for t in range(tiles):
        low = _SINGLE_INF
        for g in range(TILE_GROUPS):
            low = min(low, lows[t, g])
        if low > limit:
            continue
        for first in range(t * TILE_ROWS, (t + 1) * TILE_ROWS, MASK_VALUES):
            count = places_of(at_most(rough, i * tiles * TILE_ROWS + first, limit), first, found, count)
    return count


def packed(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """(c, q, COLUMNS) as `rough_products` reads them, of columns given as rows (c * COLUMNS, q)."""
    return np.ascontiguousarray(columns.reshape(-1, COLUMNS, columns.shape[1]).transpose(0, 2, 1))
