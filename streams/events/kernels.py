"""Compiled readers of records: the usual native events and Open Inference Protocol records, many in one call, no GIL.

They never judge. A record is either read in full, with the values that the library path gives, to the bit, or left to
that path, which says what is wrong with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from streams.events.decimals import NOT_READ, PADDING, as_float, as_float32, byte, inner, number, word
from streams.events.json_bytes import (
    COMMA,
    LIST,
    LIST_END,
    MAX_DEPTH,
    MAX_KEYS,
    MINUS,
    NULL,
    OBJECT,
    OBJECT_END,
    QUOTE,
    SPACE,
    digits_end,
    letters,
    literal_end,
    nesting,
    number_end,
    read_key,
    same,
    solid,
    spells,
    text_end,
    value_end,
    whole_number,
)

#: What a record may be; their sum: either.
NATIVE, OIP = 1, 2
#: In place of a number of rows: the arrays have no room for them.
FULL = -(1 << 40)
#: Sides of a tensor beyond which it is left to the library path.
MAX_SIDES = 8

_INPUTS, _OUTPUTS, _LABEL, _MODEL, _ID = (letters(k) for k in (b"inputs", b"outputs", b"label", b"model", b"id"))
_EMBEDDING = letters(b"embedding")
_REQUEST, _RESPONSE, _MODEL_NAME = (letters(k) for k in (b"request", b"response", b"model_name"))
_SHAPE, _DATATYPE, _DATA, _PARAMETERS = (letters(k) for k in (b"shape", b"datatype", b"data", b"parameters"))
_FP, _INT, _UINT, _8, _16, _32, _64 = (letters(k) for k in (b"FP", b"INT", b"UINT", b"8", b"16", b"32", b"64"))
#: For variables: a plain 0 is a type of its own to the compiler, for which callees would be compiled once more.
_0: Any = np.int64(0)
_FRONT_DOOR = letters(b"vp1.")

#: Kinds of datatypes.
_FLOAT, _SIGNED, _UNSIGNED = 1, 2, 3
#: Exponents of what is not finite.
_EXPONENT, _EXPONENT32 = np.uint64(0x7FF << 52), np.uint64(0xFF << 23)
#: The greatest float64 below 2**63; whole numbers beyond it are left to the library path.
_GREATEST_WHOLE = float(2**63 - 1024)
#: More values than any record holds, and few enough that products of two such numbers don't overflow.
_MOST_VALUES = 1 << 31
# What a tensor is, and what is known of each: found[role] holds its rows, the bytes that it has behind the JSON, kind
# and size of its datatype. found[_ORDER] holds the number of outputs with raw bytes, then their roles, in order.
_INPUT, _SCORES, _CLASS, _ORDER = 0, 1, 2, 3
_ROWS, _RAW, _KIND, _SIZE = 0, 1, 2, 3


class Names(NamedTuple):
    """Where the deployment's names stand in the bytes: begin and end of each, and of class c: classes[c:c + 2]."""

    model: Any
    """Empty: any model."""
    field: Any
    """Top-level field of the client's name; empty: it stands elsewhere."""
    parameter: Any
    """Request parameter of the client's name; empty: it stands elsewhere."""
    binary_size: Any
    """Of ``binary_data_size``."""
    classes: Any


# --- native events --------------------------------------------------------------------------------------------------


@inner
def _row(data: Any, at: int, width: int, low: float, high: float, out: Any, first: int) -> int:
    """Read `width` numbers into out[first:]; the place of what follows the last of them.

    Where low <= high, they must be whole and within.
    """
    last = first + width - 1
    whole_only = low <= high
    while True:
        if byte(data, at) <= SPACE:
            at = solid(data, at)
        value, at, whole = number(data, at)
        if at < 0 or (whole_only and not (whole and low <= value <= high)):
            return NOT_READ
        out[first] = value
        if byte(data, at) <= SPACE:
            at = solid(data, at)
        if first == last:
            return at
        if byte(data, at) != COMMA:
            return NOT_READ
        at += 1
        first += 1


