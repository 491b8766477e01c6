"""Numbers in records: JSON lists, tensors with a shape, raw and base64 bytes."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.events.batch import Reason
from streams.events.refusal import Refusal, kind_of, quoted
from streams.events.rows import Faults

_NUMBER = frozenset((int, float))
#: More sides than any tensor of rows needs.
MAX_SIDES = 8


def matrix(rows: Sequence[Any], width: int, what: str, faults: Faults) -> NDArray[np.float64]:
    """Lists of numbers as an array (n, width); a row that is none is 0 there and stands in `faults`.

    `what` names the field, in the plural.
    """
    if all(type(row) is list and len(row) == width for row in rows):
        flat = list(itertools.chain.from_iterable(rows))
        if _NUMBER.issuperset(map(type, flat)):
            try:
                return np.array(flat, dtype=np.float64).reshape(len(rows), width)
            except OverflowError:
                pass
    out = np.zeros((len(rows), width))
    for place, row in enumerate(rows):
        try:
            out[place] = _row(row, width, what)
        except Refusal as refusal:
            faults.setdefault(place, (refusal.reason, refusal.detail))
    return out


def _row(row: Any, width: int, what: str) -> NDArray[np.float64]:
    if type(row) is not list:
        raise Refusal(Reason.WRONG_TYPE, f"{what} hold {kind_of(row)} where a list of numbers belongs")
    for value in row:
        if type(value) is list:
            raise Refusal(Reason.WRONG_SHAPE, f"{what} are nested deeper than rows of numbers")
        if type(value) not in _NUMBER:
            raise Refusal(Reason.WRONG_TYPE, f"{what} hold {kind_of(value)} where a number belongs")
    if len(row) != width:
        raise Refusal(Reason.WRONG_SHAPE, f"{what} have {len(row)} values in a row; {width} are expected")
    try:
        return np.array(row, dtype=np.float64)
    except OverflowError:
        raise Refusal(Reason.NON_FINITE, f"{what} hold a whole number beyond float64") from None


def shape_of(value: Any, what: str) -> tuple[int, ...]:
    """A tensor's shape.

    Raises
    ------
    Refusal
        Wrong type or wrong shape.
    """
    if type(value) is not list or any(type(side) is not int for side in value):
        raise Refusal(Reason.WRONG_TYPE, f"the shape of {what} is not a list of whole numbers")
    if not 1 <= len(value) <= MAX_SIDES or any(side < 0 for side in value):
        raise Refusal(Reason.WRONG_SHAPE, f"the shape of {what} needs 1 to {MAX_SIDES} sides, none below 0")
    return tuple(value)


#: numpy names of the dtypes that native tensors may have, as little-endian dtypes.
NATIVE_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


def base64_tensor(fields: Mapping[str, Any], what: str) -> tuple[NDArray[Any], tuple[int, ...]]:
    """The values (all,) and the shape of a tensor object ``{"shape", "dtype", "data"}``; data is standard base64.

    Raises
    ------
    Refusal
        Missing field, wrong type, not decodable (bad base64), or wrong shape (bytes and shape differ).
    """
    for name in ("shape", "dtype", "data"):
        if fields.get(name) is None:
            raise Refusal(Reason.MISSING_FIELD, f"the tensor of {what} lacks {name!r}")
    shape = shape_of(fields["shape"], what)
    name, text = fields["dtype"], fields["data"]
    if type(name) is not str or name not in NATIVE_DTYPES:
        shown = quoted(name) if type(name) is str else kind_of(name)
        raise Refusal(Reason.WRONG_TYPE, f"the dtype of {what} is {shown}; one of {', '.join(NATIVE_DTYPES)} is needed")
    if type(text) is not str:
        raise Refusal(Reason.WRONG_TYPE, f"the data of {what} are {kind_of(text)}, not base64 text")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(Reason.NOT_DECODABLE, f"the data of {what} are not valid base64") from None
    return raw_values(raw, NATIVE_DTYPES[name], shape, what), shape


def raw_values(raw: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """Little-endian row-major bytes as values (all,), without a copy.

    Raises
    ------
    Refusal
        Wrong shape: bytes and shape differ. Wrong type: a truth value is a byte other than 0 and 1.
    """
    needed = math.prod(shape) * dtype.itemsize
    if len(raw) != needed:
        detail = f"{what} have {len(raw)} bytes; their shape {list(shape)} and {dtype.name} need {needed}"
        raise Refusal(Reason.WRONG_SHAPE, detail)
    if dtype.kind != "b":
        return np.frombuffer(raw, dtype=dtype)
    values = np.frombuffer(raw, dtype=np.uint8)
    if values.size and values.max() > 1:
        raise Refusal(Reason.WRONG_TYPE, f"{what} hold a truth value that is neither 0 nor 1")
    return values


def flatten(data: Any, shape: tuple[int, ...], what: str) -> list[Any]:
    """The values of a tensor's JSON list, which is flat or nested as its shape says.

    Raises
    ------
    Refusal
        Wrong type (no list) or wrong shape.
    """
    if type(data) is not list:
        raise Refusal(Reason.WRONG_TYPE, f"the data of {what} are {kind_of(data)}, not a list")
    flat = data
    if data and type(data[0]) is list:
        for depth, side in enumerate(shape):
            if depth:
                if any(type(part) is not list for part in flat):
                    raise Refusal(Reason.WRONG_SHAPE, f"the data of {what} are not nested as their shape says")
                if any(len(part) != side for part in flat):
                    raise Refusal(Reason.WRONG_SHAPE, f"the data of {what} are ragged; their shape is {list(shape)}")
                flat = list(itertools.chain.from_iterable(flat))
            elif len(flat) != side:
                raise Refusal(Reason.WRONG_SHAPE, f"{what} have {len(flat)} rows; their shape is {list(shape)}")
    if len(flat) != math.prod(shape):
        raise Refusal(
            Reason.WRONG_SHAPE, f"{what} have {len(flat)} values; their shape {list(shape)} needs another number"
        )
    if any(type(value) is list for value in flat):
        raise Refusal(Reason.WRONG_SHAPE, f"the data of {what} are nested deeper than their shape says")
    return flat
