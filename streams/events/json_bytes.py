"""JSON text as bytes, compiled: what every reader of records in `streams.events.kernels` is made of.

Functions take an address and a distance from it, and give the next distance, or NOT_READ for what they leave to the
library path. Every record ends in a NUL byte, which stops every loop: no valid JSON text holds one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from streams.events.decimals import MAX_NUMBER_BYTES, NOT_READ, byte, inner, word

#: Nesting and keys of one record, beyond which it is left to the library path.
MAX_DEPTH, MAX_KEYS = 16, 64

QUOTE, BACKSLASH, COMMA, COLON, MINUS = 0x22, 0x5C, 0x2C, 0x3A, 0x2D
LIST, LIST_END, OBJECT, OBJECT_END = 0x5B, 0x5D, 0x7B, 0x7D
SPACE, _TAB, _NEWLINE, _RETURN = 0x20, 0x09, 0x0A, 0x0D
_POINT, _PLUS, _ZERO, _E_LOWER, _E_UPPER = 0x2E, 0x2B, 0x30, 0x65, 0x45
#: First letters of the literals.
_T, _F, NULL = 0x74, 0x66, 0x6E


Letters = tuple[int, Any, Any, Any, Any]


def letters(text: bytes) -> Letters:
    """A text of at most 16 bytes, for `spells`: its length, and its bytes as two words, each with a mask."""
    padded, mask = text.ljust(16, b"\0"), (b"\xff" * len(text)).ljust(16, b"\0")
    words = [np.uint64(int.from_bytes(part, "little")) for part in (padded[:8], mask[:8], padded[8:], mask[8:])]
    return len(text), words[0], words[1], words[2], words[3]


_TRUE, _FALSE, _NULL = letters(b"true"), letters(b"false"), letters(b"null")


@inner
def solid(data: Any, at: int) -> int:
    """The first place from `at` on that is no white space."""
    while byte(data, at) == SPACE or byte(data, at) == _NEWLINE or byte(data, at) == _RETURN or byte(data, at) == _TAB:
        at += 1
    return at


@inner
def text_end(data: Any, at: int) -> int:
    """Place of the quote that ends the string whose first character stands at `at`; NOT_READ for escapes, bad UTF-8."""
    while True:
        c = byte(data, at)
        if c == QUOTE:
            return at
        if c < SPACE or c == BACKSLASH:
            return NOT_READ
        at += 1
        if c < 0x80:
            continue
        # Unicode Standard 15, table 3-7: the second byte has a range of its own, the others have 80 to BF.
        low, high = 0x80, 0xBF
        if c < 0xC2 or c > 0xF4:
            return NOT_READ
        more = 1 if c < 0xE0 else (2 if c < 0xF0 else 3)
        if c == 0xE0:
            low = 0xA0
        elif c == 0xED:
            high = 0x9F
        elif c == 0xF0:
            low = 0x90
        elif c == 0xF4:
            high = 0x8F
        for _ in range(more):
            if byte(data, at) < low or byte(data, at) > high:
                return NOT_READ
            low, high = 0x80, 0xBF
            at += 1


@inner
def spells(data: Any, start: int, stop: int, text: Any) -> bool:
    """Whether the bytes start:stop are the text of `letters`."""
    if stop - start != text[0] or word(data, start) & text[2] != text[1]:
        return False
    return text[0] <= 8 or word(data, start + 8) & text[4] == text[3]


@inner
def same(data: Any, start: int, stop: int, other: int, end: int) -> bool:
    """Whether the bytes start:stop are the bytes other:end."""
    if stop - start != end - other:
        return False
    for i in range(stop - start):  # noqa: SIM110  (a generator does not compile)
        if byte(data, start + i) != byte(data, other + i):
            return False
    return True


@inner
def literal_end(data: Any, at: int) -> int:
    """The place behind ``true``, ``false`` or ``null``."""
    if spells(data, at, at + 4, _NULL) or spells(data, at, at + 4, _TRUE):
        return at + 4
    return at + 5 if spells(data, at, at + 5, _FALSE) else NOT_READ


@inner
def digits_end(data: Any, at: int) -> int:
    """The first place from `at` on that is no digit."""
    while 0 <= byte(data, at) - _ZERO <= 9:
        at += 1
    return at


@inner
def number_end(data: Any, at: int) -> int:
    """The place behind a number whose value nobody asks for."""
    start = at
    at += byte(data, at) == MINUS
    first = at
    at = digits_end(data, at)
    if at == first or (at - first > 1 and byte(data, first) == _ZERO):
        return NOT_READ
    if byte(data, at) == _POINT:
        first = at + 1
        at = digits_end(data, first)
        if at == first:
            return NOT_READ
    if byte(data, at) in (_E_LOWER, _E_UPPER):
        at += 1
        at += byte(data, at) in (MINUS, _PLUS)
        first = at
        at = digits_end(data, first)
        if at == first:
            return NOT_READ
    return at if at - start <= MAX_NUMBER_BYTES else NOT_READ


@inner
def whole_number(data: Any, at: int) -> Any:
    """A whole number of at most 18 digits without a sign, and the place behind it."""
    end = digits_end(data, at)
    if end == at or end - at > 18 or (end - at > 1 and byte(data, at) == _ZERO):
        return 0, NOT_READ
    if byte(data, end) in (_POINT, _E_LOWER, _E_UPPER):
        return 0, NOT_READ
    value = 0
    for i in range(at, end):
        value = value * 10 + byte(data, i) - _ZERO
    return value, end


@inner
def read_key(data: Any, at: int, keys: Any, first: int, used: int) -> Any:
    """Read a key and its colon.

    keys (MAX_KEYS, 2): start and stop of the keys of all open objects; those of this one are keys[first:used]. Returns
    where the value begins; NOT_READ also when the key stands there twice, or there is no room.
    """
    if byte(data, at) != QUOTE or used == MAX_KEYS:
        return NOT_READ
    start = at + 1
    stop = text_end(data, start)
    if stop < 0:
        return NOT_READ
    for other in range(first, used):
        if same(data, start, stop, keys[other, 0], keys[other, 1]):
            return NOT_READ
    keys[used, 0], keys[used, 1] = start, stop
    at = solid(data, stop + 1)
    return solid(data, at + 1) if byte(data, at) == COLON else NOT_READ


@inner
def value_end(data: Any, at: int, keys: Any, used: int, opened: Any) -> int:
    """The place behind a JSON value of any kind that begins at byte(data, at), verified like everything else.

    opened int64 (MAX_DEPTH, 2) is scratch: for each open container whether it is an object, and its first key.
    """
    depth = 0
    while True:
        c = byte(data, at)
        if c == QUOTE:
            at = text_end(data, at + 1)
            if at < 0:
                return NOT_READ
            at += 1
        elif c in (LIST, OBJECT):
            if depth == MAX_DEPTH:
                return NOT_READ
            at = solid(data, at + 1)
            if byte(data, at) == (LIST_END if c == LIST else OBJECT_END):
                at += 1
            else:
                opened[depth, 0], opened[depth, 1] = c == OBJECT, used
                depth += 1
                if c == OBJECT:
                    at = read_key(data, at, keys, used, used)
                    if at < 0:
                        return NOT_READ
                    used += 1
                continue
        elif c in (_T, _F, NULL):
            at = literal_end(data, at)
            if at < 0:
                return NOT_READ
        else:
            at = number_end(data, at)
            if at < 0:
                return NOT_READ
        while True:
            if depth == 0:
                return at
            is_object, first = opened[depth - 1, 0], opened[depth - 1, 1]
            at = solid(data, at)
            if byte(data, at) == COMMA:
                at = solid(data, at + 1)
                if is_object:
                    at = read_key(data, at, keys, first, used)
                    if at < 0:
                        return NOT_READ
                    used += 1
                break
            if byte(data, at) != (OBJECT_END if is_object else LIST_END):
                return NOT_READ
            at += 1
            used = first
            depth -= 1


@njit(cache=True, nogil=True)
def nesting(data: Any) -> int:
    """Greatest depth of brackets outside strings in a JSON text, data (m,) uint8."""
    depth, deepest, at, text = 0, 0, 0, False
    while at < data.shape[0]:
        c = data[at]
        if text:
            if c == BACKSLASH:
                at += 1
            elif c == QUOTE:
                text = False
        elif c == QUOTE:
            text = True
        elif c in (LIST, OBJECT):
            depth += 1
            deepest = max(deepest, depth)
        elif c in (LIST_END, OBJECT_END):
            depth -= 1
        at += 1
    return deepest