@inner
def _matrix(data: Any, at: int, width: int, out: Any, row: int) -> Any:
    """Read one flat list or a list of lists into rows of `out`, flat, from `row` on; the place behind it, and how many.

    That number is FULL when `out` has no room.
    """
    room = out.shape[0] // width
    if byte(data, at) != LIST:
        return NOT_READ, _0
    at = solid(data, at + 1)
    nested = byte(data, at) == LIST
    n = _0
    while True:
        if row + n == room:
            return NOT_READ, FULL
        if nested:
            if byte(data, at) != LIST:
                return NOT_READ, _0
            at += 1
        at = _row(data, at, width, 1.0, 0.0, out, (row + n) * width)
        if at < 0 or byte(data, at) != LIST_END:
            return NOT_READ, _0
        n += 1
        if not nested:
            return at + 1, n
        at = solid(data, at + 1)
        if byte(data, at) == LIST_END:
            return at + 1, n
        if byte(data, at) != COMMA:
            return NOT_READ, _0
        at = solid(data, at + 1)


@inner
def _class(data: Any, at: int, names: Any) -> Any:
    """Read a label, a whole number or a class name; the place behind it, and the class.

    names (k + 1,): the name of class c is the bytes names[c]:names[c + 1].
    """
    k = names.shape[0] - 1
    if byte(data, at) == QUOTE:
        start = at + 1
        stop = text_end(data, start)
        if stop < 0:
            return NOT_READ, 0
        for c in range(k):
            if same(data, start, stop, names[c], names[c + 1]):
                return stop + 1, c
        return NOT_READ, 0
    value, at = whole_number(data, at)
    return (at, value) if at > 0 and value < k else (NOT_READ, 0)


@inner
def _classes(data: Any, at: int, names: Any, out: Any, row: int) -> Any:
    """Read one label, or a list of them, into out[row:]; the place behind it, and the number of rows or FULL."""
    if row == out.shape[0]:
        return NOT_READ, FULL
    if byte(data, at) != LIST:
        at, out[row] = _class(data, at, names)
        return at, 1
    at = solid(data, at + 1)
    n = 0
    while True:
        if row + n == out.shape[0]:
            return NOT_READ, FULL
        at, out[row + n] = _class(data, at, names)
        if at < 0:
            return NOT_READ, 0
        n += 1
        at = solid(data, at)
        if byte(data, at) == LIST_END:
            return at + 1, n
        if byte(data, at) != COMMA:
            return NOT_READ, 0
        at = solid(data, at + 1)


@inner
def _name(data: Any, at: int, span: Any) -> int:
    """Read a name, text or a whole number or null, into span: where it begins and ends. The place behind it."""
    span[0], span[1] = 0, 0
    c = byte(data, at)
    if c == NULL:
        return literal_end(data, at)
    if c == QUOTE:
        end = text_end(data, at + 1)
        if end > 0:
            span[0], span[1] = at + 1, end
            end += 1
        return end
    end = number_end(data, at)
    if c == MINUS or end != digits_end(data, at):
        return NOT_READ
    span[0], span[1] = at, end
    return end


@inner
def _is_model(data: Any, start: int, end: int, names: Any) -> bool:
    """Whether this is the declared model."""
    return names.model[0] == names.model[1] or same(data, start, end, names.model[0], names.model[1])


@inner
def _model(data: Any, at: int, names: Any) -> int:
    """Read the model's name, or null; the place behind it, NOT_READ when another model is meant."""
    if byte(data, at) == NULL:
        return literal_end(data, at)
    if byte(data, at) != QUOTE:
        return NOT_READ
    end = text_end(data, at + 1)
    return end + 1 if end > 0 and _is_model(data, at + 1, end, names) else NOT_READ


@inner
def _front_door(data: Any, at: int, span: Any) -> None:
    """Keep the request id that begins at `at`, a text that has been read, if it is one of the front door."""
    end = text_end(data, at + 1)
    if spells(data, at + 1, min(at + 5, end), _FRONT_DOOR):
        span[0], span[1] = at + 1, end


@inner
def _arg_max(outputs: Any, labels: Any, row: int, n: int) -> None:
    """The first of the greatest outputs as label, for n rows from `row` on."""
    for i in range(row, row + n):
        best = 0
        for c in range(1, outputs.shape[1]):
            if outputs[i, c] > outputs[i, best]:
                best = c
        labels[i] = best


