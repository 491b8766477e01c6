"""Decimal numbers as JSON writes them, to float64, compiled; rounded as IEEE 754 asks, so bits are those of `float`.

Short numbers by Clinger's exact case ("How to read floating point numbers accurately", PLDI 1990), the others by Eisel
and Lemire's product (Lemire, "Number parsing at a gigabyte per second", Software: Practice and Experience 51, 2021).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

import detectors.kernels  # noqa: F401  (it says where compiled code is kept)

#: For functions that only compiled code calls: without the wrappers for Python, which take a quarter of compiling.
inner = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")

#: Bytes behind the last number that `number` may look at.
PADDING = 16
#: Longest number of digits that always fits 64 bits.
MAX_DIGITS = 19
#: Longer numbers are not read.
MAX_NUMBER_BYTES = 400
#: In place of the next position: not read.
NOT_READ = -1

_POINT, _MINUS, _PLUS, _ZERO = 0x2E, 0x2D, 0x2B, 0x30
_E_UPPER, _E_LOWER = 0x45, 0x65

#: Powers of ten that are exact in float64 (Clinger 1990).
_EXACT = np.array([float(10**q) for q in range(23)])
_EXACT_POWER, _EXACT_MANTISSA = 22, np.uint64(1 << 53)
#: Decimal exponents beyond which a number of 19 digits is 0, or infinite.
_LEAST_POWER, _GREATEST_POWER = -342, 308
#: 5**27 is the greatest that fits 64 bits.
_LEAST_EXACT_RECIPROCAL = -27


def _fifth_powers() -> NDArray[np.uint64]:
    """128 leading bits of 5**q for each q, as (high, low): rounded up for -27 <= q < 0, else down (Lemire 2021)."""
    words = []
    for q in range(_LEAST_POWER, _GREATEST_POWER + 1):
        if q >= 0:
            power = 5**q
            shift = 128 - power.bit_length()
            bits = power << shift if shift >= 0 else power >> -shift
        else:
            power = 5**-q
            bits = (1 << (power.bit_length() + 127)) // power + (q >= _LEAST_EXACT_RECIPROCAL)
        words.append((bits >> 64, bits & (2**64 - 1)))
    return np.array(words, dtype=np.uint64)


_FIFTH = _fifth_powers()
_1, _3, _52, _63 = (np.uint64(bits) for bits in (1, 3, 52, 63))
_NINE, _TEN, _ALL = np.uint64(9), np.uint64(10), np.uint64(2**64 - 1)
_PAIR = np.uint64(0x000000FF000000FF)
_HIDDEN = np.uint64(1 << 52)
#: The product's bits below the 52 + 3 that rounding looks at.
_UNSEEN = np.uint64((1 << 9) - 1)
_LEAST_EXPONENT = -1023


@intrinsic
def _product(typing: Any, a: Any, b: Any) -> Any:
    """High and low word of the 128-bit product of two words."""
    signature = types.UniTuple(types.uint64, 2)(types.uint64, types.uint64)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, double = ir.IntType(64), ir.IntType(128)
        whole = builder.mul(*(builder.zext(argument, double) for argument in arguments))
        high = builder.trunc(builder.lshr(whole, double(64)), word)
        return context.make_tuple(builder, signature.return_type, (high, builder.trunc(whole, word)))

    return signature, build


@intrinsic
def _leading_zeros(typing: Any, a: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], cgutils.false_bit)

    return types.uint64(types.uint64), build


@intrinsic
def as_float(typing: Any, a: Any) -> Any:
    """The float64 of these bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.uint64), build


@intrinsic
def as_float32(typing: Any, a: Any) -> Any:
    """The float64 that equals the float32 of these low 32 bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        single = builder.bitcast(builder.trunc(arguments[0], ir.IntType(32)), ir.FloatType())
        return builder.fpext(single, ir.DoubleType())

    return types.float64(types.uint64), build


@intrinsic
def byte(typing: Any, base: Any, at: Any) -> Any:
    """The byte (int64) that stands `at` bytes behind the address `base`.

    Addresses instead of arrays: an array that is passed on costs an atomic count of its users for each number read.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(builder.add(*arguments), ir.IntType(8).as_pointer())
        return builder.zext(builder.load(place, align=1), ir.IntType(64))

    return types.int64(types.int64, types.int64), build


