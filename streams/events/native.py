"""Native JSON events: one object a record (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.events.assembly import assemble
from streams.events.batch import DecodeOptions, InferenceBatch, Reason, Record
from streams.events.document import parse, text_field
from streams.events.kernels import NATIVE
from streams.events.numbers import base64_tensor, matrix
from streams.events.refusal import Refusal, kind_of
from streams.events.rows import EMBEDDING, Faults, Layout, Rows, add_faults, settle


class NativeCodec:
    """Native JSON: inputs as a flat list (one row), a list of lists (many), or a base64 tensor with shape and dtype."""

    name = "native"

    def decode(self, records: Sequence[Record], options: DecodeOptions) -> InferenceBatch:
        return assemble(records, options, read, NATIVE)


def read(record: Record, value: bytes, layout: Layout) -> Rows:
    """The rows of one record.

    Raises
    ------
    Refusal
    """
    return read_fields(record, parse(value), layout)


def read_fields(record: Record, fields: dict[str, Any], layout: Layout) -> Rows:
    """The rows of one record whose JSON object is known already.

    Raises
    ------
    Refusal
    """
    layout.check_model(text_field(fields, "model"))
    faults: Faults = {}
    inputs = _inputs(fields.get("inputs"), layout, faults)
    outputs, scored = _vectors(fields.get("outputs"), len(inputs), layout.k, "outputs", "scores", faults)
    embeddings = embedded = None
    if layout.embedding_width is not None:
        asked = fields.get(EMBEDDING), len(inputs), layout.embedding_width
        embeddings, embedded = _vectors(*asked, "embeddings", "values", faults)
    labels, stated = _labels(fields.get("label"), len(inputs), layout, faults)
    request_id = fields.get("id")
    client = layout.place.find(record, fields, None)
    rows = settle(layout, inputs, outputs, scored, labels, stated, faults, embeddings, embedded)
    rows.client = client
    rows.request_id = request_id if type(request_id) is str else None
    return rows


def _inputs(value: Any, layout: Layout, faults: Faults) -> NDArray[Any]:
    """Inputs (n, d)."""
    width = layout.width
    if value is None:
        raise Refusal(Reason.MISSING_FIELD, "the event has no 'inputs'")
    if type(value) is not dict:
        lists = _lists(value, "inputs")
        layout.check_rows(len(lists))
        return matrix(lists, width, "inputs", faults)
    values, shape = base64_tensor(value, "inputs")
    n, sides = (shape[0], shape[1:]) if len(shape) > 1 else (1, shape)
    if n == 0:
        raise Refusal(Reason.EMPTY, "inputs hold no row")
    layout.check_rows(n)
    if len(values) != n * width:
        raise Refusal(Reason.WRONG_SHAPE, f"inputs have rows of shape {list(sides)}; {width} values are expected")
    return values.reshape(n, width)


def _vectors(
    value: Any, n: int, width: int, what: str, parts: str, faults: Faults
) -> tuple[NDArray[Any] | None, NDArray[np.bool_] | None]:
    """A vector beside each input, (n, width), and which rows have one, if not all.

    `what` names the field and `parts` its values, in the plural.
    """
    if value is None:
        return None, None
    if type(value) is dict:
        values, shape = base64_tensor(value, what)
        found = shape[0] if len(shape) > 1 else 1
        if found != n or len(values) != n * width:
            detail = f"{what} have shape {list(shape)}; {n} rows of {width} {parts} are expected"
            raise Refusal(Reason.WRONG_SHAPE, detail)
        return values.reshape(n, width), None
    there = None
    if type(value) is list and None in value and len(value) == n:
        there = np.array([row is not None for row in value])
        value = [[0.0] * width if row is None else row for row in value]
    rows = _lists(value, what)
    if len(rows) != n:
        raise Refusal(Reason.WRONG_SHAPE, f"{what} have {len(rows)} rows, inputs {n}")
    return matrix(rows, width, what, faults), there


def _lists(value: Any, what: str) -> list[Any]:
    """A list of rows; one flat row becomes a list of one."""
    if type(value) is not list:
        raise Refusal(Reason.WRONG_TYPE, f"{what} are {kind_of(value)}, not a list or a tensor")
    if not value:
        raise Refusal(Reason.EMPTY, f"{what} hold no row")
    nested = sum(type(item) is list for item in value)
    if 0 < nested < len(value):
        raise Refusal(Reason.WRONG_SHAPE, f"{what} mix rows and single values")
    return value if nested else [value]


def _labels(
    value: Any, n: int, layout: Layout, faults: Faults
) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """Labels (n,) and which rows have them, if not all."""
    if value is None:
        return None, None
    if type(value) is not list:
        if n > 1:
            raise Refusal(Reason.WRONG_SHAPE, f"one label stands for {n} rows")
        value = [value]
    if len(value) != n:
        raise Refusal(Reason.WRONG_SHAPE, f"there are {len(value)} labels for {n} rows")
    return class_numbers(value, layout, faults)


def class_numbers(
    values: Sequence[Any], layout: Layout, faults: Faults
) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Class names or numbers as numbers (n,), -1 for classes that there are not; and which are no null, if not all."""
    out = np.full(len(values), -1, dtype=np.int64)
    stated = np.ones(len(values), dtype=np.bool_)
    for row, value in enumerate(values):
        if type(value) is int:
            out[row] = value if 0 <= value < layout.k else -1
        elif type(value) is str:
            out[row] = layout.classes.get(value, -1)
        elif value is None:
            stated[row] = False
        else:
            detail = f"the label is {kind_of(value)}, not a whole number or a class name"
            add_faults(faults, [row], Reason.WRONG_TYPE, detail)
    return out, None if stated.all() else stated