@inner
def _event(
    data: Any,
    at: int,
    stop: int,
    row: int,
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
    n, scored, labelled, used = _0, _0, _0, _0
    at = solid(data, at)
    if byte(data, at) != OBJECT:
        return 0
    at = solid(data, at + 1)
    while True:
        at = read_key(data, at, keys, _0, used)
        if at < 0:
            return 0
        start, end = keys[used, 0], keys[used, 1]
        used += 1
        is_client = same(data, start, end, names.field[0], names.field[1])
        is_inputs, is_outputs = spells(data, start, end, _INPUTS), spells(data, start, end, _OUTPUTS)
        is_label, is_model = spells(data, start, end, _LABEL), spells(data, start, end, _MODEL)
        is_id = spells(data, start, end, _ID)
        c = byte(data, at)
        value = at
        if is_inputs or is_outputs or is_label:
            if c == NULL:
                at = literal_end(data, at)
            elif is_client:
                return 0
            elif is_inputs:
                at, n = _matrix(data, at, inputs.shape[1], inputs.reshape(inputs.size), row)
            elif is_outputs:
                at, scored = _matrix(data, at, outputs.shape[1], outputs.reshape(outputs.size), row)
            else:
                at, labelled = _classes(data, at, names.classes, labels, row)
            if n == FULL or scored == FULL or labelled == FULL:
                return FULL
        elif is_client:
            at = _name(data, at, client)
            if is_model and at > 0 and _model(data, value, names) < 0:
                return 0
        elif is_model:
            at = _model(data, at, names)
        elif c != QUOTE and spells(data, start, end, _REQUEST):
            return 0
        else:
            at = value_end(data, at, keys, used, opened)
        if at > 0 and is_id and c == QUOTE:
            _front_door(data, value, request)
        if at < 0:
            return 0
        at = solid(data, at)
        if byte(data, at) == OBJECT_END:
            break
        if byte(data, at) != COMMA:
            return 0
        at = solid(data, at + 1)
    if solid(data, at + 1) != stop or n == 0 or (scored != n and scored != 0):
        return 0
    if labelled != n and (labelled != 0 or scored == 0):
        return 0
    if labelled == 0:
        _arg_max(outputs, labels, row, n)
    if scored == 0:
        outputs[row : row + n] = np.nan
    return n if scored else -n


@inner
def _layer(data: Any, at: int, n: int, width: int, out: Any, keys: Any, opened: Any) -> bool:
    """Read the embeddings of the n rows of a record that has been read into `out`, flat; left as it is for a null.

    Whether they were read: not, when it is no native event, or they are not n lists of `width` numbers.
    """
    native, read, used = False, False, _0
    at = solid(data, solid(data, at) + 1)
    while True:
        at = read_key(data, at, keys, _0, used)
        if at < 0:
            return False
        start, end = keys[used, 0], keys[used, 1]
        used += 1
        native = native or spells(data, start, end, _INPUTS)
        is_embedding = spells(data, start, end, _EMBEDDING)
        read = read or is_embedding
        if is_embedding and byte(data, at) != NULL:
            at, found = _matrix(data, at, width, out, _0)
            if found != n:
                return False
        else:
            at = value_end(data, at, keys, used, opened)
        if at < 0:
            return False
        if native and read:
            return True
        at = solid(data, at)
        if byte(data, at) != COMMA:
            return False
        at = solid(data, at + 1)


# --- Open Inference Protocol ----------------------------------------------------------------------------------------


@inner
def _datatype(data: Any, at: int, end: int) -> Any:
    """Kind of a datatype by its name, and bytes of a value; kind 0 for one that is left to the library path."""
    kind = 0
    if spells(data, at, at + 2, _FP):
        kind, at = _FLOAT, at + 2
    elif spells(data, at, at + 3, _INT):
        kind, at = _SIGNED, at + 3
    elif spells(data, at, at + 4, _UINT):
        kind, at = _UNSIGNED, at + 4
    if spells(data, at, end, _64):
        return kind, 8
    if spells(data, at, end, _32):
        return kind, 4
    if spells(data, at, end, _16):
        return kind, 2
    if spells(data, at, end, _8) and kind != _FLOAT:
        return kind, 1
    return 0, 0


@inner
def _shape(data: Any, at: int) -> Any:
    """Read a shape: the place behind it, its rows, the values of a row, and its sides."""
    if byte(data, at) != LIST:
        return NOT_READ, 0, 0, 0
    n, width, sides = 0, 1, 0
    while True:
        at = solid(data, at + 1)
        side, at = whole_number(data, at)
        if at < 0 or side < 1 or side > _MOST_VALUES or sides == MAX_SIDES:
            return NOT_READ, 0, 0, 0
        if sides == 0:
            n = side
        else:
            width *= side
        if width > _MOST_VALUES:
            return NOT_READ, 0, 0, 0
        sides += 1
        at = solid(data, at)
        if byte(data, at) == LIST_END:
            return at + 1, n, width, sides
        if byte(data, at) != COMMA:
            return NOT_READ, 0, 0, 0


@inner
def _list(data: Any, at: int, n: int, width: int, nested: bool, kind: int, size: int, out: Any, first: int) -> int:
    """Read a tensor's n * width values into out[first:], a flat list or, where it may be nested, a list of rows."""
    if byte(data, at) != LIST:
        return NOT_READ
    at = solid(data, at + 1)
    rows = byte(data, at) == LIST
    if rows and not nested:
        return NOT_READ
    low, high = 1.0, 0.0
    if kind != _FLOAT:
        high = _GREATEST_WHOLE if size == 8 else float((1 << (8 * size - (kind == _SIGNED))) - 1)
        low = 0.0 if kind == _UNSIGNED else (-_GREATEST_WHOLE if size == 8 else -high - 1.0)
    if not rows:
        at = _row(data, at, n * width, low, high, out, first)
        return at + 1 if at > 0 and byte(data, at) == LIST_END else NOT_READ
    for row in range(n):
        if byte(data, at) != LIST:
            return NOT_READ
        at = _row(data, at + 1, width, low, high, out, first + row * width)
        if at < 0 or byte(data, at) != LIST_END:
            return NOT_READ
        at = solid(data, at + 1)
        if byte(data, at) != (COMMA if row < n - 1 else LIST_END):
            return NOT_READ
        at = solid(data, at + 1) if row < n - 1 else at + 1
    return at


@inner
def _raw(data: Any, at: int, count: int, kind: int, size: int, out: Any, first: int) -> bool:
    """Read little-endian values into out[first:]; False when one is not finite, or the datatype is not read."""
    odd = False
    if kind == _FLOAT and size == 8:
        for i in range(count):
            bits = word(data, at + 8 * i)
            odd |= bits & _EXPONENT == _EXPONENT
            out[first + i] = as_float(bits)
        return not odd
    if kind == _FLOAT and size == 4:
        for i in range(count):
            bits = word(data, at + 4 * i)
            odd |= bits & _EXPONENT32 == _EXPONENT32
            out[first + i] = as_float32(bits)
        return not odd
    if kind == _FLOAT:
        return False
    spare = 64 - 8 * size
    for i in range(count):
        top = word(data, at + size * i) << np.uint64(spare)
        out[first + i] = float(np.int64(top) >> spare) if kind == _SIGNED else float(top >> np.uint64(spare))
    return True


@inner
def _member(data: Any, at: int, wanted: Any, used: int, keys: Any, opened: Any, value: Any) -> int:
    """Read an object, or null, and find one of its members: value[0] is where its value begins, 0 if it is not there.

    wanted: where the member's name stands.
    """
    value[0] = 0
    if byte(data, at) == NULL:
        return literal_end(data, at)
    if byte(data, at) != OBJECT:
        return NOT_READ
    first = used
    at = solid(data, at + 1)
    if byte(data, at) == OBJECT_END:
        return at + 1
    while True:
        at = read_key(data, at, keys, first, used)
        if at < 0:
            return NOT_READ
        if wanted[1] > wanted[0] and same(data, keys[used, 0], keys[used, 1], wanted[0], wanted[1]):
            value[0] = at
        used += 1
        at = value_end(data, at, keys, used, opened)
        if at < 0:
            return NOT_READ
        at = solid(data, at)
        if byte(data, at) == OBJECT_END:
            return at + 1
        if byte(data, at) != COMMA:
            return NOT_READ
        at = solid(data, at + 1)


@inner
def _tensor(data: Any, at: int, row: int, is_input: bool, names: Any, used: int, columns: Any, scratch: Any) -> int:
    """Read a tensor into the column that its shape and datatype, which must stand before its data, make it belong to.

    Returns the place behind it, or FULL.
    """
    room, d, k, inputs, outputs, stated = columns
    keys, opened, found, value = scratch
    first = used
    n, width, sides, kind, size, raw, role = _0, _0, _0, _0, _0, _0 - 1, _0 - 1
    if byte(data, at) != OBJECT:
        return NOT_READ
    at = solid(data, at + 1)
    while True:
        at = read_key(data, at, keys, first, used)
        if at < 0:
            return NOT_READ
        start, end = keys[used, 0], keys[used, 1]
        used += 1
        is_data = spells(data, start, end, _DATA)
        if is_data or (n and kind and spells(data, start, end, _PARAMETERS)):
            if n == 0 or kind == 0:
                return NOT_READ
            if role < 0:
                if is_input:
                    role = _INPUT if width == d else NOT_READ
                elif width == k:
                    role = _SCORES
                elif width == 1 and kind != _FLOAT:
                    role = _CLASS
                if role < 0 or found[role, _ROWS]:
                    return NOT_READ
                if row + n > room:
                    return FULL
        if is_data:
            if raw >= 0 or found[role, _ROWS]:
                return NOT_READ
            out = inputs if role == _INPUT else (outputs if role == _SCORES else stated)
            at = _list(data, at, n, width, sides == 2, kind, size, out, row * width)
            found[role, _ROWS] = n
        elif spells(data, start, end, _SHAPE):
            at, n, width, sides = _shape(data, at)
        elif spells(data, start, end, _DATATYPE):
            if byte(data, at) != QUOTE:
                return NOT_READ
            stop = text_end(data, at + 1)
            if stop < 0:
                return NOT_READ
            kind, size = _datatype(data, at + 1, stop)
            if kind == 0:
                return NOT_READ
            at = stop + 1
        elif spells(data, start, end, _PARAMETERS):
            at = _member(data, at, names.binary_size, used, keys, opened, value)
            if at > 0 and value[0] > 0:
                raw, stop = whole_number(data, value[0])
                if role < 0 or found[role, _ROWS] or stop < 0 or raw != n * width * size:
                    return NOT_READ
                found[role, _ROWS], found[role, _RAW], found[role, _KIND], found[role, _SIZE] = n, raw, kind, size
                if role != _INPUT:
                    found[_ORDER, 1 + found[_ORDER, 0]] = role
                    found[_ORDER, 0] += 1
        else:
            at = value_end(data, at, keys, used, opened)
        if at < 0:
            return NOT_READ
        at = solid(data, at)
        if byte(data, at) == OBJECT_END:
            return at + 1 if role >= 0 and found[role, _ROWS] else NOT_READ
        if byte(data, at) != COMMA:
            return NOT_READ
        at = solid(data, at + 1)


@inner
def _message(
    data: Any,
    at: int,
    row: int,
    is_request: bool,
    names: Any,
    used: int,
    columns: Any,
    scratch: Any,
    client: Any,
    request: Any,
) -> int:
    """Read a request or a response. The place behind it, or FULL."""
    keys, opened, _, value = scratch
    first = used
    if byte(data, at) != OBJECT:
        return NOT_READ
    at = solid(data, at + 1)
    while True:
        at = read_key(data, at, keys, first, used)
        if at < 0:
            return NOT_READ
        start, end = keys[used, 0], keys[used, 1]
        used += 1
        begin = at
        if spells(data, start, end, _INPUTS if is_request else _OUTPUTS):
            if byte(data, at) != LIST:
                return NOT_READ
            while True:
                at = _tensor(data, solid(data, at + 1), row, is_request, names, used, columns, scratch)
                if at < 0:
                    return at
                at = solid(data, at)
                if byte(data, at) != COMMA:
                    break
            if byte(data, at) != LIST_END:
                return NOT_READ
            at += 1
        elif is_request and spells(data, start, end, _PARAMETERS):
            at = _member(data, at, names.parameter, used, keys, opened, value)
            if at > 0 and value[0] > 0 and _name(data, value[0], client) < 0:
                return NOT_READ
        elif not is_request and spells(data, start, end, _MODEL_NAME):
            at = _model(data, at, names)
        else:
            at = value_end(data, at, keys, used, opened)
            if at > 0 and is_request and byte(data, begin) == QUOTE and spells(data, start, end, _ID):
                _front_door(data, begin, request)
        if at < 0:
            return NOT_READ
        at = solid(data, at)
        if byte(data, at) == OBJECT_END:
            return at + 1
        if byte(data, at) != COMMA:
            return NOT_READ
        at = solid(data, at + 1)


@inner
def _exchange(
    data: Any,
    at: int,
    json_stop: int,
    stop: int,
    row: int,
    names: Any,
    columns: Any,
    outputs: Any,
    labels: Any,
    client: Any,
    request: Any,
    scratch: Any,
) -> int:
    """Read request and response at:json_stop, with raw tensors up to stop, into the rows from `row` on.

    Returns as `_event`.
    """
    _, d, k, flat_inputs, flat_outputs, stated = columns
    keys, opened, found, _ = scratch
    found[:] = 0
    used = _0
    at = solid(data, at)
    if byte(data, at) != OBJECT:
        return 0
    at = solid(data, at + 1)
    while True:
        at = read_key(data, at, keys, _0, used)
        if at < 0:
            return 0
        start, end = keys[used, 0], keys[used, 1]
        used += 1
        is_client = same(data, start, end, names.field[0], names.field[1])
        is_request = spells(data, start, end, _REQUEST)
        if is_request or spells(data, start, end, _RESPONSE):
            at = _message(data, at, row, is_request, names, used, columns, scratch, client, request)
            if at == FULL:
                return FULL
            if is_client:
                return 0
        elif spells(data, start, end, _INPUTS):
            return 0
        elif spells(data, start, end, _MODEL_NAME):
            if is_client and _name(data, at, client) < 0:
                return 0
            at = _model(data, at, names)
        elif is_client:
            at = _name(data, at, client)
        else:
            at = value_end(data, at, keys, used, opened)
        if at < 0:
            return 0
        at = solid(data, at)
        if byte(data, at) == OBJECT_END:
            break
        if byte(data, at) != COMMA:
            return 0
        at = solid(data, at + 1)
    at += 1
    if at > json_stop or (solid(data, at) < json_stop):
        return 0
    n, scored, labelled = found[_INPUT, _ROWS], found[_SCORES, _ROWS], found[_CLASS, _ROWS]
    if n == 0 or (scored != n and scored != 0) or (labelled != n and (labelled != 0 or scored == 0)):
        return 0
    at = json_stop
    for i in range(1 + found[_ORDER, 0]):
        role = _INPUT if i == 0 else found[_ORDER, i]
        width = d if role == _INPUT else (k if role == _SCORES else 1)
        out = flat_inputs if role == _INPUT else (flat_outputs if role == _SCORES else stated)
        size = found[role, _RAW]
        if size == 0:
            continue
        if size > stop - at or not _raw(data, at, n * width, found[role, _KIND], found[role, _SIZE], out, row * width):
            return 0
        at += size
    if at != stop:
        return 0
    if labelled == 0:
        _arg_max(outputs, labels, row, n)
    for i in range(row, row + labelled):
        if not 0.0 <= stated[i] < k:
            return 0
        labels[i] = int(stated[i])
    if scored == 0:
        outputs[row : row + n] = np.nan
    return n if scored else -n


# --- fetches --------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def records(
    data: Any,
    starts: Any,
    json_stops: Any,
    stops: Any,
    native: Any,
    oip: Any,
    begin: int,
    row: int,
    names: Any,
    inputs: Any,
    outputs: Any,
    labels: Any,
    counts: Any,
    scored: Any,
    clients: Any,
    requests: Any,
) -> Any:
    """Read records one after another, each into the next rows, until there is no more room.

    Parameters
    ----------
    data : uint8 (m,)
        The records' bytes, each with a NUL behind it; the deployment's names; PADDING bytes.
    starts, json_stops, stops : int64 (r,)
        Of each record; json_stops is -1 where the whole record is JSON by its headers.
    native, oip : True or None
        What the records may be. For None, no code is compiled.
    begin, row : int
        The first record to read, and the row that its rows begin at.
    names : Names
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
    found, value = np.zeros((4, 4), dtype=np.int64), np.zeros(1, dtype=np.int64)
    scratch = (keys, opened, found, value)
    room = inputs.shape[0]
    flat_inputs, flat_outputs = inputs.reshape(inputs.size), outputs.reshape(outputs.size)
    columns = (room, inputs.shape[1], outputs.shape[1], flat_inputs, flat_outputs, np.empty(room, dtype=np.float64))
    base = data.ctypes.data
    for i in range(begin, starts.shape[0]):
        start, stop, client, request = starts[i], stops[i], clients[i], requests[i]
        n = _0
        if native is not None and json_stops[i] < 0:
            client[:], request[:] = 0, 0
            n = _event(base, start, stop, row, names, inputs, outputs, labels, client, request, keys, opened)
        if oip is not None and n == 0:
            client[:], request[:] = 0, 0
            end = stop if json_stops[i] < 0 else json_stops[i]
            n = _exchange(base, start, end, stop, row, names, columns, outputs, labels, client, request, scratch)
        if n == FULL:
            return i, row
        counts[i] = abs(n)
        scored[i] = n > 0
        row += counts[i]
        if n == 0:
            client[:], request[:] = 0, 0
    return starts.shape[0], row


@njit(cache=True, nogil=True)
def embeddings(data: Any, starts: Any, asked: Any, counts: Any, out: Any, left: Any) -> None:
    """Read the embeddings of native events, each once more, that `records` has read.

    Parameters
    ----------
    data, starts
        As for `records`.
    asked : bool (r,)
        Records that may have the field `embedding`.
    counts : int64 (r,)
        Rows of each record.
    out : float64 (n, e)
        Filled in rows that have one.
    left : bool (r,)
        Filled: whether an asked record is left to the library path, embedding and all.
    """
    keys = np.empty((MAX_KEYS, 2), dtype=np.int64)
    opened = np.empty((MAX_DEPTH, 2), dtype=np.int64)
    base, width, flat = data.ctypes.data, out.shape[1], out.reshape(out.size)
    row = 0
    for i in range(starts.shape[0]):
        n = counts[i]
        left[i] = False
        if asked[i] and n:
            own = flat[row * width : (row + n) * width]
            left[i] = not _layer(base, starts[i], n, width, own, keys, opened)
        row += n


def warm_up(forms: int = NATIVE | OIP, embedding: bool = False) -> None:
    """Compile what reads these forms, with embeddings or without, or load it from the cache."""
    nesting(np.zeros(1, dtype=np.uint8))
    one, pair = np.zeros(1, dtype=np.int64), np.zeros((1, 2), dtype=np.int64)
    data, matrix, flag = np.zeros(PADDING, dtype=np.uint8), np.empty((1, 1)), np.zeros(1, dtype=np.bool_)
    rows = matrix, matrix.copy(), np.empty(1, dtype=np.int32), one.copy(), flag, pair, pair.copy()
    names = Names((0, 0), (0, 0), (0, 0), (0, 0), np.zeros(2, dtype=np.int64))
    if forms:
        records(data, one, one, one, *tried(forms), 0, 0, names, *rows)
    if forms and embedding:
        embeddings(data, one, flag, one, matrix, flag)


def tried(forms: int) -> tuple[bool | None, bool | None]:
    """The arguments `native` and `oip` of `records`."""
    return bool(forms & NATIVE) or None, bool(forms & OIP) or None
