"""Compiled readers of JSON bytes: native events of the usual form, many records in one call, without the GIL.

They never judge. A record is either read in full, with the values that the library path gives, to the bit, or left to
that path, which says what is wrong with it. Every record ends in a NUL byte, which stops every loop: no valid JSON text
holds one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from streams.events.decimals import NOT_READ, PADDING, byte, number, word

#: Nesting and keys of one record, beyond which it is left to the library path.
MAX_DEPTH, MAX_KEYS = 16, 64
#: In place of a number of rows: the arrays have no room for them.
FULL = -(1 << 40)

_QUOTE, _BACKSLASH, _COMMA, _COLON, _MINUS = 0x22, 0x5C, 0x2C, 0x3A, 0x2D
_LIST, _LIST_END, _OBJECT, _OBJECT_END = 0x5B, 0x5D, 0x7B, 0x7D
_SPACE, _TAB, _NEWLINE, _RETURN = 0x20, 0x09, 0x0A, 0x0D


def _letters(text: bytes) -> tuple[int, Any, Any]:
    """Length of a short text, its bytes as a word, and the mask of as many bytes."""
    return len(text), np.uint64(int.from_bytes(text, "little")), np.uint64((1 << (8 * len(text))) - 1)


_TRUE, _FALSE, _NULL = _letters(b"true"), _letters(b"false"), _letters(b"null")
_INPUTS, _OUTPUTS, _LABEL, _MODEL, _ID = (_letters(k) for k in (b"inputs", b"outputs", b"label", b"model", b"id"))
_REQUEST, _FRONT_DOOR = _letters(b"request"), _letters(b"vp1.")
_T, _F, _N = 0x74, 0x66, 0x6E


@njit(cache=True, nogil=True)
def _solid(data: Any, at: int) -> int:
    """The first place from `at` on that is no white space."""
    while byte(data, at) == _SPACE or byte(data, at) == _NEWLINE or byte(data, at) == _RETURN or byte(data, at) == _TAB:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _text_end(data: Any, at: int) -> int:
    """Place of the quote that ends the string whose first character stands at `at`; NOT_READ for escapes, bad UTF-8."""
    while True:
        c = byte(data, at)
        if c == _QUOTE:
            return at
        if c < _SPACE or c == _BACKSLASH:
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


@njit(cache=True, nogil=True)
def _is(data: Any, start: int, stop: int, letters: Any) -> bool:
    """Whether the bytes start:stop are these letters."""
    return stop - start == letters[0] and word(data, start) & letters[2] == letters[1]


@njit(cache=True, nogil=True)
def _same(data: Any, start: int, stop: int, other: int, end: int) -> bool:
    """Whether the bytes start:stop are the bytes other:end."""
    if stop - start != end - other:
        return False
    for i in range(stop - start):  # noqa: SIM110  (a generator does not compile)
        if byte(data, start + i) != byte(data, other + i):
            return False
    return True


@njit(cache=True, nogil=True)
def _literal_end(data: Any, at: int) -> int:
    """The place behind ``true``, ``false`` or ``null``."""
    if _is(data, at, at + 4, _NULL) or _is(data, at, at + 4, _TRUE):
        return at + 4
    return at + 5 if _is(data, at, at + 5, _FALSE) else NOT_READ


@njit(cache=True, nogil=True)
def _key(data: Any, at: int, keys: Any, first: int, used: int) -> Any:
    """Read a key and its colon.

    keys (MAX_KEYS, 2): start and stop of the keys of all open objects; those of this one are keys[first:used]. Returns
    where the value begins; NOT_READ also when the key stands there twice, or there is no room.
    """
    if byte(data, at) != _QUOTE or used == MAX_KEYS:
        return NOT_READ
    start = at + 1
    stop = _text_end(data, start)
    if stop < 0:
        return NOT_READ
    for other in range(first, used):
        if _same(data, start, stop, keys[other, 0], keys[other, 1]):
            return NOT_READ
    keys[used, 0], keys[used, 1] = start, stop
    at = _solid(data, stop + 1)
    return _solid(data, at + 1) if byte(data, at) == _COLON else NOT_READ


@njit(cache=True, nogil=True)
def _value_end(data: Any, at: int, keys: Any, used: int, opened: Any) -> int:
    """The place behind a JSON value of any kind that begins at byte(data, at), verified like everything else.

    opened int64 (MAX_DEPTH, 2) is scratch: for each open container whether it is an object, and its first key.
    """
    depth = 0
    while True:
        c = byte(data, at)
        if c == _QUOTE:
            at = _text_end(data, at + 1)
            if at < 0:
                return NOT_READ
            at += 1
        elif c in (_LIST, _OBJECT):
            if depth == MAX_DEPTH:
                return NOT_READ
            at = _solid(data, at + 1)
            if byte(data, at) == (_LIST_END if c == _LIST else _OBJECT_END):
                at += 1
            else:
                opened[depth, 0], opened[depth, 1] = c == _OBJECT, used
                depth += 1
                if c == _OBJECT:
                    at = _key(data, at, keys, used, used)
                    if at < 0:
                        return NOT_READ
                    used += 1
                continue
        elif c in (_T, _F, _N):
            at = _literal_end(data, at)
            if at < 0:
                return NOT_READ
        else:
            _, at, _ = number(data, at)
            if at < 0:
                return NOT_READ
        while True:
            if depth == 0:
                return at
            is_object, first = opened[depth - 1, 0], opened[depth - 1, 1]
            at = _solid(data, at)
            if byte(data, at) == _COMMA:
                at = _solid(data, at + 1)
                if is_object:
                    at = _key(data, at, keys, first, used)
                    if at < 0:
                        return NOT_READ
                    used += 1
                break
            if byte(data, at) != (_OBJECT_END if is_object else _LIST_END):
                return NOT_READ
            at += 1
            used = first
            depth -= 1


@njit(cache=True, nogil=True)
def _numbers(data: Any, at: int, out: Any, row: int) -> int:
    """Read a list into out[row], of exactly its width; `at` stands behind the opening bracket. The place behind it."""
    last = out.shape[1] - 1
    for i in range(last + 1):
        if byte(data, at) <= _SPACE:
            at = _solid(data, at)
        value, at, _ = number(data, at)
        if at < 0:
            return NOT_READ
        out[row, i] = value
        if byte(data, at) <= _SPACE:
            at = _solid(data, at)
        if byte(data, at) != (_COMMA if i < last else _LIST_END):
            return NOT_READ
        at += 1
    return at


@njit(cache=True, nogil=True)
def _matrix(data: Any, at: int, out: Any, row: int) -> Any:
    """Read one flat list or a list of lists into out[row:]; the place behind it, and the number of rows.

    That number is FULL when `out` (cap, width) has no room.
    """
    if byte(data, at) != _LIST:
        return NOT_READ, 0
    at = _solid(data, at + 1)
    if row == out.shape[0]:
        return NOT_READ, FULL
    if byte(data, at) != _LIST:
        return _numbers(data, at, out, row), 1
    n = 0
    while True:
        if byte(data, at) != _LIST:
            return NOT_READ, 0
        if row + n == out.shape[0]:
            return NOT_READ, FULL
        at = _numbers(data, at + 1, out, row + n)
        if at < 0:
            return NOT_READ, 0
        n += 1
        at = _solid(data, at)
        if byte(data, at) == _LIST_END:
            return at + 1, n
        if byte(data, at) != _COMMA:
            return NOT_READ, 0
        at = _solid(data, at + 1)


@njit(cache=True, nogil=True)
def _class(data: Any, at: int, names: Any) -> Any:
    """Read a label, a whole number or a class name; the place behind it, and the class.

    names (k + 1,): the name of class c is the bytes names[c]:names[c + 1].
    """
    k = names.shape[0] - 1
    if byte(data, at) == _QUOTE:
        start = at + 1
        stop = _text_end(data, start)
        if stop < 0:
            return NOT_READ, 0
        for c in range(k):
            if _same(data, start, stop, names[c], names[c + 1]):
                return stop + 1, c
        return NOT_READ, 0
    if byte(data, at) == _MINUS:
        return NOT_READ, 0
    value, at, whole = number(data, at)
    if at < 0 or not whole or value >= k:
        return NOT_READ, 0
    return at, int(value)


@njit(cache=True, nogil=True)
def _classes(data: Any, at: int, names: Any, out: Any, row: int) -> Any:
    """Read one label, or a list of them, into out[row:]; the place behind it, and the number of rows or FULL."""
    if row == out.shape[0]:
        return NOT_READ, FULL
    if byte(data, at) != _LIST:
        at, out[row] = _class(data, at, names)
        return at, 1
    at = _solid(data, at + 1)
    n = 0
    while True:
        if row + n == out.shape[0]:
            return NOT_READ, FULL
        at, out[row + n] = _class(data, at, names)
        if at < 0:
            return NOT_READ, 0
        n += 1
        at = _solid(data, at)
        if byte(data, at) == _LIST_END:
            return at + 1, n
        if byte(data, at) != _COMMA:
            return NOT_READ, 0
        at = _solid(data, at + 1)


@njit(cache=True, nogil=True)
def _event(
    data: Any,
    at: int,
    stop: int,
    row: int,
    model: Any,
    field: Any,
    names: Any,
    inputs: Any,
    outputs: Any,
    labels: Any,
    client: Any,
    request: Any,
    keys: Any,
    opened: Any,
) -> int:
    """Read the event at:stop into the rows from `row` on: how many, negative without outputs; 0 when not read; FULL."""
    n, scored, labelled, used = 0, 0, 0, 0
    at = _solid(data, at)
    if byte(data, at) != _OBJECT:
        return 0
    at = _solid(data, at + 1)
    while True:
        at = _key(data, at, keys, 0, used)
        if at < 0:
            return 0
        start, end = keys[used, 0], keys[used, 1]
        used += 1
        is_client = _same(data, start, end, field[0], field[1])
        is_inputs, is_outputs = _is(data, start, end, _INPUTS), _is(data, start, end, _OUTPUTS)
        is_label, is_model = _is(data, start, end, _LABEL), _is(data, start, end, _MODEL)
        c = byte(data, at)
        if c == _N:
            at = _literal_end(data, at)
        elif c == _QUOTE and not is_label:
            first = at + 1
            last = _text_end(data, first)
            if last < 0 or is_inputs or is_outputs:
                return 0
            if is_client:
                client[0], client[1] = first, last
            if is_model and model[1] > model[0] and not _same(data, first, last, model[0], model[1]):
                return 0
            if _is(data, start, end, _ID) and _is(data, first, min(first + 4, last), _FRONT_DOOR):
                request[0], request[1] = first, last
            at = last + 1
        elif is_inputs or is_outputs or is_label:
            if is_client:
                return 0
            if is_inputs:
                at, n = _matrix(data, at, inputs, row)
            elif is_outputs:
                at, scored = _matrix(data, at, outputs, row)
            else:
                at, labelled = _classes(data, at, names, labels, row)
            if n == FULL or scored == FULL or labelled == FULL:
                return FULL
        elif is_model or _is(data, start, end, _REQUEST):
            return 0
        elif is_client:
            first = at
            _, at, whole = number(data, at)
            if at < 0 or not whole or c == _MINUS:
                return 0
            client[0], client[1] = first, at
        else:
            at = _value_end(data, at, keys, used, opened)
        if at < 0:
            return 0
        at = _solid(data, at)
        if byte(data, at) == _OBJECT_END:
            break
        if byte(data, at) != _COMMA:
            return 0
        at = _solid(data, at + 1)
    if _solid(data, at + 1) != stop or n == 0 or (scored != n and scored != 0):
        return 0
    if labelled != n and (labelled != 0 or scored == 0):
        return 0
    for i in range(row, row + n):
        if scored == 0:
            outputs[i] = np.nan
        elif labelled == 0:
            best = 0
            for c in range(1, outputs.shape[1]):
                if outputs[i, c] > outputs[i, best]:
                    best = c
            labels[i] = best
    return n if scored else -n


@njit(cache=True, nogil=True)
def events(
    data: Any,
    starts: Any,
    stops: Any,
    begin: int,
    row: int,
    model: Any,
    field: Any,
    names: Any,
    inputs: Any,
    outputs: Any,
    labels: Any,
    counts: Any,
    scored: Any,
    clients: Any,
    requests: Any,
) -> Any:
    """Read native events one after another, each into the next rows, until there is no more room.

    Parameters
    ----------
    data : uint8 (m,)
        The records' bytes, each with a NUL behind it; the deployment's names; PADDING bytes.
    starts, stops : int64 (r,)
        Of each record.
    begin, row : int
        The first record to read, and the row that its rows begin at.
    model, field : (int, int)
        Where in `data` the declared model (empty: any) and the field of the client's name (empty: none) stand.
    names : int64 (k + 1,)
        Where in `data` the classes' names begin, and the end of the last.
    inputs, outputs, labels : float64 (cap, d) and (cap, k), int32 (cap,)
        Filled row by row. Rows without scores get NaN, rows without a label the arg max.
    counts : int64 (r,), scored : bool (r,)
        Filled: rows of each record, 0 for one that is left to the library path; whether it has outputs.
    clients, requests : int64 (r, 2)
        Filled: where the client's name and a front-door id begin and end in `data`; equal where there is none.

    Returns
    -------
    record, row : int
        The first record that was not reached (r: none), and the first row that was not filled.
    """
    keys = np.empty((MAX_KEYS, 2), dtype=np.int64)
    opened = np.empty((MAX_DEPTH, 2), dtype=np.int64)
    base = data.ctypes.data
    for i in range(begin, starts.shape[0]):
        clients[i] = 0
        requests[i] = 0
        n = _event(
            base,
            starts[i],
            stops[i],
            row,
            model,
            field,
            names,
            inputs,
            outputs,
            labels,
            clients[i],
            requests[i],
            keys,
            opened,
        )
        if n == FULL:
            return i, row
        counts[i] = abs(n)
        scored[i] = n > 0
        row += counts[i]
        if n == 0:
            clients[i] = 0
            requests[i] = 0
    return starts.shape[0], row


@njit(cache=True, nogil=True)
def nesting(data: Any) -> int:
    """Greatest depth of brackets outside strings in a JSON text, data (m,) uint8."""
    depth, deepest, at, text = 0, 0, 0, False
    while at < data.shape[0]:
        c = data[at]
        if text:
            if c == _BACKSLASH:
                at += 1
            elif c == _QUOTE:
                text = False
        elif c == _QUOTE:
            text = True
        elif c in (_LIST, _OBJECT):
            depth += 1
            deepest = max(deepest, depth)
        elif c in (_LIST_END, _OBJECT_END):
            depth -= 1
        at += 1
    return deepest


def warm_up() -> None:
    """Compile, or load from the cache."""
    nesting(np.zeros(1, dtype=np.uint8))
    one, pair = np.zeros(1, dtype=np.int64), np.zeros((1, 2), dtype=np.int64)
    data, matrix, flag = np.zeros(PADDING, dtype=np.uint8), np.empty((1, 1)), np.zeros(1, dtype=np.bool_)
    rows = matrix, matrix.copy(), np.empty(1, dtype=np.int32), one.copy(), flag, pair, pair.copy()
    events(data, one, one, 0, 0, (0, 0), (0, 0), np.zeros(2, dtype=np.int64), *rows)