@intrinsic
def word(typing: Any, base: Any, at: Any) -> Any:
    """Eight bytes that stand `at` bytes behind the address `base`, as a little-endian uint64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(builder.add(*arguments), ir.IntType(64).as_pointer())
        loaded = builder.load(place, align=1)
        return loaded if sys.byteorder == "little" else builder.bswap(loaded)

    return types.uint64(types.int64, types.int64), build


@inner
def _scaled(digits: Any, power: int) -> Any:
    """digits * 10**power, rounded as IEEE 754 asks, as the bits of a float64; all ones where that stays undecided.

    Lemire 2021, algorithm 1, with subnormal numbers. digits uint64, not 0.
    """
    if power < _LEAST_POWER:
        return np.uint64(0)
    if power > _GREATEST_POWER:
        return _ALL
    zeros = _leading_zeros(digits)
    shifted = digits << zeros
    high, low = _product(shifted, _FIFTH[power - _LEAST_POWER, 0])
    if high & _UNSEEN == _UNSEEN:
        more, _ = _product(shifted, _FIFTH[power - _LEAST_POWER, 1])
        low = low + more
        if more > low:
            high = high + _1
    if low == _ALL and (power < -27 or power > 55):
        return _ALL
    top = high >> _63
    shift = top + np.uint64(9)
    mantissa = high >> shift
    binary = ((217706 * power) >> 16) + 63
    exponent = binary + np.int64(top) - np.int64(zeros) - _LEAST_EXPONENT
    if exponent <= 0:
        if exponent < -62:
            return np.uint64(0)
        mantissa >>= np.uint64(1 - exponent)
        return (mantissa + (mantissa & _1)) >> _1
    if low <= _1 and -4 <= power <= 23 and mantissa & _3 == _1 and mantissa << shift == high:
        mantissa -= _1
    mantissa = (mantissa + (mantissa & _1)) >> _1
    if mantissa == _HIDDEN << _1:
        mantissa = _HIDDEN
        exponent += 1
    if exponent >= 2047:
        return _ALL
    return (np.uint64(exponent) << _52) | (mantissa ^ _HIDDEN)


@inner
def _eight_digits(eight: Any) -> bool:
    """Whether eight bytes are ASCII digits."""
    over = (eight + np.uint64(0x4646464646464646)) | (eight - np.uint64(0x3030303030303030))
    return over & np.uint64(0x8080808080808080) == np.uint64(0)


@inner
def _eight_digits_value(eight: Any) -> Any:
    """The number that eight ASCII digits spell: neighbours are joined to pairs, fours and the whole."""
    eight = eight - np.uint64(0x3030303030303030)
    eight = eight * _TEN + (eight >> np.uint64(8))
    low = (eight & _PAIR) * np.uint64(100 + (1000000 << 32))
    high = ((eight >> np.uint64(16)) & _PAIR) * np.uint64(1 + (10000 << 32))
    return (low + high) >> np.uint64(32)


@inner
def number(data: Any, at: int) -> Any:
    """The JSON number that begins `at` bytes behind the address `data`; a byte that fits no number must end it.

    Returns
    -------
    value : float64
    next : int
        The first place behind it; NOT_READ when it is no number, is infinite, or stays undecided.
    whole : bool
        It has neither a fraction nor an exponent.
    """
    begin = at
    negative = byte(data, at) == _MINUS
    if negative:
        at += 1
    first = at
    digits = np.uint64(0)
    while True:
        digit = np.uint64(byte(data, at) - _ZERO)
        if digit > _NINE:
            break
        digits = digits * _TEN + digit
        at += 1
    count = at - first
    if count == 0 or (count > 1 and byte(data, first) == _ZERO):
        return 0.0, NOT_READ, False
    power = 0
    whole = True
    if byte(data, at) == _POINT:
        whole = False
        at += 1
        fraction = at
        eight = word(data, at)
        while _eight_digits(eight):
            digits = digits * np.uint64(100_000_000) + _eight_digits_value(eight)
            at += 8
            eight = word(data, at)
        while True:
            digit = np.uint64(byte(data, at) - _ZERO)
            if digit > _NINE:
                break
            digits = digits * _TEN + digit
            at += 1
        power = fraction - at
        if power == 0:
            return 0.0, NOT_READ, False
        count -= power
    stop = at
    if byte(data, at) == _E_LOWER or byte(data, at) == _E_UPPER:
        whole = False
        at += 1
        down = byte(data, at) == _MINUS
        if down or byte(data, at) == _PLUS:
            at += 1
        exponent, first_digit = 0, at
        while True:
            digit = byte(data, at) - _ZERO
            if digit < 0 or digit > 9:
                break
            if exponent < 100_000:
                exponent = exponent * 10 + digit
            at += 1
        if at == first_digit:
            return 0.0, NOT_READ, False
        power += -exponent if down else exponent
    if at - begin > MAX_NUMBER_BYTES:
        return 0.0, NOT_READ, False
    if count > MAX_DIGITS:
        digits, dropped = _leading_digits(data, first, stop)
        bits = _scaled(digits, power + dropped) if digits else np.uint64(0)
        if dropped > 0 and bits != _scaled(digits + _1, power + dropped):
            return 0.0, NOT_READ, False
    elif digits <= _EXACT_MANTISSA and -_EXACT_POWER <= power <= _EXACT_POWER:
        value = np.float64(digits)
        value = value / _EXACT[-power] if power < 0 else value * _EXACT[power]
        return -value if negative and not (whole and digits == 0) else value, at, whole
    else:
        bits = _scaled(digits, power) if digits else np.uint64(0)
    if bits == _ALL:
        return 0.0, NOT_READ, False
    value = as_float(bits)
    return -value if negative and not (whole and bits == 0) else value, at, whole


@inner
def _leading_digits(data: Any, at: int, stop: int) -> Any:
    """The first 19 significant digits of a number without its exponent, and how many were left away behind them."""
    digits, kept, dropped = np.uint64(0), 0, 0
    while at < stop:
        digit = np.uint64(byte(data, at) - _ZERO)
        at += 1
        if digit > _NINE:
            continue
        if kept == MAX_DIGITS:
            dropped += 1
        elif kept > 0 or digit > 0:
            digits = digits * _TEN + digit
            kept += 1
    return digits, dropped
